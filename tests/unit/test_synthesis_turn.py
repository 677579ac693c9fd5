"""Crops at any angle: both sides alike, to the pixel where geometry says, and nothing from outside of the picture."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.training.synthesis.turn import room, turn

SIZE = 40


def waves(side: int, degrees: float, shift: int = 0, factor: float = 1.0) -> npt.NDArray[np.uint8]:
    """A smooth picture, already turned by so much about its middle, and larger."""
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) / factor
    angle = math.radians(degrees)
    across = x * math.cos(angle) - y * math.sin(angle)
    down = x * math.sin(angle) + y * math.cos(angle)
    levels = [110 + shift + 40 * np.sin(across / 7) + 30 * np.cos(down / (9 + c)) for c in range(3)]
    return np.rint(np.stack(levels, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0])
@pytest.mark.parametrize("degrees", [0.0, 17.0, 45.0, 90.0, 133.3, 200.0, 359.9])
def test_both_sides_are_turned_about_the_middle_and_larger(degrees: float, factor: float) -> None:
    side = room(SIZE, degrees, factor)
    for extra in (0, 1, 17):  # an even and an odd room, and more of it
        found = turn((waves(side + extra, 0), waves(side + extra, 0, shift=25)), degrees, SIZE, factor)
        for picture, shift in zip(found, (0, 25), strict=True):
            assert picture.shape == (SIZE, SIZE, 3)
            assert picture.dtype == np.uint8
            wanted = waves(SIZE, degrees, shift, factor)
            assert np.abs(picture.astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("degrees", range(0, 360, 15))
def test_nothing_comes_from_outside_of_the_picture(degrees: int) -> None:
    for size, factor in ((16, 1.0), (41, 1.0), (41, 1.37), (64, 3.0)):
        picture = np.full((room(size, degrees, factor),) * 2 + (3,), 255, np.uint8)
        for side in turn((picture, picture), degrees, size, factor):
            assert (side == 255).all()


def test_a_side_that_is_the_other_stays_so() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (room(SIZE, 33.0),) * 2 + (3,)).astype(np.uint8)
    blur, sharp = turn((noise, noise.copy()), 33.0, SIZE)
    assert np.array_equal(blur, sharp)
    assert sharp.std() > 20
