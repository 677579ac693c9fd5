"""Encoded pictures of a segment as the encoder gave them, between the node that made them and the one that joins them.

A container would rewrite them (start codes into lengths, time bases, parameter sets); here a line of JSON says what
they are, then come the packets, then their number and a hash. A file without its end, or with another hash, is no
segment.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from streamdeblur.errors import InputError

_MAGIC = b"streamdeblur segment 1\n"
_PACKET = struct.Struct("<qqqBI")
_END = 0xFFFFFFFF
_DIGEST = 16


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


class PacketFile:
    """Writes a segment; nothing has its name until it is complete and on disk. For one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._file: BinaryIO | None = self._partial.open("wb")
        self._file.write(_MAGIC)
        self._digest = hashlib.blake2b(digest_size=_DIGEST)
        self._count = 0
        self._header = False

    def begin(self, header: PacketHeader) -> None:
        self._write(json.dumps(asdict(header)).encode() + b"\n")
        self._header = True

    @property
    def begun(self) -> bool:
        return self._header

    def add(self, p: EncodedPacket) -> None:
        self._write(_PACKET.pack(p.pts, p.dts, p.duration, p.key, len(p.data)) + p.data)
        self._count += 1

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)

    def finish(self) -> None:
        assert self._file is not None
        self._file.write(_PACKET.pack(self._count, 0, 0, 0, _END) + self._digest.digest())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        os.replace(self._partial, self._path)

    def abort(self) -> None:
        """Idempotent; never raises."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                pass
        self._partial.unlink(missing_ok=True)


def read_header(path: str | os.PathLike[str]) -> PacketHeader:
    """Raises InputError for a file that is no segment."""
    with open(path, "rb") as f:
        return _header(f, path)[0]


def _header(f: BinaryIO, path: str | os.PathLike[str]) -> tuple[PacketHeader, bytes]:
    line = b""
    if f.read(len(_MAGIC)) == _MAGIC:
        line = f.readline(1 << 22)
    try:
        values: dict[str, Any] = json.loads(line)
        return PacketHeader(**values), line
    except (ValueError, TypeError) as e:
        raise InputError(f"{os.fspath(path)} is no segment") from e


def read_packets(path: str | os.PathLike[str]) -> Iterator[EncodedPacket]:
    """The packets in coding order. Raises InputError at the end of a file that is cut short or changed."""
    with open(path, "rb") as f:
        digest = hashlib.blake2b(_header(f, path)[1], digest_size=_DIGEST)
        count = 0
        while True:
            head = f.read(_PACKET.size)
            if len(head) < _PACKET.size:
                break
            pts, dts, duration, key, size = _PACKET.unpack(head)
            if size == _END:
                if pts == count and f.read(_DIGEST) == digest.digest():
                    return
                break
            data = f.read(size)
            if len(data) < size:
                break
            digest.update(head)
            digest.update(data)
            count += 1
            yield EncodedPacket(pts, dts, duration, bool(key), data)
    raise InputError(f"segment {os.fspath(path)} is damaged")
