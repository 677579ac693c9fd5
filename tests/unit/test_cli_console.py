"""The plain lines of a job: its progress where there is no terminal, and its summary."""

from __future__ import annotations

import io
from threading import Thread

from rich.console import Console

from streamdeblur.cli import console as module
from streamdeblur.cli.console import Reporter
from streamdeblur.cli.live import LiveReporter, execute
from streamdeblur.config import parse
from streamdeblur.jobs.live import job as live_job
from streamdeblur.jobs.live.job import LiveSummary
from streamdeblur.jobs.live.options import LiveOptions
from streamdeblur.jobs.live.status import LiveSourceStatus, LiveStatus
from tests.preview import job_status, source_status


def _line(monkeypatch, **numbers) -> str:
    monkeypatch.setattr(module, "_EVERY", 0.0)
    text = io.StringIO()
    with Reporter(Console(file=text, width=200), quiet=False, unit="steps") as reporter:
        reporter.step("training", **numbers)
    return text.getvalue().strip()


def test_time_left_is_told_from_the_rate(monkeypatch):
    line = _line(monkeypatch, done=20, total=100, rate="2.0/s", note="loss 0.1", seconds=10.0)
    assert line == "training: 20/100 steps, 2.0/s, loss 0.1, about 40 s left"


def test_time_left_of_a_resumed_run_counts_its_own_steps_alone(monkeypatch):
    line = _line(monkeypatch, done=1020, total=1100, rate="2.0/s", seconds=10.0, resumed=1000)
    assert line == "training: 1020/1100 steps, 2.0/s, about 40 s left"


def test_no_time_left_is_told_before_anything_is_done(monkeypatch):
    assert "left" not in _line(monkeypatch, done=1000, total=1100, rate="2.0/s", seconds=10.0, resumed=1000)


def test_frames_that_are_read_are_no_steps_yet(monkeypatch):
    assert _line(monkeypatch, done=50, total=None) == "training: 50 frames"


def _live(**changes) -> LiveStatus:
    source = LiveSourceStatus(**{**source_status("gate", costs_ms=(), outputs=()), **changes})
    return LiveStatus(**{**job_status(), "sources": (source,)})


def _progress(status: LiveStatus) -> str:
    text = io.StringIO()
    LiveReporter(Console(file=text, width=400), quiet=False).update(status)
    return text.getvalue()


def _summary(monkeypatch, status: LiveStatus) -> str:
    class Done:
        page = None

        def __init__(self, *_, **__) -> None:
            pass

        def run(self, *_) -> LiveSummary:
            return LiveSummary(1.0, status, {})

        def stop(self) -> None:
            pass

    monkeypatch.setattr(live_job, "LiveJob", Done)
    text = io.StringIO()
    arguments = ((), parse(LiveOptions, {}), Console(file=text, width=400))
    thread = Thread(target=execute, args=arguments, kwargs={"as_json": False, "quiet": False})  # takes no signals there
    thread.start()
    thread.join()
    return text.getvalue()


def test_frames_that_encoding_had_no_time_for_are_told_apart(monkeypatch):
    for told in (_progress(_live(dropped=5, behind=4)), _summary(monkeypatch, _live(dropped=5, behind=4))):
        assert "5 dropped (4 of them: encoding behind), 7 late" in told
    for told in (_progress(_live(dropped=5, behind=0)), _summary(monkeypatch, _live(dropped=5, behind=0))):
        assert "5 dropped, 7 late" in told


def test_what_a_detector_did_not_look_at_is_in_the_summary(monkeypatch):
    detection = {"looked": 400, "dropped": 1310, "errors": 2, "error": None, "stuck": False, "sinks": ()}
    assert "detector (400 frames, 1310 not looked at, 2 failed)" in _summary(monkeypatch, _live(detection=detection))
    hangs = detection | {"dropped": 0, "errors": 0, "stuck": True, "error": "no answer for 7 s"}
    assert "detector (400 frames, no answer for 7 s)" in _summary(monkeypatch, _live(detection=hangs))
    assert "detector: no answer for 7 s" in _progress(_live(detection=hangs))
