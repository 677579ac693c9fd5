"""What each stage of the main job takes by itself: decode, planes to RGB, network, RGB to planes, compose, encode.

One stage at a time over the same frames, held in memory, so that stages don't disturb each other; their sum is what a
program takes that does everything in turn, their largest is what one takes at best that does all at once.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from streamdeblur.color import planes_to_rgb, rgb_correction_to_planes
from streamdeblur.errors import InputError
from streamdeblur.evaluation.benchmark.clip import with_clip
from streamdeblur.evaluation.benchmark.results import table
from streamdeblur.evaluation.benchmark.timing import Timing, plain, seconds, spread, synchronise
from streamdeblur.evaluation.benchmark.ways import SHIPPED, Builder, Model, Way, tiling_words
from streamdeblur.frames import apply_correction
from streamdeblur.restore import Restorer
from streamdeblur.restore.engines import facts
from streamdeblur.video.encoders import EncoderRequest
from streamdeblur.video.reader import DecodedFrame, VideoReader
from streamdeblur.video.writer import VideoWriter

STAGES = ("decode", "planes to RGB", "network", "RGB to planes", "compose", "encode")


@dataclass(slots=True)
class StagesResult:
    """Seconds a frame of every stage, for one model and clip."""

    model: str
    weights: str
    clip: str
    size: tuple[int, int]
    frames: int
    engine: str
    precision: str
    tiling: str
    encoder: str
    stages: dict[str, Timing] = field(default_factory=dict)

    @property
    def in_turn(self) -> float:
        """Seconds a frame where stages take turns."""
        return sum(t.median for t in self.stages.values())

    @property
    def longest(self) -> str:
        """The stage that limits a job whose stages run at once."""
        return max(self.stages, key=lambda name: self.stages[name].median)

    def as_dict(self) -> dict[str, Any]:
        values = {n: getattr(self, n) for n in self.__slots__}
        values["size"] = f"{self.size[0]}x{self.size[1]}"
        return dict(plain({**values, "in_turn_s": self.in_turn, "longest": self.longest}))


def stages(
    model: Model,
    size: tuple[int, int],
    way: Way,
    device: torch.device,
    rounds: int,
    *,
    frames: int = 8,
    clip: Path | None = None,
    limit: int | None = None,
    preset: str = "medium",
    tell: Callable[[str], None] = lambda _: None,
) -> StagesResult:
    """Measure. clip: a video of the caller's instead of a rendered one; then ``size`` is its own.

    limit: bytes that the tiling is planned for, None for what is free. preset: of the encoder, x264 in MP4.
    Raises what opening the clip and building the network raise.
    """
    with tempfile.TemporaryDirectory(prefix="streamdeblur-bench-") as name, with_clip(clip, size, frames, tell) as path:
        held = _decoded(path, frames)
        height, width = held[0].spec.height, held[0].spec.width
        planner = Builder(model, str(device), limit).planner(way)
        built, tiling = planner.engine, planner.plan(height, width)
        if way.batch is not None:
            tiling = replace(tiling, batch=way.batch)
        restorer = Restorer(engine=built, tiling=tiling)
        known = facts(built)
        result = StagesResult(
            model.name,
            model.weights or SHIPPED,
            clip.name if clip is not None else "rendered",
            (width, height),
            len(held),
            known.name,
            known.precision,
            tiling_words(tiling) + (f" x{tiling.batch}" if tiling.batch > 1 else ""),
            f"x264 {preset}",
        )
        taken: dict[str, list[float]] = {s: [] for s in STAGES}
        for n in range(rounds + 1):
            tell(f"stages of {model.name}, round {n} of {rounds}")
            one = _round(path, held, restorer, Path(name) / f"{n}.mp4", preset)
            if n:  # the first warms up
                for stage, value in one.items():
                    taken[stage].append(value / len(held))
        result.stages = {s: spread(v) for s, v in taken.items()}
    return result


def _decoded(path: Path, frames: int) -> list[DecodedFrame]:
    held = []
    with VideoReader(path, copy_streams=False) as reader:
        for frame in reader:
            held.append(frame)
            if len(held) == frames:
                break
    if not held:
        raise InputError(f"{path} has no frame", "give a clip with a picture")
    return held


class _Clock:
    """Seconds by name, the device being idle before and done after each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.taken: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        synchronise(self._device)
        begun = time.perf_counter()
        yield
        synchronise(self._device)
        self.taken[name] = self.taken.get(name, 0.0) + time.perf_counter() - begun


def _round(path: Path, held: list[DecodedFrame], restorer: Restorer, out: Path, preset: str) -> dict[str, float]:
    """Seconds of every stage for all frames."""
    device = restorer.engine.device
    stage = _Clock(device)
    with stage("decode"):
        _decoded(path, len(held))
    finished = []
    for frame in held:
        color = frame.spec.color
        planes = frame.planes[: color.color_planes]
        with stage("planes to RGB"):
            rgb = planes_to_rgb(planes, color, device)
        with stage("network"):
            restored = restorer(rgb)
        delta = restored - rgb
        with stage("RGB to planes"):
            given = rgb_correction_to_planes(delta, color, [p.shape for p in planes])
        with stage("compose"):
            finished.append((apply_correction(frame, given), frame))
    with VideoReader(path, copy_streams=False) as reader:
        writer = VideoWriter(out, reader, EncoderRequest("x264", None, preset, False, threads=0))
        try:
            with stage("encode"):
                for corrected, decoded in finished:
                    writer.write(corrected, decoded)
                writer.finish()
        finally:
            writer.abort()
            out.unlink(missing_ok=True)
    return stage.taken


def show_stages(results: list[StagesResult]) -> str:
    parts = []
    for r in results:
        total = r.in_turn
        rows = [(name, str(t), f"{1 / t.median:.4g}", f"{t.median / total:.0%}") for name, t in r.stages.items()]
        rows.append(("all in turn", seconds(total), f"{1 / total:.4g}", "100%"))
        parts.append(
            f"{r.model} ({r.weights}), {r.clip} clip of {r.size[0]}x{r.size[1]}, {r.frames} frames: {r.engine} "
            f"{r.precision}, {r.tiling}, {r.encoder}\n"
            f"{table(('stage', 'a frame', 'frames/s', 'share'), rows)}\n"
            f"at once, at best: {1 / r.stages[r.longest].median:.4g} frames/s, limited by {r.longest}"
        )
    return "\n\n".join(parts)
