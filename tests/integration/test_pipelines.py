"""The scripts that people submit, run as they run them: as processes of their own."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamdeblur.errors import UsageError
from tests.clips import read_number, write_numbered_clip

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "pipelines" / "process.py"


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """From another folder than the repository's, as a cluster does."""
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=cwd, capture_output=True, text=True, timeout=200, check=False
    )


def luma(path: Path) -> list[Any]:
    with av.open(str(path)) as container:
        # of yuv420p to_ndarray gives the planes below one another
        return [f.to_ndarray()[: f.height] for f in container.decode(video=0)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    return write_numbered_clip(folder / "clip.mp4", 6, (128, 64), audio=True, options={"crf": "10"})


def one_error(done: subprocess.CompletedProcess[str], code: int) -> str:
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (code, 1), done.stderr
    assert lines[0].startswith("error: ")
    assert done.stdout == ""
    return lines[0]


def test_what_is_given_wins_over_what_it_conflicts_with_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: identity\nlossless: true\n")
    read = runpy.run_path(str(SCRIPT), run_name="script")["read_options"]
    options = read(str(tmp_path / "job.yaml"), ["crf=20"])
    assert (options.model, options.lossless, options.crf) == ("identity", False, 20)
    assert read(None, ["on-error=bypass", "crf=null"]).on_error == "bypass"
    with pytest.raises(UsageError, match="lossless and crf exclude each other"):
        read(None, ["lossless=true", "crf=20"])


def test_restores_a_clip_by_a_config_and_overrides(clip: Path, tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text("model: identity\nlossless: true\nthreads: 1\nduration: 0.1\nledger: ${LEDGERS}/frames.jsonl\n")
    os.environ["LEDGERS"] = str(tmp_path)
    try:
        done = run(clip, "model=offset:0.1,0.1,0.1", "--config", config, "-o", "out.mkv", "duration=null", cwd=tmp_path)
    finally:
        del os.environ["LEDGERS"]
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["model"], summary["frames"], summary["restored"]) == ("offset:0.1,0.1,0.1", 6, 6)
    before, after = luma(clip), luma(tmp_path / "out.mkv")
    assert [read_number(p) for p in after] == list(range(6))
    # an equal step of R, G and B is that step of Y': 0.1 of the 219 steps of limited range, where nothing clips
    for x, y in zip(before, after, strict=True):
        inside = x < 200
        assert inside.any()
        np.testing.assert_array_equal(y[inside].astype(int) - x[inside], 22)
    assert (tmp_path / "frames.jsonl").read_text().count("restored") >= 6


def test_runs_with_the_config_of_the_repository_beside_the_source(clip: Path, tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    source.write_bytes(clip.read_bytes())
    done = run("clip.mp4", "-c", ROOT / "configs" / "process.yaml", "model=identity", "on-error=bypass", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [read_number(p) for p in luma(tmp_path / "clip.deblurred.mp4")] == list(range(6))
    with av.open(str(tmp_path / "clip.deblurred.mp4")) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]


def test_on_ray(clip: Path, tmp_path: Path) -> None:
    done = run(clip, "-o", tmp_path / "o.mp4", "model=identity", "ray=local", "workers=1", "threads=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["workers"] == 1
    assert [read_number(p) for p in luma(tmp_path / "o.mp4")] == list(range(6))


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("missing.mp4", "model=identity"), 1, "missing.mp4"),
        (("{clip}", "modle=identity"), 2, "did you mean model?"),
        (("{clip}", "identity"), 2, "'identity' is not KEY=VALUE"),
        (("{clip}", "-c", "bad.yaml"), 2, "bad.yaml"),
        ((), 2, "SOURCE; process.py --help tells more"),
        (("{clip}", "-o", "{clip}", "model=identity", "overwrite=true"), 2, "is the source itself"),
    ],
)
def test_faults_are_one_line_and_the_exit_code_of_the_command_line(
    clip: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, part: str
) -> None:
    (tmp_path / "bad.yaml").write_text("model: identity\ntreads: 2\n")
    before = clip.read_bytes()
    done = run(*(a.format(clip=clip) for a in arguments), cwd=tmp_path)
    assert part in one_error(done, code)
    assert clip.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["bad.yaml"]


def test_a_stopped_job_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    source = write_numbered_clip(tmp_path / "long.mp4", 400, (320, 240), options={"preset": "ultrafast"})
    process = subprocess.Popen(
        [sys.executable, SCRIPT, source, "-o", "out.mp4", "model=mimo-unet", "weights=random:0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) == 1 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (143, ""), stderr
    assert stderr.strip().splitlines()[-1] == "error: terminated: no unfinished file is left under its final name"
    assert [p.name for p in tmp_path.iterdir()] == ["long.mp4"]
