"""PSNR and SSIM of restored images. Torch only: travels to bare machines, runs where the images are.

Definitions of the deblurring literature, so that numbers compare with printed ones:

* PSNR: 10 log10(data_range² / mse), the mean squared error over all pixels and all three channels of an image;
  a set's score is the mean of its images' PSNR (not the PSNR of the mean error).
* SSIM: Wang et al., *Image Quality Assessment: From Error Visibility to Structural Similarity*, 2004. The default
  ``gaussian`` is theirs: 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, statistics of the population, only
  windows that lie inside the image; each channel apart, then the mean. So do RealBlur's evaluation and many in Python
  (scikit-image with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``). ``uniform`` is scikit-image's
  own default, which some papers used: a flat 7x7 window, statistics of the sample.
* With a mask only the pixels in it count, as RealBlur's aligned protocol does where a warped image has no content.

All sums are made in float64. Thread-safe, no state.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Window = Literal["gaussian", "uniform"]

K1, K2 = 0.01, 0.03
GAUSSIAN_RADIUS, GAUSSIAN_SIGMA = 5, 1.5
UNIFORM_SIZE = 7
#: Sides of the windows, and so the least of an image.
SIDES: dict[Window, int] = {"gaussian": 2 * GAUSSIAN_RADIUS + 1, "uniform": UNIFORM_SIZE}


def quantize(x: Tensor) -> Tensor:
    """What an 8-bit file would hold: clamped to [0, 1] and rounded to whole 255ths. Any shape and float type."""
    return torch.round(torch.clamp(x, 0, 1) * 255) / 255


def psnr(restored: Tensor, sharp: Tensor, data_range: float = 1.0, *, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: (N, 3, H, W) twice, float, same size → (N,) float64.

    data_range: the largest minus the smallest value that an image may have. mask: (N, 1 or 3, H, W), 1 where pixels
    count and 0 elsewhere; None counts all. Equal images give infinity, NaN gives NaN. Nothing is clamped: clamp or
    ``quantize`` first where that is meant. Raises ValueError for other shapes or types.
    """
    _check(restored, sharp, mask)
    errors = []
    for i, (a, b) in enumerate(zip(restored, sharp, strict=True)):  # float64 copies of one image at a time
        error = (_double(a) - _double(b)).square()
        errors.append(error.mean() if mask is None else _masked_mean(error, mask[i]))
    return 10 * torch.log10(data_range * data_range / torch.stack(errors))


def ssim(
    restored: Tensor,
    sharp: Tensor,
    data_range: float = 1.0,
    *,
    window: Window = "gaussian",
    mask: Tensor | None = None,
) -> Tensor:
    """Structural similarity of each image, mean of the channels: (N, 3, H, W) twice, float → (N,) float64 in [-1, 1].

    window: see the module. mask: as for ``psnr``, by the centre of the window; the statistics are of the images as they
    are. Raises ValueError for other shapes or types, and for images smaller than the window.
    """
    _check(restored, sharp, mask)
    if window == "gaussian":
        taps = [math.exp(-((i / GAUSSIAN_SIGMA) ** 2) / 2) for i in range(-GAUSSIAN_RADIUS, GAUSSIAN_RADIUS + 1)]
        correction = 1.0
    elif window == "uniform":
        taps = [1.0] * UNIFORM_SIZE
        correction = UNIFORM_SIZE**2 / (UNIFORM_SIZE**2 - 1)
    else:
        raise ValueError(f"window {window!r} is not gaussian or uniform")
    if min(restored.shape[-2:]) < len(taps):
        raise ValueError(f"images of {tuple(restored.shape[-2:])} are smaller than the {len(taps)} px window of SSIM")
    total = sum(taps)
    taps = [t / total for t in taps]
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    border = len(taps) // 2
    scores = []
    for i, (a, b) in enumerate(zip(restored, sharp, strict=True)):
        channels = []
        for c, (x, y) in enumerate(zip(_double(a), _double(b), strict=True)):  # planes: five filtered ones at a time
            mx, my = _filter(x, taps), _filter(y, taps)
            vx = correction * (_filter(x * x, taps) - mx * mx)
            vy = correction * (_filter(y * y, taps) - my * my)
            vxy = correction * (_filter(x * y, taps) - mx * my)
            value = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
            if mask is None:
                channels.append(value.mean())
            else:
                centres = mask[i, c if mask.shape[1] == 3 else 0, border:-border, border:-border]
                channels.append(_masked_mean(value, centres))
        scores.append(torch.stack(channels).mean())
    return torch.stack(scores)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values that a mask of 0 and 1 lets count; NaN where it lets none."""
    weights = mask.to(values).expand_as(values)
    return (values * weights).sum() / weights.sum()


def _filter(plane: Tensor, taps: list[float]) -> Tensor:
    """Separable correlation of (H, W) with the taps on both axes; only where the window is inside."""
    size = len(taps)
    for axis in (0, 1):
        length = plane.shape[axis] - size + 1
        total = plane.narrow(axis, 0, length) * taps[0]
        for i in range(1, size):
            total.add_(plane.narrow(axis, i, length), alpha=taps[i])
        plane = total
    return plane


def _double(x: Tensor) -> Tensor:
    """float64, on the CPU where the device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).detach().to(torch.float64)


def _check(restored: Tensor, sharp: Tensor, mask: Tensor | None) -> None:
    if restored.shape != sharp.shape or restored.dim() != 4 or restored.shape[1] != 3 or 0 in restored.shape:
        raise ValueError(f"expected two batches of (N, 3, H, W), got {tuple(restored.shape)} and {tuple(sharp.shape)}")
    if not (restored.is_floating_point() and sharp.is_floating_point()):
        raise ValueError(f"expected float images, got {restored.dtype} and {sharp.dtype}")
    if mask is not None:
        n, _, height, width = restored.shape
        if mask.shape not in ((n, 1, height, width), (n, 3, height, width)):
            raise ValueError(f"mask of {tuple(mask.shape)} for images of {tuple(restored.shape)}")
