"""Engines on CUDA, for machines that have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamdeblur.models import MIMOUNet, MIMOUNetConfig
from streamdeblur.models.random_weights import random_state
from streamdeblur.models.trial import noise
from streamdeblur.restore.engines import TorchEngine, build_engine, cuda_graphs, facts

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

TINY = MIMOUNetConfig(width=8, blocks=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / "cache"))


def network(config: MIMOUNetConfig = TINY) -> MIMOUNet:
    net = MIMOUNet(config)
    net.load_state_dict(random_state(config, 0))
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_cuda_graphs_replay_what_eager_mode_computes(precision: str) -> None:
    place = torch.device("cuda", 0)
    config = MIMOUNetConfig(width=16, blocks=2)
    engine = build_engine(network(config), engine="auto", device=place, precision=precision)
    assert facts(engine).name == "cuda-graphs"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    eager = TorchEngine(network(config), place, dtype)
    kept = []
    for seed, shape in enumerate(((2, 3, 64, 96), (1, 3, 64, 96), (2, 3, 64, 96), (1, 3, 32, 32))):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(place)
        got, want = engine.residual(x), eager.residual(x)
        assert (got.float() - want.float()).abs().max() < 1e-3
        kept.append((got, got.clone()))
    assert all(torch.equal(a, b) for a, b in kept)  # a later replay does not write to an earlier result


@pytest.mark.parametrize("engine", ["cuda-graphs", "eager"])
def test_two_threads_on_streams_of_their_own_compute_what_one_does(engine: str) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from fractions import Fraction

    import numpy as np

    from streamdeblur.frames import ColorSpec, Frame, FrameSpec
    from streamdeblur.restore import Restorer

    frames = []
    rng = np.random.default_rng(0)
    for depth, kind in ((8, np.uint8), (10, np.uint16), (16, np.uint16)):
        spec = FrameSpec(160, 96, ColorSpec("yuv", depth=depth, chroma_shift=(1, 1)))
        for _ in range(8):
            planes = tuple(rng.integers(0, 1 << depth, s).astype(kind) for s in spec.color.plane_shapes(160, 96))
            frames.append(Frame(len(frames), None, Fraction(1, 25), planes, spec))
    restorer = Restorer("mimo-unet-small", weights="random:0", device="cuda", precision="fp16", engine=engine)
    alone = [restorer.correction(f) for f in frames]
    assert restorer.share() == 2
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for one, other in zip(alone, pool.map(restorer.correction, frames), strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert any(np.any(c) for c in alone[0])


@pytest.mark.parametrize(("shapes", "pixels"), [(3, 1 << 25), (256, 1500)])
def test_more_shapes_than_are_kept_on_cuda(shapes: int, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_SHAPES", shapes)
    monkeypatch.setattr(cuda_graphs, "_PIXELS", pixels)
    place = torch.device("cuda", 0)
    engine = build_engine(network(), engine="cuda-graphs", device=place, precision="bf16")
    reference = TorchEngine(network(), place, torch.bfloat16)
    for side in (16, 20, 24, 28, 32, 36, 16):
        x = noise(side, side).to(place)
        assert (engine.residual(x).float() - reference.residual(x).float()).abs().max() < 1e-3


def test_engines_record_at_once_and_windows_are_recorded_before_they_come() -> None:
    from concurrent.futures import ThreadPoolExecutor

    place = torch.device("cuda", 0)
    engines = [build_engine(network(), engine="cuda-graphs", device=place, precision="fp32") for _ in range(2)]
    reference = TorchEngine(network(), place, torch.float32)

    def record(engine: Any) -> None:
        for side in range(16, 80, 4):
            engine.prepare(side, side)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(record, engines))
    for engine in engines:
        seconds = facts(engine).prepare_seconds
        for side in range(16, 80, 4):
            x = noise(side, side).to(place)
            assert (engine.residual(x).float() - reference.residual(x).float()).abs().max() < 1e-3
        assert facts(engine).prepare_seconds == seconds


def test_compiled_on_cuda_computes_the_same() -> None:
    place = torch.device("cuda", 0)
    engine = build_engine(network(), engine="compile", device=place, precision="bf16")
    assert facts(engine).name == "compile"
    reference = TorchEngine(network(), place, torch.bfloat16)
    for size in ((64, 64), (32, 96)):
        x = noise(*size).to(place)
        assert (engine.residual(x).float() - reference.residual(x).float()).abs().max() < 2e-3
