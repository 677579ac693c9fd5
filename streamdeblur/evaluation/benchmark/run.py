"""``streamdeblur benchmark``: runs the parts that are asked for and puts their results together."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch

from streamdeblur.config import memory_bytes
from streamdeblur.errors import DeviceError, StreamdeblurError, UsageError
from streamdeblur.evaluation.benchmark.bare import ways_of
from streamdeblur.evaluation.benchmark.clip import check_clip, clip_size
from streamdeblur.evaluation.benchmark.growth import growth, show_growth
from streamdeblur.evaluation.benchmark.job import JobRow, job, pools, show_jobs, show_pools
from streamdeblur.evaluation.benchmark.machine import busy, load, machine
from streamdeblur.evaluation.benchmark.network import NetworkResult, network
from streamdeblur.evaluation.benchmark.options import BenchmarkOptions
from streamdeblur.evaluation.benchmark.pairs import pairs_of
from streamdeblur.evaluation.benchmark.quality import Pairs, QualityResult, quality
from streamdeblur.evaluation.benchmark.results import show_network, show_quality, show_tiling
from streamdeblur.evaluation.benchmark.stages import StagesResult, show_stages, stages
from streamdeblur.evaluation.benchmark.timing import plain
from streamdeblur.evaluation.benchmark.variation import TilingResult, variation
from streamdeblur.evaluation.benchmark.ways import SHIPPED, Model, Way, check_weights, parse_model, parse_size
from streamdeblur.models import registry
from streamdeblur.restore.engines import resolve_device
from streamdeblur.restore.tiles import MODES

T = TypeVar("T")
Tell = Callable[[str], None]
#: Called with the name of a part and its table as soon as it is done.
Done = Callable[[str, str], None]

_QUICK_SIZE = "160x96"
#: Parts that are measured on a clip, the caller's or one of each size.
_WITH_CLIPS = {"stages", "job", "pools"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What options ask for, their words understood.

    sizes: (width, height). ways: of the network; of stages; of jobs, in this process and on Ray; of the part that has
    its own tilings. All but the network's have the engine that jobs take unless some are named. notes: options that
    some part has no use for, each in a line.
    """

    device: torch.device
    models: list[Model]
    sizes: list[tuple[int, int]]
    ways: list[Way]
    stage_ways: list[Way]
    job_ways: list[Way]
    tiling_ways: list[Way]
    sets: dict[str, Pairs]
    notes: list[str]


@dataclass(slots=True)
class Report:
    """All results. texts: a table for each part; values: the same as JSON values; seconds: what each part took.

    asked: what is to be measured, where that is known already. left_out: what could not be had here, a line each.
    failed: the part that ended all, and why.
    """

    created: str
    command: str
    machine: dict[str, Any]
    load_before: float | None
    warning: str | None
    settings: dict[str, Any]
    network: NetworkResult | None = None
    quality: QualityResult | None = None
    texts: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    asked: Asked | None = None
    left_out: list[str] = field(default_factory=list)
    failed: str | None = None

    @property
    def notes(self) -> list[str]:
        """What is to be said before anything is measured."""
        return self.asked.notes if self.asked is not None else []

    def as_json(self) -> str:
        """One object; what is not finite is null."""
        head = {
            "created": self.created,
            "command": self.command,
            "machine": self.machine,
            "load_before": self.load_before,
            "warning": self.warning,
            "settings": self.settings,
            "notes": self.notes,
            "left_out": self.left_out,
            "failed": self.failed,
            "seconds": self.seconds,
        }
        return json.dumps(plain({**head, **self.values}), indent=2) + "\n"


