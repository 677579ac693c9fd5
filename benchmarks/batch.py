"""What the batch driver costs, and how it scales: python benchmarks/batch.py clips|scaling [OPTIONS]

clips: very many short clips in one job: driver's memory and seconds a clip, the object store, resume of the finished
job. scaling: 1, 2, 4, 8 workers on simulated nodes with an engine that sleeps, so that only Ray and the driver can
hold it up. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from streamdeblur.config import ProcessOptions, parse
from streamdeblur.jobs.batch.job import run_batch
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.state import Snapshot
from streamdeblur.restore import Restorer

_ray: Any = ray


def write_clip(path: Path, frames: int, size: tuple[int, int] = (64, 48)) -> None:
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=Fraction(10), options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            picture = np.full((size[1], size[0], 3), (i * 37) % 256, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


def start(cpus: int) -> None:
    ray.init(
        address="local", num_cpus=cpus, num_gpus=0, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, object_store_memory=100 << 20,
    )  # fmt: skip


def store_used() -> float:
    """MiB in the object store."""
    there, free = (f().get("object_store_memory", 0.0) for f in (_ray.cluster_resources, _ray.available_resources))
    return float(there - free) / 2**20


def clips(count: int, workers: int, folder: Path) -> dict[str, Any]:
    source = folder / "in"
    source.mkdir()
    write_clip(source / "00000.mp4", 3)
    for i in range(1, count):
        shutil.copyfile(source / "00000.mp4", source / f"{i:05}.mp4")
    start(workers)
    me = psutil.Process()
    memory: list[tuple[int, float, float]] = []

    def look(s: Snapshot) -> None:
        memory.append((s.files["done"], me.memory_info().rss / 2**20, store_used()))

    options = parse(
        BatchOptions,
        {"model": "identity", "preset": "ultrafast", "workers": workers, "verify": False, "thumbnails": 0},
    )
    cpu, began = time.process_time(), time.monotonic()
    summary = run_batch([str(source)], folder / "out", options=options, progress=look)
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    busy = sum(r["worker_seconds"] for r in summary.rows)
    ray.shutdown()
    began = time.monotonic()
    again = run_batch([str(source)], folder / "out", options=options)
    resume = time.monotonic() - began
    marks = [next((m for m in memory if m[0] >= count * q), memory[-1]) for q in (0.1, 0.25, 0.5, 0.75, 1.0)]
    return {
        "clips": count,
        "workers": workers,
        "done": summary.files["done"],
        "seconds": round(wall, 1),
        "driver_cpu_ms_per_clip": round(1000 * cpu / count, 2),
        "idle_ms_per_clip": round(1000 * (wall * workers - busy) / count, 2),
        "driver_MiB_and_store_MiB_at_files_done": [[m[0], round(m[1]), round(m[2], 1)] for m in marks],
        "resume_seconds": round(resume, 2),
        "resumed": again.resumed,
    }


def sleeping(seconds: float) -> Any:
    """Builds the identity restorer, late by ``seconds`` a picture."""

    def build(options: ProcessOptions) -> Restorer:
        import time as clock

        restorer = Restorer("identity")
        engine = restorer.engine
        residual = engine.residual

        def late(image: Any) -> Any:
            clock.sleep(seconds)
            return residual(image)

        engine.residual = late  # type: ignore[method-assign]
        return restorer

    return build


def scaling(seconds: float, files: int, frames: int, most: int, folder: Path) -> list[dict[str, Any]]:
    from ray.cluster_utils import Cluster

    source = folder / "in"
    source.mkdir()
    for i in range(files):
        write_clip(source / f"{i:03}.mp4", frames)
    rows = []
    for workers in (n for n in (1, 2, 4, 8) if n <= most):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(workers):
                cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 << 20)
            ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            options = parse(
                BatchOptions,
                {
                    "model": "identity", "preset": "ultrafast", "workers": workers, "verify": False, "thumbnails": 0,
                    "group_seconds": 0, "segment_seconds": 0,
                },
            )  # fmt: skip
            marks: list[tuple[float, int]] = []  # while every worker is at work

            def look(s: Snapshot, marks: list[tuple[float, int]] = marks, workers: int = workers) -> None:
                if len(s.current) == workers and s.files["working"] and s.frames:
                    marks.append((time.monotonic(), s.frames))

            summary = run_batch(
                [str(source)], folder / f"out{workers}", options=options, progress=look, build=sleeping(seconds)
            )
        finally:
            ray.shutdown()
            cluster.shutdown()
        span = marks[-1][0] - marks[0][0]
        rate = (marks[-1][1] - marks[0][1]) / span
        rows.append(
            {"workers": workers, "fps": round(rate, 3), "over_seconds": round(span, 1), "frames": summary.frames}
        )
    for row in rows:
        row["of_linear"] = round(row["fps"] / rows[0]["fps"] / row["workers"], 3)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["clips", "scaling"])
    parser.add_argument("--count", type=int, default=2000, help="clips")
    parser.add_argument("--workers", type=int, default=2, help="of clips")
    parser.add_argument("--sleep", type=float, default=0.5, help="seconds a frame, of scaling")
    parser.add_argument("--files", type=int, default=64, help="of scaling")
    parser.add_argument("--frames", type=int, default=10, help="a file, of scaling")
    parser.add_argument("--most", type=int, default=8, help="workers, of scaling")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "clips":
            found: Any = clips(given.count, given.workers, Path(folder))
        else:
            found = scaling(given.sleep, given.files, given.frames, given.most, Path(folder))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
