"""Batch jobs on Ray: many files, a wrong one among them, done once, resumed, accounted for."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamdeblur import process_video
from streamdeblur.config import parse
from streamdeblur.errors import DiskFull, OutputError, UsageError, WeightsError
from streamdeblur.jobs.batch import job, place
from streamdeblur.jobs.batch.job import BatchSummary, run_batch
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.state import Snapshot
from streamdeblur.jobs.verify import verify
from streamdeblur.runtime.ledger import FrameRecord, read_ledger
from tests.batching import PATIENCE, clip, gated, lines, workers
from tests.clips import Picture, read_clip
from tests.one_ray import one_ray

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.integration

JOB: dict[str, Any] = {
    "model": "offset", "lossless": True, "workers": 2, "segment_seconds": 1.0, "backoff": 0.1, "reserve_gb": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for the module, which the jobs find running and leave running."""
    with one_ray():
        yield


def run(
    *sources: Path | str, dest: Path | str, progress: Any = None, build: Any = None, **changes: Any
) -> BatchSummary:
    options = parse(BatchOptions, {**JOB, **changes})
    return run_batch([str(s) for s in sources], dest, options=options, progress=progress, build=build)


def frames_of(dest: Path, output: str) -> list[int]:
    ledger = read_ledger(dest / ".streamdeblur" / "ledgers" / f"{output}.jsonl")
    return [line.index for line in ledger if isinstance(line, FrameRecord)]


def alone(source: Path, folder: Path) -> list[Picture]:
    path = folder / f"alone-{source.stem}.mkv"
    process_video(source, path, model="offset", lossless=True, overwrite=True)
    return read_clip(path)


def expect_same(path: Path, pictures: list[Picture]) -> None:
    found = read_clip(path)
    assert [p.time for p in found] == [p.time for p in pictures]
    assert all(a.same(b) for a, b in zip(found, pictures, strict=True))


