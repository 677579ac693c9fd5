"""Does a file end before its own container says it should?

FFmpeg ends such a file quietly: the iterator stops, and a job that trusts it writes a shorter video. Containers that
carry their own length say so at the top level, which a few reads find out:

- ISO BMFF (MP4, MOV; ISO/IEC 14496-12, 4.2): a box whose size leads past the end of the file;
- Matroska/WebM (RFC 8794): a Segment of known size that leads past it;
- RIFF (AVI): the size of the first chunk.

Streamable formats (MPEG-TS, Ogg, raw) have no such promise and are never called truncated here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def missing_bytes(path: str | os.PathLike[str]) -> int:
    """How many bytes the container promises beyond the end of the file; 0 when complete or unknown.

    Reads a few headers, never the payload. Raises OSError when the file can't be read.
    """
    file = Path(path)
    if not file.is_file():
        return 0
    size = file.stat().st_size
    with file.open("rb") as f:
        head = f.read(16)
        if len(head) < 12:
            return 0
        if head[:4] == b"RIFF":
            promised = int.from_bytes(head[4:8], "little")
            # 0 and all ones are what a writer leaves that could not seek back; OpenDML files continue in more chunks.
            return 0 if promised in (0, 0xFFFFFFFF) else max(0, promised + 8 - size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska(f, size)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"sidx", b"pnot", b"uuid"):
            return _boxes(f, size)
    return 0


def _boxes(f: BinaryIO, size: int) -> int:
    position = 0
    while position + 8 <= size:
        f.seek(position)
        head = f.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # to the end of the file
            return 0
        if length < 8:  # not a box: garbage after the last one is not a promise
            return 0
        position += length
        if position > size:
            kind = head[4:8]
            # Only known payload boxes count: trailing bytes of something else may look like a giant box.
            return position - size if kind in (b"mdat", b"moov", b"moof") else 0
    return 0


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
            return max(0, end - size)
        f.seek(end)
    return 0
