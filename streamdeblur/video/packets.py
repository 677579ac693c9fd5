"""Payloads of copied streams in a form that does not depend on the container's framing.

AAC travels with ADTS headers in MPEG-TS and without them in MP4 (ISO/IEC 14496-3, 1.A.3.2); H.264 and HEVC with start
codes in MPEG-TS (Annex B) and with lengths in MP4 and Matroska; PCM is cut into packets at each muxer's pleasure. The
bytes that matter are the same, and ``StreamDigest`` sees just those.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


def avc_parameter_sets(configuration: bytes) -> bytes:
    """The parameter sets of an ``avcC`` record (ISO/IEC 14496-15, 5.3.3.1), each behind its length as in a sample.

    Empty for anything else, such as H.264 with start codes.
    """
    if len(configuration) < 7 or configuration[0] != 1:
        return b""
    width = (configuration[4] & 3) + 1
    found, position = b"", 5
    for mask in (0x1F, 0xFF):
        count = configuration[position] & mask if position < len(configuration) else 0
        position += 1
        for _ in range(count):
            length = int.from_bytes(configuration[position : position + 2], "big")
            found += length.to_bytes(width, "big") + configuration[position + 2 : position + 2 + length]
            position += 2 + length
    return found


def is_hidden(packet: Any, kind: str) -> bool:
    """True for a text or datum that is over before zero: the edit list of its source hides it, and nobody sees it.

    Of sound and pictures, what comes before zero is needed to decode what follows.
    """
    if kind not in ("subtitle", "data") or not packet.is_discard or packet.pts is None:
        return False
    return bool(packet.pts + (packet.duration or 0) <= 0)


_START = re.compile(rb"\x00\x00\x00?\x01")


def without_adts(data: bytes) -> bytes:
    """An AAC access unit without its ADTS header, if it has one."""
    if len(data) > 7 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0:
        length = (data[3] & 3) << 11 | data[4] << 3 | data[5] >> 5
        if length >= len(data):  # longer where the file ends within the last one
            return data[7 if data[1] & 1 else 9 :]
    return data


def _nal_units(data: bytes, *, hevc: bool) -> Iterator[bytes]:
    units: list[bytes] = []
    position = 0
    while position + 4 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        units.append(data[position + 4 : position + 4 + length].rstrip(b"\0"))
        position += 4 + length
    # A length of 256 to 511 looks like a start code: only one that leads past the end is none.
    if position != len(data) and (data[:3] == b"\0\0\1" or data[:4] == b"\0\0\0\1"):
        units = [u.rstrip(b"\0") for u in _START.split(data) if u]
    for unit in units:
        if not unit:
            continue
        # Delimiters and parameter sets move between packets and the container's header.
        if _kind(unit, hevc=hevc) not in ((32, 33, 34, 35) if hevc else (7, 8, 9)):
            yield unit


def _kind(unit: bytes, *, hevc: bool) -> int:
    """Of a NAL unit: its type."""
    return (unit[0] >> 1) & 63 if hevc else unit[0] & 31


def begins_picture(data: bytes, codec: str) -> bool:
    """Whether an H.264 or HEVC packet with start codes holds the beginning of its picture; True for any other codec.

    Who joins an RTP stream in the middle of a picture gets the rest of it as a packet, a keyframe's too: its slices,
    but not the first (ITU-T H.264, 7.3.3: first_mb_in_slice; H.265, 7.3.6.1: first_slice_segment_in_pic_flag), or bytes
    from within one. A decoder fills what is missing with black, and says nothing of it.
    """
    if codec not in ("h264", "hevc"):
        return True
    if not data.startswith((b"\0\0\1", b"\0\0\0\1")):
        return False
    hevc = codec == "hevc"
    header = 2 if hevc else 1
    for unit in _nal_units(data, hevc=hevc):
        if _kind(unit, hevc=hevc) in (range(32) if hevc else (1, 2, 5)):
            return len(unit) > header and bool(unit[header] & 0x80)  # a zero in exp-Golomb code is a single 1
    return False


@dataclass(slots=True)
class StreamDigest:
    """Running digest of a stream's payload: per packet and as one run of bytes."""

    codec: str
    packets: int = 0
    size: int = 0
    _hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def add(self, data: bytes) -> None:
        """Take the payload of one packet, in demuxing order."""
        if not data:
            return
        self.packets += 1
        if self.codec in ("aac", "aac_latm"):
            data = without_adts(data)
        if self.codec in ("h264", "hevc"):
            for unit in _nal_units(data, hevc=self.codec == "hevc"):
                self._update(unit)
            return
        self._update(data)

    def _update(self, data: bytes) -> None:
        self.size += len(data)
        self._hash.update(data)

    def same(self, other: StreamDigest) -> bool:
        """Equal payloads; and equally many packets, but for PCM, which has no packets of its own."""
        bytes_same = self.size == other.size and self._hash.digest() == other._hash.digest()
        return bytes_same and (self.packets == other.packets or self.codec.startswith("pcm"))
