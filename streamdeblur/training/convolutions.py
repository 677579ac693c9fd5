"""3x3 convolutions of training on a CPU by Winograd's minimal filtering: forwards, and both gradients.

In float32, or, under autocast, in bfloat16 with weights and their gradients in float32. The kernels are those of engine
``winograd`` (``restore/engines/kernels.cpp``). The gradient of the input is the same convolution with the weights
turned; that of the weights is F(3x3, 4x4), the adjoint of F(4x4, 3x3) in its weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdeblur.errors import DeviceError
from streamdeblur.restore.engines import cache, kernels
from streamdeblur.restore.engines.devices import bf16_pays_without_amx, cpu_flags, decided, in_turns
from streamdeblur.restore.engines.winograd import convolve, pack, suits

log = logging.getLogger(__name__)

#: Parts that the gradient of the weights is summed in: a fixed number, so that threads change no bit of it. Threads
#: beyond it find no work; more parts would cost a few threads more time for memory than the products take.
_PARTS = 8

#: Tiles of a run of the gradient of the weights, in float32 and in bfloat16, which takes half the room: for each run
#: all sums are read and written once. The best, or near it, with 16 to 128 channels: on a Zen 3 of 48 to 192 tiles, on
#: a Zen 4, in bfloat16, of 12 to 384.
_TILES, _TILES_HALF = 48, 96

#: Channels, in and out, and side of the layers that are measured where AMX multiplies.
_LAYERS = ((16, 256), (32, 128), (64, 64), (128, 64))

#: What a layer and its gradients must take there of their time by oneDNN to be quickened, and how far, in the norm, its
#: results may be from oneDNN's: bf16 with transforms is some 2 % off.
_GAIN, _OFF = 0.9, 0.06


def quicken(net: nn.Module, dtype: torch.dtype) -> int:
    """Let the convolutions of ``net`` that suit run through kernels of our own from now on; how many they are.

    For a network with float32 weights on a CPU, run in float32 or under autocast to bfloat16 (``dtype``); names and
    values of parameters stay. Transposed convolutions then have their bias added apart. None where PyTorch's own are as
    fast or dtype is another, where this machine has no C++ compiler, or one whose kernels would leave PyTorch's other
    threads idle. With AMX that is measured, once on a machine, for layers of several numbers of channels, and those are
    all that changes.
    """
    amx = "amx_bf16" in cpu_flags()
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and (amx or bf16_pays_without_amx())):
        return 0
    try:
        library = kernels.library()
        if dtype == torch.bfloat16 and not library.streamdeblur_half():
            return 0
        if not library.streamdeblur_parallel() and torch.get_num_threads() > 1:
            return 0
        gaining = _gaining() if dtype == torch.bfloat16 and amx else None
        found = [
            m
            for m in net.modules()
            if type(m) is nn.Conv2d
            and (m.padding, m.dilation, m.groups, m.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
            and m.stride == (1, 1)
            and suits(m.weight, 1)
            and (gaining is None or _nearest(m) in gaining)
        ]
    except DeviceError:
        log.debug("convolutions stay with PyTorch", exc_info=True)
        return 0
    for module in found:
        module.__class__ = _Conv2d
    if gaining is not None:  # these were not measured
        return len(found)
    for up in [m for m in net.modules() if type(m) is nn.ConvTranspose2d and m.bias is not None]:
        up.__class__ = _ConvTranspose2d
    return len(found)


def _gaining() -> Collection[int]:
    """Channels of those of ``_LAYERS`` that are quicker here than by AMX through oneDNN. Raises DeviceError as
    ``kernels.library``."""
    way = (_LAYERS, _GAIN, _OFF, _PARTS, _TILES_HALF)
    name = cache.key(kernels.version(), cache.machine(torch.device("cpu")), *way)
    path = cache.cache_folder() / f"training-{name}.json"
    found = decided(path, _measure).get("quicker")
    return found if isinstance(found, list) else ()


def _nearest(layer: nn.Conv2d) -> int:
    """The channels of the measured layer that is most like this one, by its products."""
    channels = math.sqrt(layer.in_channels * layer.out_channels)
    return min((c for c, _ in _LAYERS), key=lambda c: abs(math.log(c / channels)))


def _measure() -> dict[str, Any]:
    """The layers whose forward pass and gradients take less time here than by oneDNN, in bf16, and give the same."""
    quicker, taken = [], {}
    for channels, side in _LAYERS:
        # Of a generator of its own: PyTorch's is the run's.
        dice = torch.Generator().manual_seed(channels)
        x, g = (_last(torch.randn((1, channels, side, side), generator=dice).bfloat16()) for _ in range(2))
        weight = _last(torch.randn((channels, channels, 3, 3), generator=dice) / (3 * math.sqrt(channels)))
        ways = [partial(way, x, g, weight, torch.zeros(channels)) for way in (_by_onednn, _by_own)]
        try:
            with torch.inference_mode():
                wanted, got = (way() for way in ways)
            theirs, own = in_turns(*ways)
        except (RuntimeError, MemoryError):  # of either: then there is no saying
            log.debug("layers of %d channels can't be compared", channels, exc_info=True)
            continue
        off = [float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(got, wanted, strict=True)]
        taken[str(channels)] = {"onednn_s": theirs, "own_s": own, "off": off}
        if own < _GAIN * theirs and all(o < _OFF for o in off):  # not what is no number
            quicker.append(channels)
    return {"quicker": quicker, "layers": taken}


def _by_onednn(x: Tensor, g: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """As autocast has a layer: its results, and the gradients of input, weights and bias."""
    half, ones = weight.to(x.dtype), [1, 1]
    y = F.conv2d(x, half, bias.to(x.dtype), padding=1)
    where = (ones, ones, ones, False, [0, 0], 1, [True, True, True])
    return (y, *torch.ops.aten.convolution_backward(g, x, half, [weight.shape[0]], *where))


def _by_own(x: Tensor, g: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return (_forward(x, weight, bias), _input_gradient(g, weight), *_weight_gradient(g, x))


class _Conv2d(nn.Conv2d):
    """``nn.Conv2d`` with another way to its result, for (N, C, H, W) in float32, or under autocast in bfloat16."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        return cast(Tensor, _forward(input.to(dtype), self.weight, self.bias))


