"""pipelines/batch.py as a process of its own: the plan of a dry run, and errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clips import write_numbered_clip
from tests.commands import environment

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[2] / "pipelines" / "batch.py"
CLOSED = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:log-level=none"}


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=200,
        check=False,
    )  # fmt: skip


def test_a_dry_run_plans_and_measures_and_writes_nothing(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    write_numbered_clip(source / "long.mp4", 34, (96, 64), rate=10, options=CLOSED)
    write_numbered_clip(source / "short.mp4", 5, (96, 64), rate=10, options=CLOSED)
    (source / "wrong.mp4").write_text("no film")
    done = run("in", "-o", "out", "--dry-run", "--json", "--model=identity", "--segment-seconds=1", cwd=tmp_path)
    assert done.returncode == 1, done.stderr  # one file would be quarantined
    found = json.loads(done.stdout)
    plans = {Path(p["source"]).name: p for p in found["plans"]}
    assert (plans["long.mp4"]["frames"], plans["long.mp4"]["segments"]) == (34, 4)
    assert (plans["short.mp4"]["segments"], plans["short.mp4"]["whole"]) == (0, "short")
    assert "can't be opened" in plans["wrong.mp4"]["error"]
    assert (found["files"], found["broken"], found["frames"]) == (3, 1, 39)
    assert min(found["seconds"], found["disk_bytes"], found["fps_per_worker"], found["peak_bytes"]) > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in", "-o", "out"], "in holds no footage"),
        (["in/*.mp4", "-o", "out"], "matches nothing"),
        (["in"], "-o"),
        (["in", "-o", "out", "--lossless", "--crf", "3"], "exclude each other"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "in").mkdir()
    done = run(*arguments, "--model=identity", cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines), done.stdout) == (2, 1, "")
    assert lines[0].startswith("error: ")
    assert words in lines[0]
