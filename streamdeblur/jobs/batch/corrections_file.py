"""Corrections of a file or segment, between the actor that restored it and the one that encodes it.

Of each frame: what became of it, a checksum of the picture that the corrections are for, and the corrections in code
values, compressed. Where nothing was changed there is nothing to keep; so they are small, and the source, which the
other actor decodes anew, brings all else that a frame carries.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamdeblur.errors import InputError, UsageError
from streamdeblur.frames import Frame
from streamdeblur.jobs.batch import sealed_file
from streamdeblur.runtime.ledger import FrameRecord, Status, TileCounts

_KIND = "corrections"
#: Of Zstandard: a frame of 1080p takes it some 15 to 30 ms of one core, higher levels several times that.
_LEVEL = 1

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Kept:
    """One frame. checksum: of the decoded planes. corrections: one integer array a colour plane; zeros where the frame
    was not restored. The rest: of its line in the ledger."""

    index: int
    checksum: int
    status: Status
    tiles: TileCounts | None
    worker: str | None
    seconds: float | None
    reason: str | None
    corrections: tuple[Array, ...]


def checksum(frame: Frame) -> int:
    """CRC-32 of all planes, alpha too."""
    value = 0
    for plane in frame.planes:
        value = zlib.crc32(np.ascontiguousarray(plane).data.cast("B"), value)
    return value


def difference(before: Frame, after: Frame, record: FrameRecord) -> Kept:
    """What turns the decoded frame into the restored one."""
    count = before.spec.color.color_planes
    pairs = zip(before.planes[:count], after.planes[:count], strict=True)
    corrections = tuple(np.subtract(b, a, dtype=np.int32) for a, b in pairs)
    r = record
    return Kept(r.index, checksum(before), r.status, r.tiles, r.worker, r.seconds, r.reason, corrections)


def zstandard() -> Any:
    """The compressor's module. Raises UsageError where it is not installed."""
    try:
        import zstandard
    except ImportError as e:
        raise UsageError("--encode-on helpers needs zstandard", "pip install 'streamdeblur[cluster]'") from e
    return zstandard


class CorrectionsFile(sealed_file.SealedFile):
    """Writes one. For one thread."""

    def __init__(self, path: Path) -> None:
        self._compressor = zstandard().ZstdCompressor(level=_LEVEL)
        super().__init__(path, _KIND)
        self.begin({})

    def add_frame(self, kept: Kept) -> None:
        shapes, sizes, data = [], [], []
        for c in kept.corrections:
            narrow = _narrowed(c)
            packed = self._compressor.compress(narrow.data.cast("B")) if narrow.any() else b""
            shapes.append([*narrow.shape, narrow.dtype.str])
            sizes.append(len(packed))
            data.append(packed)
        values = {
            "index": kept.index,
            "checksum": kept.checksum,
            "status": kept.status,
            "tiles": None if kept.tiles is None else asdict(kept.tiles),
            "worker": kept.worker,
            "seconds": kept.seconds,
            "reason": kept.reason,
            "planes": shapes,
            "sizes": sizes,
        }
        self.add(json.dumps(values).encode(), data)


def read_frames(path: str | os.PathLike[str]) -> Iterator[Kept]:
    """The frames in order. Raises InputError, at the end at the latest, for a file that is cut short or changed."""
    module = zstandard()
    decompressor = module.ZstdDecompressor()
    for head, data in sealed_file.read_records(path, _KIND):
        try:
            v = json.loads(head)
            planes, at = [], 0
            for (rows, columns, kind), size in zip(v["planes"], v["sizes"], strict=True):
                packed, at = data[at : at + size], at + size
                plane = np.zeros((rows, columns), kind)
                if packed:
                    content = decompressor.decompress(packed, max_output_size=plane.nbytes)
                    plane = np.frombuffer(content, kind).reshape(rows, columns)
                planes.append(plane)
            tiles = None if v["tiles"] is None else TileCounts(**v["tiles"])
            yield Kept(
                v["index"], v["checksum"], v["status"], tiles, v["worker"], v["seconds"], v["reason"], tuple(planes)
            )
        except (ValueError, KeyError, TypeError, module.ZstdError) as e:
            raise InputError(f"{_KIND} {os.fspath(path)} is damaged") from e


def _narrowed(c: Array) -> Array:
    """The same values in the smallest type that holds them."""
    low, high = int(c.min(initial=0)), int(c.max(initial=0))
    kinds: Sequence[Any] = (np.int8, np.int16, np.int32)
    for kind in kinds:
        info = np.iinfo(kind)
        if info.min <= low and high <= info.max:
            return np.ascontiguousarray(c, kind)
    raise ValueError(f"corrections from {low} to {high}")
