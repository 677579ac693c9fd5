"""Which crops a step sees: reproducible from any step, each once an epoch, shared out among processes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from streamdeblur.errors import InputError, StreamdeblurError, UsageError
from streamdeblur.training.batches import ShardBatches, augment, generator
from streamdeblur.training.feeds import Mixture, SampledBatches
from streamdeblur.training.recipe import Data, Source
from streamdeblur.training.shards import ShardWriter
from streamdeblur.training.synthesis.sources import open_source
from tests.training import pair, write_pairs, write_shards

TINY = 1e-9  # GB: one shard a group
CROP_GB = 6 * 24 * 24 / 2**30


def data(folder: Path, **changes: Any) -> Data:
    return Data(**({"shards": (str(folder),), "crop": 16, "batch": 2} | changes))


def numbers(batch: torch.Tensor) -> list[int]:
    """Which crops those are: write_shards puts their number into the first pixel of the sharp side."""
    return [int(x) for x in batch[:, 1, 0, 0, 0]]


def take(batches: ShardBatches, step: int, count: int) -> list[list[int]]:
    feed = batches.start(step)
    try:
        return [numbers(next(feed)) for _ in range(count)]
    finally:
        feed.close()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "crops", (5, 7, 4, 1))  # 17 crops: 8 batches of 2 an epoch, one crop left over


MEMORY = pytest.mark.parametrize(
    "memory", [4.0, 20 * CROP_GB / 1.5, TINY], ids=["one group", "two shards", "one shard"]
)


@MEMORY
def test_every_crop_at_most_once_an_epoch_and_epochs_differ(shards: Path, memory: float) -> None:
    batches = ShardBatches(data(shards, memory_gb=memory), seed=3)
    assert batches.samples == 17
    steps = take(batches, 0, 24)
    epochs = [list(itertools.chain(*steps[k : k + 8])) for k in (0, 8, 16)]
    for epoch in epochs:
        assert len(set(epoch)) == 16
        assert set(epoch) < set(range(17))
    assert epochs[0] != epochs[1] != epochs[2]
    batches.close()


@MEMORY
def test_starting_at_any_step_gives_what_a_straight_run_gives(shards: Path, memory: float) -> None:
    def fresh(seed: int = 3) -> ShardBatches:
        return ShardBatches(data(shards, memory_gb=memory), seed=seed)

    batches = fresh()
    straight = take(batches, 0, 20)
    for step in range(20):
        other = fresh()
        assert take(other, step, 20 - step) == straight[step:], f"from step {step}"
        other.close()
    assert take(batches, 5, 3) == straight[5:8]  # and from the same object again
    assert take(fresh(4), 0, 20) != straight
    batches.close()


@MEMORY
def test_processes_share_each_batch_out(shards: Path, memory: float) -> None:
    one = ShardBatches(data(shards, batch=6, memory_gb=memory), seed=1)
    ranks = [ShardBatches(data(shards, memory_gb=memory), seed=1, rank=r, world=3) for r in range(3)]
    whole = take(one, 0, 5)
    parts = [take(b, 0, 5) for b in ranks]
    for step in range(5):
        assert [n for part in parts for n in part[step]] == whole[step]
    for b in (one, *ranks):
        b.close()


def test_no_more_than_two_groups_are_held(shards: Path) -> None:
    batches = ShardBatches(data(shards, memory_gb=TINY), seed=3)
    feed = batches.start(0)
    for _ in range(20):
        next(feed)
        assert 1 <= len(batches._held) <= 2
    feed.close()
    batches.close()
    everything = ShardBatches(data(shards), seed=3)
    feed = everything.start(0)
    for _ in range(20):
        next(feed)
        assert len(everything._held) == 1  # decoded once
    feed.close()
    everything.close()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "a", (3,))
    with pytest.raises(UsageError, match="are 24 px, below the crop of 32"):
        ShardBatches(data(folder, crop=32), seed=0)
    with pytest.raises(UsageError, match="3 crops in the shards are fewer than a batch of 2 for 2 processes"):
        ShardBatches(data(folder), seed=0, world=2)
    from streamdeblur.training.prepare import prepare_pairs

    made = prepare_pairs(write_pairs(tmp_path / "pairs", size=(32, 32)), tmp_path / "whole")
    with pytest.raises(UsageError, match="holds whole images for validation"):
        ShardBatches(data(made.files[0]), seed=0)
    with ShardWriter(tmp_path / "oblong") as writer:
        writer.add(*pair(0, (40, 36)), "a")
    with pytest.raises(UsageError, match="36x40, training crops are square"):
        ShardBatches(data(writer.written[0]), seed=0)


@pytest.mark.parametrize("memory", [4.0, TINY])
def test_crops_of_two_sizes_are_said_in_one_line(tmp_path: Path, memory: float) -> None:
    a, b = write_shards(tmp_path / "a", (3,), size=24), write_shards(tmp_path / "b", (3,), size=20)
    batches = ShardBatches(data(a, shards=(str(a), str(b)), memory_gb=memory), seed=0)
    with pytest.raises(InputError, match="one size"):
        take(batches, 0, 6)
    batches.close()


def test_a_damaged_shard_reaches_whoever_takes_the_batch(tmp_path: Path) -> None:
    folder = write_shards(tmp_path, (3, 3))
    batches = ShardBatches(data(folder), seed=0)
    path = folder / "crops-00001.shard"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StreamdeblurError, match=r"crops-00001\.shard"):
        take(batches, 0, 1)
    batches.close()


# --- augmentation ----------------------------------------------------------------------------------------------------


def crops(count: int = 8, size: int = 24) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.stack(pair(i, (size, size)))).permute(0, 3, 1, 2) for i in range(count)])


def augmented(changes: dict[str, Any], *, step: int = 0, rank: int = 0, seed: int = 0, count: int = 8, size: int = 24):
    return augment(
        crops(count, size),
        Data(**({"shards": ("x",), "crop": 16} | changes)),
        seed=seed,
        step=step,
        rank=rank,
        device=torch.device("cpu"),
    )


def test_augmentation_is_a_function_of_seed_step_and_process() -> None:
    everything = {"flips": "both", "rotations": True, "sharp_share": 0.3}
    blur, sharp = augmented(everything)
    for t in (blur, sharp):
        assert (t.dtype, tuple(t.shape)) == (torch.float32, (8, 3, 16, 16))
        assert t.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= t.min() < t.max() <= 1
    again = augmented(everything)
    assert torch.equal(blur, again[0])
    assert torch.equal(sharp, again[1])
    for other in ({"step": 1}, {"rank": 1}, {"seed": 1}):
        assert not torch.equal(blur, augmented(everything, **other)[0])


def symmetries(picture: np.ndarray) -> list[np.ndarray]:
    return [np.rot90(p, k) for p in (picture, picture[:, ::-1]) for k in range(4)]


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"flips": "none"}, {0}),
        ({"flips": "horizontal"}, {0, 4}),
        ({"flips": "both"}, {0, 2, 4, 6}),
        ({"flips": "none", "rotations": True}, {0, 1, 2, 3}),
        ({"flips": "both", "rotations": True}, set(range(8))),
    ],
)
def test_which_symmetries_come_up(changes: dict[str, Any], allowed: set[int]) -> None:
    seen = set()
    for step in range(12):
        blur, sharp = augmented(changes | {"crop": 24}, step=step)
        for i in range(8):
            for side, result in enumerate((blur, sharp)):
                got = (result[i].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
                match = [k for k, s in enumerate(symmetries(pair(i)[side])) if np.array_equal(s, got)]
                assert len(match) == 1, "both sides must have gone through the same"
                seen.add(match[0])
    assert seen == allowed


def test_cuts_reach_every_corner() -> None:
    corners = set()
    for step in range(40):
        _, sharp = augmented({"flips": "none"}, step=step, size=18)
        for i in range(8):
            got = (sharp[i].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
            whole = pair(i, (18, 18))[1]
            corners |= {
                (y, x)
                for y, x in itertools.product(range(3), repeat=2)
                if np.array_equal(whole[y : y + 16, x : x + 16], got)
            }
    assert corners == set(itertools.product(range(3), repeat=2))


def test_share_of_sharp_crops() -> None:
    same = torch.cat(
        [(b == s).flatten(1).all(1) for b, s in (augmented({"sharp_share": 0.25}, step=k) for k in range(64))]
    )
    assert same.numel() == 512
    assert same.float().mean().item() == pytest.approx(0.25, abs=0.08)  # four standard deviations
    blur, sharp = augmented({"sharp_share": 0.0})
    assert not (blur == sharp).flatten(1).all(1).any()


def test_channels_change_places_alike_on_both_sides() -> None:
    seen = set()
    for step in range(6):
        before = augmented({"flips": "none"}, step=step)
        after = augmented({"flips": "none", "channels": True}, step=step)
        for i in range(8):
            orders = [
                order
                for order in itertools.permutations(range(3))
                if all(torch.equal(a[i], b[i][list(order)]) for a, b in zip(after, before, strict=True))
            ]
            assert len(orders) == 1, "both sides must have the same order"
            seen.add(orders[0])
    assert seen == set(itertools.permutations(range(3)))


def test_exposure_darkens_both_sides_by_one_factor() -> None:
    factors = []
    for step in range(20):
        before = augmented({"flips": "none"}, step=step)
        after = augmented({"flips": "none", "exposure": 0.5}, step=step)
        for i in range(8):
            bright = before[1][i] > 0.2
            ratios = [(a[i][bright] / b[i][bright]) for a, b in zip(after, before, strict=True)]
            assert torch.allclose(ratios[0], ratios[1][0].expand_as(ratios[0]), atol=1e-5)
            assert ratios[1].std() < 1e-5
            factors.append(float(ratios[1][0]))
    assert 0.5 <= min(factors) < 0.55
    assert 0.95 < max(factors) <= 1


def test_zoom_makes_half_of_the_cuts_smaller() -> None:
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    ramp = torch.stack([2 * x, 2 * y, x + y]).to(torch.uint8)
    given = torch.stack([ramp, ramp + 100]).expand(8, 2, 3, 48, 48)
    options = Data(shards=("x",), crop=16, flips="none", zoom=0.5)
    slopes = []
    for step in range(40):
        blur, sharp = augment(given, options, seed=0, step=step, rank=0, device=torch.device("cpu"))
        assert torch.allclose(blur + 100 / 255, sharp, atol=1e-5)
        inner = blur[:, 0, 4:-4, 4:-4] * 255 / 2  # x, and 1/factor between neighbours
        slopes += (inner[..., -1] - inner[..., 0]).mean(1).div(7).tolist()
    slope = torch.tensor(slopes)
    kept = (slope - 1).abs() < 1e-3
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.12)  # four standard deviations
    assert 1.9 < slope.max() <= 2.01
    assert slope.min() > 0.99


def test_white_stays_white() -> None:
    white = torch.full((8, 2, 3, 48, 48), 255, dtype=torch.uint8)
    for step in range(4):
        data = Data(shards=("x",), crop=16, zoom=0.4)
        blur, _ = augment(white, data, seed=0, step=step, rank=0, device=torch.device("cpu"))
        assert blur.max() == 1
        assert blur.min() > 0.9999


def test_zoom_needs_room(tmp_path: Path) -> None:
    write_shards(tmp_path, (8,), size=24)
    with pytest.raises(UsageError, match=r"are 24 px, a zoom of 0\.5 of crops of 16 needs 32"):
        ShardBatches(Data(shards=(str(tmp_path),), crop=16, batch=2, zoom=0.5), seed=0)
    ShardBatches(Data(shards=(str(tmp_path),), crop=16, batch=2, zoom=0.67), seed=0).close()


# --- sources on the fly ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_sources_on_the_fly_resume_too_and_leave_the_global_random_numbers_alone(tmp_path: Path, workers: int) -> None:
    source = Source(kind="pairs", path=str(write_pairs(tmp_path)), options={"identity": 0.0})
    values = Data(sources=(source,), crop=16, batch=2, workers=workers)

    def take_some(step: int, count: int, rank: int = 0, world: int = 1) -> list[torch.Tensor]:
        feed = SampledBatches(values, seed=5, rank=rank, world=world).start(step)
        found = [next(feed) for _ in range(count)]
        feed.close()
        return found

    assert SampledBatches(values, seed=5).samples == 3
    before = torch.get_rng_state()
    straight = take_some(0, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert (straight[0].dtype, tuple(straight[0].shape)) == (torch.uint8, (2, 2, 3, 16, 16))
    for a, b in zip(take_some(2, 2), straight[2:], strict=True):
        assert torch.equal(a, b)
    if not workers:
        ranks = [take_some(0, 2, rank, 2) for rank in range(2)]
        for step in range(2):
            whole = torch.cat([r[step] for r in ranks])
            assert torch.equal(whole, torch.cat(straight[2 * step : 2 * step + 2]))


def test_sources_leave_room_for_zoom(tmp_path: Path) -> None:
    source = Source(kind="pairs", path=str(write_pairs(tmp_path)), options={"identity": 0.0})
    feed = SampledBatches(Data(sources=(source,), crop=16, batch=2, workers=0, zoom=0.8), seed=5).start(0)
    assert tuple(next(feed).shape) == (2, 2, 3, 20, 20)
    feed.close()


@pytest.mark.parametrize("turned", [0.0, 1.0])
def test_an_epoch_of_pairs_sees_every_pair_once_in_another_order_each_time(tmp_path: Path, turned: float) -> None:
    for side in ("blur", "sharp"):
        (tmp_path / side).mkdir()
        for value in range(0, 70, 10):  # the picture says which pair it is of
            assert cv2.imwrite(str(tmp_path / side / f"{value:02d}.png"), np.full((36, 36, 3), value, np.uint8))
    source = Source(kind="pairs", path=str(tmp_path), turned=turned, options={"identity": 0.0, "uniform": True})
    feed = SampledBatches(Data(sources=(source,), crop=16, batch=1, workers=0), seed=1).start(0)
    seen = [int(next(feed)[0, 1, 0, 0, 0]) for _ in range(21)]
    epochs = [seen[:7], seen[7:14], seen[14:]]
    assert all(sorted(e) == list(range(0, 70, 10)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3


def test_sources_that_turn_nothing_give_what_they_gave(tmp_path: Path) -> None:
    folder = str(write_pairs(tmp_path))
    sources = tuple(Source(kind="pairs", path=folder, options={"only": only}) for only in ("*", "*"))
    inner = open_source("pairs", folder)
    for index in range(5):
        rng = generator(3, 3, index)
        rng.random()  # which source
        for found, wanted in zip(Mixture(sources, 16, 3).sample(index)[1:], inner.sample(rng, 16), strict=True):
            assert np.array_equal(found, wanted)


def test_a_share_of_the_crops_is_turned_and_a_seed_decides_which(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(20, 200, 2, dtype=np.uint8)[None, :, None], (90, 90, 3))
    for side in ("blur", "sharp"):
        (tmp_path / side).mkdir()
        for name in "ab":
            assert cv2.imwrite(str(tmp_path / side / f"{name}.png"), ramp)
    sources = tuple(
        Source(kind="pairs", path=str(tmp_path), turned=turned, options={"only": only, "identity": 0.0})
        for only, turned in (("a", 0.5), ("b", 0.0))
    )
    mixture = Mixture(sources, 24, 1)
    upright = {"pairs/a": 0, "pairs/b": 0}
    count = dict(upright)
    for index in range(200):
        name, blur, sharp = mixture.sample(index)
        assert blur.shape == sharp.shape == (24, 24, 3)
        assert np.array_equal(blur, sharp)
        name = "pairs/" + name[-1]
        count[name] += 1
        upright[name] += bool((np.diff(sharp[..., 0].astype(int), axis=1) == 2).all())
        again = Mixture(sources, 24, 1).sample(index)
        assert np.array_equal(again[2], sharp)
    assert upright["pairs/b"] == count["pairs/b"] > 70
    assert 0.35 < upright["pairs/a"] / count["pairs/a"] < 0.65


def test_pictures_too_small_to_be_turned_are_said_with_what_is_needed(tmp_path: Path) -> None:
    for side in ("blur", "sharp"):
        (tmp_path / side).mkdir()
        assert cv2.imwrite(str(tmp_path / side / "a.png"), np.zeros((64, 64, 3), np.uint8))
    mixture = Mixture((Source(kind="pairs", path=str(tmp_path), turned=1.0),), 60, 1)
    said = r"a is 64x64, smaller than a crop of \d+; take smaller crops: those of 60 are cut from up to 93"
    with pytest.raises(InputError, match=said):
        [mixture.sample(index) for index in range(9)]


def test_crops_are_made_larger_by_up_to_the_factor(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(20, 200, 2, dtype=np.uint8)[None, :, None], (90, 90, 3))
    for side in ("blur", "sharp"):
        (tmp_path / side).mkdir()
        assert cv2.imwrite(str(tmp_path / side / "a.png"), ramp)
    mixture = Mixture((Source(kind="pairs", path=str(tmp_path), enlarged=2.0, options={"identity": 0.0}),), 24, 1)
    slopes = []
    for index in range(100):
        _, blur, sharp = mixture.sample(index)
        assert sharp.shape == (24, 24, 3)
        assert np.array_equal(blur, sharp)
        slopes.append((int(sharp[0, 23, 0]) - int(sharp[0, 0, 0])) / 23)
    assert 0.95 < min(slopes) < 1.1  # of whole levels
    assert 1.85 < max(slopes) <= 2.05
