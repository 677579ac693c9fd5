"""Does a file end before its own container says it should?

FFmpeg ends such a file quietly: the iterator stops, and a job that trusts it writes a shorter video. Containers that
carry their own length say so at the top level, which a few reads find out:

- ISO BMFF (MP4, MOV; ISO/IEC 14496-12, 4.2): a box whose size leads past the end of the file;
- Matroska/WebM (RFC 8794): a Segment of known size that leads past it, with an element in it that is cut (one that
  ends between two elements just has a wrong size);
- RIFF (AVI): the size of the ``movi`` list, which holds every packet (an index that is cut off costs nothing);
- MPEG-TS (ISO/IEC 13818-1, 2.4.3.2): packets of 188 bytes, with a time before each in M2TS, of which the last is cut.

Other streamable formats (Ogg, raw) have no such promise and are never called truncated here; neither is MPEG-TS that
ends between two packets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

#: MPEG-TS: bytes of a packet, the first of them, and how many packets at the end must begin with it.
_TS = 188
_SYNC = 0x47
_TAIL = 8


@dataclass(frozen=True, slots=True)
class Truncation:
    """missing: bytes the container promises beyond the end of the file.

    payload_only: they belong to a box of media data whose length may just be wrong; the sample tables know better.
    """

    missing: int
    payload_only: bool = False


def truncation(path: str | os.PathLike[str]) -> Truncation | None:
    """What the container promises beyond the end of the file; None when it is complete or does not say.

    Reads a few headers, never the payload. Raises OSError when the file can't be read.
    """
    file = Path(path)
    if not file.is_file():
        return None
    size = file.stat().st_size
    with file.open("rb") as f:
        head = f.read(16)
        if len(head) < 12:
            return None
        if head[:4] == b"RIFF":
            missing = _riff(f, size) if head[8:12] == b"AVI " else 0
            return Truncation(missing) if missing else None
        if head[:4] == b"\x1a\x45\xdf\xa3":
            missing = _matroska(f, size)
            return Truncation(missing) if missing else None
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"sidx", b"pnot", b"uuid"):
            return _boxes(f, size)
        for length, sync in ((_TS, 0), (_TS + 4, 4)):
            if _in_packets(head + f.read(2 * length), length, sync):
                missing = _cut_packet(f, size, length)
                return Truncation(missing) if missing else None
            f.seek(16)
    return None


def _in_packets(data: bytes, length: int, phase: int) -> bool:
    return len(data) > phase + length and all(byte == _SYNC for byte in data[phase::length])


def _cut_packet(f: BinaryIO, size: int, length: int) -> int:
    """Bytes that the last packet lacks. Packets are counted at the end: a capture may have lost bytes anywhere."""
    f.seek(max(0, size - _TAIL * length))
    tail = f.read()
    sync = length - _TS
    for phase in range(sync, length + sync):
        if _in_packets(tail, length, phase):
            rest = (len(tail) - phase + sync) % length
            return length - rest if rest > sync else 0
    return 0


def _riff(f: BinaryIO, size: int) -> int:
    """OpenDML files continue in more RIFF chunks; 0 and all ones are what a writer leaves that can't seek back."""
    position = 0
    while position + 12 <= size:
        f.seek(position)
        head = f.read(12)
        if head[:4] != b"RIFF":
            return 0
        length = int.from_bytes(head[4:8], "little")
        end = position + 8 + length
        if length in (0, 0xFFFFFFFF):
            return 0
        inner = position + 12
        while inner + 8 <= min(end, size):
            f.seek(inner)
            chunk = f.read(12)
            span = int.from_bytes(chunk[4:8], "little")
            stop = inner + 8 + span
            if chunk[:4] == b"LIST" and chunk[8:12] == b"movi" and span not in (0, 0xFFFFFFFF) and stop > size:
                return stop - size
            inner = stop + stop % 2
        position = end + end % 2
    return 0


def _boxes(f: BinaryIO, size: int) -> Truncation | None:
    position = 0
    while position + 8 <= size:
        f.seek(position)
        head = f.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # to the end of the file
            return None
        if length < 8:  # not a box: garbage after the last one is not a promise
            return None
        position += length
        if position > size:
            kind = head[4:8]
            # Only known boxes count: trailing bytes of something else may look like a giant box.
            if kind not in (b"mdat", b"moov", b"moof"):
                return None
            return Truncation(position - size, payload_only=kind == b"mdat")
    return None


def _vint(f: BinaryIO, *, keep_marker: bool) -> tuple[int, int] | None:
    first = f.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = f.read(length - 1)
    if len(rest) != length - 1:
        return None
    value = first[0] if keep_marker else first[0] & ((1 << (8 - length)) - 1)
    for byte in rest:
        value = value << 8 | byte
    return value, length


def _matroska(f: BinaryIO, size: int) -> int:
    f.seek(0)
    for _ in range(8):  # EBML header, perhaps Void elements, then the Segment
        element = _vint(f, keep_marker=True)
        length = _vint(f, keep_marker=False)
        if element is None or length is None:
            return 0
        if length[0] == (1 << (7 * length[1])) - 1:  # unknown size: a live recording
            return 0
        end = f.tell() + length[0]
        if element[0] == 0x18538067:
            return end - size if end > size and _cut_inside(f, size) else 0
        f.seek(end)
    return 0


def _cut_inside(f: BinaryIO, size: int) -> bool:
    """True when a child of the Segment that ``f`` stands at the body of leads past the end of the file."""
    while f.tell() < size:
        element = _vint(f, keep_marker=True)
        length = _vint(f, keep_marker=False)
        if element is None or length is None:
            return True
        if length[0] == (1 << (7 * length[1])) - 1:
            return False
        end = f.tell() + length[0]
        if end > size:
            return True
        f.seek(end)
    return False
