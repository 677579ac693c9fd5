"""Encoded pictures of a segment as the encoder gave them, between the node that made them and the one that joins them.

A container would rewrite them (start codes into lengths, time bases, parameter sets).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from streamdeblur.errors import InputError
from streamdeblur.jobs.batch import sealed_file

_KIND = "segment"
_PACKET = struct.Struct("<qqqB")


@dataclass(frozen=True, slots=True)
class PacketHeader:
    """What must be alike in all segments of a file. extradata: hex. look: size, layout and colour tags of the
    frames."""

    codec: str
    pix_fmt: str
    options: dict[str, str]
    extradata: str
    time_base: str
    look: str


@dataclass(frozen=True, slots=True)
class EncodedPacket:
    """Times in ticks of the header's time base."""

    pts: int
    dts: int
    duration: int
    key: bool
    data: bytes


class PacketFile(sealed_file.SealedFile):
    """Writes a segment; nothing has its name until it is complete and on disk. For one thread."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _KIND)

    def begin_packets(self, header: PacketHeader) -> None:
        self.begin(asdict(header))

    def add_packet(self, p: EncodedPacket) -> None:
        self.add(_PACKET.pack(p.pts, p.dts, p.duration, p.key), (p.data,))


def read_header(path: str | os.PathLike[str]) -> PacketHeader:
    """Raises InputError for a file that is no segment."""
    try:
        return PacketHeader(**sealed_file.read_header(path, _KIND))
    except TypeError as e:
        raise InputError(f"{os.fspath(path)} is no segment") from e


def read_packets(path: str | os.PathLike[str]) -> Iterator[EncodedPacket]:
    """The packets in coding order. Raises InputError at the end of a file that is cut short or changed."""
    for head, data in sealed_file.read_records(path, _KIND):
        pts, dts, duration, key = _PACKET.unpack(head)
        yield EncodedPacket(pts, dts, duration, bool(key), data)
