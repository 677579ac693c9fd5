"""The mean of several checkpoints of one network.

A network that goes on from another, on other pairs, learns these and forgets a part of the others. The mean of both
keeps most of either (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022), at the cost of one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import torch

from streamdeblur.errors import UsageError, WeightsError
from streamdeblur.models.checkpoint import Metadata, State, load_checkpoint


def average_checkpoints(
    paths: Sequence[str | os.PathLike[str]], shares: Sequence[float] | None = None
) -> tuple[State, Metadata]:
    """Weights of ``sum(share * checkpoint)`` in bf16, as trained checkpoints have them, and their metadata.

    shares: relative, above 0, one for each path; equal by default. Variant and licence are those of the first, the
    score is unknown. Sums are in float64. It only means something for checkpoints that come from one another, or from
    a common one. Raises UsageError for fewer than two paths or bad shares, WeightsError for a file that is no
    checkpoint or of another architecture than the first.
    """
    if len(paths) < 2:
        raise UsageError(f"{len(paths)} checkpoint can't be averaged", "name two or more")
    parts = [1.0] * len(paths) if shares is None else list(shares)
    if len(parts) != len(paths) or not all(0 < part < float("inf") for part in parts):
        given = ",".join(f"{part:g}" for part in parts)
        raise UsageError(f"shares {given} are not {len(paths)} numbers above 0", f"give {','.join('1' * len(paths))}")
    total: State = {}
    first: Metadata | None = None
    sources: list[str] = []
    for path, part in zip(paths, parts, strict=True):
        state, metadata = load_checkpoint(path)
        first = first or metadata
        if metadata.config != first.config:
            raise WeightsError(
                f"{os.fspath(path)} is a network of another architecture than {os.fspath(paths[0])}",
                "average checkpoints that come from one another",
            )
        if metadata.training_data not in sources:
            sources.append(metadata.training_data)
        for name, value in state.items():
            scaled = value.double() * (part / sum(parts))
            total[name] = total[name] + scaled if name in total else scaled
    assert first is not None
    written = ":".join(f"{part:g}" for part in parts)
    return {name: value.to(torch.bfloat16) for name, value in total.items()}, dataclasses.replace(
        first,
        training_data="; ".join(sources),
        recipe=f"the mean of {len(paths)} checkpoints ({written}), the first by: {first.recipe}",
        score=None,
        score_note="",
        created_by="",
    )
