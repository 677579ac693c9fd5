"""A trained network that shows another what it makes of a blurred picture (Hinton, Vinyals, Dean 2015: distillation).

Most of what a sharp picture differs in from the blurred one can't be known from it, and as noise in the gradient it
hides the rest. What a network makes of the picture can all be known from it: it is learned from fewer crops. And the
mean of what it makes of a picture that is flipped and turned is better than what it makes of one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from streamdeblur.models import registry
from streamdeblur.models.ensemble import SYMMETRIES, oriented, oriented_back
from streamdeblur.models.mimo_unet import network_from_state
from streamdeblur.training.convolutions import quicken


class Teacher:
    """Targets that lie between the sharp picture and what a network makes of the blurred one.

    path: its checkpoint, ours or the authors', of any architecture. share: how far the targets are from the sharp
    picture, in 0..1; with 1 they are the teacher's. views: how many of the 8 orientations are shown to it, drawn anew
    each time; the mean of what it makes of them, turned back, counts. dtype: of its arithmetic, under autocast.
    compiled: run it through ``torch.compile``. One thread at a time. Raises WeightsError for a file that is no
    checkpoint.
    """

    def __init__(
        self,
        path: str,
        share: float,
        device: torch.device,
        dtype: torch.dtype,
        *,
        views: int = 1,
        compiled: bool = False,
    ) -> None:
        state, metadata = registry.read_weights(path)
        net = network_from_state(metadata.config, state).eval().requires_grad_(False)
        net = net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compiled and device.type == "cpu":
            quicken(net, dtype)
        self.share, self.views = share, views
        self._device, self._dtype = device.type, dtype
        self._residual: Callable[[Tensor], Tensor] = torch.compile(net.residual) if compiled else net.residual

    @torch.no_grad()
    def targets(self, blur: Tensor, sharp: Tensor, dice: np.random.Generator) -> Tensor:
        """blur, sharp: (N, 3, side, side) float32 in [0, 1] on the device. Returns the same shape, not clamped.

        dice: draws the orientations. Crops that are given sharp stay as they are: what a teacher does to those is
        nothing to learn.
        """
        total = torch.zeros_like(blur)
        for view in dice.choice(SYMMETRIES, self.views, replace=False).tolist():  # in turn: memory is that of one
            seen = oriented(blur, view).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self._device, self._dtype, enabled=self._dtype != torch.float32):
                residual = self._residual(seen)
            total += oriented_back(residual, view)
        towards = torch.lerp(sharp, blur + total / self.views, self.share)
        same = (blur == sharp).flatten(1).all(1)
        return torch.where(same[:, None, None, None], sharp, towards)
