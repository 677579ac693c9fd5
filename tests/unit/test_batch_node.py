"""What an actor asks before it publishes, without Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from streamdeblur.config import ProcessOptions, parse
from streamdeblur.errors import OutputError, UnreadableInput, UsageError, WeightsError
from streamdeblur.jobs.batch import node, place
from streamdeblur.jobs.batch.node import NodeWork, Superseded
from streamdeblur.jobs.batch.units import JobSpec


def work(folder: Path, **changes: Any) -> NodeWork:
    return NodeWork(JobSpec(str(folder / "dest"), "mine", str(folder / "scratch"), 60.0, True, 1, **changes), {})


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    path = tmp_path / "dest" / ".streamdeblur" / "driver"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    return path


def test_only_another_drivers_token_or_none_says_that_the_job_is_anothers(tmp_path: Path, driver: Path) -> None:
    w = work(tmp_path)
    w._check_token()
    driver.write_text("another's")
    with pytest.raises(Superseded):
        w._check_token()
    driver.unlink()  # the job is over
    with pytest.raises(Superseded):
        w._check_token()


def test_a_token_that_can_t_be_read_for_a_while_is_read_again(
    tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_PAUSE", 0.0)
    reads: list[str] = []
    read_whole = place.read_whole
    failures = 3

    def flaky(name: str) -> bytes | None:
        reads.append(name)
        if len(reads) <= failures:
            raise UnreadableInput(f"{name} can't be read: Input/output error")
        return read_whole(name)

    monkeypatch.setattr(place, "read_whole", flaky)
    w = work(tmp_path)
    w._check_token()
    assert len(reads) == 4
    failures = 10**9
    with pytest.raises(OutputError, match="whose job it is can't be told") as e:
        w._check_token()
    assert not isinstance(e.value, Superseded)


def test_absent_and_unreadable_are_told_apart(tmp_path: Path) -> None:
    assert place.read_whole(str(tmp_path / "gone")) is None
    (tmp_path / "file").write_bytes(b"x")
    assert place.read_whole(str(tmp_path / "file" / "below")) is None
    assert place.read_whole(str(tmp_path / "file")) == b"x"
    with pytest.raises(UnreadableInput, match="can't be read"):
        place.read_whole(str(tmp_path))  # a folder
    pytest.importorskip("fsspec")
    assert place.read_whole("memory://nowhere/gone") is None


def test_what_no_file_could_do_without_is_tried_before_there_is_any_work(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def build():\n    raise RuntimeError('no licence')\n")
    bad = parse(ProcessOptions, {"model": "identity", "detect": f"{tmp_path / 'bad.py'}:build"})
    with pytest.raises(UsageError, match="no licence"):
        work(tmp_path, detectors=(bad,)).check()
    gone = parse(ProcessOptions, {"weights": str(tmp_path / "gone.safetensors")})
    with pytest.raises(WeightsError, match="gone"):
        work(tmp_path, networks=(gone,)).check()
    work(tmp_path, networks=(parse(ProcessOptions, {"model": "identity"}),)).check()


def test_a_wrong_network_for_a_detector_is_found_out(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "other.onnx"
    path.write_bytes(b"no network at all")
    bad = parse(ProcessOptions, {"model": "identity", "detect": str(path), "detect_device": "cpu"})
    with pytest.raises(WeightsError):
        work(tmp_path, detectors=(bad,)).check()


def test_steps_count_all_that_moves(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    w = work(tmp_path)
    before = w.progress()["steps"]
    (tmp_path / "a.mp4").write_bytes(os.urandom(1 << 20))
    place.send(tmp_path / "a.mp4", "memory://steps/a.mp4")
    with w._fetched.local("memory://steps/a.mp4") as path:
        assert Path(path).stat().st_size == 1 << 20
    assert w.progress()["steps"] > before
