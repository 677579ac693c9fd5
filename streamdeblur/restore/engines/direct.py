"""Convolutions by their definition with kernels of our own: those of a network that Winograd's filtering does not suit.

oneDNN's need some 70 us a call beside their work, which is most of what a small window costs, have no fused addition of
a smaller picture, and are slow with 3 channels and for transposed convolutions.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from streamdeblur.restore.engines import kernels

#: Taps of a 4x4 transposed convolution of stride 2 with a border of 1 that reach even and odd lines of the result:
#: which of the four, and how many lines from the pixel.
_EVEN, _ODD = ((3, -1), (1, 0)), ((2, 0), (0, 1))


def suits_direct(weight: Tensor, stride: int) -> bool:
    """Whether ``DirectConv`` takes a convolution: 1x1 or 3x3, stride 1 or 2, whole vectors of channels out. weight:
    (outputs, inputs, height, width). Raises DeviceError as ``kernels.library``."""
    outputs, _, high, across = weight.shape
    wide = kernels.library().streamdeblur_width()
    return (high, across) in ((1, 1), (3, 3)) and stride in (1, 2) and outputs % wide == 0


def suits_up(weight: Tensor) -> bool:
    """Whether ``DirectUp`` takes a transposed convolution with weights (inputs, outputs, height, width).

    Raises DeviceError as ``kernels.library``.
    """
    wide = kernels.library().streamdeblur_width()
    return weight.shape[2:] == (4, 4) and weight.shape[1] % wide == 0


def _pack(taps: Tensor, dtype: torch.dtype) -> Tensor:
    """(phases, count, outputs, inputs), laid out for the kernel."""
    wide = kernels.library().streamdeblur_width()
    outputs, inputs = taps.shape[2:]
    panel = 2 * wide if outputs % (2 * wide) == 0 else wide
    pair = 2 if dtype == torch.bfloat16 else 1  # neighbours along the sum are multiplied together
    panels = F.pad(taps.detach().to(dtype), (0, -inputs % pair)).unflatten(3, (-1, pair)).unflatten(2, (-1, panel))
    packed: Tensor = panels.permute(0, 2, 1, 4, 3, 5).contiguous()
    return packed


class _Direct:
    """What calls the kernel. taps: (phases, count, outputs, inputs) weights. where: of each the lines and columns from
    the result's pixel."""

    def __init__(
        self, taps: Tensor, where: list[tuple[int, int]], bias: Tensor | None, stride: int, dtype: torch.dtype
    ) -> None:
        self._run = kernels.library().streamdeblur_direct
        self._phases, self._count, self.outputs, self.inputs = taps.shape
        self._stride, self.dtype = stride, dtype
        self._packed = _pack(taps, dtype)
        self._bias = None if bias is None else bias.detach().float().contiguous()
        self._taps = (ctypes.c_int * (2 * len(where)))(*(part for one in where for part in one))
        self._fixed = (self._packed.data_ptr(), 0 if self._bias is None else self._bias.data_ptr())

    def _call(self, x: Tensor, y: Tensor, *, enlarged: Tensor | None = None, add: bool = False, relu: bool) -> Tensor:
        x, dense = (t.contiguous(memory_format=torch.channels_last) for t in (x, y))
        small = None if enlarged is None else enlarged.contiguous(memory_format=torch.channels_last)
        n, inputs, h, w = x.shape
        assert inputs == self.inputs
        assert y.shape == (n, self.outputs, *self._size(h, w))
        assert x.dtype == y.dtype == self.dtype, "memory is handed over as it is"
        failed = self._run(
            *(x.data_ptr(), dense.data_ptr(), *self._fixed, 0 if small is None else small.data_ptr(), self._taps),
            *(self._phases, self._count, n, h, w, inputs, self.outputs, self._stride),
            *(self.dtype == torch.bfloat16, add, relu, torch.get_num_threads()),
        )
        if failed:
            raise MemoryError("a thread of engine winograd")
        return y if dense is y else y.copy_(dense)

    def _size(self, h: int, w: int) -> tuple[int, int]:
        """Height and width of the result."""
        s = self._stride
        return (2 * h, 2 * w) if self._phases == 4 else (-(-h // s), -(-w // s))

    def _result(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        size = (n, self.outputs, *self._size(h, w))
        return torch.empty(size, dtype=self.dtype, memory_format=torch.channels_last)


class DirectConv(_Direct):
    """A 1x1 or 3x3 convolution with zeros around; a ``folding.Convolution``.

    weight: (outputs, inputs, height, width), ``suits_direct`` has to hold. dtype: float32, or bfloat16 where the
    kernels take that. Several threads may call it. Calls raise MemoryError; the constructor DeviceError as
    ``kernels.library``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, dtype: torch.dtype) -> None:
        reach = weight.shape[-1] // 2
        where = [(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]
        super().__init__(weight.flatten(2).permute(2, 0, 1)[None], where, bias, stride, dtype)

    def __call__(self, x: Tensor, *, relu: bool = False, out: Tensor | None = None) -> Tensor:
        """The convolution, written over ``out`` where that is given."""
        return self._call(x, self._result(x) if out is None else out, relu=relu)

    def add_to(self, other: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
        """``other`` plus the convolution of ``x``, written over ``other``."""
        return self._call(x, other, add=True, relu=relu)

    def add_enlarged(self, small: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
        """The convolution of ``x`` plus ``small``, each pixel of which stands for four."""
        y = self._result(x)
        assert small.shape == (y.shape[0], y.shape[1], y.shape[2] // 2, y.shape[3] // 2)
        assert y.shape[2] % 2 == y.shape[3] % 2 == 0
        assert small.dtype == self.dtype
        return self._call(x, y, enlarged=small, relu=relu)


class DirectUp(_Direct):
    """A 4x4 transposed convolution of stride 2 with a border of 1, and ReLU: twice the height and width.

    weight: (inputs, outputs, 4, 4), ``suits_up`` has to hold. dtype, threads and errors as ``DirectConv``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        phases = [(lines, columns) for lines in (_EVEN, _ODD) for columns in (_EVEN, _ODD)]
        chosen = [[(i, j) for i in lines for j in columns] for lines, columns in phases]
        taps = torch.stack(
            [torch.stack([weight[:, :, i[0], j[0]].T for i, j in phase]) for phase in chosen]
        )  # (4, 4, outputs, inputs)
        super().__init__(taps, [(i[1], j[1]) for phase in chosen for i, j in phase], bias, 1, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self._call(x, self._result(x), relu=True)
