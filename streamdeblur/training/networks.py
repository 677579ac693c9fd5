"""The network of a recipe before its first step, and its running average."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from streamdeblur.errors import UsageError
from streamdeblur.models import registry
from streamdeblur.models.mimo_unet import MIMOUNet, MIMOUNetConfig, network_from_state
from streamdeblur.models.random_weights import random_state
from streamdeblur.training.recipe import Recipe


def architecture(recipe: Recipe) -> MIMOUNetConfig:
    """The network that a recipe trains. Raises UsageError for a variant without one or a wrong switch."""
    variant = registry.resolve(recipe.model)
    if variant.config is None or variant.ensemble:
        trained = [v.name for v in registry.variants().values() if v.config is not None and not v.ensemble]
        raise UsageError(f"model {recipe.model} is not trained", f"train {', '.join(trained[:-1])} or {trained[-1]}")
    try:
        return recipe.config(variant.config)
    except ValueError as e:
        raise UsageError(f"architecture of {recipe.model}: {e}") from e


def initial_network(recipe: Recipe) -> MIMOUNet:
    """The network before the first step: from ``recipe.start``, else random from ``recipe.seed``; float32, CPU."""
    config = architecture(recipe)
    if recipe.start:
        state, metadata = registry.read_weights(recipe.start)
        different = metadata.config.differences(config)
        if different:
            raise UsageError(
                f"{recipe.start} has another architecture: {', '.join(different)} in the recipe",
                "set model and architecture to what the checkpoint holds",
            )
        return network_from_state(config, state)
    if recipe.init == "scaled":
        return network_from_state(config, random_state(config, recipe.seed))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return MIMOUNet(config)


@dataclass(frozen=True)
class Origin:
    """What the checkpoint that a run began from says of itself: what comes of it carries that on.

    name: of its file, without folders, as others will read it.
    """

    name: str
    recipe: str
    training_data: str
    licence: str


def origin(recipe: Recipe) -> Origin | None:
    """Of ``recipe.start``; None where there is none. Raises WeightsError for a file that is no checkpoint."""
    if not recipe.start:
        return None
    _, about = registry.read_weights(recipe.start)
    history = about.extra.get("history", "")
    made = f"{about.recipe} ({history})" if history else about.recipe
    return Origin(Path(recipe.start).name, made, about.training_data, about.licence)


class Averaged:
    """An exponential moving average of a network's parameters, in float32, with a network of its own to run it.

    The decay rises as (1 + n) / (10 + n) over the updates, so that an early average does not hold the beginning.
    """

    def __init__(self, net: MIMOUNet, decay: float) -> None:
        self.decay = decay
        self.net = network_from_state(net.config, {k: v.detach().clone() for k, v in net.state_dict().items()})
        self.net.requires_grad_(False)
        self._mine: list[Tensor] = list(self.net.parameters())
        self._source: list[Tensor] = list(net.parameters())

    @torch.no_grad()
    def update(self, updates: int) -> None:
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(self._mine, self._source, 1 - decay)
