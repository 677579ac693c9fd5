"""Live faults measured: how soon a source is restored again once it is back, and what a dead one costs its neighbours.

    python benchmarks/live_faults.py CLIP [--away 3,60] [--rounds 3] [--sources 4] [--seconds 20] [--model NAME]

A relay (``tests/rtsp_relay.py``) on loopback is fed with the clip in real time. Faults: its process is killed and
started again (its camera has to come back to it, too), stopped by SIGSTOP and continued, and its readers are cut off in
the middle of a group of pictures. The time runs from the server's return (for the cut, from the cut) to the next
restored frame that leaves. Then sources are read side by side, all alive and with one dead (refused, or accepting and
saying nothing), in turns, and the slowest of the living is compared. --soak SECONDS instead reads one source with a
stand-in that takes longer than a frame lasts, writes HLS, a file and a ledger, and tells latency, memory (proportional,
with all processes) and whether every frame is accounted for. Without --model a stand-in restores, 5 ms a frame,
so that this machine's processors are not what is measured. Prints Markdown; -o writes JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np
import psutil

from streamdeblur.config import parse
from streamdeblur.frames import Frame
from streamdeblur.jobs.live import Engine, FrameMeta, LiveJob, LiveOptions
from streamdeblur.runtime.ledger import FrameRecord, read_ledger
from tests.live_feed import Feed
from tests.rtsp_relay import Relay, free_port

PATIENCE = 120.0


class Device:
    """A stand-in for a device: so many seconds a frame, and a correction that is easily seen."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> Callable[[Frame], tuple[Any, ...]]:
        def work(frame: Frame) -> tuple[Any, ...]:
            time.sleep(self.seconds)
            return tuple(np.full(p.shape, 8 if n == 0 else 0, np.int16) for n, p in enumerate(frame.planes))

        return work


class Restored:
    """When restored frames left, by source."""

    def __init__(self) -> None:
        self.at: dict[str, list[float]] = {}

    def __call__(self, source: str, before: Frame, after: Frame, meta: FrameMeta) -> None:
        if meta.status == "restored":
            self.at.setdefault(source, []).append(time.monotonic())

    def after(self, source: str, moment: float) -> float:
        """Seconds from a moment to the next restored frame that leaves; waits for it."""
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            later = [at for at in self.at.get(source, [])[-500:] if at >= moment]
            if later:
                return later[0] - moment
            time.sleep(0.005)
        raise SystemExit(f"{source} was not restored within {PATIENCE:.0f} s")


@contextmanager
def running(a: argparse.Namespace, sources: list[dict[str, str]]) -> Iterator[tuple[LiveJob, Restored]]:
    options = parse(
        LiveOptions, {"sources": sources, "to": ["none"], "model": a.model, "reuse": False, "skip_sharp": False}
    )
    engine = None if a.model else Engine(Device(0.005), ("stand-in", "bypass"), model="stand-in")
    job, restored = LiveJob(options=options, engine=engine), Restored()
    job.add_tap(restored, depth=256)
    thread = threading.Thread(target=job.run)
    thread.start()
    try:
        yield job, restored
    finally:
        job.stop()
        thread.join()


def returns(a: argparse.Namespace, size: tuple[int, int]) -> list[dict[str, Any]]:
    found = []
    with ExitStack() as stack:
        relay = stack.enter_context(Relay())
        stack.enter_context(Feed(relay.url(), size, a.rate, file=a.clip))
        job, restored = stack.enter_context(running(a, [{"url": relay.url(), "name": "camera"}]))
        restored.after("camera", time.monotonic())
        plan: list[tuple[str, float]] = [(f, s) for f in ("killed", "stopped") for s in a.away] + [("cut", 0.0)]
        for fault, away in plan:
            seconds = []
            for n in range(a.rounds):
                time.sleep(2.0 + 0.31 * n)  # at another place of the group of pictures each time
                if fault == "cut":
                    seconds.append(_after_cut(relay, job, restored))
                    continue
                (relay.kill if fault == "killed" else relay.stop)()
                time.sleep(away)
                (relay.start if fault == "killed" else relay.go_on)()
                seconds.append(restored.after("camera", time.monotonic()))
            found.append({"fault": fault, "away": away, "seconds": [round(s, 2) for s in seconds]})
            print(f"{fault}, away for {away:g} s: {found[-1]['seconds']}", file=sys.stderr)
    return found


def _after_cut(relay: Relay, job: LiveJob, restored: Restored) -> float:
    """Frames that were under way still leave: the time to the first one of the next connection."""
    began = time.monotonic()
    relay.obey("cut")
    for live in (False, True):
        while (job.status().sources[0].state == "live") != live and time.monotonic() < began + PATIENCE:
            time.sleep(0.001)
    again = time.monotonic()
    return restored.after("camera", again) + again - began


