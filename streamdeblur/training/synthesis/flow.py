"""Ordinary footage to blur: frames in between two neighbours by optical flow, then the average of them.

Flow is OpenCV's DIS (Kroeger et al., ECCV 2016), in both directions. A moment t between frames A and B sees both,
warped by the flows from t, which are approximated from those of A and B (Jiang et al., Super SloMo, CVPR 2018, Eq. 4);
they are blended by distance in time, but where forward and backward flow disagree a pixel is visible in one of the
frames only and taken from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur.errors import InputError
from streamdeblur.training.synthesis.response import Floats, Picture

Window = tuple[int, int, int, int]
Flow = npt.NDArray[np.float16]

_STEP = 1.5  # pixels between neighbouring moments
_MOST = 61
_THUMB = (96, 54)
_JUMP = 12.0  # mean difference of thumbnails below which nothing is a cut
#: ``unexplained`` of thumbnails above which they are of two shots, whatever is usual around them. Neighbours in DAVIS
#: have up to 28 of it, more than nine in ten unrelated pictures more than 32.
_UNRELATED = 32.0
#: Pixels of both sides that DIS needs: below, it raises, or crashes where one side is much longer than the other.
_LEAST = 32


def luma(picture: Picture) -> Picture:
    """(H, W) uint8 of a (H, W, 3) R'G'B' picture."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def check_size(picture: Picture, name: object) -> None:
    """Raise InputError where a frame, (H, W) or (H, W, 3), is too small for ``dense_flow``; ``name`` is in its text."""
    height, width = picture.shape[:2]
    if min(height, width) < _LEAST:
        raise InputError(
            f"{name} is {width}x{height}, too small for optical flow", f"give frames of {_LEAST}x{_LEAST} or more"
        )


def dense_flow(a: Picture, b: Picture) -> Flow:
    """Motion from ``a`` to ``b`` ((H, W) uint8 each) at half their size: (ceil H/2, ceil W/2, 2) float16.

    In pixels of the full size. Half of it is what DIS resolves, and an eighth of the memory. Sizes are those that
    ``check_size`` lets pass.
    """
    size = ((a.shape[1] + 1) // 2, (a.shape[0] + 1) // 2)
    small = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in (a, b)]
    # one object per call: it keeps buffers, and none of it can be pickled or shared
    dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = dis.calc(small[0], small[1], None)
    scale = np.array([a.shape[1] / size[0], a.shape[0] / size[1]], np.float32)
    return np.asarray(flow * scale, np.float16)


