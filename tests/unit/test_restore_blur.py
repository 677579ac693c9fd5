"""The blur score: known exponents, tiles where they are, and order on real pairs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from streamdeblur.restore.blur import blur_score, blur_scores
from streamdeblur.restore.planner import SpendOptions


def brownian(size: int = 256, seed: int = 0) -> np.ndarray:
    """A surface whose steps between rows and columns are independent: D(k) grows as k, so H is one half."""
    rng = np.random.default_rng(seed)
    line = np.cumsum(rng.normal(0, 1.5, size))
    other = np.cumsum(rng.normal(0, 1.5, size))
    return np.asarray(line[:, None] + other[None, :])


def as_codes(surface: np.ndarray, depth: int = 8) -> np.ndarray:
    low, high = surface.min(), surface.max()
    top = (1 << depth) - 1
    return np.round((surface - low) / (high - low) * top).astype(np.uint8 if depth == 8 else np.uint16)


def test_noise_scores_zero_and_a_ramp_one() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)
    ramp = (2 * np.arange(64)[:, None] + np.arange(64)[None, :]).astype(np.uint8)
    assert blur_score(noise) < 0.02
    assert blur_score(ramp) > 0.98


def test_steps_score_one_half() -> None:
    # k of 16 pixels have a step between them and the one k further: D(k) = k / 16 x 160²
    bars = np.broadcast_to(np.where(np.arange(512) // 16 % 2, 200, 40), (512, 512)).astype(np.uint8)
    assert blur_score(bars) == pytest.approx(0.5, abs=0.01)
    assert blur_score(as_codes(brownian())) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("kernel", [(9, 1), (1, 9), (5, 5)])
def test_blur_along_any_direction_raises_the_score(kernel: tuple[int, int]) -> None:
    sharp = as_codes(brownian(seed=2))
    assert blur_score(cv2.blur(sharp, kernel)) > blur_score(sharp) + 0.1


def test_diagonal_motion_raises_the_score() -> None:
    sharp = as_codes(brownian(seed=3))
    for kernel in (np.eye(9), np.eye(9)[::-1]):
        assert blur_score(cv2.filter2D(sharp, -1, kernel / 9)) > blur_score(sharp) + 0.1


def test_contrast_brightness_and_depth_do_not_matter() -> None:
    surface = brownian(seed=4)
    full = as_codes(surface)
    half = (full // 2 + 60).astype(np.uint8)
    assert blur_score(half) == pytest.approx(blur_score(full), abs=0.03)
    assert blur_score(as_codes(surface, 10), depth=10) == pytest.approx(blur_score(full), abs=0.02)


def test_a_flat_tile_scores_zero_at_any_depth() -> None:
    assert blur_score(np.full((64, 64), 90, np.uint8)) == 0
    faint = (512 + np.arange(64) // 32)[None, :].repeat(64, 0).astype(np.uint16)
    assert blur_score(faint, depth=10) == 0


def test_the_blurred_tile_is_found() -> None:
    picture = as_codes(brownian(seed=5))
    picture[64:128, 128:192] = cv2.blur(picture, (9, 9))[64:128, 128:192]
    scores = blur_scores(picture, 64)
    assert scores.shape == (4, 4)
    assert scores.dtype == np.float32
    assert np.unravel_index(scores.argmax(), scores.shape) == (1, 2)


@pytest.mark.parametrize("kernel", [(9, 1), (1, 9)])
def test_a_tile_that_moved_one_way_is_known_by_that_way(kernel: tuple[int, int]) -> None:
    """Steps score one half along either way; where they are smeared along one, the other still does."""
    blocks = np.random.default_rng(6).integers(0, 2, (32, 32), np.uint8)
    steps = np.kron(blocks, np.full((16, 16), 120, np.uint8)) + np.uint8(60)
    assert blur_scores(steps, 512)[0, 0] == pytest.approx(0.5, abs=0.05)
    smeared = cv2.blur(steps, kernel)
    assert blur_scores(smeared, 512)[0, 0] > 0.9
    assert blur_score(smeared) < 0.75  # the mean of the directions would have hidden it


def test_the_default_limit_parts_sharp_tiles_from_blurred_ones(data_dir: Path) -> None:
    """By the blur's squared error, which is what there is to be gained; as in docs/reuse.md."""
    limit = SpendOptions().sharp_below
    skipped, lost, sharp = [], [], []
    for name in ("gopro", "reds"):
        for path in sorted((data_dir / "data" / "val" / name / "blur").iterdir()):
            blurry, truth = (
                cv2.resize(cv2.imread(str(p), cv2.IMREAD_GRAYSCALE), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
                for p in (path, path.parents[1] / "sharp" / path.name)
            )
            error = (blurry.astype(np.float32) - truth) ** 2
            tiles = np.add.reduceat(
                np.add.reduceat(error, range(0, error.shape[0], 64), 0), range(0, error.shape[1], 64), 1
            )
            skipped.append(tiles[blur_scores(blurry, 64) < limit].sum())
            lost.append(tiles.sum())
            sharp.append((blur_scores(truth, 64) < limit).mean())
    assert sum(skipped) < 0.01 * sum(lost)
    assert np.mean(sharp) > 0.3


@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (100, 3), (65, 66), (64, 64), (67, 129), (5, 5)])
def test_odd_sizes_have_a_score_for_every_tile(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    scores = blur_scores(picture, 32)
    assert scores.shape == (-(-shape[0] // 32), -(-shape[1] // 32))
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    assert (scores <= 1).all()


def test_strided_and_read_only_planes_are_fine_and_left_alone() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (64, 200), np.uint8)
    view = whole[:, ::2]
    view.flags.writeable = False
    before = whole.copy()
    assert np.array_equal(blur_scores(view, 32), blur_scores(view.copy(), 32))
    assert np.array_equal(whole, before)


def test_what_is_no_plane_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        blur_scores(np.zeros((4, 4, 3), np.uint8), 8)
    with pytest.raises(ValueError, match="too small"):
        blur_scores(np.zeros((4, 4), np.uint8), 4)


def test_real_pairs_are_in_order(data_dir: Path) -> None:
    pairs = [
        (p, p.parents[1] / "sharp" / p.name)
        for folder in ("val/gopro", "val/reds", "train/gopro_pairs")
        for p in sorted((data_dir / "data" / folder / "blur").iterdir())[:12]
    ]
    assert len(pairs) >= 20
    scores = [[blur_score(cv2.imread(str(p), cv2.IMREAD_GRAYSCALE)) for p in pair] for pair in pairs]
    ordered = sum(blurry > sharp for blurry, sharp in scores)
    assert ordered / len(pairs) > 0.95
