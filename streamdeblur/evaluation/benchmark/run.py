"""``streamdeblur benchmark``: runs the parts that are asked for and puts their results together."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from streamdeblur.config import memory_bytes
from streamdeblur.errors import StreamdeblurError
from streamdeblur.evaluation.benchmark.bare import ways_of
from streamdeblur.evaluation.benchmark.clip import check_clip
from streamdeblur.evaluation.benchmark.growth import growth, show_growth
from streamdeblur.evaluation.benchmark.job import job, pools, show_jobs, show_pools
from streamdeblur.evaluation.benchmark.machine import busy, load, machine
from streamdeblur.evaluation.benchmark.network import NetworkResult, network
from streamdeblur.evaluation.benchmark.options import BenchmarkOptions
from streamdeblur.evaluation.benchmark.pairs import pairs_of
from streamdeblur.evaluation.benchmark.quality import Pairs, QualityResult, quality
from streamdeblur.evaluation.benchmark.results import show_network, show_quality, show_tiling
from streamdeblur.evaluation.benchmark.stages import show_stages, stages
from streamdeblur.evaluation.benchmark.timing import plain
from streamdeblur.evaluation.benchmark.variation import variation
from streamdeblur.evaluation.benchmark.ways import Model, Way, check_weights, parse_model, parse_size
from streamdeblur.models import registry
from streamdeblur.restore.engines import resolve_device

Tell = Callable[[str], None]
#: Called with the name of a part and its table as soon as it is done.
Done = Callable[[str, str], None]

_QUICK_SIZE = "160x96"
#: Parts that are measured on a clip, the caller's or one of each size.
_WITH_CLIPS = {"stages", "job", "pools"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What options ask for, their words understood. sizes: (width, height)."""

    device: torch.device
    models: list[Model]
    sizes: list[tuple[int, int]]
    engines: tuple[str, ...]
    ways: list[Way]
    sets: dict[str, Pairs]


@dataclass(slots=True)
class Report:
    """All results. texts: a table for each part; values: the same as JSON values; seconds: what each part took.

    asked: what is to be measured, where that is known already.
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

    def as_json(self) -> str:
        """One object; what is not finite is null."""
        head = {
            "created": self.created,
            "command": self.command,
            "machine": self.machine,
            "load_before": self.load_before,
            "warning": self.warning,
            "settings": self.settings,
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
    return Report(
        datetime.now(UTC).isoformat(timespec="seconds"),
        command,
        machine(asked.device),
        before,
        busy(before),
        options.model_dump(mode="json", exclude={"html"}),
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
    sets = {Path(word).name: pairs_of(word, options.limit) for word in options.data}
    check_clip(options.clip, [] if _WITH_CLIPS.isdisjoint(options.what) else sizes)
    return Asked(device, models, sizes, engines, ways, sets)


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
    engines = asked.engines
    rounds = options.rounds or (2 if options.quick else 5)
    frames = options.frames or (6 if options.quick else 12)
    engine, precision = (engines[0] if len(engines) == 1 else "auto"), options.precisions[0]
    tiling = options.tiles[0]
    settings: dict[str, Any] = {"engine": engine, "precision": precision, "threads": options.threads}
    if tiling in ("auto", "exact", "fast", "whole"):
        settings["tiling"] = tiling
    if options.memory is not None:
        settings["memory"] = options.memory
    settings = {k: v for k, v in settings.items() if v is not None}

    def part(name: str, measure: Callable[[], tuple[str, Any]]) -> None:
        begun = time.perf_counter()
        text, values = measure()
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
            limit=None if options.memory is None else memory_bytes(options.memory),
            budget=0.0 if options.quick else 6.0,
            tell=tell,
        )
        return show_network(report.network), report.network.as_dict()

    def measured_quality() -> tuple[str, Any]:
        report.quality = quality(models, ways, sets, device, tell=tell)
        return show_quality(report.quality), report.quality.as_dict()

    def measured_stages() -> tuple[str, Any]:
        found = [
            stages(m, s, engine, precision, tiling, device, rounds, frames=frames, clip=options.clip, tell=tell)
            for m in models
            for s in _clip_sizes(sizes, options.clip)
        ]
        return show_stages(found), [f.as_dict() for f in found]

    def measured_job() -> tuple[str, Any]:
        found = [
            job(
                m,
                s,
                settings,
                device,
                rounds,
                frames=frames,
                clip=options.clip,
                starts=4 if options.peak_memory else 0,
                tell=tell,
            )
            for m in models
            for s in _clip_sizes(sizes, options.clip)
        ]
        return show_jobs(found), [f.as_dict() for f in found]

    def measured_tiling() -> tuple[str, Any]:
        found = [variation(models, s, engine, precision, device, rounds, tell=tell) for s in sizes]
        return "\n\n".join(map(show_tiling, found)), [f.as_dict() for f in found]

    def measured_pools() -> tuple[str, Any]:
        texts, values = [], []
        for m in models:
            for s in _clip_sizes(sizes, options.clip):
                rows = pools(m, s, settings, device, rounds, frames=frames, clip=options.clip, tell=tell)
                texts.append(f"{m.name}, {s[0]}x{s[1]}\n{show_pools(rows)}")
                values.append({"model": m.name, "size": f"{s[0]}x{s[1]}", "rows": [r.as_dict() for r in rows]})
        return "\n\n".join(texts), values

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


def _clip_sizes(sizes: list[tuple[int, int]], clip: Path | None) -> list[tuple[int, int]]:
    """A clip of the caller's has its own size."""
    return sizes if clip is None else sizes[:1]


def _default_model() -> Model:
    best = registry.default_variant()
    return parse_model(best.name if best is not None else "mimo-unet")
