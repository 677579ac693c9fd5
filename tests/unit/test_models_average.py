"""The mean of checkpoints: what it is, what it says of itself, what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamdeblur.errors import UsageError, WeightsError
from streamdeblur.models.average import average_checkpoints
from streamdeblur.models.checkpoint import Metadata, load_checkpoint, save_checkpoint
from streamdeblur.models.mimo_unet import MIMOUNet, MIMOUNetConfig
from streamdeblur.models.random_weights import random_state

CONFIG = MIMOUNetConfig(width=4, blocks=1)


def checkpoint(path: Path, seed: int, config: MIMOUNetConfig = CONFIG, **metadata: object) -> Path:
    about = Metadata(variant="tiny", config=config, training_data="streets", recipe="steps", licence="MIT", score=24.0)
    save_checkpoint(path, random_state(config, seed), replace(about, **metadata))  # type: ignore[arg-type]
    return path


def test_the_mean_by_shares(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2, 3)]
    states = [load_checkpoint(path)[0] for path in paths]
    for shares, parts in ((None, (1 / 3, 1 / 3, 1 / 3)), ((2, 1, 1), (0.5, 0.25, 0.25))):
        mean, _ = average_checkpoints(paths, shares)
        assert mean.keys() == states[0].keys()
        for name, value in mean.items():
            assert value.dtype == torch.bfloat16
            expected = sum(part * state[name].double() for part, state in zip(parts, states, strict=True))
            assert torch.equal(value, expected.to(torch.bfloat16))  # type: ignore[attr-defined]


def test_it_runs_and_tells_where_it_comes_from(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "a.safetensors", 1)
    second = checkpoint(
        tmp_path / "b.safetensors",
        2,
        training_data="parks",
        recipe="more steps",
        licence="other",
        extra={"preview": "", "history": "rate 3"},
    )
    mean, metadata = average_checkpoints([first, second], [3, 1])
    save_checkpoint(tmp_path / "mean.safetensors", mean, metadata)
    state, about = load_checkpoint(tmp_path / "mean.safetensors")
    MIMOUNet(CONFIG).load_state_dict(state)
    assert (about.variant, about.config, about.licence, about.score) == ("tiny", CONFIG, "MIT; other", None)
    assert about.extra == {"preview": "never validated", "history": "rate 3"}
    assert about.training_data == "streets; parks"
    assert about.recipe == "the mean of 2 checkpoints (3:1): steps; more steps"


def test_what_can_not_be_averaged(tmp_path: Path) -> None:
    first = checkpoint(tmp_path / "a.safetensors", 1)
    other = checkpoint(tmp_path / "b.safetensors", 1, MIMOUNetConfig(width=4, blocks=2))
    with pytest.raises(UsageError, match="1 checkpoint can't be averaged"):
        average_checkpoints([first])
    for shares in ((1,), (1, 0), (1, -1), (1, float("nan")), (1, float("inf")), (1e308, 1e308)):
        with pytest.raises(UsageError, match=r"shares .* are not 2 numbers above 0; give 1,1"):
            average_checkpoints([first, first], shares)
    with pytest.raises(WeightsError, match=r"b\.safetensors is another network than .*a\.safetensors: blocks 2 and 1"):
        average_checkpoints([first, other])
