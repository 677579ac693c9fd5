"""Models without parameters, for testing everything around a network: they take the same path that one takes."""

from __future__ import annotations

import torch
from torch import Tensor

from streamdeblur.models.base import ResidualModel

#: RGB step of ``offset``, of nominal [0, 1]: different in every channel and sign, small enough to seldom clip.
OFFSET_STEP = (0.06, -0.04, 0.02)


class Identity(ResidualModel):
    """Corrects nothing."""

    @property
    def receptive_radius(self) -> int:
        return 0

    def residual(self, x: Tensor) -> Tensor:
        self.check_input(x)
        return torch.zeros_like(x)


class Offset(ResidualModel):
    """Adds a known RGB step to every pixel. step: (R, G, B), in units of nominal [0, 1]."""

    def __init__(self, step: tuple[float, float, float] = OFFSET_STEP) -> None:
        super().__init__()
        self.step = step

    @property
    def receptive_radius(self) -> int:
        return 0

    def residual(self, x: Tensor) -> Tensor:
        self.check_input(x)
        # From plain numbers, so that a module cast to half precision still adds the step it was given.
        return torch.cat([torch.full_like(x[:, :1], value) for value in self.step], 1)
