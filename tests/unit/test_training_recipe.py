"""Recipes in plain values: what they refuse, epochs in steps, and the way through JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from streamdeblur.errors import UsageError
from streamdeblur.models.mimo_unet import MIMO_UNET, MIMOUNetConfig
from streamdeblur.training.recipe import (
    Data,
    Loss,
    Optimizer,
    Preparation,
    Recipe,
    Schedule,
    Source,
    StateOptions,
    Validation,
    ValidationSet,
)

SHARDS = Data(shards=("crops",), batch=4)
PAIRS = Source(kind="pairs", path="p")
STILLS = Source(kind="stills", path="s")


def test_epochs_become_steps() -> None:
    schedule = Schedule(kind="step", every=500, decay=2, warmup=7)
    recipe = Recipe(data=SHARDS, epochs=3000, schedule=schedule).resolved(2103, 1)
    # 2,103 pairs in batches of 4 are 525 full ones
    assert (recipe.epochs, recipe.steps) == (0, 3000 * 525)
    s = recipe.schedule
    assert (s.every, s.total, s.decay, s.warmup) == (500 * 525, 3000 * 525, 2 * 525, 7)
    two = Recipe(data=SHARDS, epochs=2, schedule=Schedule(total=1)).resolved(2103, 2)
    assert (two.steps, two.schedule.total) == (2 * 262, 262)


def test_steps_stay_steps_and_the_schedule_takes_their_length() -> None:
    recipe = Recipe(data=SHARDS, steps=70).resolved(2103, 3)
    assert (recipe.steps, recipe.schedule.total) == (70, 70)
    assert Recipe(data=SHARDS, steps=70, schedule=Schedule(total=50)).resolved(9, 1).schedule.total == 50
    assert recipe.resolved(2103, 3) == recipe  # what recipe.json holds means the same again


def test_fewer_samples_than_a_batch_are_a_step_an_epoch() -> None:
    assert Recipe(data=SHARDS, epochs=5).resolved(3, 1).steps == 5


def test_json_there_and_back() -> None:
    recipe = Recipe(
        model="mimo-unet-small",
        architecture={"width": 8, "fusion": "sum"},
        data=Data(sources=(PAIRS, dataclasses.replace(STILLS, share=2.5, options={"identity": 0.1}))),
        loss=Loss(msfr="paper"),
        optimizer=Optimizer(name="adamw", betas=(0.8, 0.99)),
        schedule=Schedule(kind="trapezoid", decay=3),
        validation=Validation(sets=(ValidationSet(name="a", path="b", limit=2),), every=3),
        state=StateOptions(dtype="bf16", part_mib=16, moments=False),
        steps=9,
    )
    for name, where in {
        "optimizer": lambda v: v["optimizer"],
        "data.sources": lambda v: v["data"]["sources"][1],
        "validation.sets": lambda v: v["validation"]["sets"][0],
    }.items():
        later = json.loads(recipe.to_json())
        where(later)["of_tomorrow"] = 1
        with pytest.raises(UsageError, match=rf"know {name}.of_tomorrow of a recipe; go on with the version that"):
            Recipe.from_json(json.dumps(later))
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert isinstance(again.data.sources[1], Source)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Recipe(data=SHARDS), "give epochs or steps"),
        (lambda: Recipe(data=SHARDS, epochs=1, steps=1), "give epochs or steps"),
        (lambda: Recipe(data=SHARDS, steps=-1), "can't be below 0"),
        (lambda: Recipe(data=Data(sources=(STILLS,)), epochs=3), "epochs need shards or a source of pairs"),
        (lambda: Recipe(data=SHARDS, steps=1, seed=-1), "seed -1"),
        (lambda: Recipe(data=SHARDS, steps=1, log_every=0), "log_every 0"),
        (Data, "shards or sources"),
        (lambda: Data(shards=("a",), sources=(PAIRS,)), "shards or sources"),
        (lambda: Data(shards=("a",), crop=30), "crop 30 is not a multiple of 4"),
        (lambda: Data(shards=("a",), crop=12), "crop 12"),
        (lambda: Data(shards=("a",), batch=0), "batch 0"),
        (lambda: Data(shards=("a",), sharp_share=1.0), "sharp_share 1"),
        (lambda: Data(shards=("a",), zoom=0), "zoom 0 is not in 0.1..1"),
        (lambda: Data(shards=("a",), exposure=1.5), "exposure 1.5"),
        (lambda: Data(shards=("a",), memory_gb=0), "memory_gb 0"),
        (lambda: Data(shards=("a",), workers=-1), "workers -1"),
        (lambda: Source(kind="pairs", path="p", share=0), "share 0 of p"),
        (lambda: Source(kind="pairs", path="p", turned=1.5), "turned 1.5 of p is not in 0..1"),
        (lambda: Source(kind="pairs", path="p", enlarged=0.5), "enlarged 0.5 of p is not in 1..8"),
        (lambda: Loss(msfr_weight=-0.1), "msfr_weight -0.1"),
        (lambda: Schedule(kind="step"), "needs every"),
        (lambda: Schedule(warmup=-1), "warmup -1"),
        (lambda: Schedule(rise=1.0), "rise 1"),
        (lambda: Schedule(final=1.5), "final 1.5"),
        (lambda: Optimizer(lr=0), "lr 0"),
        (lambda: Optimizer(betas=(0.9, 1.0)), "betas"),
        (lambda: Optimizer(ema=1.0), "ema 1"),
        (lambda: Optimizer(clip=-1), "clip -1"),
        (lambda: Optimizer(weight_decay=-1), "weight_decay -1"),
        (lambda: Validation(every=0), "every 0"),
        (lambda: Validation(sets=(ValidationSet(name="sharp", path="p"),)), "can't be named sharp"),
        (lambda: Validation(sets=(ValidationSet(name="a", path="p"),) * 2), "the same name"),
        (lambda: StateOptions(part_mib=0), "part_mib 0"),
        (lambda: StateOptions(every=0), "every 0"),
        (lambda: Preparation(sources=()), "sources is empty"),
        (lambda: Preparation(sources=(PAIRS,), count=0), "count 0"),
        (lambda: Preparation(sources=(PAIRS,), quality=101), "quality 101"),
    ],
)
def test_bad_values_are_refused(make: Any, text: str) -> None:
    with pytest.raises(ValueError) as e:
        make()
    assert text in str(e.value)


def test_architecture_switches_replace_those_of_the_variant() -> None:
    recipe = Recipe(data=SHARDS, steps=1, architecture={"width": 8, "mise": False})
    assert recipe.config(MIMO_UNET) == MIMOUNetConfig(width=8, blocks=8, mise=False)
    with pytest.raises(ValueError, match="unknown architecture key 'widht'; known are aff"):
        Recipe(data=SHARDS, steps=1, architecture={"widht": 8}).config(MIMO_UNET)
