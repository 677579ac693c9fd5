"""What restores on each step of the ladder, as a recipe that travels to a worker, and who runs it in this process."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from streamdeblur.errors import UsageError
from streamdeblur.frames import Array, ColorSpec, Frame, Gap, correction_dtype
from streamdeblur.jobs.live.batching import Together, can_share
from streamdeblur.jobs.live.options import LiveOptions
from streamdeblur.models import registry
from streamdeblur.models.analysis import gflop
from streamdeblur.restore import Restorer, RestorerSpec
from streamdeblur.restore.composer import plane_part
from streamdeblur.restore.cover import Box, window_sizes
from streamdeblur.restore.engines import facts
from streamdeblur.restore.engines.devices import resolve_device
from streamdeblur.restore.planner import Region
from streamdeblur.runtime.pool import (
    WORKER,
    Corrections,
    Factory,
    InProcessPool,
    Item,
    Result,
    Work,
    checked,
    restored,
)

log = logging.getLogger(__name__)

#: What a live job is taken to ask of the network at least: ten minutes of small video, worth preparing an engine for.
_PIXELS = 5_000_000_000

BYPASS = "bypass"
HALF = "half scale"


@dataclass(frozen=True, slots=True)
class LiveFrame(Frame):
    """A frame on its way to a worker. Its ``index`` is a ticket of the pool; step: of the ladder."""

    step: int = 0


@runtime_checkable
class BatchWork(Protocol):
    """A `Work` that takes several frames on one step at once, or parts of them."""

    def many(self, items: Sequence[Item]) -> list[Corrections]:
        """The corrections of each, in their order."""


@dataclass(frozen=True, slots=True)
class StepRecipe:
    """One step: which restorer, and whether it works at half the width and height."""

    name: str
    restorer: RestorerSpec
    half: bool = False


@dataclass(frozen=True, slots=True)
class LiveRecipe:
    """Pickles to a worker and builds there what all steps need. steps: best first, bypass not among them.

    share: several threads will call. windows: sizes (height, width) to get ready for before the first frame, which
    would else wait for it, and make a step look dear that is not.
    """

    steps: tuple[StepRecipe, ...]
    learned: bool = True  # there is a network, and work to be saved
    share: bool = False
    windows: tuple[tuple[int, int], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the ladder's steps, bypass last."""
        return (*(s.name for s in self.steps), BYPASS)

    def __call__(self) -> LiveWork:
        built: dict[RestorerSpec, Restorer] = {}
        for step in self.steps:
            if step.restorer not in built:
                built[step.restorer] = step.restorer.build()
        at_once = min((r.share() for r in built.values()), default=1) if self.share else 1
        for step in self.steps:
            sizes = [(-(-h // 8) * 4, -(-w // 8) * 4) for h, w in self.windows] if step.half else self.windows
            built[step.restorer].prepare(sizes)
        return LiveWork([(built[s.restorer], s.half) for s in self.steps], at_once)


class LiveWork:
    """Restores frames on the step they name. at_once: calls from several threads that gain by being side by side."""

    def __init__(self, steps: Sequence[tuple[Restorer, bool]], at_once: int = 1) -> None:
        self._steps = list(steps)
        self.at_once = at_once
        self._together = [Together(restorer) for restorer, _ in self._steps]

    @property
    def device(self) -> str:
        return str(self._steps[0][0].engine.device) if self._steps else "cpu"

    @property
    def prepare_seconds(self) -> float:
        """Spent so far on getting ready, and never again for the same."""
        return sum(
            facts(engine).prepare_seconds for engine in {id(r.engine): r.engine for r, _ in self._steps}.values()
        )

    def __call__(self, frame: Frame, regions: Sequence[Region] | None = None) -> Corrections:
        step = frame.step if isinstance(frame, LiveFrame) else 0
        restorer, half = self._steps[step]
        return half_scale_correction(restorer, frame, regions) if half else restorer.correction(frame, regions)

    def many(self, items: Sequence[Item]) -> list[Corrections]:
        """Frames on one step, or parts of them: those of one size share calls of the network."""
        frame = items[0][0]
        assert isinstance(frame, LiveFrame)
        if len(items) == 1 or self._steps[frame.step][1]:
            return [self(one, regions) for one, regions in items]
        return self._together[frame.step].corrections(items)


def half_scale_correction(restorer: Restorer, frame: Frame, regions: Sequence[Region] | None = None) -> Corrections:
    """The correction found at half the width and height (of an interlaced frame: half the width of each field) and
    enlarged: a quarter of the work, and a blur half as long, which the network removes the more easily. What is finer
    than the small grid stays as it was, because only the correction is enlarged.

    regions: as for ``Restorer.correction``.
    """
    color = frame.spec.color
    planes = frame.planes[: color.color_planes]
    progressive = frame.spec.field_order == "progressive"
    if regions is None:
        if progressive:
            return _half(restorer, planes, color, vertical=True)
        result = tuple(np.zeros(p.shape, correction_dtype(color.depth)) for p in planes)
        for parity in (0, 1):
            for whole, part in zip(result, _half_field(restorer, planes, color, parity), strict=True):
                target = whole[parity::2]
                target[...] = part[: target.shape[0]]
        return result
    found: list[Array] = []
    for region in regions:
        w, k = region.window, region.kept
        picture = planes if region.parity is None else _field(planes, color, region.parity)
        window = tuple(p[plane_part(w, color, n, p.shape)] for n, p in enumerate(picture))
        inside = Box(k.top - w.top, k.left - w.left, k.bottom - w.top, k.right - w.left)
        small = _half(restorer, window, color, vertical=region.parity is None)
        found += [np.ascontiguousarray(c[plane_part(inside, color, n, c.shape)]) for n, c in enumerate(small)]
    return tuple(found)


def _half_field(restorer: Restorer, planes: tuple[Array, ...], color: ColorSpec, parity: int) -> Corrections:
    field = _field(planes, color, parity)
    if not field[0].shape[0]:
        return tuple(np.zeros(p.shape, correction_dtype(color.depth)) for p in field)
    return _half(restorer, field, color, vertical=False)


def _field(planes: tuple[Array, ...], color: ColorSpec, parity: int) -> tuple[Array, ...]:
    """A field's planes, with the chroma row repeated that the lower one lacks where the number of rows is odd."""
    field = tuple(p[parity::2] for p in planes)
    shapes = color.plane_shapes(field[0].shape[1], field[0].shape[0])
    return tuple(
        p if p.shape[0] >= rows else np.concatenate((p, p[-1:] if p.shape[0] else planes[n][-1:]))
        for n, (p, (rows, _)) in enumerate(zip(field, shapes, strict=False))
    )


def _half(restorer: Restorer, planes: tuple[Array, ...], color: ColorSpec, *, vertical: bool) -> Corrections:
    """Of one picture. vertical: its height is halved as well."""
    import torch
    from torch.nn import functional

    from streamdeblur.color import planes_to_rgb, rgb_correction_to_planes
    from streamdeblur.restore.engines.streams import own_stream

    with own_stream(restorer.engine.device), torch.inference_mode():
        rgb = planes_to_rgb(planes, color, restorer.engine.device)
        high, wide = rgb.shape[-2:]
        small = functional.interpolate(rgb, size=((high + 1) // 2 if vertical else high, (wide + 1) // 2), mode="area")
        delta = restorer(small) - small
        delta = functional.interpolate(delta, size=(high, wide), mode="bilinear", align_corners=False)
        return rgb_correction_to_planes(delta, color, [p.shape for p in planes])


def recipe_of(options: LiveOptions) -> LiveRecipe:
    """The steps that these options give. Raises UsageError and WeightsError for what can't be built."""
    variant = _variant(options)
    model = options.model
    if model is None and options.weights is None and variant is not None:
        model = variant.name  # or a worker would take what is best
    spec = _spec(options, model, _absolute(options.weights))
    name = variant.name if variant is not None else "model"
    steps = [StepRecipe(name, spec)]
    if variant is None or variant.config is None:
        return LiveRecipe(tuple(steps), learned=False)  # identity and offset cost nothing: there is nothing cheaper
    last = spec
    small = _small(options, variant)
    if small is not None:
        last = _spec(options, small, None)
        steps.append(StepRecipe(small, last))
    if options.half_scale:
        steps.append(StepRecipe(HALF, last, half=True))
    here = options.workers is None and options.ray is None
    windows = tuple(window_sizes(options.reuse_halo)) if options.reuse else ()
    return LiveRecipe(tuple(steps), share=here, windows=windows)


def _spec(options: LiveOptions, model: str | None, weights: str | None) -> RestorerSpec:
    o = options
    memory = None if o.memory_limit is None else o.memory_limit // (o.workers or 1)
    return RestorerSpec(model, weights, o.device, o.precision, o.tiling, o.threads, o.engine, _PIXELS, memory)


def _absolute(weights: str | None) -> str | None:
    return weights if weights is None or weights.startswith("random:") else os.path.abspath(weights)


def _variant(options: LiveOptions) -> registry.Variant | None:
    if options.model is not None:
        return registry.resolve(options.model)
    if options.weights is not None:
        return registry.resolve(str(registry.read_weights(options.weights)[1].variant))
    if options.ray is not None or resolve_device(options.device).type != "cpu":  # who knows what a cluster has
        return registry.default_variant()
    return registry.cheapest_variant()


def _small(options: LiveOptions, variant: registry.Variant) -> str | None:
    """The second step, where it is cheaper than the first and its weights are there."""
    if options.small_model == "none":
        return None
    if options.small_model != "auto":
        found = registry.resolve(options.small_model)
        if found.config is not None and registry.shipped_weights(found) is None:
            raise UsageError(f"--small-model {found.name} has no weights that ship", "none, or auto, leaves it out")
        return found.name if _work(found) < _work(variant) else None
    for candidate in registry.variants().values():
        if candidate.config is not None and registry.shipped_weights(candidate) is not None:
            return candidate.name if _work(candidate) < 0.8 * _work(variant) else None
    return None


def _work(variant: registry.Variant) -> float:
    return gflop(variant.config) * variant.passes if variant.config is not None else 0.0


class BatchingPool(InProcessPool):
    """The pool of one device in this process: frames on one step together, whatever their sources (``runtime.Pool``).

    factory: as for ``InProcessPool``; a work with ``many`` gets up to ``batch`` frames at once, of whichever sources
    they are. Holds ``batch`` frames at work and as many waiting, on a GPU to keep it busy; with ``batch`` 1 a single
    one, because a frame that waits in here can't be passed over any more. notify: called, on the pool's thread,
    whenever there is something to collect.
    """

    def __init__(self, factory: Factory, batch: int, notify: Callable[[], None] = lambda: None) -> None:
        self._batch = batch
        self._notify = notify
        super().__init__(factory, batch if batch == 1 else 2 * batch)

    def begin(self, work: Work) -> int:
        """As many threads as the work gains by, each with a frame; still none waits."""
        callers = work.at_once if isinstance(work, LiveWork) else 1
        self._capacity = max(self._capacity, callers)
        return callers

    def take(self, work: Work) -> list[Item]:
        """The oldest frame, and those behind it that can share its batch."""
        first = self._waiting.popleft()
        items = [first]
        if isinstance(work, BatchWork):
            for other in list(self._waiting):
                if len(items) < self._batch and _alike(first, other):
                    items.append(other)
            for item in items[1:]:
                _remove(self._waiting, item)
        return items

    def restore(self, work: Work, items: Sequence[Item]) -> list[Result | Gap]:
        if not isinstance(work, LiveWork):
            return self._restored(work, items)
        before = work.prepare_seconds
        results = self._restored(work, items)
        prepared = (work.prepare_seconds - before) / len(items)
        # A size that was seen for the first time says nothing of what the next frame will take. What is longer than the
        # whole call was prepared by another thread.
        return [
            replace(r, seconds=r.seconds - prepared) if isinstance(r, Result) and prepared < r.seconds else r
            for r in results
        ]

    def _restored(self, work: Work, items: Sequence[Item]) -> list[Result | Gap]:
        if len(items) == 1:
            return [restored(work, items[0])]
        assert isinstance(work, BatchWork)
        start = time.perf_counter()
        try:
            found = [checked(c) for c in work.many(items)]
        except Exception:
            log.debug("a batch of %d frames failed", len(items), exc_info=True)
            return [restored(work, item) for item in items]  # one of them is to blame: each by itself
        seconds = (time.perf_counter() - start) / len(items)
        return [Result(f.index, c, WORKER, seconds) for (f, _), c in zip(items, found, strict=True)]

    def announce(self) -> None:
        self._notify()

    def close(self, *, abort: bool = False) -> None:
        with self._changed:
            self._waiting.clear()  # live: what waits is old by then
        super().close(abort=abort)


def _alike(a: Item, b: Item) -> bool:
    """On one step, and no fields."""
    (x, _), (y, _) = a, b
    if not (isinstance(x, LiveFrame) and isinstance(y, LiveFrame)):
        return False
    return x.step == y.step and can_share(a) and can_share(b)


def _remove(items: deque[Item], item: Item) -> None:
    """By identity: frames are not compared."""
    kept = [i for i in items if i is not item]
    items.clear()
    items.extend(kept)


def ticketed(frame: Frame, ticket: int, step: int) -> LiveFrame:
    """The frame as it travels to a worker."""
    return LiveFrame(ticket, frame.pts, frame.time_base, frame.planes, frame.spec, step)


__all__ = [
    "BYPASS",
    "HALF",
    "BatchingPool",
    "LiveFrame",
    "LiveRecipe",
    "LiveWork",
    "StepRecipe",
    "half_scale_correction",
    "recipe_of",
    "ticketed",
]
