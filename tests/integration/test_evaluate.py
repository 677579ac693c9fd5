"""``streamdeblur evaluate`` on pairs made here and on real ones: numbers, files, protocols, errors."""

from __future__ import annotations

import csv
import errno
import gc
import json
import os
import re
import subprocess
import sys
import tracemalloc
import types
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from torch import Tensor, nn

from streamdeblur.cli.evaluation import evaluate as command
from streamdeblur.config import load_yaml, parse
from streamdeblur.errors import (
    ConfigError,
    DiskFull,
    InputError,
    OutputError,
    StreamdeblurError,
    UsageError,
    WeightsError,
)
from streamdeblur.evaluation.measure import Progress, evaluate
from streamdeblur.evaluation.options import EvaluateOptions, Layout
from streamdeblur.training.alignment import align
from streamdeblur.training.pairs import LAYOUTS
from tests import commands

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
Picture = npt.NDArray[np.uint8]
STEP = (0.06, -0.04, 0.02)


def scene(seed: int, size: tuple[int, int] = (60, 92)) -> Picture:
    rng = np.random.default_rng(seed)
    small = rng.integers(20, 235, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def write(path: Path, rgb: Picture) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))
    return path


def make_pairs(folder: Path, count: int = 3, size: tuple[int, int] = (60, 92)) -> Path:
    for i in range(count):
        sharp = scene(i, size)
        write(folder / "sharp" / f"p{i}.png", sharp)
        write(folder / "blur" / f"p{i}.png", np.asarray(cv2.blur(sharp, (1, 5)), np.uint8))
    return folder


def read(path: Path) -> npt.NDArray[np.float64]:
    picture = cv2.imread(str(path))
    assert picture is not None
    return picture[..., ::-1].astype(np.float64) / 255


def psnr(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(1 / np.mean((a - b) ** 2)))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("set") / "mine")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)


