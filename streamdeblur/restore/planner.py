"""What of a frame the network has to see: parts that changed since their last correction, and are not sharp already.

A fixed camera sees little that is new in most frames. Where the input stayed as it was, the correction is the one
before. So the planner remembers for every cell of 16 px what the input was *when its correction was computed* (not in
the previous frame: slow changes add up and are seen), and asks for a cell anew when it is further from that than a
threshold. The decision is made of input planes alone, before any work is done, in order of the frames. So it depends
neither on how many workers there are nor on which of them die.

The change of a cell is the largest of its 8x8 blocks' root mean square differences, taken of means over 4x4 samples of
luma (R, G and B likewise) and of 8x8 luma pixels' worth of chroma, in levels of 8 bits. Means make it robust to the
noise of sensors and codecs, whose deviation they divide by four; the threshold was chosen by measurement on footage
(docs/reuse.md).

What is computed is a few rectangles (``cover``), each with a halo of context that is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamdeblur.errors import UsageError
from streamdeblur.frames import Array, ColorSpec, Frame, FrameSpec
from streamdeblur.restore.blur import blur_scores
from streamdeblur.restore.cover import Box, Geometry, cover

#: Side of a cell, for which a decision is made: pixels of the picture.
CELL = 16

#: Side of a tile whose sharpness is judged, and of one that is refreshed: pixels, multiples of CELL.
_BLUR_TILE = 64
_REFRESH_TILE = 160

#: What one more rectangle costs, in pixels: calls of small windows measured 1 to 1.3 times dearer per pixel.
_CALL = 4000

#: The whole frame is taken where changed cells and their halos alone, which no cover can do without, are more than the
#: first share of it, so that no time is lost in looking for one; or where the cover costs more than the second share.
#: Both leave room for what small windows cost more per pixel.
_WHOLE_NEEDED = 0.65
_WHOLE_COST = 0.85

#: A cut: this share of the cells changed by more than this many times the threshold.
_CUT_SHARE = 0.5
_CUT_CHANGE = 3.0

#: A tile that was left alone stays so until its blur score is this much above the limit: no flicker between the two.
_HYSTERESIS = 0.03

Mask = npt.NDArray[np.bool_]
Means = npt.NDArray[np.float32]


class Region(NamedTuple):
    """A rectangle for the network. window: pixels that it sees; kept: those of them whose correction counts.

    Coordinates are those of the picture: the frame, or with ``parity`` 0 or 1 its field of even or odd rows. All are
    multiples of CELL, ends at the picture's edge and windows' ends (multiples of 4) excepted. Pickles.
    """

    window: Box
    kept: Box
    parity: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TileRequest:
    """What becomes of one frame.

    regions: what to compute; None is the whole frame as ever, an empty tuple nothing at all.
    skipped: for each picture (the frame, or its two fields) the cells that get no correction; None for none.
    cells_*: cells of CELL x CELL pixels by what becomes of them: a correction of this frame, an earlier one, none.
    pixels: that the network sees, halos included. total: pixels of the frame.
    """

    index: int
    regions: tuple[Region, ...] | None
    skipped: tuple[Mask, ...] | None
    cells_restored: int
    cells_reused: int
    cells_skipped: int
    pixels: int
    total: int
    cut: bool = False


@dataclass(frozen=True, slots=True)
class SpendOptions:
    """When to spend work on a part of a frame.

    reuse: keep corrections of what did not change by more than ``threshold`` levels of 8 bits, for at most ``refresh``
    frames. halo: context in pixels, a multiple of 4. skip_sharp: leave tiles alone whose blur score
    (``restore.blur``) is below ``sharp_below``. Raises UsageError for values without meaning.
    """

    reuse: bool = False
    threshold: float = 6.0
    refresh: int = 100
    halo: int = 16
    skip_sharp: bool = False
    sharp_below: float = 0.55

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise UsageError(f"reuse threshold {self.threshold} is not a change", "give levels of 8 bits, 0 or more")
        if self.refresh < 1:
            raise UsageError(f"reuse refresh {self.refresh} is never", "give a number of frames, 1 or more")
        if self.halo < 0 or self.halo % 4:
            raise UsageError(f"reuse halo {self.halo} does not fit the network", "give a multiple of 4 pixels")

    @property
    def active(self) -> bool:
        return self.reuse or self.skip_sharp


class Planner:
    """Decides frame by frame, for one source. Frames come in order; for one thread at a time.

    A frame of another size, colour or field order begins anew. It holds the means of one frame (a sixteenth of it).
    Costs 2 to 8 ms for a 720p frame on one core.
    """

    def __init__(self, options: SpendOptions) -> None:
        self._options = options
        self._spec: FrameSpec | None = None
        self._pictures: list[_Picture] = []

    def plan(self, frame: Frame) -> TileRequest:
        """The request for the next frame, which must be fulfilled: later ones build on its corrections."""
        spec = frame.spec
        if spec != self._spec:
            self._spec = spec
            if spec.field_order == "progressive":
                self._pictures = [_Picture(spec.height, spec.width, spec.color, None, self._options)]
            else:
                halves = ((spec.height + 1) // 2, spec.height // 2)
                self._pictures = [
                    _Picture(h, spec.width, spec.color, parity, self._options) for parity, h in enumerate(halves) if h
                ]
        planes = frame.planes[: spec.color.color_planes]
        parts = [
            p.plan(planes if p.parity is None else tuple(x[p.parity :: 2] for x in planes)) for p in self._pictures
        ]
        whole = all(part.whole for part in parts)
        skipped = tuple(part.skipped for part in parts)
        total = spec.width * spec.height
        return TileRequest(
            frame.index,
            None if whole else tuple(region for part in parts for region in part.regions),
            skipped if any(s.any() for s in skipped) else None,
            sum(part.restored for part in parts),
            sum(part.reused for part in parts),
            sum(int(s.sum()) for s in skipped),
            total if whole else sum(region.window.area for part in parts for region in part.regions),
            total,
            any(part.cut for part in parts),
        )

    def reset(self) -> None:
        """Forget what was computed: the next frame gets all anew. For when a request could not be fulfilled."""
        self._spec = None


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    regions: tuple[Region, ...]
    whole: bool
    skipped: Mask
    restored: int
    reused: int
    cut: bool


class _Picture:
    """The frames, or the fields of one parity."""

    def __init__(self, height: int, width: int, color: ColorSpec, parity: int | None, options: SpendOptions) -> None:
        self.parity = parity
        self._color = color
        self._options = options
        self._size = (height, width)
        self._shape = (-(-height // CELL), -(-width // CELL))
        self._geometry = Geometry(height, width, CELL, options.halo, _CALL)
        self._reference: tuple[Means, ...] | None = None  # the input at the time of each cell's last correction
        self._valid = np.zeros(self._shape, bool)  # cells that have a correction
        self._left_alone = np.zeros(tuple(-(-s // _BLUR_TILE) for s in self._size), bool)
        self._count = 0

    def take(self, planes: tuple[Array, ...]) -> tuple[Array, ...]:
        """The picture's planes of those of a frame."""
        return planes if self.parity is None else tuple(p[self.parity :: 2] for p in planes)

    def plan(self, planes: tuple[Array, ...]) -> _Part:
        """planes: as ``take`` gave them."""
        o = self._options
        skipped = self._sharp(planes[0]) if o.skip_sharp else np.zeros(self._shape, bool)
        cut = False
        if o.reuse:
            means = _block_means(planes, self._color, self._shape)
            wanted = ~self._valid
            if self._reference is None:
                self._reference = tuple(m.copy() for m in means)
            else:
                change = _change(means, self._reference, self._shape[0])
                cut = float((change > _CUT_CHANGE * o.threshold).mean()) > _CUT_SHARE
                wanted |= (change > o.threshold) | self._due() | cut
        else:
            wanted = np.ones(self._shape, bool)
        self._count += 1
        boxes = self._windows(wanted & ~skipped)
        computed = np.zeros(self._shape, bool)
        regions = []
        for box in boxes:
            kept = self._geometry.kept(box)
            regions.append(Region(box, kept, self.parity))
            computed[_cells(kept)] = True
        if o.reuse:
            assert self._reference is not None
            for mean, reference in zip(means, self._reference, strict=True):
                times = mean.shape[0] // self._shape[0]
                where = computed if times == 1 else computed.repeat(times, 0).repeat(times, 1)
                np.copyto(reference, mean, where=where)
            self._valid |= computed
            self._valid &= ~skipped | computed
        restored = int((computed & ~skipped).sum())
        whole = len(boxes) == 1 and boxes[0] == Box(0, 0, *self._size)
        reused = computed.size - restored - int(skipped.sum())
        return _Part(tuple(regions), whole, skipped, restored, reused, cut)

    def _due(self) -> Mask:
        """Cells whose turn it is to be refreshed: tile after tile, evenly over the frames."""
        rows, columns = (-(-s // _REFRESH_TILE) for s in self._size)
        every = self._options.refresh
        order = np.arange(rows * columns).reshape(rows, columns)
        due = (self._count + order * every // (rows * columns)) % every == 0
        times = _REFRESH_TILE // CELL
        cells: Mask = due.repeat(times, 0).repeat(times, 1)[: self._shape[0], : self._shape[1]]
        return cells

    def _sharp(self, luma: Array) -> Mask:
        """Cells of the tiles that are to be left alone."""
        scores = blur_scores(luma, _BLUR_TILE, depth=self._color.depth)
        limit = self._options.sharp_below
        self._left_alone = scores < np.where(self._left_alone, limit + _HYSTERESIS, limit)
        times = _BLUR_TILE // CELL
        cells: Mask = self._left_alone.repeat(times, 0).repeat(times, 1)[: self._shape[0], : self._shape[1]]
        return cells

    def _windows(self, wanted: Mask) -> list[Box]:
        everything = Box(0, 0, *self._size)
        if _grown(wanted, -(-self._options.halo // CELL)).mean() > _WHOLE_NEEDED:
            return [everything]
        boxes = cover(wanted, self._geometry)
        cost = sum(box.area + _CALL for box in boxes)
        return [everything] if cost > _WHOLE_COST * (everything.area + _CALL) else boxes


def _grown(cells: Mask, by: int) -> Mask:
    """The cells, and those not further away than ``by`` of them."""
    result = cells
    for axis in (0, 1):
        line = np.pad(result, [(by, by) if a == axis else (0, 0) for a in (0, 1)])
        size = result.shape[axis]
        parts = [line.take(range(k, k + size), axis=axis) for k in range(2 * by + 1)]
        result = np.logical_or.reduce(parts)
    return result


def _cells(box: Box) -> tuple[slice, slice]:
    return slice(box.top // CELL, -(-box.bottom // CELL)), slice(box.left // CELL, -(-box.right // CELL))


def _block_means(planes: tuple[Array, ...], color: ColorSpec, shape: tuple[int, int]) -> tuple[Means, ...]:
    """For each colour plane means over blocks, in levels of 8 bits: four times the cells' grid, for chroma twice."""
    result = []
    for n, plane in enumerate(planes):
        chroma = color.model == "yuv" and n > 0
        times = 2 if chroma else 4
        high, wide = (max(1, (CELL // times) >> s) for s in ((color.chroma_shift[::-1]) if chroma else (0, 0)))
        rows, columns = shape[0] * times * high, shape[1] * times * wide
        if plane.shape != (rows, columns):
            missing = rows - plane.shape[0], columns - plane.shape[1]
            if not plane.size:  # a field of one row may have no chroma
                result.append(np.zeros((shape[0] * times, shape[1] * times), np.float32))
                continue
            plane = np.pad(plane, ((0, missing[0]), (0, missing[1])), mode="edge")
        total: npt.NDArray[Any] = plane[0::high].astype(np.uint16 if color.depth == 8 else np.uint32)
        for k in range(1, high):
            total += plane[k::high]
        sums = total[:, 0::wide].copy()
        for k in range(1, wide):
            sums += total[:, k::wide]
        result.append(sums.astype(np.float32) * np.float32(1.0 / (high * wide * (1 << (color.depth - 8)))))
    return tuple(result)


def _change(means: tuple[Means, ...], reference: tuple[Means, ...], rows: int) -> Means:
    """The change of each cell, of which there are ``rows`` rows: see the module's words."""
    best: Means | None = None
    for mean, old in zip(means, reference, strict=True):
        square = np.square(mean - old)
        if mean.shape[0] == 4 * rows:
            square = _four(square, np.add) * np.float32(0.25)
        cell = _four(square, np.maximum)
        best = cell if best is None else np.maximum(best, cell)
    assert best is not None
    return np.sqrt(best)


def _four(x: Means, combine: np.ufunc) -> Means:
    """Neighbours in squares of 2x2 combined."""
    pairs = combine(x[0::2], x[1::2])
    result: Means = combine(pairs[:, 0::2], pairs[:, 1::2])
    return result
