"""A training run in plain values: frozen dataclasses of the standard library, so that they travel to bare machines.

The YAML of ``streamdeblur train --config`` has the same keys; ``streamdeblur.training.config`` checks it strictly.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from streamdeblur.errors import UsageError
from streamdeblur.models.mimo_unet import MIMOUNetConfig
from streamdeblur.training.losses import MSFR

ScheduleKind = Literal["constant", "step", "cosine", "one-cycle", "trapezoid"]
SourceKind = Literal["pairs", "highspeed", "footage", "stills"]


def _check(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where training crops come from: aligned pairs, or sharp material that is blurred on the fly.

    share: how much of the batch, relative to the other sources. turned: share of its crops that are cut at any angle,
    from windows of up to 1.42 times their side and 9 px. enlarged: its crops are made larger, and so softer, by a
    factor from 1 to that, blur and all. options: keywords of the source
    (``streamdeblur.training.synthesis.sources``).
    """

    kind: SourceKind
    path: str
    share: float = 1.0
    turned: float = 0.0
    enlarged: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self.share > 0, f"share {self.share:g} of {self.path} is not above 0")
        _check(0 <= self.turned <= 1, f"turned {self.turned:g} of {self.path} is not in 0..1")
        _check(1 <= self.enlarged <= 8, f"enlarged {self.enlarged:g} of {self.path} is not in 1..8")


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a step sees.

    shards: prepared files or folders of them (``streamdeblur prepare``), or sources: crops made on the fly by
    ``workers`` processes. crop, batch: size and number of crops of one process's step. sharp_share: crops that are
    given sharp, so that the network learns to leave sharp frames alone. zoom: half of the cuts are larger and made
    smaller by a factor from ``zoom`` to 1, with their blur. channels: R, G, B in random order. exposure: both sides
    times a factor from ``exposure`` to 1. memory_gb: decoded crops held at a time.
    """

    shards: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    crop: int = 256
    batch: int = 4
    flips: Literal["none", "horizontal", "both"] = "horizontal"
    rotations: bool = False
    sharp_share: float = 0.0
    zoom: float = 1.0
    channels: bool = False
    exposure: float = 1.0
    workers: int = 2
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        _check(bool(self.shards) != bool(self.sources), "data needs shards or sources, one of the two")
        _check(self.crop >= 16 and self.crop % 4 == 0, f"crop {self.crop} is not a multiple of 4 of at least 16")
        _check(self.batch >= 1, f"batch {self.batch} is not at least 1")
        _check(0 <= self.sharp_share < 1, f"sharp_share {self.sharp_share:g} is not in 0..1")
        _check(0.1 <= self.zoom <= 1, f"zoom {self.zoom:g} is not in 0.1..1")
        _check(0 < self.exposure <= 1, f"exposure {self.exposure:g} is not above 0 and at most 1")
        _check(self.workers >= 0, f"workers {self.workers} is not at least 0")
        _check(self.memory_gb > 0, f"memory_gb {self.memory_gb:g} is not above 0")

    @property
    def widest(self) -> int:
        """Side of the largest cut, in pixels: what a source has to give."""
        return round(self.crop / self.zoom)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Eq. 9: weight and definition of the frequency term; where the content term becomes a square; and from what.

    epsilon: of ``content_loss``, in [0, 1] as pictures are; 0 is the paper's L1. teacher: a checkpoint whose results
    the targets are mixed with, at teacher_share of the way from the sharp picture to them; teacher_views: the mean over
    so many orientations, 1 to 8 (``teacher``).
    """

    msfr_weight: float = 0.1
    msfr: MSFR = "released"
    epsilon: float = 0.0
    teacher: str = ""
    teacher_share: float = 0.0
    teacher_views: int = 1

    def __post_init__(self) -> None:
        _check(0 <= self.teacher_share <= 1, f"teacher_share {self.teacher_share:g} is not in 0..1")
        _check(1 <= self.teacher_views <= 8, f"teacher_views {self.teacher_views} is not in 1..8")
        _check(bool(self.teacher) or self.teacher_views == 1, f"teacher_views {self.teacher_views} needs a teacher")
        _check(
            bool(self.teacher) == bool(self.teacher_share), "teacher and teacher_share go together: give both or none"
        )
        _check(self.msfr_weight >= 0, f"msfr_weight {self.msfr_weight:g} is below 0")
        # Below, its square is lost in float32.
        _check(not self.epsilon or 1e-6 <= self.epsilon <= 1, f"epsilon {self.epsilon:g} is not 0 or in 1e-6..1")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate over time; lengths in epochs where the run is in epochs, else in steps.

    total: length of cosine, one-cycle and trapezoid; 0 takes the run's own. every, factor: of "step". warmup: always in
    steps. final: the lowest factor. rise: share of a one-cycle that climbs. decay: length of a trapezoid's way down.
    """

    kind: ScheduleKind = "cosine"
    total: int = 0
    every: int = 0
    factor: float = 0.5
    warmup: int = 0
    final: float = 0.0
    rise: float = 0.3
    decay: int = 0

    def __post_init__(self) -> None:
        for name in ("total", "every", "warmup", "decay"):
            _check(getattr(self, name) >= 0, f"{name} {getattr(self, name)} is below 0")
        _check(self.kind != "step" or self.every > 0, "a step schedule needs every, in epochs or steps")
        _check(0 < self.rise < 1, f"rise {self.rise:g} is not in 0..1")
        _check(0 <= self.final <= 1, f"final {self.final:g} is not in 0..1")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Adam, AdamW or Muon (``optimizers.Muon``).

    muon_ratio: learning rate of Muon's matrices over ``lr``. clip: largest norm of the gradient, 0 for no clipping.
    ema: decay of the averaged weights.
    """

    name: Literal["adam", "adamw", "muon"] = "adam"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    muon_ratio: float = 2.0
    clip: float = 0.0
    ema: float = 0.999

    def __post_init__(self) -> None:
        _check(self.lr > 0, f"lr {self.lr:g} is not above 0")
        _check(all(0 <= b < 1 for b in self.betas), f"betas {self.betas} are not in 0..1")
        _check(self.muon_ratio > 0, f"muon_ratio {self.muon_ratio:g} is not above 0")
        _check(self.clip >= 0, f"clip {self.clip:g} is below 0")
        _check(0 <= self.ema < 1, f"ema {self.ema:g} is not in 0..1")
        _check(self.weight_decay >= 0, f"weight_decay {self.weight_decay:g} is below 0")