def begin(options: BenchmarkOptions, command: str) -> Report:
    """A report without results; what is to be said before they come. Sets PyTorch's number of threads.

    Raises what ``understand`` does: wrong words are told before anything else is.
    """
    asked = understand(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    before = load()
    settings = options.model_dump(mode="json", exclude={"html"})
    settings["sizes"] = [f"{w}x{h}" for w, h in asked.sizes]
    return Report(
        datetime.now(UTC).isoformat(timespec="seconds"),
        command,
        machine(asked.device),
        before,
        busy(before),
        settings,
        asked=asked,
    )


def understand(options: BenchmarkOptions) -> Asked:
    """What options ask for, with everything found that can be wrong before anything is measured.

    Raises UsageError for words that mean nothing, DeviceError for a device that is not there, WeightsError for weights
    that are no file, UnreadableInput and InputError for a clip or pairs that can't be read.
    """
    device = resolve_device(options.device)
    models = [parse_model(word) for word in options.models] or [_default_model()]
    for model in models:
        check_weights(model)
    given = options.model_fields_set
    sizes = [parse_size(w) for w in ((_QUICK_SIZE,) if options.quick and "sizes" not in given else options.sizes)]
    engines = options.engines or (("eager", "auto") if options.quick else ())
    ways = ways_of(engines, options.precisions, options.tiles, options.batch, device)
    single = options.engines or ("auto",)
    modes = [t for t in options.tiles if _is_mode(t)] or ["auto"]
    names = [Path(os.path.abspath(word)).name for word in options.data]
    sets = {
        name if names.count(name) == 1 else word: pairs_of(word, options.limit)
        for name, word in zip(names, options.data, strict=True)
    }
    with_clips = not _WITH_CLIPS.isdisjoint(options.what)
    check_clip(options.clip, sizes if with_clips else [])
    return Asked(
        device,
        models,
        sizes,
        ways,
        ways_of(single, options.precisions, options.tiles, options.batch, device),
        ways_of(single, options.precisions, modes, (), device),
        ways_of(single, options.precisions, ("auto",), (), device),
        sets,
        _notes(options, modes),
    )


def _notes(options: BenchmarkOptions, modes: Sequence[str]) -> list[str]:
    """Options that are given and that some part has no use for. modes: the tilings of jobs."""
    notes = []
    jobs = [p for p in options.what if p in ("job", "pools")]
    pixels = [t for t in options.tiles if not _is_mode(t)]
    if jobs and pixels:
        notes.append(
            f"{' and '.join(jobs)}: jobs take no tiles in pixels; without --tiles {','.join(pixels)}, "
            f"measured with {','.join(modes)}"
        )
    if options.batch and (without := [p for p in options.what if p in ("job", "pools", "tiling")]):
        notes.append(f"{' and '.join(without)}: without --batch, which is for network and stages")
    if "tiling" in options.what and (options.memory is not None or options.tiles != ("auto",)):
        notes.append("tiling: has its own choice of tilings, whatever --tiles and --memory say")
    return notes


def _is_mode(tiles: str) -> bool:
    """Whether jobs take that word for their tiling."""
    return tiles == "auto" or tiles in MODES


def require_any(report: Report) -> None:
    """Raises StreamdeblurError where everything that was asked for is in the tables as not measured."""
    rows = report.network.rows if report.network is not None else []
    found = report.quality
    measured = any(r.time is not None for r in rows) or (found is not None and bool(found.rows))
    if measured or report.values.keys() - {"network", "quality"}:
        return
    reasons = [r.failed for r in rows] + [why for _, why in (found.failed if found is not None else [])]
    why = next(filter(None, reasons), "no engine was there to measure")
    raise StreamdeblurError(f"nothing was measured: {why}", "choose other --engines, --precisions or --tiles")


def benchmark(
    options: BenchmarkOptions, report: Report, *, tell: Tell = lambda _: None, done: Done = lambda *_: None
) -> Report:
    """Measure into ``report``. tell: gets a line for every step. Raises what ``understand`` does, before that."""
    asked = report.asked or understand(options)
    device, models, sizes, ways, sets = asked.device, asked.models, asked.sizes, asked.ways, asked.sets
    rounds = options.rounds or (2 if options.quick else 5)
    frames = options.frames or (6 if options.quick else 12)
    limit = None if options.memory is None else memory_bytes(options.memory)
    clips = sizes if options.clip is None or _WITH_CLIPS.isdisjoint(options.what) else [clip_size(options.clip)]

    def each(
        measure: Callable[[Model, Way, tuple[int, int]], T], some: Sequence[Way], sizes: Sequence[tuple[int, int]]
    ) -> tuple[list[T], str]:
        found, left_out = _each(measure, models, some, sizes)
        report.left_out += left_out
        return found, "".join(f"\n{line}" for line in left_out)

    def job_settings(way: Way) -> dict[str, Any]:
        values = {"engine": way.engine, "precision": way.precision, "tiling": way.tiling}
        more = {"threads": options.threads, "memory": options.memory}
        return values | {k: v for k, v in more.items() if v is not None}

    def part(name: str, measure: Callable[[], tuple[str, Any]]) -> None:
        begun = time.perf_counter()
        try:
            text, values = measure()
        except BaseException as e:
            report.failed = f"{name}: {str(e) or type(e).__name__}"
            raise
        report.texts[name], report.values[name] = text, values
        report.seconds[name] = round(time.perf_counter() - begun, 1)
        done(name, text)

    def measured_network() -> tuple[str, Any]:
        report.network = network(
            models,
            sizes,
            ways,
            device,
            rounds,
            compare=options.reference,
            memory=options.peak_memory,
            limit=limit,
            budget=0.0 if options.quick else 6.0,
            tell=tell,
        )
        return show_network(report.network), report.network.as_dict()

    def measured_quality() -> tuple[str, Any]:
        report.quality = quality(models, ways, sets, device, limit=limit, tell=tell)
        return show_quality(report.quality), report.quality.as_dict()

    def measured_stages() -> tuple[str, Any]:
        def one(m: Model, w: Way, s: tuple[int, int]) -> StagesResult:
            return stages(m, s, w, device, rounds, frames=frames, clip=options.clip, limit=limit, tell=tell)

        found, left_out = each(one, asked.stage_ways, clips)
        return show_stages(found) + left_out, [f.as_dict() for f in found]

    def measured_job() -> tuple[str, Any]:
        starts = 4 if options.peak_memory else 0

        def one(m: Model, w: Way, s: tuple[int, int]) -> JobRow:
            how = job_settings(w)
            return job(m, s, how, device, rounds, frames=frames, clip=options.clip, starts=starts, tell=tell)

        found, left_out = each(one, asked.job_ways, clips)
        return show_jobs(found) + left_out, [f.as_dict() for f in found]

    def measured_tiling() -> tuple[str, Any]:
        def one(m: Model, w: Way, s: tuple[int, int]) -> TilingResult:
            return variation([m], s, w.engine, w.precision, device, rounds, tell=tell)

        found, left_out = each(one, asked.tiling_ways, sizes)
        return "\n\n".join(map(show_tiling, found)) + left_out, [f.as_dict() for f in found]

    def measured_pools() -> tuple[str, Any]:
        def one(m: Model, w: Way, s: tuple[int, int]) -> tuple[str, dict[str, Any]]:
            rows = pools(m, s, job_settings(w), device, rounds, frames=frames, clip=options.clip, tell=tell)
            size = f"{s[0]}x{s[1]}"
            said = {"model": m.name, "weights": m.weights or SHIPPED, **asdict(w), "size": size}
            return f"{_words(m, w, s)}\n{show_pools(rows)}", {**said, "rows": [r.as_dict() for r in rows]}

        found, left_out = each(one, asked.job_ways, clips)
        return "\n\n".join(t for t, _ in found) + left_out, [v for _, v in found]

    def measured_growth() -> tuple[str, Any]:
        found = growth(lengths=(20, 60), frames=30, tell=tell) if options.quick else growth(tell=tell)
        return show_growth(found), found.as_dict()

    parts = {
        "network": measured_network,
        "stages": measured_stages,
        "job": measured_job,
        "tiling": measured_tiling,
        "pools": measured_pools,
        "growth": measured_growth,
    }
    for name in options.what:
        part(name, parts[name])
        if name == "network" and sets:
            part("quality", measured_quality)
    if sets and "network" not in options.what:
        part("quality", measured_quality)
    return report


def _each(
    measure: Callable[[Model, Way, tuple[int, int]], T],
    models: Sequence[Model],
    ways: Sequence[Way],
    sizes: Sequence[tuple[int, int]],
) -> tuple[list[T], list[str]]:
    """Every model, way and size; and of those that can't be had here, a line each. Raises the first of these where
    nothing is left."""
    found: list[T] = []
    failed: list[str] = []
    first: StreamdeblurError | None = None
    for m, w, s in itertools.product(models, ways, sizes):
        try:
            found.append(measure(m, w, s))
        except (DeviceError, UsageError) as e:
            first = first or e
            failed.append(f"{_words(m, w, s)}: not measured: {e}")
    if first is not None and not found:
        raise first
    return found, failed


def _words(model: Model, way: Way, size: tuple[int, int]) -> str:
    how = [w for w in (way.engine, way.precision, way.tiling) if w != "auto"]
    return ", ".join([model.label, *([" ".join(how)] if how else []), f"{size[0]}x{size[1]}"])


def _default_model() -> Model:
    best = registry.default_variant()
    return parse_model(best.name if best is not None else "mimo-unet")