class _ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` whose bias is added apart: oneDNN's gradient of it takes as long as all the others."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002 - torch's name
        assert output_size is None
        assert self.bias is not None
        where = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        y = F.conv_transpose2d(input, self.weight, None, *where)  # type: ignore[arg-type]
        return y + self.bias.to(y.dtype)[:, None, None]


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, channels: int) -> Tensor:
    n, _, h, w = like.shape
    return torch.empty((n, channels, h, w), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


@torch.library.custom_op("streamdeblur::conv3x3", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return convolve(_last(x), pack(weight, x.dtype), bias, _empty(x, weight.shape[0]))


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _empty(x, weight.shape[0])


@torch.library.custom_op("streamdeblur::conv3x3_input_gradient", mutates_args=())
def _input_gradient(g: Tensor, weight: Tensor) -> Tensor:
    return convolve(_last(g), pack(weight, g.dtype, turned=True), None, _empty(g, weight.shape[1]))


@_input_gradient.register_fake
def _(g: Tensor, weight: Tensor) -> Tensor:
    return _empty(g, weight.shape[1])


@torch.library.custom_op("streamdeblur::conv3x3_weight_gradient", mutates_args=())
def _weight_gradient(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    g, x = _last(g), _last(x)
    assert g.dtype == x.dtype, "memory is handed over as it is"
    assert x.dtype in (torch.float32, torch.bfloat16)
    n, inputs, h, w = x.shape
    outputs, half = g.shape[1], x.dtype == torch.bfloat16
    weight = torch.empty((outputs, inputs, 3, 3), dtype=torch.float32, memory_format=torch.channels_last)
    bias = torch.empty(outputs, dtype=torch.float32)
    memory = torch.empty(_PARTS * (36 * inputs + 1) * outputs, dtype=torch.float32)
    failed = kernels.library().streamdeblur_winograd_gradient(
        *(t.data_ptr() for t in (x, g, weight, bias, memory)),
        *(n, h, w, inputs, outputs),
        *weight.stride(),
        *(half, _TILES_HALF if half else _TILES, _PARTS, torch.get_num_threads()),
    )
    if failed:
        raise MemoryError("a thread of a convolution's gradient")
    return weight, bias


@_weight_gradient.register_fake
def _(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    inputs, outputs = x.shape[1], g.shape[1]
    return (
        _last(x.new_empty((outputs, inputs, 3, 3), dtype=torch.float32)),
        x.new_empty(outputs, dtype=torch.float32),
    )


def _remember(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor
) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None  # type: ignore[attr-defined]


def _backward(
    ctx: torch.autograd.function.FunctionCtx, g: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
    g = _last(g)
    of_x = _input_gradient(g, weight) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
    if not any(ctx.needs_input_grad[1:]):  # type: ignore[attr-defined]
        return of_x, None, None
    of_weight, of_bias = _weight_gradient(g, x)
    return of_x, of_weight, of_bias if ctx.biased else None  # type: ignore[attr-defined]


_forward.register_autograd(_backward, setup_context=_remember)
