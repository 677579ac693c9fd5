"""Deeper networks compute what the given one does, shallower ones have some of its blocks; both can be trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamdeblur.errors import UsageError
from streamdeblur.models.checkpoint import Metadata, load_checkpoint, save_checkpoint
from streamdeblur.models.depth import deepen_checkpoint, shorten_checkpoint
from streamdeblur.models.mimo_unet import MIMOUNetConfig, network_from_state
from streamdeblur.models.random_weights import random_state
from streamdeblur.models.registry import resolve


def checkpoint(path: Path, config: MIMOUNetConfig) -> Path:
    about = Metadata("mimo-unet-small", config, score=24.0, extra={"history": "rate 3", "preview": ""})
    save_checkpoint(path, random_state(config, 1), about)
    return path


@pytest.mark.parametrize(("old", "new"), [(1, 2), (1, 4), (2, 3), (2, 6), (3, 8)])
def test_it_computes_the_same_and_every_new_block_learns(old: int, new: int, tmp_path: Path) -> None:
    config = MIMOUNetConfig(width=4, blocks=old)
    path = checkpoint(tmp_path / "net.safetensors", config)
    state, metadata = deepen_checkpoint(path, new)
    assert metadata.config.blocks == new
    shallow = network_from_state(config, load_checkpoint(path)[0]).float()
    deep = network_from_state(metadata.config, state)
    x = torch.rand((1, 3, 32, 40), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(deep.residual(x), shallow.residual(x), atol=1e-6)
    sum(output.square().mean() for output in deep(x)).backward()  # type: ignore[union-attr]
    silent = [name for name, p in deep.named_parameters() if "conv2.weight" in name and not p.grad.abs().max() > 0]  # type: ignore[union-attr]
    assert not silent


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    small, medium = resolve("mimo-unet-small").config, resolve("mimo-unet-medium").config
    assert small is not None
    assert medium is not None
    path = checkpoint(tmp_path / "net.safetensors", small)
    state, metadata = deepen_checkpoint(path, medium.blocks, seed=3)
    assert (metadata.variant, metadata.config, metadata.score) == ("mimo-unet-medium", medium, None)
    assert metadata.extra == {
        "history": "rate 3; deepened from 2 to 6 residual blocks",
        "preview": "never trained at this depth",
    }
    save_checkpoint(tmp_path / "deep.safetensors", state, metadata)
    again = deepen_checkpoint(path, medium.blocks, seed=3)[0]
    other = deepen_checkpoint(path, medium.blocks, seed=4)[0]
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state["encoder1.2.conv1.weight"], other["encoder1.2.conv1.weight"])


@pytest.mark.parametrize("blocks", [2, 1, 0])
def test_as_many_blocks_or_fewer_are_refused(blocks: int, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "net.safetensors", MIMOUNetConfig(width=4, blocks=2))
    with pytest.raises(UsageError, match=f"has 2 residual blocks in a stage, {blocks} are no more; give a larger"):
        deepen_checkpoint(path, blocks)


@pytest.mark.parametrize("keep", [[1], [3], [1, 3], [2, 3]])
def test_a_shorter_network_has_those_blocks_and_no_others(keep: list[int], tmp_path: Path) -> None:
    config = MIMOUNetConfig(width=4, blocks=3)
    path = checkpoint(tmp_path / "net.safetensors", config)
    state, metadata = shorten_checkpoint(path, keep)
    assert metadata.config == MIMOUNetConfig(width=4, blocks=len(keep))
    short = network_from_state(metadata.config, state)
    whole = network_from_state(config, load_checkpoint(path)[0]).float()
    with torch.no_grad():
        for name, p in whole.named_parameters():  # blocks that add nothing are blocks that are not there
            stage, number, *rest = name.split(".")
            if stage[:7] in ("encoder", "decoder") and rest[0] == "conv2" and int(number) + 1 not in keep:
                p.zero_()
    x = torch.rand((1, 3, 32, 40), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(short.residual(x), whole.residual(x), atol=1e-6)


def test_what_a_shorter_one_says_of_itself(tmp_path: Path) -> None:
    small, medium = resolve("mimo-unet-small").config, resolve("mimo-unet-medium").config
    assert medium is not None
    about = shorten_checkpoint(checkpoint(tmp_path / "net.safetensors", medium), [1, 6])[1]
    assert (about.variant, about.config, about.score) == ("mimo-unet-small", small, None)
    assert about.extra == {
        "history": "rate 3; shortened from 6 residual blocks to 1,6 of them",
        "preview": "never trained at this depth",
    }


def test_another_depth_of_a_depth_of_its_own_is_said_once(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "net.safetensors", MIMOUNetConfig(width=4, blocks=2))
    save_checkpoint(tmp_path / "three.safetensors", *deepen_checkpoint(path, 3))
    deeper = deepen_checkpoint(tmp_path / "three.safetensors", 5)[1]
    shorter = shorten_checkpoint(tmp_path / "three.safetensors", [1])[1]
    assert [deeper.variant, shorter.variant] == ["mimo-unet-small with 5 blocks", "mimo-unet-small with 1 blocks"]


@pytest.mark.parametrize("keep", [[], [0, 1], [2, 1], [1, 1], [1, 4]])
def test_blocks_that_there_are_not_are_refused(keep: list[int], tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "net.safetensors", MIMOUNetConfig(width=4, blocks=3))
    with pytest.raises(UsageError, match="are not some of the 3 of a stage; give rising numbers from 1 to 3"):
        shorten_checkpoint(path, keep)


def test_all_blocks_are_no_shorter_network(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "net.safetensors", MIMOUNetConfig(width=4, blocks=2))
    with pytest.raises(UsageError, match=r"blocks 1,2 are all that .* has; leave some out"):
        shorten_checkpoint(path, [1, 2])
