"""Whole jobs on CUDA, for machines that have it: on a Ray actor as in this process, and as on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamdeblur import process_video
from tests.clips import read_clip, read_number, read_packets, uneven_pts, write_numbered_clip
from tests.one_ray import one_ray

pytestmark = [
    pytest.mark.integration,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

DEVICE = "cuda:0"  # one of several would be in this process, too
NETWORK: dict[str, Any] = {"model": "mimo-unet-small", "weights": "random:1", "device": DEVICE, "lossless": True}
FRAMES = 30


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cuda") / "a.mp4"
    return write_numbered_clip(path, FRAMES, (96, 64), pts=uneven_pts(FRAMES), audio=True)


@pytest.mark.parametrize("more", [{}, {"reuse": True}, {"skip_sharp": True}, {"precision": "fp32", "engine": "eager"}])
def test_a_ray_actor_gives_the_frames_of_this_process(source: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    ray = pytest.importorskip("ray")
    alone, on_ray = tmp_path / "alone.mkv", tmp_path / "ray.mkv"
    assert process_video(source, alone, **NETWORK, **more).frames == FRAMES
    with one_ray(4, gpus=1):
        assert ray.is_initialized()
        assert process_video(source, on_ray, workers=1, **NETWORK, **more).frames == FRAMES
    pictures = read_clip(alone), read_clip(on_ray)
    assert len(pictures[0]) == FRAMES
    for number, (a, b) in enumerate(zip(*pictures, strict=True)):
        assert a.time == b.time
        assert a.same(b), number
    assert read_packets(alone, 1) == read_packets(on_ray, 1)


@pytest.mark.parametrize("engine", ["eager", "cuda-graphs"])
def test_frames_are_those_of_a_cpu(source: Path, tmp_path: Path, engine: str) -> None:
    network = {**NETWORK, "precision": "fp32"}
    process_video(source, tmp_path / "cpu.mkv", **{**network, "device": "cpu"}, engine="eager")
    process_video(source, tmp_path / "cuda.mkv", **network, engine=engine)
    before = read_clip(source)
    changed = 0
    for number, (was, a, b) in enumerate(
        zip(before, read_clip(tmp_path / "cpu.mkv"), read_clip(tmp_path / "cuda.mkv"), strict=True)
    ):
        assert read_number(b.parts["Y"]) == number
        for name, plane in a.parts.items():
            apart = np.abs(plane.astype(int) - b.parts[name].astype(int))
            assert apart.max() <= 1  # where a sum rounds the other way
            assert apart.mean() < 0.02
        changed += not was.same(b)
    assert changed == FRAMES
