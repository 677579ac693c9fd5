"""PyTorch on a CPU, its 3x3 convolutions by Winograd's minimal filtering, with kernels of our own.

An engine that multiplies as the definition of a convolution says can't be faster than the processor multiplies, and
in float32 ``fused`` and OpenVINO are there. F(4x4, 3x3) (Lavin & Gray, CVPR 2016) needs a quarter of the products, and
some sums; oneDNN and OpenVINO have no such thing for x86. What it rounds more is some 1e-6 of the result
in float32; in bfloat16 some 2 % of a layer's, as its sums cancel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamdeblur.errors import DeviceError
from streamdeblur.models.base import ResidualModel
from streamdeblur.models.folding import Convolution, OneDNN, fold
from streamdeblur.restore.engines import cache, kernels
from streamdeblur.restore.engines.devices import bf16_pays_without_amx, cpu_flags, decided, in_turns
from streamdeblur.restore.engines.direct import DirectConv, DirectUp, suits_direct, suits_up
from streamdeblur.restore.engines.fused import FusedEngine

log = logging.getLogger(__name__)

#: Channels (in and out together) from which there are many, and the tiles of a run with few and with many. With few the
#: transformed pixels of a run stay in the cache beside the weights, with many the weights are read anew for each run.
#: Of 12, 24, 48 and 96 tiles these were the best on a Zen 3.
_MANY, _TILES_FEW, _TILES_MANY = 128, 24, 48

#: What layers must take here of their time by oneDNN, with AMX, to be chosen.
_GAIN = 0.9


def suits(weight: Tensor, stride: int) -> bool:
    """Whether a convolution can be done so: 3x3, stride 1, whole vectors of channels in and out. weight: (outputs,
    inputs, height, width). Raises DeviceError as ``kernels.library``."""
    wide = kernels.library().streamdeblur_width()
    outputs, inputs, high, across = weight.shape
    return (high, across, stride) == (3, 3, 1) and inputs % wide == 0 and outputs % wide == 0


def pack(weight: Tensor, dtype: torch.dtype, *, turned: bool = False) -> Tensor:
    """(outputs, inputs, 3, 3) float32, for which ``suits`` holds, transformed for ``convolve`` of ``dtype``.

    turned: as weights (inputs, outputs, 3, 3) whose taps are in reverse order, which make of the gradient of the
    results that of the input.
    """
    assert weight.dtype == torch.float32, "memory is handed over as it is"
    assert dtype in (torch.float32, torch.bfloat16)
    packed = torch.empty(36 * weight.shape[0] * weight.shape[1], dtype=dtype)
    outputs, inputs, down, across = weight.stride()
    first = weight.data_ptr()
    where = (*weight.shape[:2], outputs, inputs, down, across)
    if turned:
        first += 2 * (down + across) * weight.element_size()
        where = (weight.shape[1], weight.shape[0], inputs, outputs, -down, -across)
    kernels.library().streamdeblur_winograd_pack(first, packed.data_ptr(), *where, dtype == torch.bfloat16)
    return packed


def run_tiles(inputs: int, outputs: int) -> int:
    """Tiles of 4x4 results that are worked on at a time."""
    return _TILES_MANY if inputs + outputs >= _MANY else _TILES_FEW


def convolve(
    x: Tensor, packed: Tensor, bias: Tensor | None, y: Tensor, *, add: bool = False, relu: bool = False
) -> Tensor:
    """The convolution of ``x`` (N, inputs, H, W), any H and W, written over ``y`` (N, outputs, H, W), or added to it.

    float32 or bfloat16, both in channels_last; zeros around. What is not finite spreads over tiles of 4x4 results.
    packed: of ``pack``. Several threads may call it, each with as many threads as PyTorch has for it. Raises
    MemoryError.
    """
    n, inputs, h, w = x.shape
    outputs = y.shape[1]
    assert x.dtype == y.dtype == packed.dtype, "memory is handed over as it is"
    assert x.dtype in (torch.float32, torch.bfloat16)
    assert bias is None or bias.dtype == torch.float32
    assert bias is None or bias.is_contiguous()
    assert (n, h, w) == (y.shape[0], *y.shape[2:])
    assert packed.numel() == 36 * inputs * outputs
    failed = kernels.library().streamdeblur_winograd(
        x.data_ptr(),
        y.data_ptr(),
        packed.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        *(n, h, w, inputs, outputs),
        *(x.dtype == torch.bfloat16, add, relu, run_tiles(inputs, outputs), torch.get_num_threads()),
    )
    if failed:
        raise MemoryError("a thread of engine winograd")
    return y


def gains_by_bf16() -> bool:
    """Whether networks run faster so in bfloat16 than as ``fused`` or OpenVINO would.

    Without AMX, where the CPU multiplies faster in bfloat16: those do no better than the product. With AMX what is not
    a product takes most of the time, so layers are measured against oneDNN's, once on a machine. Raises DeviceError as
    ``kernels.library``.
    """
    flags = cpu_flags()
    if "avx512_bf16" not in flags or not ("amx_bf16" in flags or bf16_pays_without_amx()):
        return False
    library = kernels.library()
    if "amx_bf16" not in flags:
        return bool(library.streamdeblur_half())
    if not library.streamdeblur_tiles():
        return False
    path = cache.cache_folder() / f"winograd-{cache.key(kernels.version(), cache.machine(torch.device('cpu')))}.json"
    return bool(decided(path, _measure).get("pays"))


def _measure() -> dict[str, Any]:
    """Seconds of a layer of each scale, by oneDNN and here: of a network of width 16, which gains least."""
    onednn = own = 0.0
    try:
        for channels, side in ((16, 256), (32, 128), (64, 64)):
            x = torch.full((1, channels, side, side), 0.5, dtype=torch.bfloat16)
            x = x.contiguous(memory_format=torch.channels_last)
            weight = torch.full((channels, channels, 3, 3), 0.25, dtype=torch.bfloat16)
            with torch.inference_mode():
                theirs, ours = (make(weight, None, 1) for make in (OneDNN(torch.bfloat16).convolution, _own))
            taken = in_turns(partial(theirs, x), partial(ours, x))
            onednn, own = onednn + taken[0], own + taken[1]
    except (RuntimeError, MemoryError):  # of either: then there is no saying
        log.debug("layers can't be compared", exc_info=True)
        return {"pays": False}
    return {"pays": own < _GAIN * onednn, "onednn_s": onednn, "own_s": own}


def _own(weight: Tensor, bias: Tensor | None, stride: int) -> Convolution:
    return WinogradConv(weight, bias, weight.dtype)


class WinogradConv:
    """A 3x3 convolution of stride 1 with zeros around, its weights transformed; a ``folding.Convolution``.

    weight: (outputs, inputs, 3, 3), ``suits`` has to hold. Tensors are of ``dtype``, of any H and W. Threads and errors
    as ``convolve``; the constructor raises DeviceError as ``kernels.library``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        self.outputs = weight.shape[0]
        self.dtype = dtype
        self._packed = pack(weight.detach().float(), dtype)
        self._bias = None if bias is None else bias.detach().float().contiguous()

    def __call__(self, x: Tensor, *, relu: bool = False, out: Tensor | None = None) -> Tensor:
        """The convolution, written over ``out`` where that is given."""
        if out is None:
            n, _, h, w = x.shape
            out = torch.empty((n, self.outputs, h, w), dtype=self.dtype, memory_format=torch.channels_last)
        return self._run(x, out, add=False, relu=relu)

    def add_to(self, other: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
        """``other`` plus the convolution of ``x``, written over ``other``."""
        return self._run(x, other, add=True, relu=relu)

    def add_enlarged(self, small: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
        """The convolution of ``x`` plus ``small``, each pixel of which stands for four."""
        return self.add_to(F.interpolate(small, scale_factor=2.0), x, relu=relu)

    def _run(self, x: Tensor, y: Tensor, *, add: bool, relu: bool) -> Tensor:
        x, dense = (t.contiguous(memory_format=torch.channels_last) for t in (x, y))
        convolve(x, self._packed, self._bias, dense, add=add, relu=relu)
        return y if dense is y else y.copy_(dense)


class WinogradEngine(FusedEngine):
    """``FusedEngine`` with ``WinogradConv`` where that suits, in float32 or bfloat16.

    Results differ in the last bits with where a window lies, and, in float32, by oneDNN's part, with the number of
    threads. Raises DeviceError as ``kernels.library``, and for bfloat16 where the CPU does not multiply that.
    """

    name = "winograd"

    def __init__(self, model: ResidualModel, dtype: torch.dtype = torch.float32) -> None:
        if dtype == torch.bfloat16 and not kernels.library().streamdeblur_half():
            raise DeviceError(
                "engine winograd has no bf16 on this CPU, or by this C++ compiler", "take --precision fp32"
            )
        super().__init__(model, dtype)

    def _fold(self, model: ResidualModel) -> ResidualModel:
        return fold(model, self.dtype, _Kernels(self.dtype))


class _Kernels(OneDNN):
    """Layers with kernels of our own, but for those that none suits."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.channels = kernels.library().streamdeblur_width()

    def convolution(self, weight: Tensor, bias: Tensor | None, stride: int) -> Convolution:
        if suits(weight, stride):
            return WinogradConv(weight, bias, self.dtype)
        if suits_direct(weight, stride):
            return DirectConv(weight, bias, stride, self.dtype)
        return super().convolution(weight, bias, stride)

    def up(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        return DirectUp(weight, bias, self.dtype) if suits_up(weight) else super().up(weight, bias)