def test_a_folder_is_restored_and_the_job_resumed(tmp_path: Path) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    clip(source / "long.mp4", 34, gop=10, audio=True)
    clip(source / "cam1" / "a.mp4", 5, gop=10)
    clip(source / "cam1" / "b.avi", 6, gop=10)
    clip(source / "cam2" / "c.mkv", 7, gop=10, audio=True)
    wrong = source / "cam2" / "wrong.mp4"
    wrong.write_text("no film at all")
    snapshots: list[Snapshot] = []

    summary = run(source, dest=dest, progress=snapshots.append)
    assert summary.exit_code == 1
    assert {k: v for k, v in summary.files.items() if v} == {"done": 4, "quarantined": 1}
    assert (summary.frames, summary.resumed, summary.deaths) == (52, 0, 0)
    rows = {r["output"]: r for r in summary.rows}
    assert rows["long.mp4"]["segments"] == 4
    assert "wrong.mp4 can't be opened as video" in rows["cam2/wrong.mp4"]["error"]
    for output, name, count in (
        ("long.mp4", "long.mp4", 34), ("cam1/a.mp4", "cam1/a.mp4", 5), ("cam1/b.mkv", "cam1/b.avi", 6),
        ("cam2/c.mkv", "cam2/c.mkv", 7),
    ):  # fmt: skip
        assert verify(source / name, dest / output).differences == []
        expect_same(dest / output, alone(source / name, tmp_path))
        assert frames_of(dest, output) == list(range(count))
    # nothing but results and the job's own folder
    assert sorted(p.name for p in dest.iterdir()) == [
        ".streamdeblur", "cam1", "cam2", "long.mp4", "report.html", "report.json",
    ]  # fmt: skip
    assert [p.name for p in (dest / "cam2").iterdir()] == ["c.mkv"]
    report = json.loads((dest / "report.json").read_text())
    assert {r["output"]: r["status"] for r in report["results"]}["cam2/wrong.mp4"] == "quarantined"
    page = (dest / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert "http" not in page.replace("http-equiv", "")
    assert snapshots[-1].files["done"] == 4
    assert snapshots[-1].frames == 52

    # The same again does nothing again; what was wrong is tried, what changed is done.
    stamps = {p: p.stat().st_mtime_ns for p in dest.rglob("*.m??")}
    assert len(stamps) == 4
    wrong.unlink()
    again = run(source, dest=dest)
    assert (again.exit_code, again.resumed, again.actors, again.frames) == (0, 4, 0, 52)
    assert {p: p.stat().st_mtime_ns for p in dest.rglob("*.m??")} == stamps

    clip(wrong, 4, gop=10)
    (dest / "cam1" / "a.mp4").unlink()
    (source / "m.jsonl").write_text('{"source": "cam2/c.mkv", "model": "identity"}\n')
    third = run(source, source / "m.jsonl", dest=dest)
    assert (third.exit_code, third.resumed, third.files["done"]) == (0, 2, 5)
    assert {p.name for p in dest.rglob("*.m??") if stamps.get(p) != p.stat().st_mtime_ns} == {
        "a.mp4", "c.mkv", "wrong.mp4",
    }  # fmt: skip
    expect_same(dest / "cam2" / "c.mkv", read_clip(source / "cam2" / "c.mkv"))


def test_a_killed_actor_costs_nothing(tmp_path: Path) -> None:
    source = clip(tmp_path / "in" / "a.mp4", 150, gop=10)
    gate = tmp_path / "gate"
    killed: list[int] = []

    def kill(s: Snapshot) -> None:
        if len(s.current) == 2 and all("segment" in unit for unit in s.current) and not killed:
            killed.append(workers()[0].pid)
            os.kill(killed[0], signal.SIGKILL)
            gate.touch()

    summary = run(
        source, dest=tmp_path / "out", progress=kill, segment_seconds=3.0, verify=False, thumbnails=0, build=gated(gate)
    )
    assert killed
    assert (summary.exit_code, summary.deaths) == (0, 1)
    expect_same(tmp_path / "out" / "a.mp4", alone(source, tmp_path))
    assert frames_of(tmp_path / "out", "a.mp4") == list(range(150))


def test_a_file_that_kills_is_quarantined_and_the_job_goes_on(tmp_path: Path) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    clip(source / "poison.mp4", 60, gop=10)
    clip(source / "good.mp4", 5, gop=10)
    gate = tmp_path / "gate"

    def kill(s: Snapshot) -> None:
        if s.files["quarantined"]:
            gate.touch()
        elif any("poison.mp4" in unit for unit in s.current) and s.files["working"]:
            for process in workers():
                os.kill(process.pid, signal.SIGKILL)

    summary = run(
        source, dest=dest, progress=kill, workers=1, attempts=2, segment_seconds=0, group_seconds=0, verify=False,
        thumbnails=0, build=gated(gate),
    )  # fmt: skip
    assert {k: v for k, v in summary.files.items() if v} == {"done": 1, "quarantined": 1}
    assert summary.deaths == 2
    (bad,) = [r for r in summary.rows if r["status"] == "quarantined"]
    assert "killed worker" in bad["error"]
    assert "(2 attempts)" in bad["error"]
    assert sorted(p.name for p in dest.iterdir()) == [".streamdeblur", "good.mp4", "report.html", "report.json"]


def test_a_job_that_is_stopped_tells_what_it_did(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    clip(source / "a.mp4", 12, gop=10)
    clip(source / "b.mp4", 5, gop=10)

    def stop(s: Snapshot) -> None:
        if s.files["done"] and s.files["working"]:
            raise KeyboardInterrupt

    with caplog.at_level(logging.WARNING, "streamdeblur"), pytest.raises(KeyboardInterrupt):
        run(
            source, dest=dest, progress=stop, workers=1, segment_seconds=0, group_seconds=0, verify=False,
            build=slow_after(12, tmp_path / "never"),
        )  # fmt: skip
    report = json.loads((dest / "report.json").read_text())
    assert report["state"] == "stopped"
    assert {r["output"]: r["status"] for r in report["results"]} == {"a.mp4": "done", "b.mp4": "working"}
    assert report["frames"] == 12
    page = (dest / "report.html").read_text()
    assert "<h1>stopped: 1 working, 1 done</h1>" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "stopped when 1 of 2 files were over" in caplog.text
    again = run(source, dest=dest, workers=1, segment_seconds=0, group_seconds=0, verify=False)
    assert (again.state, again.exit_code, again.resumed) == ("finished", 0, 1)
    assert json.loads((dest / "report.json").read_text())["state"] == "finished"


def slow_after(pictures: int, gate: Path) -> Any:
    """Builds a restorer of `offset` that never comes back from the picture after so many, until the gate is there."""
    name, patience = str(gate), PATIENCE

    def build(options: Any) -> Any:
        import os
        import time

        from streamdeblur.restore import Restorer

        restorer = Restorer("offset")
        residual = restorer.engine.residual
        seen = 0

        def held(batch: Any) -> Any:
            nonlocal seen
            seen += 1
            end = time.monotonic() + patience
            while seen > pictures and not os.path.exists(name) and time.monotonic() < end:
                time.sleep(0.02)
            return residual(batch)

        restorer.engine.residual = held  # type: ignore[method-assign]
        return restorer

    return build


def test_work_that_hangs_is_ended_and_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, dest, gate = clip(tmp_path / "in" / "a.mp4", 20, gop=10), tmp_path / "out", tmp_path / "gate"

    def open_gate(s: Snapshot) -> None:
        if any("no progress for 4 s" in r.getMessage() for r in caplog.records):
            gate.touch()

    with caplog.at_level(logging.WARNING, "streamdeblur"):
        summary = run(
            source, dest=dest, progress=open_gate, workers=1, segment_seconds=0, verify=False, thumbnails=0,
            unit_timeout=4.0, attempts=20, build=slow_after(8, gate),
        )  # fmt: skip
    assert gate.exists()
    assert summary.exit_code == 0
    assert summary.retries == summary.deaths >= 1
    expect_same(dest / "a.mp4", alone(source, tmp_path))
    assert frames_of(dest, "a.mp4") == list(range(20))


def test_detections_lie_beside_the_results(tmp_path: Path) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    clip(source / "long.mp4", 34)
    clip(source / "b" / "a.mkv", 5)
    clip(source / "c.mp4", 4)
    (tmp_path / "finder.py").write_text(
        "import numpy as np\n"
        "from streamdeblur.detect import Detections\n"
        "def build():\n"
        "    box = np.array([[8, 8, 40, 40]], np.float32)\n"
        "    return lambda rgb: Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64), ('thing',))\n"
    )
    word = f"{tmp_path / 'finder.py'}:build"
    frames = {"long.mp4": 34, "b/a.mkv": 5, "c.mp4": 4}
    summary = run(source, dest=dest, detect=word)
    assert (summary.exit_code, {r["output"]: r["segments"] for r in summary.rows}) == (0, dict.fromkeys(frames, 0))
    for output, count in frames.items():
        found = [json.loads(line) for line in (dest / f"{output}.detections.jsonl").read_text().splitlines()]
        assert [line["index"] for line in found] == list(range(count))
        assert {line["objects"][0]["name"] for line in found} == {"thing"}
    assert run(source, dest=dest, detect=word).resumed == 3
    gone, changed = dest / "b" / "a.mkv.detections.jsonl", dest / "long.mp4.detections.jsonl"
    kept, stamp = gone.read_text(), (dest / "b" / "a.mkv").stat().st_mtime_ns
    gone.unlink()
    changed.write_text("something else\n")
    assert run(source, dest=dest, detect=word).resumed == 1
    assert (dest / "b" / "a.mkv").stat().st_mtime_ns > stamp
    assert len(gone.read_text().splitlines()) == len(kept.splitlines())
    assert len(changed.read_text().splitlines()) == 34
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "long.mp4.detections.jsonl").write_text("somebody's\n")
    with pytest.raises(OutputError, match=r"long\.mp4\.detections\.jsonl exists and is of no batch job"):
        run(source, dest=tmp_path / "new", detect=word)
    assert run(source, dest=dest, detect=word, detect_threshold=0.9).resumed == 0
    with pytest.raises(UsageError, match=r"gone\.onnx does not exist"):
        run(source, dest=dest, detect="gone.onnx")
    # One error for the job, and no file is charged with it.
    (tmp_path / "bad.py").write_text("def build():\n    raise RuntimeError('no licence')\n")
    with pytest.raises(UsageError, match="no licence"):
        run(source, dest=dest, detect=f"{tmp_path / 'bad.py'}:build")
    assert lines(dest, "quarantined") == []


def test_urls_in_and_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = clip(tmp_path / "in" / "a.mp4", 25, gop=10)
    summary = run(
        f"file://{source.parent}", dest=f"file://{tmp_path}/out", scratch=str(tmp_path / "scratch"), workers=1,
        model="identity", verify=False,
    )  # fmt: skip
    assert (summary.exit_code, summary.rows[0]["segments"]) == (0, 3)
    expect_same(tmp_path / "out" / "a.mp4", read_clip(source))
    assert (tmp_path / "out" / "report.json").exists()
    assert (tmp_path / "out" / ".streamdeblur" / "manifest.jsonl").exists()
    assert not (tmp_path / "out" / ".streamdeblur" / "segments").exists()


def test_what_concerns_the_whole_job_is_said_before_anything_is_done(tmp_path: Path) -> None:
    source = clip(tmp_path / "in" / "a.mp4", 5, gop=10)
    dest = tmp_path / "out"
    with pytest.raises(WeightsError, match=r"gone\.safetensors"):
        run(source, dest=dest, model=None, weights=str(tmp_path / "gone.safetensors"))
    shutil.copy(source, dest / "a.mp4")
    with pytest.raises(OutputError, match="is of no batch job"):
        run(source, dest=dest)
    assert (dest / "a.mp4").read_bytes() == source.read_bytes()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no footage"):
        run(tmp_path / "empty", dest=dest)


def test_a_new_file_may_take_the_name_of_an_earlier_result(tmp_path: Path) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    clip(source / "a.avi", 6, gop=10)
    assert run(source, dest=dest).exit_code == 0
    clip(source / "a.mkv", 4, gop=10)
    summary = run(source, dest=dest)
    assert summary.exit_code == 0
    assert {r["output"]: r["frames"] for r in summary.rows} == {"a.avi.mkv": 6, "a.mkv": 4}


def test_a_job_that_is_refused_forgets_nothing(tmp_path: Path) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    clip(source / "a.mp4", 5, gop=10)
    assert run(source, dest=dest).exit_code == 0
    clip(source / "b.mp4", 5, gop=10)
    (dest / "b.mp4").write_text("somebody's")
    with pytest.raises(OutputError, match="no batch job"):
        run(source, dest=dest, resume=False)
    (dest / "b.mp4").unlink()
    summary = run(source, dest=dest)
    assert (summary.exit_code, summary.resumed) == (0, 1)


def test_a_name_that_is_no_text_is_restored_like_any(tmp_path: Path) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    name = os.fsdecode(b"caf\xe9.mp4")
    clip(source / name, 5, gop=10)
    summary = run(source, dest=dest)
    assert summary.exit_code == 0
    assert (dest / name).is_file()
    assert json.loads((dest / "report.json").read_text())["results"][0]["output"] == name
    assert run(source, dest=dest).resumed == 1


def test_a_full_disk_at_the_end_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    clip(source / "a.mp4", 5, gop=10)
    tries: list[str] = []
    write_local = place.write_local

    def full(name: str, data: bytes) -> None:
        tries.append(Path(name).name)
        if tries.count("report.json") in (1, 2) and tries[-1] == "report.json":
            raise DiskFull(f"{name} can't be written: No space left on device")
        write_local(name, data)

    monkeypatch.setattr(place, "write_local", full)
    monkeypatch.setattr(job, "_LOOK_FOR_ROOM", 0.01)
    assert run(source, dest=dest).exit_code == 0
    assert tries.count("report.json") == 3
    assert (dest / "report.html").is_file()
