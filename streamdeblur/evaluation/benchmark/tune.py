"""``streamdeblur tune``: measures the plan of an engine and keeps it (``restore.tuning``)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamdeblur.config import memory_bytes
from streamdeblur.errors import UsageError
from streamdeblur.evaluation.benchmark.machine import busy, load
from streamdeblur.evaluation.benchmark.options import TuneOptions
from streamdeblur.evaluation.benchmark.results import megabytes, number, table
from streamdeblur.evaluation.benchmark.timing import plain, seconds
from streamdeblur.evaluation.benchmark.ways import check_engine, parse_size, tiling_words
from streamdeblur.frames import ColorSpec, Frame, FrameSpec
from streamdeblur.restore import Restorer
from streamdeblur.restore.engines import facts
from streamdeblur.restore.memory import device_budget, job_bytes, own_memory
from streamdeblur.restore.tuning import Plan, Trial, forget_plan, keep_plan, measure, require_place
from streamdeblur.runtime.pool import InProcessPool

#: Frames in flight that are tried, and how much faster more must be.
_IN_FLIGHT = (1, 2, 3, 4, 6)
_WORTH = 1.02
#: A frame that takes so long hides any hand-over.
_SLOW = 0.5

#: The least side of frames that a plan is measured with: smaller ones say nothing about larger ones.
_LEAST = 32


@dataclass(frozen=True, slots=True)
class TuneResult:
    """plan: what was kept in ``path``; None where it was only forgotten. rates: frames a second by frames in flight."""

    model: str
    engine: str
    precision: str
    device: str
    plan: Plan | None
    path: Path
    trials: list[Trial]
    rates: dict[int, float]
    warning: str | None
    forgot: bool = False

    def as_dict(self) -> dict[str, Any]:
        values = {n: getattr(self, n) for n in self.__slots__}
        values["plan"] = None if self.plan is None else asdict(self.plan)
        values["path"] = str(self.path)
        values["trials"] = [asdict(t) | {"median_s": t.median} for t in self.trials]
        return dict(plain(values))


def tune(options: TuneOptions, *, tell: Callable[[str], None] = lambda _: None) -> TuneResult:
    """Measure and keep the plan that ``process`` and all other jobs with ``tiling="auto"`` follow from then on.

    Raises UsageError, WeightsError, DeviceError.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    width, height = parse_size(options.size)
    if min(width, height) < _LEAST:
        raise UsageError(f"frames of {width}x{height} say nothing about tiles", "give the size of your footage")
    warning = busy(load())
    restorer = Restorer(
        options.model,
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        engine=check_engine(options.engine),
        pixels=10**13,
    )
    engine = restorer.engine
    restorer.share()  # as jobs do in one process
    known = facts(engine)
    name = options.model or "default"
    if options.forget:
        from streamdeblur.restore.tuning import plan_path

        path = plan_path(engine)
        forgot = forget_plan(engine)
        return TuneResult(name, known.name, known.precision, str(engine.device), None, path, [], {}, None, forgot)
    limit = None if options.memory is None else memory_bytes(options.memory)
    taken = own_memory(engine.device) + (job_bytes(width, height) if engine.device.type == "cpu" else 0)
    budget = device_budget(engine.device, 1, limit, taken)
    require_place(engine)
    plan, found = measure(engine, (width, height), budget, seconds=options.seconds, tell=tell)
    rates: dict[int, float] = {}
    if plan.seconds < _SLOW:
        tell("frames in flight")
        followed = Restorer(engine=engine, tiling=_tiling(plan, found))
        followed.share()
        rates = in_flight_rates(followed, (width, height), options.seconds / 4)
    plan = replace(plan, in_flight=best_in_flight(rates, known.at_once))
    path = keep_plan(engine, plan)
    return TuneResult(name, known.name, known.precision, str(engine.device), plan, path, found, rates, warning)


def _tiling(plan: Plan, found: list[Trial]) -> Any:
    alike = [t.tiling for t in found if t.area * t.tiling.batch == plan.batch_pixels]
    return next((t for t in alike if t.tile == plan.tile), alike[0])


def best_in_flight(rates: dict[int, float], at_once: int = 1) -> int:
    """The fewest frames in flight that no larger number beats by more than 2 %; where nothing was measured, one more
    than the engine works on ``at_once``.
    """
    if not rates:
        return at_once + 1
    best = max(rates.values())
    return min(n for n, rate in rates.items() if rate * _WORTH >= best)


def in_flight_rates(restorer: Restorer, size: tuple[int, int], budget: float) -> dict[int, float]:
    """Frames a second through the pool of this process, for each number of frames in flight.

    size: (width, height). budget: seconds, about.
    """
    frame = _frame(size)
    restorer.correction(frame)
    begun = time.perf_counter()
    restorer.correction(frame)
    one = time.perf_counter() - begun
    count = max(6, min(400, int(budget / len(_IN_FLIGHT) / max(one, 1e-6))))
    return {n: _rate(restorer, frame, n, count) for n in _IN_FLIGHT}


def _rate(restorer: Restorer, frame: Frame, capacity: int, count: int) -> float:
    given = done = 0
    at_once = facts(restorer.engine).at_once
    with InProcessPool(lambda: restorer.correction, capacity, min(capacity, at_once)) as pool:
        begun = time.perf_counter()
        while done < count:
            while given < count and pool.in_flight < pool.capacity:
                pool.submit(replace(frame, index=given))
                given += 1
            done += len(pool.collect())
        return count / (time.perf_counter() - begun)


def _frame(size: tuple[int, int]) -> Frame:
    width, height = size
    color = ColorSpec("yuv", chroma_shift=(1, 1))
    noise = np.random.default_rng(0)
    planes = tuple(noise.integers(16, 235, shape, np.uint8) for shape in color.plane_shapes(width, height))
    return Frame(0, 0, Fraction(1, 25), planes, FrameSpec(width, height, color))


def show_tune(r: TuneResult) -> str:
    if r.plan is None:
        return f"{'forgot the plan in' if r.forgot else 'there is no plan in'} {r.path}"
    rows = [
        (
            tiling_words(t.tiling),
            str(t.tiling.batch),
            str(t.windows),
            megabytes(t.bytes),
            seconds(t.median) if t.median is not None else f"left out: {t.left_out}",
            str(len(t.seconds)),
        )
        for t in r.trials
    ]
    heads = ("tiles", "at once", "windows", "memory, at most", "a frame", "times")
    size = f"{r.plan.size[0]}x{r.plan.size[1]}"
    parts = [f"{r.model}: {r.engine} {r.precision} on {r.device}, frames of {size}", table(heads, rows)]
    if r.rates:
        parts.append("frames/s by frames in flight: " + ", ".join(f"{n}: {v:.4g}" for n, v in r.rates.items()))
    parts.append(
        f"kept: tiles up to {r.plan.tile} px, {r.plan.batch_pixels:,} px at once, {number(r.plan.in_flight)} frames in "
        f"flight, {seconds(r.plan.seconds)} a frame, in {r.path}"
    )
    return "\n".join(parts)
