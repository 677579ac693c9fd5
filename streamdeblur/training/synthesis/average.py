"""Eq. 1 of the paper: blur is the mean of M consecutive sharp frames, the middle one being the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamdeblur.errors import UsageError
from streamdeblur.training.synthesis.response import Floats, Picture, Response, to_coded, to_linear

_STEPPED = (7, 13)


def draw_count(rng: np.random.Generator, low: int, high: int) -> int:
    """An odd number of frames M in [low, high]: the middle one is at the middle of the exposure.

    Raises UsageError for an empty range, one that begins below 1, or an even number alone.
    """
    if not 1 <= low <= high:
        raise UsageError(f"frames {low}-{high} is no range", "give MIN-MAX with 1 <= MIN <= MAX, for example 7-15")
    odd = range(low | 1, high + 1, 2)
    if not odd:
        raise UsageError(f"frames {low} is an even number, without a middle frame", f"give {low - 1} or {low + 1}")
    return int(odd[rng.integers(len(odd))])


def draw_steps(rng: np.random.Generator, share: float) -> int | None:
    """M, the most moments of a stepped exposure, or None; ``share`` is how probable one is: 0 draws nothing.

    M is odd, from 7 to 13: of as many frames GoPro's pairs are means (Nah et al., CVPR 2017).
    """
    return draw_count(rng, *_STEPPED) if share and rng.random() < share else None


def average_linear(frames: Sequence[Picture], response: Response) -> Floats:
    """Mean of ``frames`` ((H, W, 3) uint8 each) in linear light, float32 in [0, 1]."""
    if not frames:
        raise UsageError("there is no frame to average", "give at least one")
    total = np.zeros(frames[0].shape, np.float32)
    for frame in frames:
        if frame.shape != total.shape:
            raise UsageError(f"frames of {frame.shape} and {total.shape} can't be averaged", "give frames of one size")
        total += to_linear(frame, response)
    total /= np.float32(len(frames))
    return total


def average(frames: Sequence[Picture], response: Response) -> tuple[Picture, Picture]:
    """(blurred, sharp), both (H, W, 3) uint8: the mean of ``frames`` in linear light, and the middle frame.

    M should be odd (``draw_count``): of an even number, frame M // 2 is taken, half a step late.
    """
    return to_coded(average_linear(frames, response), response), frames[len(frames) // 2].copy()
