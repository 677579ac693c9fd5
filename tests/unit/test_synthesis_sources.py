"""Crop sources: what they give, that a seed decides all of it, that they travel to workers, and what they refuse."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.errors import InputError, StreamdeblurError, UnreadableInput, UsageError
from streamdeblur.training.synthesis.cache import ArrayCache
from streamdeblur.training.synthesis.degrade import CLEAN
from streamdeblur.training.synthesis.options import SynthesizeOptions
from streamdeblur.training.synthesis.preview import sheet
from streamdeblur.training.synthesis.sources import CropSource, Kind, open_source

Picture = npt.NDArray[np.uint8]
KINDS: tuple[Kind, ...] = ("pairs", "highspeed", "footage", "stills")


def texture(height: int, width: int, seed: int, sigma: float = 1.0) -> Picture:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width, 3)), (0, 0), sigma)
    return np.clip(127 + 55 * noise / noise.std(), 0, 255).astype(np.uint8)


def write(path: Path, picture: Picture) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind: pairs, two sequences that pan by 3 px a frame, photographs."""
    base = tmp_path_factory.mktemp("data")
    for i in range(3):
        write(base / "pairs" / "blur" / f"{i}.png", cv2.blur(texture(120, 150, i), (9, 1)))
        write(base / "pairs" / "sharp" / f"{i}.png", texture(120, 150, i))
        write(base / "stills" / f"{i}.png", texture(180, 220, 10 + i))
    for sequence in range(2):
        wide = texture(120, 240, 20 + sequence, sigma=3)
        for k in range(13):
            write(base / "footage" / f"s{sequence}" / f"{k:03d}.png", wide[:, 3 * k : 3 * k + 160])
    (base / "highspeed").symlink_to(base / "footage")
    return base


@pytest.mark.parametrize("kind", KINDS)
def test_crops_are_decided_by_the_generator_alone(data: Path, kind: Kind) -> None:
    source = open_source(kind, data / kind)
    assert isinstance(source, CropSource)
    assert kind in source.name
    first = [source.sample(np.random.default_rng(s), 64) for s in range(6)]
    for blur, sharp in first:
        for side in (blur, sharp):
            assert side.shape == (64, 64, 3)
            assert side.dtype == np.uint8
            assert side.flags.c_contiguous
    fresh = pickle.loads(pickle.dumps(source))
    for seed in reversed(range(6)):  # in another order, with other caches
        blur, sharp = fresh.sample(np.random.default_rng(seed), 64)
        assert np.array_equal(blur, first[seed][0])
        assert np.array_equal(sharp, first[seed][1])
    assert any(not np.array_equal(a[1], b[1]) for a, b in pairwise(first))


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_that_stays_sharp(data: Path, kind: Kind) -> None:
    every = open_source(kind, data / kind, identity=1.0)
    none = open_source(kind, data / kind, identity=0.0)
    for seed in range(4):
        blur, sharp = every.sample(np.random.default_rng(seed), 64)
        assert np.array_equal(blur, sharp)
        assert blur is not sharp
        blur, sharp = none.sample(np.random.default_rng(seed), 64)
        assert not np.array_equal(blur, sharp)


def windows(folder: Path, crop: Picture) -> Iterator[Picture]:
    """The part of every frame of a folder that is most like a crop."""
    height, width = crop.shape[:2]
    for path in sorted(folder.rglob("*.png")):
        frame = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        scores = cv2.matchTemplate(frame, crop, cv2.TM_SQDIFF)
        y, x = (int(v) for v in np.unravel_index(int(scores.argmin()), scores.shape))
        yield frame[y : y + height, x : x + width]


