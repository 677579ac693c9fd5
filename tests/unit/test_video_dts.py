"""Decoding times that are missing at the beginning of a stream are made from what follows."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av

from streamdeblur.video.dts import LeadingDts


def packet(pts: int | None, dts: int | None, duration: int = 40) -> av.Packet[Any]:
    made: av.Packet[Any] = av.Packet(b"x")
    made.pts, made.dts, made.duration, made.time_base = pts, dts, duration, Fraction(1, 1000)
    return made


def run(*packets: av.Packet[Any]) -> list[tuple[int | None, int | None]]:
    leading = LeadingDts()
    out = [p for given in packets for p in leading.push(given)]
    return [(p.pts, p.dts) for p in [*out, *leading.flush()]]


def test_they_are_counted_back_from_the_first_known_one() -> None:
    given = [(47, None), (207, None), (127, 47), (87, 87), (167, 127)]
    assert run(*(packet(*g) for g in given)) == [(47, -33), (207, 7), (127, 47), (87, 87), (167, 127)]


def test_no_packet_is_decoded_after_it_is_shown() -> None:
    out = run(packet(0, None, 0), packet(400, None, 0), packet(100, 50, 0), packet(20, 60, 0))
    assert [pts for pts, _ in out] == [0, 400, 100, 20]
    stamps = [dts for _, dts in out[:3] if dts is not None]
    assert stamps == sorted(set(stamps))
    assert all(pts is not None and dts is not None and dts <= pts for pts, dts in out[:3])


def test_a_stream_without_any_is_put_in_order_of_presentation() -> None:
    shown = [0, 160, 80, 40, 120]
    out = run(*(packet(pts, None) for pts in shown))
    assert [pts for pts, _ in out] == shown
    stamps = [dts for _, dts in out if dts is not None]
    assert stamps == [-80, -40, 0, 40, 80]


def test_one_that_is_missing_later_follows_the_one_before() -> None:
    assert run(packet(0, 0), packet(80, None), packet(40, 60)) == [(0, 0), (80, 40), (40, 60)]


def test_packets_without_any_time_pass() -> None:
    assert run(packet(None, None), packet(None, None)) == [(None, None), (None, None)]


def test_few_packets_are_held() -> None:
    leading = LeadingDts()
    given = [packet(40 * i, None) for i in range(40)]
    out = [p for g in given for p in leading.push(g)]
    assert len(out) == len(given)
