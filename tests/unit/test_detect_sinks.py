"""Sinks without a network: JSON lines under every fault, the queue, the counts, and addresses with secrets in them."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamdeblur.config import parse
from streamdeblur.detect import DetectOptions
from streamdeblur.detect.sinks import JsonLinesSink, MqttSink, Sink, WebhookSink, base, make_sinks
from streamdeblur.detect.sinks.base import Refused
from streamdeblur.detect.sinks.urls import parse_address
from streamdeblur.errors import OutputError, StreamdeblurError, UsageError

WAIT = 30.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# -- JSON lines --------------------------------------------------------------------------------------------------------


def test_lines_are_appended_and_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "found.jsonl"
    for run in range(2):
        sink = JsonLinesSink(path)
        sink.send({"run": run, "name": "pâté\n"})
        until(lambda sink=sink: sink.stats().sent == 1)  # type: ignore[misc]
        assert len(lines(path)) == run + 1  # before it is closed
        sink.close()
    assert lines(path) == [{"run": 0, "name": "pâté\n"}, {"run": 1, "name": "pâté\n"}]
    sink.send({})
    assert sink.stats().dropped == 1


def test_a_lossless_file_gets_all_whatever_the_queue(tmp_path: Path) -> None:
    sink = JsonLinesSink(tmp_path / "a.jsonl", lossless=True, queue=2)
    for i in range(500):
        sink.send({"i": i})
    sink.close(WAIT)
    assert [r["i"] for r in lines(tmp_path / "a.jsonl")] == list(range(500))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_told_once_and_the_job_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    sink = JsonLinesSink("/dev/full")
    with caplog.at_level(logging.WARNING, "streamdeblur"):
        for i in range(20):
            sink.send({"i": i})
            until(lambda i=i: sink.stats().dropped == i + 1)  # type: ignore[misc]
        sink.close()
    stats = sink.stats()
    assert (stats.sent, stats.down, stats.error) == (0, True, "can't be written: no space left")
    assert [r.getMessage() for r in caplog.records] == [
        "detections file /dev/full: can't be written: no space left; the job goes on"
    ]


def test_no_line_is_left_half_written_by_a_disk_that_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    sink = JsonLinesSink(path)
    mine, real, full = sink._file._number, os.write, threading.Event()

    def write_part_then_fail(file: int, data: bytes) -> int:
        if file == mine and full.is_set():
            if data.startswith(b"{"):
                return real(file, data[:5])  # as a disk with five bytes left does
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    monkeypatch.setattr(os, "write", write_part_then_fail)
    sink.send({"i": 0})
    until(lambda: sink.stats().sent == 1)
    full.set()
    sink.send({"i": 1})
    until(lambda: sink.stats().dropped == 1)
    full.clear()
    sink.send({"i": 2})
    until(lambda: sink.stats().sent == 2)
    sink.close()
    assert [r["i"] for r in lines(path)] == [0, 2]
    assert not sink.stats().down


def test_what_can_not_be_opened(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"can't be written: Is a directory"):
        JsonLinesSink(tmp_path)


PROGRAM = """
from streamdeblur.detect.sinks import JsonLinesSink
sink = JsonLinesSink("-")
for i in range(3000):
    sink.send({"i": i, "filler": "x" * 200})
