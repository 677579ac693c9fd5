"""Matroska details that FFmpeg's muxer has no door for, written after the fact: display sizes, and sound with the
codecs of WAV.

The sample aspect ratio of a Matroska track is the quotient of DisplayWidth and DisplayHeight (RFC 9559, 5.1.4.1.28.11
and .12). The muxer writes them from a field of the stream that is out of reach for encoded streams, so room is booked
in the header, as a track name with padding, and used for them when the file is complete. No byte moves outside the
track's own entry.

Sound of AVI and WMV (Windows Media Audio, ADPCM, mu-law) is held as ``A_MS/ACM``, with the WAVEFORMATEX of its codec
(Matroska codec specifications, A_MS/ACM). The muxer takes such a stream only under the name of a codec that it knows;
the track then gets its real codec, description and number of channels.
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
_CODEC, _PRIVATE, _AUDIO, _CHANNELS, _BIT_DEPTH = 0x86, 0x63A2, 0xE1, 0x9F, 0x6264
_PADDING = 48
#: A codec that the muxer takes as it comes, and neither parses nor describes.
STAND_IN = "mp3"
_MARK = "\x01room"


@dataclass(frozen=True, slots=True)
class _Element:
    ident: int
    start: int  # of the header
    body: int
    end: int


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What a track really is: name; display size (width, height); WAVEFORMATEX of sound that has a stand-in codec."""

    name: str
    size: tuple[int, int] | None = None
    wave: bytes | None = None


def booked_name(name: str, number: int, wave: bytes | None = None) -> str:
    """A track name with room behind it; ``number`` tells the tracks of a file apart."""
    return f"{name}{_MARK}{number:03d}{'.' * (_PADDING + len(wave or b''))}"


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


def rewrite_tracks(path: Path, wanted: Mapping[str, Rewrite]) -> None:
    """Give tracks their real name, display size and codec in place.

    wanted: by a track's booked name. Raises ValueError when the file is not what the muxer writes, OSError when it
    can't be changed.
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
            body = _rebuilt(block, entry, left.pop(name))
            room = entry.end - entry.body - len(body)
            block[entry.body : entry.end] = body + _void(room)
        if left:
            raise ValueError("a track of the Matroska header was not found again")
        first = next(_elements(block, 0, len(block)), None)
        if first is not None and first.ident == _CRC:
            block[first.body : first.end] = zlib.crc32(bytes(block[first.end :])).to_bytes(4, "little")
        f.seek(tracks.body)
        f.write(block)


def _rebuilt(block: bytearray, entry: _Element, real: Rewrite) -> bytes:
    out = bytearray()
    for element in _elements(block, entry.body, entry.end):
        raw = bytes(block[element.start : element.end])
        if element.ident == _NAME:
            out += _packed(_NAME, real.name.encode()) if real.name else b""
        elif element.ident == _VIDEO and real.size is not None:
            inner = _without(block, element, (_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT, _VOID))
            inner += _packed(_DISPLAY_WIDTH, _uint(real.size[0])) + _packed(_DISPLAY_HEIGHT, _uint(real.size[1]))
            out += _packed(_VIDEO, inner)
        elif element.ident == _AUDIO and real.wave is not None:
            inner = _without(block, element, (_CHANNELS, _BIT_DEPTH, _VOID))
            out += _packed(_AUDIO, inner + _packed(_CHANNELS, _uint(int.from_bytes(real.wave[2:4], "little"))))
        elif element.ident == _CODEC and real.wave is not None:
            out += _packed(_CODEC, b"A_MS/ACM") + _packed(_PRIVATE, real.wave)
        elif element.ident == _PRIVATE and real.wave is not None:
            continue
        else:
            out += raw
    return bytes(out)


def _without(block: bytearray, element: _Element, idents: tuple[int, ...]) -> bytes:
    children = _elements(block, element.body, element.end)
    return b"".join(bytes(block[e.start : e.end]) for e in children if e.ident not in idents)


def _void(room: int) -> bytes:
    if room == 0:
        return b""
    if 2 <= room <= 128:
        return bytes([_VOID, 0x80 | (room - 2)]) + bytes(room - 2)
    if 128 < room < 1 << 13:
        return bytes([_VOID]) + (0x4000 | (room - 3)).to_bytes(2, "big") + bytes(room - 3)
    raise ValueError(f"{room} bytes can't be filled in the Matroska header")


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
