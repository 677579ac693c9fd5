"""Pairs of blurry and sharp images from a folder or a shard, for ``quality``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from streamdeblur.errors import UnreadableInput
from streamdeblur.evaluation.benchmark.quality import Pairs
from streamdeblur.training.pairs import find_pairs, read_pair
from streamdeblur.training.shards import SUFFIX, Shard


def pairs_of(word: str, limit: int) -> Pairs:
    """``limit`` pairs, spread evenly, of a folder in any layout that ``evaluate`` reads, or of a .shard file.

    Raises UnreadableInput and InputError.
    """
    path = Path(word)
    if path.suffix == SUFFIX:
        return shard_pairs(path, limit)
    if not path.is_dir():
        raise UnreadableInput(f"{word} is neither a folder of pairs nor a {SUFFIX} file", "check --data")
    pairs = find_pairs(path, split="test")
    chosen = [pairs[i] for i in spread(len(pairs), limit)]

    def read() -> Iterator[tuple[str, Tensor, Tensor]]:
        for pair in chosen:
            blurry, sharp = read_pair(pair)
            yield pair.name, to_tensor(blurry), to_tensor(sharp)

    return read


def shard_pairs(path: Path, limit: int) -> Pairs:
    """Of a shard of ``streamdeblur prepare``."""
    shard = Shard(path)

    def read() -> Iterator[tuple[str, Tensor, Tensor]]:
        for i in spread(len(shard), limit):
            blurry, sharp = shard.pair(i)
            yield f"pair {i}", to_tensor(blurry), to_tensor(sharp)

    return read


def spread(count: int, limit: int) -> list[int]:
    """At most ``limit`` of ``count`` indices, evenly."""
    return list(range(count)) if limit >= count else [i * count // limit for i in range(limit)]


def to_tensor(picture: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) → float32 (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].to(torch.float32) / 255
