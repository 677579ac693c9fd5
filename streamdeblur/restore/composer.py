"""Corrections of parts put together with those of earlier frames: the other half of ``planner``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from streamdeblur.frames import Array, ColorSpec, Frame, FrameSpec, apply_correction, correction_dtype
from streamdeblur.restore.cover import Box
from streamdeblur.restore.planner import CELL, Mask, TileRequest

Weights = npt.NDArray[np.float32]


def plane_part(box: Box, color: ColorSpec, plane: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns of a colour plane of this shape under a box of the picture."""
    sx, sy = color.chroma_shift if color.model == "yuv" and plane > 0 else (0, 0)
    rows = slice(min(box.top >> sy, shape[0]), min(-(-box.bottom >> sy), shape[0]))
    return rows, slice(min(box.left >> sx, shape[1]), min(-(-box.right >> sx), shape[1]))


class Composer:
    """Holds the last corrections of one source and adds them. Frames come in order; for one thread at a time.

    Where a part that is left alone meets one that is not, the correction fades out over one cell inside the latter, so
    that no edge shows; what is left alone keeps every code value.
    """

    def __init__(self) -> None:
        self._spec: FrameSpec | None = None
        self._held: list[Array] = []
        self._masks: tuple[Mask, ...] | None = None
        self._weights: list[Weights] = []

    def compose(self, frame: Frame, request: TileRequest, corrections: Sequence[Array]) -> Frame:
        """The corrected frame.

        corrections: what ``Restorer.correction(frame, request.regions)`` gave: whole planes where ``regions`` is None,
        else the kept part of each region, one array a colour plane, region after region. Raises ValueError where they
        do not fit the request.
        """
        self._match(frame.spec)
        color = frame.spec.color
        count = color.color_planes
        if request.regions is None:
            if len(corrections) != count:
                raise ValueError(f"{len(corrections)} corrections for {count} colour planes")
            self._held = [c if c.flags.writeable else c.copy() for c in corrections]
        else:
            if len(corrections) != count * len(request.regions):
                raise ValueError(f"{len(corrections)} corrections for {len(request.regions)} regions of {count} planes")
            for n, part in enumerate(corrections):
                region, plane = request.regions[n // count], n % count
                target = self._target(region.kept, region.parity, plane, color)
                if part.shape[1] != target.shape[1] or part.shape[0] < target.shape[0]:
                    raise ValueError(f"correction of {part.shape} for {target.shape} samples")
                target[...] = part[: target.shape[0]]
        return apply_correction(frame, self._faded(request, frame.spec))

    def miss(self, request: TileRequest) -> None:
        """The request could not be fulfilled: its parts have no correction until they are computed again.

        Reset the planner too, so that this is soon.
        """
        if request.regions is None:
            self._spec = None
            return
        if self._spec is not None:
            color = self._spec.color
            for region in request.regions:
                for plane in range(color.color_planes):
                    self._target(region.kept, region.parity, plane, color)[...] = 0

    def _match(self, spec: FrameSpec) -> None:
        if spec != self._spec:
            self._spec = spec
            kind = correction_dtype(spec.color.depth)
            shapes = spec.color.plane_shapes(spec.width, spec.height)[: spec.color.color_planes]
            self._held = [np.zeros(shape, kind) for shape in shapes]
            self._masks = None

    def _target(self, box: Box, parity: int | None, plane: int, color: ColorSpec) -> Array:
        whole = self._held[plane]
        picture = whole if parity is None else whole[parity::2]
        return picture[plane_part(box, color, plane, picture.shape)]

    def _faded(self, request: TileRequest, spec: FrameSpec) -> Sequence[Array]:
        masks = request.skipped
        if masks is None:
            self._masks = None
            return self._held
        if self._masks is None or not all(map(np.array_equal, masks, self._masks)):
            self._masks = masks
            self._weights = [self._plane_weights(masks, n, spec) for n in range(len(self._held))]
        return [
            np.floor(held * weight + np.float32(0.5)).astype(held.dtype)
            for held, weight in zip(self._held, self._weights, strict=True)
        ]

    def _plane_weights(self, masks: tuple[Mask, ...], plane: int, spec: FrameSpec) -> Weights:
        shift = spec.color.chroma_shift if spec.color.model == "yuv" and plane > 0 else (0, 0)
        shape = self._held[plane].shape
        if spec.field_order == "progressive":
            return fade(masks[0], shape, shift)
        result = np.ones(shape, np.float32)
        for parity, mask in enumerate(masks):
            part = result[parity::2]
            part[...] = fade(mask, part.shape, shift)
        return result


def fade(skipped: Mask, shape: tuple[int, ...], shift: tuple[int, int]) -> Weights:
    """Weights of the samples of a plane: 0 in skipped cells, 1 elsewhere, with a bilinear ramp in cells next to those.

    skipped: (rows, columns) of cells. shape: of the plane. shift: log2 of its subsampling, (horizontal, vertical).
    Corners of cells weigh 0 where any of the cells around is skipped, else 1; in between it is interpolated.
    """
    around = np.pad(skipped, 1, mode="edge")
    corners = ~(around[:-1, :-1] | around[:-1, 1:] | around[1:, :-1] | around[1:, 1:])
    down = _ramps(shape[0], shift[1], skipped.shape[0])
    across = _ramps(shape[1], shift[0], skipped.shape[1])
    # Sums of two products that are one in exact arithmetic need not be in floats.
    weights: Weights = np.clip(down @ corners.astype(np.float32) @ across.T, 0.0, 1.0)
    weights[weights > 0.9999] = 1.0
    return weights


def _ramps(samples: int, shift: int, cells: int) -> Weights:
    """(samples, cells + 1): the shares of the cells' corners at each sample, along one axis."""
    position = (np.arange(samples) + 0.5) * (1 << shift) / CELL
    place = np.minimum(position.astype(np.int64), cells - 1)
    result = np.zeros((samples, cells + 1), np.float32)
    beyond = (position - place).astype(np.float32)
    result[np.arange(samples), place] = 1 - beyond
    result[np.arange(samples), place + 1] = beyond
    return np.maximum(result, 0)