@pytest.mark.parametrize(("kind", "options"), [("highspeed", {"frames": (3, 5)}), ("footage", {"highlights": 0.0})])
def test_truths_are_parts_of_frames_and_lie_where_the_blur_does(
    data: Path, kind: Kind, options: dict[str, object]
) -> None:
    source = open_source(kind, data / kind, identity=0.0, degradation=CLEAN, **options)
    for seed in range(3):
        blur, sharp = source.sample(np.random.default_rng(seed), 96)
        a, b = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float32) for p in (sharp, blur))
        scores = cv2.matchTemplate(a, b[8:-8, 8:-8].copy(), cv2.TM_CCOEFF_NORMED)
        y, x = np.unravel_index(int(scores.argmax()), scores.shape)
        assert abs(int(x) - 8) <= 1
        assert abs(int(y) - 8) <= 1
        assert (sharp[None] == np.stack(list(windows(data / kind, sharp)))).all(axis=(1, 2, 3)).any()
        # the pan is horizontal: so is what is lost
        kept = [float(np.abs(np.diff(b, axis=i)).mean() / np.abs(np.diff(a, axis=i)).mean()) for i in (0, 1)]
        assert kept[1] < 0.93 * kept[0]


def test_colours_keep_their_order(tmp_path: Path) -> None:
    red = np.zeros((80, 80, 3), np.uint8)
    red[..., 2] = texture(80, 80, 1)[..., 0] // 2 + 100  # OpenCV writes blue, green, red
    for side in ("blur", "sharp"):
        write(tmp_path / side / "a.png", red)
    blur, sharp = open_source("pairs", tmp_path).sample(np.random.default_rng(0), 32)
    for side_ in (blur, sharp):
        assert side_[..., 0].min() >= 100
        assert side_[..., 1:].max() == 0


def test_photographs_smaller_than_a_crop_are_refused(data: Path) -> None:
    with pytest.raises(InputError, match=r"220x180, smaller than a crop of 200"):
        open_source("stills", data / "stills").sample(np.random.default_rng(0), 200)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("stills", {"extent": (9, 3)}, "extent"),
        ("stills", {"scale": (0.5, 2)}, "scale"),
        ("stills", {"colour": 3}, "colour"),
        ("footage", {"shutter": (0.5, 3.0)}, "shutter"),
        ("highspeed", {"frames": (9, 7)}, "frames 9-7"),
        ("highspeed", {"frames": (99, 101)}, "no sequence of 99 frames"),
        ("stills", {"identity": 1.5}, "identity"),
        ("nothing", {}, "source 'nothing' is unknown; use pairs, highspeed"),
    ],
)
def test_bad_options_are_refused_in_one_line(data: Path, kind: Kind, options: dict[str, object], said: str) -> None:
    with pytest.raises(StreamdeblurError, match=said) as caught:
        open_source(kind, data / (kind if kind in KINDS else "stills"), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_and_empty_folders(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(UnreadableInput):
        open_source(kind, tmp_path / "nothing")
    with pytest.raises((InputError, UsageError)):
        open_source(kind, tmp_path)


def test_the_cache_stays_within_its_bound_and_forgets_the_oldest() -> None:
    cache: ArrayCache[Picture] = ArrayCache(250)
    made = []

    def make(key: int) -> Picture:
        made.append(key)
        return np.full(100, key, np.uint8)

    for key in (1, 2, 1, 3, 1, 2):  # 2 was used longest ago when 3 came
        assert cache.get(key, lambda key=key: make(key))[0] == key  # type: ignore[misc]
        assert cache.nbytes <= 250
    assert made == [1, 2, 3, 2]
    assert pickle.loads(pickle.dumps(cache)).nbytes == 0


def test_options_refuse_what_is_no_range() -> None:
    assert SynthesizeOptions(frames="5", length="0-12.5").frames == "5"
    for bad in ({"frames": "9-7"}, {"frames": "0-3"}, {"frames": "2.5-4"}, {"frames": "many"}, {"length": "4-900"}):
        with pytest.raises(ValueError, match="MIN-MAX"):
            SynthesizeOptions(**bad)  # type: ignore[arg-type]


def test_the_sheet_shows_both_sides_at_their_size() -> None:
    blurred, sharp = np.full((40, 50, 3), 10, np.uint8), np.full((40, 50, 3), 200, np.uint8)
    paper = sheet([("a", blurred, sharp), ("b", sharp, blurred), ("c", sharp, sharp)])
    dark = (paper == 10).all(axis=2)
    assert dark.sum() == 2 * 40 * 50
    assert (paper == 200).all(axis=2).sum() == 4 * 40 * 50
