"""What every model of this package can do: predict a correction, and say how far it looks."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn


class ResidualModel(nn.Module):
    """A network that predicts ``sharp - blurry``.

    ``size_multiple``: height and width of what it takes must be multiples of this.
    Modules hold no state between calls; in eval mode one module may serve several threads.
    """

    size_multiple: int = 1

    @property
    @abstractmethod
    def receptive_radius(self) -> int:
        """Pixels: an output pixel depends on no input pixel further away than this, along either axis."""

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """The correction to add to ``x``.

        x: (N, 3, H, W) RGB in [0, 1], any floating dtype, contiguous or channels_last.
        Returns a tensor of the same shape and dtype, unclamped. Raises ValueError on a shape it can't take.
        """

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Restored images, coarse to fine, unclamped; the last has the size of ``x``."""
        self.check_input(x)
        return (x + self.residual(x),)

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError if ``x`` is not (N, 3, H, W) with sides that are multiples of ``size_multiple``."""
        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(f"expected (N, 3, H, W), got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"{width}x{height} is not a multiple of {self.size_multiple} on both sides")
