"""Crops made beforehand and kept in shards, so that training needs neither the footage nor time for synthesis."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from streamdeblur.errors import OutputError, StreamdeblurError
from streamdeblur.training.codec import Picture
from streamdeblur.training.feeds import Mixture, one_thread
from streamdeblur.training.pairs import find_pairs, read_pair
from streamdeblur.training.recipe import Preparation
from streamdeblur.training.shards import SUFFIX, WHOLE_IMAGES, ShardWriter
from streamdeblur.version import __version__

#: Folder beside the shards in which they grow.
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Prepared:
    """What was written."""

    files: tuple[Path, ...]
    pairs: int
    by_source: dict[str, int]
    bytes: int


class _Crops(torch.utils.data.Dataset[tuple[str, Picture, Picture] | StreamdeblurError]):
    def __init__(self, mixture: Mixture, count: int) -> None:
        self._mixture, self._count = mixture, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[str, Picture, Picture] | StreamdeblurError:
        try:
            return self._mixture.sample(index)
        except StreamdeblurError as e:  # to be raised where it is one line, not as a traceback of a worker's
            return e


def prepare_crops(
    recipe: Preparation,
    folder: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Make ``recipe.count`` crops from its sources and write them to shards in ``folder``; the same for the same seed.

    They get their names together, at the end. Raises OutputError if shards lie there already and ``overwrite`` is not
    set.
    """
    mixture = Mixture(recipe.sources, recipe.size, recipe.seed)
    there = _shards(folder)
    if there and not overwrite:
        raise OutputError(f"{folder} holds {len(there)} shards", "--overwrite replaces them")
    loader = torch.utils.data.DataLoader(
        _Crops(mixture, recipe.count),
        batch_size=None,
        num_workers=recipe.workers,
        prefetch_factor=8 if recipe.workers else None,
        worker_init_fn=one_thread,
        # A forked copy of a process whose OpenCV has threads can hang.
        multiprocessing_context="forkserver" if recipe.workers else None,
        collate_fn=_as_it_is,
    )
    about = {"recipe": json.dumps(asdict(recipe)), "created_by": f"streamdeblur {__version__}"}
    counts: dict[str, int] = {}
    partial = folder / f"{_PARTIAL}-{os.getpid()}"
    try:
        with ShardWriter(partial, quality=recipe.quality, part_mib=recipe.part_mib, about=about) as writer:
            for done, item in enumerate(loader, start=1):
                if isinstance(item, StreamdeblurError):
                    raise item
                source, blur, sharp = item
                writer.add(blur, sharp, f"{source}/{done - 1}")
                counts[source] = counts.get(source, 0) + 1
                if progress is not None:
                    progress(done, recipe.count)
        for path in _shards(folder):
            path.unlink()
        files = [path.rename(folder / path.name) for path in writer.written]
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _result(files, counts)


def prepare_pairs(
    pairs: Path, folder: Path, *, overwrite: bool = False, progress: Callable[[int, int], None] | None = None
) -> Prepared:
    """Whole pairs, losslessly, as one shard: a validation set for machines that have no files.

    The shard has the name of the folder ``pairs``, also where that is given as ``.`` or ``..``.
    """
    name = Path(os.path.abspath(pairs)).name  # not resolved: a link's own name is the one that was chosen
    target = folder / f"{name}-00000{SUFFIX}"
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists", "--overwrite replaces it")
    found = find_pairs(pairs, split="test")
    about = {"content": WHOLE_IMAGES}
    with ShardWriter(folder, name, quality=0, part_mib=2**20, about=about) as writer:
        for done, pair in enumerate(found, start=1):
            writer.add(*read_pair(pair), pair.name)
            if progress is not None:
                progress(done, len(found))
    return _result(writer.written, {name: len(found)})


def _as_it_is(item: Any) -> Any:
    return item


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"crops-*{SUFFIX}")) if folder.is_dir() else []


def _result(files: Sequence[Path], counts: dict[str, int]) -> Prepared:
    return Prepared(tuple(files), sum(counts.values()), counts, sum(p.stat().st_size for p in files))
