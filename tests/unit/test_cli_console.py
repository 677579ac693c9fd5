"""The plain progress lines of a job where there is no terminal."""

from __future__ import annotations

import io

from rich.console import Console

from streamdeblur.cli import console as module
from streamdeblur.cli.console import Reporter


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
