"""Few windows that cover the changed parts of a picture: what a network with a halo has to compute anew.

A window costs its own pixels, a halo of context on every side that is not an edge of the picture, and a call. Many
small windows pay for halos and calls, few large ones for pixels that did not change. The cover is grown and pruned like
a decision tree (Breiman et al., Classification and Regression Trees, 1984): the bounding box of what changed is cut in
two where that leaves least, both parts shrink to what they hold, and so on; then, from the leaves up, a cut is kept
only where it costs less than its box uncut.

Windows have few different sizes, because engines that are fast prepare something for every size (code, memory plans,
graphs) and keep only some: a box is covered by a grid of windows of the one size that makes it cheapest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

#: Sides of windows, in pixels: multiples of 4. Square ones only, so there are as many sizes as sides.
SIDES = (64, 96, 128, 192, 256)

#: Window origins are multiples of this, and so is the size of a padded picture (the network halves twice).
_GRID = 4

#: Cuts one below the other at most: leaves are small by then, and time stays bounded.
_DEPTH = 12

#: Boxes of which a geometry remembers the cheapest grid: some tens of bytes each.
_REMEMBERED = 100_000


def window_sizes(halo: int) -> list[tuple[int, int]]:
    """(height, width) of all windows that a cover of a large picture may have. halo: see ``Geometry``."""
    sides = [side for side in SIDES if side > 2 * halo]
    return [(high, wide) for high in sides for wide in sides]


class Box(NamedTuple):
    """Half-open rectangle [top, bottom) x [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


@dataclass(frozen=True)
class Geometry:
    """What windows cost in a picture of this size, and where they lie.

    height, width: of the picture. cell: side of a cell of the change map. halo: context on each side that is computed
    and thrown away. call: cost of one more window. All in pixels; cell and halo are multiples of 4. sides: of windows,
    rising; those that leave nothing between two halos are not used, and none but the picture's own beyond it.
    """

    height: int
    width: int
    cell: int
    halo: int
    call: int
    sides: tuple[int, ...] = SIDES
    # Grids are asked for again and again, within a frame and from frame to frame.
    _axes: dict[tuple[int, int, int], list[tuple[int, int]]] = field(default_factory=dict, repr=False, compare=False)
    _grids: dict[Box, tuple[int, int, int]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def least(self) -> int:
        """What the smallest window costs."""
        return min(self._sides(self.height)) * min(self._sides(self.width)) + self.call

    def kept(self, window: Box) -> Box:
        """The pixels of a window that have their halo, or the picture's edge, on every side; whole cells."""
        top, bottom = self._kept(window.top, window.bottom, self.height)
        left, right = self._kept(window.left, window.right, self.width)
        return Box(top, left, bottom, right)

    def cost(self, cells: Box) -> int:
        """Of the cheapest grid of windows that covers a box of cells."""
        return self._cheapest(cells)[0]

    def windows(self, cells: Box) -> list[Box]:
        """The cheapest grid of windows that covers a box of cells, in pixels of the picture."""
        _, high, wide = self._cheapest(cells)
        tops = self._placed(cells.top, cells.bottom, high, self.height)
        lefts = self._placed(cells.left, cells.right, wide, self.width)
        return [Box(y, x, min(y + high, self.height), min(x + wide, self.width)) for y in tops for x in lefts]

    def _cheapest(self, cells: Box) -> tuple[int, int, int]:
        """(cost, height, width) of the windows; height and width may reach beyond the picture."""
        found = self._grids.get(cells)
        if found is None:
            rows = self._counts(cells.top, cells.bottom, self.height)
            columns = self._counts(cells.left, cells.right, self.width)
            costs = [(n * m * (high * wide + self.call), high, wide) for n, high in rows for m, wide in columns]
            found = min(costs)
            if len(self._grids) >= _REMEMBERED:
                self._grids.clear()
            self._grids[cells] = found
        return found

    def _counts(self, start: int, stop: int, size: int) -> list[tuple[int, int]]:
        """(windows, side) for each side, on one axis."""
        key = start, stop, size
        found = self._axes.get(key)
        if found is None:
            placed = [(len(self._placed(start, stop, side, size)), side) for side in self._sides(size)]
            found = self._axes[key] = [(n, side) for n, side in placed if n] or [(1, -(-size // _GRID) * _GRID)]
        return found

    def _sides(self, size: int) -> list[int]:
        """Sides of windows on an axis: the last one may reach beyond the picture, which is then padded."""
        padded = -(-size // _GRID) * _GRID
        smaller = [side for side in self.sides if 2 * self.halo < side < padded]
        return smaller if smaller and padded > self.sides[-1] else [*smaller, padded]

    def _placed(self, start: int, stop: int, side: int, size: int) -> tuple[int, ...]:
        """Where windows of a side begin so that their kept parts hold the cells start to stop; () where none can."""
        start, stop = start * self.cell, min(size, stop * self.cell)
        last = max(0, -(-size // _GRID) * _GRID - side)  # the padded picture ends where this window does
        origins: list[int] = []
        while True:
            origin = min(max(0, start - self.halo), last)
            kept, end = self._kept(origin, min(origin + side, size), size)
            if kept > start or end <= start:
                return ()
            origins.append(origin)
            if end >= stop:
                return tuple(origins)
            start = end

    def _kept(self, first: int, last: int, size: int) -> tuple[int, int]:
        start = 0 if first == 0 else -(-(first + self.halo) // self.cell) * self.cell
        return start, size if last == size else (last - self.halo) // self.cell * self.cell


def cover(changed: npt.NDArray[np.bool_], geometry: Geometry) -> list[Box]:
    """Windows to compute, in pixels, whose kept parts together hold every changed cell.

    changed: (rows, columns) of cells. Deterministic. The windows may overlap. Empty where nothing changed.
    """
    root = _shrunk(changed, Box(0, 0, *changed.shape))
    if root is None:
        return []
    _, boxes = _grow(changed, root, geometry, _DEPTH)
    return [window for box in _merged(boxes, geometry) for window in geometry.windows(box)]


def _shrunk(changed: npt.NDArray[np.bool_], box: Box) -> Box | None:
    part = changed[box.top : box.bottom, box.left : box.right]
    rows = np.flatnonzero(part.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(part.any(axis=0))
    return Box(
        box.top + int(rows[0]), box.left + int(columns[0]), box.top + int(rows[-1]) + 1, box.left + int(columns[-1]) + 1
    )


def _grow(changed: npt.NDArray[np.bool_], box: Box, geometry: Geometry, depth: int) -> tuple[int, list[Box]]:
    """(cost, boxes) of the cheapest cover found within a box that is shrunk to what it holds."""
    whole = geometry.cost(box)
    if depth == 0 or whole <= 2 * geometry.least:  # two windows cost no less
        return whole, [box]
    cut = _best_cut(changed, box)
    if cut is None:
        return whole, [box]
    total, boxes = 0, []
    for part in cut:
        cost, found = _grow(changed, part, geometry, depth - 1)
        total += cost
        boxes += found
        if total >= whole:
            return whole, [box]
    return total, boxes


def _best_cut(changed: npt.NDArray[np.bool_], box: Box) -> tuple[Box, Box] | None:
    """The two shrunk parts whose area is least; None where no cut leaves anything out."""
    part = changed[box.top : box.bottom, box.left : box.right]
    best: tuple[int, int, int] | None = None
    for axis, view in ((0, part), (1, part.T)):
        length, across = view.shape
        if length < 2:
            continue
        any_across = view.any(axis=1)
        first = np.where(any_across, view.argmax(axis=1), across)
        last = np.where(any_across, across - view[:, ::-1].argmax(axis=1), 0)
        filled = np.flatnonzero(any_across)
        # For a cut before row k: extents of the rows below k and from k on.
        low_first, low_last = np.minimum.accumulate(first)[:-1], np.maximum.accumulate(last)[:-1]
        high_first = np.minimum.accumulate(first[::-1])[::-1][1:]
        high_last = np.maximum.accumulate(last[::-1])[::-1][1:]
        cuts = np.arange(1, length)
        place = np.searchsorted(filled, cuts)
        low_end = filled[np.maximum(place - 1, 0)] + 1
        high_start = filled[np.minimum(place, filled.size - 1)]
        area = low_end * (low_last - low_first) + (length - high_start) * (high_last - high_first)
        k = int(area.argmin())
        if best is None or area[k] < best[0]:
            best = int(area[k]), axis, k + 1
    if best is None:
        return None
    area_left, axis, at = best
    if area_left >= part.size:
        # No cut leaves anything out: the box is full, or has something in every corner.
        if part.all():
            return None
        axis, at = (0, part.shape[0] // 2) if part.shape[0] >= part.shape[1] else (1, part.shape[1] // 2)
    if axis == 0:
        one, two = box._replace(bottom=box.top + at), box._replace(top=box.top + at)
    else:
        one, two = box._replace(right=box.left + at), box._replace(left=box.left + at)
    parts = _shrunk(changed, one), _shrunk(changed, two)
    return None if parts[0] is None or parts[1] is None else (parts[0], parts[1])


def _merged(boxes: list[Box], geometry: Geometry) -> list[Box]:
    """Neighbours of different branches joined where their common box costs less than both."""
    boxes = list(boxes)
    while len(boxes) > 1:
        best: tuple[int, Box, Box, Box] | None = None
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                both = Box(min(a.top, b.top), min(a.left, b.left), max(a.bottom, b.bottom), max(a.right, b.right))
                gain = geometry.cost(a) + geometry.cost(b) - geometry.cost(both)
                if gain >= 0 and (best is None or gain > best[0]):
                    best = gain, a, b, both
        if best is None:
            break
        _, a, b, both = best
        boxes = [box for box in boxes if box not in (a, b)] + [both]
    return boxes
