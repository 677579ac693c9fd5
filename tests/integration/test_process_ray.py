"""The job on Ray actors gives what one process gives, whoever dies."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamdeblur import process_video
from streamdeblur.errors import WorkerError
from streamdeblur.runtime.ray_pool import RayPool
from tests.clips import Picture, read_clip, read_packets, uneven_pts, write_numbered_clip
from tests.one_ray import all_there, one_ray

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.integration

NETWORK: dict[str, Any] = {
    "model": "mimo-unet-small", "weights": "random:1", "precision": "fp32", "threads": 1, "lossless": True,
}  # fmt: skip
FRAMES = 24


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for the module, which the jobs find running and leave running."""
    with one_ray(4):
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "a.mp4"
    return write_numbered_clip(path, FRAMES, (96, 64), pts=uneven_pts(FRAMES), audio=True)


@pytest.fixture(scope="module")
def alone(source: Path) -> tuple[Path, list[Picture]]:
    path = source.with_name("alone.mkv")
    assert process_video(source, path, **NETWORK).workers == 1
    pictures = read_clip(path)
    assert not any(a.same(b) for a, b in zip(pictures, read_clip(source), strict=True))  # the network does something
    return path, pictures


def expect_the_same(path: Path, alone: tuple[Path, list[Picture]]) -> None:
    pictures = read_clip(path)
    assert [p.time for p in pictures] == [p.time for p in alone[1]]
    assert all(a.same(b) for a, b in zip(pictures, alone[1], strict=True))
    assert read_packets(path, 1) == read_packets(alone[0], 1)


@pytest.mark.parametrize("victims", [0, 1, 2], ids=["nobody dies", "one dies", "both die"])
def test_same_as_in_process(
    victims: int,
    source: Path,
    alone: tuple[Path, list[Picture]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pools: list[RayPool] = []
    killed: list[int] = []
    create = RayPool.__init__

    def remember(self: RayPool, *arguments: Any, **keywords: Any) -> None:
        create(self, *arguments, **keywords)
        all_there(self)
        pools.append(self)

    def kill(progress: Any) -> None:
        if progress.frames >= 4 and not killed:
            pids = pools[0].worker_pids()
            if len(pids) == 2:  # the second may be still starting
                killed.extend(pids[:victims] or [0])
                for pid in pids[:victims]:
                    os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(RayPool, "__init__", remember)
    caplog.set_level(logging.WARNING)
    summary = process_video(source, tmp_path / "b.mkv", workers=2, progress=kill, **NETWORK)
    assert (summary.workers, summary.frames, summary.restored) == (2, FRAMES, FRAMES)
    expect_the_same(tmp_path / "b.mkv", alone)
    died = [r.getMessage() for r in caplog.records if " died" in r.getMessage()]
    if victims:
        assert len(killed) == victims, "the second worker was not ready in time"
    assert len(died) == victims
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.mkv"]


class Poison:
    """Stands in for the job's recipe: a step of one code value, and death for whoever takes frame 5."""

    def __new__(cls, spec: Any) -> Any:
        def factory() -> Any:  # made here so that it travels by value
            def work(frame: Any) -> Any:
                if frame.index == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
                return tuple(np.ones(p.shape, np.int16) for p in frame.planes)

            return work

        return factory


def test_a_poison_frame_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamdeblur.jobs.workforce.WorkerRecipe", Poison)
    with pytest.raises(WorkerError, match=r"frame 5 at 0\.\d{3} s of .*a\.mp4 can't be restored") as e:
        process_video(source, tmp_path / "b.mkv", workers=2, model="identity", lossless=True)
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_a_poison_frame_is_passed_through_on_request(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamdeblur.jobs.workforce.WorkerRecipe", Poison)
    summary = process_video(source, tmp_path / "b.mkv", workers=2, model="identity", lossless=True, on_error="bypass")
    assert (summary.frames, summary.restored, summary.bypassed) == (FRAMES, FRAMES - 1, 1)
    for i, (a, b) in enumerate(zip(read_clip(source), read_clip(tmp_path / "b.mkv"), strict=True)):
        for name, plane in a.parts.items():
            expected = plane if i == 5 else np.clip(plane.astype(int) + 1, 0, 255)
            assert np.array_equal(b.parts[name], expected), f"frame {i}"
