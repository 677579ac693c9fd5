"""Picture files ↔ arrays, by OpenCV, with the damage found that OpenCV passes over.

A JPEG cut short decodes with its lower part gray, and only libjpeg's own words on standard error tell; a network would
learn that gray. So files are looked through before they are decoded: chunks and checksums of a PNG, the end of a JPEG.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from streamdeblur.errors import UnreadableInput
from streamdeblur.training.codec import Picture

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
#: Markers of JPEG without a length: restarts, start, TEM (ITU T.81, table B.1).
_BARE = frozenset((*range(0xD0, 0xD9), 0x01))


def read_picture(path: Path, hint: str = "replace it or take it out of the folder") -> Picture:
    """(H, W, 3) uint8 R'G'B' of a picture file, upright; 16 bits are rounded to 8.

    Raises UnreadableInput. Threads may call it at once.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        cause = "is not there" if isinstance(e, FileNotFoundError) else f"can't be read: {e.strerror}"
        raise UnreadableInput(f"picture {path} {cause}", hint) from e
    damage = found_damage(data)
    if damage:
        raise UnreadableInput(f"picture {path} {damage}", hint)
    encoded = np.frombuffer(data, np.uint8)
    picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    samples = "" if picture is None else str(picture.dtype)
    if picture is not None and picture.dtype == np.uint16:  # OpenCV itself rounds those of TIFF and truncates others
        picture = ((picture.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif picture is not None and picture.dtype != np.uint8:
        picture = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    if picture is None:
        if samples:
            raise UnreadableInput(f"picture {path} has {samples} samples", "give pictures of 8 or 16 bits")
        raise UnreadableInput(f"picture {path} can't be decoded", hint)
    return np.ascontiguousarray(picture[..., ::-1])


def found_damage(data: bytes) -> str:
    """What is wrong with an encoded picture, as the end of a sentence; "" for nothing that can be told."""
    if not data:
        return "is empty"
    if data.startswith(_PNG):
        return _png_damage(data)
    if data.startswith(_JPEG):
        return _jpeg_damage(data)
    return ""


def _png_damage(data: bytes) -> str:
    """Of a PNG: every chunk has its length, type, data and CRC, and IEND is the last (PNG specification, 5.3)."""
    at = len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        kind = data[at + 4 : at + 8]
        if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return f"is damaged ({kind.decode('latin-1')} has a wrong checksum)"
        if kind == b"IEND":
            return ""
        at = end
    return "is cut short"


def _jpeg_damage(data: bytes) -> str:
    """Of a JPEG: segments up to the first scan, and an end after it. A thumbnail inside has an end of its own."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in _BARE:
            at += 2
        elif marker == 0xDA:
            return "" if data.find(b"\xff\xd9", at) >= 0 else "is cut short"
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return "is cut short" if at + 4 > len(data) else ""