def test_the_numbers_are_those_of_an_independent_computation(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("-d", pairs, "-m", "offset", "-m", "identity", "--json", "-o", out)
    assert done.exception is None, done.exception
    data = json.loads(done.stdout)
    assert data == json.loads((out / "results.json").read_text())
    (one,) = data["sets"]
    assert (one["name"], one["pairs"], one["aligned"]) == ("mine", 3, False)
    for i, image in enumerate(one["images"]):
        blur, sharp = (read(pairs / side / f"p{i}.png") for side in ("blur", "sharp"))
        restored = np.clip(blur.astype(np.float32) + np.float32(STEP), 0, 1).astype(np.float64)
        score = image["scores"]["offset"]
        assert (image["name"], image["width"], image["height"]) == (f"p{i}", 92, 60)
        assert image["input_psnr"] == pytest.approx(psnr(blur, sharp), abs=1e-5)
        assert score["psnr"] == pytest.approx(psnr(restored, sharp), abs=1e-4)
        assert score["psnr_8bit"] == pytest.approx(psnr(np.round(restored * 255) / 255, sharp), abs=1e-3)
        assert score["gain"] == pytest.approx(psnr(restored, sharp) - psnr(blur, sharp), abs=1e-4)
        stepped = np.round(np.clip(sharp + np.array(STEP), 0, 1) * 255) / 255
        assert score["sharp_psnr"] == pytest.approx(psnr(stepped, sharp), abs=1e-2)
        assert score["seconds"] > 0
        same = image["scores"]["identity"]
        assert (same["psnr"], same["psnr_8bit"], same["ssim"]) == (
            pytest.approx(image["input_psnr"], abs=1e-9),
            pytest.approx(image["input_psnr"], abs=1e-9),
            pytest.approx(image["input_ssim"], abs=1e-12),
        )
        assert (same["gain"], same["sharp_psnr"]) == (pytest.approx(0, abs=1e-9), "inf")
    offset, identity = one["results"]
    gains = [i["scores"]["offset"]["gain"] for i in one["images"]]
    assert offset["gain"] == pytest.approx(np.mean(gains))
    assert offset["worst_gain"] == min(gains)
    assert offset["worst_image"] == f"p{int(np.argmin(gains))}"
    assert identity["sharp_psnr"] == "inf"
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [(r["image"], r["model"]) for r in rows] == [(f"p{i}", m) for i in range(3) for m in ("offset", "identity")]
    page = (out / "report.html").read_text()
    shown = re.findall(r'data-model="offset".*?data-key="psnr" data-value="([^"]*)"', page)[0]
    assert float(shown) == offset["psnr"]


def test_ssim_agrees_with_scikit_image(pairs: Path) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="needs scikit-image: pip install 'streamdeblur[dev]'")
    result = evaluate(EvaluateOptions(data=(str(pairs),), model=("identity",), do_no_harm=False))
    for i, image in enumerate(result.sets[0].images):
        blur, sharp = (read(pairs / side / f"p{i}.png") for side in ("blur", "sharp"))
        theirs = metrics.structural_similarity(
            sharp, blur, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert image.scores["identity"].ssim == pytest.approx(theirs, abs=1e-4)
        assert image.scores["identity"].sharp_psnr is None


def test_the_table_goes_to_stdout_and_the_rest_to_stderr(pairs: Path, tmp_path: Path) -> None:
    done = run("-d", pairs, "-m", "identity", "-m", "mimo-unet-plus-plus=random:0", "--limit", "1", "-o", tmp_path)
    assert done.exception is None, done.exception
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "mine: 1 pair"
    assert [line.split()[0] for line in lines[1:]] == ["model", "blurry", "identity", "mimo-unet-plus-plus"]
    assert "16.11 M" in lines[4]
    assert str(tmp_path / "report.html") in done.stderr
    quiet = run("-d", pairs, "-m", "identity", "-q", "--limit", "1", "--no-do-no-harm")
    assert quiet.stderr == ""


def test_several_sets_and_a_limit_that_spreads(tmp_path: Path) -> None:
    first, second = make_pairs(tmp_path / "a" / "s", 7), make_pairs(tmp_path / "b" / "s", 2)
    seen: list[Progress] = []
    options = EvaluateOptions(data=(str(first), str(second)), model=("identity",), limit=3, do_no_harm=False)
    result = evaluate(options, seen.append)
    assert [s.name for s in result.sets] == [str(first), str(second)]  # folders of one name
    assert [i.name for i in result.sets[0].images] == ["p0", "p2", "p4"]
    assert [i.name for i in result.sets[1].images] == ["p0", "p1"]
    assert [(p.done, p.total) for p in seen] == [(n, 5) for n in range(1, 6)]


class Brighten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 0.1).clamp(0, 1)