def crop_flow(half: Flow, left: int, top: int, width: int, height: int, full: tuple[int, int]) -> Floats:
    """(height, width, 2) float32 of a flow at half size, for a box of the frame, whose (width, height) is ``full``."""
    x, y = half.shape[1] / full[0], half.shape[0] / full[1]
    matrix = np.array([[x, 0, (left + 0.5) * x - 0.5], [0, y, (top + 0.5) * y - 0.5]])
    r0, r1 = max(int(top * y) - 2, 0), min(int((top + height) * y) + 3, half.shape[0])
    c0, c1 = max(int(left * x) - 2, 0), min(int((left + width) * x) + 3, half.shape[1])
    part = half[r0:r1, c0:c1].astype(np.float32)
    matrix[:, 2] -= c0, r0
    warped = cv2.warpAffine(
        part, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(warped, np.float32)


def disagreement(forward: Floats, backward: Floats) -> Floats:
    """(H, W) float32 in [0, 1]: how surely a pixel has no partner in the other frame, by the two flows' round trip.

    The round trip may miss by a part of the motion (Sundaram et al., ECCV 2010, Eq. 5: 1 % of the squares, plus half).
    """
    grid = _grid(forward.shape[0], forward.shape[1])
    there = _sample(backward, grid, forward)
    miss = _squared(forward + there)
    allowed = np.float32(0.01) * (_squared(forward) + _squared(there)) + np.float32(0.5)
    soft = cv2.GaussianBlur((miss / (miss + allowed)).astype(np.float32), (0, 0), 1.0)
    return np.asarray(np.clip((soft - 0.4) / 0.2, 0, 1), np.float32)


def _sample(picture: Floats, grid: Floats, shift: Any) -> Floats:
    """``picture`` at ``grid`` + ``shift``, each (H, W, 2) in x, y."""
    no_second_map: Any = None
    where = cv2.add(grid, shift)
    taken = cv2.remap(picture, where, no_second_map, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(taken, np.float32)


def _squared(vectors: Floats) -> Floats:
    x, y = cv2.split(vectors)
    return np.asarray(x * x + y * y, np.float32)


def _grid(height: int, width: int) -> Floats:
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.dstack([x, y])


@dataclass(frozen=True, slots=True)
class Between:
    """Two neighbouring frames, or one region of both, and the motion between them.

    a, b: (H, W, 3) float32, linear light. ab, ba: (H, W, 2) float32, motion from a to b and from b to a in pixels.
    """

    a: Floats
    b: Floats
    ab: Floats
    ba: Floats

    def prepared(self, window: Window) -> Moments:
        """What ``Moments.at`` needs to render ``window`` of it, computed once."""
        left, top, width, height = window
        inside = np.s_[top : top + height, left : left + width]
        return Moments(
            np.asarray(cv2.merge([*cv2.split(self.a), disagreement(self.ab, self.ba)]), np.float32),
            np.asarray(cv2.merge([*cv2.split(self.b), disagreement(self.ba, self.ab)]), np.float32),
            np.ascontiguousarray(self.ab[inside]),
            np.ascontiguousarray(self.ba[inside]),
            _grid(height, width) + np.array([left, top], np.float32),
        )


@dataclass(frozen=True, slots=True)
class Moments:
    """Pictures between two frames. a, b: R, G, B and, in [0, 1], how surely a pixel is seen in that frame only."""

    a: Floats
    b: Floats
    ab: Floats
    ba: Floats
    grid: Floats

    def at(self, t: float) -> Floats:
        """(height, width, 4) float32: linear R, G, B ``t`` of the way from a (0) to b (1), and a fourth to ignore."""
        to_a = cv2.addWeighted(self.ab, -(1 - t) * t, self.ba, t * t, 0)
        to_b = cv2.addWeighted(self.ab, (1 - t) ** 2, self.ba, -t * (1 - t), 0)
        a = _sample(self.a, self.grid, to_a)
        b = _sample(self.b, self.grid, to_b)
        from_a = np.float32(1 - t) * (np.float32(1.001) - b[..., 3])
        from_b = np.float32(t) * (np.float32(1.001) - a[..., 3])
        return np.asarray(cv2.blendLinear(a, b, from_a, from_b), np.float32)  # divides by the sum of both weights


def unexplained(a: Picture, b: Picture) -> float:
    """Mean difference, in code values, that is left of two (H, W) uint8 lumas when ``b`` is moved onto ``a`` by flow.

    A few for neighbouring frames, tens for pictures that have nothing to do with each other.
    """
    height, width = a.shape
    long = max(width, height)
    small = (max(round(width * 256 / long), _LEAST), max(round(height * 256 / long), _LEAST))
    here, there = (np.asarray(cv2.resize(p, small, interpolation=cv2.INTER_AREA), np.uint8) for p in (a, b))
    shift = crop_flow(dense_flow(here, there), 0, 0, small[0], small[1], small)
    moved = _sample(there.astype(np.float32), _grid(small[1], small[0]), shift)
    return float(np.abs(moved - here).mean())


def moments(shutter: float, motion: float, most: int | None = None) -> npt.NDArray[np.float64]:
    """Moments of an exposure, in frame intervals from its middle: those of equal parts of ``shutter``, odd in number.

    motion: pixels per frame interval, of what moves fastest; neighbouring moments lie about 1.5 pixels apart, or
    farther where that would be more than ``most`` (odd) of them.
    """
    count = min(max(math.ceil(motion * shutter / _STEP), 4), _MOST) | 1
    if most is not None:
        count = min(count, most)
    return shutter * ((np.arange(count) + 0.5) / count - 0.5)


def expose(before: Between, after: Between, times: Sequence[float] | npt.NDArray[np.float64], window: Window) -> Floats:
    """Mean over ``times`` (frame intervals from -1 to 1) around the frame that is ``a`` of both, in linear light.

    before: from the middle frame back to the one before; after: from it to the one after. window: (left, top, width,
    height) of what is rendered, (height, width, 3) float32.
    """
    left, top, width, height = window
    sides: dict[bool, Moments] = {}
    total = np.zeros((height, width, 4), np.float32)
    for t in times:
        if abs(t) < 1e-9:
            total[..., :3] += after.a[top : top + height, left : left + width]
            continue
        late = bool(t > 0)
        if late not in sides:
            sides[late] = (after if late else before).prepared(window)
        total += sides[late].at(abs(float(t)))
    return np.asarray(total[..., :3] / np.float32(len(times)), np.float32)


@dataclass(frozen=True, slots=True)
class FrameMeasure:
    """What tells a cut or a blurred frame among its neighbours. thumb: (54, 96) float32 luma; sharpness: of edges."""

    thumb: Floats
    sharpness: float


def measure(picture: Picture) -> FrameMeasure:
    """Measure one frame, (H, W, 3) uint8. Its sharpness depends little on how much texture there is."""
    gray = luma(picture)
    return FrameMeasure(thumbnail(gray), sharpness(gray))


def thumbnail(gray: Picture) -> Floats:
    """(54, 96) float32 of (H, W) uint8 luma."""
    return np.asarray(cv2.resize(gray.astype(np.float32), _THUMB, interpolation=cv2.INTER_AREA), np.float32)


def sharpness(gray: Picture) -> float:
    """Energy of the finest details of (H, W) uint8 luma over that of details twice as coarse."""
    levels = [cv2.GaussianBlur(gray.astype(np.float32), (0, 0), sigma) for sigma in (0.7, 1.4, 2.8)]
    fine = float(np.square(levels[0] - levels[1]).mean())
    coarse = float(np.square(levels[1] - levels[2]).mean())
    return fine / (coarse + 1.0)


def liveliness(measures: Sequence[FrameMeasure], at: int) -> float:
    """How much moves around a frame, in code values: 0 for a still scene; small moving objects count, noise hardly."""
    before, after = measures[max(at - 1, 0)].thumb, measures[min(at + 1, len(measures) - 1)].thumb
    return float(np.percentile(np.abs(after - before), 98))


def usable_centers(measures: Sequence[FrameMeasure], sharpest: float = 0.8) -> list[int]:
    """Frames that can be the truth: sharp by comparison, and no cut before or after them.

    A frame counts as blurred when its sharpness is below ``sharpest`` times the 80th percentile of those around it,
    five before and five after, of the same shot: another scene has another sharpness. Cuts are those of ``cuts``.
    """
    ends = [k + 1 for k in cuts(lambda i: measures[i].thumb, len(measures))]
    found = []
    for first, end in pairwise([0, *ends, len(measures)]):
        for i in range(first + 1, end - 1):
            near = [measures[k].sharpness for k in range(max(i - 5, first), min(i + 6, end))]
            if measures[i].sharpness >= sharpest * float(np.percentile(near, 80)):
                found.append(i)
    return found


def cuts(thumb: Callable[[int], Floats], count: int, first: int = 0, last: int | None = None) -> list[int]:
    """Frames from ``first`` until before ``last`` (by default all) of ``count`` with a cut between them and the next.

    thumb: thumbnail of a frame by its index; beside those frames, asked for near great differences only. A cut is a
    jump in the mean difference of thumbnails, far above what is usual within four frames of it; or, where cuts are so
    dense that they are what is usual, one between thumbnails that no motion explains.
    """

    def jump(at: int) -> float:
        return float(np.abs(thumb(at) - thumb(at + 1)).mean())

    found = []
    for at in range(first, count - 1 if last is None else last):
        here = jump(at)
        if here <= _JUMP:
            continue
        around = [jump(k) for k in range(max(at - 4, 0), min(at + 5, count - 1)) if k != at]
        usual = float(np.median(around)) if around else 0.0
        if here > 3.0 * (usual + 1.0) or (here > _UNRELATED and _unrelated(thumb(at), thumb(at + 1))):
            found.append(at)
    return found


def _unrelated(a: Floats, b: Floats) -> bool:
    """True for thumbnails of two pictures that have nothing to do with each other."""
    return unexplained(np.rint(a).astype(np.uint8), np.rint(b).astype(np.uint8)) > _UNRELATED
