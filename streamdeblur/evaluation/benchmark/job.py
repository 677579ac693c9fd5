"""The whole of ``process_video`` on a clip: against the network alone, and in this process against Ray actors."""

from __future__ import annotations

import hashlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamdeblur.color import planes_to_rgb
from streamdeblur.config import ProcessOptions, parse
from streamdeblur.errors import InputError, StreamdeblurError
from streamdeblur.evaluation.benchmark.clip import with_clip
from streamdeblur.evaluation.benchmark.network import in_child
from streamdeblur.evaluation.benchmark.results import megabytes, number, table
from streamdeblur.evaluation.benchmark.timing import Ratio, Timing, alternate, faster, plain, seconds, spread
from streamdeblur.evaluation.benchmark.ways import SHIPPED, Builder, Model, callers, labelled, tiling_words
from streamdeblur.frames import Frame
from streamdeblur.jobs.process import ProcessSummary, process_video
from streamdeblur.restore import Restorer
from streamdeblur.restore.engines import facts, share
from streamdeblur.video.reader import VideoReader

#: RGB pictures held for the network alone: enough that caches don't help, few enough for 4K.
_HELD = 4


@dataclass(frozen=True, slots=True)
class JobRow:
    """One clip through the whole job.

    network: seconds for as many frames through the network alone, tensor to tensor; job: seconds of ``process_video``,
    from the call to the complete file. share: of the network's rate that the whole job has; cpu_share:
    processor seconds of the network alone over those of the job; steady_share: of the rate once the first frame is
    written. first_frame_s: until then. startup_s: of a new process, from its start until its
    first frame enters the network; with warm caches, since it is the second (None where that was not measured).
    peak_bytes: largest memory of a process that runs the job.
    """

    model: str
    weights: str
    clip: str
    size: tuple[int, int]
    frames: int
    engine: str
    precision: str
    tiling: str
    encoder: str
    network: Timing
    job: Timing
    share: Ratio
    cpu_share: float | None
    steady_fps: float
    steady_share: float
    first_frame_s: float
    startup_s: Timing | None
    peak_bytes: int | None

    @property
    def network_fps(self) -> float:
        return self.frames / self.network.median

    @property
    def job_fps(self) -> float:
        return self.frames / self.job.median

    def as_dict(self) -> dict[str, Any]:
        values = {n: getattr(self, n) for n in self.__slots__}
        values["size"] = f"{self.size[0]}x{self.size[1]}"
        return dict(plain({**values, "network_fps": self.network_fps, "job_fps": self.job_fps}))


def job(
    model: Model,
    size: tuple[int, int],
    options: dict[str, Any],
    device: torch.device,
    rounds: int,
    *,
    frames: int = 12,
    clip: Path | None = None,
    starts: int = 4,
    tell: Callable[[str], None] = lambda _: None,
) -> JobRow:
    """Measure in turns. options: of ``process`` (engine, precision, tiling, memory, ...); model and device are set.

    starts: processes of their own in which start-up and memory are measured; the first runs the whole clip, and fills
    caches. 0: none.
    """
    asked = {**options, "model": model.name, "weights": model.weights, "device": str(device)}
    chosen = parse(ProcessOptions, {**asked, "overwrite": True})
    with tempfile.TemporaryDirectory(prefix="streamdeblur-bench-") as name, with_clip(clip, size, frames, tell) as path:
        planes, count = _held(path)
        height, width = planes[0].spec.height, planes[0].spec.width
        engine, _ = Builder(model, str(device)).exactly(chosen.engine, chosen.precision)
        at_once = share(engine)
        planner = Restorer(engine=engine, tiling=chosen.tiling, memory=chosen.memory_limit)
        planner.share()
        plan = planner.plan(height, width)
        restorer = Restorer(engine=engine, tiling=plan)
        restorer.share()
        pictures = [planes_to_rgb(f.planes[: f.spec.color.color_planes], f.spec.color, device) for f in planes]
        summaries: list[ProcessSummary] = []
        out = Path(name) / "out.mp4"

        def alone() -> None:
            list(callers(at_once).map(restorer, itertools.islice(itertools.cycle(pictures), count)))

        def whole() -> None:
            summaries.append(process_video(path, out, options=chosen))

        tell(f"{model.name}: {count} frames of {width}x{height} through network and job in turns")
        times = alternate({"network": alone, "job": whole}, device, rounds)
        done = summaries[1:]
        steady = statistics.median((s.frames - 1) / max(s.seconds - s.first_frame_seconds, 1e-9) for s in done)
        startup, peak = _children(path, Path(name), asked, starts, tell) if starts else (None, None)
        known = facts(engine)
        fps = count / times["network"].median
        return JobRow(
            model.name,
            model.weights or SHIPPED,
            clip.name if clip is not None else "rendered",
            (width, height),
            count,
            known.name,
            known.precision,
            tiling_words(plan),
            done[-1].encoder,
            times["network"],
            times["job"],
            faster(times["network"], times["job"]),
            _over(times["network"].cpu, times["job"].cpu),
            steady,
            steady / fps,
            statistics.median(s.first_frame_seconds for s in done),
            startup,
            peak,
        )