def test_a_rival_network_runs_in_the_same_harness(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function as a variant of ours, a Python factory and an exported program: the same numbers."""
    program = torch.export.export(
        Brighten(),
        (torch.rand(1, 3, 64, 96),),
        dynamic_shapes=({2: torch.export.Dim("h", min=8, max=999), 3: torch.export.Dim("w", min=8, max=999)},),
    )
    torch.export.save(program, tmp_path / "rival.pt2")
    (tmp_path / "rival.py").write_text("def build():\n    return lambda x: x.add_(0.1)\n")  # in place
    monkeypatch.chdir(tmp_path)
    options = EvaluateOptions(data=(str(pairs),), model=("rival:build", "offset:0.1,0.1,0.1", "rival.pt2"), repeats=2)
    (one,) = evaluate(options).sets
    for image in one.images:
        ours, factory, exported = (image.scores[n] for n in ("offset:0.1,0.1,0.1", "rival:build", "rival"))
        assert factory.psnr == pytest.approx(ours.psnr, abs=1e-5)
        assert exported.psnr == pytest.approx(ours.psnr, abs=1e-5)
        assert exported.ssim == pytest.approx(ours.ssim, abs=1e-6)
        assert factory.sharp_psnr == exported.sharp_psnr == ours.sharp_psnr


def test_realblur_is_registered_before_it_is_scored(tmp_path: Path) -> None:
    """Shifted and dimmed: what another camera behind the same lens saw."""
    sharp = scene(3, (120, 160))
    shifted = np.roll(sharp, (2, -3), (0, 1))
    blurred = np.asarray(cv2.blur(shifted, (3, 1)) * 0.9, np.uint8)
    write(tmp_path / "RealBlur-J" / "scene001" / "gt" / "gt_1.png", sharp)
    write(tmp_path / "RealBlur-J" / "scene001" / "blur" / "blur_1.png", blurred)
    line = "RealBlur-J/scene001/gt/gt_1.png RealBlur-J/scene001/blur/blur_1.png\n"
    (tmp_path / "RealBlur_J_test_list.txt").write_text(line)
    options = EvaluateOptions(data=(str(tmp_path),), model=("identity",), output=tmp_path / "out", do_no_harm=False)
    (one,) = evaluate(options).sets
    assert one.aligned
    found = align(blurred, sharp)
    score = one.images[0].scores["identity"]
    assert score.psnr == pytest.approx(found.psnr(), abs=1e-4)
    assert score.gain == pytest.approx(0, abs=1e-6)
    (plain,) = evaluate(options.model_copy(update={"align": "off", "output": None})).sets
    assert not plain.aligned
    assert plain.images[0].scores["identity"].psnr < score.psnr - 5
    assert plain.images[0].scores["identity"].ssim < score.ssim - 0.1
    assert "aligned" in json.loads((tmp_path / "out" / "results.json").read_text())["definitions"]


def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_pairs(tmp_path / "many", 14, (200, 240))
    held: list[int] = []

    def restore(x: Tensor) -> Tensor:
        if len(held) == 2 and not tracemalloc.is_tracing():  # not from the start: imports would take long
            tracemalloc.start()
        gc.collect()
        tensors = sum(t.numel() * t.element_size() for t in gc.get_objects() if type(t) is Tensor)
        held.append(tensors + tracemalloc.get_traced_memory()[0])
        return x + 0.01 * torch.sin(x * 100)

    rival = types.ModuleType("rival_memory")
    rival.__dict__["build"] = lambda: restore
    monkeypatch.setitem(sys.modules, "rival_memory", rival)
    try:
        evaluate(
            EvaluateOptions(
                data=(str(folder),), model=("rival_memory:build",), output=tmp_path / "out", do_no_harm=False
            )
        )
    finally:
        tracemalloc.stop()
    assert len(held) == 2 + 14  # operations are counted and the network is warmed up first
    # the gallery is full after a few pairs; eight more add less than a third of one image
    assert held[-1] < max(held[4:8]) + 200 * 240 * 3 / 3, held


def test_an_image_that_was_never_blurry_has_no_gain(tmp_path: Path) -> None:
    for side in ("blur", "sharp"):
        write(tmp_path / side / "a.png", scene(1))
        write(tmp_path / side / "b.png", scene(2 if side == "blur" else 3))
    result = evaluate(EvaluateOptions(data=(str(tmp_path),), model=("offset",), output=tmp_path / "out"))
    data = json.loads((tmp_path / "out" / "results.json").read_text())["sets"][0]
    assert data["images"][0]["input_psnr"] == "inf"
    assert data["images"][0]["scores"]["offset"]["gain"] is None
    assert result.sets[0].summary("offset").worst_image == "b"


def test_the_table_says_of_how_many_pairs_the_gain_is(tmp_path: Path) -> None:
    make_pairs(tmp_path, 2)
    write(tmp_path / "blur" / "same.png", scene(9))
    write(tmp_path / "sharp" / "same.png", scene(9))
    done = run("-d", tmp_path, "-m", "offset", "--no-do-no-harm")
    assert done.exception is None, done.exception
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("gain and input PSNR are of the 2 of 3 pairs")
    assert "inf" not in done.stdout
    blurred = np.mean([psnr(*(read(tmp_path / side / f"p{i}.png") for side in ("blur", "sharp"))) for i in range(2)])
    (given,) = [x for x in lines if x.startswith("blurry input")]
    assert float(given.split()[2]) == pytest.approx(blurred, abs=0.006)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_full_disk_does_not_take_the_numbers(
    pairs: Path, tmp_path: Path, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    done = run("-d", pairs, "-m", "identity", "-o", tmp_path / "out", *(["--json"] if as_json else []))
    with pytest.raises(DiskFull, match="no space left for the results in"):
        raise_of(done)
    if as_json:
        assert json.loads(done.stdout)["sets"][0]["pairs"] == 3
    else:
        assert done.stdout.splitlines()[-1].startswith("identity")
    assert "report.html" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("as_json", [False, True])
def test_what_ends_it_early_does_not_take_the_pairs_until_then(tmp_path: Path, as_json: bool) -> None:
    make_pairs(tmp_path / "set", 4)
    whole = (tmp_path / "set" / "blur" / "p2.png").read_bytes()
    (tmp_path / "set" / "blur" / "p2.png").write_bytes(whole[: len(whole) // 2])
    done = run("-d", tmp_path / "set", "-m", "offset", "-o", tmp_path / "out", *(["--json"] if as_json else []))
    with pytest.raises(StreamdeblurError, match=r"p2\.png is cut short"):
        raise_of(done)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    if as_json:
        assert json.loads(done.stdout) == results
    else:
        assert done.stdout.splitlines()[-1] == "stopped after 2 of 4 pairs"
    assert (results["stopped"], results["sets"][0]["pairs"]) == ("stopped after 2 of 4 pairs", 2)
    assert "Stopped after 2 of 4 pairs." in (tmp_path / "out" / "report.html").read_text()
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 3
    with pytest.raises(StreamdeblurError, match=r"p2\.png is cut short"):  # by the library, too
        evaluate(EvaluateOptions(data=(str(tmp_path / "set"),), model=("offset",), output=tmp_path / "more"))
    more = json.loads((tmp_path / "more" / "results.json").read_text())
    assert (more["stopped"], more["sets"][0]["pairs"]) == ("stopped after 2 of 4 pairs", 2)


def test_a_part_takes_the_place_of_no_earlier_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["-d", make_pairs(tmp_path / "set", 3), "-m", "offset", "-o", tmp_path / "out", "--overwrite"]
    assert run(*words).exception is None
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    (tmp_path / "set" / "blur" / "p1.png").write_bytes(b"")
    done = run(*words)
    with pytest.raises(StreamdeblurError, match=r"p1\.png is empty"):
        raise_of(done)
    assert done.stdout.splitlines()[-1] == "stopped after 1 of 3 pairs"
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_a_signal_in_the_second_set_keeps_the_first_and_is_told(tmp_path: Path) -> None:
    words = [make_pairs(tmp_path / "one", 2), make_pairs(tmp_path / "two", 2)]
    (tmp_path / "slow.py").write_text(
        "import os, signal\ncalls = []\n"
        "def build():\n"
        "    def run(x):\n"
        "        calls.append(1)\n"
        "        if len(calls) > 7:\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return x\n"
        "    return run\n"
    )
    more = ["-m", "slow.py:build", "-o", "out", "--no-do-no-harm", "--warmup", "0", "--repeats", "2"]
    done = commands.run("evaluate", "-d", words[0], "-d", words[1], *more, cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1].split(":")[:2]) == (143, ["error", " terminated"]), (
        done.stderr
    )
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [s["pairs"] for s in results["sets"]] == [2, 1]
    assert done.stdout.splitlines()[-1] == "stopped after 3 of 4 pairs"


def test_nothing_is_made_for_what_can_not_be_measured(tmp_path: Path) -> None:
    for words in (["-d", tmp_path / "absent"], ["-d", make_pairs(tmp_path / "set", 1), "-m", "mimo"]):
        assert run(*words, "-o", tmp_path / "out").exception is not None
        assert not (tmp_path / "out").exists()


def test_brackets_and_colons_in_names_are_shown_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "night [v2] :x:"
    for side, seed in (("blur", 1), ("sharp", 2)):
        write(folder / side / "u[" / "x] :smile:.png", scene(seed))
    done = run("-d", folder, "-m", "identity")
    assert done.exception is None, done.exception
    assert done.stdout.startswith("night [v2] :x:: 1 pair")
    assert "u[/x] :smile:" in done.stdout


def test_small_pictures_take_the_window_that_fits(tmp_path: Path) -> None:
    values = {"data": (str(make_pairs(tmp_path, 1, (8, 8))),), "model": ("identity",)}
    result = evaluate(EvaluateOptions(**values, ssim_window="uniform"))
    assert 0 < result.sets[0].images[0].input_ssim < 1


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    folder, odd = tmp_path / os.fsdecode(b"s\xe9t"), os.fsdecode(b"caf\xe9.png")
    for side in ("blur", "sharp"):
        path = write(tmp_path / "a.png", scene(1 if side == "blur" else 2))
        (folder / side).mkdir(parents=True)
        try:
            path.rename(folder / side / odd)
        except OSError:
            pytest.skip("this file system has names of UTF-8 only")
    for more in ([], ["--json"]):
        done = run("-d", folder, "-m", "identity", "-o", tmp_path / f"out{len(more)}", *more)
        assert done.exception is None, done.exception
        assert r"caf\xe9" in done.stdout.replace("\\\\", "\\")
        for name in ("results.json", "results.csv", "report.html"):
            text = (tmp_path / f"out{len(more)}" / name).read_text(encoding="utf-8")
            assert r"caf\xe9" in text.replace("\\\\", "\\")
            assert r"s\xe9t" in text.replace("\\\\", "\\")
            assert "udce9" not in text


TALKS = """
import os, sys
print("while imported")
early = sys.stdout
def build():
    print("while built")
    def restore(x):
        print("while run")
        os.write(1, b"from C\\n")
        sys.__stdout__.write("by the first stdout\\n")
        return x
    return restore
"""


def test_what_models_print_goes_to_stderr(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(TALKS)
    words = ["evaluate", "-d", pairs, "-m", f"{tmp_path / 'talks.py'}:build", "--limit", "1", "--json", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "streamdeblur", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert json.loads(done.stdout)["sets"][0]["pairs"] == 1
    for said in ("while imported", "while built", "while run", "from C", "by the first stdout"):
        assert said in done.stderr


def test_configuration_file_and_command_line(pairs: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump({"model": ["offset", "identity"], "limit": 2, "do_no_harm": False}))
    done = run("-c", path, "-d", pairs, "--limit", "1", "--json")
    assert done.exception is None, done.exception
    data = json.loads(done.stdout)
    assert [m["name"] for m in data["models"]] == ["offset", "identity"]
    assert data["sets"][0]["pairs"] == 1
    assert data["options"]["do_no_harm"] is False
    path.write_text("modell: [identity]\n")
    with pytest.raises(ConfigError, match=r"unknown option 'modell'.*did you mean model"):
        raise_of(run("-c", path, "-d", pairs))


def test_the_yaml_shows_every_option_with_its_default() -> None:
    text = (ROOT / "configs" / "evaluate.yaml").read_text(encoding="utf-8")
    values = load_yaml(ROOT / "configs" / "evaluate.yaml")
    assert set(values) == set(EvaluateOptions.model_fields)
    assert parse(EvaluateOptions, values) == EvaluateOptions()
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert len(keys) == len(set(keys)) == len(values)


def test_layouts_are_those_of_the_reader() -> None:
    assert Layout.__args__ == LAYOUTS  # type: ignore[attr-defined]


def raise_of(result: Result) -> None:
    assert result.exception is not None
    raise result.exception


RIVALS = """
def smaller(): return lambda x: x[..., 1:, :]
def broken(): return lambda x: x / 0 * 0
"""


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("missing", StreamdeblurError, "absent is not a folder"),
        ("empty", InputError, "no known layout of pairs"),
        ("no pictures", InputError, "holds no test pairs"),
        ("sizes", InputError, "p0.*92x60.*50x40"),
        ("lonely", InputError, "p9.png has no partner"),
        ("tiny", InputError, "pair p0 is 8x8; SSIM needs 11x11"),
        ("model", UsageError, "unknown model 'mimo'"),
        ("no weights", WeightsError, "nothing.safetensors"),
        ("shape", StreamdeblurError, r"rivals:smaller returned \(1, 3, 59, 92\) for an image of \(1, 3, 60, 92\)"),
        ("nan", StreamdeblurError, "rivals:broken returned values that are not finite"),
        ("no data", UsageError, "no pairs to measure; give a folder of pairs with --data"),
        ("twice", UsageError, "is given twice"),
        ("output", OutputError, "results.json exists; --overwrite"),
    ],
)
def test_faults_are_one_line(
    what: str, error: type[Exception], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rivals.py").write_text(RIVALS)
    folder = make_pairs(tmp_path / "set", 1, (8, 8) if what == "tiny" else (60, 92))
    values: dict[str, Any] = {"data": (str(folder),), "model": ("identity",)}
    if what == "missing":
        values["data"] = (str(tmp_path / "absent"),)
    elif what == "empty":
        (tmp_path / "empty").mkdir()
        values["data"] = (str(tmp_path / "empty"),)
    elif what == "no pictures":
        for side in ("blur", "sharp"):
            (folder / side / "p0.png").unlink()
    elif what == "sizes":
        write(folder / "sharp" / "p0.png", scene(0, (40, 50)))
    elif what == "lonely":
        write(folder / "sharp" / "p9.png", scene(0))
    elif what == "model":
        values["model"] = ("mimo",)
    elif what == "no weights":
        values["model"] = ("mimo-unet=nothing.safetensors",)
    elif what == "shape":
        values["model"] = ("rivals:smaller",)
    elif what == "nan":
        values["model"] = ("rivals.py:broken",)
    elif what == "no data":
        values["data"] = ()
    elif what == "twice":
        values["data"] = (str(folder), str(folder))
    elif what == "output":
        values["output"] = tmp_path
        (tmp_path / "results.json").write_text("{}")
    with pytest.raises(error, match=text) as e:
        evaluate(EvaluateOptions(**values))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("name", "count"), [("gopro", 6), ("reds", 3)])
def test_real_pairs(data_dir: Path, name: str, count: int, tmp_path: Path) -> None:
    folder = data_dir / "data" / "val" / name
    if not folder.is_dir():
        pytest.skip(f"needs data/val in STREAMDEBLUR_DATA={data_dir}")
    assert len(list((folder / "blur").iterdir())) == count
    options = EvaluateOptions(
        data=(str(folder),), model=("identity",), limit=1, output=tmp_path / "out", do_no_harm=False, published=True
    )
    (one,) = evaluate(options).sets
    image = one.images[0]
    blur, sharp = (read(folder / side / f"{image.name}.png") for side in ("blur", "sharp"))
    assert image.input_psnr == pytest.approx(psnr(blur, sharp), abs=1e-5)
    assert 18 < image.input_psnr < 35
    page = (tmp_path / "out" / "report.html").read_text()
    assert f'data-key="input_psnr" data-value="{image.input_psnr!r}"' in page
    assert 100_000 < len(page) < 3_000_000
