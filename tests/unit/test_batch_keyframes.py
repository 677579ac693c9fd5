"""Which keyframes are places to cut: hand-made packets after the specifications."""

from __future__ import annotations

import pytest

from streamdeblur.jobs.batch.keyframes import is_closed

START = b"\0\0\0\1"


def nal(*kinds: int, hevc: bool = False) -> bytes:
    return b"".join(START + bytes([kind << 1, 1] if hevc else [kind, 0x88]) + b"\x11\x22" for kind in kinds)


def framed(*kinds: int, width: int = 4) -> bytes:
    return b"".join((3).to_bytes(width, "big") + bytes([kind, 0x88, 0x11]) for kind in kinds)


def avcc(width: int) -> bytes:
    return bytes([1, 100, 0, 30, 0xFC | (width - 1), 0xE1])


@pytest.mark.parametrize(
    ("codec", "data", "closed"),
    [
        ("h264", nal(9, 7, 8, 6, 5), True),
        ("h264", nal(9, 7, 8, 6, 1), False),  # a recovery point
        ("h264", nal(5, 1), False),
        ("h264", nal(7, 8), False),
        ("h264", b"", False),
        ("hevc", nal(32, 33, 34, 19, hevc=True), True),
        ("hevc", nal(20, 20, hevc=True), True),
        ("hevc", nal(21, hevc=True), False),  # CRA
        ("hevc", nal(16, hevc=True), False),  # BLA
        ("mpeg2video", b"\0\0\1\xb3....\0\0\1\xb8\0\0\0\x40", True),
        ("mpeg2video", b"\0\0\1\xb3....\0\0\1\xb8\0\0\0\x20", False),
        ("mpeg2video", b"\0\0\1\xb3....", False),
        ("vp8", b"\x10\0\0", True),
        ("vp8", b"\x11\0\0", False),  # an inter frame
        ("vp8", b"\x00\0\0", False),  # a hidden key frame
        ("vp9", b"\x82\x49", True),
        ("vp9", b"\x80\x49", False),  # hidden
        ("vp9", b"\x86\x49", False),  # an inter frame
        ("vp9", b"\x8a\x49", False),  # shows an earlier frame
        ("av1", b"\x12\0\x0a\x01\x00\x32\x02\x10\x00", True),
        ("av1", b"\x12\0\x0a\x01\x00\x32\x02\x00\x00", False),  # hidden
        ("av1", b"\x12\0\x32\x02\x30\x00", False),  # an inter frame
        ("av1", b"\x12\0\x1a\x01\x80", False),  # shows an earlier frame
        ("mjpeg", b"\xff\xd8", True),
        ("mpeg4", b"\0\0\1\xb6\x10", False),  # nothing is known of it
    ],
)
def test_only_what_is_proven_is_closed(codec: str, data: bytes, closed: bool) -> None:
    assert is_closed(codec, data, b"") is closed


@pytest.mark.parametrize("width", [1, 2, 4])
def test_h264_with_lengths(width: int) -> None:
    assert is_closed("h264", framed(6, 5, width=width), avcc(width))
    assert not is_closed("h264", framed(6, 1, width=width), avcc(width))


def test_hevc_with_lengths() -> None:
    configuration = bytes([1]) + bytes(20) + b"\xff"
    idr = (3).to_bytes(4, "big") + bytes([19 << 1, 1, 0])
    cra = (3).to_bytes(4, "big") + bytes([21 << 1, 1, 0])
    assert is_closed("hevc", idr, configuration)
    assert not is_closed("hevc", cra, configuration)