def neighbours(a: argparse.Namespace, size: tuple[int, int]) -> list[dict[str, Any]]:
    found = []
    for count in range(2, a.sources + 1):
        rates: dict[str, list[float]] = {}
        for _ in range(a.rounds):
            for kind in ("all alive", "one refused", "one silent"):
                with ExitStack() as stack:
                    relay = stack.enter_context(Relay())
                    stack.enter_context(Feed(relay.url(), size, a.rate, file=a.clip))
                    sources = [{"url": relay.url(), "name": f"c{n}"} for n in range(count - 1)]
                    if kind == "all alive":
                        sources.append({"url": relay.url(), "name": "last"})
                    elif kind == "one refused":
                        sources.append({"url": f"rtsp://127.0.0.1:{free_port()}/dead", "name": "last"})
                    else:
                        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                        sources.append({"url": f"rtsp://127.0.0.1:{silent.getsockname()[1]}/dead", "name": "last"})
                    job, restored = stack.enter_context(running(a, sources))
                    for n in range(count - 1):
                        restored.after(f"c{n}", time.monotonic())
                    time.sleep(3)  # until the ladder has settled
                    begun, before = time.monotonic(), {s.name: s.frames for s in job.status().sources}
                    time.sleep(a.seconds)
                    passed = time.monotonic() - begun
                    status = job.status().sources
                    out = [(s.frames - before[s.name]) / passed for s in status if s.name != "last"]
                    done = [sum(at >= begun for at in restored.at[f"c{n}"]) / passed for n in range(count - 1)]
                    rates.setdefault(kind, []).append(min(out))
                    rates.setdefault(f"{kind}, restored", []).append(min(done))
        row = {"sources": count} | {k: round(statistics.median(v), 2) for k, v in rates.items()}
        found.append(row)
        print(row, file=sys.stderr)
    return found


def soak(a: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    latencies: list[float] = []
    memory: list[float] = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        relay = stack.enter_context(Relay())
        stack.enter_context(Feed(relay.url(), size, a.rate, file=a.clip))
        values = {
            "sources": [{"url": relay.url(), "name": "camera"}],
            "to": [f"hls:{folder}/hls", f"{folder}/out.mp4"],
            "ledger": f"{folder}/ledger.jsonl",
            "segment_seconds": 60,
            "reuse": False,
            "skip_sharp": False,
        }
        # Twice the time that a frame lasts, and kept on that step, where the ladder would let it go.
        engine = Engine(Device(2 / a.rate), ("stand-in", "bypass"), model="stand-in")
        job = LiveJob(options=parse(LiveOptions, values), engine=engine)
        job.pin("camera", "stand-in")
        job.add_tap(lambda source, before, after, meta: latencies.append(meta.latency), depth=256)
        thread = threading.Thread(target=job.run)
        thread.start()
        end = time.monotonic() + a.soak
        while time.monotonic() < end:
            time.sleep(10)
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            memory.append(round(sum(_pss(p) for p in processes), 1))
        job.stop()
        thread.join()
        source = job.status().sources[0]
        written = [line for line in read_ledger(f"{folder}/ledger.jsonl") if isinstance(line, FrameRecord)]
    ordered = sorted(latencies)
    third = max(1, len(memory) // 3)
    return {
        "seconds": a.soak,
        "frames": source.frames,
        "restored": source.restored,
        "bypassed": source.bypassed,
        "dropped": source.dropped,
        "accounted": source.restored + source.bypassed + source.dropped == source.frames == len(written),
        "deadline_ms": 500,
        "latency_ms": {q: round(1000 * ordered[int(q * (len(ordered) - 1))], 1) for q in (0.5, 0.95, 0.99, 1.0)},
        "memory_mb": {
            "second third": statistics.median(memory[third : 2 * third]),
            "last": statistics.median(memory[-third:]),
        },
        "memory_mb_every_10_s": memory,
    }


def _pss(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().pss) / 1e6
    except psutil.Error:
        return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip")
    parser.add_argument("--away", type=lambda t: [float(x) for x in t.split(",")], default=[3.0, 60.0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sources", type=int, default=4, help="side by side at most; 0 leaves that part out")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=int, default=24)
    parser.add_argument("--model", default=None)
    parser.add_argument("--no-returns", dest="returns", action="store_false")
    parser.add_argument("--soak", type=float, default=0, help="seconds; instead of all else")
    parser.add_argument("-o", "--output")
    a = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(relativeCreated)d %(message)s")
    with av.open(a.clip) as c:
        size = (c.streams.video[0].width, c.streams.video[0].height)
    result: dict[str, Any] = {"clip": Path(a.clip).name, "model": a.model or "stand-in", "load": os.getloadavg()}
    if a.soak:
        result["soak"] = soak(a, size)
        print(json.dumps(result["soak"], indent=2))
        a.returns, a.sources = False, 0
    if a.returns:
        result["returns"] = returns(a, size)
        print("| source | away | seconds to the next restored frame |\n|---|---|---|")
        for r in result["returns"]:
            print(f"| {r['fault']} | {r['away']:g} s | {', '.join(map(str, r['seconds']))} |")
    if a.sources:
        result["neighbours"] = neighbours(a, size)
        kinds = [k for k in result["neighbours"][0] if k != "sources"]
        print(f"\n| sources | {' | '.join(kinds)} |\n|{'---|' * (len(kinds) + 1)}")
        for r in result["neighbours"]:
            print(f"| {r['sources']} | {' | '.join(str(r[k]) for k in kinds)} |")
    if a.output:
        Path(a.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
