"""A sheet of pairs to look at: blurred beside sharp, with what was done to it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from streamdeblur.training.synthesis.response import Picture

_WIDTH, _HEIGHT = 400, 260  # of one picture
_GAP, _BAR = 8, 24
_PAPER, _INK = (248, 248, 246), (40, 40, 44)
_FONT = cv2.FONT_HERSHEY_DUPLEX


def sheet(pairs: Sequence[tuple[str, Picture, Picture]], columns: int = 2) -> Picture:
    """(H, W, 3) uint8 R'G'B' of (label, blurred, sharp) triples.

    Pictures larger than their place are cut, not made smaller, so that blur keeps its size: the part in which the two
    differ most is shown.
    """
    columns = max(min(columns, len(pairs)), 1)
    rows = -(-len(pairs) // columns)
    cell_w, cell_h = 2 * _WIDTH + 2 * _GAP + _GAP, _HEIGHT + _BAR + _GAP
    paper = np.empty((rows * cell_h + _GAP + _BAR, columns * cell_w + _GAP, 3), np.uint8)
    paper[:] = _PAPER
    for column in range(columns):
        x = _GAP + column * cell_w
        _write(paper, "blurred", x, _BAR - 6, 0.55)
        _write(paper, "sharp: the middle of the exposure", x + _WIDTH + _GAP, _BAR - 6, 0.55)
    for number, (label, blurred, sharp) in enumerate(pairs):
        row, column = divmod(number, columns)
        x, y = _GAP + column * cell_w, _BAR + row * cell_h
        window = _window(blurred, sharp)
        for picture, left in ((blurred, x), (sharp, x + _WIDTH + _GAP)):
            part = picture[window]
            paper[y : y + part.shape[0], left : left + part.shape[1]] = part
        _write(paper, label, x, y + _HEIGHT + 16, 0.42)
    return paper


def _window(blurred: Picture, sharp: Picture) -> tuple[slice, slice]:
    """The part, of the size that is shown, in which the two differ most."""
    height, width = min(sharp.shape[0], _HEIGHT), min(sharp.shape[1], _WIDTH)
    # coarse enough that noise does not count
    change = cv2.blur(blurred.astype(np.float32) - sharp.astype(np.float32), (5, 5))
    energy = np.abs(change).mean(axis=2)
    best = (-1.0, 0, 0)
    for top in range(0, sharp.shape[0] - height + 1, max((sharp.shape[0] - height) // 4, 1)):
        for left in range(0, sharp.shape[1] - width + 1, max((sharp.shape[1] - width) // 4, 1)):
            best = max(best, (float(energy[top : top + height, left : left + width].mean()), top, left))
    return slice(best[1], best[1] + height), slice(best[2], best[2] + width)


def _write(paper: Picture, text: str, x: int, y: int, scale: float) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's fonts have nothing else
    cv2.putText(paper, plain, (x, y), _FONT, scale, _INK, 1, cv2.LINE_AA)
