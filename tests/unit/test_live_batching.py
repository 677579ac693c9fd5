"""Frames of several cameras in one call of the network: the same corrections, fewer calls."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from streamdeblur.errors import StreamdeblurError
from streamdeblur.frames import ColorSpec, Frame, FrameSpec
from streamdeblur.jobs.live.batching import Together, can_share
from streamdeblur.jobs.live.engines import BatchingPool, LiveWork, ticketed
from streamdeblur.restore import Restorer
from streamdeblur.restore.cover import Box
from streamdeblur.restore.planner import Region

COLORS = (
    ColorSpec("yuv", chroma_shift=(1, 1)),
    ColorSpec("yuv", "bt601", full_range=True, depth=10, chroma_shift=(1, 0)),
)


def frame(
    seed: int, size: tuple[int, int] = (160, 96), color: ColorSpec = COLORS[0], order: Any = "progressive"
) -> Frame:
    rng = np.random.default_rng(seed)
    kind = np.uint8 if color.depth == 8 else np.uint16
    planes = tuple(
        rng.integers(0, 1 << color.depth, s).astype(kind) for s in color.plane_shapes(*size)[: color.color_planes]
    )
    return Frame(seed, seed, Fraction(1, 25), planes, FrameSpec(*size, color, order))


def region(top: int, left: int, side: int = 64, margin: int = 16, parity: int | None = None) -> Region:
    window = Box(top, left, top + side, left + side)
    return Region(window, Box(top + margin, left + margin, top + side - margin, left + side - margin), parity)


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer("mimo-unet-small", weights="random:1", device="cpu", engine="eager", precision="fp32")


@pytest.fixture
def calls(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes that the network was called with."""
    made: list[tuple[int, ...]] = []
    real = restorer.engine.residual

    def residual(batch: torch.Tensor) -> torch.Tensor:
        made.append(tuple(batch.shape))
        return real(batch)

    monkeypatch.setattr(restorer.engine, "residual", residual, raising=False)
    return made


def test_tiles_of_different_cameras_go_together(restorer: Restorer, calls: list[tuple[int, ...]]) -> None:
    cameras: list[tuple[Frame, Sequence[Region] | None]] = [
        (frame(0), [region(0, 0), region(32, 96)]),
        (frame(1, (200, 64), COLORS[1]), [region(0, 100)]),
        (frame(2), [region(16, 32, margin=8)]),
        (frame(3, (64, 64)), None),  # a whole frame of that size is a picture like any other
        (frame(4), ()),
    ]
    assert all(map(can_share, cameras))
    found = Together(restorer).corrections(cameras)
    assert calls == [(4, 3, 64, 64), (1, 3, 64, 64)]
    for (one, regions), together in zip(cameras, found, strict=True):
        alone = restorer.correction(one, regions)
        assert [p.shape for p in together] == [p.shape for p in alone]
        assert [p.dtype for p in together] == [p.dtype for p in alone]
        for a, b in zip(together, alone, strict=True):
            assert np.abs(a.astype(int) - b).max(initial=0) <= 1  # sums in another order may round the other way


def test_whole_frames_of_cameras_go_together(restorer: Restorer, calls: list[tuple[int, ...]]) -> None:
    frames = [frame(n, (96, 64)) for n in range(2)]
    found = Together(restorer).corrections([(f, None) for f in frames])
    assert [c[0] for c in calls] == [2]
    for one, together in zip(frames, found, strict=True):
        for a, b in zip(together, restorer.correction(one), strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1


def test_fields_go_by_themselves() -> None:
    assert not can_share((frame(0, order="tff"), None))
    assert not can_share((frame(0, order="tff"), [region(0, 0, parity=1)]))
    assert can_share((frame(0), None))


def test_numbers_that_are_none_are_told(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restorer.engine, "residual", lambda batch: batch * float("nan"), raising=False)
    with pytest.raises(StreamdeblurError, match="not finite"):
        Together(restorer).corrections([(frame(0, (64, 64)), None)])


def test_the_pool_gives_cameras_one_call(restorer: Restorer, calls: list[tuple[int, ...]]) -> None:
    """The wiring: what waits on one step of the ladder goes together, windows and whole frames alike."""
    work, go = LiveWork([(restorer, False)]), threading.Event()

    def held() -> LiveWork:
        go.wait(30)  # until all wait
        return work

    with BatchingPool(held, 4) as pool:
        for n in range(4):
            pool.submit(ticketed(frame(n), n, 0), [region(0, 8 * n)])
        go.set()
        done: list[Any] = []
        while len(done) < 4:
            done += pool.collect(30)
    assert sorted(r.index for r in done) == [0, 1, 2, 3]
    assert calls == [(4, 3, 64, 64)]
