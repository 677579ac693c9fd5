"""Where the windows of a frame lie and what each contributes. Planning only: integers and NumPy weights, no torch.

The frame is padded at its right and bottom edge to multiples of 4 (the network halves twice), so that a pixel's phase
in the network's grid is that of the whole frame. All windows of a plan have one size; their origins are multiples of 4;
the last one ends with the padded frame. The axes are planned apart from each other: the weight of a window at a pixel
is the product of its weights on the two axes.

On an axis, neighbours i and i + 1 share a stretch; R_i is a ramp from 0 to 1 centred in it. Window i has the weight
R_(i-1) - R_i: a telescoping sum, so the weights of all windows add up to one whatever the overlaps are. ``exact`` uses
ramps of no width (a cut in the middle, at least the receptive radius away from both cut-off edges), ``fast`` raised
cosines over half of the shared stretch, so that the quarter next to a window's edge, where what the network could
not see matters most, is never used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from streamdeblur.errors import UsageError

TileMode = Literal["exact", "fast", "whole"]
MODES: tuple[str, ...] = get_args(TileMode)

#: Window sizes and origins are multiples of this many pixels.
GRID = 4


@dataclass(frozen=True, eq=False)
class Span:
    """One window on one axis: it reads [origin, origin + window) and contributes to [start, stop), in frame pixels.

    weights: float32 of length stop - start, or None where it contributes alone.
    """

    origin: int
    start: int
    stop: int
    weights: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class TilePlan:
    """Windows of one frame size: every row span crossed with every column span. Immutable; pickles.

    height, width: of the frame. padded: (rows, columns) after padding. window: (rows, columns) of every window.
    """

    height: int
    width: int
    padded: tuple[int, int]
    window: tuple[int, int]
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def count(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def area(self) -> int:
        """Pixels of one window."""
        return self.window[0] * self.window[1]

    @property
    def windows(self) -> tuple[tuple[Span, Span], ...]:
        """(row span, column span) of every window, row by row."""
        return tuple((r, c) for r in self.rows for c in self.columns)


def round_up(value: int, step: int = GRID) -> int:
    """The next multiple of ``step`` at or above ``value``."""
    return -(-value // step) * step


def grid(size: int, tile: int, shared: int) -> tuple[int, int]:
    """(windows, window size) on an axis of ``size`` pixels for windows up to ``tile`` that share ``shared`` or more.

    As many windows as that takes, and of those no larger ones than still cover the axis.
    """
    padded, tile, shared = round_up(size), tile // GRID * GRID, round_up(shared)
    if tile >= padded:
        return 1, padded
    step = tile - shared
    if step < GRID:
        raise UsageError(f"windows of {tile} px cannot share {shared} px", "take a larger tile or less overlap")
    count = 1 + -(-(padded - tile) // step)
    return count, round_up(-(-(padded + (count - 1) * shared) // count))


def _spans(size: int, count: int, window: int, blend: bool) -> tuple[Span, ...]:
    if count == 1:
        return (Span(0, 0, size),)
    free = (round_up(size) - window) // GRID
    origins = [free * i // (count - 1) * GRID for i in range(count)]
    # Up-ramps R_0 .. R_(n-2), sampled at pixel centres; R_(-1) is one and R_(n-1) zero.
    centres = np.arange(size) + 0.5
    ramps = [np.ones(size)]
    for left, right in pairwise(origins):
        middle, half = (right + left + window) / 2, (left + window - right) / 4 if blend else 0.0
        if half:
            ramps.append(0.5 - 0.5 * np.cos(np.pi * np.clip((centres - middle) / half / 2 + 0.5, 0.0, 1.0)))
        else:
            ramps.append((centres > middle).astype(np.float64))
    ramps.append(np.zeros(size))
    # Where windows share most of their length ramps overlap, and differ in steepness by the rounding of origins.
    ramps = list(np.minimum.accumulate(ramps))
    spans = []
    for i, origin in enumerate(origins):
        weights = ramps[i] - ramps[i + 1]
        used = np.flatnonzero(weights > 0)
        start, stop = int(used[0]), int(used[-1]) + 1
        kept = weights[start:stop].astype(np.float32)
        kept.setflags(write=False)
        spans.append(Span(origin, start, stop, None if bool((kept == 1).all()) else kept))
    return tuple(spans)


@lru_cache(maxsize=64)
def plan_tiles(height: int, width: int, tile: int, overlap: int, mode: TileMode) -> TilePlan:
    """The windows of a height x width frame.

    tile: largest side of a window, in pixels; windows are as much smaller as the frame or an even split allows.
    overlap: for ``exact`` the network's receptive radius (neighbours share twice as much), for ``fast`` what two
    neighbours share at least, in pixels; ``whole`` uses neither and has one window.
    Every pixel's weights add up to one. Raises UsageError for sizes that make no plan.
    """
    if mode not in MODES:
        raise UsageError(f"tiling {mode!r} is not known", f"choose from {', '.join(MODES)}")
    if height < 1 or width < 1:
        raise UsageError(f"frame of {width}x{height} has no pixels", "give at least 1x1")
    if mode == "whole":
        tile, overlap = round_up(max(height, width)), 0
    if tile < GRID or overlap < 0:
        raise UsageError(f"tile of {tile} px with an overlap of {overlap} px", f"give a tile of {GRID} px or more")
    shared = 2 * round_up(overlap) if mode == "exact" else overlap
    (n_rows, window_rows), (n_columns, window_columns) = (grid(s, tile, shared) for s in (height, width))
    return TilePlan(
        height=height,
        width=width,
        padded=(round_up(height), round_up(width)),
        window=(window_rows, window_columns),
        rows=_spans(height, n_rows, window_rows, mode == "fast"),
        columns=_spans(width, n_columns, window_columns, mode == "fast"),
    )
