"""The few pictures that a report shows, chosen while pairs pass by: memory is bounded, whatever the size of the set.

The *subject* is one model; where it gains or loses most decides what is kept, and every model's result is kept there.
Pictures are uint8 RGB of (rows, columns, 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]

#: Crops of each kind, at most one of an image.
CROPS = 3
#: Side of a crop in pixels, less where the image is smaller.
CROP = 160
#: Added to mean squared errors before their ratio is taken, in units of [0, 1] squared: two levels of 8 bits. Without
#: it the largest "loss" would be a change nobody can see in a flat and perfect sky.
FLOOR = (2 / 255) ** 2
#: A loss below this is none (dB).
LEAST_LOSS = 0.05
#: Width and height of the overview that shows where a crop lies.
OVERVIEW = 320


@dataclass(frozen=True, slots=True)
class Crop:
    """A region magnified. gain: of the subject there, in dB (regularised by FLOOR). x, y, size: in pixels of the image
    (width, height). parts: "blurry", the models and "sharp". overview: the whole blurry image, small."""

    set_name: str
    image: str
    gain: float
    x: int
    y: int
    size: int
    width: int
    height: int
    parts: dict[str, Picture]
    overview: Picture


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole image for the slider; parts as in ``Crop``. gain: of the subject in dB."""

    set_name: str
    image: str
    gain: float
    parts: dict[str, Picture]


class Gallery:
    """Keeps the regions of the subject's largest gains and losses, and the whole images of both ends. One thread."""

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self._gains: list[Crop] = []
        self._losses: list[Crop] = []
        self._best: Whole | None = None
        self._worst: Whole | None = None

    def offer(
        self,
        set_name: str,
        image: str,
        gain: float,
        blurry: Picture,
        sharp: Picture,
        restored: Mapping[str, Picture],
    ) -> None:
        """Look at one pair and keep what is worth it. gain: of the subject on the whole image, NaN counts as 0."""
        gain = gain if np.isfinite(gain) else 0.0
        parts = {"blurry": blurry, **restored, "sharp": sharp}
        if self._best is None or gain > self._best.gain:
            self._best = Whole(set_name, image, gain, {k: v.copy() for k, v in parts.items()})
        if self._worst is None or gain < self._worst.gain:
            self._worst = Whole(set_name, image, gain, {k: v.copy() for k, v in parts.items()})
        size = min(CROP, *blurry.shape[:2])
        gains = region_gains(blurry, restored[self.subject], sharp, size)
        for kept, flat in ((self._gains, int(gains.argmax())), (self._losses, int(gains.argmin()))):
            y, x = divmod(flat, gains.shape[1])
            value = float(gains[y, x])
            sign = 1.0 if kept is self._gains else -1.0
            if sign * value < LEAST_LOSS or (len(kept) == CROPS and sign * value <= sign * kept[-1].gain):
                continue
            height, width = blurry.shape[:2]
            cut = {k: v[y : y + size, x : x + size].copy() for k, v in parts.items()}
            kept.append(Crop(set_name, image, value, x, y, size, width, height, cut, shrink(blurry, OVERVIEW)))
            kept.sort(key=lambda c: -sign * c.gain)
            del kept[CROPS:]

    @property
    def gains(self) -> list[Crop]:
        """Regions of the largest gain, largest first."""
        return list(self._gains)

    @property
    def losses(self) -> list[Crop]:
        """Regions of the largest loss, largest first; empty where nothing was lost."""
        return list(self._losses)

    @property
    def wholes(self) -> list[Whole]:
        """The image with the largest and the one with the smallest gain of the subject; one where both are the same."""
        found = [w for w in (self._best, self._worst) if w is not None]
        same = len(found) == 2 and (found[0].set_name, found[0].image) == (found[1].set_name, found[1].image)
        return found[:1] if same else found


def region_gains(blurry: Picture, restored: Picture, sharp: Picture, size: int) -> npt.NDArray[np.float32]:
    """Gain in dB of each size x size region, by its top left corner: (rows - size + 1, columns - size + 1)."""

    def error(picture: Picture) -> Any:
        difference = picture.astype(np.float32)
        difference -= sharp
        np.square(difference, out=difference)
        mean = cv2.boxFilter(difference.mean(2) / 255**2, cv2.CV_32F, (size, size), anchor=(0, 0))
        return mean[: picture.shape[0] - size + 1, : picture.shape[1] - size + 1].clip(min=0)

    return np.asarray(10 * np.log10((error(blurry) + FLOOR) / (error(restored) + FLOOR)), np.float32)


def shrink(picture: Picture, longest: int) -> Picture:
    """At most ``longest`` pixels on its longer side."""
    height, width = picture.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return picture.copy()
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
