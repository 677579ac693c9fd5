"""What a dry run measures, and for which files it takes that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from streamdeblur.config import ProcessOptions
from streamdeblur.errors import UnreadableInput
from streamdeblur.jobs.batch import estimate
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.plan import Plan, make_plan
from streamdeblur.jobs.batch.sources import Source

Good = tuple[Source, Plan, str]


def entry(name: str, frames: int, options: ProcessOptions, width: int = 10) -> Good:
    plan = Plan(1.0, frames, width, 10, "h264", 1, "1/25", 0, "short", ())
    return Source(name, f"{name}.mp4", options), plan, name


def test_each_set_of_options_has_a_cost_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cheap, dear = ProcessOptions(model="identity"), ProcessOptions(model="mimo-unet")
    measured: list[str] = []

    def measure(local: str, *rest: Any) -> tuple[float, float]:
        measured.append(local)
        return (1.0, 2.0) if local.startswith("cheap") else (9.0, 4.0)

    monkeypatch.setattr(estimate, "_measure", measure)
    good = [entry("cheap a", 30, cheap, 20), entry("cheap b", 10, cheap), entry("dear", 10, dear)]
    costs = estimate._costs(good, tmp_path, BatchOptions())
    assert measured == ["cheap a", "dear"]  # one of each; those with most pixels first
    assert costs.measured_on == ("cheap a", "dear")
    assert [costs.of(s) for s, _, _ in good] == [(1.0, 2.0), (1.0, 2.0), (9.0, 4.0)]
    assert costs.mean == (pytest.approx((7000 * 1 + 1000 * 9) / 8000), pytest.approx((7000 * 2 + 1000 * 4) / 8000))


def test_options_beyond_the_first_few_are_like_the_mean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(local: str, *rest: Any) -> tuple[float, float]:
        return (0.0, 0.0) if local == "0" else (float(local), 1.0)  # the first can't be measured

    monkeypatch.setattr(estimate, "_measure", measure)
    good = [entry(str(n), 10 - n, ProcessOptions(crf=n)) for n in range(6)]
    costs = estimate._costs(good, tmp_path, BatchOptions())
    assert costs.measured_on == ("1", "2", "3")
    assert [costs.of(s)[0] for s, _, _ in good][1:4] == [1.0, 2.0, 3.0]
    assert [costs.of(s) for s, _, _ in (good[0], good[4], good[5])] == [costs.mean] * 3
    assert estimate._costs([], tmp_path, BatchOptions()).mean == (0.0, 0.0)


def test_a_pipe_is_no_footage(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.mp4")
    with pytest.raises(UnreadableInput, match="is not a file"):
        make_plan(str(tmp_path / "p.mp4"), ProcessOptions(), 60.0)


def test_frames_of_a_file_that_does_not_say() -> None:
    _, unsaid, _ = entry("a", 0, ProcessOptions())
    assert estimate._pixels(unsaid) == 25 * 100
