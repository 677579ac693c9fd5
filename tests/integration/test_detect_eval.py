"""``streamdeblur detect-eval``: on pairs whose truth is known, on real ones, and what it refuses."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from streamdeblur.cli.detection import detect_eval as command
from streamdeblur.config import parse
from streamdeblur.errors import DiskFull, InputError, StreamdeblurError, UsageError
from streamdeblur.evaluation.detection import evaluate_detection
from streamdeblur.evaluation.detection_options import DetectEvalOptions
from tests import commands

pytestmark = pytest.mark.integration

#: A detector of white squares, as sure as they are white; and a restorer that knows how the pairs were made.
CODE = """
import cv2
import numpy as np
import torch
from streamdeblur.detect import Detections

def detector():
    def detect(rgb):
        gray = rgb.mean(axis=2)
        count, _, stats, _ = cv2.connectedComponentsWithStats((gray > 100).astype(np.uint8))
        boxes = [[x, y, x + w, y + h] for x, y, w, h, area in stats[1:] if area > 50]
        scores = [gray[int(y1):int(y2), int(x1):int(x2)].max() / 255 for x1, y1, x2, y2 in boxes]
        ids = np.zeros(len(boxes), np.int64)
        return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), ids, ("square",))
    return detect

def brighter():
    return lambda x: x * 2

def darker():
    return lambda x: x * 0

