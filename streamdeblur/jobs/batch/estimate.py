"""What a job would do, and about how long and how large, without writing into DEST: ``batch --dry-run``.

Files are planned here (a sample of them where there are very many) and, for each set of options, one of middling size
is restored for a moment on this machine; its seconds and bytes a pixel are taken for all of them. A cluster's other
machines may be faster or slower.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamdeblur.config import ProcessOptions
from streamdeblur.errors import InputError, StreamdeblurError
from streamdeblur.jobs.batch import place
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.plan import Plan, make_plan, peek
from streamdeblur.jobs.batch.sources import Source, gather_sources
from streamdeblur.jobs.process import process_video
from streamdeblur.jobs.verify import verify

log = logging.getLogger(__name__)

#: Files that are planned; the rest is taken to be like them. Seconds of footage that are restored to measure.
_SAMPLE = 200
_MEASURED = 0.5
_LISTED = 40
#: Frames a second of a file that does not say.
_RATE = 25
#: Sets of options that are measured, those with most pixels first; others are taken to be like the mean.
_KINDS = 4


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file and what becomes of it. whole: why it is not cut; error: why it would be quarantined."""

    source: str
    output: str
    seconds: float
    frames: int
    segments: int
    whole: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """hours: of work by all actors together; seconds: until the job is done, with ``workers`` of them. disk_bytes: of
    results; peak_bytes: of segments at the most, while they wait to be joined. Zero where nothing could be measured."""

    dest: str
    files: int
    planned: int
    frames: int
    broken: int
    workers: int
    fps_per_worker: float
    seconds: float
    hours: float
    disk_bytes: int
    peak_bytes: int
    free_bytes: int | None
    measured_on: str
    plans: tuple[FilePlan, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)

    def text(self) -> str:
        """The plan in lines for people."""
        lines = []
        for p in self.plans[:_LISTED]:
            how = (
                f"quarantined: {p.error}"
                if p.error
                else f"{p.segments} segments"
                if p.segments
                else f"whole ({p.whole})"
            )
            lines.append(f"{p.source} -> {p.output}: {p.frames} frames, {p.seconds:.1f} s, {how}")
        if len(self.plans) > _LISTED:
            lines.append(f"and {len(self.plans) - _LISTED} more")
        room = f" ({_size(self.free_bytes)} free)" if self.free_bytes is not None else ""
        lines.append(f"{self.files} files, about {self.frames} frames, {self.broken} of {self.planned} unreadable")
        if self.seconds:
            lines.append(
                f"about {_span(self.seconds)} with {self.workers} workers of {self.fps_per_worker:.2f} fps each "
                f"({self.hours:.1f} hours of work), measured on {self.measured_on}"
            )
            lines.append(
                f"about {_size(self.disk_bytes)} of results, up to {_size(self.peak_bytes)} of segments meanwhile{room}"
            )
        return "\n".join(lines)


def estimate(sources: Iterable[str], dest: str, options: BatchOptions) -> Estimate:
    """Plan a job and measure a moment of it. Writes nothing into ``dest``. Raises as ``run_batch`` does."""
    where = dest.rstrip("/") if place.is_url(dest) else os.path.abspath(dest)
    found = gather_sources(sources, where, options)
    step = max(1, len(found) // _SAMPLE)
    sample = found[::step][: 2 * _SAMPLE]
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)

        def look(numbered: tuple[int, Source]) -> tuple[Source, Plan | None, str | None, str]:
            number, s = numbered
            try:
                plan = peek(s.name, s.options, options.segment_seconds) if place.is_url(s.name) else None
                if plan is not None:
                    return s, plan, None, s.name
                local = _local(s.name, scratch / str(number))
                return s, make_plan(local, s.options, options.segment_seconds), None, local
            except StreamdeblurError as e:
                return s, None, str(e), s.name

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            looked = list(pool.map(look, enumerate(sample)))
        good = [(s, p, local) for s, p, _, local in looked if p is not None]
        costs = _costs(good, scratch, options)
    plans = tuple(
        FilePlan(s.name, s.output, p.seconds, _frames(p), len(p.segments), p.whole, None)
        if p is not None
        else FilePlan(s.name, s.output, 0.0, 0, 0, None, error)
        for s, p, error, _ in looked
    )
    scale = len(found) / max(1, len(sample))
    spent = [_pixels(p) * costs.of(s)[0] for s, p, _ in good]
    sizes = [_pixels(p) * costs.of(s)[1] for s, p, _ in good]
    workers = options.workers or _workers(options)
    work = sum(spent) * scale
    longest = max((x / max(1, len(p.segments)) for x, (_, p, _) in zip(spent, good, strict=True)), default=0.0)
    cut = sorted((x for x, (_, p, _) in zip(sizes, good, strict=True) if p.segments), reverse=True)
    frames = sum(_frames(p) for _, p, _ in good)
    per_worker = frames / sum(spent) if sum(spent) else 0.0
    return Estimate(
        dest=where,
        files=len(found),
        planned=len(sample),
        frames=round(sum(p.frames for p in plans) * scale),
        broken=sum(p.error is not None for p in plans),
        workers=workers,
        fps_per_worker=round(per_worker, 3),
        seconds=float(f"{max(work / workers, longest):.3g}"),
        hours=round(work / 3600, 3),
        disk_bytes=round(sum(sizes) * scale),
        peak_bytes=round(sum(cut[: workers + 1])),
        free_bytes=place.free_bytes(where),
        measured_on=", ".join(costs.measured_on),
        plans=plans,
    )


