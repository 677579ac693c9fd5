"""Training on CUDA is training on a CPU, for machines that have it. Needs no PyAV and no Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamdeblur.errors import DeviceError, TrainingError
from streamdeblur.models.checkpoint import Metadata, save_checkpoint
from streamdeblur.models.mimo_unet import MIMOUNetConfig
from streamdeblur.models.random_weights import random_state
from streamdeblur.restore.engines.compiled import require_compiler
from streamdeblur.restore.engines.devices import PRECISIONS
from streamdeblur.training.batches import ShardBatches, augment
from streamdeblur.training.networks import initial_network
from streamdeblur.training.outcome import Progress
from streamdeblur.training.recipe import Data, Optimizer, Recipe, Schedule
from streamdeblur.training.teacher import Teacher
from streamdeblur.training.trainer import Trainer
from streamdeblur.training.validation import Scores, validate
from tests.training import pair, recipe, write_shards

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

DEVICE = "cuda"

#: What is done to crops, all of it.
ALL = {"zoom": 0.75, "channels": True, "exposure": 0.8}


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """float32 products, by the same algorithms every time."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "crops")


class Losses:
    """Remembers the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_progress(self, progress: Progress) -> None:
        self.seen.append(progress.loss)

    def on_validation(self, step: int, scores: Scores) -> None:
        pass

    def close(self) -> None:
        pass


def trained(r: Recipe, folder: Path, device: str) -> tuple[Trainer, list[float]]:
    place, losses = torch.device(device), Losses()
    batches = ShardBatches(r.data, seed=r.seed, device=place)
    trainer = Trainer(r, folder, batches, observers=[losses], device=place)
    assert next(trainer.net.parameters()).device.type == place.type
    trainer.train()
    batches.close()
    return trainer, losses.seen


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach().cpu() for p in trainer.net.parameters()]


def mean_distance(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x - y).abs().sum()) for x, y in zip(a, b, strict=True)) / sum(x.numel() for x in a)


@pytest.mark.parametrize("changes", [{}, ALL], ids=["cut and turned", "all"])
def test_crops_are_those_of_the_cpu(shards: Path, changes: dict[str, Any]) -> None:
    base = Data(shards=(str(shards),), crop=16, batch=4, flips="both", rotations=True, sharp_share=0.3)
    data = dataclasses.replace(base, **changes)
    found = []
    for place in (torch.device("cpu"), torch.device(DEVICE)):
        batches = ShardBatches(data, seed=0, device=place)
        crops = batches.start(0)
        found.append([augment(next(crops), data, seed=0, step=n, rank=0, device=place) for n in range(6)])
        assert found[-1][0][0].device.type == place.type
        batches.close()
    for wanted, got in zip(*found, strict=True):
        for a, b in zip(wanted, got, strict=True):
            torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_steps_are_those_of_the_cpu(shards: Path, tmp_path: Path, optimizer: Any) -> None:
    r = recipe(shards, optimizer=Optimizer(name=optimizer, lr=1e-3, ema=0.9, clip=1.0), steps=6)
    r = dataclasses.replace(r, data=dataclasses.replace(r.data, **ALL))
    by_cpu, wanted = trained(r, tmp_path / "cpu", "cpu")
    by_gpu, got = trained(r, tmp_path / "gpu", DEVICE)
    assert len(got) == 6
    assert got == pytest.approx(wanted, rel=0.01)
    # Not each weight: Adam's first steps are the signs of gradients, of which some are nearly 0.
    moved = mean_distance(weights(by_cpu), [p.detach() for p in initial_network(r).parameters()])
    assert moved > 1e-4
    assert mean_distance(weights(by_gpu), weights(by_cpu)) < 0.1 * moved


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_teacher_shows_what_it_shows_on_the_cpu(tmp_path: Path, precision: str) -> None:
    config = MIMOUNetConfig(width=8, blocks=1)
    state = random_state(config, 7)
    state["head1.weight"] = state["head1.weight"] * 20
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, state, Metadata("mimo-unet-small", config))
    dice = torch.Generator().manual_seed(0)
    blur, sharp = (torch.rand((2, 3, 16, 16), generator=dice) for _ in range(2))
    found = []
    for place, dtype in ((torch.device("cpu"), torch.float32), (torch.device(DEVICE), PRECISIONS[precision])):
        teacher = Teacher(str(path), 0.9, place, dtype, views=3)
        got = teacher.targets(blur.to(place), sharp.to(place), np.random.default_rng(4))
        assert (got.device.type, got.dtype) == (place.type, torch.float32)
        found.append(got.cpu())
    assert (found[0] - sharp).abs().mean() > 0.1
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4 if precision == "fp32" else 0.05)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_half_and_half_again_is_the_whole(shards: Path, tmp_path: Path, optimizer: Any, precision: str) -> None:
    r = recipe(shards, optimizer=Optimizer(name=optimizer, lr=1e-3, ema=0.9, clip=1.0), precision=precision)
    r = dataclasses.replace(r, schedule=Schedule(kind="constant"))
    whole, losses = trained(r, tmp_path / "whole", DEVICE)
    half, first = trained(dataclasses.replace(r, steps=4), tmp_path / "halves", DEVICE)
    again, second = trained(r, tmp_path / "halves", DEVICE)
    assert again.step == 8
    assert first + second == pytest.approx(losses, rel=0.01 if precision == "fp32" else 0.05)
    moved = mean_distance(weights(whole), weights(half))
    assert mean_distance(weights(again), weights(whole)) < 0.2 * moved


def test_a_compiled_step_is_the_eager_one(shards: Path, tmp_path: Path) -> None:
    try:
        require_compiler(torch.device(DEVICE))
    except DeviceError as e:
        pytest.skip(str(e))
    r = recipe(shards, steps=4)
    _, wanted = trained(r, tmp_path / "eager", DEVICE)
    _, got = trained(dataclasses.replace(r, compile=True), tmp_path / "compiled", DEVICE)
    assert got == pytest.approx(wanted, rel=0.01)


def test_a_loss_that_is_no_number_stops_the_run_at_its_step(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Numbers of a step are looked at while the next one is at work.
    r = recipe(shards, optimizer=Optimizer(lr=1e-3, clip=1.0), steps=20, log_every=100)
    step = Trainer.train_step

    def spoilt(self: Trainer, blur: Tensor, sharp: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        loss, parts, norm = step(self, blur, sharp)
        return loss * float("nan" if self.step == 7 else 1), parts, norm

    monkeypatch.setattr(Trainer, "train_step", spoilt)
    with pytest.raises(TrainingError, match=r"the loss became nan at step 8;"):
        trained(r, tmp_path / "run", DEVICE)
    assert (tmp_path / "run" / "not-a-number-0.safetensors").exists()


def test_scores_are_those_of_the_cpu(shards: Path, tmp_path: Path) -> None:
    trainer, _ = trained(recipe(shards, steps=2), tmp_path / "run", "cpu")
    sets = [("blocks", lambda: iter([("one", *pair(1, (41, 53)))]))]
    net = trainer.averaged.net
    found = []
    for device in ("cpu", DEVICE):
        scores = validate(net.to(device), sets, torch.device(device), torch.float32, sharp=True)
        assert scores is not None
        found.append(scores.as_dict())
    assert found[1] == pytest.approx(found[0], abs=0.02)
