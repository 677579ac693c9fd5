"""The ledger: every frame accounted for, whole lines whatever happens, and a reader that believes nothing."""

from __future__ import annotations

import errno
import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from streamdeblur.errors import DiskFull, InputError, MismatchError, OutputError, UnreadableInput
from streamdeblur.runtime import FrameRecord, Ledger, LedgerHeader, LedgerSummary, TileCounts, read_ledger

TB = Fraction(1001, 30000)

RECORDS = [
    FrameRecord(0, None, 0, TB, "restored", TileCounts(6, 2, 1), "ray:1", 0.25),
    FrameRecord(1, 7, 7, TB, "bypassed", None, None, None, "ValueError: “odd”"),
    FrameRecord(2, 9, None, TB, "dropped", TileCounts(0, 0, 9), reason="late"),
    FrameRecord(3, 11, 11, TB, "restored", TileCounts(9, 0, 0), "ray:0", 0.5),
    FrameRecord(4, 13, None, TB, "failed", reason="killed 3 workers"),
]


def fill(ledger: Ledger) -> None:
    for record in RECORDS:
        ledger.record(record)


def write(path: Path) -> list[dict[str, Any]]:
    with Ledger(path, source="in.mp4", output="out.mkv", settings={"model": "identity"}, version="1.2") as ledger:
        fill(ledger)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_lines_as_documented(tmp_path: Path) -> None:
    header, *frames, summary = write(tmp_path / "l.jsonl")
    assert header.pop("started").endswith("+00:00")
    assert header == {
        "type": "header",
        "schema": 1,
        "version": "1.2",
        "source": "in.mp4",
        "output": "out.mkv",
        "settings": {"model": "identity"},
    }
    assert frames[0] == {
        "type": "frame",
        "index": 0,
        "pts_in": None,
        "pts_out": 0,
        "time_base": "1001/30000",
        "status": "restored",
        "tiles": {"restored": 6, "reused": 2, "skipped": 1},
        "worker": "ray:1",
        "seconds": 0.25,
        "reason": None,
    }
    assert [line["status"] for line in frames] == ["restored", "bypassed", "dropped", "restored", "failed"]
    assert frames[1]["tiles"] is None
    assert summary.pop("finished").endswith("+00:00")
    assert summary == {
        "type": "summary",
        "frames": 5,
        "counts": {"restored": 2, "bypassed": 1, "failed": 1, "dropped": 1},
        "tiles": {"restored": 15, "reused": 2, "skipped": 10},
        "seconds": 0.75,
        "error": None,
    }


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    write(tmp_path / "l.jsonl")
    header, *frames, summary = read_ledger(tmp_path / "l.jsonl")
    assert isinstance(header, LedgerHeader)
    assert (header.source, header.output, header.settings) == ("in.mp4", "out.mkv", {"model": "identity"})
    assert frames == RECORDS
    assert isinstance(summary, LedgerSummary)
    assert (summary.frames, summary.counts["restored"], summary.tiles) == (5, 2, TileCounts(15, 2, 10))


def test_names_that_are_no_text_come_back(tmp_path: Path) -> None:
    source = os.fsdecode(b"/a/caf\xe9 \xff.mp4")
    with Ledger(tmp_path / "l.jsonl", source=source, output="out.mkv"):
        pass
    assert (tmp_path / "l.jsonl").read_bytes().decode("utf-8")
    header = next(iter(read_ledger(tmp_path / "l.jsonl")))
    assert isinstance(header, LedgerHeader)
    assert os.fsencode(header.source) == b"/a/caf\xe9 \xff.mp4"


def test_counts_without_a_file() -> None:
    ledger = Ledger(None)
    fill(ledger)
    assert ledger.frames == 5
    assert ledger.counts == {"restored": 2, "bypassed": 1, "failed": 1, "dropped": 1}
    assert ledger.tiles == TileCounts(15, 2, 10)
    assert ledger.seconds == 0.75
    ledger.close()
    with pytest.raises(ValueError, match="closed"):
        ledger.record(FrameRecord(5, None, None, TB, "restored"))


def test_lines_are_in_the_file_before_close(tmp_path: Path) -> None:
    """What a crash would leave: the header and every frame so far; a cut last line is left out."""
    path = tmp_path / "l.jsonl"
    ledger = Ledger(path)
    ledger.record(RECORDS[0])
    ledger.record(RECORDS[1])
    crashed = path.read_bytes()
    ledger.close()
    copy = tmp_path / "crashed.jsonl"
    copy.write_bytes(crashed)
    assert list(read_ledger(copy))[1:] == RECORDS[:2]
    copy.write_bytes(crashed[:-9])
    assert list(read_ledger(copy))[1:] == RECORDS[:1]


