"""Learning rates at the steps that matter, computed by hand."""

from __future__ import annotations

import math

import pytest

from streamdeblur.training.recipe import Schedule
from streamdeblur.training.schedule import rate_factor


def at(schedule: Schedule, *steps: int) -> list[float]:
    return [rate_factor(schedule, s) for s in steps]


def test_constant() -> None:
    assert at(Schedule(kind="constant", total=10), 0, 5, 10, 99) == [1, 1, 1, 1]


def test_step_halves_at_the_multiples() -> None:
    s = Schedule(kind="step", every=500, total=3000)
    assert at(s, 0, 499, 500, 999, 1000, 2999) == [1, 1, 0.5, 0.5, 0.25, 0.5**5]
    assert at(Schedule(kind="step", every=10, factor=0.1), 25) == [pytest.approx(0.01)]


def test_cosine_from_one_to_the_final_factor() -> None:
    s = Schedule(kind="cosine", total=100, final=0.2)
    assert at(s, 0, 50, 100, 150) == pytest.approx([1, 0.6, 0.2, 0.2])
    assert at(s, 25) == [pytest.approx(0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2)]
    assert at(s, 75) == [pytest.approx(0.2 + 0.8 * (1 - math.sqrt(0.5)) / 2)]


def test_one_cycle_climbs_then_falls() -> None:
    s = Schedule(kind="one-cycle", total=100, rise=0.4, final=0.0)
    assert at(s, 0, 20, 40, 70, 100) == pytest.approx([1 / 25, (1 + 1 / 25) / 2, 1, 0.5, 0])


def test_trapezoid_falls_over_the_last_steps() -> None:
    s = Schedule(kind="trapezoid", total=100, decay=20, final=0.1)
    assert at(s, 0, 80, 90, 95, 99) == pytest.approx([1, 1, 0.5, 0.25, 0.1])
    assert at(Schedule(kind="trapezoid", total=100), 99) == [1]


def test_warm_up_multiplies_what_the_kind_gives() -> None:
    flat = Schedule(kind="constant", warmup=4)
    assert at(flat, 0, 1, 3, 4, 5) == pytest.approx([0.2, 0.4, 0.8, 1, 1])
    falling = Schedule(kind="step", every=2, warmup=4)
    assert at(falling, 2, 3) == pytest.approx([0.5 * 0.6, 0.5 * 0.8])