def _over(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def _held(path: Path) -> tuple[list[Frame], int]:
    """The first frames, and how many there are."""
    held: list[Frame] = []
    count = 0
    with VideoReader(path, copy_streams=False) as reader:
        for frame in reader:
            count += 1
            if len(held) < _HELD:
                held.append(frame.plain())
    if not held:
        raise InputError(f"{path} has no frame", "give a clip with a picture")
    return held, count


def _children(
    path: Path, folder: Path, asked: dict[str, Any], starts: int, tell: Callable[[str], None]
) -> tuple[Timing | None, int | None]:
    given = {k: v for k, v in asked.items() if v is not None}
    try:
        tell("start-up and memory of the job, in processes of their own")
        arguments: list[Any] = [str(path), str(folder / "child.mp4"), given]
        told = [in_child("process", arguments, module="job_child")]
        arguments[2] = {**given, "duration": 0.01}  # a frame or two: these are for their start
        told += [in_child("process", arguments, module="job_child") for _ in range(1, starts)]
    except StreamdeblurError as e:
        tell(f"no start-up figure: {e}")
        return None, None
    later = [t["startup_s"] for t in told[1:]]
    return spread(later) if later else None, max(t["peak_bytes"] for t in told)


def show_jobs(rows: list[JobRow]) -> str:
    heads = (
        "model", "clip", "frames", "how", "network alone", "whole job", "network", "job", "job, Mpx/s", "job / network",
        "by CPU time",
        "after the first", "first frame", "start-up", "peak memory",
    )  # fmt: skip
    cells = [
        (
            labelled(r.model, r.weights),
            f"{r.clip} {r.size[0]}x{r.size[1]}",
            str(r.frames),
            f"{r.engine} {r.precision}, {r.tiling}, {r.encoder}",
            str(r.network),
            str(r.job),
            f"{r.network_fps:.3g} fps",
            f"{r.job_fps:.3g} fps",
            f"{r.job_fps * r.size[0] * r.size[1] / 1e6:.3g}",
            f"{r.share.median:.0%} ({r.share.low:.0%}–{r.share.high:.0%})",
            number(r.cpu_share, "{:.0%}"),
            f"{r.steady_share:.0%}",
            seconds(r.first_frame_s),
            number(r.startup_s.median if r.startup_s else None, "{:.2f} s"),
            megabytes(r.peak_bytes),
        )
        for r in rows
    ]
    return f"times for all frames of the clip\n{table(heads, cells)}"


@dataclass(frozen=True, slots=True)
class PoolRow:
    """The same job in this process (workers 0) or on Ray actors; same: whether the decoded result is that of 0."""

    workers: int
    job: Timing
    first_frame_s: float
    steady_fps: Timing
    same: bool

    @property
    def name(self) -> str:
        return f"Ray, {self.workers} worker{'s' if self.workers > 1 else ''}" if self.workers else "in-process"

    def as_dict(self) -> dict[str, Any]:
        return dict(plain({n: getattr(self, n) for n in self.__slots__}))


def pools(
    model: Model,
    size: tuple[int, int],
    options: dict[str, Any],
    device: torch.device,
    rounds: int,
    *,
    frames: int = 30,
    workers: tuple[int, ...] = (1, 2),
    clip: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[PoolRow]:
    """The same job in this process and on Ray, which every job starts and ends as a user's would.

    steady_fps: the rate once the first frame is written.
    """
    asked = {**options, "model": model.name, "weights": model.weights, "device": str(device), "lossless": True}
    rows = []
    with tempfile.TemporaryDirectory(prefix="streamdeblur-bench-") as name, with_clip(clip, size, frames, tell) as path:
        ways: dict[str, Callable[[], object]] = {}
        summaries: dict[int, list[ProcessSummary]] = {}
        for count in (0, *workers):
            more = {"workers": count, "ray": "local"} if count else {}
            chosen = parse(ProcessOptions, {**asked, **more, "overwrite": True})
            summaries[count] = []
            ways[str(count)] = _job(path, Path(name) / f"{count}.mp4", chosen, summaries[count])
        tell(f"{model.name}: in-process and Ray in turns")
        times = alternate(ways, device, rounds)
        digests = {count: _digest(Path(s[-1].output)) for count, s in summaries.items()}
        for count, found in summaries.items():
            steady = [(s.frames - 1) / max(s.seconds - s.first_frame_seconds, 1e-9) for s in found[1:]]
            first = statistics.median(s.first_frame_seconds for s in found[1:])
            rows.append(PoolRow(count, times[str(count)], first, spread(steady), digests[count] == digests[0]))
    return rows


def _job(path: Path, out: Path, options: ProcessOptions, summaries: list[ProcessSummary]) -> Callable[[], None]:
    return lambda: summaries.append(process_video(path, out, options=options))


def _planes(path: Path) -> Iterator[bytes]:
    with VideoReader(path, copy_streams=False) as video:
        for frame in video:
            yield f"{frame.index} {frame.time}".encode()
            yield from (np.ascontiguousarray(plane).tobytes() for plane in frame.planes)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for data in _planes(path):
        digest.update(data)
    return digest.hexdigest()


def show_pools(rows: list[PoolRow]) -> str:
    heads = ("pool", "whole job", "first frame", "then", "decoded result")
    cells = [
        (
            r.name,
            str(r.job),
            seconds(r.first_frame_s),
            f"{r.steady_fps.median:.3g} fps ({r.steady_fps.low:.3g}–{r.steady_fps.high:.3g})",
            "identical" if r.same else "DIFFERS",
        )
        for r in rows
    ]
    return table(heads, cells)
