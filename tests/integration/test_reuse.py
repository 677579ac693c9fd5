"""Reuse and skipping through whole jobs: files, workers that die, fields, pictures, real footage."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur import process_video
from streamdeblur.config import ProcessOptions
from streamdeblur.jobs.images import process_images
from streamdeblur.runtime.ledger import FrameRecord, LedgerSummary, read_ledger
from tests.clips import Picture, draw_number, read_clip, read_number
from tests.one_ray import all_there, one_ray

pytestmark = pytest.mark.integration

FRAMES = 20
SIZE = (256, 192)
CELLS = (256 // 16) * (192 // 16)
NETWORK: dict[str, Any] = {
    "model": "mimo-unet-small", "weights": "random:1", "precision": "fp32", "threads": 1, "lossless": True,
}  # fmt: skip
OFFSET: dict[str, Any] = {"model": "offset:0.04,0.04,0.04", "device": "cpu", "lossless": True}


def picture(index: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A texture that stands still, a frame number over it, and a square that moves."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    texture = 110 + 50 * np.sin(x / 3) * np.cos(y / 5) + 20 * np.sin(x * y / 97)
    rgb = np.repeat(texture[..., None], 3, axis=2).astype(np.uint8)
    draw_number(rgb, index)
    rgb[120:144, 100 + 3 * index : 124 + 3 * index] = (40, 90, 200)
    return rgb


def write_clip(path: Path, frames: int = FRAMES, size: tuple[int, int] = SIZE, flags: int = 0) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.flags |= flags
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("reuse") / "fixed.mkv")


def same(path: Path, pictures: list[Picture]) -> None:
    mine = read_clip(path)
    assert [p.time for p in mine] == [p.time for p in pictures]
    assert all(a.same(b) for a, b in zip(mine, pictures, strict=True))


@pytest.mark.parametrize("interlaced", ["progressive", "tff", "bff"])
def test_identity_and_a_known_step_are_exact(source: Path, tmp_path: Path, interlaced: str) -> None:
    common = {"reuse": True, "lossless": True, "interlaced": interlaced}
    identity = process_video(source, tmp_path / "identity.mkv", model="identity", **common)
    same(tmp_path / "identity.mkv", read_clip(source))
    assert [read_number(p.parts["Y"]) for p in read_clip(tmp_path / "identity.mkv")] == list(range(FRAMES))
    process_video(source, tmp_path / "full.mkv", interlaced=interlaced, **OFFSET)
    ledger = tmp_path / "frames.jsonl"
    reused = process_video(source, tmp_path / "reused.mkv", ledger=ledger, interlaced=interlaced, reuse=True, **OFFSET)
    same(tmp_path / "reused.mkv", read_clip(tmp_path / "full.mkv"))
    for summary in (identity, reused):
        assert summary.restored == FRAMES
        assert summary.tiles is not None
        assert summary.tiles.restored + summary.tiles.reused == CELLS * FRAMES
        assert summary.tiles.skipped == 0
        assert summary.network_share is not None
        assert summary.network_share < 0.7
        assert summary.tiles.reused > summary.tiles.restored
    lines = list(read_ledger(ledger))
    records = [line for line in lines if isinstance(line, FrameRecord)]
    assert len(records) == FRAMES
    assert all(r.tiles is not None and r.tiles.restored + r.tiles.reused == CELLS for r in records)
    assert records[0].tiles is not None
    assert records[0].tiles.reused == 0
    assert isinstance(lines[-1], LedgerSummary)
    assert lines[-1].tiles == reused.tiles
    assert json.loads(json.dumps(reused.as_dict()))["tiles"]["reused"] == reused.tiles.reused  # type: ignore[union-attr]


def test_without_the_options_nothing_is_counted(source: Path, tmp_path: Path) -> None:
    summary = process_video(source, tmp_path / "a.mkv", model="identity", lossless=True, duration=0.2)
    assert summary.tiles is None
    assert summary.network_share is None
    assert summary.as_dict()["tiles"] is None


def test_sharp_tiles_are_left_alone(tmp_path: Path) -> None:
    """The right half is smoothed: it gets the step, and the texture at the left keeps every code value."""
    path = tmp_path / "half.mkv"
    rng = np.random.default_rng(0)
    noise = rng.integers(20, 235, (192, 128)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 256, 192, "gray"
        y, x = np.mgrid[:192, :256]
        for index in range(4):
            luma = (128 + 60 * np.sin((x + index) / 15) * np.sin(y / 19)).astype(np.uint8)
            luma[:, :128] = noise
            frame = av.VideoFrame.from_ndarray(luma, format="gray")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    summary = process_video(path, tmp_path / "out.mkv", skip_sharp=True, **OFFSET)
    assert summary.tiles is not None
    assert summary.tiles.skipped == 4 * CELLS // 2
    assert summary.tiles.reused == 0
    for a, b in zip(read_clip(path), read_clip(tmp_path / "out.mkv"), strict=True):
        change = b.parts["Y"].astype(int) - a.parts["Y"]
        assert not change[:, :128].any()
        assert (change[:, 144:] == change[0, 200]).all()
        assert change[0, 200] in (9, 10)  # 0.04 of 219, or of 255


def test_a_folder_of_pictures_of_a_fixed_camera(tmp_path: Path) -> None:
    import cv2

    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(6):
        cv2.imwrite(str(folder / f"{index}.png"), picture(index, SIZE))
    full = process_images(str(folder), str(tmp_path / "full"), options=ProcessOptions(model="offset:0.1,0,-0.1"))
    kept = process_images(
        str(folder), str(tmp_path / "kept"), options=ProcessOptions(model="offset:0.1,0,-0.1", reuse=True)
    )
    assert full.tiles is None
    assert kept.tiles is not None
    assert kept.tiles.reused > kept.tiles.restored
    for index in range(6):
        a, b = (cv2.imread(str(tmp_path / where / f"{index}.png")) for where in ("full", "kept"))
        assert np.array_equal(a, b)


def psnr(a: list[Picture], b: list[Picture]) -> list[float]:
    found = []
    for one, two in zip(a, b, strict=True):
        parts = [(one.parts[k].astype(float) - two.parts[k]).ravel() for k in one.parts]
        error = float(np.mean(np.concatenate(parts) ** 2))
        found.append(10 * np.log10(255**2 / max(error, 1e-9)))
    return found


@pytest.mark.slow
def test_real_footage_is_near_the_full_run(clips: Path, tmp_path: Path) -> None:
    """The shipped weights on the busiest of the fixed cameras: much less work, no frame below 45 dB."""
    clip = clips / "fixed_camera_traffic.mp4"
    common: dict[str, Any] = {"duration": 0.42, "lossless": True}
    full = process_video(clip, tmp_path / "full.mkv", **common)
    kept = process_video(clip, tmp_path / "kept.mkv", reuse=True, **common)
    assert full.frames == kept.frames == kept.restored >= 10
    assert kept.network_share is not None
    assert kept.network_share < 0.8
    results = psnr(read_clip(tmp_path / "full.mkv"), read_clip(tmp_path / "kept.mkv"))
    assert results[0] > 80  # the first goes whole
    assert min(results) > 45
    assert min(results) < 80  # and the others do not


# --- workers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    pytest.importorskip("ray")
    with one_ray(4):
        yield


@pytest.mark.usefixtures("cluster")
def test_workers_that_die_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from streamdeblur.runtime.ray_pool import RayPool

    source = write_clip(tmp_path / "small.mkv", 14, (208, 144))
    alone = process_video(source, tmp_path / "alone.mkv", reuse=True, **NETWORK)
    assert alone.network_share is not None
    assert alone.network_share < 0.8
    pools: list[RayPool] = []
    killed: list[int] = []
    create = RayPool.__init__

    def remember(self: RayPool, *arguments: Any, **keywords: Any) -> None:
        create(self, *arguments, **keywords)
        all_there(self)
        pools.append(self)

    def kill(progress: Any) -> None:
        pids = pools[0].worker_pids()
        if progress.frames >= 4 and not killed and len(pids) == 2:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    monkeypatch.setattr(RayPool, "__init__", remember)
    with caplog.at_level(logging.WARNING):
        several = process_video(source, tmp_path / "several.mkv", reuse=True, workers=2, progress=kill, **NETWORK)
    assert killed, "the second worker was not ready in time"
    assert any(" died" in r.getMessage() for r in caplog.records)
    same(tmp_path / "several.mkv", read_clip(tmp_path / "alone.mkv"))
    assert (several.tiles, several.network_share) == (alone.tiles, alone.network_share)
    assert several.workers == 2
    # The network did something, and what was reused is near what it gives anew.
    plain = read_clip(source)
    assert not any(a.same(b) for a, b in zip(plain, read_clip(tmp_path / "alone.mkv"), strict=True))
