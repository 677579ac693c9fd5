"""Crop sources: what they give, that a seed decides all of it, that they travel to workers, and what they refuse."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.errors import InputError, StreamdeblurError, UnreadableInput, UsageError
from streamdeblur.training.synthesis import render, sources
from streamdeblur.training.synthesis.cache import ArrayCache
from streamdeblur.training.synthesis.degrade import CLEAN, Degradation
from streamdeblur.training.synthesis.footage import find_sequences, list_pictures
from streamdeblur.training.synthesis.make import synthesize
from streamdeblur.training.synthesis.options import SynthesizeOptions
from streamdeblur.training.synthesis.preview import sheet
from streamdeblur.training.synthesis.response import Floats
from streamdeblur.training.synthesis.shake import SHAKIEST, Trajectory
from streamdeblur.training.synthesis.sources import CropSource, Kind, PairsSource, open_source
from streamdeblur.video.simple import write_clip

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


def two_shots(folder: Path, count: int) -> None:
    """``count`` red frames, then as many green ones."""
    for k in range(2 * count):
        picture = np.zeros((72, 96, 3), np.uint8)
        picture[..., 2 if k < count else 1] = texture(72, 96, 1)[..., 0] // 4 + 190
        write(folder / f"{k:03d}.png", picture)


def test_exposures_do_not_go_on_beyond_a_cut(tmp_path: Path) -> None:
    two_shots(tmp_path, 8)
    source = open_source("highspeed", tmp_path, identity=0.0, frames=(5, 5))
    means = [source.sample(np.random.default_rng(s), 48)[0].mean(axis=(0, 1)) for s in range(30)]
    assert all(min(m[0], m[1]) == 0 for m in means)  # never a mixture of both
    assert {bool(m[0] > 0) for m in means} == {True, False}


@pytest.mark.parametrize("count", [7, 8, 9, 10])
def test_the_truth_is_the_middle_of_the_exposure_in_short_sequences_too(tmp_path: Path, count: int) -> None:
    for k in range(count):  # brighter by the same step from frame to frame: the mean of an exposure is its middle
        write(tmp_path / f"{k:03d}.png", np.full((64, 64, 3), 100 + 4 * k, np.uint8))
    source = open_source("highspeed", tmp_path, identity=0.0, frames=(7, 15), responses={"none": 1})
    for seed in range(12):
        blur, sharp = source.sample(np.random.default_rng(seed), 32)
        assert np.array_equal(blur, sharp)


def test_sequences_of_cuts_only_are_refused(tmp_path: Path) -> None:
    two_shots(tmp_path, 4)
    source = open_source("highspeed", tmp_path, identity=0.0, frames=(7, 7))
    with pytest.raises(InputError, match="without a cut"):
        source.sample(np.random.default_rng(0), 48)


def test_pairs_can_be_drawn_one_by_one(data: Path) -> None:
    source = open_source("pairs", data / "pairs", identity=0.0)
    assert isinstance(source, PairsSource)
    assert len(source) == 3
    for index in (0, 1, 2, 4, -1):
        whole = cv2.cvtColor(cv2.imread(str(data / "pairs" / "sharp" / f"{index % 3}.png")), cv2.COLOR_BGR2RGB)
        blur, sharp = source.sample_pair(index, np.random.default_rng(index % 3), 64)
        scores = cv2.matchTemplate(whole, sharp, cv2.TM_SQDIFF)
        y, x = (int(v) for v in np.unravel_index(int(scores.argmin()), scores.shape))
        assert np.array_equal(whole[y : y + 64, x : x + 64], sharp)
        other = cv2.cvtColor(cv2.imread(str(data / "pairs" / "blur" / f"{index % 3}.png")), cv2.COLOR_BGR2RGB)
        assert np.array_equal(other[y : y + 64, x : x + 64], blur)
    same = PairsSource(data / "pairs", identity=1.0).sample_pair(0, np.random.default_rng(0), 64)
    assert np.array_equal(*same)


def test_only_pairs_of_a_pattern(data: Path) -> None:
    only = PairsSource(data / "pairs", identity=0.0, only="[12]")
    everything = PairsSource(data / "pairs", identity=0.0)
    assert len(only) == 2
    for index in (0, 1):
        crops = [s.sample_pair(index + k, np.random.default_rng(0), 64) for k, s in ((0, only), (1, everything))]
        assert np.array_equal(crops[0], crops[1])


def test_uniform_crops_lie_anywhere_and_others_where_there_is_texture(tmp_path: Path) -> None:
    picture = np.full((64, 256, 3), 90, np.uint8)  # texture on the right quarter only
    picture[:, 192:] = texture(64, 64, 3)
    for side in ("blur", "sharp"):
        write(tmp_path / side / "a.png", picture)

    def flat(**options: bool) -> int:
        source = PairsSource(tmp_path, **options)  # type: ignore[arg-type]
        return sum(source.sample(np.random.default_rng(s), 64)[1].std() == 0 for s in range(200))

    # of 193 places 129 are flat: binomial, 200 draws, four deviations of 6.7
    assert abs(flat(uniform=True) - 200 * 129 / 193) < 27
    assert flat() < 200 * (129 / 193) ** 5 + 4 * 5


def test_hidden_and_foreign_folders_hold_no_photographs(tmp_path: Path) -> None:
    write(tmp_path / "a.png", texture(80, 80, 1))
    for foreign in (".thumbnails", "@eaDir"):
        write(tmp_path / foreign / "a.png", texture(8, 8, 1))
    assert list_pictures(tmp_path) == [tmp_path / "a.png"]
    assert [s.frames for s in find_sequences(tmp_path, videos=True)] == [[tmp_path / "a.png"]]


def listed(folder: Path) -> list[str]:
    (sequence,) = find_sequences(folder, videos=True)
    assert sequence.frames == list_pictures(folder)
    return [p.name for p in sequence.frames]


def test_numbers_in_names_are_numbers(tmp_path: Path) -> None:
    for k in range(1, 13):
        write(tmp_path / "plain" / f"frame{k}.png", texture(8, 8, k))
    assert listed(tmp_path / "plain") == [f"frame{k}.png" for k in range(1, 13)]
    for name in ("a1.png", "a01.png", "a001.png", "a10.png", "a2.png"):  # the first three are one number
        write(tmp_path / "zeros" / name, texture(8, 8, 1))
    assert listed(tmp_path / "zeros") == ["a001.png", "a01.png", "a1.png", "a2.png", "a10.png"]
    padded = ["00.png", "07!.png", "07.png", "07a.png", "B 07.png", "a-07.png", "a.png", "a0 01.png", "a0 10.png"]
    for name in padded:
        write(tmp_path / "padded" / name, texture(8, 8, 1))
    assert listed(tmp_path / "padded") == sorted(padded)


def test_pairs_made_by_synthesize_are_no_sources(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / "all" / f"{k}.png", texture(100, 120, k))
    synthesize(tmp_path / "all", tmp_path / "all" / "deep-pairs", method="shake", count=2)
    write(tmp_path / "all" / "out" / "a.png", texture(8, 8, 1))
    (tmp_path / "all" / "out" / "pairs.json").write_text("[]")  # somebody else's
    found = [str(p.relative_to(tmp_path / "all")) for p in list_pictures(tmp_path / "all")]
    assert found == ["0.png", "1.png", "2.png", "out/a.png"]
    assert [s.name for s in find_sequences(tmp_path / "all", videos=True)] == [".", "out"]
    assert list_pictures(tmp_path / "all", tmp_path / "all" / "out") == [
        tmp_path / "all" / f"{k}.png" for k in range(3)
    ]
    with pytest.raises(UsageError, match="holds no picture but pairs made by synthesize; give other pictures"):
        list_pictures(tmp_path / "all" / "deep-pairs")
    assert len(list_pictures(tmp_path / "all" / "deep-pairs" / "sharp")) == 2


def test_high_speed_footage_may_be_video(tmp_path: Path) -> None:
    wide = texture(96, 200, 5, sigma=3)
    frames = [np.ascontiguousarray(wide[:, k : k + 128]) for k in range(12)]
    write_clip(tmp_path / "videos" / "a.mp4", frames, Fraction(240), options={"crf": "1"})
    for path in (tmp_path / "videos", tmp_path / "videos" / "a.mp4"):
        source = open_source("highspeed", path, identity=0.0, frames=(5, 7))
        blur, sharp = source.sample(np.random.default_rng(0), 64)
        assert np.array_equal(sharp, pickle.loads(pickle.dumps(source)).sample(np.random.default_rng(0), 64)[1])
        assert 0.5 < np.abs(blur.astype(int) - sharp).mean() < 30
    with pytest.raises(InputError, match="no sequence of 13 frames; give videos, or folders"):
        open_source("highspeed", tmp_path / "videos", frames=(13, 15))


@pytest.mark.parametrize("side", [16, 20])
def test_footage_too_small_for_flow_is_refused_in_one_line(tmp_path: Path, side: int) -> None:
    for k in range(8):
        write(tmp_path / f"{k}.png", texture(side, side + 8, 3, sigma=2)[:, k : k + side])
    source = open_source("footage", tmp_path, identity=0.0)
    with pytest.raises(InputError, match=rf"\d.png is {side}x{side}, too small .* of 32x32 or more") as caught:
        source.sample(np.random.default_rng(0), 16)
    assert "\n" not in str(caught.value)


def test_degradation_may_be_a_mapping(data: Path) -> None:
    def blurred(kind: Kind, degradation: object) -> Picture:
        source = open_source(kind, data / kind, identity=0.0, degradation=degradation)
        return source.sample(np.random.default_rng(2), 64)[0]

    nothing = {"noise": 0, "demosaic": 0, "jpeg": 0.0, "h264": 0}
    assert np.array_equal(blurred("stills", nothing), blurred("stills", CLEAN))
    noisy = blurred("highspeed", Degradation(1, 0, 0, 0))
    assert np.array_equal(blurred("highspeed", {"noise": 1}), noisy)  # the others stay as they are usually: none
    assert not np.array_equal(blurred("highspeed", None), noisy)


def test_lists_will_do_for_ranges(data: Path) -> None:
    for kind, name in (("highspeed", "frames"), ("footage", "extent"), ("stills", "extent")):
        listed = open_source(kind, data / kind, **{name: [5, 9]}).sample(np.random.default_rng(0), 48)  # type: ignore[arg-type]
        given = open_source(kind, data / kind, **{name: (5, 9)}).sample(np.random.default_rng(0), 48)  # type: ignore[arg-type]
        assert np.array_equal(listed[0], given[0])


@pytest.mark.parametrize("foreground", [0, 1])
def test_tremble_changes_the_motion_and_nothing_else(data: Path, foreground: float) -> None:
    def crop(**more: object) -> tuple[Picture, Picture]:
        calm = dict.fromkeys(("identity", "highlights", "lights"), 0)
        more |= {"degradation": CLEAN, "foreground": foreground, "scale": (1, 1)}
        source = open_source("stills", data / "stills", **calm, **more)
        return source.sample(np.random.default_rng(3), 48)

    usual, hand, steady = crop(), crop(tremble=[1, 1]), crop(tremble=[0, 0])
    assert np.array_equal(usual[0], hand[0])  # seeds keep their bytes
    assert np.array_equal(usual[1], hand[1])
    assert not np.array_equal(usual[0], steady[0])
    if not foreground:
        assert np.array_equal(usual[1], steady[1])


@pytest.mark.parametrize("kind", ["footage", "stills"])
def test_stepped_is_what_is_rendered(data: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "expose_still" if kind == "stills" else "expose_footage"
    exposed = getattr(sources, name)
    seen: list[int | None] = []

    def spy(*args: object, **kwargs: object) -> object:
        seen.append(kwargs["steps"])  # type: ignore[arg-type]
        return exposed(*args, **kwargs)

    monkeypatch.setattr(sources, name, spy)
    crops = []
    for options in ({}, {"stepped": 0}, {"stepped": 1}):
        source = open_source(kind, data / kind, identity=0, **options)
        crops.append([source.sample(np.random.default_rng(seed), 48) for seed in range(6)])
    assert seen[:12] == [None] * 12
    assert set(seen[12:]) <= {7, 9, 11, 13}
    assert len(set(seen[12:])) > 1
    assert all(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(*crops[:2], strict=True))


def test_a_stepped_still_has_the_same_truth() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (160, 220, 3), dtype=np.uint8)

    def exposed(steps: int | None, other: Picture | None = None) -> tuple[Floats, Picture]:
        rng = np.random.default_rng(8)
        return render.expose_still(
            picture, (70, 50, 64, 64), rng, extent=40, response="none", foreground=other, steps=steps
        )

    for other in (None, picture[::-1].copy()):
        smooth, stepped, again = exposed(None, other), exposed(7, other), exposed(97, other)
        assert np.array_equal(smooth[1], stepped[1])
        assert np.abs(smooth[0] - stepped[0]).max() > 0.02
        assert np.array_equal(smooth[0], again[0])  # more than it has anyway


def test_what_moves_in_front_is_as_steady_as_the_camera() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (200, 220, 3), dtype=np.uint8)

    def layer(tremble: float) -> Trajectory:
        rng = np.random.default_rng(8)
        return render._draw_layer(rng, picture, (60, 60, 64, 64), (220, 200), 20.0, "none", 1.0, tremble).path

    steady, hand = (np.diff(layer(t).parameters, axis=0) for t in (0.0, 1.0))
    assert np.allclose(steady, steady[0], atol=1e-9)
    assert np.ptp(steady) > 0
    assert not np.allclose(hand, hand[0], atol=1e-4)


def test_photographs_smaller_than_a_crop_are_refused(data: Path) -> None:
    with pytest.raises(InputError, match=r"220x180, smaller than a crop of 200"):
        open_source("stills", data / "stills").sample(np.random.default_rng(0), 200)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("stills", {"extent": (9, 3)}, "extent"),
        ("stills", {"scale": (0.5, 2)}, "scale"),
        ("stills", {"colour": 3}, "option 'colour' of source 'stills' is unknown; use extent, .*identity"),
        ("pairs", {"frames": (7, 9)}, "option 'frames' of source 'pairs' is unknown; use layout, split, only, uniform"),
        ("pairs", {"only": 3}, "only 3 is no pattern"),
        ("pairs", {"only": "GOPR*"}, "no pair in .* is called 'GOPR\\*'; names are like '0'"),
        ("pairs", {"uniform": "yes"}, "uniform 'yes' is not true or false"),
        ("pairs", {"identity": 2}, "identity 2 is no share"),
        ("stills", {"identity": "much"}, "identity 'much' is no share"),
        ("stills", {"cache_mb": "1"}, "cache_mb '1' is no size"),
        ("stills", {"extent": "4-48"}, "extent '4-48' is no range"),
        ("stills", {"tremble": [0, 4]}, r"tremble \[0, 4\] is no range"),
        ("stills", {"stepped": 2}, "stepped 2 is no share"),
        ("footage", {"stepped": "half"}, "stepped 'half' is no share"),
        ("stills", {"lights": None}, "lights None is no share"),
        ("stills", {"responses": "srgb"}, "responses 'srgb' are no shares"),
        ("stills", {"degradation": {"fog": 1}}, "degradation 'fog' is unknown; use noise, demosaic, jpeg, h264"),
        ("stills", {"degradation": {"noise": "1"}}, "probability '1' of noise"),
        ("stills", {"degradation": 0.5}, "degradation 0.5 is no mapping"),
        ("footage", {"shutter": 1}, "shutter 1 is no range"),
        ("highspeed", {"frames": 7}, "frames 7 is no range"),
        ("footage", {"shutter": (0.5, 3.0)}, "shutter"),
        ("highspeed", {"frames": (9, 7)}, "frames 9-7"),
        ("highspeed", {"frames": [8, 8]}, "frames 8 is an even number, without a middle frame; give 7 or 9"),
        ("highspeed", {"frames": (99, 101)}, "no sequence of 99 frames"),
        ("highspeed", {"frames": (98, 101)}, "no sequence of 99 frames"),
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
    assert SynthesizeOptions(tremble=f"0-{SHAKIEST}")  # what it says itself, as it must not import OpenCV
    assert SynthesizeOptions(tremble=2).tremble == "2"  # type: ignore[arg-type]
    assert SynthesizeOptions(length=[4, 8.5]).length == "4-8.5"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="for example 0-2"):
        SynthesizeOptions(tremble="2-1")
    for bad in (
        {"frames": "9-7"},
        {"frames": "0-3"},
        {"frames": "2.5-4"},
        {"frames": "many"},
        {"length": "4-900"},
        {"tremble": "0-4"},
    ):
        with pytest.raises(ValueError, match="MIN-MAX"):
            SynthesizeOptions(**bad)  # type: ignore[arg-type]
    for even in ("8", "8-8"):
        with pytest.raises(ValueError, match="is an even number, without a middle frame: give 7 or 9"):
            SynthesizeOptions(frames=even)


def test_the_sheet_shows_both_sides_at_their_size() -> None:
    blurred, sharp = np.full((40, 50, 3), 10, np.uint8), np.full((40, 50, 3), 200, np.uint8)
    paper = sheet([("a", blurred, sharp), ("b", sharp, blurred), ("c", sharp, sharp)])
    dark = (paper == 10).all(axis=2)
    assert dark.sum() == 2 * 40 * 50
    assert (paper == 200).all(axis=2).sum() == 4 * 40 * 50
