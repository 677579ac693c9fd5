"""Timestamps: the source's own wherever they increase, and nothing else where they don't."""

from __future__ import annotations

import itertools
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from streamdeblur.video.timeline import Timeline, frame_rate, lift


@given(
    st.lists(st.integers(-(10**6), 10**9), min_size=1, max_size=40, unique=True).map(sorted),
    st.sampled_from([Fraction(1), Fraction(1, 25), Fraction(1001, 30000), Fraction(1, 90000), Fraction(1, 10**9)]),
)
def test_increasing_timestamps_stay_as_rational_seconds(stamps: list[int], tick: Fraction) -> None:
    timeline = Timeline(tick, Fraction(25))
    assert [timeline.stamp(s) * timeline.tick for s in stamps] == [s * tick for s in stamps]
    assert timeline.moved == timeline.made == 0


@given(st.lists(st.one_of(st.none(), st.integers(0, 50)), min_size=1, max_size=60))
def test_output_always_increases(stamps: list[int | None]) -> None:
    timeline = Timeline(Fraction(1, 25), Fraction(25))
    out = [timeline.stamp(s) for s in stamps]
    assert all(a < b for a, b in itertools.pairwise(out))


def test_repeated_timestamp_moves_by_less_than_a_tenth_of_a_millisecond() -> None:
    timeline = Timeline(Fraction(1), None)
    first, second, third = (timeline.stamp(s) * timeline.tick for s in (3, 3, 4))
    assert first == 3
    assert third == 4
    assert 0 < second - first <= Fraction(1, 10000)
    assert timeline.moved == 1


def test_missing_timestamps_follow_the_rate() -> None:
    timeline = Timeline(Fraction(1, 1200000), Fraction(24))
    assert [timeline.stamp(None) * timeline.tick for _ in range(4)] == [Fraction(i, 24) for i in range(4)]
    assert timeline.made == 4


def test_lift_brings_a_negative_start_to_zero_and_back() -> None:
    shift = lift(Fraction(-7, 25))
    timeline = Timeline(Fraction(1, 25), Fraction(25), shift)
    stamps = [timeline.stamp(s) for s in (-7, -6, 0)]
    assert [s * timeline.tick for s in stamps] == [0, Fraction(1, 25), Fraction(7, 25)]
    assert [timeline.in_source_ticks(s) for s in stamps] == [-7, -6, 0]
    assert lift(Fraction(1, 3)) == lift(None) == 0


def test_frame_rate_is_sane() -> None:
    assert frame_rate(None) == frame_rate(Fraction(0)) == 25
    assert frame_rate(Fraction(30000, 1001)) == Fraction(30000, 1001)
    assert frame_rate(Fraction(90000)) == 1000
    assert 0 < frame_rate(Fraction(1, 10**6)) < 1
