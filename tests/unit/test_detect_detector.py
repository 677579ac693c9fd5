"""Detectors: layouts decoded against hand-made tensors, suppression, names, factories, and results that are wrong."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamdeblur.detect.detector import Detections, checked, load_detector, no_detections
from streamdeblur.detect.names import COCO, class_names
from streamdeblur.detect.onnx_model import FastestDetLayout, YoloxLayout, iou, recognise, suppress
from streamdeblur.errors import StreamdeblurError, UsageError, WeightsError

# -- layouts -----------------------------------------------------------------------------------------------------------


def test_layouts_are_recognised_by_shape() -> None:
    yolox = recognise((416, 416), (1, 52 * 52 + 26 * 26 + 13 * 13, 85))
    assert isinstance(yolox, YoloxLayout)
    assert yolox.classes == 80
    wide = recognise((320, 640), (1, 40 * 80 + 20 * 40 + 10 * 20, 6))
    assert isinstance(wide, YoloxLayout)
    assert wide.classes == 1
    deep = recognise((640, 640), (1, 80 * 80 + 40 * 40 + 20 * 20 + 10 * 10, 85))
    assert isinstance(deep, YoloxLayout)
    fastest = recognise((352, 352), (1, 85, 22, 22))
    assert isinstance(fastest, FastestDetLayout)
    assert fastest.classes == 80


@pytest.mark.parametrize(
    "shape", [(1, 3548, 85), (1, 84, 8400), (1, 85, 21, 21), (1, 85, 22, 11), (1, 1000), (3549, 85)]
)
def test_other_shapes_are_not(shape: tuple[int, ...]) -> None:
    assert recognise((416, 416), shape) is None


def test_yolox_cell_to_box() -> None:
    layout = YoloxLayout((64, 96), 2, (8, 16, 32))
    # 8x12 cells of stride 8, then 4x6 of 16, then 2x3 of 32
    output = np.zeros((1, 96 + 24 + 6, 7), np.float32)
    cell = 96 + 2 * 6 + 4  # stride 16, row 2, column 4
    output[0, cell] = [0.25, 0.5, math.log(3), math.log(2), 0.8, 0.1, 0.9]
    raw = layout.decode(output, 0.3)
    assert raw.class_ids.tolist() == [1]
    assert raw.scores[0] == pytest.approx(0.72)
    # centre (4.25, 2.5) and size (3, 2), in strides of 16
    assert raw.boxes[0] == pytest.approx([68 - 24, 40 - 16, 68 + 24, 40 + 16], abs=1e-4)
    assert len(layout.decode(output, 0.73).scores) == 0


def test_yolox_letterbox() -> None:
    layout = YoloxLayout((64, 96), 2, (8, 16, 32))
    rgb = np.full((60, 200, 3), (10, 20, 30), np.uint8)
    picture, (across, down) = layout.prepare(rgb)
    assert across == down == pytest.approx(96 / 200)
    assert picture.shape == (1, 3, 64, 96)
    assert picture[0, :, 0, 0].tolist() == [30, 20, 10]  # blue first
    assert picture[0, :, 27, 95].tolist() == [30, 20, 10]  # 60 x 0.48 = 28.8 rows
    assert (picture[0, :, 28:] == 114).all()


def test_fastestdet_cell_to_box() -> None:
    layout = FastestDetLayout((64, 96), 3)
    output = np.zeros((1, 8, 4, 6), np.float32)
    output[0, :, 2, 5] = [0.9, math.atanh(0.5), math.atanh(-0.25), 0.0, math.log(1 / 3), 0.1, 0.2, 0.6]
    raw = layout.decode(output, 0.3)
    assert raw.class_ids.tolist() == [2]
    assert raw.scores[0] == pytest.approx(0.9**0.6 * 0.6**0.4, abs=1e-6)
    # centre (5.5, 1.75) cells of 16, size: a half of 96, a quarter of 64
    assert raw.boxes[0] == pytest.approx([88 - 24, 28 - 8, 88 + 24, 28 + 8], abs=1e-3)


def test_fastestdet_stretches() -> None:
    picture, factors = FastestDetLayout((64, 96), 3).prepare(np.full((32, 192, 3), (255, 0, 51), np.uint8))
    assert factors == (0.5, 2.0)
    assert picture[0, :, 5, 5] == pytest.approx([0.2, 0.0, 1.0])


def test_a_network_gone_wrong_does_not_overflow() -> None:
    layout = YoloxLayout((32, 32), 1, (8, 16, 32))
    output = np.full((1, 21, 6), 1e4, np.float32)
    with np.errstate(all="raise"):
        assert np.isfinite(layout.decode(output, 0.5).boxes).all()


# -- overlap -----------------------------------------------------------------------------------------------------------


def test_iou() -> None:
    a = np.array([[0, 0, 10, 10]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 5, 5], [3, 3, 3, 3]], np.float32)
    assert iou(a, b)[0] == pytest.approx([1, 50 / 150, 0, 0.25, 0])


def test_suppression_is_within_classes_and_best_first() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 10], [50, 50, 60, 60]], np.float32)
    scores = np.array([0.5, 0.9, 0.7, 0.6], np.float32)
    classes = np.array([0, 0, 1, 0])
    assert suppress(boxes, scores, classes, 0.45).tolist() == [1, 2, 3]
    assert suppress(boxes, scores, classes, 0.9).tolist() == [1, 2, 3, 0]  # IoU of the first two: 90 / 110
    assert suppress(boxes[:0], scores[:0], classes[:0], 0.5).tolist() == []


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_of_classes(tmp_path: Path) -> None:
    assert len(COCO) == len(set(COCO)) == 80
    assert (COCO[0], COCO[2], COCO[58], COCO[79]) == ("person", "car", "potted plant", "toothbrush")
    assert class_names(80, {}) == COCO
    assert class_names(2, {}) == ("class 0", "class 1")
    assert class_names(2, {"names": "{0: 'hen', 1: 'egg'}"}) == ("hen", "egg")
    assert class_names(2, {"names": '{"1": "egg", "0": "hen"}'}) == ("hen", "egg")
    assert class_names(2, {"classes": '["hen", "egg"]'}) == ("hen", "egg")
    assert class_names(2, {"names": "hen, egg"}) == ("hen", "egg")
    assert class_names(2, {"names": "{broken"}) == ("class 0", "class 1")
    path = tmp_path / "names.txt"
    path.write_text("hen\n\negg\n")
    assert class_names(2, {"names": "a, b"}, path) == ("hen", "egg")
    with pytest.raises(UsageError, match="2 names, and the detector 3 classes"):
        class_names(3, {}, path)
    with pytest.raises(UsageError, match="can't be read"):
        class_names(3, {}, tmp_path / "none.txt")


# -- results -----------------------------------------------------------------------------------------------------------


def made(boxes: Any, scores: Any, class_ids: Any, names: Any = ("a", "b")) -> Any:
    return types.SimpleNamespace(boxes=boxes, scores=scores, class_ids=class_ids, names=names)


def test_results_are_cut_to_the_frame_and_typed() -> None:
    found = checked(made([[-5, -5, 20, 20], [90, 5, 120, 20], [200, 5, 210, 9]], [0.5, 1.5, 0.7], [0, 1, 1.0]), 50, 100)
    assert found.boxes.tolist() == [[0, 0, 20, 20], [90, 5, 100, 20]]  # the third lies outside
    assert found.scores.tolist() == [0.5, 1.0]
    assert (found.boxes.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int64)
    assert [found.name(i) for i in range(2)] == ["a", "b"]
    assert len(checked(no_detections(), 5, 5)) == 0


def test_a_class_without_a_name_has_its_number() -> None:
    assert checked(made([[0, 0, 1, 1]], [0.5], [7]), 5, 5).name(0) == "class 7"


@pytest.mark.parametrize(
    ("result", "word"),
    [
        (None, "NoneType"),
        ([[0, 0, 1, 1]], "list"),
        (made([[0, 0, 1, 1]], [0.5, 0.6], [0]), "1 boxes, 2 scores and 1 classes"),
        (made([[0, 0, 1]], [0.5], [0]), "reshape"),
        (made([[0, 0, math.nan, 1]], [0.5], [0]), "not finite"),
        (made([[0, 0, 1, 1]], [math.inf], [0]), "not finite"),
    ],
)
def test_what_is_no_result_is_refused(result: Any, word: str) -> None:
    with pytest.raises(StreamdeblurError, match=word):
        checked(result, 10, 10)


# -- by name -----------------------------------------------------------------------------------------------------------

FACTORY = """
import numpy as np
from streamdeblur.detect import Detections
import beside

