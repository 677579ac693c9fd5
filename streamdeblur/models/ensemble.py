"""Geometric self-ensemble: MIMO-UNet++ is MIMO-UNet+ averaged over flips (4) or flips and transposes (8)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from streamdeblur.models.base import ResidualModel

#: Symmetries of the square: flips, and the same after a transposition.
SYMMETRIES = 8


def oriented(x: Tensor, view: int) -> Tensor:
    """Symmetry ``view`` of pictures (..., H, W): 0 is none, 1 to 3 are flips, 4 to 7 the same of (..., W, H)."""
    return _flip(x.transpose(-1, -2) if view >= 4 else x, view)


def oriented_back(x: Tensor, view: int) -> Tensor:
    """The inverse of ``oriented``."""
    x = _flip(x, view)
    return x.transpose(-1, -2) if view >= 4 else x


def _flip(x: Tensor, view: int) -> Tensor:
    axes = [axis for axis, bit in ((-2, 1), (-1, 2)) if view & bit]
    return x.flip(axes) if axes else x


class SelfEnsemble(ResidualModel):
    """The mean of a network's residuals over 4 or 8 symmetries of the square, each undone on its result.

    transforms: 4 (identity, horizontal, vertical, both flips; the shape stays) or 8 (the same after a transposition).
    One pass after the other, so that memory is that of one pass; the mean is taken in float32 at least. Flips move no
    pixel further than it was: the receptive radius is that of the network.
    """

    def __init__(self, net: ResidualModel, transforms: Literal[4, 8] = 4) -> None:
        super().__init__()
        if transforms not in (4, 8):
            raise ValueError(f"self-ensemble of {transforms} transforms: 4 or 8")
        self.net = net
        self.transforms: Literal[4, 8] = transforms
        self.size_multiple = net.size_multiple

    @property
    def receptive_radius(self) -> int:
        return self.net.receptive_radius

    def residual(self, x: Tensor) -> Tensor:
        self.check_input(x)
        nhwc = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if nhwc else torch.contiguous_format
        total = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32), memory_format=layout)
        for view in range(self.transforms):
            seen = oriented(x, view).contiguous(memory_format=layout)
            total += oriented_back(self.net.residual(seen), view)
        return total.div_(self.transforms).to(x.dtype)
