"""What the batch driver costs, and how it scales: python benchmarks/batch.py clips|scaling [OPTIONS]

clips: very many short clips in one job: what the driver adds to each, its memory and the object store on the way,
resume of the finished job. scaling: 1, 2, 4, 8 workers on simulated nodes with an engine that sleeps, so that only Ray
and the driver can hold it up; --plot draws it as SVG. Prints JSON: machine, settings, figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
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


def write_clip(path: Path, frames: int, size: tuple[int, int] = (96, 64)) -> None:
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


def machine() -> dict[str, Any]:
    with open("/proc/cpuinfo") as f:
        names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    load = os.getloadavg()[0]
    return {
        "cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "load_before": round(load, 1),
        "python": platform.python_version(), "ray": ray.__version__,
    }  # fmt: skip


def clips(count: int, frames: int, workers: int, folder: Path) -> dict[str, Any]:
    source = folder / "in"
    source.mkdir()
    write_clip(source / "00000.mp4", frames)
    for i in range(1, count):
        shutil.copyfile(source / "00000.mp4", source / f"{i:05}.mp4")
    start(workers)
    me = psutil.Process()
    seen: list[tuple[float, int, float, float]] = []

    def look(s: Snapshot) -> None:
        seen.append((time.monotonic(), s.files["done"], me.memory_info().rss / 2**20, store_used()))

    options = parse(BatchOptions, {"model": "identity", "preset": "ultrafast", "workers": workers, "verify": False})
    cpu, began = time.process_time(), time.monotonic()
    summary = run_batch([str(source)], folder / "out", options=options, progress=look)
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    ray.shutdown()
    began = time.monotonic()
    again = run_batch([str(source)], folder / "out", options=options)
    resume = time.monotonic() - began
    marks = [next((m for m in seen if m[1] >= count * q), seen[-1]) for q in (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)]
    state = folder / "out" / ".streamdeblur"
    busy = sum(r["worker_seconds"] for r in summary.rows) - summary.transit

    def each(seconds: float) -> float:
        return round(1000 * seconds / count, 2)

    return {
        "clips": count,
        "frames_a_clip": frames,
        "workers": workers,
        "done": summary.files["done"],
        "seconds": round(wall, 1),
        "driver_cpu_ms_a_clip": each(cpu),
        "actor_idle_ms_a_clip": each(summary.idle),
        "transit_ms_a_clip": each(summary.transit),
        "scheduling_ms_a_clip": each(summary.idle + summary.transit),
        "worker_ms_a_clip": each(busy),
        "files_done_driver_MiB_store_MiB": [[m[1], round(m[2], 1), round(m[3], 2)] for m in marks],
        "most_in_store_MiB": round(max(m[3] for m in seen), 2),
        "manifest_bytes_a_clip": round((state / "manifest.jsonl").stat().st_size / count),
        "report_json_bytes_a_clip": round((folder / "out" / "report.json").stat().st_size / count),
        "resume_seconds": round(resume, 2),
        "resumed": again.resumed,
    }


def sleeping(seconds: float, gate: str) -> Any:
    """Builds the identity restorer, late by ``seconds`` a picture once the gate is there."""

    def build(options: ProcessOptions) -> Restorer:
        import os
        import time as clock

        restorer = Restorer("identity")
        engine = restorer.engine
        residual = engine.residual

        def late(image: Any) -> Any:
            while not os.path.exists(gate):
                clock.sleep(0.01)
            clock.sleep(seconds)
            return residual(image)

        engine.residual = late  # type: ignore[method-assign]
        return restorer

    return build


def scaling(seconds: float, files: int, frames: int, most: int, folder: Path) -> list[dict[str, Any]]:
    """``files`` for each worker; timed from when every worker has one until the last file is done."""
    rows = []
    for workers in (n for n in (1, 2, 4, 8, 16) if n <= most):
        source = folder / f"in{workers}"
        source.mkdir()
        write_clip(source / "000.mp4", frames)
        for i in range(1, files * workers):
            shutil.copyfile(source / "000.mp4", source / f"{i:03}.mp4")
        rows.append(_scale(seconds, workers, source, folder))
    for row in rows:
        row["of_linear"] = round(row["fps"] / rows[0]["fps"] / row["workers"], 3)
        row["of_sleep_alone"] = round(row["fps"] * seconds / row["workers"], 3)
    return rows


def _scale(seconds: float, workers: int, source: Path, folder: Path) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    gate = folder / f"gate{workers}"
    marks: list[float] = []

    def look(s: Snapshot) -> None:
        if len(s.current) == workers and s.files["working"] == workers and not gate.exists():
            marks.append(time.monotonic())
            gate.touch()
        if s.files["done"] == s.total:
            marks.append(time.monotonic())

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
        build = sleeping(seconds, str(gate))
        summary = run_batch([str(source)], folder / f"out{workers}", options=options, progress=look, build=build)
    finally:
        ray.shutdown()
        cluster.shutdown()
    span = marks[-1] - marks[0]
    return {
        "workers": workers, "frames": summary.frames, "seconds": round(span, 2), "fps": round(summary.frames / span, 3),
        "scheduling_ms_a_file": round(1000 * (summary.idle + summary.transit) / len(summary.rows), 1),
    }  # fmt: skip


def plot(rows: list[dict[str, Any]]) -> str:
    """Frames a second by workers, and the line of one worker's rate times their number, as SVG."""
    width, height, left, right, top, bottom = 560, 340, 56, 20, 18, 46
    most_x, most_y = rows[-1]["workers"], rows[0]["fps"] * rows[-1]["workers"] * 1.05

    def across(workers: float) -> float:
        return left + workers / most_x * (width - left - right)

    def down(fps: float) -> float:
        return height - bottom - fps / most_y * (height - top - bottom)

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img" font-family="system-ui,sans-serif" font-size="12" fill="#3d4550">'
        ),
        f'<title>Throughput of a batch job by workers</title><rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i in range(5):
        y = down(most_y * i / 4)
        parts.append(f'<path d="M{left} {y:.1f}H{width - right}" stroke="#dfe3e8"/>')
        parts.append(text(left - 8, y + 4, f"{most_y * i / 4:.1f}", "end"))
    ends = f"M{across(0):.1f} {down(0):.1f}L{across(most_x):.1f} {down(rows[0]['fps'] * most_x):.1f}"
    parts.append(f'<path d="{ends}" stroke="#8a94a3" stroke-dasharray="5 4" fill="none"/>')
    line = " ".join(f"{across(r['workers']):.1f},{down(r['fps']):.1f}" for r in rows)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0b65c2" stroke-width="2"/>')
    for r in rows:
        x, y = across(r["workers"]), down(r["fps"])
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#0b65c2"/>')
        parts.append(text(x - 8, y - 8, f"{r['of_linear']:.0%}", "end"))
        parts.append(text(x, height - bottom + 18, str(r["workers"])))
    parts.append(text((left + width - right) / 2, height - 10, "workers, each on a simulated node (dashed: linear)"))
    parts.append(text(left, top - 4, "frames/s", "start"))
    return "".join([*parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["clips", "scaling"])
    parser.add_argument("--count", type=int, default=2000, help="clips")
    parser.add_argument("--workers", type=int, default=2, help="of clips")
    parser.add_argument("--frames", type=int, help="a clip or file; default 8 and 16")
    parser.add_argument("--sleep", type=float, default=0.5, help="seconds a frame, of scaling")
    parser.add_argument("--files", type=int, default=4, help="for each worker, of scaling")
    parser.add_argument("--most", type=int, default=8, help="workers, of scaling")
    parser.add_argument("--plot", type=Path, help="SVG to write, of scaling")
    given = parser.parse_args()
    about = {"command": " ".join(["python", *sys.argv]), "machine": machine()}
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "clips":
            found: Any = clips(given.count, given.frames or 8, given.workers, Path(folder))
        else:
            found = scaling(given.sleep, given.files, given.frames or 16, given.most, Path(folder))
            if given.plot is not None:
                given.plot.write_text(plot(found), encoding="utf-8")
    print(json.dumps({**about, "figures": found}, indent=1))


if __name__ == "__main__":
    main()
