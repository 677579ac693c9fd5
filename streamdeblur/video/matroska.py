"""Matroska details that FFmpeg's muxer has no door for: the display size of a video track, written after the fact.

The sample aspect ratio of a Matroska track is the quotient of DisplayWidth and DisplayHeight (RFC 9559, 5.1.4.1.28.11
and .12). The muxer writes them from a field of the stream that is out of reach for encoded streams, so room is booked
in the header, as a track name with padding, and used for them when the file is complete. No byte moves outside the
track's own entry.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

_SEGMENT, _TRACKS, _CLUSTER, _ENTRY, _VIDEO, _NAME = 0x18538067, 0x1654AE6B, 0x1F43B675, 0xAE, 0xE0, 0x536E
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT, _VOID, _CRC = 0x54B0, 0x54BA, 0x54B2, 0xEC, 0xBF
_PADDING = 48
_MARK = "\x01room"


@dataclass(frozen=True, slots=True)
class _Element:
    ident: int
    start: int  # of the header
    body: int
    end: int


def booked_name(name: str, number: int) -> str:
    """A track name with room behind it; ``number`` tells the tracks of a file apart."""
    return f"{name}{_MARK}{number:03d}{'.' * _PADDING}"


def display_size(width: int, height: int, ratio: Fraction) -> tuple[int, int]:
    """Display width and height whose quotient comes closest to ``ratio`` on pixels of width x height.

    The smallest that is exact, up to some thousand; otherwise the best in that range.
    """
    aspect = Fraction(width, height) * ratio
    best: tuple[Fraction, int, int] | None = None
    for multiple in range(1, 65):
        for w, h in (
            (max(1, round(aspect * height * multiple)), height * multiple),
            (width * multiple, max(1, round(width * multiple / aspect))),
        ):
            error = abs(Fraction(w, h) / aspect - 1)
            if best is None or error < best[0]:
                best = (error, w, h)
        assert best is not None
        if best[0] == 0 or max(width, height) * multiple > 16384:
            break
    assert best is not None
    return best[1], best[2]


def write_display_sizes(path: Path, wanted: Mapping[str, tuple[str, tuple[int, int] | None]]) -> None:
    """Give tracks their real name and display size in place.

    wanted: from a track's booked name to its real name and (width, height). Raises ValueError when the file is not what
    the muxer writes, OSError when it can't be changed.
    """
    with open(path, "r+b") as f:
        head = f.read(min(os.path.getsize(path), 1 << 24))
        tracks = _find_tracks(head)
        block = bytearray(head[tracks.body : tracks.end])
        left = dict(wanted)
        for entry in list(_elements(block, 0, len(block))):
            if entry.ident != _ENTRY:
                continue
            names = [e for e in _elements(block, entry.body, entry.end) if e.ident == _NAME]
            name = bytes(block[names[0].body : names[0].end]).decode("utf-8", "replace") if names else ""
            if name not in left:
                continue
            real, size = left.pop(name)
            body = _rebuilt(block, entry, real, size)
            room = entry.end - entry.body - len(body)
            block[entry.body : entry.end] = body + _void(room)
        if left:
            raise ValueError("a track of the Matroska header was not found again")
        first = next(_elements(block, 0, len(block)), None)
        if first is not None and first.ident == _CRC:
            block[first.body : first.end] = zlib.crc32(bytes(block[first.end :])).to_bytes(4, "little")
        f.seek(tracks.body)
        f.write(block)


def _rebuilt(block: bytearray, entry: _Element, name: str, size: tuple[int, int] | None) -> bytes:
    out = bytearray()
    for element in _elements(block, entry.body, entry.end):
        raw = bytes(block[element.start : element.end])
        if element.ident == _NAME:
            out += _packed(_NAME, name.encode()) if name else b""
        elif element.ident == _VIDEO and size is not None:
            inner = b"".join(
                bytes(block[e.start : e.end])
                for e in _elements(block, element.body, element.end)
                if e.ident not in (_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT, _VOID)
            )
            inner += _packed(_DISPLAY_WIDTH, _uint(size[0])) + _packed(_DISPLAY_HEIGHT, _uint(size[1]))
            out += _packed(_VIDEO, inner)
        else:
            out += raw
    return bytes(out)


def _void(room: int) -> bytes:
    if room == 0:
        return b""
    if room < 2 or room - 2 > 126:
        raise ValueError(f"{room} bytes can't be filled in the Matroska header")
    return bytes([_VOID, 0x80 | (room - 2)]) + bytes(room - 2)


def _uint(value: int) -> bytes:
    return value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big")


def _packed(ident: int, body: bytes) -> bytes:
    length = 1
    while len(body) >= (1 << (7 * length)) - 1:
        length += 1
    size = (len(body) | 1 << (7 * length)).to_bytes(length, "big")
    return ident.to_bytes((ident.bit_length() + 7) // 8, "big") + size + body


def _find_tracks(data: bytes) -> _Element:
    for top in _elements(data, 0, len(data)):
        if top.ident == _SEGMENT:
            for element in _elements(data, top.body, min(top.end, len(data))):
                if element.ident == _TRACKS and element.end <= len(data):
                    return element
                if element.ident == _CLUSTER:
                    break
    raise ValueError("the Matroska header has no tracks")


def _elements(data: bytes | bytearray, start: int, end: int) -> Iterator[_Element]:
    position = start
    while position < end:
        first = data[position]
        width = 9 - first.bit_length() if first else 9
        if width > 4:
            raise ValueError("not an EBML identifier")
        ident = int.from_bytes(data[position : position + width], "big")
        at = position + width
        if at >= end:
            raise ValueError("an EBML element is cut off")
        length = 9 - data[at].bit_length() if data[at] else 9
        if length > 8:
            raise ValueError("not an EBML size")
        size = int.from_bytes(data[at : at + length], "big") & ((1 << (7 * length)) - 1)
        body = at + length
        unknown = size == (1 << (7 * length)) - 1
        stop = end if unknown else body + size
        yield _Element(ident, position, body, stop)
        position = stop