def broken():
    def detect(rgb):
        raise RuntimeError("no licence")
    return detect
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval")
    (tmp_path / "known.py").write_text(CODE)
    return tmp_path / "known.py"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Sharp: two squares of 255. Blurry: half as bright, so that one of 127 is found unsure and one of 90 is not."""
    folder = tmp_path / "pairs"
    for side in ("blur", "sharp"):
        (folder / side).mkdir(parents=True)
    for n in range(4):
        sharp = np.zeros((80, 120, 3), np.uint8)
        sharp[10:40, 10 + n : 40 + n] = 255
        sharp[10:40, 70 + n : 100 + n] = 255 if n % 2 else 180
        cv2.imwrite(str(folder / "sharp" / f"{n}.png"), sharp)
        cv2.imwrite(str(folder / "blur" / f"{n}.png"), sharp // 2)
    return folder


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])


def test_known_pairs(pairs: Path, code: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    result = run(
        "-d", pairs, "--detector", f"{code}:detector", "-m", f"{code}:brighter", "-m", f"{code}:darker", "-o", output,
        "--truth-threshold", 0.6,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    data = json.loads((output / "results.json").read_text())
    one = data["sets"][0]
    assert one["versions"].keys() == {"blurry", "known:brighter", "known:darker"}
    assert [c["name"] for c in one["classes"]] == ["square"]
    assert one["classes"][0]["truth"] == 8
    # on blurry images: six of eight squares are found at all (127), none with a score of 0.6
    assert one["versions"]["blurry"]["recall"] == 0
    assert one["versions"]["blurry"]["ap"] == pytest.approx(76 / 101)  # precision 1 up to a recall of 6 / 8
    assert one["versions"]["known:brighter"]["ap"] == one["versions"]["known:brighter"]["recall"] == 1
    assert one["versions"]["known:darker"]["ap"] == one["versions"]["known:darker"]["found"] == 0
    assert "known:brighter" in result.stdout
    assert "100.0" in result.stdout
    assert (output / "report.html").read_text().count("<img") == 3 * 4
    assert run("-d", pairs, "--detector", f"{code}:detector", "-o", output).exit_code != 0  # results are there


@pytest.mark.parametrize("as_json", [False, True])
def test_a_full_disk_does_not_take_the_numbers(
    pairs: Path, code: Path, tmp_path: Path, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    words = ["-d", pairs, "--detector", f"{code}:detector", "-o", tmp_path / "out", *(["--json"] if as_json else [])]
    done = run(*words)
    assert isinstance(done.exception, DiskFull)
    assert "no space left for the results in" in str(done.exception)
    if as_json:
        assert len(json.loads(done.stdout)["sets"][0]["images"]) > 1
    else:
        assert "mean of classes" in done.stdout
    assert "report.html" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_what_ends_it_early_does_not_take_the_pairs_until_then(pairs: Path, code: Path, tmp_path: Path) -> None:
    whole = (pairs / "blur" / "2.png").read_bytes()
    (pairs / "blur" / "2.png").write_bytes(whole[: len(whole) // 2])
    done = run("-d", pairs, "--detector", f"{code}:detector", "-m", f"{code}:brighter", "-o", tmp_path / "out")
    assert "2.png is cut short" in str(done.exception)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["stopped"], len(results["sets"][0]["images"])) == ("stopped after 2 of 4 pairs", 2)
    assert done.stdout.splitlines()[-1] == "stopped after 2 of 4 pairs"
    assert "Stopped after 2 of 4 pairs." in (tmp_path / "out" / "report.html").read_text()


def test_a_detector_that_exits_is_an_error_and_makes_no_folder(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys\ndef detector(): return lambda rgb: sys.exit(0)\n")
    words = ["detect-eval", "-d", pairs, "--detector", "leaves.py:detector", "-m", "identity"]
    done = commands.run(*words, "-o", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "the detector failed on 0: SystemExit: 0" in done.stderr
    done = commands.run(*words[:1], "-d", "absent", *words[3:], "-o", "none", cwd=tmp_path)
    assert (done.returncode, (tmp_path / "none").exists()) == (1, False)


def test_detector_and_restorer_each_have_neighbours_of_their_own(pairs: Path, tmp_path: Path) -> None:
    for folder, code in (("d", CODE), ("r", "def build(): return lambda x: (x * 2).clamp(0, 1)\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "network.py").write_text(f"NAME = {folder!r}\n")
        (tmp_path / folder / "f.py").write_text(
            code.replace(
                "    def detect(rgb):",
                "    def detect(rgb):\n        import network\n        assert network.NAME == 'd'",
            )
        )
    done = run(
        "-d", pairs, "--detector", f"{tmp_path / 'd' / 'f.py'}:detector", "-m", f"{tmp_path / 'r' / 'f.py'}:build"
    )
    assert done.exit_code == 0, done.output


def test_what_a_detector_prints_is_no_result(pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(CODE.replace("    def detect(rgb):", "    def detect(rgb):\n        print('!')"))
    words = ["detect-eval", "-d", pairs, "--detector", f"{tmp_path / 'loud.py'}:detector", "--limit", "1", "--json"]
    done = commands.run(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["sets"]) == 1
    assert "!" in done.stderr


def test_json_and_limit(pairs: Path, code: Path) -> None:
    result = run("-d", pairs, "--detector", f"{code}:detector", "-m", f"{code}:brighter", "--limit", 2, "--json", "-q")
    assert result.exit_code == 0, result.output
    assert [i["name"] for i in json.loads(result.stdout)["sets"][0]["images"]] == ["0", "2"]


@pytest.mark.parametrize(
    ("changes", "kind", "word"),
    [
        ({"detector": None}, UsageError, "--detector"),
        ({"data": ()}, UsageError, "--data"),
        ({"detector": "CODE:broken"}, StreamdeblurError, "failed on 0: RuntimeError: no licence"),
        (
            {"truth_threshold": 1.0, "classes": "square", "model": ("identity",), "data": "dark"},
            InputError,
            "finds nothing",
        ),
        ({"classes": "circle"}, UsageError, "knows no class circle"),
    ],
)
def test_what_can_not_be_measured(
    pairs: Path, code: Path, changes: dict[str, Any], kind: type[Exception], word: str
) -> None:
    values: dict[str, Any] = {"data": (str(pairs),), "detector": f"{code}:detector", "model": ("identity",), **changes}
    if values["data"] == "dark":
        for path in (pairs / "sharp").iterdir():
            cv2.imwrite(str(path), np.zeros((80, 120, 3), np.uint8))
        values["data"] = (str(pairs),)
    if values["detector"]:
        values["detector"] = values["detector"].replace("CODE", str(code))
    with pytest.raises(kind, match=word):
        evaluate_detection(parse(DetectEvalOptions, values))


def test_without_faster_coco_eval(pairs: Path, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    given = parse(DetectEvalOptions, {"data": (str(pairs),), "detector": f"{code}:detector"})
    with pytest.raises(UsageError, match=r"streamdeblur\[detect\]"):
        evaluate_detection(given)


def test_a_real_detector_on_real_pairs(data_dir: Path, tmp_path: Path) -> None:
    """Two of GoPro's test pairs at half size, so that it takes seconds; docs/detection.md has the whole set."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval")
    for side in ("blur", "sharp"):
        (tmp_path / "half" / side).mkdir(parents=True)
        for path in sorted((data_dir / "data" / "val" / "gopro" / side).iterdir())[:2]:
            half = cv2.resize(cv2.imread(str(path)), (640, 360), interpolation=cv2.INTER_AREA)
            cv2.imwrite(str(tmp_path / "half" / side / path.name), half)
    values = {"data": (str(tmp_path / "half"),), "detector": str(data_dir / "models" / "yolox_nano.onnx")}
    threads = torch.get_num_threads()
    try:
        result = evaluate_detection(
            parse(DetectEvalOptions, {**values, "model": ("identity",), "truth_threshold": 0.4})
        )
    finally:
        torch.set_num_threads(threads)
    one = result.sets[0]
    assert one.truth >= 5
    assert "person" in [c.name for c in one.classes]
    # identity restores nothing: the same as blurry, to the last digit
    assert one.versions["identity"] == one.versions["blurry"]
    assert 0 < one.versions["blurry"].ap < 1


@pytest.mark.slow
def test_the_shipped_weights_help_a_real_detector(data_dir: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval")
    values = {
        "data": (str(data_dir / "data" / "val" / "gopro"),),
        "detector": str(data_dir / "models" / "yolox_nano.onnx"),
        "model": ("mimo-unet-small",),
    }
    versions = evaluate_detection(parse(DetectEvalOptions, values)).sets[0].versions
    assert versions["mimo-unet-small"].ap > versions["blurry"].ap
    assert versions["mimo-unet-small"].recall > versions["blurry"].recall
