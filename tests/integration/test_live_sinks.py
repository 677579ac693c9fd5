"""What listens to a live job may hang, fail or stand still: the video goes on, and what is lost is counted and told."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from streamdeblur.cli.main import cli
from streamdeblur.errors import UsageError
from streamdeblur.jobs.live import LiveJob
from streamdeblur.jobs.live.record import LedgerStatus
from streamdeblur.runtime.ledger import FrameRecord, LedgerGap, LedgerSummary, read_ledger
from tests.clips import write_numbered_clip
from tests.commands import environment
from tests.integration.test_live import PATIENCE, SIZE, Seen, command, running, wait_for
from tests.rtsp_relay import free_port

pytestmark = pytest.mark.integration

RATE = 25
#: Finds sixty things on every frame: a record is longer than what a pipe takes at once.
FACTORY = """
import threading
import numpy as np
from streamdeblur.detect import Detections

def build():
    boxes = np.array([[n, n / 2, 40 + n, 40.5] for n in range(60)], np.float32)
    found = Detections(boxes, np.full(60, 0.9, np.float32), np.zeros(60, np.int64), ("thing",))
    return lambda rgb: found

def moody():
    calls = []
    def detect(rgb):
        calls.append(1)
        if len(calls) <= 3:
            raise RuntimeError("no such luck")
        threading.Event().wait()
    return detect
