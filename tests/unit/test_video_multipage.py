"""Pictures are counted by headers alone."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from streamdeblur.video.multipage import pictures_in


def webp(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(k[:4] + struct.pack("<I", 3) + b"abc\0" for k in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(pages: int, *, order: str = "<", thumbnails: int = 0, loop: bool = False) -> bytes:
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    for i in range(pages + thumbnails):
        following = len(data) + 2 + 12 + 4 if i + 1 < pages + thumbnails else 8 if loop else 0
        kind = 1 if i >= pages else 0
        data += struct.pack(f"{order}HHHIII", 1, 254, 4, 1, kind, following)
    return data


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (webp(b"VP8X", b"ANIM", b"ANMF", b"ANMF", b"ANMF"), 3),
        (webp(b"VP8 "), 1),
        (tiff(1), 1),
        (tiff(3), 3),
        (tiff(2, order=">"), 2),
        (tiff(1, thumbnails=2), 1),
        (tiff(2, loop=True), 2),
        (tiff(3)[:20], 1),
        (b"II*\0\xff\xff\xff\xff", 1),
        (b"\x89PNG\r\n\x1a\n", 1),
        (b"", 1),
        (b"anything else", 1),
    ],
)
def test_counts(tmp_path: Path, data: bytes, count: int) -> None:
    (tmp_path / "a").write_bytes(data)
    assert pictures_in(tmp_path / "a") == count


def test_no_file_is_one(tmp_path: Path) -> None:
    assert pictures_in(tmp_path / "none") == 1
