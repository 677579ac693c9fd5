"""The live ledger and the files behind it: what stands still costs lines, never time, and no earlier run its record."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from streamdeblur.errors import OutputError
from streamdeblur.jobs.live.record import LedgerStatus, LiveLedger
from streamdeblur.runtime import FrameRecord, LedgerGap, LedgerHeader, LedgerSummary, Status, TileCounts, read_ledger
from streamdeblur.runtime.lines import open_lines

WAIT = 60.0
TICK = Fraction(1, 90000)


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.005)


def record(index: int, status: Status = "restored") -> FrameRecord:
    tiles = TileCounts(3, 2, 1) if status == "restored" else None
    return FrameRecord(index, index * 3000, index * 3000, TICK, status, tiles, "w", 0.25, None)


def status(ledger: LiveLedger) -> LedgerStatus:
    found = ledger.status()
    assert found is not None
    return found


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    ledger = LiveLedger(tmp_path / "a.jsonl", source="s", output="o", settings={"x": 1}, version="7")
    given = [record(0), record(1, "bypassed"), record(2, "dropped")]
    for one in given:
        ledger.record(one)
    with pytest.raises(ValueError, match="frame 5 is out of turn: 3 is next"):
        ledger.record(record(5))
    ledger.close()
    ledger.close()
    header, *frames, summary = read_ledger(tmp_path / "a.jsonl")
    assert isinstance(header, LedgerHeader)
    assert (header.source, header.output, header.settings, header.version) == ("s", "o", {"x": 1}, "7")
    assert frames == given
    assert isinstance(summary, LedgerSummary)
    assert (summary.frames, summary.tiles, summary.seconds) == (3, TileCounts(3, 2, 1), 0.75)
    assert (status(ledger).lines, status(ledger).lost, status(ledger).waiting) == (3, 0, 0)


def test_an_earlier_run_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        ledger = LiveLedger(tmp_path / "a.jsonl", name="gate")
        ledger.record(record(0))
        ledger.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-2.jsonl", "a-3.jsonl", "a.jsonl"]
    assert all(len(list(read_ledger(p))) == 3 for p in tmp_path.iterdir())
    assert str(ledger.path) == str(tmp_path / "a-3.jsonl")
    assert "a.jsonl is of an earlier run and kept" in caplog.text


def test_a_pipe_that_stands_still_costs_lines_which_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="a pipe that nobody reads"):
        LiveLedger(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)  # some 25 lines
    ledger = LiveLedger(pipe, name="gate", queue=50)
    # Nobody reads, and all are taken without waiting.
    for n in range(3000):
        ledger.record(record(n))
    assert status(ledger).waiting <= 2 * 50 + 128 + 2
    assert status(ledger).lost > 1000
    assert "takes nothing" in caplog.text
    got = bytearray()

    def read() -> None:
        os.set_blocking(reader, True)
        while data := os.read(reader, 65536):
            got.extend(data)

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: status(ledger).waiting == 0)
    ledger.record(record(3000, "bypassed"))
    ledger.close()
    thread.join(WAIT)
    os.close(reader)
    (tmp_path / "copy").write_bytes(got)
    lines = list(read_ledger(tmp_path / "copy"))  # complete, in order, and its summary agrees
    gaps = [x for x in lines if isinstance(x, LedgerGap)]
    frames = [x for x in lines if isinstance(x, FrameRecord)]
    assert sum(g.frames for g in gaps) == status(ledger).lost
    assert len(frames) == status(ledger).lines == 3001 - status(ledger).lost
    assert frames[-1] == record(3000, "bypassed")
    assert isinstance(lines[-1], LedgerSummary)
    assert lines[-1].counts == {"restored": 3000, "bypassed": 1, "failed": 0, "dropped": 0}
    assert "goes on" in caplog.text


def test_the_end_does_not_wait_for_a_reader_who_stands_still(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)  # some 25 lines
    ledger = LiveLedger(pipe, name="gate", queue=50)
    for n in range(3000):
        ledger.record(record(n))
    ledger.close(timeout=0.1)
    assert status(ledger).lines + status(ledger).lost == 3000
    assert status(ledger).waiting == 0
    assert "last lines of the ledger" in caplog.text
    os.close(reader)


def test_a_reader_who_leaves_ends_the_ledger_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    ledger = LiveLedger(pipe, name="gate")
    ledger.record(record(0))
    until(lambda: status(ledger).lines == 1)
    os.close(reader)
    ledger.record(record(1))
    until(lambda: status(ledger).error is not None)
    ledger.record(record(2))
    ledger.close()
    assert ledger.counts["restored"] == 3
    assert (status(ledger).lines, status(ledger).lost) == (1, 2)
    assert sum("ends here: Broken pipe" in r.getMessage() for r in caplog.records) == 1


def test_a_full_disk_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, full = os.write, threading.Event()

    def write(number: int, data: bytes) -> int:
        if full.is_set() and data.startswith(b'{"type"'):
            if len(data) > 20:
                return real(number, data[:9])  # as a disk with nine bytes left does
            raise OSError(errno.ENOSPC, "No space left on device")
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(number, data)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr("streamdeblur.jobs.live.record._PAUSE", 0.01)
    ledger = LiveLedger(tmp_path / "a.jsonl", queue=20)
    ledger.record(record(0))
    until(lambda: status(ledger).lines == 1)
    full.set()
    for n in range(1, 200):
        ledger.record(record(n))
    until(lambda: status(ledger).error == "disk full")
    full.clear()
    until(lambda: status(ledger).waiting == 0)
    ledger.close()
    lines = list(read_ledger(tmp_path / "a.jsonl"))
    told = sum(isinstance(x, FrameRecord) for x in lines)
    assert told == status(ledger).lines
    assert told + status(ledger).lost == 200
    assert isinstance(lines[-1], LedgerSummary)
    assert lines[-1].counts["restored"] == 200


def test_frames_whose_number_alone_is_known(tmp_path: Path) -> None:
    ledger = LiveLedger(tmp_path / "a.jsonl")
    ledger.record(record(0))
    ledger.gap(LedgerGap(1, {"dropped": 40}))
    with pytest.raises(ValueError, match="41 is next"):
        ledger.gap(LedgerGap(40, {"dropped": 1}))
    ledger.record(record(41))
    ledger.close()
    assert LedgerGap(1, {"dropped": 40}) in list(read_ledger(tmp_path / "a.jsonl"))
    assert ledger.counts["dropped"] == status(ledger).lost == 40


def test_no_ledger_still_counts() -> None:
    ledger = LiveLedger(None)
    ledger.record(record(0))
    ledger.close()
    assert ledger.counts["restored"] == 1
    assert ledger.status() is None


# --- files of lines ---------------------------------------------------------------------------------------------------


def test_lines_of_many_writers_never_mix(tmp_path: Path) -> None:
    """Through a pipe whose reader is slow, lines longer than what a pipe takes at once."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    files = [open_lines(pipe) for _ in range(4)]
    assert all(f is files[0] for f in files)

    def write(n: int) -> None:
        for i in range(20):
            files[n].write(json.dumps({"writer": n, "i": i, "filler": "x" * 9000}) + "\n")
        files[n].close()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    got = bytearray()
    while data := os.read(reader, 777):
        got.extend(data)
    for t in threads:
        t.join(WAIT)
    os.close(reader)
    found = [json.loads(line) for line in got.splitlines()]
    for n in range(4):
        assert [f["i"] for f in found if f["writer"] == n] == list(range(20))
    with pytest.raises(OSError, match="No such device"):
        open_lines(pipe)  # it was closed, and nobody reads any more
