"""Which crops a step sees: a function of seed, step and process alone, so that a resumed run sees what it would have.

Sources give uint8 crops; ``augment`` cuts, flips, rotates and recolours them on the device.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from streamdeblur.errors import InputError, StreamdeblurError, UsageError
from streamdeblur.training.recipe import Data
from streamdeblur.training.shards import Shard, count_pairs, find_shards, load_crops

#: Streams of random numbers that must not meet.
_ORDER, _AUGMENT = 1, 2


class Batches(Protocol):
    """Gives the crops of each step."""

    @property
    def samples(self) -> int:
        """Crops in an epoch."""

    def start(self, step: int) -> Iterator[Tensor]:
        """For every step from ``step`` on: uint8 (batch, 2, 3, S, S), blurred and sharp, on any device.

        S is the crop size or larger, the same for all.
        """

    def close(self) -> None:
        """End threads and processes."""


class Ahead:
    """Runs an iterator one item ahead in a thread; its exception is raised where the item is taken."""

    def __init__(self, source: Iterator[tuple[Tensor, Tensor]]) -> None:
        self._source = source
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._next = self._pool.submit(next, source)

    def __next__(self) -> tuple[Tensor, Tensor]:
        item = self._next.result()
        self._next = self._pool.submit(next, self._source)
        return item

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        close = getattr(self._source, "close", None)
        if close is not None:
            with contextlib.suppress(StreamdeblurError, RuntimeError):
                close()


def generator(seed: int, *stream: int) -> np.random.Generator:
    """Random numbers that depend on ``seed`` and the numbers after it alone."""
    return np.random.default_rng(np.random.SeedSequence([seed, *stream]))


class ShardBatches:
    """Crops from prepared shards, decoded once and then held, on ``device``.

    As many shards are held at a time as ``Data.memory_gb`` takes; the next group is read while this one is used. Every
    epoch shuffles the shards, and the crops within each group.
    """

    def __init__(
        self, data: Data, *, seed: int, rank: int = 0, world: int = 1, device: torch.device | None = None
    ) -> None:
        self._data, self._seed, self._rank, self._world = data, seed, rank, world
        self._device = device or torch.device("cpu")
        if not data.shards:
            raise UsageError("the recipe has sources and no shards", "make shards with prepare and name them")
        self._files = find_shards(data.shards)
        self._counts = count_pairs(self._files)
        first = Shard(self._files[0])
        if first.whole_images:
            raise UsageError(f"{self._files[0]} holds whole images for validation", "make crops with prepare --config")
        height, width = first.pair(0)[0].shape[:2]
        if height != width:
            raise UsageError(
                f"pictures in {self._files[0]} are {width}x{height}, training crops are square",
                "whole images serve validation; make crops with prepare --config",
            )
        self._size = size = height
        if size < data.crop:
            raise UsageError(
                f"crops in {self._files[0]} are {size} px, below the crop of {data.crop}", "prepare larger"
            )
        if size < data.widest:
            raise UsageError(
                f"crops in {self._files[0]} are {size} px, a zoom of {data.zoom:g} of crops of {data.crop} needs "
                f"{data.widest}",
                "prepare larger, or raise data.zoom",
            )
        per_crop = 6 * size * size
        self._capacity = max(1, int(data.memory_gb * 2**30 / per_crop))
        if self.samples < data.batch * world:
            raise UsageError(
                f"{self.samples} crops in the shards are fewer than a batch of {data.batch} for {world} processes"
            )
        self._threads = max(1, torch.get_num_threads())
        self._held: dict[tuple[Path, ...], Future[Tensor]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards")

    @property
    def samples(self) -> int:
        return sum(self._counts)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._held.clear()

    def _groups(self, epoch: int) -> list[list[int]]:
        """Shard numbers in the order of that epoch, cut into what is held together."""
        if self.samples <= self._capacity:
            return [list(range(len(self._files)))]
        groups: list[list[int]] = [[]]
        room = self._capacity // 2  # this group and the next
        for k in generator(self._seed, _ORDER, epoch).permutation(len(self._files)).tolist():
            if groups[-1] and sum(self._counts[i] for i in groups[-1]) + self._counts[k] > room:
                groups.append([])
            groups[-1].append(k)
        return groups

    def _crops(self, group: Sequence[int]) -> Future[Tensor]:
        key = tuple(self._files[k] for k in group)
        with self._lock:
            if key not in self._held:
                self._held[key] = self._pool.submit(self._load, key)
            return self._held[key]

    def _load(self, files: tuple[Path, ...]) -> Tensor:
        crops = load_crops(files, self._threads)
        if crops.shape[-2:] != (self._size, self._size):
            raise InputError(
                f"crops in {files[0]} are {crops.shape[-1]}x{crops.shape[-2]}, those in {self._files[0]} "
                f"{self._size}x{self._size}",
                "training shards hold crops of one size",
            )
        return crops.to(self._device)

    def _drop_all_but(self, groups: Sequence[Sequence[int]]) -> None:
        keep = {tuple(self._files[k] for k in g) for g in groups}
        with self._lock:
            for key in [k for k in self._held if k not in keep]:
                del self._held[key]

    def start(self, step: int) -> Iterator[Tensor]:
        share = self._data.batch * self._world
        per_epoch = self.samples // share
        while True:
            epoch, inside = divmod(step, per_epoch)
            groups = self._groups(epoch)
            done = 0
            carry: list[Tensor] = []
            for number, group in enumerate(groups):
                count = sum(self._counts[k] for k in group)
                order = generator(self._seed, _ORDER, epoch, number).permutation(count)
                # A batch may straddle two groups, so that no crop is left out but the last few of an epoch.
                first, last = done, done + count
                done = last
                if last <= inside * share and number + 1 < len(groups):
                    continue
                following = groups[number + 1] if number + 1 < len(groups) else self._groups(epoch + 1)[0]
                crops = self._crops(group)
                self._drop_all_but([group, following])
                if following != group:
                    self._crops(following)
                position = max(first, inside * share)
                while position < last and inside < per_epoch:
                    end = min(last, (inside + 1) * share)
                    picks = order[position - first : end - first]
                    carry.append(_picked(crops.result(), picks))
                    position = end
                    if end == (inside + 1) * share:
                        whole = torch.cat(carry) if len(carry) > 1 else carry[0]
                        carry = []
                        yield whole[self._rank * self._data.batch : (self._rank + 1) * self._data.batch]
                        inside += 1
            step = (epoch + 1) * per_epoch


def _picked(crops: Tensor, picks: npt.NDArray[np.int64]) -> Tensor:
    """Those of the crops, on their device; on a GPU nothing waits for what it does."""
    indices = torch.from_numpy(picks)
    if crops.is_cuda:
        indices = indices.pin_memory().to(crops.device, non_blocking=True)
    return crops[indices]


def augment(
    crops: Tensor, data: Data, *, seed: int, step: int, rank: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """A step's batch: blurred and sharp, float32 (batch, 3, crop, crop) in [0, 1], channels_last, on ``device``.

    Cuts at random, makes larger cuts smaller, flips, rotates by quarter turns, reorders channels, darkens, and replaces
    a share of the blurred crops by the sharp ones. Whatever ``data`` leaves out draws no random number.
    """
    crops = crops.to(device, non_blocking=True)
    out = []
    for number, crop in enumerate(crops, start=rank * data.batch):
        # By the number in the batch of all processes: two of them see what one with twice the batch would.
        rng = generator(seed, _AUGMENT, step, number)
        side = _side(rng, data) if data.zoom < 1 else data.crop
        y, x = rng.integers(0, crop.shape[-1] - side + 1, 2).tolist()
        horizontal, vertical, turns, sharp = rng.random(4).tolist()
        piece = crop[..., y : y + side, x : x + side]
        axes = [
            axis
            for axis, wanted in (
                (-1, data.flips != "none" and horizontal < 0.5),
                (-2, data.flips == "both" and vertical < 0.5),
            )
            if wanted
        ]
        piece = piece.flip(axes) if axes else piece
        if data.rotations:
            piece = piece.rot90(int(turns * 4), (-2, -1))
        if data.channels:
            # Not by a list of indices, which would go to a GPU, and wait there for the step at work.
            piece = torch.stack([piece[:, c] for c in rng.permutation(3).tolist()], 1)
        piece = piece.to(torch.float32)
        if data.exposure < 1:
            piece = piece * float(rng.uniform(data.exposure, 1))
        if side > data.crop:
            piece = F.interpolate(piece, size=(data.crop, data.crop), mode="bilinear", antialias=True)
        out.append(piece[1:].expand_as(piece) if sharp < data.sharp_share else piece)
    batch = torch.stack(out).div_(255).clamp_(max=1)  # what is made smaller rounds a little above white
    blur, sharp_side = batch.unbind(1)
    return tuple(t.contiguous(memory_format=torch.channels_last) for t in (blur, sharp_side))  # type: ignore[return-value]


def _side(rng: np.random.Generator, data: Data) -> int:
    """Side of a cut that is made smaller to ``data.crop``; half of them are left at their size."""
    factor = float(rng.uniform(data.zoom, 1)) if rng.random() < 0.5 else 1.0
    return round(data.crop / factor)