@dataclass(frozen=True, kw_only=True)
class ValidationSet:
    """Pairs that pick the best checkpoint: a folder of pairs (test split) or a shard of whole images.

    limit: the first so many, 0 for all. layout: of the folder, as of the sources (``pairs.LAYOUTS``).
    """

    name: str
    path: str
    limit: int = 0
    layout: str = "auto"

    def __post_init__(self) -> None:
        _check(self.limit >= 0, f"limit {self.limit} is below 0")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """every: steps between validations. sharp: also measure sharp images against themselves."""

    sets: tuple[ValidationSet, ...] = ()
    every: int = 1000
    sharp: bool = True

    def __post_init__(self) -> None:
        _check(self.every >= 1, f"every {self.every} is not at least 1")
        names = [s.name for s in self.sets]
        _check(len(set(names)) == len(names), "two validation sets have the same name")
        _check("sharp" not in names, "a validation set can't be named sharp")


@dataclass(frozen=True, kw_only=True)
class StateOptions:
    """How a run is kept: every so many steps, in which precision, in files of at most part_mib.

    fp32 resumes to the bit; bf16 halves the size and does not. moments: false leaves the optimiser's out, and a resumed
    run warms up again over ``Schedule.warmup`` steps.
    """

    every: int = 1000
    dtype: Literal["fp32", "bf16"] = "fp32"
    part_mib: float = 1024.0
    moments: bool = True

    def __post_init__(self) -> None:
        _check(self.every >= 1, f"every {self.every} is not at least 1")
        _check(self.part_mib > 0, f"part_mib {self.part_mib:g} is not above 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run.

    model: a variant of the registry; architecture: switches that replace some of its own (``MIMOUNetConfig``).
    init: "scaled" starts near the identity, "pytorch" as the authors did. start: a checkpoint to fine-tune from.
    epochs: passes over the pairs (needs sources of pairs or shards), or steps: one of the two.
    precision: arithmetic of the network; the loss and the weights stay float32. compile: ``torch.compile``, and on a
    CPU in fp32 convolutions of our own (``training.convolutions``).
    training_data, licence: what the checkpoint will say of itself.
    """

    model: str = "mimo-unet"
    architecture: Mapping[str, Any] = field(default_factory=dict)
    init: Literal["scaled", "pytorch"] = "scaled"
    start: str = ""
    data: Data
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    validation: Validation = Validation()
    state: StateOptions = StateOptions()
    epochs: int = 0
    steps: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    training_data: str = "unknown"
    licence: str = "unknown"

    def __post_init__(self) -> None:
        _check(bool(self.epochs) != bool(self.steps), "give epochs or steps, one of the two")
        _check(self.epochs >= 0 and self.steps >= 0, "epochs and steps can't be below 0")
        countable = bool(self.data.shards) or any(s.kind == "pairs" for s in self.data.sources)
        _check(not self.epochs or countable, "epochs need shards or a source of pairs; give steps")
        _check(self.log_every >= 1, f"log_every {self.log_every} is not at least 1")
        _check(0 <= self.seed < 2**32, f"seed {self.seed} is not in 0..2^32-1")

    def config(self, base: MIMOUNetConfig) -> MIMOUNetConfig:
        """The architecture: ``base`` (the variant's) with this recipe's switches. Raises ValueError on a bad one."""
        known = {f.name for f in dataclasses.fields(MIMOUNetConfig)}
        for key in self.architecture:
            _check(key in known, f"unknown architecture key {key!r}; known are {', '.join(sorted(known))}")
        return dataclasses.replace(base, **self.architecture)

    def resolved(self, samples: int, world: int) -> Recipe:
        """The same run counted in steps. samples: crops of an epoch; world: processes."""
        s = self.schedule
        if not self.epochs:
            return dataclasses.replace(self, schedule=dataclasses.replace(s, total=s.total or self.steps))
        per_epoch = max(1, samples // (self.data.batch * world))
        steps = self.epochs * per_epoch
        schedule = dataclasses.replace(
            s, total=s.total * per_epoch or steps, every=s.every * per_epoch, decay=s.decay * per_epoch
        )
        return dataclasses.replace(self, epochs=0, steps=steps, schedule=schedule)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Inverse of ``to_json``; for text that this program wrote.

        Keys that came later take their defaults. Raises UsageError for one that this version does not know.
        """
        v = json.loads(text)
        data = v["data"]
        parts = [("", cls, v), *((n, k, v[n]) for n, k in _PARTS.items())]
        parts += [("data.sources", Source, s) for s in data["sources"]]
        parts += [("validation.sets", ValidationSet, s) for s in v["validation"]["sets"]]
        for name, kind, values in parts:
            known = {f.name for f in dataclasses.fields(kind)}
            if unknown := sorted(values.keys() - known):
                raise UsageError(
                    f"this version does not know {name + '.' if name else ''}{unknown[0]} of a recipe",
                    "go on with the version that wrote it",
                )
        return cls(
            **{
                **v,
                "data": Data(
                    **{
                        **data,
                        "shards": tuple(data["shards"]),
                        "sources": tuple(Source(**s) for s in data["sources"]),
                    }
                ),
                "loss": Loss(**v["loss"]),
                "optimizer": Optimizer(**{**v["optimizer"], "betas": tuple(v["optimizer"]["betas"])}),
                "schedule": Schedule(**v["schedule"]),
                "validation": Validation(
                    **{**v["validation"], "sets": tuple(ValidationSet(**s) for s in v["validation"]["sets"])}
                ),
                "state": StateOptions(**v["state"]),
            }
        )


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Crops to make beforehand, so that training needs neither the footage nor time for synthesis.

    count: crops in all, divided over the sources by their shares. size: of a crop; larger than the training crop leaves
    room for random cuts. quality: of the JPEGs. part_mib: size of a shard. workers: processes.
    """

    sources: tuple[Source, ...]
    count: int = 4000
    size: int = 320
    quality: int = 95
    part_mib: float = 24.0
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        _check(bool(self.sources), "sources is empty")
        _check(self.count >= 1, f"count {self.count} is not at least 1")
        _check(self.size >= 16, f"size {self.size} is not at least 16")
        _check(0 <= self.quality <= 100, f"quality {self.quality} is not in 0..100 (0 is PNG)")
        _check(self.part_mib > 0, f"part_mib {self.part_mib:g} is not above 0")
        _check(self.workers >= 0, f"workers {self.workers} is not at least 0")


#: Parts of a recipe by the names of their fields.
_PARTS = {
    "data": Data,
    "loss": Loss,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "validation": Validation,
    "state": StateOptions,
}
