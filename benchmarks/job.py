"""The whole job on a clip of our own: against the network alone, and in this process against Ray."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from measure import alternate, table

from streamdeblur import open_video, process_video
from streamdeblur.jobs.process import ProcessSummary
from streamdeblur.jobs.scene import Scene
from streamdeblur.restore import Restorer
from streamdeblur.restore.engine import resolve_device
from streamdeblur.video.simple import write_clip

_RATE = Fraction(30)


def weights_of(model: str) -> str | None:
    """Random weights for a network; ``identity`` takes none."""
    return None if model == "identity" else "random:0"


def make_clip(folder: Path, size: tuple[int, int], frames: int) -> Path:
    """A blurry clip with sound, H.264 in MP4."""
    scene = Scene(size)
    pictures = (scene.expose(i / float(_RATE), 0.7 / float(_RATE), 3).blurry for i in range(frames))
    path = folder / "clip.mp4"
    sound = (scene.sound(float(frames / _RATE)), 48000)
    write_clip(path, pictures, _RATE, audio=sound, options={"crf": "16", "preset": "veryfast"})
    return path


def job(cases: list[tuple[str, int]], size: tuple[int, int], device_name: str, rounds: int) -> dict[str, Any]:
    """Seconds of ``process_video`` on a clip, and of the corrections alone for the same frames held in memory.

    cases: (model, frames of the clip).
    """
    device = resolve_device(device_name)
    rows = []
    with tempfile.TemporaryDirectory(prefix="streamdeblur-bench-") as name:
        for model, frames in cases:
            folder = Path(name)
            clip = make_clip(folder, size, frames)
            with open_video(clip) as video:
                held = [frame.plain() for frame in video]
            restorer = Restorer(model, weights=weights_of(model), device=device_name)
            summaries: list[ProcessSummary] = []

            def alone(restorer: Restorer = restorer, held: list[Any] = held) -> None:
                for frame in held:
                    restorer.correction(frame)

            whole = _job(clip, folder / "out.mp4", summaries, model=model, device=device_name)
            times = alternate({"alone": alone, "job": whole}, device, rounds)
            starts = sorted(s.first_frame_seconds for s in summaries[1:])
            last = summaries[-1]
            rows.append(
                {
                    "model": model,
                    "frames": len(held),
                    "written": last.frames,
                    "alone": times["alone"],
                    "job": times["job"],
                    "alone_fps": len(held) / times["alone"].median,
                    "job_fps": last.frames / times["job"].median,
                    "first_frame_s": starts[len(starts) // 2],
                    "share": times["alone"].median / times["job"].median,
                    "precision": last.precision,
                    "tiling": last.tiling,
                    "encoder": last.encoder,
                }
            )
    return {"size": f"{size[0]}x{size[1]}", "rows": rows}


def _job(clip: Path, out: Path, summaries: list[ProcessSummary], *, model: str, **options: Any) -> Callable[[], None]:
    def run() -> None:
        weights = weights_of(model)
        summaries.append(process_video(clip, out, model=model, weights=weights, overwrite=True, **options))

    return run


def show_job(result: dict[str, Any]) -> str:
    heads = ("model", "frames", "corrections alone", "whole job", "alone", "job", "alone / job", "first frame", "how")
    return f"clip of {result['size']}, times for all its frames\n" + table(
        heads,
        [
            (
                r["model"],
                str(r["frames"]),
                str(r["alone"]),
                str(r["job"]),
                f"{r['alone_fps']:.1f} fps",
                f"{r['job_fps']:.1f} fps",
                f"{r['share']:.0%}",
                f"{r['first_frame_s']:.2f} s",
                f"{r['precision']}, {r['tiling']}, {r['encoder']}",
            )
            for r in result["rows"]
        ],
    )


def pools(
    model: str, frames: int, size: tuple[int, int], workers: list[int], device_name: str, rounds: int
) -> dict[str, Any]:
    """The same job in this process and on Ray actors; Ray is started and ended by every job, as a user's would be.

    Beside the whole time, the rate once the first frame is written; and whether the decoded results are the same.
    """
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        raise RuntimeError("a Ray session is open in this process")
    device = resolve_device(device_name)
    with tempfile.TemporaryDirectory(prefix="streamdeblur-bench-") as name:
        folder = Path(name)
        clip = make_clip(folder, size, frames)
        ways: dict[str, Callable[[], None]] = {}
        summaries: dict[str, list[ProcessSummary]] = {}
        for count in (0, *workers):
            label = "in-process" if not count else f"Ray, {count} worker{'s' if count > 1 else ''}"
            summaries[label] = []
            options: dict[str, Any] = {"model": model, "device": device_name, "lossless": True}
            if count:
                options |= {"workers": count, "ray": "local"}
            ways[label] = _job(clip, folder / f"{count}.mp4", summaries[label], **options)
        times = alternate(ways, device, rounds)
        digests = {label: _digest(Path(s[-1].output)) for label, s in summaries.items()}
    rows = []
    for label, found in summaries.items():
        steady = [(s.frames - 1) / (s.seconds - s.first_frame_seconds) for s in found[1:]]
        rows.append(
            {
                "pool": label,
                "job": times[label],
                "first_frame_s": float(np.median([s.first_frame_seconds for s in found[1:]])),
                "steady_fps": float(np.median(steady)),
                "steady_low": min(steady),
                "steady_high": max(steady),
                "same_as_in_process": digests[label] == digests["in-process"],
            }
        )
    return {"model": model, "frames": frames, "size": f"{size[0]}x{size[1]}", "rows": rows}


def _planes(path: Path) -> Iterator[bytes]:
    with open_video(path) as video:
        for frame in video:
            yield f"{frame.index} {frame.time}".encode()
            yield from (np.ascontiguousarray(plane).tobytes() for plane in frame.planes)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for data in _planes(path):
        digest.update(data)
    return digest.hexdigest()


def show_pools(result: dict[str, Any]) -> str:
    heads = ("pool", "whole job", "first frame", "then", "decoded result")
    return f"{result['model']}, {result['frames']} frames of {result['size']}\n" + table(
        heads,
        [
            (
                r["pool"],
                str(r["job"]),
                f"{r['first_frame_s']:.2f} s",
                f"{r['steady_fps']:.1f} fps ({r['steady_low']:.1f}–{r['steady_high']:.1f})",
                "identical" if r["same_as_in_process"] else "DIFFERS",
            )
            for r in result["rows"]
        ],
    )
