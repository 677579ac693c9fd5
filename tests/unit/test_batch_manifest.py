"""The manifest survives what a driver may die of, and lets in one driver at a time."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from streamdeblur.errors import DiskFull, UnreadableInput, UsageError
from streamdeblur.jobs.batch import manifest
from streamdeblur.jobs.batch.manifest import SCHEMA, Manifest

DONE = {"size": 1, "tag": "t", "summary": {"differences": [], "verified": True, "frames": 3}}


def fill(folder: Path) -> None:
    with Manifest(folder) as m:
        m.add("job", schema=SCHEMA)
        m.add("begin", id="a", print="1")
        m.add("plan", id="a", print="1", plan={"x": 1}, plan_print="p", tiling=None)
        m.add("segment", id="a", print="1", plan_print="p", number=0, frames=5, preset="fast")
        m.add("begin", id="b", print="1")
        m.add("done", id="b", print="1", **DONE)
        m.add("quarantined", id="c", print="1", message="broken")
        m.commit()
        m.add("begin", id="lost", print="1")  # never committed


def test_what_was_committed_is_read_again(tmp_path: Path) -> None:
    fill(tmp_path)
    with Manifest(tmp_path) as m:
        a, b, c = (m.entries[k] for k in "abc")
        assert (a.begun, a.status, set(a.segments), a.plan_print) == (True, "", {0}, "p")
        assert (b.status, b.done is not None) == ("done", True)
        assert (c.status, c.error, c.begun) == ("quarantined", "broken", False)
        assert "lost" not in m.entries


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_line_cut_short_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    fill(tmp_path)
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with Manifest(tmp_path) as m:
        assert "c" not in m.entries
        m.add("quarantined", id="d", print="1", message="x")
        m.commit()
    assert [json.loads(line)["type"] for line in path.read_text().splitlines()][-2:] == ["done", "quarantined"]
    with Manifest(tmp_path) as m:
        assert m.entries["d"].status == "quarantined"


def test_another_print_forgets_what_was_done_but_not_whose_file_it_is(tmp_path: Path) -> None:
    fill(tmp_path)
    with Manifest(tmp_path) as m:
        m.add("begin", id="b", print="2")
        assert (m.entries["b"].status, m.entries["b"].done, m.entries["b"].begun) == ("", None, True)
        m.add("plan", id="a", print="1", plan={"x": 2}, plan_print="q", tiling=None)
        assert m.entries["a"].segments == {}  # of other cuts


def test_beginning_anew_keeps_the_old_file_and_whose_outputs_are(tmp_path: Path) -> None:
    fill(tmp_path)
    with Manifest(tmp_path) as m:
        m.forget()
        m.commit()
    assert (tmp_path / "manifest.jsonl.old").exists()
    with Manifest(tmp_path) as m:
        assert {k: (e.begun, e.status) for k, e in m.entries.items()} == {"a": (True, ""), "b": (True, "")}


def test_two_drivers_do_not_meet(tmp_path: Path) -> None:
    with Manifest(tmp_path), pytest.raises(UsageError, match="another batch job is at work"):
        Manifest(tmp_path)
    Manifest(tmp_path).close()


@pytest.mark.parametrize("text", ["hello\n", '{"type":"begin","id":"a"}\n', '{"type":"job","schema":99}\n'])
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(UnreadableInput, match="line 1 is not a manifest's"):
        Manifest(tmp_path)
    assert (tmp_path / "manifest.jsonl").read_text() == text


def test_beginning_anew_changes_nothing_before_it_is_committed(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / "manifest.jsonl"
    before = path.read_bytes()
    with Manifest(tmp_path) as m:
        m.forget()
        m.add("job", schema=SCHEMA)  # and then the job is refused, or killed
    assert path.read_bytes() == before
    assert not (tmp_path / "manifest.jsonl.old").exists()


def test_a_full_disk_keeps_the_old_file_when_a_job_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    path = tmp_path / "manifest.jsonl"
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Manifest(tmp_path) as m:
        m.forget()
        with monkeypatch.context() as patched:
            patched.setattr(manifest.os, "fsync", full)
            with pytest.raises(DiskFull):
                m.commit()
        assert path.read_bytes() == before
        m.commit()  # there is room again
    assert path.read_bytes() != before
    assert (tmp_path / "manifest.jsonl.old").read_bytes() == before
    assert not (tmp_path / "manifest.jsonl.new").exists()


def test_outputs_are_ours_whatever_source_they_were_of(tmp_path: Path) -> None:
    with Manifest(tmp_path) as m:
        m.add("job", schema=SCHEMA)
        m.add("begin", id="a", print="1", output="cam/a.mkv")
        m.commit()
    with Manifest(tmp_path) as m:
        assert m.outputs == {"cam/a.mkv"}
        m.forget()
        m.commit()
    with Manifest(tmp_path) as m:
        assert m.outputs == {"cam/a.mkv"}


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    with Manifest(tmp_path) as m:
        m.add("job", schema=SCHEMA)
        m.add("begin", id="a", print="1", source=name, output=name)
        m.commit()
    with Manifest(tmp_path) as m:
        assert m.outputs == {name}
