"""RealBlur's protocol: a restored picture is aligned with its truth before they are compared.

Truth and blurred picture of RealBlur come from two cameras behind one lens and are not aligned to the pixel. The
authors (Rim et al., ECCV 2020, their evaluation program) match the brightness, estimate a homography by maximising the
enhanced correlation coefficient (Evangelidis & Psarakis, PAMI 2008; OpenCV ``findTransformECC``), warp the restored
picture, and measure where it still has pixels.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur.errors import InputError

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

_ITERATIONS = 100
_GAUSSIAN = 5  # pixels, of the filter before the correlation


@dataclass(frozen=True, slots=True)
class Aligned:
    """restored, sharp: (H, W, 3) float32, 0 outside ``mask``; mask: (H, W) bool, where the warp found pixels.

    homography: (3, 3) float32, from the truth's pixels to the restored picture's; the identity where none was found.
    """

    restored: Floats
    sharp: Floats
    mask: npt.NDArray[np.bool_]
    homography: Floats

    def psnr(self) -> float:
        """dB over the valid pixels, peak 1; infinite for equal pictures."""
        if not self.mask.any():
            return -math.inf
        difference = (self.restored[self.mask].astype(np.float64) - self.sharp[self.mask]) ** 2
        mse = float(difference.mean())
        return math.inf if mse == 0 else -10 * math.log10(mse)


def align(restored: npt.NDArray[np.generic], sharp: npt.NDArray[np.generic]) -> Aligned:
    """Match brightness and geometry of ``restored`` to ``sharp``.

    Both (H, W, 3) R'G'B' of one size, uint8 or floating in [0, 1]. Where ECC does not converge (a flat picture) the
    picture is left in its place, with a line in the log. Raises InputError for sizes that differ.
    """
    if restored.shape != sharp.shape or restored.ndim != 3:
        raise InputError(f"pictures of {restored.shape} and {sharp.shape} can't be aligned", "give one size")
    z, x = _unit(restored), _unit(sharp)
    power = float(np.sum(z * z, dtype=np.float64))
    gain = float(np.sum(x * z, dtype=np.float64)) / power if power else 1.0
    matched = z * np.float32(gain)
    homography = np.eye(3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ITERATIONS, 0.0)
    gray = [cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in (x, matched)]
    everywhere = np.full(x.shape[:2], 255, np.uint8)
    try:
        _, found = cv2.findTransformECC(
            gray[0], gray[1], homography.copy(), cv2.MOTION_HOMOGRAPHY, criteria, everywhere, _GAUSSIAN
        )
        homography = np.asarray(found, np.float32)
    except cv2.error:
        log.warning("a picture could not be aligned with its truth (ECC did not converge); it is compared in place")
    size = (x.shape[1], x.shape[0])
    warped = cv2.warpPerspective(
        matched, homography, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    valid = cv2.warpPerspective(
        np.ones(x.shape[:2], np.float32),
        homography,
        size,
        flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    mask = np.asarray(valid > 0.5, np.bool_)
    keep = mask[..., None].astype(np.float32)
    return Aligned(np.asarray(warped * keep, np.float32), np.asarray(x * keep, np.float32), mask, homography)


def _unit(picture: npt.NDArray[np.generic]) -> Floats:
    if picture.dtype == np.uint8:
        return np.asarray(picture, np.float32) / np.float32(255)
    return np.ascontiguousarray(picture, np.float32)
