"""Crops at any angle: where few scenes are known, their motions and edges run along few directions."""

from __future__ import annotations

import math

import cv2
import numpy as np

from streamdeblur.training.synthesis.response import Picture

_MARGIN = 8  # pixels that Lanczos' kernel reads beyond a crop on both sides together, and rounding


def room(size: int, degrees: float) -> int:
    """Side of a square that holds one of ``size`` turned about its middle, and what interpolation reads around it."""
    angle = math.radians(degrees)
    return math.ceil(size * (abs(math.cos(angle)) + abs(math.sin(angle)))) + _MARGIN


def turn(crop: tuple[Picture, Picture], degrees: float, size: int) -> tuple[Picture, Picture]:
    """The middle of both sides, (size, size, 3) uint8, turned about their middle, anticlockwise as they are looked at.

    crop: two pictures (S, S, 3) uint8 of one S, ``room(size, degrees)`` or more. Both are interpolated alike (Lanczos,
    8x8), so that a side that is the same as the other stays so.
    """
    side = crop[0].shape[0]
    middle = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, 1.0)
    matrix[:, 2] += (size - 1) / 2 - middle
    first, second = (
        np.asarray(cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LANCZOS4), np.uint8)
        for picture in crop
    )
    return first, second
