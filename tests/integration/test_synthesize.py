"""``streamdeblur synthesize``: videos, frames and photographs to pairs; bytes, errors, what is left behind."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result

from streamdeblur.cli.synthesis import synthesize as command
from streamdeblur.config import load_yaml, parse
from streamdeblur.errors import InputError, OutputError, StreamdeblurError, UsageError
from streamdeblur.training.pairs import find_pairs, read_pair
from streamdeblur.training.synthesis.make import choose_method, synthesize
from streamdeblur.training.synthesis.options import SynthesizeOptions
from streamdeblur.video.simple import read_rgb, write_clip

pytestmark = pytest.mark.integration
Picture = npt.NDArray[np.uint8]
CONFIG = Path(__file__).parents[2] / "configs" / "synthesize.yaml"


def texture(height: int, width: int, seed: int) -> Picture:
    noise = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width, 3)), (0, 0), 1.6)
    return np.clip(127 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)


def pan(count: int, step: int, seed: int = 0) -> list[Picture]:
    wide = texture(144, 192 + count * step, seed)
    return [np.ascontiguousarray(wide[:, k * step : k * step + 192]) for k in range(count)]


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pan at 25 fps with a cut after frame 9, the same frames as a folder, one at 240 fps, and photographs."""
    base = tmp_path_factory.mktemp("media")
    frames = pan(10, 4) + [255 - f // 2 for f in pan(10, 4, 7)]
    write_clip(base / "clip.mp4", frames, Fraction(25), options={"crf": "12"})
    write_clip(base / "fast.mp4", pan(24, 1), Fraction(240), options={"crf": "12"})
    (base / "frames").mkdir()
    (base / "photos").mkdir()
    for k, frame in enumerate(frames[:10]):
        cv2.imwrite(str(base / "frames" / f"{k:03d}.png"), frame)
    for k in range(3):
        cv2.imwrite(str(base / "photos" / f"p{k}.png"), texture(240 + 20 * k, 300, 30 + k))
    return base


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("name", ["clip.mp4", "frames", "photos", "fast.mp4"])
def test_the_same_seed_gives_the_same_bytes(media: Path, tmp_path: Path, name: str) -> None:
    report = synthesize(media / name, tmp_path / "a", count=5)
    again = synthesize(media / name, tmp_path / "b", count=5)
    other = synthesize(media / name, tmp_path / "c", count=5, seed=1)
    assert report.method == again.method == other.method == choose_method(media / name)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a")["blur/00000.png"] != digest(tmp_path / "c")["blur/00000.png"]
    assert len(digest(tmp_path / "a")) == 2 * 5 + 2
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("name", "method"), [("clip.mp4", "flow"), ("fast.mp4", "average"), ("frames", "flow"), ("photos", "shake")]
)
def test_the_method_follows_from_the_source(media: Path, name: str, method: str) -> None:
    assert choose_method(media / name) == method


def test_pairs_are_read_back_and_described(media: Path, tmp_path: Path) -> None:
    report = synthesize(media / "photos", tmp_path / "pairs", count=4, size=96, noise=False, compression=False)
    pairs = find_pairs(tmp_path / "pairs")
    assert report.pairs == len(pairs) == 4
    assert (report.width, report.height) == (96, 96)
    told = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
    assert [p["name"] for p in told["pairs"]] == [p.name for p in pairs]
    assert told["source"] == "photos"
    assert told["options"]["size"] == 96
    for pair, entry in zip(pairs, told["pairs"], strict=True):
        blur, sharp = read_pair(pair)
        assert blur.shape == sharp.shape == (96, 96, 3)
        assert not np.array_equal(blur, sharp)
        assert "noise" not in entry
        if entry["gain"] == 1 and "foreground" not in entry:  # the truth is the photograph itself
            left, top, width, height = entry["box"]
            photo = cv2.cvtColor(cv2.imread(str(media / "photos" / entry["file"])), cv2.COLOR_BGR2RGB)
            assert np.array_equal(sharp, photo[top : top + height, left : left + width])
    assert cv2.imread(str(tmp_path / "pairs" / "preview.png")) is not None


def test_average_is_the_mean_of_the_frames_that_are_named(media: Path, tmp_path: Path) -> None:
    options = {"response": "none", "noise": False, "demosaic": False, "compression": False, "count": 3}
    synthesize(media / "fast.mp4", tmp_path / "pairs", frames="5-7", preview=False, **options)
    frames = [f.astype(np.float64) for f in read_rgb(media / "fast.mp4")]
    told = json.loads((tmp_path / "pairs" / "pairs.json").read_text())["pairs"]
    for pair, entry in zip(find_pairs(tmp_path / "pairs"), told, strict=True):
        blur, sharp = read_pair(pair)
        left, top, width, height = entry["box"]
        window = np.s_[top : top + height, left : left + width]
        reach = entry["frames"] // 2
        assert entry["frames"] in (5, 7)
        mean = np.mean(frames[entry["frame"] - reach : entry["frame"] + reach + 1], axis=0)[window]
        assert np.abs(blur - mean).max() <= 0.501
        assert np.array_equal(sharp, frames[entry["frame"]][window])
    assert not (tmp_path / "pairs" / "preview.png").exists()