"""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (tmp_path / "finder.py").write_text(FACTORY)
    return write_numbered_clip(tmp_path / "camera.mp4", RATE, SIZE, rate=RATE)


def detection(job: Any) -> dict[str, Any]:
    found: dict[str, Any] = job.status().sources[0].detection
    return found


def book(job: LiveJob) -> LedgerStatus:
    found = job.status().sources[0].ledger
    assert found is not None
    return found


def unhurt(job: Any, seen: Seen) -> None:
    """Every frame that came has left; none waits for what listens."""
    have = job.status().sources[0].frames
    wait_for(lambda: job.status().sources[0].frames > have + RATE, "a second of video more")
    wait_for(lambda: len(seen.frames) > have, "its frames to leave")
    indices = [m.index for *_, m in seen.frames]
    assert indices == sorted(set(indices))


@contextmanager
def silent_server() -> Iterator[int]:
    """Takes connections and never says a word."""
    server = socket.create_server(("127.0.0.1", 0))
    peers: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                peers.append(server.accept()[0])
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for peer in peers:
            peer.close()


@contextmanager
def failing_server() -> Iterator[tuple[int, list[int]]]:
    """Answers every POST with 500."""
    posts: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append(len(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], posts
    finally:
        server.shutdown()
        server.server_close()


def test_a_webhook_and_a_broker_that_hang(clip: Path, tmp_path: Path) -> None:
    pytest.importorskip("paho.mqtt.client")
    with (
        silent_server() as port,
        running(
            str(clip),
            loop=True,
            to="none",
            detect=f"{tmp_path / 'finder.py'}:build",
            webhook=f"http://someone:topsecret@127.0.0.1:{port}/hook",
            mqtt=f"mqtt://someone:topsecret@127.0.0.1:{port}/found",
        ) as (job, seen),
    ):
        wait_for(lambda: all(s["down"] for s in detection(job)["sinks"]), "both sinks to be known as down")
        unhurt(job, seen)
    sinks = detection(job)["sinks"]
    looked = detection(job)["looked"]
    for sink in sinks:
        assert sink["sent"] == 0
        assert sink["errors"] > 0
        assert sink["waiting"] == 0
        assert sink["dropped"] == looked  # every record is accounted for
    assert "topsecret" not in json.dumps(sinks)


def test_a_webhook_that_answers_500_and_one_that_is_not_there(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        failing_server() as (port, posts),
        running(
            str(clip),
            loop=True,
            to="none",
            detect=f"{tmp_path / 'finder.py'}:build",
            webhook=f"http://127.0.0.1:{port}/hook",
            mqtt=f"mqtt://127.0.0.1:{free_port()}/found",
        ) as (job, seen),
    ):
        wait_for(lambda: len(posts) >= 2, "a second try")
        wait_for(lambda: all(s["down"] for s in detection(job)["sinks"]), "both sinks to be known as down")
        unhurt(job, seen)
    webhook = detection(job)["sinks"][0]
    assert webhook["error"] == "the server answered 500"
    assert (webhook["sent"], webhook["waiting"]) == (0, 0)
    assert webhook["dropped"] == detection(job)["looked"]
    assert sum("the server answered 500" in r.getMessage() for r in caplog.records) == 1


def test_a_detector_that_raises_and_then_never_comes_back(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streamdeblur.detect.hook._SILENCE", 2.0)
    with running(str(clip), loop=True, to="none", detect=f"{tmp_path / 'finder.py'}:moody", annotate=True) as (
        job,
        seen,
    ):
        wait_for(lambda: detection(job)["dropped"] > RATE, "frames that it was too busy for")
        unhurt(job, seen)
        wait_for(lambda: detection(job)["stuck"], "its silence")
    assert detection(job)["errors"] == 3
    assert detection(job)["error"].startswith("no answer for ")
    told = [r.getMessage() for r in caplog.records]
    assert sum("RuntimeError: no such luck" in text for text in told) == 1
    assert sum("has given no answer for" in text for text in told) == 1


def test_sinks_of_a_source_are_its_own(clip: Path, tmp_path: Path) -> None:
    sources = [
        {"url": str(clip), "name": "gate", "detections": str(tmp_path / "gate.jsonl")},
        {"url": str(clip), "name": "yard"},
        {"url": str(clip), "name": "roof", "detect": False},
    ]
    with running(
        sources=sources, to="none", detect=f"{tmp_path / 'finder.py'}:build", detections=str(tmp_path / "all.jsonl")
    ) as (job, _):
        wait_for(lambda: all(s.state == "ended" for s in job.status().sources), "the end")
    for name, source in (("gate", "gate"), ("all", "yard")):
        records = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert {r["source"] for r in records} == {source}
    assert job.status().sources[2].detection is None


def test_a_ledger_whose_reader_stands_still(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdeblur.jobs.live.record.QUEUE", 40)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    got = bytearray()
    with running(str(clip), loop=True, to="none", ledger=pipe) as (job, seen):
        wait_for(lambda: book(job).lost > 2 * RATE, "lines to be lost")
        unhurt(job, seen)
        told = book(job)
        assert told.error is not None
        assert told.waiting < 40 + 128 + 3

        def read() -> None:
            os.set_blocking(reader, True)
            while data := os.read(reader, 65536):
                got.extend(data)

        thread = threading.Thread(target=read)
        thread.start()
        wait_for(lambda: book(job).error is None, "the ledger to go on")
    thread.join(PATIENCE)
    os.close(reader)
    (tmp_path / "copy").write_bytes(got)
    lines = list(read_ledger(tmp_path / "copy"))
    source = job.status().sources[0]
    assert isinstance(lines[-1], LedgerSummary)
    assert lines[-1].frames == source.frames
    assert sum(x.frames for x in lines if isinstance(x, LedgerGap)) == book(job).lost
    assert sum(isinstance(x, FrameRecord) for x in lines) == book(job).lines


def test_a_second_run_keeps_the_ledger_of_the_first(clip: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with running(str(clip), to="none", ledger=tmp_path / "l.jsonl") as (job, _):
            wait_for(lambda: all(s.state == "ended" and s.frames == RATE for s in job.status().sources), "the end")
    for name in ("l.jsonl", "l-2.jsonl"):
        assert sum(isinstance(x, FrameRecord) for x in read_ledger(tmp_path / name)) == RATE
    assert book(job).path == str(tmp_path / "l-2.jsonl")


def test_sources_share_stdout_line_by_line(clip: Path, tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(
        json.dumps(
            {
                "sources": [{"url": str(clip), "name": f"camera{n}"} for n in range(3)],
                "to": ["none"],
                "model": "identity",
                "detect": f"{tmp_path / 'finder.py'}:build",
                "detections": "-",
            }
        )
    )
    job = subprocess.Popen(
        command("--config", str(config)), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert job.stdout is not None
        out = bytearray()
        while data := os.read(job.stdout.fileno(), 999):  # a reader in small steps: the pipe is full most of the time
            out.extend(data)
        err = job.stderr.read().decode() if job.stderr is not None else ""
        assert job.wait(PATIENCE) == 0, err
    finally:
        job.kill()
    assert err.count("detections on stdout (") == 3  # and the summary says how many each wrote
    records = [json.loads(line) for line in out.decode().splitlines()]
    assert {r["source"] for r in records} == {"camera0", "camera1", "camera2"}
    for name in ("camera0", "camera1", "camera2"):
        indices = [r["index"] for r in records if r["source"] == name]
        assert indices == sorted(set(indices))
    assert all(len(r["objects"]) == 60 for r in records)


def test_two_that_write_to_stdout_are_refused(clip: Path, tmp_path: Path) -> None:
    detect = f"{tmp_path / 'finder.py'}:build"
    own = tmp_path / "own.yaml"
    own.write_text(f"sources: [{{url: {clip}, detections: '-'}}]\ndetect: {detect}\nto: none\n")
    for words in (
        ("live", str(clip), "--to", "none", "--detect", detect, "--detections", "-"),
        ("live", "--config", str(own)),
        ("process", str(clip), "--detect", detect, "--detections", "-"),
    ):
        done = CliRunner().invoke(cli, [*words, "--json"])
        assert isinstance(done.exception, UsageError)
        assert "--json and --detections - both write to stdout" in str(done.exception)
