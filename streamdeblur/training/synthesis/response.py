"""Camera response: coded values to linear light and back (paper Sec. 2.1: light, not code, is what a sensor adds up).

Three curves: ``srgb`` (IEC 61966-2-1, 5.2), ``gamma`` (a power of 2.2, the approximation that GoPro's ``blur_gamma``
uses) and ``none`` (codes averaged as they are, as in GoPro's ``blur``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur.errors import UsageError

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Response = Literal["srgb", "gamma", "none"]

RESPONSES: tuple[Response, ...] = get_args(Response)
#: How often each curve is drawn: real cameras are nearest to the first, published sets were made with the others.
SHARES: Mapping[Response, float] = {"srgb": 0.5, "gamma": 0.2, "none": 0.3}

_GAMMA = 2.2


def draw_response(rng: np.random.Generator, shares: Mapping[Response, float] = SHARES) -> Response:
    """A curve, drawn in proportion to ``shares``. Raises UsageError for an unknown name or shares without a sum."""
    for name, share in shares.items():
        if name not in RESPONSES or share < 0:
            raise UsageError(f"response {name!r} with a share of {share!r} is unknown", f"use {', '.join(RESPONSES)}")
    names = list(shares)
    weights = np.array([shares[n] for n in names], np.float64)
    if not weights.sum() > 0:
        raise UsageError("the shares of the camera responses add up to 0", "give one of them a share above 0")
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


@cache
def _table(response: Response) -> Floats:
    code = np.arange(256, dtype=np.float64) / 255
    if response == "srgb":
        code = np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)
    elif response == "gamma":
        code = code**_GAMMA
    return code.astype(np.float32)


def to_linear(picture: Picture, response: Response) -> Floats:
    """Coded uint8 to linear float32 in [0, 1], of the same shape."""
    return np.asarray(cv2.LUT(picture, _table(response)), np.float32).reshape(picture.shape)


def to_coded(linear: Floats, response: Response) -> Picture:
    """Linear light to coded uint8, clipped as a sensor clips and rounded; undoes ``to_linear`` exactly."""
    x = np.clip(linear, 0, 1, dtype=np.float32)
    if response == "srgb":
        x = np.where(x <= 0.0031308, x * np.float32(12.92), np.float32(1.055) * cv2.pow(x, 1 / 2.4) - np.float32(0.055))
    elif response == "gamma":
        x = cv2.pow(x, 1 / _GAMMA)
    return np.asarray(x * np.float32(255) + np.float32(0.5), np.float32).astype(np.uint8)


def lift_highlights(linear: Floats, gain: float, knee: float = 0.86) -> Floats:
    """Give back light that clipping took: what lies above ``knee`` rises to ``gain`` at 1, keeping its colour.

    A moving highlight then leaves a streak that is clipped again, as it does in a camera. The truth must be made from
    the same light: what is nearly white becomes white in it.
    """
    if gain <= 1:
        return linear
    red, green, blue = cv2.split(linear)
    over = np.clip((cv2.max(cv2.max(red, green), blue) - np.float32(knee)) / np.float32(1 - knee), 0, 1)
    factor = 1 + np.float32(gain - 1) * over * over
    return np.asarray(cv2.merge([red * factor, green * factor, blue * factor]), np.float32)
