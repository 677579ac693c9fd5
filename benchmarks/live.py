"""Live restoration measured: latency, rate, memory, and the time from a source's return to the next restored frame.

    python benchmarks/live.py CLIP [--model NAME] [--seconds N] [--cameras N] [--returns N] [-o FILE.json]

A relay (``tests/rtsp_relay.py``) on loopback is fed with the clip in real time by a process of its own; the job reads
it by RTSP and publishes restored RTSP, HLS and files. Everything shares this machine's processors. With several cameras
the last one is dead. Prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import psutil

from streamdeblur.config import parse
from streamdeblur.frames import Frame
from streamdeblur.jobs.live import FrameMeta, LiveJob, LiveOptions
from streamdeblur.video.live.link import Link
from tests.live_feed import Feed
from tests.rtsp_relay import Relay, free_port


def memory(pid: int) -> float:
    """Proportional MB of a process and its children."""
    total = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            total += process.memory_full_info().pss / 1e6
        except psutil.Error:
            pass
    return round(total, 1)


class Watch:
    """Everything that leaves, by source."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.restored: list[float] = []
        self.times: dict[str, list[float]] = {}

    def __call__(self, source: str, before: Frame, after: Frame, meta: FrameMeta) -> None:
        now = time.monotonic()
        self.times.setdefault(source, []).append(now)
        self.latencies.append(meta.latency)
        if meta.status == "restored":
            self.restored.append(now)


def percentile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else None


def run(a: argparse.Namespace) -> dict[str, Any]:
    with av.open(a.clip) as c:
        size = (c.streams.video[0].width, c.streams.video[0].height)
    result: dict[str, Any] = {"clip": Path(a.clip).name, "size": size, "rate": a.rate, "cameras": a.cameras}
    with (
        tempfile.TemporaryDirectory() as folder,
        Relay() as relay,
        Feed(relay.url("camera"), size, a.rate, file=a.clip),
    ):
        urls = [{"url": relay.url("camera"), "name": f"c{n}"} for n in range(max(1, a.cameras - (a.cameras > 1)))]
        if a.cameras > 1:
            urls.append({"url": f"rtsp://127.0.0.1:{free_port()}/dead", "name": "dead"})
        outputs = [relay.url("out-{name}"), f"hls:{folder}/{{name}}", f"{folder}/{{name}}.mp4"] if a.outputs else []
        options = {"model": a.model, "latency_ms": a.latency, "to": outputs, "sources": urls, "segment_seconds": 30}
        options |= {"reuse": a.reuse, "skip_sharp": a.reuse, "engine": a.engine}
        begun = time.monotonic()
        job = LiveJob(options=parse(LiveOptions, options))
        result["seconds_to_build"] = round(time.monotonic() - begun, 2)
        watch = Watch()
        job.add_tap(watch, depth=64)
        thread = threading.Thread(target=job.run)
        began = time.monotonic()
        thread.start()
        samples = []
        steps: dict[str, int] = {}
        end = time.monotonic() + a.seconds
        while time.monotonic() < end:
            time.sleep(1)
            s = job.status()
            steps[s.sources[0].step] = steps.get(s.sources[0].step, 0) + 1
            samples.append(memory(os.getpid()))
        status = job.status()
        result |= {
            "model": status.model,
            "steps": status.steps,
            "seconds_on_step": steps,
            "first_frame_after": round(min(t[0] for t in watch.times.values()) - began, 2),
            "first_restored_after": round(watch.restored[0] - began, 2) if watch.restored else None,
            "latency_p50_ms": percentile(watch.latencies, 0.5),
            "latency_p95_ms": percentile(watch.latencies, 0.95),
            "latency_max_ms": percentile(watch.latencies, 1.0),
            "memory_mb_with_processes": {"after_10_s": samples[min(9, len(samples) - 1)], "at_the_end": samples[-1]},
            "sources": [
                {k: getattr(s, k) for k in ("name", "state", "fps_in", "fps_out", "frames", "restored", "bypassed")}
                | {k: getattr(s, k) for k in ("dropped", "late", "step", "costs_ms", "reused")}
                for s in status.sources
            ],
        }
        returns = []
        for _ in range(a.returns):
            relay.kill()
            time.sleep(a.away)
            back = time.monotonic()
            relay.start()
            while not watch.times or max(t[-1] for t in watch.times.values()) < back:
                time.sleep(0.01)
            returns.append({"next_frame": round(max(t[-1] for t in watch.times.values()) - back, 2)})
            limit = time.monotonic() + 20
            while (not watch.restored or watch.restored[-1] < back) and time.monotonic() < limit:
                time.sleep(0.01)
            if watch.restored and watch.restored[-1] >= back:
                returns[-1]["next_restored"] = round(next(t for t in watch.restored if t >= back) - back, 2)
        if returns:
            result["seconds_after_return"] = returns
        job.stop()
        thread.join()
    return result


