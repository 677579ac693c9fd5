"""What tests of batch jobs share: clips that can be cut, restorers that hold work back, what must be there at the end.

Run as a program it is a driver that can be killed: python -m tests.batching ADDRESS SOURCE DEST GATES FRAMES.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil

from streamdeblur import process_video
from streamdeblur.config import parse
from streamdeblur.jobs.batch.job import BatchSummary, run_batch
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.state import Snapshot
from streamdeblur.runtime.ledger import FrameRecord, read_ledger
from tests.clips import components, write_numbered_clip

SIZE = (96, 64)
#: Longest that a test waits for a thing that must happen.
PATIENCE = 240.0


def clip(path: Path, frames: int, gop: int = 30, **more: Any) -> Path:
    """A clip of 10 frames a second with a closed group of pictures every ``gop``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=2:log-level=none"
    return write_numbered_clip(path, frames, SIZE, rate=10, options={"x264-params": params}, **more)


def gated(*gates: Path, every: int = 0) -> Any:
    """Builds the restorer of `offset`, which holds every picture back until the first gate is there.

    every: pictures after which each restorer waits for the next of several gates.
    """
    names = [str(g) for g in gates]
    patience = PATIENCE

    def build(options: Any) -> Any:
        import os
        import time

        from streamdeblur.restore import Restorer

        restorer = Restorer("offset")
        residual = restorer.engine.residual
        passed = 0

        def held(batch: Any) -> Any:
            nonlocal passed
            gate = names[min(passed // every, len(names) - 1) if every else 0]
            end = time.monotonic() + patience
            while not os.path.exists(gate):
                if time.monotonic() > end:
                    raise TimeoutError(f"{gate} never came")
                time.sleep(0.02)
            passed += 1
            return residual(batch)

        restorer.engine.residual = held  # type: ignore[method-assign]
        return restorer

    return build


def lines(dest: Path, kind: str) -> list[dict[str, Any]]:
    """What the manifest says, as far as it is written."""
    path = dest / ".streamdeblur" / "manifest.jsonl"
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in found if line["type"] == kind]


def expect_undisturbed(source: Path, result: Path, frames: int) -> None:
    """As one process would have made it, every frame once in the ledger, nothing else in DEST."""
    whole = result.parents[1] / "whole.mkv"
    process_video(source, whole, model="offset", lossless=True, overwrite=True)
    pictures = decoded(result)
    assert pictures == decoded(whole)
    assert len(pictures) == frames
    ledger = result.parent / ".streamdeblur" / "ledgers" / f"{result.name}.jsonl"
    assert [r.index for r in read_ledger(ledger) if isinstance(r, FrameRecord)] == list(range(frames))
    names = sorted(p.name for p in result.parent.iterdir())
    assert names == sorted([".streamdeblur", result.name, "report.html", "report.json"])
    assert not (result.parent / ".streamdeblur" / "work").exists()
    assert not (result.parent / ".streamdeblur" / "segments").exists()


def decoded(path: Path) -> list[tuple[Fraction | None, str]]:
    """Time and hash of the components of every frame of the first video stream, one frame in memory at a time."""
    found = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            digest = hashlib.blake2b(digest_size=16)
            for name, part in sorted(components(frame).items()):
                digest.update(f"{name} {part.shape}".encode())
                digest.update(np.ascontiguousarray(part).tobytes())
            time = None if frame.pts is None else frame.pts * Fraction(frame.time_base or 1)
            found.append((time, digest.hexdigest()))
    return found


def workers(under: psutil.Process | None = None) -> list[psutil.Process]:
    """The batch actors below a process, by default this one: of its own Ray."""
    found = []
    for p in (under or psutil.Process()).children(recursive=True):
        try:
            if p.status() != psutil.STATUS_ZOMBIE and " ".join(p.cmdline()).startswith("ray::BatchWorker"):
                found.append(p)
        except psutil.NoSuchProcess:
            continue
    return found


def until(condition: Any, what: str) -> None:
    """Wait for it."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} never came"
        time.sleep(0.05)


def nodes_of(cluster: Any) -> Iterator[tuple[Any, psutil.Process]]:
    """Nodes of a simulated cluster that live, each with its raylet."""
    for node in cluster.list_all_nodes():
        for process in node.all_processes.get("raylet", []):
            if process.process.poll() is None:
                yield node, psutil.Process(process.process.pid)


JOB: dict[str, Any] = {
    "model": "offset", "lossless": True, "segment_seconds": 3.0, "backoff": 0.1, "reserve_gb": 0.01, "verify": False,
    "thumbnails": 0,
}  # fmt: skip


def run_job(source: Path, dest: Path, *, progress: Any = None, build: Any = None, **changes: Any) -> BatchSummary:
    return run_batch(
        [str(source)], dest, options=parse(BatchOptions, {**JOB, **changes}), progress=progress, build=build
    )


def _main() -> int:
    address, source, dest, gates, every = sys.argv[1:]
    folder = Path(gates)

    def say(values: Any) -> None:
        sys.stdout.write(json.dumps(values) + "\n")
        sys.stdout.flush()

    def tell(s: Snapshot) -> None:
        say({"current": s.current, "files": s.files})

    build = gated(folder / "1", folder / "2", every=int(every))
    workers = 1 if address == "local" else None
    summary = run_job(Path(source), Path(dest), progress=tell, build=build, address=address, workers=workers)
    say(summary.as_dict())
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(_main())
