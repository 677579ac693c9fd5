"""Frames of several cameras in one call of the network: whole ones, or those windows of them that are to be restored.

What goes in are *pictures*: a whole frame, or a window of a frame or field (``restore.planner``). Pictures of one size
share a call, whichever camera they are of.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from streamdeblur.errors import DeviceError
from streamdeblur.frames import Array, ColorSpec, Frame
from streamdeblur.restore.composer import plane_part
from streamdeblur.restore.cover import Box
from streamdeblur.runtime.pool import Corrections, Item

if TYPE_CHECKING:
    from streamdeblur.restore import Restorer
    from streamdeblur.restore.planner import Region

#: Pictures in one call: engines prepare something for every shape, so there are few numbers of them.
_COUNTS = (8, 4, 2, 1)
#: Sizes and numbers of pictures whose tiling is kept: all that the planner's windows come in, for a few cameras.
_KEPT = 256


@dataclass(frozen=True, slots=True)
class _Picture:
    """planes: of the picture. kept: the part of it that is asked for; None for all."""

    planes: tuple[Array, ...]
    color: ColorSpec
    kept: Box | None

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.planes[0].shape
        return height, width

    def cut(self, correction: Sequence[Array]) -> Corrections:
        """What was asked for, of the correction of all of it."""
        if self.kept is None:
            return tuple(correction)
        parts = (c[plane_part(self.kept, self.color, n, c.shape)] for n, c in enumerate(correction))
        return tuple(np.ascontiguousarray(p) for p in parts)


def can_share(item: Item) -> bool:
    """Whether a frame's pictures can go together with those of others: whole fields have shapes of their own."""
    frame, regions = item
    return frame.spec.field_order == "progressive" if regions is None else all(r.parity is None for r in regions)


class Together:
    """Calls one restorer for frames of several cameras. Thread-safe."""

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer
        self._batched: dict[tuple[int, int, int], Restorer] = {}
        self._lock = threading.Lock()

    def corrections(self, items: Sequence[Item]) -> list[Corrections]:
        """What ``Restorer.correction(frame, regions)`` gives for each item, in their order.

        items: ``can_share``, of any sizes and colours. Raises as ``Restorer.correction`` does; the item that is to
        blame is then to be found by giving each to that.
        """
        pictures = [_pictures(frame, regions) for frame, regions in items]
        sizes: dict[tuple[int, int], list[_Picture]] = {}
        for picture in (p for of_item in pictures for p in of_item):
            sizes.setdefault(picture.size, []).append(picture)
        found: dict[int, Corrections] = {}
        for size, alike in sizes.items():
            for part in _parts(alike):
                for picture, correction in zip(part, self._restored(part, size), strict=True):
                    found[id(picture)] = correction
        return [tuple(plane for p in of_item for plane in found[id(p)]) for of_item in pictures]

    def _restored(self, pictures: Sequence[_Picture], size: tuple[int, int]) -> list[Corrections]:
        import torch

        from streamdeblur.color import planes_to_rgb, rgb_correction_to_planes
        from streamdeblur.restore.engines.streams import own_stream

        restorer = self._for(*size, len(pictures))
        with own_stream(restorer.engine.device), torch.inference_mode():
            rgb = torch.cat([planes_to_rgb(p.planes, p.color, restorer.engine.device) for p in pictures])
            delta = restorer(rgb) - rgb
            if not math.isfinite(float(delta.sum())):
                raise DeviceError("the network's correction is not finite", "check weights and precision")
            whole = [
                rgb_correction_to_planes(d, p.color, [x.shape for x in p.planes])
                for d, p in zip(delta, pictures, strict=True)
            ]
        return [p.cut(planes) for p, planes in zip(pictures, whole, strict=True)]

    def _for(self, height: int, width: int, count: int) -> Restorer:
        """The restorer, with batches that so many pictures share: its own are those of one."""
        key = height, width, count
        with self._lock:
            found = self._batched.get(key)
        if found is None:
            from streamdeblur.restore import Restorer
            from streamdeblur.restore.memory import ACCELERATOR_BATCH_PIXELS, CPU_BATCH_PIXELS

            engine = self._restorer.engine
            tiling = self._restorer.plan(height, width)
            plan = tiling.plan(height, width, engine.receptive_radius)
            high, wide = plan.window
            most = CPU_BATCH_PIXELS if engine.device.type == "cpu" else ACCELERATOR_BATCH_PIXELS
            batch = min(count * len(plan.windows), max(1, most // (high * wide)))
            wider = replace(tiling, batch=max(tiling.batch, batch))
            found = Restorer(tiling=wider, engine=engine)
            with self._lock:
                self._batched[key] = found
                if len(self._batched) > _KEPT:
                    del self._batched[next(iter(self._batched))]
        return found


def _parts(pictures: Sequence[_Picture]) -> Iterator[Sequence[_Picture]]:
    start = 0
    while start < len(pictures):
        count = next(c for c in _COUNTS if c <= len(pictures) - start)
        yield pictures[start : start + count]
        start += count


def _pictures(frame: Frame, regions: Sequence[Region] | None) -> list[_Picture]:
    color = frame.spec.color
    planes = frame.planes[: color.color_planes]
    if regions is None:
        return [_Picture(planes, color, None)]
    result = []
    for region in regions:
        w, k = region.window, region.kept
        window = tuple(p[plane_part(w, color, n, p.shape)] for n, p in enumerate(planes))
        result.append(_Picture(window, color, Box(k.top - w.top, k.left - w.left, k.bottom - w.top, k.right - w.left)))
    return result
