"""Recipe → crops: prepared shards, or sources sampled on the fly by worker processes."""

from __future__ import annotations

import bisect
import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamdeblur.errors import StreamdeblurError
from streamdeblur.training.batches import Batches, ShardBatches, generator
from streamdeblur.training.codec import Picture
from streamdeblur.training.pairs import find_pairs, read_pair
from streamdeblur.training.recipe import Data, Recipe, Source, ValidationSet
from streamdeblur.training.shards import SUFFIX, Shard
from streamdeblur.training.synthesis.sources import Crop, CropSource, PairsSource, TooSmall, open_source
from streamdeblur.training.synthesis.turn import room, turn
from streamdeblur.training.validation import Pairs

#: Streams of random numbers of the sources (``batches`` has 1 and 2, ``trainer`` 4 and 6).
_SAMPLE, _PAIRS = 3, 5


class Mixture:
    """Several sources as one, drawn from by their shares; sample ``index`` is a function of seed and index alone."""

    def __init__(self, sources: Sequence[Source], size: int, seed: int) -> None:
        self.sources: list[CropSource] = [open_source(s.kind, s.path, **s.options) for s in sources]
        self._edges = list(itertools.accumulate(s.share for s in sources))
        self._turned = [s.turned for s in sources]
        self._enlarged = [s.enlarged for s in sources]
        self._size, self._seed = size, seed

    @property
    def images(self) -> int:
        """Pairs on disk: an epoch, where all sources are folders of pairs."""
        return sum(len(s) for s in self.sources if isinstance(s, PairsSource))

    def sample(self, index: int) -> tuple[str, Picture, Picture]:
        """Name of its source, blurred and sharp crop."""
        rng = generator(self._seed, _SAMPLE, index)
        only = self.sources[0]
        if len(self.sources) == 1 and isinstance(only, PairsSource):
            # An epoch is a pass: every pair once, in another order each time.
            epoch, place = divmod(index, len(only))
            pair = int(generator(self._seed, _PAIRS, epoch).permutation(len(only))[place])
            return only.name, *self._crop(0, rng, lambda size: only.sample_pair(pair, rng, size))
        position = float(rng.random()) * self._edges[-1]
        chosen = min(bisect.bisect_right(self._edges, position), len(self.sources) - 1)
        source = self.sources[chosen]
        return source.name, *self._crop(chosen, rng, lambda size: source.sample(rng, size))

    def _crop(self, source: int, rng: np.random.Generator, sample: Callable[[int], Crop]) -> Crop:
        # A source that changes nothing draws nothing: seeds keep their bytes.
        share, most = self._turned[source], self._enlarged[source]
        degrees = float(rng.uniform(0, 360)) if share and rng.random() < share else 0.0
        factor = float(rng.uniform(1, most)) if most > 1 else 1.0
        if degrees == 0 and factor == 1:
            return sample(self._size)
        try:
            window = sample(room(self._size, degrees, factor))
        except TooSmall as e:
            widest = room(self._size, 45 if share else 0)
            raise TooSmall(e.what, f"{e.hint}: those of {self._size} are cut from up to {widest}") from None
        return turn(window, degrees, self._size, factor)


class _Samples(torch.utils.data.Dataset[Tensor | StreamdeblurError]):
    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture

    def __getitem__(self, index: int) -> Tensor | StreamdeblurError:
        try:
            _, blur, sharp = self._mixture.sample(index)
        except StreamdeblurError as e:  # to be raised where it is one line, not as a traceback of a worker's
            return e
        return torch.from_numpy(np.stack((blur, sharp))).permute(0, 3, 1, 2)


class SampledBatches:
    """Crops made on the fly by ``Data.workers`` processes (0: in this one). An epoch counts the images of the pairs."""

    def __init__(self, data: Data, *, seed: int, rank: int = 0, world: int = 1) -> None:
        self._data, self._rank, self._world = data, rank, world
        # Larger, where cuts are to be made smaller afterwards.
        self._mixture = Mixture(data.sources, data.widest, seed)

    @property
    def samples(self) -> int:
        return max(self._mixture.images, self._data.batch * self._world)

    def start(self, step: int) -> Iterator[Tensor]:
        # Endless on purpose: the trainer takes as many steps as it wants.
        share = self._data.batch * self._world
        order = itertools.chain.from_iterable(
            range(s * share + self._rank * self._data.batch, s * share + (self._rank + 1) * self._data.batch)
            for s in itertools.count(step)
        )
        loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
            _Samples(self._mixture),
            batch_size=self._data.batch,
            sampler=order,
            num_workers=self._data.workers,
            prefetch_factor=4 if self._data.workers else None,
            worker_init_fn=one_thread,
            # A forked copy of a process whose OpenCV has threads can hang.
            multiprocessing_context="forkserver" if self._data.workers else None,
            collate_fn=_stack,
            # Of its own, or the loader would draw from the global one, on which dropout runs.
            generator=torch.Generator(),
        )
        for batch in loader:
            if isinstance(batch, StreamdeblurError):
                raise batch
            yield batch

    def close(self) -> None:
        pass


def _stack(items: Sequence[Tensor | StreamdeblurError]) -> Tensor | StreamdeblurError:
    crops = [item for item in items if isinstance(item, Tensor)]
    failed = [item for item in items if isinstance(item, StreamdeblurError)]
    return failed[0] if failed else torch.stack(crops)


def one_thread(worker: int) -> None:
    """Keep a loader's process to one core, and let signals to the group be the main process's business."""
    import cv2

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def open_batches(recipe: Recipe, *, rank: int = 0, world: int = 1, device: torch.device | None = None) -> Batches:
    """What feeds a run. ``device``: where prepared crops are held."""
    if recipe.data.shards:
        return ShardBatches(recipe.data, seed=recipe.seed, rank=rank, world=world, device=device)
    return SampledBatches(recipe.data, seed=recipe.seed, rank=rank, world=world)


def open_validation(sets: Sequence[ValidationSet]) -> list[tuple[str, Pairs]]:
    """Validation sets by name: shards of whole images, or folders of pairs. Missing data is found here."""
    return [(s.name, _pairs(Path(s.path), s.limit, s.layout)) for s in sets]


def _pairs(path: Path, limit: int, layout: str) -> Pairs:
    if path.suffix == SUFFIX:
        shard = Shard(path)
        return lambda: itertools.islice(shard.pairs(), limit or None)
    found = find_pairs(path, layout, split="test")[: limit or None]
    return lambda: ((p.name, *read_pair(p)) for p in found)