def transport(width: int = 1920, height: int = 1080, frames: int = 200) -> dict[str, float]:
    """Frames a second over the link between two processes, and through shared memory with the same messages."""
    import multiprocessing
    import socket
    from multiprocessing import shared_memory

    size = width * height * 3 // 2
    planes = [memoryview(bytes(size))]
    context = multiprocessing.get_context("fork")

    def by_link(sock: socket.socket) -> None:
        link = Link(sock)
        for n in range(frames):
            link.send(n, planes)

    def by_memory(sock: socket.socket, name: str) -> None:
        link = Link(sock)
        memory_ = shared_memory.SharedMemory(name)
        for n in range(frames):
            slot = n % 4
            assert memory_.buf is not None
            memory_.buf[slot * size : (slot + 1) * size] = planes[0]
            link.send(slot)
            if n >= 3:
                link.receive()
        memory_.close()

    results = {}
    here, there = socket.socketpair()
    child = context.Process(target=by_link, args=(there,))
    began = time.perf_counter()
    child.start()
    link = Link(here)
    for _ in range(frames):
        link.receive()
    results["socket_fps"] = round(frames / (time.perf_counter() - began), 1)
    child.join()
    block = shared_memory.SharedMemory(create=True, size=4 * size)
    here, there = socket.socketpair()
    child = context.Process(target=by_memory, args=(there, block.name))
    began = time.perf_counter()
    child.start()
    link = Link(here)
    for _ in range(frames):
        slot, _ = link.receive()
        assert block.buf is not None
        bytearray(block.buf[slot * size : (slot + 1) * size])  # the frame outlives its slot
        link.send(slot)
    results["shared_memory_fps"] = round(frames / (time.perf_counter() - began), 1)
    child.join()
    block.close()
    block.unlink()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip")
    parser.add_argument("--model", default=None)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rate", type=int, default=24)
    parser.add_argument("--latency", type=float, default=500)
    parser.add_argument("--cameras", type=int, default=1, help="the last of several is dead")
    parser.add_argument("--returns", type=int, default=0, help="times that the server is killed and comes back")
    parser.add_argument("--away", type=float, default=3, help="seconds for which it is gone")
    parser.add_argument("--no-reuse", dest="reuse", action="store_false")
    parser.add_argument("--no-outputs", dest="outputs", action="store_false")
    parser.add_argument("--transport", action="store_true", help="measure the link between processes as well")
    parser.add_argument("-o", "--output")
    a = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(message)s")
    result = run(a)
    if a.returns:
        times = [r["next_restored"] for r in result["seconds_after_return"] if "next_restored" in r]
        result["median_seconds_to_next_restored"] = statistics.median(times) if times else None
    if a.transport:
        result["transport_1080p"] = transport()
    text = json.dumps(result, indent=2, default=str)
    print(text)
    if a.output:
        Path(a.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
