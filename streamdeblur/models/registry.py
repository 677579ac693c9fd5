"""Which models there are, by name, and how to get one that is ready to run."""

from __future__ import annotations

import difflib
import importlib.resources
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from streamdeblur.errors import UsageError, WeightsError
from streamdeblur.models.authors import authors_metadata, import_authors
from streamdeblur.models.base import ResidualModel
from streamdeblur.models.checkpoint import Metadata, State, is_pickle, load_checkpoint, read_metadata, require_file
from streamdeblur.models.ensemble import SelfEnsemble
from streamdeblur.models.mimo_unet import MIMO_UNET, MIMO_UNET_PLUS, MIMOUNetConfig, network_from_state
from streamdeblur.models.random_weights import random_state
from streamdeblur.models.simple import OFFSET_STEP, Identity, Offset

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Variant:
    """A model that can be asked for by name.

    config: architecture, None for models without parameters. ensemble: passes of self-ensemble, 0 for a plain one.
    weights_name: the variant whose checkpoints it takes ("" if none): MIMO-UNet++ runs on those of MIMO-UNet+.
    step: the RGB step of ``offset``.
    """

    name: str
    summary: str
    config: MIMOUNetConfig | None = None
    ensemble: Literal[0, 4, 8] = 0
    weights_name: str = ""
    step: tuple[float, float, float] | None = None

    @property
    def passes(self) -> int:
        """How often the network runs for one image."""
        return max(1, self.ensemble)


def _table(*rows: Variant) -> Mapping[str, Variant]:
    return MappingProxyType({row.name: row for row in rows})


_VARIANTS = _table(
    Variant("identity", "corrects nothing; to try everything but a network"),
    Variant(
        "offset",
        f"adds a known RGB step, {','.join(map(str, OFFSET_STEP))} or offset:R,G,B; for tests",
        step=OFFSET_STEP,
    ),
    Variant(
        "mimo-unet-small",
        "width 16, 2 residual blocks: for live streams, and where time is short",
        MIMOUNetConfig(width=16, blocks=2),
        weights_name="mimo-unet-small",
    ),
    Variant(
        "mimo-unet-medium",
        "width 16, 6 residual blocks: between small and the paper's",
        MIMOUNetConfig(width=16, blocks=6),
        weights_name="mimo-unet-medium",
    ),
    Variant("mimo-unet", "the paper's network, 8 residual blocks", MIMO_UNET, weights_name="mimo-unet"),
    Variant("mimo-unet-plus", "MIMO-UNet+, 20 residual blocks", MIMO_UNET_PLUS, weights_name="mimo-unet-plus"),
    Variant(
        "mimo-unet-plus-plus",
        "MIMO-UNet++: MIMO-UNet+ averaged over 4 flips",
        MIMO_UNET_PLUS,
        ensemble=4,
        weights_name="mimo-unet-plus",
    ),
    Variant(
        "mimo-unet-plus-plus:8",
        "MIMO-UNet+ averaged over 4 flips and their transposes",
        MIMO_UNET_PLUS,
        ensemble=8,
        weights_name="mimo-unet-plus",
    ),
)


#: What a self-ensemble of so many passes averages over.
_OVER = {"4": "4 flips", "8": "4 flips and their transposes"}


def variants() -> Mapping[str, Variant]:
    """Every variant with a name of its own, from cheap to dear; read-only. ``resolve`` knows more."""
    return _VARIANTS


def resolve(name: str) -> Variant:
    """The variant of that name. Raises UsageError naming the nearest known name.

    ``offset:R,G,B`` sets the step; ``NAME:4`` and ``NAME:8`` are the self-ensembles of any network.
    """
    if name.startswith("offset:"):
        return replace(_VARIANTS["offset"], name=name, step=_parse_step(name))
    base, _, passes = name.rpartition(":")
    plain = _VARIANTS.get(base)
    if passes in _OVER and plain is not None and plain.config is not None and not plain.ensemble:
        return _ensemble(plain, name, 4 if passes == "4" else 8)
    found = _VARIANTS.get("mimo-unet-plus-plus" if name == "mimo-unet-plus-plus:4" else name)
    if found:
        return found
    near = difflib.get_close_matches(name.lower().replace("_", "-").replace("+", "-plus"), _VARIANTS, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"unknown model {name!r}", f"{guess}known: {', '.join(_VARIANTS)}; and NAME:4, NAME:8 for means over flips"
    )


def knows(name: str) -> bool:
    """Whether ``resolve`` finds a variant of that name."""
    try:
        resolve(name)
    except UsageError:
        return False
    return True


def _ensemble(plain: Variant, name: str, passes: Literal[4, 8]) -> Variant:
    """The self-ensemble of a network; that of the table, where there is one: it is asked for by one name then."""
    for row in _VARIANTS.values():
        if (row.ensemble, row.weights_name, row.config) == (passes, plain.weights_name, plain.config):
            return row
    summary = f"{plain.name} averaged over {_OVER[str(passes)]}"
    return replace(plain, name=name, summary=summary, ensemble=passes)


