"""Crops at any angle, and made larger: more of what few scenes, and photographs made small, don't have.

Motions and edges of a scene run along few directions. And pictures that were made smaller, or are of a good camera,
are sharper than the sharp frames of ordinary footage: what was learned from those alone sharpens these too much.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from streamdeblur.training.synthesis.response import Picture

_MARGIN = 8  # pixels that Lanczos' kernel reads beyond a crop on both sides together, and rounding


def room(size: int, degrees: float, factor: float = 1.0) -> int:
    """Side of a square that holds one of ``size`` turned about its middle, before it is made larger by ``factor`` (1 or
    more), and what interpolation reads around it."""
    angle = math.radians(degrees)
    return math.ceil(size / factor * (abs(math.cos(angle)) + abs(math.sin(angle)))) + _MARGIN


def turn(crop: tuple[Picture, Picture], degrees: float, size: int, factor: float = 1.0) -> tuple[Picture, Picture]:
    """The middle of both sides, (size, size, 3) uint8, turned about it, anticlockwise to the eye, and larger.

    crop: two pictures (S, S, 3) uint8 of one S, ``room(size, degrees, factor)`` or more. Both are interpolated alike
    (Lanczos, 8x8), so that a side that is the same as the other stays so.
    """
    side = crop[0].shape[0]
    middle = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, factor)
    matrix[:, 2] += (size - 1) / 2 - middle
    first, second = (
        np.asarray(cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LANCZOS4), np.uint8)
        for picture in crop
    )
    return first, second
