"""Timing several ways of doing the same, in turns; and how durations are told."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from streamdeblur.evaluation.benchmark.energy import Meter


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: median, least and most of ``rounds`` calls.

    first: of the call before them, which was not counted: what is prepared, compiled or cached lazily is in it.
    joules: mean energy of a call, of all that the meter sees; None where nothing tells it. cpu: median of the seconds
    that this process's threads spent on processors in a call, all added up: on a CPU that others use too it says more
    of the work than the time does; None where it was not measured. each: the calls, round by round.
    """

    median: float
    low: float
    high: float
    rounds: int
    first: float | None = None
    joules: float | None = None
    cpu: float | None = None
    each: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{seconds(self.median)} ({seconds(self.low)}–{seconds(self.high)})"


def seconds(value: float) -> str:
    """A duration with three significant digits."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def per(t: Timing, count: int) -> Timing:
    """Of calls that did ``count`` things each, the time of one; ``first`` stays that of a single thing."""
    if count == 1:
        return t
    return replace(
        t,
        median=t.median / count,
        low=t.low / count,
        high=t.high / count,
        joules=None if t.joules is None else t.joules / count,
        cpu=None if t.cpu is None else t.cpu / count,
        each=tuple(x / count for x in t.each),
    )


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster: median, least and most of the rounds, each call against that of its own round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g}x ({self.low:.3g}–{self.high:.3g})"


def faster(slow: Timing, fast: Timing) -> Ratio:
    """How many times ``fast`` is faster than ``slow``, by rounds; by their medians where the rounds are not known."""
    pairs = [a / b for a, b in zip(slow.each, fast.each, strict=False)]  # one that sat out did so at the end
    if pairs:
        return Ratio(statistics.median(pairs), min(pairs), max(pairs))
    return Ratio(slow.median / fast.median, slow.low / fast.high, slow.high / fast.low)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device being idle before and done after."""
    synchronise(device)
    begun = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - begun


def alternate(
    ways: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    budget: float = 0.0,
    *,
    limit: float = math.inf,
    meter: Meter | None = None,
    first: Mapping[str, float] | None = None,
    around: Mapping[str, Callable[[], AbstractContextManager[None]]] | None = None,
) -> dict[str, Timing]:
    """Time several ways of doing the same, in turns, so that what else the machine does hits all of them alike.

    Each is called once beforehand and that call is told apart, unless ``first`` has its seconds already: it was called.
    rounds: how often at least. budget: seconds up to which rounds are added where they are short, ten times ``rounds``
    at most. limit: a way that took so many seconds already, and was measured twice, sits the rest out. meter: counts
    energy. around: what a way is called within, its entry and exit not timed. The order turns round with every round,
    so that no way always follows the same other one.
    """
    begun_with = dict(first or {})
    within = dict(around or {})
    for name, way in ways.items():
        if name not in begun_with:
            with within.get(name, nullcontext)():
                begun_with[name] = timed(way, device)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    energy: dict[str, list[float]] = {name: [] for name in ways}
    worked: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    begin = time.perf_counter()
    done = 0
    while done < rounds or (done < 10 * rounds and time.perf_counter() - begin < budget):
        for name in order:
            if len(taken[name]) >= 2 and sum(taken[name]) > limit:
                continue
            with within.get(name, nullcontext)():
                before = meter.joules() if meter is not None else None
                worked_before = time.process_time()
                taken[name].append(timed(ways[name], device))
                worked[name].append(time.process_time() - worked_before)
                after = meter.joules() if meter is not None else None
            if before is not None and after is not None and after >= before:
                energy[name].append(after - before)
        order.reverse()
        done += 1
    return {
        n: Timing(
            statistics.median(t),
            min(t),
            max(t),
            len(t),
            begun_with[n],
            statistics.mean(energy[n]) if len(energy[n]) == len(t) else None,
            statistics.median(worked[n]),
            tuple(t),
        )
        for n, t in taken.items()
    }


def spread(values: Sequence[float]) -> Timing:
    """A Timing of seconds that were measured elsewhere."""
    return Timing(statistics.median(values), min(values), max(values), len(values))


def plain(value: Any) -> Any:
    """JSON values only: timings as objects, what is not finite as None."""
    if isinstance(value, Timing):
        told = {"median_s": value.median, "low_s": value.low, "high_s": value.high, "rounds": value.rounds}
        return told | {"first_s": value.first, "joules": value.joules, "cpu_s": value.cpu}
    if isinstance(value, Ratio):
        return {"median": plain(value.median), "low": plain(value.low), "high": plain(value.high)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
