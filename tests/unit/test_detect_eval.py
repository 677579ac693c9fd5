"""Average precision against a plain implementation, matches, what is shown, and the page, on made-up detections."""

from __future__ import annotations

import csv
import io
import json
import math
from html.parser import HTMLParser
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.detect.detector import Detections, no_detections
from streamdeblur.evaluation.detection import (
    ClassResult,
    DetectionEvaluation,
    DetectionSet,
    Example,
    Examples,
    ImageCount,
    Precision,
    VersionResult,
    average_precision,
    matches,
)
from streamdeblur.evaluation.detection_page import class_bars, detection_page

NAMES = ("person", "car", "tree")


def found(*objects: tuple[float, float, float, float, float, int]) -> Detections:
    rows = np.array(objects, np.float64).reshape(-1, 6)
    return Detections(rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].astype(np.int64), NAMES)


def overlap(a: Any, b: Any) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    common = max(w, 0) * max(h, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def plain_ap(truth: list[Detections], given: list[Detections], class_id: int, least: float) -> float:
    """Average precision by its definition: every detection by score, matched once; 101 recall levels."""
    ranked = sorted(
        (
            (float(d.scores[i]), n, d.boxes[i])
            for n, d in enumerate(given)
            for i in range(len(d))
            if d.class_ids[i] == class_id
        ),
        key=lambda r: -r[0],
    )
    true = [[t.boxes[i] for i in range(len(t)) if t.class_ids[i] == class_id] for t in truth]
    total = sum(map(len, true))
    used: set[tuple[int, int]] = set()
    hits = []
    for _, n, box in ranked:
        free = [(overlap(box, b), k) for k, b in enumerate(true[n]) if (n, k) not in used]
        best, k = max(free, default=(0.0, -1))
        hits.append(best >= least)
        if hits[-1]:
            used.add((n, k))
    right = np.cumsum(hits)
    recall, precision = right / total, right / np.arange(1, len(hits) + 1)
    return float(np.mean([max(precision[recall >= level - 1e-12], default=0.0) for level in np.linspace(0, 1, 101)]))


def made(rng: np.random.Generator, images: int) -> tuple[list[Detections], list[Detections]]:
    truth, given = [], []
    for _ in range(images):
        rows, seen = [], []
        for _ in range(rng.integers(0, 6)):
            x, y, w, h = (*rng.uniform(0, 300, 2), *rng.uniform(20, 80, 2))
            kind = int(rng.integers(0, 2))
            rows.append((x, y, x + w, y + h, 0.9, kind))
            if rng.random() < 0.8:
                move = rng.normal(0, 4, 4)
                seen.append((x + move[0], y + move[1], x + w + move[2], y + h + move[3], rng.uniform(0.1, 1), kind))
        for _ in range(rng.integers(0, 3)):
            x, y = rng.uniform(0, 300, 2)
            seen.append((x, y, x + 40, y + 40, rng.uniform(0.05, 0.8), int(rng.integers(0, 2))))
        truth.append(found(*rows))
        given.append(found(*seen))
    return truth, given


def test_average_precision_by_its_definition() -> None:
    pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval")
    truth, given = made(np.random.default_rng(0), 30)
    result = average_precision(truth, given, NAMES)
    assert set(result) == {"person", "car"}  # a class without a true object has no precision
    for class_id, name in enumerate(("person", "car")):
        each = [plain_ap(truth, given, class_id, t) for t in np.arange(0.5, 0.96, 0.05)]
        assert result[name].ap50 == pytest.approx(each[0], abs=1e-6)
        assert result[name].ap75 == pytest.approx(each[5], abs=1e-6)
        assert result[name].ap == pytest.approx(np.mean(each), abs=1e-6)
        assert 0.2 < result[name].ap < 0.9


def test_the_truth_itself_is_perfect_and_nothing_is_zero() -> None:
    pytest.importorskip("faster_coco_eval", reason="needs faster-coco-eval")
    truth, _ = made(np.random.default_rng(1), 5)
    assert average_precision(truth, truth, NAMES)["car"] == Precision(1.0, 1.0, 1.0)
    nothing = [no_detections(NAMES)] * 5
    assert average_precision(truth, nothing, NAMES)["car"] == Precision(0.0, 0.0, 0.0)
    assert average_precision(nothing, truth, NAMES) == {}


def test_matches() -> None:
    truth = found((0, 0, 10, 10, 1, 0), (20, 0, 30, 10, 1, 1))
    assert matches(truth, truth) == 2
    assert matches(truth, found((0, 0, 10, 10, 0.9, 1))) == 0  # another class
    assert matches(truth, found((0, 0, 10, 10, 0.9, 0), (1, 0, 11, 10, 0.8, 0))) == 1  # one object, once
    assert matches(truth, found((8, 0, 18, 10, 0.9, 0))) == 0
    assert matches(no_detections(), truth) == matches(truth, no_detections()) == 0


# -- what is shown -----------------------------------------------------------------------------------------------------


def example(name: str, before: int, after: int, truth: int = 9) -> Example:
    picture: npt.NDArray[np.uint8] = np.full((48, 64, 3), 90, np.uint8)
    parts = {"blurry": picture, "net <1>": picture, "sharp": picture}
    seen = dict.fromkeys(parts, found((5, 5, 40, 40, 0.9, 1)))
    return Example("set", name, truth, {"blurry": before, "net <1>": after}, parts, seen)


def test_examples_are_the_largest_gains_and_the_worst() -> None:
    kept = Examples("net <1>", 3)
    for i, (before, after) in enumerate([(3, 4), (5, 1), (0, 7), (2, 4), (2, 5), (1, 1)]):
        kept.offer(example(str(i), before, after))
    assert [e.image for e in kept.shown] == ["2", "4", "1"]
    few = Examples("net <1>", 3)
    few.offer(example("a", 1, 2))
    few.offer(example("empty", 0, 0, truth=0))
    assert [e.image for e in few.shown] == ["a"]
    none = Examples("net <1>", 0)
    none.offer(example("a", 1, 2))
    assert none.shown == []


def evaluation() -> DetectionEvaluation:
    classes = [
        ClassResult("person", 12, {"blurry": Precision(0.25, 0.5, 0.2), "net <1>": Precision(0.5, 0.75, 0.4)}),
        ClassResult("c<a>r", 1, {"blurry": Precision(1.0, 1.0, 1.0), "net <1>": Precision(0.0, 0.0, 0.0)}),
    ]
    versions = {
        "blurry": VersionResult(0.625, 0.75, 0.6, 0.5, 9, 0.7),
        "net <1>": VersionResult(0.25, 0.375, 0.2, 0.75, 11, math.nan),
    }
    images = [ImageCount("a", 64, 48, 13, {"blurry": 6, "net <1>": 9})]
    one = DetectionSet("night & day", "/data", images, classes, versions)
    return DetectionEvaluation("1.0", "2030-01-01T00:00:00+00:00", "d.onnx", 0.5, {"limit": 3}, ["net <1>"], [one])


class Page(HTMLParser):
    """Elements with their attributes; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._stack: list[str] = []
        self.feed(text)
        self.close()
        assert self._stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in {"meta", "link", "img", "br"}:
            self._stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._stack.pop() == tag


def test_the_page_holds_every_number_and_nothing_from_elsewhere() -> None:
    text = detection_page(evaluation(), [example("i<1>", 3, 5)])
    page = Page(text)
    assert "http" not in text.replace("http-equiv", "")
    values = {(a["data-key"], a["data-value"]) for t, a in page.elements if t == "td" and "data-key" in a}
    assert {
        ("ap", "0.625"),
        ("ap", "0.25"),
        ("recall", "0.75"),
        ("found", "11"),
        ("mean_score", ""),
        ("ap50", "0.5"),
    } <= values
    images = [a for t, a in page.elements if t == "img"]
    assert [a["alt"] for a in images] == ["blurry with boxes", "net <1> with boxes", "sharp with boxes"]
    assert all(a["src"].startswith("data:image/") for a in images)
    assert "3 of 9 true ones" in text
    assert "62.5 → 25.0" in text
    assert "−37.5" in text


def test_bars_are_as_long_as_their_values() -> None:
    bars = [a for t, a in Page(class_bars(evaluation().sets[0], ["blurry", "net <1>"])).elements if t == "rect"]
    assert len(bars) == 6
    full = next(a for a in bars if a["data-ap"] == "1.0")
    for a in bars:
        assert float(a["width"]) == pytest.approx(max(1.0, float(full["width"]) * float(a["data-ap"])), abs=0.1)


def test_results_as_json_and_csv() -> None:
    e = evaluation()
    data = json.loads(e.as_json())
    assert data["sets"][0]["classes"][0]["precision"]["net <1>"]["ap50"] == 0.75
    assert data["sets"][0]["versions"]["net <1>"]["mean_score"] is None
    assert "truth" in data["definitions"]
    rows = list(csv.DictReader(io.StringIO(e.as_csv())))
    assert [(r["class"], r["truth"], r["version"], r["ap"]) for r in rows] == [
        ("", "13", "blurry", "0.625"),
        ("", "13", "net <1>", "0.25"),
        ("person", "12", "blurry", "0.25"),
        ("person", "12", "net <1>", "0.5"),
        ("c<a>r", "1", "blurry", "1.0"),
        ("c<a>r", "1", "net <1>", "0.0"),
    ]
