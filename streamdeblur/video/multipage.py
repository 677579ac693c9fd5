"""How many pictures a picture file holds: animated PNG and WebP, TIFF with several pages. Reads headers only."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

#: Pages and chunks that are looked at: a file may be damaged, or lead in circles.
_LIMIT = 10_000


def pictures_in(path: str | os.PathLike[str]) -> int:
    """Pictures in a file: 1 as well where that is not known or the file can't be read, which its reader says better.

    PNG by its ``acTL`` chunk, TIFF by its chain of directories (TIFF 6.0, section 2), WebP by its ``ANMF`` chunks.
    """
    try:
        with Path(path).open("rb") as f:
            head = f.read(16)
            if head[:8] == b"\x89PNG\r\n\x1a\n":
                return max(1, _apng(f))
            if head[:4] in (b"II*\0", b"MM\0*"):
                return max(1, _tiff(f, "<" if head[:1] == b"I" else ">"))
            if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
                return max(1, _webp(f))
    except (OSError, struct.error):
        pass
    return 1


def _apng(f: BinaryIO) -> int:
    f.seek(8)
    for _ in range(_LIMIT):
        length, kind = struct.unpack(">I4s", f.read(8))
        if kind == b"acTL":  # comes before the first picture
            (count,) = struct.unpack(">I", f.read(4))
            return int(count)
        if kind in (b"IDAT", b"IEND"):
            break
        f.seek(length + 4, os.SEEK_CUR)
    return 1


def _tiff(f: BinaryIO, order: str) -> int:
    """Directories, but those of thumbnails and masks (NewSubfileType, tag 254)."""
    f.seek(4)
    (position,) = struct.unpack(f"{order}I", f.read(4))
    count, seen = 0, set[int]()
    while position and position not in seen and len(seen) < _LIMIT:
        seen.add(position)
        f.seek(position)
        (entries,) = struct.unpack(f"{order}H", f.read(2))
        directory = f.read(12 * entries + 4)
        reduced = False
        for i in range(entries):
            tag, kind = struct.unpack_from(f"{order}HH", directory, 12 * i)
            if tag == 254 and kind == 4:
                (flags,) = struct.unpack_from(f"{order}I", directory, 12 * i + 8)
                reduced = bool(flags & 5)
        count += not reduced
        (position,) = struct.unpack_from(f"{order}I", directory, 12 * entries)
    return count


def _webp(f: BinaryIO) -> int:
    f.seek(12)
    count = 0
    for _ in range(_LIMIT):
        head = f.read(8)
        if len(head) < 8:
            break
        kind, length = struct.unpack("<4sI", head)
        count += kind == b"ANMF"
        f.seek(length + length % 2, os.SEEK_CUR)
    return count
