"""Cutting windows out of a padded frame and putting their corrections together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from streamdeblur.restore.tiles import Span, TilePlan


def pad_frame(x: Tensor, padded: tuple[int, int]) -> Tensor:
    """(N, C, H, W) extended at the right and bottom edge to ``padded`` (rows, columns).

    By reflection (the edge pixel is not repeated); where there are not enough pixels to mirror, by replication.
    """
    down, right = padded[0] - x.shape[-2], padded[1] - x.shape[-1]
    for rows, columns in ((down, 0), (0, right)):
        if rows or columns:
            possible = rows < x.shape[-2] and columns < x.shape[-1]
            x = F.pad(x, (0, columns, 0, rows), mode="reflect" if possible else "replicate")
    return x


class Canvas:
    """The correction of N frames, gathered window by window. Not thread-safe.

    Windows add up in the order they are given, so the same plan gives the same bits.
    """

    def __init__(self, plan: TilePlan, frames: int, device: torch.device) -> None:
        #: (N, 3, H, W) float32, complete when every window of every frame was added.
        self.correction = torch.zeros((frames, 3, plan.height, plan.width), device=device)
        self._weights = {
            id(span): torch.tensor(span.weights, device=device)
            for span in (*plan.rows, *plan.columns)
            if span.weights is not None
        }

    def add(self, frame: int, row: Span, column: Span, residual: Tensor) -> None:
        """Add the correction (3, rows, columns) of one window, any float type, to one frame."""
        target = self.correction[frame, :, row.start : row.stop, column.start : column.stop]
        part = residual[
            :,
            row.start - row.origin : row.stop - row.origin,
            column.start - column.origin : column.stop - column.origin,
        ]
        if row.weights is None and column.weights is None:
            target.copy_(part)  # no other window has a share in these pixels
            return
        part = part.to(torch.float32)
        if row.weights is not None:
            part = part * self._weights[id(row)][:, None]
        if column.weights is not None:
            part = part * self._weights[id(column)]
        target += part
