"""A file of records between two actors: a line of JSON on what it holds, the records, then their number and a hash. One
without its end, or with another hash, is none.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from streamdeblur.errors import InputError

#: Bytes of a record's head and of its data.
_SIZES = struct.Struct("<IQ")
_END = 0xFFFFFFFF
_DIGEST = 16
_LONGEST_HEADER = 1 << 22


class SealedFile:
    """Writes one; nothing has its name until it is complete and on disk. kind: a word for it. For one thread."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")
        self._file: BinaryIO | None = self._partial.open("wb")
        self._file.write(_magic(kind))
        self._digest = hashlib.blake2b(digest_size=_DIGEST)
        self._count = 0
        self.begun = False

    def begin(self, header: Mapping[str, Any]) -> None:
        """The first line, before any record."""
        self._write(json.dumps(header).encode() + b"\n")
        self.begun = True

    def add(self, head: bytes, data: Sequence[bytes]) -> None:
        """A record; its data may come in pieces, and are one when they are read."""
        self._write(_SIZES.pack(len(head), sum(map(len, data))) + head)
        for piece in data:
            self._write(piece)
        self._count += 1

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)
        self._digest.update(data)

    def finish(self) -> None:
        """Seal it, bring it to the disk and give it its name."""
        assert self._file is not None
        self._file.write(_SIZES.pack(_END, self._count) + self._digest.digest())
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


def read_header(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Raises InputError for a file that is none of that kind."""
    with open(path, "rb") as f:
        return _header(f, path, kind)[0]


def read_records(path: str | os.PathLike[str], kind: str) -> Iterator[tuple[bytes, bytes]]:
    """(head, data) of each record, in order. Raises InputError, at the end at the latest, for a file that is cut short
    or changed."""
    with open(path, "rb") as f:
        digest = hashlib.blake2b(_header(f, path, kind)[1], digest_size=_DIGEST)
        left = os.fstat(f.fileno()).st_size
        count = 0
        while True:
            sizes = f.read(_SIZES.size)
            if len(sizes) < _SIZES.size:
                break
            first, second = _SIZES.unpack(sizes)
            if first == _END:
                if second == count and f.read(_DIGEST) == digest.digest():
                    return
                break
            if first + second > left:
                break
            head, data = f.read(first), f.read(second)
            if len(head) + len(data) < first + second:
                break
            for piece in (sizes, head, data):
                digest.update(piece)
            count += 1
            yield head, data
    raise InputError(f"{kind} {os.fspath(path)} is damaged")


def _magic(kind: str) -> bytes:
    return f"streamdeblur {kind} 2\n".encode()


def _header(f: BinaryIO, path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], bytes]:
    magic, line = _magic(kind), b""
    if f.read(len(magic)) == magic:
        line = f.readline(_LONGEST_HEADER)
    try:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except ValueError as e:
        raise InputError(f"{os.fspath(path)} is no {kind}") from e
    return values, line
