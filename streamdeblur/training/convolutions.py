"""3x3 convolutions of training on a CPU in float32 by Winograd's minimal filtering: forwards, and both gradients.

The kernels are those of engine ``winograd`` (``restore/engines/winograd.cpp``). The gradient of the input is the same
convolution with the weights turned; that of the weights is F(3x3, 4x4), the adjoint of F(4x4, 3x3) in its weights.
"""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import Tensor, nn

from streamdeblur.errors import DeviceError
from streamdeblur.restore.engines import kernels
from streamdeblur.restore.engines.winograd import convolve, pack, run_tiles, suits, unpack_gradient

log = logging.getLogger(__name__)

#: Parts that the gradient of the weights is summed in: a fixed number, so that threads change no bit of it. Threads
#: beyond it find no work; more parts would cost a few threads more time for memory than the products take.
_PARTS = 8


def quicken(net: nn.Module) -> int:
    """Let the convolutions of ``net`` that suit run through kernels of our own from now on; how many they are.

    For float32 on a CPU; names and values of parameters stay. None where this machine has no C++ compiler, or one whose
    kernels would leave PyTorch's other threads idle.
    """
    try:
        if not kernels.library().streamdeblur_winograd_parallel() and torch.get_num_threads() > 1:
            return 0
        found = [
            m
            for m in net.modules()
            if type(m) is nn.Conv2d
            and (m.padding, m.dilation, m.groups, m.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
            and m.stride == (1, 1)
            and suits(m.weight, 1)
        ]
    except DeviceError:
        log.debug("convolutions stay with PyTorch", exc_info=True)
        return 0
    for module in found:
        module.__class__ = _Conv2d
    return len(found)


class _Conv2d(nn.Conv2d):
    """``nn.Conv2d`` with another way to its result."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        return cast(Tensor, _forward(input, self.weight, self.bias))


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, channels: int) -> Tensor:
    n, _, h, w = like.shape
    return torch.empty((n, channels, h, w), dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


@torch.library.custom_op("streamdeblur::conv3x3", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return convolve(_last(x), pack(weight, torch.float32), bias, _empty(x, weight.shape[0]))


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _empty(x, weight.shape[0])


@torch.library.custom_op("streamdeblur::conv3x3_input_gradient", mutates_args=())
def _input_gradient(g: Tensor, weight: Tensor) -> Tensor:
    return convolve(_last(g), pack(weight.flip(2, 3).transpose(0, 1), torch.float32), None, _empty(g, weight.shape[1]))


@_input_gradient.register_fake
def _(g: Tensor, weight: Tensor) -> Tensor:
    return _empty(g, weight.shape[1])


@torch.library.custom_op("streamdeblur::conv3x3_weight_gradient", mutates_args=())
def _weight_gradient(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    g, x = _last(g), _last(x)
    assert g.dtype == x.dtype == torch.float32, "memory is handed over as it is"
    n, inputs, h, w = x.shape
    outputs = g.shape[1]
    sums, bias = x.new_empty((36, inputs, outputs)), x.new_empty(outputs)
    memory = x.new_empty(_PARTS * (36 * inputs + 1) * outputs)
    failed = kernels.library().streamdeblur_winograd_gradient(
        *(t.data_ptr() for t in (x, g, sums, bias, memory)),
        *(n, h, w, inputs, outputs),
        *(False, run_tiles(inputs, outputs), _PARTS, torch.get_num_threads()),
    )
    if failed:
        raise MemoryError("a thread of a convolution's gradient")
    return _last(unpack_gradient(sums)), bias


@_weight_gradient.register_fake
def _(g: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    inputs, outputs = x.shape[1], g.shape[1]
    return _last(x.new_empty((outputs, inputs, 3, 3))), x.new_empty(outputs)


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
    of_x = _input_gradient(g, weight) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
    if not any(ctx.needs_input_grad[1:]):  # type: ignore[attr-defined]
        return of_x, None, None
    of_weight, of_bias = _weight_gradient(g, x)
    return of_x, of_weight, of_bias if ctx.biased else None  # type: ignore[attr-defined]


_forward.register_autograd(_backward, setup_context=_remember)
