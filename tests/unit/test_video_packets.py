"""Digests of payloads do not see the container's framing, and do see everything else."""

from __future__ import annotations

import re
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from streamdeblur.video.packets import StreamDigest, avc_parameter_sets, begins_picture, is_hidden, without_adts


def _adts(payload: bytes, *, crc: bool = False, length: int | None = None) -> bytes:
    head = 9 if crc else 7
    n = len(payload) + head if length is None else length
    fixed = bytes([0xFF, 0xF0 | (not crc), 0x50, 0x80 | n >> 11, n >> 3 & 0xFF, (n & 7) << 5 | 0x1F, 0xFC])
    return fixed + bytes(head - 7) + payload


def _digest(codec: str, *packets: bytes) -> StreamDigest:
    digest = StreamDigest(codec)
    for p in packets:
        digest.add(p)
    return digest


def test_adts_headers_are_taken_off() -> None:
    body = bytes(range(40))
    assert without_adts(_adts(body)) == without_adts(_adts(body, crc=True)) == body
    assert without_adts(body) == body
    assert without_adts(_adts(body[:30], length=47)) == body[:30]  # the file ends inside the packet


def test_annex_b_equals_length_prefixes() -> None:
    units = [b"\x65" + bytes([7]) * 9, b"\x41abc"]
    annex_b = b"\0\0\0\1" + units[0] + b"\0\0\1" + units[1]
    prefixed = b"".join(len(u).to_bytes(4, "big") + u for u in units)
    assert _digest("h264", annex_b).same(_digest("h264", prefixed))
    assert not _digest("h264", annex_b).same(_digest("h264", prefixed[:-1] + b"d"))


def test_a_length_that_looks_like_a_start_code() -> None:
    """256 to 511 bytes: 00 00 01 xx."""
    for size in (256, 302, 511):
        unit = b"\x41" + bytes(i % 251 + 1 for i in range(size - 1))
        prefixed = size.to_bytes(4, "big") + unit
        assert prefixed[:3] == b"\0\0\1"
        assert _digest("h264", b"\0\0\0\1" + unit).same(_digest("h264", prefixed))
        assert not _digest("h264", b"\0\0\0\1" + unit[:-1] + b"x").same(_digest("h264", prefixed))


def test_parameter_sets_may_live_in_the_header() -> None:
    picture = b"\0\0\1\x65picture"
    assert _digest("h264", b"\0\0\1\x67sps\0\0\1\x68pps" + picture).same(_digest("h264", picture))


def test_packets_count_but_for_pcm() -> None:
    assert not _digest("opus", b"ab", b"cd").same(_digest("opus", b"abcd"))
    assert _digest("pcm_s16le", b"ab", b"cd").same(_digest("pcm_s16le", b"abcd"))
    assert not _digest("opus", b"ab").same(_digest("opus", b"ac"))
    assert _digest("opus", b"", b"ab").same(_digest("opus", b"ab"))


def test_parameter_sets_of_an_avcc_record() -> None:
    """Two sequence sets and one picture set, with lengths of four bytes and of two."""
    sets = [b"\x67\x64\x00\x0a\xac", b"\x67\x42", b"\x68\xee\x3c"]
    for width in (4, 2):
        record = bytes([1, 0x64, 0, 0x0A, 0xFC | (width - 1), 0xE0 | 2])
        record += b"".join(len(s).to_bytes(2, "big") + s for s in sets[:2])
        record += bytes([1]) + len(sets[2]).to_bytes(2, "big") + sets[2]
        assert avc_parameter_sets(record) == b"".join(len(s).to_bytes(width, "big") + s for s in sets)
    assert avc_parameter_sets(b"\0\0\0\1\x67\x64\0\x0a") == b""
    assert avc_parameter_sets(b"") == b""


@pytest.mark.parametrize(
    ("kind", "pts", "duration", "discard", "hidden"),
    [
        ("subtitle", -800, 200, True, True),
        ("data", -700, 700, True, True),
        ("subtitle", -100, 200, True, False),  # seen in part
        ("subtitle", -800, 200, False, False),
        ("audio", -800, 200, True, False),  # needed to decode what follows
        ("video", -800, 200, True, False),
        ("subtitle", None, 200, True, False),
        ("subtitle", 0, 200, False, False),
    ],
)
def test_what_an_edit_list_hides(kind: str, pts: int | None, duration: int, discard: bool, hidden: bool) -> None:
    packet = SimpleNamespace(pts=pts, duration=duration, is_discard=discard)
    assert is_hidden(packet, kind) is hidden


@pytest.mark.parametrize(
    ("encoder", "codec", "options"),
    [
        ("libx264", "h264", {"x264-params": "slices=4:threads=1"}),
        ("libx265", "hevc", {"x265-params": "slices=4:frame-threads=1:log-level=none"}),
    ],
)
def test_the_rest_of_a_picture_is_told_from_a_whole_one(encoder: str, codec: str, options: dict[str, str]) -> None:
    context: Any = av.CodecContext.create(encoder, "w")
    context.width, context.height, context.pix_fmt, context.time_base = 320, 256, "yuv420p", Fraction(1, 25)
    context.options = options
    noise = np.random.default_rng(0)
    packets = []
    for n in range(4):
        frame = av.VideoFrame.from_ndarray(noise.integers(0, 256, (384, 320), np.uint8), format="yuv420p")
        frame.pts = n
        packets += [bytes(p) for p in context.encode(frame)]
    packets += [bytes(p) for p in context.encode(None)]
    assert len(packets) == 4
    for packet in packets:
        assert begins_picture(packet, codec)
        starts = [m.start() for m in re.finditer(re.escape(b"\0\0\1"), packet)]
        slices = starts[-4:]  # parameter sets and messages come before them
        assert begins_picture(packet[slices[0] :], codec)
        for start in slices[1:]:
            assert not begins_picture(packet[start:], codec)
        assert not begins_picture(packet[slices[0] + 7 :], codec), "from within a slice"
        assert not begins_picture(packet[: slices[0] + 4], codec), "no slice at all"
    assert not begins_picture(b"", codec)
    assert begins_picture(packets[0][9:], "mjpeg")
