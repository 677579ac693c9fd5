"""Targets that a trained network helps to make."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from streamdeblur.errors import TrainingError, WeightsError
from streamdeblur.models.checkpoint import Metadata, read_metadata, save_checkpoint
from streamdeblur.models.ensemble import SYMMETRIES, SelfEnsemble, oriented, oriented_back
from streamdeblur.models.mimo_unet import MIMOUNet, MIMOUNetConfig, network_from_state
from streamdeblur.models.random_weights import random_state
from streamdeblur.training.batches import ShardBatches
from streamdeblur.training.recipe import Loss, Optimizer, Recipe, Schedule
from streamdeblur.training.state import load_state
from streamdeblur.training.teacher import Teacher
from streamdeblur.training.trainer import Trainer
from tests.training import recipe, write_shards

CPU = torch.device("cpu")
#: Another architecture than the pupil's.
OTHER = MIMOUNetConfig(width=8, blocks=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_checkpoint(path, network(7).state_dict(), Metadata("mimo-unet-small", OTHER))
    return path


def network(seed: int) -> MIMOUNet:
    """Near the identity, but not so near that its corrections are lost in rounding."""
    net = network_from_state(OTHER, random_state(OTHER, seed))
    with torch.no_grad():
        net.head1.weight.mul_(20)
    return net.eval()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    blur, sharp = (torch.rand((3, 3, 16, 16), generator=dice) for _ in range(2))
    sharp[1] = blur[1]  # a crop that is given sharp
    return blur, sharp


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_targets_lie_between_the_sharp_picture_and_the_teachers(checkpoint: Path, share: float, compiled: bool) -> None:
    blur, sharp = batch()
    teacher = Teacher(str(checkpoint), share, CPU, torch.float32, views=8, compiled=compiled)
    targets = teacher.targets(blur, sharp, np.random.default_rng(0))
    with torch.no_grad():
        theirs = blur + SelfEnsemble(network(7), 8).residual(blur)
    assert (theirs - blur).abs().mean() > 0.01
    torch.testing.assert_close(targets[[0, 2]], ((1 - share) * sharp + share * theirs)[[0, 2]])
    assert torch.equal(targets[1], sharp[1])
    assert not targets.requires_grad
    assert targets.dtype == torch.float32


def test_few_orientations_are_drawn_anew_and_all_in_turn(checkpoint: Path) -> None:
    blur, sharp = batch()
    teacher = Teacher(str(checkpoint), 1.0, CPU, torch.float32)
    with torch.no_grad():
        each = [oriented_back(network(7)(oriented(blur, view))[-1], view) for view in range(SYMMETRIES)]
    drawn = set()
    for step in range(60):
        targets = teacher.targets(blur, sharp, np.random.default_rng(step))
        near = [view for view, one in enumerate(each) if torch.allclose(targets[0], one[0], atol=1e-5)]
        assert len(near) == 1
        drawn.update(near)
    assert drawn == set(range(SYMMETRIES))
    again = [teacher.targets(blur, sharp, np.random.default_rng(5)) for _ in range(2)]
    assert torch.equal(*again)


def test_a_teacher_in_bf16_says_nearly_the_same(checkpoint: Path) -> None:
    blur, sharp = batch()
    exact, rough = (
        Teacher(str(checkpoint), 1.0, CPU, dtype).targets(blur, sharp, np.random.default_rng(0))
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.05


def test_a_pupil_comes_to_do_what_its_teacher_does(shards: Path, checkpoint: Path, tmp_path: Path) -> None:
    """With a share of 1 the sharp pictures have no say: the distance to the teacher falls to a part of what it was."""
    r = recipe(
        shards,
        architecture={"width": 8, "blocks": 1},
        loss=Loss(msfr_weight=0, teacher=str(checkpoint), teacher_share=1.0, teacher_views=8),
        optimizer=Optimizer(name="adamw", lr=3e-3, ema=0),
        schedule=Schedule(kind="cosine"),
        steps=120,
    )
    trainer = trained(r, tmp_path / "run")
    blur, _ = batch(1)
    with torch.no_grad():
        wanted, got, before = blur + SelfEnsemble(network(7), 8).residual(blur), trainer.net(blur)[-1], blur
    assert (got - wanted).square().mean() < 0.3 * (before - wanted).square().mean()
    assert read_metadata(tmp_path / "run" / "last.safetensors").recipe.endswith(
        "MSFR weight 0, 100% of the target from teacher.safetensors in 8 orientations"
    )


def trained(r: Recipe, folder: Path, steps: int | None = None) -> Trainer:
    batches = ShardBatches(r.data, seed=r.seed)
    try:
        trainer = Trainer(r if steps is None else replace(r, steps=steps), folder, batches)
        trainer.train()
        return trainer
    finally:
        batches.close()


def test_half_and_resume_is_the_whole_to_the_bit(shards: Path, checkpoint: Path, tmp_path: Path) -> None:
    r = recipe(
        shards,
        loss=Loss(teacher=str(checkpoint), teacher_share=0.5),
        schedule=Schedule(kind="constant"),
    )
    trained(r, tmp_path / "whole")
    trained(r, tmp_path / "halves", 4)
    trained(r, tmp_path / "halves")
    whole, halves = (load_state(tmp_path / name / "last")[0] for name in ("whole", "halves"))
    plain = trained(replace(r, loss=Loss()), tmp_path / "plain").net.state_dict()
    assert set(whole) == set(halves)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert any(not torch.equal(whole[f"model/{name}"], value) for name, value in plain.items())


def test_a_state_from_before_there_were_teachers_goes_on(shards: Path, tmp_path: Path) -> None:
    r = recipe(shards, schedule=Schedule(kind="constant"))
    values: dict[str, Any] = json.loads(r.to_json())
    for key in ("teacher", "teacher_share", "teacher_views"):
        del values["loss"][key]
    assert Recipe.from_json(json.dumps(values)) == r


def test_a_run_that_is_done_needs_its_teacher_no_more(shards: Path, checkpoint: Path, tmp_path: Path) -> None:
    moved = tmp_path / "else" / checkpoint.name
    moved.parent.mkdir()
    moved.write_bytes(checkpoint.read_bytes())
    r = recipe(shards, steps=3, loss=Loss(teacher=str(moved), teacher_share=0.5))
    trained(r, tmp_path / "run", 2)
    elsewhere = replace(r, loss=replace(r.loss, teacher=str(checkpoint)))
    trained(elsewhere, tmp_path / "run")  # the same file at another place: no other training
    assert not read_metadata(tmp_path / "run" / "last.safetensors").extra["history"]
    moved.unlink()
    assert trained(r, tmp_path / "run").step == 3
    with pytest.raises(WeightsError, match=r"^loss\.teacher: there is no weights file .*; check the path"):
        trained(r, tmp_path / "new")


def test_another_teacher_is_remembered_by_its_name(shards: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(checkpoint.read_bytes())
    r = recipe(shards, steps=4, loss=Loss(teacher=str(checkpoint), teacher_share=0.5))
    trained(r, tmp_path / "run", 2)
    trained(replace(r, loss=Loss(teacher=str(other), teacher_share=0.5)), tmp_path / "run")
    history = read_metadata(tmp_path / "run" / "last.safetensors").extra["history"]
    assert history == "loss.teacher teacher.safetensors until step 2"


def test_a_teacher_whose_results_are_no_numbers_is_named(shards: Path, checkpoint: Path, tmp_path: Path) -> None:
    net = network(7)
    with torch.no_grad():
        net.head1.bias.fill_(3e38)  # twice that is no float32
    path = tmp_path / "broken.safetensors"
    save_checkpoint(path, net.state_dict(), Metadata("mimo-unet-small", OTHER))
    r = recipe(shards, loss=Loss(teacher=str(path), teacher_share=0.5, teacher_views=2))
    with pytest.raises(TrainingError, match="what the teacher makes of it is no number"):
        trained(r, tmp_path / "run")
    saved = load_file(tmp_path / "run" / "not-a-number-0.safetensors")
    assert set(saved) == {"blur", "sharp", "target"}
    assert torch.isfinite(saved["sharp"]).all()
    assert not torch.isfinite(saved["target"]).all()


def test_a_file_that_is_no_checkpoint_is_said_at_once(shards: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "teacher.safetensors"
    wrong.write_bytes(b"no checkpoint")
    r = recipe(shards, loss=Loss(teacher=str(wrong), teacher_share=0.5))
    with pytest.raises(WeightsError, match=r"teacher\.safetensors"):
        trained(r, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"teacher": "x", "teacher_share": 1.5}, "teacher_share 1.5 is not in 0..1"),
        ({"teacher": "x", "teacher_share": -0.1}, "teacher_share -0.1 is not in 0..1"),
        ({"teacher": "x", "teacher_share": 0.5, "teacher_views": 9}, "teacher_views 9 is not in 1..8"),
        ({"teacher_views": 2}, "teacher_views 2 needs a teacher"),
        ({"teacher": "x"}, "teacher and teacher_share go together"),
        ({"teacher_share": 0.5}, "teacher and teacher_share go together"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Loss(**values)
