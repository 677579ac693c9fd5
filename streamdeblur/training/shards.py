"""Prepared pairs in few files: encoded pictures in a safetensors file, read where only torch and numpy are.

A shard holds ``data`` (uint8: all pictures one after the other, blurred and sharp in turn), ``offsets`` (int64, 2 n + 1
positions in it) and, as metadata, a name for every pair and what made it. Training shards hold square crops of one size
as JPEG; validation shards whole images as PNG.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from streamdeblur import interrupts
from streamdeblur.errors import InputError, OutputError, UnreadableInput
from streamdeblur.training.codec import Picture, decode, encode
from streamdeblur.training.state import write_tensors

FORMAT = "streamdeblur-shard"
SUFFIX = ".shard"
#: Of the metadata key "content" of validation shards.
WHOLE_IMAGES = "whole images"


@dataclass
class ShardWriter:
    """Writes pairs into shards of about ``part_mib`` each: NAME-00000.shard and so on, each complete when it appears.

    quality: of the JPEGs; 0 for PNG. about: goes into the metadata of each file. Use as a context manager; on an error
    the shard in hand is dropped.
    """

    folder: Path
    name: str = "crops"
    quality: int = 95
    part_mib: float = 24.0
    about: Mapping[str, str] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pictures: list[bytes] = []
        self._names: list[str] = []
        self._bytes = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise OutputError(f"can't make {self.folder}: {e.strerror}") from e

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.flush()

    def add(self, blur: Picture, sharp: Picture, name: str) -> None:
        """One pair, RGB uint8 of one shape (H, W, 3)."""
        if blur.shape != sharp.shape:
            raise InputError(f"{name}: blurred {blur.shape} and sharp {sharp.shape} differ in size")
        both = [encode(p, self.quality) for p in (blur, sharp)]
        self._pictures += both
        self._names.append(name)
        self._bytes += sum(map(len, both))
        if self._bytes >= self.part_mib * 2**20:
            self.flush()

    @interrupts.held()
    def flush(self) -> None:
        """Write what is in hand."""
        if not self._names:
            return
        offsets = np.concatenate(([0], np.cumsum([len(p) for p in self._pictures]))).astype(np.int64)
        tensors = {
            "data": torch.frombuffer(bytearray(b"".join(self._pictures)), dtype=torch.uint8),
            "offsets": torch.from_numpy(offsets),
        }
        target = self.folder / f"{self.name}-{len(self.written):05d}{SUFFIX}"
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        metadata = {**self.about, "format": FORMAT, "names": json.dumps(self._names)}
        try:
            write_tensors(tensors, partial, metadata)
            partial.replace(target)
        except (OSError, SafetensorError) as e:
            partial.unlink(missing_ok=True)
            raise OutputError(f"can't write {target}: {e}") from e
        self.written.append(target)
        self._pictures, self._names, self._bytes = [], [], 0


class Shard:
    """One file, its encoded pictures in memory."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with safe_open(self.path, framework="pt", device="cpu") as handle:
                metadata = handle.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise UnreadableInput(f"{self.path} is not a shard of training crops", "make it with prepare")
                self._data: bytes = handle.get_tensor("data").numpy().tobytes()
                self._offsets: list[int] = handle.get_tensor("offsets").tolist()
                self.names: list[str] = json.loads(metadata["names"])
                self.whole_images = metadata.get("content") == WHOLE_IMAGES
        except (OSError, ValueError, KeyError, SafetensorError) as e:
            raise UnreadableInput(f"shard {self.path} can't be read: {e}", "check the path, or prepare it again") from e
        if len(self._offsets) != 2 * len(self.names) + 1 or self._offsets[-1] != len(self._data):
            raise UnreadableInput(f"shard {self.path} is damaged: its index does not fit", "prepare it again")

    def __len__(self) -> int:
        return len(self.names)

    def pair(self, index: int) -> tuple[Picture, Picture]:
        """Blurred and sharp, RGB uint8 (H, W, 3). Threads may call it at once."""
        start, middle, end = self._offsets[2 * index : 2 * index + 3]
        what = f"picture {index} of {self.path}"
        return decode(self._data[start:middle], what), decode(self._data[middle:end], what)

    def pairs(self) -> Iterator[tuple[str, Picture, Picture]]:
        """Every pair with its name."""
        for index, name in enumerate(self.names):
            yield name, *self.pair(index)


def find_shards(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Shard files, folders of them, sorted by name. Raises UnreadableInput where there are none."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise UnreadableInput(f"there are no shards ({SUFFIX}) in {path}", "make some with prepare")
        if not path.is_dir() and not path.exists():
            raise UnreadableInput(f"there is no shard {path}", "check the path, or make it with prepare")
        found += inside
    return found


def count_pairs(paths: Sequence[Path]) -> list[int]:
    """Pairs in each file, from the headers alone."""
    counts = []
    for path in paths:
        try:
            with safe_open(path, framework="pt", device="cpu") as handle:
                counts.append((handle.get_slice("offsets").get_shape()[0] - 1) // 2)
        except (OSError, SafetensorError) as e:
            raise UnreadableInput(f"shard {path} can't be read: {e}", "check the path, or prepare it again") from e
    return counts


def load_crops(shards: Sequence[Path], threads: int) -> Tensor:
    """All crops of the files decoded: uint8 (n, 2, 3, S, S), blurred and sharp. Raises InputError if sizes differ."""
    from concurrent.futures import ThreadPoolExecutor

    opened = [Shard(p) for p in shards]
    jobs = [(s, i) for s in opened for i in range(len(s))]
    first = opened[0].pair(0)[0]
    crops = torch.empty((len(jobs), 2, 3, *first.shape[:2]), dtype=torch.uint8)

    def fill(k: int) -> None:
        shard, index = jobs[k]
        for side, picture in enumerate(shard.pair(index)):
            if picture.shape != first.shape:
                raise InputError(
                    f"{shard.path} holds pictures of {picture.shape[1]}x{picture.shape[0]} and "
                    f"{first.shape[1]}x{first.shape[0]}",
                    "training shards hold crops of one size",
                )
            crops[k, side] = torch.from_numpy(picture).permute(2, 0, 1)

    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        list(pool.map(fill, range(len(jobs))))
    return crops
