"""The mean of checkpoints, and what it scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from streamdeblur.errors import UsageError
from streamdeblur.models.average import average_checkpoints
from streamdeblur.models.checkpoint import Metadata, State
from streamdeblur.training.feeds import open_validation
from streamdeblur.training.recipe import ValidationSet
from streamdeblur.training.validation import score_weights


def average(
    paths: Sequence[str], shares: Sequence[float] | None = None, pairs: Sequence[str] = ()
) -> tuple[State, Metadata]:
    """``models.average.average_checkpoints``, validated as the trainer does on ``pairs``, folders or shards.

    The sets are called by their folders; what makes weights more than a preview is asked of the first
    (``validation.Scores.shortfall``). Raises what ``average_checkpoints`` raises, InputError for pairs that can't be
    read, UsageError for two sets of one name.
    """
    names = [Path(path).resolve().name for path in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two sets of pairs are called {twice[0]}", "rename one of the folders")
    sets = open_validation([ValidationSet(name=n, path=p) for n, p in zip(names, pairs, strict=True)])
    state, metadata = average_checkpoints(paths, shares)
    if not sets:
        return state, metadata
    scores = score_weights(state, metadata.config, sets, device="auto", precision="auto", sharp=True)
    return state, dataclasses.replace(
        metadata,
        score=round(scores.score, 4),
        score_note=scores.note,
        extra={**metadata.extra, "preview": scores.shortfall},
    )