def test_cuts_are_no_truths(media: Path, tmp_path: Path) -> None:
    report = synthesize(media / "clip.mp4", tmp_path / "pairs", count=16)
    told = json.loads((tmp_path / "pairs" / "pairs.json").read_text())["pairs"]
    used = {entry["frame"] for entry in told}
    assert not used & {0, 9, 10, 19}
    assert len(used) > 8
    assert report.frames == 20
    assert report.skipped >= 2


def test_a_share_is_left_sharp(media: Path, tmp_path: Path) -> None:
    synthesize(media / "photos", tmp_path / "pairs", count=3, size=64, identity=1.0)
    for pair in find_pairs(tmp_path / "pairs"):
        assert np.array_equal(*read_pair(pair))


def test_one_photograph_is_enough(media: Path, tmp_path: Path) -> None:
    assert synthesize(media / "photos" / "p0.png", tmp_path / "pairs", count=2, size=64).method == "shake"


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("nothing", {}, StreamdeblurError, "is not there"),
        ("clip.mp4", {"method": "shake"}, UsageError, "shake takes photographs"),
        ("clip.mp4", {"method": "average", "frames": "31-33"}, InputError, "20 frames"),
        ("photos", {"size": 999}, InputError, "smaller than crops of 999"),
        ("photos", {"method": "flow"}, InputError, "frame 1 of"),
        ("photos", {"colour": 1}, UsageError, "unknown option 'colour'"),
        ("photos", {"frames": "9-3"}, UsageError, "frames '9-3'"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    media: Path, tmp_path: Path, name: str, options: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        synthesize(media / name, tmp_path / "pairs", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_set_is_replaced_only_when_asked(media: Path, tmp_path: Path) -> None:
    synthesize(media / "photos", tmp_path / "pairs", count=3, size=64)
    before = digest(tmp_path / "pairs")
    with pytest.raises(OutputError, match="--overwrite"):
        synthesize(media / "photos", tmp_path / "pairs", count=1, size=64)
    with pytest.raises(InputError):  # fails after it began: what was there stays
        synthesize(media / "photos", tmp_path / "pairs", count=1, size=999, overwrite=True)
    assert digest(tmp_path / "pairs") == before
    synthesize(media / "photos", tmp_path / "pairs", count=1, size=64, overwrite=True)
    assert len(find_pairs(tmp_path / "pairs")) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="something else"):
        synthesize(media / "photos", tmp_path / "mine", count=1, size=64, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_progress_ends_at_the_count(media: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    synthesize(
        media / "clip.mp4", tmp_path / "pairs", count=4, size=64, progress=lambda *a: seen.append((a[0], a[1], a[2]))
    )
    assert seen[-1] == ("synthesizing", 4, 4)
    assert seen[0][0] == "looking for sharp frames"


# -- the command ------------------------------------------------------------------------------------------------------


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])


def test_the_command_prints_json(media: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("count: 9\nsize: 64\nseed: 3\n")
    done = invoke(
        media / "photos", "-o", tmp_path / "pairs", "-c", tmp_path / "mine.yaml", "--count", "2", "--json", "-q"
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["pairs"], told["method"], told["width"]) == (2, "shake", 64)
    told = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
    assert told["options"]["seed"] == 3


def test_the_command_refuses_an_unknown_method(media: Path, tmp_path: Path) -> None:
    done = invoke(media / "photos", "-o", tmp_path / "pairs", "--method", "magic")
    assert done.exit_code == 2
    assert "magic" in done.output


def test_the_config_shows_every_option_with_its_default() -> None:
    values = load_yaml(CONFIG)
    assert values == {name: field.default for name, field in SynthesizeOptions.model_fields.items()}
    assert parse(SynthesizeOptions, values, str(CONFIG)) == SynthesizeOptions()


def test_real_footage_gets_blurred(clips: Path, tmp_path: Path) -> None:
    report = synthesize(clips / "fixed_camera_traffic.mp4", tmp_path / "pairs", count=3, seed=1)
    assert report.method == "flow"
    for pair in find_pairs(tmp_path / "pairs"):
        blur, sharp = read_pair(pair)
        difference = np.abs(blur.astype(int) - sharp).mean(axis=2)
        assert np.percentile(difference, 99.5) > 12  # something moves
        assert np.median(difference) < 8  # the road does not