sink.close(0.2)
import sys
print("ended", sink.stats().sent, sink.stats().dropped, file=sys.stderr)
"""


def test_stdout_with_a_reader_that_stands_still_does_not_hold_the_job() -> None:
    job = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert job.stdout is not None
    assert job.stderr is not None
    assert job.wait(WAIT) == 0  # nobody has read a byte
    sent, dropped = map(int, job.stderr.read().split()[-2:])
    got = [json.loads(line) for line in job.stdout.read().splitlines()]
    job.stdout.close()
    job.stderr.close()
    assert sent + dropped == 3000
    assert dropped > 0
    assert len(got) >= sent > 0
    assert [r["i"] for r in got] == sorted(r["i"] for r in got)


# -- the queue ---------------------------------------------------------------------------------------------------------


class Scripted(Sink):
    """Fails as told: a list of errors or None, one for each attempt; then it works."""

    def __init__(self, script: list[StreamdeblurError | None], **values: Any) -> None:
        super().__init__("scripted", **values)
        self.script, self.got = script, []  # type: ignore[var-annotated]
        self.gate = threading.Event()
        self.gate.set()
        self.start()

    def _deliver(self, records: list[dict[str, Any]]) -> None:
        assert self.gate.wait(WAIT)
        e = self.script.pop(0) if self.script else None
        if e is not None:
            raise e
        self.got.append([r["i"] for r in records])


def test_the_oldest_is_dropped_and_the_caller_never_waits(caplog: pytest.LogCaptureFixture) -> None:
    sink = Scripted([], queue=3)
    sink.gate.clear()
    with caplog.at_level(logging.WARNING, "streamdeblur"):
        sink.send({"i": 0})
        until(lambda: sink.stats().waiting == 1 and not sink._queue)  # taken: it is being delivered
        for i in range(1, 11):
            sink.send({"i": i})
        assert (sink.stats().dropped, sink.stats().waiting) == (7, 4)
        sink.gate.set()
        sink.close(WAIT)
    assert sink.got == [[0], [8], [9], [10]]
    assert (sink.stats().sent, sink.stats().dropped, sink.stats().waiting) == (4, 7, 0)
    assert [r.getMessage() for r in caplog.records] == ["scripted is too slow: 3 records wait, the oldest are dropped"]


def test_what_fails_is_tried_again_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(base, "BACK_OFF", (0.001, 0.002))
    with caplog.at_level(logging.WARNING, "streamdeblur"):
        sink = Scripted([StreamdeblurError("no connection")] * 5)
        sink.send({"i": 0})
        until(lambda: sink.stats().sent == 1)
        sink.close()
    assert sink.got == [[0]]
    assert sink.stats().errors == 5
    assert [r.getMessage() for r in caplog.records] == [
        "scripted: no connection; the job goes on",
        "scripted works again; 0 records were dropped so far",
    ]


def test_what_is_refused_is_lost_and_the_next_goes() -> None:
    sink = Scripted([Refused("the server answered 400"), ValueError("a fault of ours")])  # type: ignore[list-item]
    for i in range(3):
        sink.send({"i": i})
    sink.close(WAIT)
    assert sink.got == [[2]]
    assert (sink.stats().sent, sink.stats().dropped, sink.stats().errors) == (1, 2, 2)


def test_batches() -> None:
    sink = Scripted([], batch=4, linger=60)
    for i in range(6):
        sink.send({"i": i})
    until(lambda: sink.got == [[0, 1, 2, 3]])
    sink.close(WAIT)  # does not linger for more
    assert sink.got == [[0, 1, 2, 3], [4, 5]]


def test_closing_gives_up_on_a_sink_that_is_down() -> None:
    sink = Scripted([StreamdeblurError("no connection")] * 10_000)
    for i in range(5):
        sink.send({"i": i})
    sink.close(0.05)
    assert (sink.stats().sent, sink.stats().dropped, sink.stats().waiting) == (0, 5, 0)
    assert not sink._thread.is_alive()


def test_a_delivery_that_ends_after_the_end_is_not_counted_twice() -> None:
    sink = Scripted([])
    sink.gate.clear()
    sink.send({"i": 0})
    until(lambda: not sink._queue)
    sink.close(0)
    assert (sink.stats().sent, sink.stats().dropped) == (0, 1)
    sink.gate.set()
    sink._thread.join(WAIT)
    assert (sink.stats().sent, sink.stats().dropped) == (0, 1)


# -- addresses ---------------------------------------------------------------------------------------------------------

SECRETS = ("s3cret", "t0ken", "us3r")


def test_parts_of_an_address() -> None:
    a = parse_address("mqtts://us3r:s3cret%40@[::1]:9/a/b?qos=0", "broker", {"mqtt": 1883, "mqtts": 8883})
    assert (a.scheme, a.host, a.port, a.path, a.query) == ("mqtts", "::1", 9, "/a/b", {"qos": "0"})
    assert (a.user, a.password, a.shown) == ("us3r", "s3cret@", "mqtts://[::1]:9")
    assert a.bare == "mqtts://[::1]:9/a/b?qos=0"
    assert not any(s in f"{a} {a!r}" for s in SECRETS)
    assert parse_address("mqtts://h", "broker", {"mqtts": 8883}).port == 8883


@pytest.mark.parametrize(
    ("make", "url", "word"),
    [
        (WebhookSink, "us3r:s3cret@host/t0ken", "has no scheme"),
        (WebhookSink, "ftp://us3r:s3cret@host/t0ken", "begins with ftp://"),
        (WebhookSink, "https://us3r:s3cret@/t0ken", "has no host"),
        (WebhookSink, "https://us3r:s3cret@host:t0ken/", "is not a URL"),
        (WebhookSink, "s3cret", "has no scheme"),
        (MqttSink, "http://us3r:s3cret@host/t0ken", "it begins with mqtt:// or mqtts://"),
        (MqttSink, "mqtt://us3r:s3cret@host/t?qos=7", "give 0 to 2"),
        (MqttSink, "mqtt://us3r:s3cret@host/a/+/b", "must not hold"),
    ],
)
def test_addresses_that_are_none_name_no_secret(make: Any, url: str, word: str) -> None:
    if make is MqttSink:
        pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt")
    with pytest.raises(UsageError, match=word) as caught:
        make(url)
    assert not any(s in str(caught.value) for s in SECRETS)


def test_a_sink_that_can_not_be_made_leaves_none_running(tmp_path: Path) -> None:
    before = {t.ident for t in threading.enumerate()}
    given = parse(DetectOptions, {"detect": "x.onnx", "detections": str(tmp_path / "a.jsonl"), "webhook": "ftp://h"})
    with pytest.raises(UsageError):
        make_sinks(given)
    until(lambda: {t.ident for t in threading.enumerate() if t.name.startswith("sink")} <= before)


def test_sinks_of_options(tmp_path: Path) -> None:
    given = parse(DetectOptions, {"detect": "x.onnx", "detections": str(tmp_path / "a.jsonl"), "webhook": "http://h:9"})
    sinks = make_sinks(given)
    assert [s.name for s in sinks] == [f"detections file {tmp_path / 'a.jsonl'}", "webhook http://h:9"]
    for s in sinks:
        s.close(0)
    assert make_sinks(parse(DetectOptions, {"detect": "x.onnx"})) == []
