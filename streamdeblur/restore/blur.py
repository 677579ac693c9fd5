"""How blurred a picture is, without a sharp one to compare with; numpy only and cheap enough for every frame.

The measure is the Hölder exponent H of the luma between two small lags. With D(k) the mean squared difference of
pixels k apart (the second-order structure function), pictures follow D(k) ~ k^(2H) over small k: white noise has H = 0,
step edges and most sharp texture 0.5 to 0.7, and whatever is smooth at the scale of the lags, as a blur makes it, goes
to 1. Contrast and brightness cancel in the ratio:

    H = log(D(4) / D(1)) / (2 log 4)        for each of four directions

A whole picture scores their mean. A tile scores the largest: motion blurs along one direction, and what is across it
stays as sharp as it was. That tells blurred tiles from sharp ones better than the mean does (docs/reuse.md).

Noise lowers the score of a blurred picture: an H that is low may mean sharp or noisy.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from streamdeblur.frames import Array

Scores = npt.NDArray[np.float32]

_LAG = 4
#: (rows, columns) of a step of one pixel: across, down and both diagonals.
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))
#: D(4) below this, in levels of 8 bits squared, is nothing that anybody sees: less than a level of difference.
_FLAT = 1.0
#: Only every third row is a starting point: a third of the work, the same expectation. An odd number, or the edges of a
#: codec's blocks would lie between pairs of rows that are never compared.
_ROWS = 3
#: D of what is constant but for rounding to whole codes: twice the variance of a uniform distribution.
_ROUNDING = 2.0 / 12.0


def blur_scores(luma: Array, tile: int, *, depth: int = 8) -> Scores:
    """Blur of each tile of a luma plane, along the direction where it is largest: (rows, columns) float32 in [0, 1].

    luma: (H, W) code values of ``depth`` bits, any integer or float type, may be strided and read-only. tile: side in
    pixels, 8 or more; tiles begin at the top left corner, those at the right and bottom may be smaller. A tile without
    structure scores 0: there is nothing to restore in it. Raises ValueError for another shape or a smaller tile.
    Thread-safe. About 10 ms for 1280x720 on one core.
    """
    if tile < 8:
        raise ValueError(f"tiles of {tile} px are too small to judge: take 8 or more")
    exponents, _ = _exponents(luma, tile, depth)
    return np.asarray(exponents.max(axis=0), np.float32)


def blur_score(luma: Array, *, depth: int = 8) -> float:
    """Blur of a whole picture in [0, 1], the mean over all directions; its regions count by their contrast."""
    exponents, structured = _exponents(luma, max(8, *luma.shape), depth)
    return float(exponents.sum() / max(1, structured.sum()))


def _structure(luma: Array, tile: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[int]]:
    """D(1) and D(4) of each tile and direction, (directions, rows, columns); and which directions there are."""
    height, width = luma.shape
    shape = (-(-height // tile), -(-width // tile))
    near = np.zeros((len(_DIRECTIONS), *shape))
    far = np.zeros_like(near)
    plane = luma.astype(np.float32)
    used = []
    for n, (down, across) in enumerate(_DIRECTIONS):
        top, left, right = 0, (_LAG if across < 0 else 0), (_LAG if across > 0 else 0)
        bottom = _LAG * down
        if height <= bottom or width <= left + right:
            continue  # thinner than the lag
        used.append(n)

        def shifted(
            lag: int, *, down: int = down, across: int = across, left: int = left, right: int = right, end: int = bottom
        ) -> npt.NDArray[np.float32]:
            rows = slice(lag * down, height - end + lag * down, _ROWS)
            return plane[rows, left + lag * across : width - right + lag * across]

        base = shifted(0)
        for lag, target in ((1, near), (_LAG, far)):
            difference = base - shifted(lag)
            np.square(difference, out=difference)
            target[n] = _tile_means(difference, top, left, tile, shape)
    return near, far, used


def _tile_means(
    values: npt.NDArray[np.float32], top: int, left: int, tile: int, shape: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Means over tiles of values that begin at (top, left) of the picture, every _ROWS-th row of it.

    The last row or column of tiles may be too thin to have any; it takes what its neighbour has.
    """
    rows = [-(-max(0, t * tile - top) // _ROWS) for t in range(shape[0])]
    columns = [max(0, t * tile - left) for t in range(shape[1])]
    rows = [r for r in rows if r < values.shape[0]]
    columns = [c for c in columns if c < values.shape[1]]
    sums = np.add.reduceat(np.add.reduceat(values, columns, axis=1), rows, axis=0).astype(np.float64)
    high = np.diff([*rows, values.shape[0]])
    wide = np.diff([*columns, values.shape[1]])
    means = sums / (high[:, None] * wide[None, :])
    missing = (shape[0] - len(rows), shape[1] - len(columns))
    return np.pad(means, ((0, missing[0]), (0, missing[1])), mode="edge") if any(missing) else means


def _exponents(luma: Array, tile: int, depth: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """H of each direction and tile, (directions, rows, columns), 0 where there is no structure; and where there is."""
    if luma.ndim != 2 or 0 in luma.shape:
        raise ValueError(f"luma of shape {luma.shape}: expected (H, W)")
    near, far, used = _structure(luma, tile)
    structured = far > _FLAT * float(1 << (depth - 8)) ** 2  # a level of 8 bits, in squared code values
    structured[[n for n in range(len(_DIRECTIONS)) if n not in used]] = False
    ratio = np.maximum(far - _ROUNDING, 1e-12) / np.maximum(near - _ROUNDING, 1e-12)
    exponent = np.clip(np.log(np.maximum(ratio, 1e-12)) / (2 * math.log(_LAG)), 0.0, 1.0)
    return np.where(structured, exponent, 0.0), structured
