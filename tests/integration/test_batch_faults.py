"""Nodes and drivers die in the middle of a job: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from streamdeblur import process_video
from streamdeblur.config import parse
from streamdeblur.jobs.batch.job import run_batch
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.state import Snapshot
from streamdeblur.runtime.ledger import FrameRecord, read_ledger
from tests.clips import read_clip, write_numbered_clip
from tests.commands import environment

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SIZE = (96, 64)
CLOSED = {"x264-params": "keyint=30:min-keyint=30:scenecut=0:log-level=none"}
JOB: dict[str, Any] = {
    "model": "offset", "lossless": True, "segment_seconds": 3.0, "backoff": 0.1, "reserve_gb": 0.01, "verify": False,
    "thumbnails": 0,
}  # fmt: skip


def clip(path: Path, frames: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_numbered_clip(path, frames, SIZE, rate=10, options=CLOSED)


def expect_undisturbed(source: Path, result: Path, frames: int) -> None:
    """As one process would have made it, every frame once in the ledger, nothing else in DEST."""
    whole = result.parents[1] / "whole.mkv"
    process_video(source, whole, model="offset", lossless=True, overwrite=True)
    a, b = read_clip(whole), read_clip(result)
    assert [p.time for p in a] == [p.time for p in b]
    assert all(p.same(q) for p, q in zip(a, b, strict=True))
    ledger = result.parent / ".streamdeblur" / "ledgers" / f"{result.name}.jsonl"
    assert [r.index for r in read_ledger(ledger) if isinstance(r, FrameRecord)] == list(range(frames))
    names = sorted(p.name for p in result.parent.iterdir())
    assert names == sorted([".streamdeblur", result.name, "report.html", "report.json"])
    assert not (result.parent / ".streamdeblur" / "work").exists()
    assert not (result.parent / ".streamdeblur" / "segments").exists()


def lines(dest: Path, kind: str) -> list[dict[str, Any]]:
    path = dest / ".streamdeblur" / "manifest.jsonl"
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in found if line["type"] == kind]


def slow() -> Any:
    """Builds the restorer of `offset`, late by a tenth of a second a picture, so that all nodes get something to do."""

    def build(options: Any) -> Any:
        from streamdeblur.restore import Restorer

        restorer = Restorer("offset")
        residual = restorer.engine.residual

        def late(batch: Any) -> Any:
            time.sleep(0.15)
            return residual(batch)

        restorer.engine.residual = late  # type: ignore[method-assign]
        return restorer

    return build


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [2, 3])
def test_a_node_dies(tmp_path: Path, nodes: int) -> None:
    from ray.cluster_utils import Cluster

    source = clip(tmp_path / "in" / "a.mp4", 240)
    dest = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        members = [cluster.add_node(num_cpus=1, num_gpus=0) for _ in range(nodes)]
        kept = signal.getsignal(signal.SIGTERM)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, kept)
        gone: list[Any] = []

        def remove(s: Snapshot) -> None:
            if len(s.current) == nodes and not gone:  # all are at work
                gone.append(members.pop())
                cluster.remove_node(gone[0], allow_graceful=False)

        summary = run_batch([str(source)], dest, options=parse(BatchOptions, JOB), progress=remove, build=slow())
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert gone
    assert (summary.exit_code, summary.deaths) == (0, 1)
    assert summary.rows[0]["segments"] == 8
    numbers = [line["number"] for line in lines(dest, "segment")]
    assert sorted(numbers) == list(range(8))
    expect_undisturbed(source, dest / "a.mp4", 240)


def test_the_driver_dies_and_the_job_is_resumed(tmp_path: Path) -> None:
    source = clip(tmp_path / "in" / "a.mp4", 240)
    dest = tmp_path / "out"
    options = [f"--{k.replace('_', '-')}={v}" for k, v in JOB.items() if not isinstance(v, bool)]
    command = [
        sys.executable, ROOT / "pipelines" / "batch.py", source, "-o", dest, "--lossless", "--no-verify", "--workers=1",
        *options,
    ]  # fmt: skip
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while len(lines(dest, "segment")) < 2 and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert first.poll() is None, first.communicate()
        os.kill(first.pid, signal.SIGKILL)
    finally:
        first.kill()
        first.communicate()
    before = len(lines(dest, "segment"))
    assert before < 8
    assert not (dest / "a.mp4").exists()
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["files"]["done"] == 1
    # what was booked before was not done again
    assert sorted(line["number"] for line in lines(dest, "segment")) == list(range(8))
    assert len(lines(dest, "job")) == 2
    expect_undisturbed(source, dest / "a.mp4", 240)
