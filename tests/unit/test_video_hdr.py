"""HDR10 blocks of FFmpeg to x265's words."""

from __future__ import annotations

import struct

from streamdeblur.video.hdr import parse_content_light, parse_mastering_display


def _block(primaries: int, luminance: int) -> bytes:
    # BT.2020 primaries and D65, 0.005 to 1000 cd/m2, each as numerator and denominator of its own
    rationals = [(708, 1000), (292, 1000), (17, 100), (797, 1000), (131, 1000), (46, 1000), (3127, 10000), (329, 1000)]
    flat = [n for pair in [*rationals, (5, 1000), (1000, 1)] for n in pair]
    return struct.pack("=22i", *flat, primaries, luminance)


def test_mastering_display_in_units_of_st_2086() -> None:
    display = parse_mastering_display(_block(1, 1))
    assert display is not None
    assert display.x265() == "G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(10000000,50)"


def test_one_flag_is_enough_and_none_is_not() -> None:
    assert parse_mastering_display(_block(1, 0)) is not None
    assert parse_mastering_display(_block(0, 0)) is None
    assert parse_mastering_display(_block(1, 1)[:-1]) is None


def test_zero_denominators_are_zero() -> None:
    display = parse_mastering_display(struct.pack("=22i", *([5, 0] * 10), 1, 1))
    assert display is not None
    assert display.red == (0, 0)
    assert display.max_luminance == 0


def test_content_light() -> None:
    light = parse_content_light(struct.pack("=2I", 1000, 400))
    assert light is not None
    assert light.x265() == "1000,400"
    assert parse_content_light(struct.pack("=2I", 0, 0)) is None
    assert parse_content_light(b"1234567") is None
