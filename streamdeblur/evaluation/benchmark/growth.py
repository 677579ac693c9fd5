"""What a job costs as it grows: longer clips, and more workers where the work is not bound by this machine's cores."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamdeblur.config import ProcessOptions, parse
from streamdeblur.evaluation.benchmark.clip import RATE
from streamdeblur.evaluation.benchmark.network import in_child
from streamdeblur.evaluation.benchmark.results import megabytes, table
from streamdeblur.evaluation.benchmark.timing import plain
from streamdeblur.frames import Frame, correction_dtype
from streamdeblur.jobs.process import Job, Progress
from streamdeblur.jobs.workforce import Workforce
from streamdeblur.runtime.ray_pool import RayPool
from streamdeblur.video.simple import write_clip

#: Lengths of the clips, and their size (width, height): so small that all but the network is what costs.
LENGTHS = (100, 1000, 10_000)
SIZE = (64, 48)
#: Frames of the clip that the sleeping workers get; rates are of the second half, when all of them are there.
SLEPT_FRAMES = 240


@dataclass(frozen=True, slots=True)
class LengthRow:
    """A job of so many frames in a process of its own.

    each_s: seconds a frame once the first is written; cpu_s: the same of processors.
    """

    frames: int
    each_s: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class WorkersRow:
    """A job whose network sleeps. fps: over the second half of the frames."""

    workers: int
    fps: float
    times: float


@dataclass(slots=True)
class GrowthResult:
    """sleep_s: what a worker sleeps for a frame."""

    lengths: list[LengthRow] = field(default_factory=list)
    workers: list[WorkersRow] = field(default_factory=list)
    sleep_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        rows = [{n: getattr(r, n) for n in r.__slots__} for r in self.lengths]
        return dict(
            plain(
                {
                    "size": f"{SIZE[0]}x{SIZE[1]}",
                    "lengths": rows,
                    "sleep_s": self.sleep_s,
                    "workers": [{n: getattr(r, n) for n in r.__slots__} for r in self.workers],
                }
            )
        )


@dataclass(frozen=True, slots=True)
class Sleeper:
    """Stands in for an engine on a device of its own: takes its time, uses no core, corrects nothing. Pickles."""

    seconds: float

    def __call__(self) -> Callable[..., tuple[Any, ...]]:
        return self.work

    def work(self, frame: Frame, regions: object = None) -> tuple[Any, ...]:
        """Corrections of zero, late."""
        time.sleep(self.seconds)
        color = frame.spec.color
        kind = correction_dtype(color.depth)
        return tuple(np.zeros(p.shape, kind) for p in frame.planes[: color.color_planes])


def growth(
    *,
    lengths: Sequence[int] = LENGTHS,
    workers: Sequence[int] = (1, 2),
    frames: int = SLEPT_FRAMES,
    sleep: float = 0.05,
    tell: Callable[[str], None] = lambda _: None,
) -> GrowthResult:
    """Measure. lengths: frames of clips for the identity model. workers: Ray actors that sleep ``sleep`` s a frame."""
    result = GrowthResult(sleep_s=sleep)
    with tempfile.TemporaryDirectory(prefix="streamdeblur-bench-") as name:
        for count in lengths:
            tell(f"a job of {count} frames")
            clip = Path(name) / "clip.mp4"
            _write(clip, count)
            given = {"model": "identity", "device": "cpu", "preset": "ultrafast"}
            told = in_child("process", [str(clip), str(Path(name) / "out.mp4"), given], module="job_child")
            rest = max(1, told["frames"] - 1)
            each = (told["seconds"] - told["first_frame_seconds"]) / rest
            result.lengths.append(LengthRow(count, each, told["cpu_seconds"] / rest, told["peak_bytes"]))
        if workers:
            clip = Path(name) / "slept.mp4"
            _write(clip, frames)
        for count in workers:
            tell(f"{count} sleeping worker{'s' if count > 1 else ''}")
            fps = _slept(clip, Path(name) / "slept.out.mp4", count, sleep)
            first = result.workers[0].fps if result.workers else fps
            result.workers.append(WorkersRow(count, fps, fps / first))
    return result


def _write(path: Path, count: int) -> None:
    """Frames that differ, cheaply."""
    base = (np.indices((SIZE[1], SIZE[0])).sum(0) * 2).astype(np.uint8)
    pictures = (np.roll(base, i, 1)[..., None].repeat(3, 2) for i in itertools.islice(itertools.count(), count))
    write_clip(path, pictures, RATE, options={"crf": "20", "preset": "ultrafast"})


class _Sleepers(Workforce):
    """A workforce that sleeps on Ray actors, one for each device that there might be."""

    def __init__(self, options: ProcessOptions, size: tuple[int, int], workers: int, seconds: float) -> None:
        super().__init__(options, size)
        self.pool.close()
        self.workers = workers
        # Actors of no core: they sleep, and the machine may have fewer cores than they are.
        self.pool = RayPool(Sleeper(seconds), workers=workers, num_cpus=0.1, in_flight_per_worker=2)


class _SleepingJob(Job):
    def __init__(self, source: str, target: Path, options: ProcessOptions, workers: int, seconds: float) -> None:
        self.times: list[float] = []
        self._how = workers, seconds
        super().__init__(source, target, options, self._note)

    def _note(self, progress: Progress) -> None:
        self.times.append(time.perf_counter())

    def workforce(self, size: tuple[int, int], *more: Any, **named: Any) -> Workforce:
        return _Sleepers(self.options, size, *self._how)


def _slept(clip: Path, out: Path, workers: int, seconds: float) -> float:
    given = {"model": "identity", "device": "cpu", "preset": "ultrafast", "overwrite": True}
    options = parse(ProcessOptions, given)
    job = _SleepingJob(str(clip), out, options, workers, seconds)
    job.run()
    half = len(job.times) // 2
    return (len(job.times) - 1 - half) / (job.times[-1] - job.times[half])


def show_growth(r: GrowthResult) -> str:
    first = r.lengths[0] if r.lengths else None
    rows = [
        (
            f"{x.frames:,}",
            f"{x.each_s * 1000:.3g} ms",
            f"{x.each_s / first.each_s:.2f}x" if first else "",
            f"{x.cpu_s * 1000:.3g} ms",
            megabytes(x.peak_bytes),
        )
        for x in r.lengths
    ]
    parts = []
    if rows:
        head = f"identity, clips of {SIZE[0]}x{SIZE[1]}, each in a process of its own"
        parts.append(f"{head}\n{table(('frames', 'a frame', 'of the first', 'CPU time', 'peak memory'), rows)}")
    if r.workers:
        cells = [(str(w.workers), f"{w.fps:.4g} frames/s", f"{w.times:.2f}x") for w in r.workers]
        head = f"Ray actors that sleep {r.sleep_s * 1000:.0f} ms a frame"
        parts.append(f"{head}\n{table(('workers', 'rate', 'of the first'), cells)}")
    return "\n\n".join(parts)