def build():
    def detect(rgb):
        return Detections(np.array([[0, 0, 2, 3]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), beside.N)
    return detect

def fails():
    raise RuntimeError("no licence")

def number():
    return 7
"""


def test_a_factory_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "beside.py").write_text("N = ('thing',)")
    before = list(sys.path)
    detector = load_detector(f"{tmp_path}/mine.py:build")
    assert sys.path == before
    found = detector(np.zeros((5, 5, 3), np.uint8))
    assert isinstance(found, Detections)
    assert found.name(0) == "thing"


def test_a_factory_from_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside.py").write_text("N = ('thing',)")
    (tmp_path / "detectors_of_mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)  # as from the console script, which does not search the current folder
    assert load_detector("detectors_of_mine:build")(np.zeros((5, 5, 3), np.uint8)).name(0) == "thing"


@pytest.mark.parametrize(
    ("word", "kind", "message"),
    [
        ("yolox", UsageError, "give a FILE.onnx, module:factory"),
        ("none.onnx", WeightsError, "does not exist"),
        ("none.py:build", UsageError, "no file none.py"),
        ("no_such_module_here:build", UsageError, "can't be imported"),
        ("json:no_function", UsageError, "has no function no_function"),
        ("FILE:fails", UsageError, "failed to build: RuntimeError: no licence"),
        ("FILE:number", UsageError, "built a int, which can't be called"),
        ("FILE:missing", UsageError, "has no function missing"),
    ],
)
def test_what_names_no_detector(tmp_path: Path, word: str, kind: type[Exception], message: str) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "beside.py").write_text("N = ('thing',)")
    with pytest.raises(kind, match=message):
        load_detector(word.replace("FILE", str(tmp_path / "mine.py")))


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(WeightsError, match="not a network that onnxruntime loads"):
        load_detector(str(path))
    with pytest.raises(UsageError, match="device 'gpu'"):
        load_detector(str(path), device="gpu")
