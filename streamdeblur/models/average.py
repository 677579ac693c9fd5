"""The mean of several checkpoints of one network.

A network that goes on from another, on other pairs, learns these and forgets a part of the others. The mean of both
keeps most of either (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022), at the cost of one.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence

import torch

from streamdeblur.errors import UsageError, WeightsError
from streamdeblur.models.checkpoint import Metadata, State, load_checkpoint


def average_checkpoints(
    paths: Sequence[str | os.PathLike[str]], shares: Sequence[float] | None = None
) -> tuple[State, Metadata]:
    """Weights of ``sum(share * checkpoint)`` in bf16, as trained checkpoints have them, and their metadata.

    shares: relative, above 0, one for each path; equal by default. The variant is that of the first; training data,
    licences and histories are those of all; nobody has validated the mean yet, so it calls itself a preview. Sums are
    in float64. It only means something for checkpoints that come from one another, or from a common one. Raises
    UsageError for fewer than two paths or bad shares, WeightsError for a file that is no checkpoint or of another
    architecture than the first.
    """
    if len(paths) < 2:
        raise UsageError(f"{len(paths)} checkpoint can't be averaged", "name two or more")
    parts = [1.0] * len(paths) if shares is None else list(shares)
    if len(parts) != len(paths) or not (all(part > 0 for part in parts) and math.isfinite(sum(parts))):
        given = ",".join(f"{part:g}" for part in parts)
        raise UsageError(f"shares {given} are not {len(paths)} numbers above 0", f"give {','.join('1' * len(paths))}")
    total: State = {}
    known: list[Metadata] = []
    for path, part in zip(paths, parts, strict=True):
        state, metadata = load_checkpoint(path)
        known.append(metadata)
        if other := metadata.config.differences(known[0].config):
            raise WeightsError(
                f"{os.fspath(path)} is another network than {os.fspath(paths[0])}: {', '.join(other)}",
                "average checkpoints that come from one another",
            )
        for name, value in state.items():
            scaled = value.double() * (part / sum(parts))
            total[name] = total[name] + scaled if name in total else scaled
    written = ":".join(f"{part:g}" for part in parts)
    return {name: value.to(torch.bfloat16) for name, value in total.items()}, dataclasses.replace(
        known[0],
        training_data=_joined([m.training_data for m in known]),
        recipe=f"the mean of {len(paths)} checkpoints ({written}): {_joined([m.recipe for m in known])}",
        score=None,
        score_note="",
        licence=_joined([m.licence for m in known]),
        created_by="",
        extra={
            **known[0].extra,
            "history": _joined([m.extra.get("history", "") for m in known]),
            "preview": "never validated",
        },
    )


def _joined(texts: Sequence[str]) -> str:
    """Each once, in their order."""
    return "; ".join(dict.fromkeys(text for text in texts if text))