def test_out_of_turn_and_unknown_status() -> None:
    ledger = Ledger(None)
    ledger.record(RECORDS[0])
    for index in (0, 2):
        with pytest.raises(ValueError, match=f"frame {index} is out of turn: 1 is next"):
            ledger.record(FrameRecord(index, 0, 0, TB, "restored"))
    wrong: Any = "lost"
    with pytest.raises(ValueError, match="status 'lost'"):
        ledger.record(FrameRecord(1, 0, 0, TB, wrong))
    assert ledger.frames == 1


def test_check() -> None:
    ledger = Ledger(None)
    fill(ledger)
    ledger.check(frames_in=5, frames_out=3)
    with pytest.raises(MismatchError, match="6 frames were read but 5 are accounted for"):
        ledger.check(6, 3)
    for out in (2, 4, 5):
        with pytest.raises(MismatchError, match=f"{out} frames were written but 3 of 5 should have been"):
            ledger.check(5, out)


def test_error_in_the_block_is_in_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"

    def block() -> None:
        with Ledger(path) as ledger:
            ledger.record(RECORDS[0])
            raise RuntimeError("it\nbroke")

    with pytest.raises(RuntimeError):
        block()
    *_, summary = read_ledger(path)
    assert isinstance(summary, LedgerSummary)
    assert (summary.error, summary.frames) == ("it broke", 1)


def test_unwritable_path(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "l.jsonl", tmp_path):
        with pytest.raises(OutputError, match="can't write the ledger") as caught:
            Ledger(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk() -> None:
    with pytest.raises(DiskFull, match="/dev/full"):
        Ledger("/dev/full")


def test_disk_that_fails_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    ledger = Ledger(tmp_path / "l.jsonl")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="Input/output error"):
        ledger.close()
    ledger.close()


def test_ledger_to_a_device_without_a_disk() -> None:
    with Ledger("/dev/null") as ledger:
        fill(ledger)
    assert ledger.frames == 5


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda lines: lines[1:], UnreadableInput, "line 1"),
        (lambda lines: ["no json", *lines], UnreadableInput, "line 1"),
        (lambda lines: [lines[0].replace('"schema":1', '"schema":2'), *lines[1:]], UnreadableInput, "schema 2"),
        (lambda lines: [lines[0], *lines[2:]], InputError, "line 2 .* frame 1 in the place of frame 0"),
        (lambda lines: [lines[0], lines[1], lines[1], *lines[2:]], InputError, "line 3 .* frame 0 in the place"),
        (lambda lines: [*lines[:5], lines[6]], InputError, "line 6 .* tells of 5 frames, the lines of 4"),
        (lambda lines: [*lines, lines[1]], InputError, "line 8 .* nothing follows"),
        (lambda lines: [lines[0], lines[0]], InputError, "line 2 .* first line"),
        (lambda lines: [lines[0], lines[1].replace("restored", "lost", 1)], InputError, "status 'lost'"),
        (lambda lines: [lines[0], lines[1].replace("1001/30000", "1/0")], InputError, "line 2"),
        (lambda lines: [lines[0], lines[1].replace('"pts_out":0', '"pts_out":"0"')], InputError, "pts_out '0'"),
        (lambda lines: [lines[0], lines[1].replace('"worker"', '"who"')], InputError, "no 'worker'"),
        (lambda lines: [lines[0], "[1]"], InputError, "not a JSON object"),
        (lambda lines: [], UnreadableInput, "no header"),
    ],
)
def test_the_reader_refuses(tmp_path: Path, change: Any, kind: type[Exception], message: str) -> None:
    path = tmp_path / "l.jsonl"
    write(path)
    lines = change(path.read_text(encoding="utf-8").splitlines())
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(kind, match=message) as caught:
        list(read_ledger(path))
    assert "\n" not in str(caught.value)


def test_the_reader_on_other_files(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match="No such file"):
        list(read_ledger(tmp_path / "none"))
    binary = tmp_path / "b"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnreadableInput, match="not UTF-8"):
        list(read_ledger(binary))


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        (TileCounts(), ""),
        (TileCounts(restored=4), "of their tiles none left out"),
        (TileCounts(restored=38, reused=62), "of their tiles 62 % reused"),
        (TileCounts(restored=33, reused=62, skipped=5), "of their tiles 62 % reused, 5 % left as sharp"),
    ],
)
def test_shares_of_tiles_in_words(tiles: TileCounts, words: str) -> None:
    assert tiles.words == words
