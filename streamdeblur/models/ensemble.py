"""Geometric self-ensemble: MIMO-UNet++ is MIMO-UNet+ averaged over flips (4) or flips and transposes (8)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from streamdeblur.models.base import ResidualModel


def _flip(x: Tensor, horizontal: bool, vertical: bool) -> Tensor:
    axes = [axis for axis, wanted in ((-1, horizontal), (-2, vertical)) if wanted]
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
        for transposed in (False, True)[: self.transforms // 4]:
            source = x.transpose(-1, -2) if transposed else x
            for horizontal in (False, True):
                for vertical in (False, True):
                    seen = _flip(source, horizontal, vertical).contiguous(memory_format=layout)
                    back = _flip(self.net.residual(seen), horizontal, vertical)
                    total += back.transpose(-1, -2) if transposed else back
        return total.div_(self.transforms).to(x.dtype)
