"""Files that end before their container says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamdeblur.video.truncation import truncation


def _box(kind: bytes, payload: bytes, length: int | None = None) -> bytes:
    return (len(payload) + 8 if length is None else length).to_bytes(4, "big") + kind + payload


def _ask(tmp_path: Path, data: bytes) -> tuple[int, bool] | None:
    path = tmp_path / "x"
    path.write_bytes(data)
    found = truncation(path)
    return None if found is None else (found.missing, found.payload_only)


HEAD = _box(b"ftyp", b"isom\0\0\0\0")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (HEAD + _box(b"mdat", bytes(20)), None),
        (HEAD + _box(b"mdat", bytes(20), 128), (100, True)),
        (HEAD + _box(b"moov", bytes(20), 128), (100, False)),
        (HEAD + _box(b"mdat", bytes(20), 0), None),  # to the end of the file
        (HEAD + (1).to_bytes(4, "big") + b"mdat" + (116).to_bytes(8, "big") + bytes(50), (50, True)),
        (HEAD + _box(b"junk", bytes(20), 10**9), None),
        (HEAD + _box(b"mdat", bytes(8)) + b"\0\0\0\3trailing", None),
        (b"short", None),
        (b"", None),
    ],
)
def test_boxes(tmp_path: Path, data: bytes, expected: tuple[int, bool] | None) -> None:
    assert _ask(tmp_path, data) == expected


def _chunk(kind: bytes, payload: bytes, length: int | None = None) -> bytes:
    return kind + (len(payload) if length is None else length).to_bytes(4, "little") + payload


@pytest.mark.parametrize(("movi", "riff", "missing"), [(None, None, 0), (200, 400, 180), (None, 400, 0), (200, 0, 0)])
def test_avi_counts_only_what_holds_packets(tmp_path: Path, movi: int | None, riff: int | None, missing: int) -> None:
    inner = b"AVI " + _chunk(b"LIST", b"hdrl" + bytes(8)) + _chunk(b"LIST", b"movi" + bytes(16), movi)
    found = _ask(tmp_path, _chunk(b"RIFF", inner, riff))
    assert found == ((missing, False) if missing else None)


EBML = b"\x1a\x45\xdf\xa3\x80"


def _segment(promise: int | None, body: bytes) -> bytes:
    size = b"\x01" + b"\xff" * 7 if promise is None else (1 << 56 | promise).to_bytes(8, "big")
    return EBML + b"\x18\x53\x80\x67" + size + body


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_segment(10, b"\xec\x88" + bytes(8)), None),
        (_segment(110, b"\xec\x88" + bytes(8)), None),  # ends between two elements: only the size is wrong
        (_segment(110, b"\xec\x8f" + bytes(8)), (100, False)),
        (_segment(None, b"\xec\x8f" + bytes(8)), None),  # a live recording
    ],
)
def test_matroska(tmp_path: Path, data: bytes, expected: tuple[int, bool] | None) -> None:
    assert _ask(tmp_path, data) == expected


def test_a_missing_file_is_no_truncation(tmp_path: Path) -> None:
    assert truncation(tmp_path / "none") is None


def _ts(count: int, before: bytes = b"") -> bytes:
    return b"".join(before + b"\x47" + bytes([i]) * 187 for i in range(count))


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (_ts(20), 0),
        (_ts(20)[:-1], 1),
        (_ts(20)[:-187], 187),
        (_ts(3)[:-8], 8),
        (_ts(20, b"time"), 0),
        (_ts(20, b"time")[:-30], 30),
        (_ts(20, b"time")[:-189], 0),  # the time of a packet that is not there
        (_ts(10) + b"lost" + _ts(10), 0),  # bytes went missing, and packets go on
        (_ts(10) + b"lost" + _ts(10)[:-5], 5),
        (_ts(20) + b"trailing", 0),
        (b"\x47" + bytes(1000), 0),
    ],
)
def test_mpeg_ts_lacks_what_its_last_packet_lacks(tmp_path: Path, data: bytes, missing: int) -> None:
    assert _ask(tmp_path, data) == ((missing, False) if missing else None)