def _parse_step(name: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(part) for part in name.removeprefix("offset:").split(","))
    except ValueError:
        red = green = blue = math.nan
    if not all(map(math.isfinite, (red, green, blue))):
        raise UsageError(
            f"model {name!r} has no step of three numbers", "write offset:R,G,B, as offset:0.06,-0.04,0.02"
        )
    return red, green, blue


def weights_folder() -> Path:
    """Where weights that come with the package lie, as NAME.safetensors."""
    return Path(str(importlib.resources.files("streamdeblur").joinpath("weights")))


def shipped_weights(variant: Variant) -> Path | None:
    """The checkpoint that comes with the package for this variant, or None."""
    if not variant.weights_name:
        return None
    path = weights_folder() / f"{variant.weights_name}.safetensors"
    return path if path.is_file() else None


def default_variant() -> Variant | None:
    """The plain (not ensembled) variant with the best validation score among those with shipped weights, or None."""
    best, best_score = None, -math.inf
    for variant in _VARIANTS.values():
        path = None if variant.ensemble else shipped_weights(variant)
        if path is None:
            continue
        score = read_metadata(path).score
        if best is None or (score is not None and score > best_score):
            best, best_score = variant, -math.inf if score is None else score
    return best


def cheapest_variant() -> Variant | None:
    """The plain variant with shipped weights that asks for the least work, or None: for live streams on a CPU."""
    ships = [
        v for v in _VARIANTS.values() if v.config is not None and not v.ensemble and shipped_weights(v) is not None
    ]
    return ships[0] if ships else None


def read_weights(path: str | os.PathLike[str]) -> tuple[State, Metadata]:
    """Weights from our format or, imported on the fly, from an authors' pickle. Raises WeightsError."""
    if is_pickle(require_file(path)):
        state, name = import_authors(path)
        return state, authors_metadata(name)
    return load_checkpoint(path)


def build(name: str | None = None, weights: str | os.PathLike[str] | None = None) -> ResidualModel:
    """A model in eval mode, float32, on the CPU.

    name: see ``resolve``; None takes the variant that the checkpoint names, or without one ``default_variant()``.
    weights: a checkpoint (ours or the authors'); "random:SEED"; None for what comes with the package.
    Raises UsageError on names, WeightsError on anything about weights.
    """
    return _build(name, weights).eval()


def _build(name: str | None, weights: str | os.PathLike[str] | None) -> ResidualModel:
    variant = resolve(name) if name is not None else None
    if variant is not None and variant.config is None:
        if weights is not None:
            raise UsageError(f"model {variant.name} takes no weights", "leave --weights out")
        return Identity() if variant.step is None else Offset(variant.step)

    if isinstance(weights, str) and weights.startswith("random:"):
        if variant is None or variant.config is None:
            raise UsageError(f"weights {weights!r} fit every network", "say which with --model")
        state = random_state(variant.config, _parse_seed(weights))
        return _assemble(variant.config, state, variant.ensemble)

    if weights is None:
        variant = variant or default_variant()
        weights = shipped_weights(variant) if variant else None
        if weights is None:
            what = f"no weights for {variant.name}" if variant else "no weights"
            raise WeightsError(f"{what} come with this package", "give --weights FILE, or --model identity to try it")
    state, metadata = read_weights(weights)
    if variant is not None:
        _check_variant(weights, metadata, variant)
    _say_preview(os.fspath(weights), metadata)
    return _assemble(metadata.config, state, variant.ensemble if variant else 0)


@cache
def _say_preview_once(path: str, what: str) -> None:
    log.warning("%s", what)


def _say_preview(path: str, metadata: Metadata) -> None:
    """Weights that fell short in their validation say so wherever they are used, once a process."""
    reason = metadata.extra.get("preview")
    if reason:
        _say_preview_once(path, f"{metadata.variant}: these weights are a preview: {reason}")


def _parse_seed(weights: str) -> int:
    text = weights.removeprefix("random:")
    if not (text.isascii() and text.isdecimal()) or int(text) >= 2**63:
        raise UsageError(f"weights {weights!r} name no seed", "write random:SEED with a whole number, as random:0")
    return int(text)


def _check_variant(path: str | os.PathLike[str], metadata: Metadata, variant: Variant) -> None:
    if metadata.variant != variant.weights_name:
        raise WeightsError(
            f"{os.fspath(path)} holds weights of {metadata.variant}, not of {variant.weights_name} for {variant.name}"
            if variant.weights_name != variant.name
            else f"{os.fspath(path)} holds weights of {metadata.variant}, not of {variant.name}",
            "leave --model out to run what the file holds",
        )
    assert variant.config is not None
    different = metadata.config.differences(variant.config)
    if different:
        raise WeightsError(
            f"{os.fspath(path)} calls itself {metadata.variant} but is built otherwise: {', '.join(different)}",
            "leave --model out to run what the file holds",
        )


def _assemble(config: MIMOUNetConfig, state: State, ensemble: Literal[0, 4, 8]) -> ResidualModel:
    net = network_from_state(config, state)
    return SelfEnsemble(net, ensemble) if ensemble else net