@dataclass(frozen=True, slots=True)
class _Costs:
    """(seconds, bytes) a pixel by options, and the mean of them; names of the files that were measured."""

    by_options: dict[ProcessOptions, tuple[float, float]]
    mean: tuple[float, float]
    measured_on: tuple[str, ...]

    def of(self, s: Source) -> tuple[float, float]:
        return self.by_options.get(s.options, self.mean)


def _costs(good: list[tuple[Source, Plan, str]], scratch: Path, options: BatchOptions) -> _Costs:
    kinds: dict[ProcessOptions, list[tuple[Source, Plan, str]]] = {}
    for entry in good:
        kinds.setdefault(entry[0].options, []).append(entry)
    weights = {o: sum(_pixels(p) for _, p, _ in entries) for o, entries in kinds.items()}
    found: dict[ProcessOptions, tuple[float, float]] = {}
    names = []
    for o in sorted(kinds, key=lambda o: -weights[o])[:_KINDS]:
        s, p, local = sorted(kinds[o], key=lambda g: g[1].width * g[1].height)[len(kinds[o]) // 2]
        cost = _measure(local, s, scratch, p, options)
        if cost[0]:
            found[o] = cost
            names.append(s.name)
    total = sum(weights[o] for o in found)
    rate, size = (sum(weights[o] * found[o][n] for o in found) / total if total else 0.0 for n in (0, 1))
    return _Costs(found, (rate, size), tuple(names))


def _frames(p: Plan) -> int:
    """As the container says, or as most footage has it."""
    return p.frames or round(p.seconds * _RATE)


def _pixels(p: Plan) -> int:
    return _frames(p) * p.width * p.height


def _local(name: str, folder: Path) -> str:
    return str(place.fetch(name, folder / "source")) if place.is_url(name) else name


def _measure(local: str, s: Source, scratch: Path, plan: Plan, options: BatchOptions) -> tuple[float, float]:
    """(seconds, bytes) a pixel, from a moment at the beginning of a file: start-up is not counted."""
    target = scratch / f"measured{Path(s.output).suffix}"
    o = s.options.model_copy(
        update={
            "start": s.options.start,
            "duration": min(_MEASURED, s.options.duration or _MEASURED),
            "threads": options.threads or max(1, int(options.cpus_per_worker)),
            # nothing is told to anybody by a dry run
            "detect": None,
            "annotate": False,
            "webhook": None,
            "mqtt": None,
        }
    )
    level = logging.getLogger("streamdeblur").level
    logging.getLogger("streamdeblur").setLevel(logging.ERROR)
    began = time.monotonic()
    stamps: list[float] = []
    try:
        if place.is_url(local):  # only its header was read
            local = _local(local, scratch / "whole")
        summary = process_video(local, target, options=o, progress=lambda p: stamps.append(time.monotonic()))
        checked = time.monotonic()
        if options.verify:
            verify(local, target, stream=o.stream, start=o.start, duration=o.duration, interlaced=o.interlaced)
        checked = time.monotonic() - checked
    except (StreamdeblurError, InputError) as e:
        log.warning("nothing could be measured: %s", e)
        return 0.0, 0.0
    finally:
        logging.getLogger("streamdeblur").setLevel(level)
    pixels = summary.frames * plan.width * plan.height
    spent = (stamps[-1] - stamps[0]) * summary.frames / (summary.frames - 1) if summary.frames > 1 else 0.0
    return (checked + (spent or time.monotonic() - began)) / pixels, target.stat().st_size / pixels


def _workers(options: BatchOptions) -> int:
    """Actors that a job would get: of a running cluster if one is named, else of this machine."""
    if options.address is None and not os.environ.get("RAY_ADDRESS"):
        return max(1, int((os.cpu_count() or 1) / options.cpus_per_worker))
    from streamdeblur.jobs.batch import cluster

    with cluster.connected(options):
        return max(1, cluster.capacity(options.cpus_per_worker, cluster.gpus_per_worker(options)))


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
