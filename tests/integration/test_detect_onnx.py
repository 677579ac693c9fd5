"""The two given detectors on real frames: people and cars are found where they are; and the hook on a real clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.config import parse
from streamdeblur.detect import JSON_SCHEMA, Detections, DetectOptions, Hook, load_detector
from streamdeblur.detect.draw import frame_to_rgb
from streamdeblur.detect.onnx_model import FastestDetLayout, OnnxDetector, YoloxLayout, iou
from streamdeblur.errors import UsageError, WeightsError
from streamdeblur.frames import Frame
from streamdeblur.video.reader import open_video

pytestmark = pytest.mark.integration

WAIT = 120.0
#: Objects that anybody sees in frame 60 of two clips, outlined by hand: (name, x1, y1, x2, y2).
TRAFFIC = [("car", 228, 128, 290, 178), ("car", 356, 135, 415, 162)]
PEDESTRIANS = [("person", 613, 234, 652, 342), ("person", 466, 203, 501, 291), ("car", 652, 40, 722, 100)]


def models(data_dir: Path, name: str) -> Path:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    return data_dir / "models" / name


def frames(path: Path, count: int, first: int = 0) -> list[Frame]:
    result = []
    with open_video(path) as video:
        for item in video:
            if item.index >= first:
                result.append(item.plain())
            if len(result) == count:
                break
    return result


def has(found: Detections, objects: list[tuple[Any, ...]], least: float) -> list[bool]:
    result = []
    for name, *box in objects:
        same = found.pick([i for i in range(len(found)) if found.name(i) == name])
        overlaps = iou(np.array([box], np.float32), same.boxes)
        result.append(bool(overlaps.size and overlaps.max() >= least))
    return result


@pytest.mark.parametrize("name", ["yolox_nano.onnx", "fastestdet.onnx"])
@pytest.mark.parametrize(
    ("clip", "objects"), [("fixed_camera_traffic.mp4", TRAFFIC), ("fixed_camera_pedestrians.avi", PEDESTRIANS)]
)
def test_people_and_cars_are_found_where_they_are(
    data_dir: Path, clips: Path, name: str, clip: str, objects: Any
) -> None:
    detector = load_detector(str(models(data_dir, name)), threads=1)
    found = detector(frame_to_rgb(frames(clips / clip, 1, 60)[0]))
    assert has(found, objects, 0.6) == [True] * len(objects)
    assert found.boxes.dtype == np.float32
    assert (found.scores[:-1] >= found.scores[1:]).all()
    assert found.names[2] == "car"


def test_layouts_and_names_of_the_given_files(data_dir: Path, tmp_path: Path) -> None:
    yolox = OnnxDetector(models(data_dir, "yolox_nano.onnx"), threads=1)
    assert isinstance(yolox.layout, YoloxLayout)
    assert yolox.input_size == (416, 416)
    assert len(yolox.names) == 80
    renamed = tmp_path / "some_network.onnx"  # the file's name says nothing
    renamed.write_bytes(models(data_dir, "fastestdet.onnx").read_bytes())
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"kind {i}" for i in range(80)))
    fastest = OnnxDetector(renamed, names=names, threads=1)
    assert isinstance(fastest.layout, FastestDetLayout)
    assert fastest.input_size == (352, 352)
    assert fastest.names[79] == "kind 79"


@pytest.mark.parametrize("name", ["yolox_nano.onnx", "fastestdet.onnx"])
def test_boxes_move_with_the_picture_and_scale_with_it(data_dir: Path, clips: Path, name: str) -> None:
    detector = load_detector(str(models(data_dir, name)), threshold=0.5, threads=1)
    rgb = frame_to_rgb(frames(clips / "fixed_camera_pedestrians.avi", 1, 60)[0])
    plain = detector(rgb)
    person = plain.boxes[[plain.name(i) for i in range(len(plain))].index("person")]
    large = detector(np.asarray(cv2.resize(rgb, None, fx=2, fy=2), np.uint8))
    assert iou(person[None] * 2, large.boxes).max() > 0.7
    flipped = detector(np.ascontiguousarray(rgb[:, ::-1]))
    mirrored = np.array([[768 - person[2], person[1], 768 - person[0], person[3]]], np.float32)
    assert iou(mirrored, flipped.boxes).max() > 0.6


def test_nothing_is_found_on_nothing(data_dir: Path) -> None:
    detector = load_detector(str(models(data_dir, "yolox_nano.onnx")), threads=1)
    for shape in ((1, 1, 3), (7, 2000, 3), (480, 640, 3)):
        assert len(detector(np.full(shape, 127, np.uint8))) == 0
    with pytest.raises(ValueError, match="expected an RGB frame"):
        detector(np.zeros((4, 4), np.uint8))


def test_what_is_no_detector(data_dir: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    h, t = onnx.helper, onnx.TensorProto

    def save(name: str, shape: list[int], kind: int = t.FLOAT) -> str:
        given, result = (h.make_tensor_value_info(n, kind, shape) for n in ("x", "y"))
        graph = h.make_graph([h.make_node("Identity", ["x"], ["y"])], "g", [given], [result])
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.save(model, str(tmp_path / name))
        return str(tmp_path / name)

    with pytest.raises(WeightsError, match=r"neither YOLOX's nor FastestDet's layout"):
        load_detector(save("same.onnx", [1, 3, 64, 64]))
    with pytest.raises(WeightsError, match=r"takes x \[1, 10\]"):
        load_detector(save("row.onnx", [1, 10]))
    with pytest.raises(WeightsError, match=r"takes tensor\(int64\)"):
        load_detector(save("whole.onnx", [1, 3, 64, 64], t.INT64))
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\n")
    with pytest.raises(UsageError, match="2 names, and the detector 80 classes"):
        load_detector(str(models(data_dir, "yolox_nano.onnx")), names=names)


def test_the_hook_on_a_real_clip(data_dir: Path, clips: Path, tmp_path: Path) -> None:
    given = parse(
        DetectOptions,
        {
            "detect": str(models(data_dir, "yolox_nano.onnx")),
            "detections": str(tmp_path / "found.jsonl"),
            "detect_on": "both",
            "detect_threads": 1,
        },
    )
    taken = frames(clips / "fixed_camera_traffic.mp4", 14, 48)
    blurred = [
        Frame(f.index, f.pts, f.time_base, tuple(np.asarray(cv2.blur(np.array(p), (9, 1))) for p in f.planes), f.spec)
        for f in taken
    ]
    with Hook(given, source="gate", lossless=True) as hook:
        for before, after in zip(blurred, taken, strict=True):
            hook.offer(before, after)
    stats = hook.stats()
    assert (stats.looked, stats.dropped, stats.errors) == (14, 0, 0)
    assert stats.gain is not None
    assert stats.gain.detections_after > stats.gain.detections_before
    assert stats.gain.pays is True
    records = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    for record in records:
        jsonschema.validate(record, JSON_SCHEMA, cls=jsonschema.Draft202012Validator)
    assert [r["index"] for r in records] == [f.index for f in taken]
    assert [r["pts"] for r in records] == [f.pts for f in taken]
    # the red car drives on: one object, one number, told apart by its colour
    reds = [_reddest(r, frame_to_rgb(f)) for r, f in zip(records, taken, strict=True)]
    assert len(set(reds)) == 1
    assert reds[0] is not None


def _reddest(record: dict[str, Any], rgb: npt.NDArray[np.uint8]) -> int | None:
    """The track of the car with the reddest middle."""

    def redness(o: dict[str, Any]) -> float:
        x1, y1, x2, y2 = o["box"]
        x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 4, (y2 - y1) / 4
        middle = rgb[int(y - h) : int(y + h) + 1, int(x - w) : int(x + w) + 1].reshape(-1, 3).mean(axis=0)
        return float(middle[0] - (middle[1] + middle[2]) / 2)

    best = max((o for o in record["objects"] if o["name"] in ("car", "truck")), key=redness)
    track: int | None = best["track"]
    return track


def test_example_of_the_documentation(tmp_path: Path) -> None:
    """docs/detection.md shows a factory; it is taken from there, run, and finds what it is made to find."""
    text = (Path(__file__).parents[2] / "docs" / "detection.md").read_text(encoding="utf-8")
    code = text.split("```python\n# bright.py", 1)[1].split("```", 1)[0]
    (tmp_path / "bright.py").write_text(f"# bright.py{code}", encoding="utf-8")
    picture: npt.NDArray[np.uint8] = np.zeros((60, 80, 3), np.uint8)
    picture[10:30, 20:50] = 255
    found = load_detector(f"{tmp_path}/bright.py:build")(picture)
    assert found.boxes.tolist() == [[20, 10, 50, 30]]
    assert found.name(0) == "bright"
