"""PyTorch on a CPU in float32, its 3x3 convolutions by Winograd's minimal filtering, with kernels of our own.

An engine that multiplies as the definition of a convolution says can't be faster than the processor multiplies, and
in float32 ``fused`` and OpenVINO are there. F(4x4, 3x3) (Lavin & Gray, CVPR 2016) needs a quarter of the products, and
some sums; oneDNN and OpenVINO have no such thing for x86 in float32. What it rounds more is some 1e-6 of the result.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from streamdeblur.models.base import ResidualModel
from streamdeblur.models.folding import fold
from streamdeblur.restore.engines import kernels
from streamdeblur.restore.engines.fused import FusedEngine

#: Channels (in and out together) from which there are many, and the tiles of a run with few and with many. With few the
#: transformed pixels of a run stay in the cache beside the weights, with many the weights are read anew for each run.
#: Of 12, 24, 48 and 96 tiles these were the best on a Zen 3.
_MANY, _TILES_FEW, _TILES_MANY = 128, 24, 48

#: G of F(4x4, 3x3), for the points 0, 1, -1, 2, -2 and infinity.
_G = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)


class WinogradConv:
    """A 3x3 convolution of stride 1 with zeros around, its weights transformed; a ``folding.Convolution``.

    weight: (outputs, inputs, 3, 3), ``suits`` has to hold. Tensors are float32, (N, C, H, W) in channels_last, of any
    H and W. Several threads may call it, each with as many threads as PyTorch has for it. Raises DeviceError as
    ``kernels.library``, and MemoryError.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._library = kernels.library()
        wide = self._library.streamdeblur_winograd_width()
        self.outputs, self.inputs = weight.shape[:2]
        self._tiles = _TILES_MANY if self.inputs + self.outputs >= _MANY else _TILES_FEW
        self._bias = None if bias is None else bias.detach().float().contiguous()
        g = torch.tensor(_G, dtype=torch.float64)
        transformed = torch.einsum("ak,oikl,bl->aboi", g, weight.detach().double(), g)
        panel = 2 * wide if self.outputs % (2 * wide) == 0 else wide
        panels = transformed.reshape(36, self.outputs // panel, panel, self.inputs).transpose(2, 3)
        self._weights = panels.float().contiguous()

    @staticmethod
    def suits(weight: Tensor, stride: int) -> bool:
        """Whether this convolution can be done so: 3x3, stride 1, whole vectors of channels in and out."""
        wide = kernels.library().streamdeblur_winograd_width()
        outputs, inputs, high, across = weight.shape
        return (high, across, stride) == (3, 3, 1) and inputs % wide == 0 and outputs % wide == 0

    def __call__(self, x: Tensor, *, relu: bool = False, out: Tensor | None = None) -> Tensor:
        """The convolution, written over ``out`` where that is given."""
        if out is None:
            n, _, h, w = x.shape
            out = torch.empty((n, self.outputs, h, w), dtype=torch.float32, memory_format=torch.channels_last)
        return self._run(x, out, add=False, relu=relu)

    def add_to(self, other: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
        """``other`` plus the convolution of ``x``, written over ``other``."""
        return self._run(x, other, add=True, relu=relu)

    def _run(self, x: Tensor, y: Tensor, *, add: bool, relu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        n, _, h, w = x.shape
        if not y.is_contiguous(memory_format=torch.channels_last):
            y.copy_(self._run(x, y.contiguous(memory_format=torch.channels_last), add=add, relu=relu))
            return y
        bias = 0 if self._bias is None else self._bias.data_ptr()
        failed = self._library.streamdeblur_winograd(
            x.data_ptr(),
            y.data_ptr(),
            self._weights.data_ptr(),
            bias,
            *(n, h, w, self.inputs, self.outputs),
            *(add, relu, self._tiles, torch.get_num_threads()),
        )
        if failed:
            raise MemoryError("a thread of engine winograd")
        return y


class WinogradEngine(FusedEngine):
    """``FusedEngine`` in float32 with ``WinogradConv`` where that suits. Raises DeviceError as ``kernels.library``.

    Results differ in the last bits of float32 with where a window lies, not with the number of threads.
    """

    name = "winograd"

    def __init__(self, model: ResidualModel) -> None:
        began = time.perf_counter()
        super().__init__(model, torch.float32)
        self.prepare_seconds = time.perf_counter() - began

    def _fold(self, model: ResidualModel) -> ResidualModel:
        def convolution(weight: Tensor, bias: Tensor | None, stride: int) -> WinogradConv | None:
            return WinogradConv(weight, bias) if WinogradConv.suits(weight, stride) else None

        return fold(model, torch.float32, convolution)
