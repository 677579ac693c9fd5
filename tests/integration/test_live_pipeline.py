"""The live job on Ray: sources beside the script, actors that restore."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clips import write_numbered_clip
from tests.commands import ROOT, environment

#: Seconds for actors to start on a machine that has a lot else to do, and for the script to end.
PATIENCE = 240


@pytest.mark.slow
def test_ray_actors_restore_for_all_sources(tmp_path: Path) -> None:
    clips = [
        write_numbered_clip(tmp_path / f"{n}.mp4", range(n * 100, n * 100 + 24), (160, 64), rate=8) for n in (1, 2)
    ]
    words = [sys.executable, str(ROOT / "pipelines" / "live.py"), *map(str, clips), "--workers", "2", "--loop"]
    words += ["--model", "offset", "--latency-ms", "3000", "--to", f"{tmp_path}/{{name}}-out.mkv", "--threads", "1"]
    words += ["--ledger", str(tmp_path / "l.jsonl")]
    job = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ledgers = [tmp_path / "l.1.jsonl", tmp_path / "l.2.jsonl"]
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit and job.poll() is None:
            if all(p.exists() and '"status":"restored"' in p.read_text() for p in ledgers):
                break
            time.sleep(0.5)
        job.send_signal(signal.SIGTERM)
        out, err = job.communicate(timeout=PATIENCE)
    finally:
        job.kill()
    assert job.returncode == 143, err
    summary = json.loads(out)
    assert [s["name"] for s in summary["sources"]] == ["1", "2"]
    for source in summary["sources"]:
        assert source["restored"] > 0, err
        assert source["frames"] == source["restored"] + source["bypassed"] + source["dropped"]
