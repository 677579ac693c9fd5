"""The loss of MIMO-UNet (Sec. 3.4, Eq. 7 to 9): L1 in the image and in its Fourier transform, at every scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

MSFR = Literal["released", "paper"]


def content_loss(restored: Tensor, sharp: Tensor, epsilon: float = 0.0) -> Tensor:
    """One term of Eq. 7: the mean absolute difference. Tensors of one shape, any float dtype; computed in float32.

    epsilon: with more than 0, Charbonnier's loss in its place, sqrt(d^2 + epsilon^2) - epsilon (Charbonnier et al.,
    ICIP 1994): nearly a square where a difference is below epsilon, so that small errors, mostly noise, pull less than
    large ones, and nearly the absolute value far above.
    """
    if not epsilon:
        return F.l1_loss(restored.float(), sharp.float())
    difference = restored.float() - sharp.float()
    return (torch.sqrt(difference * difference + epsilon * epsilon) - epsilon).mean()


def frequency_loss(restored: Tensor, sharp: Tensor, definition: MSFR = "released") -> Tensor:
    """One term of Eq. 8: the L1 distance of the unnormalised two-dimensional Fourier transforms.

    restored, sharp: (N, C, H, W), any float dtype; the transform runs in float32 (float64 for float64).
    definition: "released", as the authors' program has it: the mean of |re| and |im| of the difference over both parts;
    "paper", Eq. 8 taken literally: the sum of the moduli over the number of elements t_k.

    The transform of real images is symmetric, so half of it is computed (rfft2) and its mirrored columns count twice;
    and it is linear, so one transform of the difference serves for two.
    """
    if definition not in get_args(MSFR):
        raise ValueError(f"definition {definition!r} is not one of {', '.join(get_args(MSFR))}")
    difference = restored - sharp
    if difference.dtype != torch.float64:
        difference = difference.float()
    spectrum = torch.fft.rfft2(difference)
    width = difference.shape[-1]
    parts = torch.view_as_real(spectrum).abs().sum(-1) if definition == "released" else spectrum.abs()
    # Column 0, and for even widths the last one, are their own mirror images.
    own = parts[..., 0].sum() + (parts[..., -1].sum() if width % 2 == 0 else 0.0)
    total = 2 * parts.sum() - own
    return total / difference.numel() / (2 if definition == "released" else 1)


def targets(sharp: Tensor, count: int) -> tuple[Tensor, ...]:
    """Sharp images at 1/4, 1/2 and full scale, in the order of the network's outputs; the last ``count`` of them.

    Bilinear downsampling as in the authors' program (``interpolate`` without antialiasing, half-pixel centres).
    """
    if count not in (1, 2, 3):
        raise ValueError(f"{count} scales: 1 to 3")
    scales = [sharp]
    for step in (2, 4)[: count - 1]:
        size = (sharp.shape[-2] // step, sharp.shape[-1] // step)
        scales.append(F.interpolate(sharp, size=size, mode="bilinear", align_corners=False))
    return tuple(reversed(scales))


class DeblurLoss:
    """Eq. 9: the sum over scales of content terms plus ``msfr_weight`` times frequency terms.

    epsilon: of ``content_loss``.

    Returns (total, {"content": …, "msfr": …}), scalars on the device of the outputs, the parts detached and unweighted.
    Without a frequency weight that term is neither computed nor returned.
    """

    def __init__(self, msfr_weight: float = 0.1, msfr: MSFR = "released", epsilon: float = 0.0) -> None:
        if msfr not in get_args(MSFR):
            raise ValueError(f"msfr {msfr!r} is not one of {', '.join(get_args(MSFR))}")
        self.msfr_weight = msfr_weight
        self.msfr: MSFR = msfr
        self.epsilon = epsilon

    def __call__(self, outputs: Sequence[Tensor], sharp: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """outputs: the network's, coarse to fine, (N, 3, h, w); sharp: (N, 3, H, W) of the last one's size."""
        if outputs[-1].shape != sharp.shape:
            raise ValueError(f"the network returned {tuple(outputs[-1].shape)} for targets of {tuple(sharp.shape)}")
        pairs = list(zip(outputs, targets(sharp, len(outputs)), strict=True))
        total = content = torch.stack([content_loss(a, b, self.epsilon) for a, b in pairs]).sum()
        parts = {"content": content.detach()}
        if self.msfr_weight:
            frequency = torch.stack([frequency_loss(a, b, self.msfr) for a, b in pairs]).sum()
            total = content + self.msfr_weight * frequency
            parts["msfr"] = frequency.detach()
        return total, parts
