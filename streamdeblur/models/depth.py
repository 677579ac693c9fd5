"""Deeper and shallower networks from a trained one, to go on training from.

Blocks whose second convolution is zero add nothing to what passes them (Chen, Goodfellow, Shlens: "Net2Net", ICLR
2016), so what the shallow network learned is kept, and the new blocks learn what it could not. And a network without
some of its residual blocks still does a part of what it did (Veit, Wilber, Belongie: "Residual Networks Behave Like
Ensembles of Relatively Shallow Networks", NIPS 2016): what it lost is soon learned again.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

import torch

from streamdeblur.errors import UsageError
from streamdeblur.models import registry
from streamdeblur.models.checkpoint import Metadata, State

#: What a variant's name ends with after its depth was changed.
_DEPTH = re.compile(r"( with \d+ blocks)+$")
#: The stages that are made of residual blocks.
_STAGES = tuple(f"{side}{level}" for side in ("encoder", "decoder") for level in (1, 2, 3))


def deepen_checkpoint(path: str | os.PathLike[str], blocks: int, seed: int = 0) -> tuple[State, Metadata]:
    """The network of a checkpoint with ``blocks`` residual blocks in every stage: results are the same.

    New blocks lie before the last one; their first convolutions are random by ``seed`` (He et al. 2015), their second
    ones 0. float32. The variant is the one of that architecture, else a word of its own. It calls itself a preview, as
    nobody has trained it yet. Raises UsageError for fewer blocks than there are, or as many, and WeightsError for a
    file that is no checkpoint.
    """
    state, metadata = registry.read_weights(path)
    old = metadata.config.blocks
    if blocks <= old:
        raise UsageError(
            f"{os.fspath(path)} has {old} residual blocks in a stage, {blocks} are no more", "give a larger --blocks"
        )
    deeper: State = {}
    for name, value in state.items():
        stage, _, rest = name.partition(".")
        if stage in _STAGES:
            number, _, rest = rest.partition(".")
            place = int(number) if int(number) < old - 1 else blocks - 1
            name = f"{stage}.{place}.{rest}"
        deeper[name] = value.float()
    generator = torch.Generator().manual_seed(seed)
    for stage in _STAGES:
        for place in range(old - 1, blocks - 1):
            first = torch.empty_like(deeper[f"{stage}.{blocks - 1}.conv1.weight"])
            fan_in = first[0].numel()
            deeper[f"{stage}.{place}.conv1.weight"] = first.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            deeper[f"{stage}.{place}.conv2.weight"] = torch.zeros_like(first)
            for layer in ("conv1", "conv2"):
                deeper[f"{stage}.{place}.{layer}.bias"] = torch.zeros(len(first))
    words = f"deepened from {old} to {blocks} residual blocks"
    return deeper, _of_depth(metadata, blocks, words)


def shorten_checkpoint(path: str | os.PathLike[str], keep: Sequence[int]) -> tuple[State, Metadata]:
    """The network of a checkpoint with these of its residual blocks alone, in every stage: results are others.

    keep: numbers from 1 on, rising. float32. The variant is the one of that architecture, else a word of its own. It
    calls itself a preview, as nobody has trained it yet. Raises UsageError for blocks that there are not, or all of
    them, and WeightsError for a file that is no checkpoint.
    """
    state, metadata = registry.read_weights(path)
    old = metadata.config.blocks
    given = ",".join(map(str, keep))
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 1 or keep[-1] > old:
        raise UsageError(
            f"blocks {given or 'none'} are not some of the {old} of a stage", f"give rising numbers from 1 to {old}"
        )
    if len(keep) == old:
        raise UsageError(f"blocks {given} are all that {os.fspath(path)} has", "leave some out")
    shorter: State = {}
    for name, value in state.items():
        stage, _, rest = name.partition(".")
        if stage in _STAGES:
            number, _, rest = rest.partition(".")
            if int(number) + 1 not in keep:
                continue
            name = f"{stage}.{keep.index(int(number) + 1)}.{rest}"
        shorter[name] = value.float()
    return shorter, _of_depth(metadata, len(keep), f"shortened from {old} residual blocks to {given} of them")


def _of_depth(metadata: Metadata, blocks: int, words: str) -> Metadata:
    config = dataclasses.replace(metadata.config, blocks=blocks)
    alike = [
        v.name
        for v in registry.variants().values()
        if v.config is not None and not v.ensemble and not v.config.differences(config)
    ]
    history = "; ".join(filter(None, (str(metadata.extra.get("history", "")), words)))
    return dataclasses.replace(
        metadata,
        variant=alike[0] if alike else f"{_DEPTH.sub('', metadata.variant)} with {blocks} blocks",
        config=config,
        score=None,
        score_note="",
        created_by="",
        extra={**metadata.extra, "history": history, "preview": "never trained at this depth"},
    )
