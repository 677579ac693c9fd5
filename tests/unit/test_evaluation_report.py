"""Results as JSON, CSV and HTML, the pictures that are kept, and the charts: on made-up numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.errors import DiskFull, OutputError
from streamdeblur.evaluation.charts import Point, bars, duration, nice_ticks, scatter
from streamdeblur.evaluation.gallery import CROP, CROPS, FLOOR, Gallery, region_gains, shrink
from streamdeblur.evaluation.published import TABLE_1
from streamdeblur.evaluation.report import MOST_ROWS, html_report
from streamdeblur.evaluation.results import Evaluation, ImageResult, ModelInfo, Score, SetResult, legible
from streamdeblur.evaluation.store import require_room, save

VOID = {"meta", "link", "img", "br"}


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
        if tag not in VOID:
            self._stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._stack.pop() == tag

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        wanted = {k.replace("_", "-"): v for k, v in wanted.items()}
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]


def score(psnr: float, gain: float, sharp: float | None = 40.0) -> Score:
    return Score(psnr, psnr - 0.01, 0.9, 0.89, gain, 0.02, sharp)


def evaluation(images: int = 3, name: str = "a<b>&\"c'") -> Evaluation:
    """Two models with awkward names; the first gains 1, 2, 3 ... dB, the second loses half a dB everywhere."""
    rows = [
        ImageResult(f"img{i}", 64, 48, 20.0, 0.5, {name: score(21.0 + i, 1.0 + i), "other": score(19.5, -0.5, None)})
        for i in range(images)
    ]
    infos = [
        ModelInfo(n, n, "python", "cpu", "fp32", "whole", count, cost, "64x48")
        for n, count, cost in ((name, 1234567, 12.5), ("other", None, None))
    ]
    sets = [SetResult("night & day", "/data/night", False, rows)]
    return Evaluation("1.0", "2030-01-01T00:00:00+00:00", {"device": "cpu", "cpu": "x"}, {}, "gaussian", infos, sets)


def picture(value: int, height: int = 48, width: int = 64) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def gallery_for(e: Evaluation) -> Gallery:
    gallery = Gallery(e.models[0].name)
    for i in e.sets[0].images:
        restored = {m.name: picture(120) for m in e.models}
        gallery.offer("night & day", i.name, i.scores[e.models[0].name].gain, picture(110), picture(121), restored)
    return gallery


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_summary_is_means_and_the_worst() -> None:
    s = evaluation().sets[0]
    first, other = (s.summary(m) for m in s.images[0].scores)
    assert (first.psnr, first.gain, first.psnr_8bit) == (22.0, 2.0, pytest.approx(21.99))
    assert (first.worst_image, first.worst_gain) == ("img0", 1.0)
    assert (first.sharp_psnr, first.sharp_psnr_lowest_image) == (40.0, "img0")
    assert (other.gain, other.sharp_psnr, other.sharp_psnr_lowest) == (-0.5, None, None)


def test_the_time_of_a_set_is_the_median_of_its_images() -> None:
    base = evaluation(5)
    for i, seconds in zip(base.sets[0].images, (9.0, 1.0, 3.0, 2.0, 100.0), strict=True):
        i.scores["other"] = replace(i.scores["other"], seconds=seconds)
    assert base.sets[0].summary("other").seconds == 3.0


def test_infinite_and_missing_numbers_are_words_in_json_and_empty_in_csv() -> None:
    e = evaluation(2)
    first = e.sets[0].images[0]
    first.scores["other"] = Score(math.inf, math.inf, 1.0, 1.0, math.nan, 0.1, math.inf)
    data = json.loads(e.as_json())
    row = data["sets"][0]["images"][0]["scores"]["other"]
    assert (row["psnr"], row["gain"], row["sharp_psnr"]) == ("inf", None, "inf")
    summary = data["sets"][0]["results"][1]
    assert summary["psnr"] == "inf"
    assert summary["gain"] == -0.5  # of the one image that had something to gain
    assert summary["worst_image"] == "img1"
    rows = list(csv.DictReader(io.StringIO(e.as_csv())))
    assert len(rows) == 4
    odd = next(r for r in rows if r["image"] == "img0" and r["model"] == "other")
    assert (odd["psnr"], odd["gain"]) == ("inf", "")
    for r in rows:
        image = next(i for i in e.sets[0].images if i.name == r["image"])
        assert float(r["ssim"]) == image.scores[r["model"]].ssim


def test_gain_and_input_say_of_how_many_pairs_they_are() -> None:
    e = evaluation(3)
    s = e.sets[0]
    assert (s.gain_pairs, s.note, json.loads(e.as_json())["sets"][0]["gain_pairs"]) == (3, "", 3)
    assert "whose blurry image differs" not in html_report(e, gallery_for(e)).partition("How it was measured")[0]
    row = s.images[2]
    scores = {k: replace(v, gain=math.nan) for k, v in row.scores.items()}
    s.images[2] = replace(row, input_psnr=math.inf, scores=scores)
    note = "gain and input PSNR are of the 2 of 3 pairs whose blurry image differs from the sharp one"
    assert s.note == note
    data = json.loads(e.as_json())
    assert (data["sets"][0]["gain_pairs"], data["sets"][0]["input"]["psnr"]) == (2, 20.0)
    assert data["sets"][0]["results"][0]["gain"] == 1.5
    assert "gain_pairs" in data["definitions"]
    page = html_report(e, gallery_for(e))
    Page(page)
    assert page.count(note[1:]) == 2  # in the first sentence and under the table
    assert 'data-key="input_psnr" data-value="20.0"' in page
    s.images[:] = [replace(i, input_psnr=math.inf) for i in s.images]
    assert s.input_psnr == math.inf
    assert s.note == "no pair has a blurry image that differs from the sharp one: there is nothing to gain"


def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9 \xc3\xa9")
    assert legible(odd) == r"caf\xe9 é"
    assert legible("é \ud800") == r"é \ud800"
    e = replace(evaluation(), options={"data": [odd]})
    assert json.loads(e.as_json())["options"] == {"data": [r"caf\xe9 é"]}
    save(tmp_path, {"results.csv": odd})
    assert (tmp_path / "results.csv").read_text(encoding="utf-8") == r"caf\udce9 é"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("of any kind"), KeyboardInterrupt()]
)
def test_whatever_goes_wrong_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    whole = Path.write_text

    def fail(path: Path, text: str, *arguments: Any, **more: Any) -> int:
        if path.name.startswith("report"):
            raise error
        return whole(path, text, *arguments, **more)

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(DiskFull if isinstance(error, OSError) else type(error)):
        save(tmp_path, {"results.json": "{}", "report.html": "page"})
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_equal_images_only_says_so() -> None:
    e = evaluation(1)
    row = e.sets[0].images[0]
    same = Score(math.inf, math.inf, 1.0, 1.0, math.nan, 0.1, math.inf)
    e.sets[0].images[0] = replace(row, input_psnr=math.inf, scores=dict.fromkeys(row.scores, same))
    text = html_report(e, gallery_for(e))
    Page(text)
    assert "No finite PSNR to draw" in text
    assert "nan" not in text.split("<style>")[0] + text.split("</style>")[1].split("<script>")[0].replace("nane", "")


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_holds_the_numbers_of_the_json() -> None:
    e = evaluation()
    page = Page(html_report(e, gallery_for(e)))
    values: dict[str, list[str]] = {}
    for tag, a in page.elements:
        if tag in ("td", "small") and "data-key" in a:
            values.setdefault(a["data-key"], []).append(a["data-value"])
    results = json.loads(e.as_json())["sets"][0]
    for number, r in enumerate(results["results"]):
        for key in ("psnr", "psnr_8bit", "ssim", "ssim_8bit", "gain", "seconds", "worst_gain"):
            assert float(values[key][number]) == r[key], key
    assert values["parameters"] == ["1234567", ""]
    assert values["gflop"] == ["12.5", ""]
    assert values["sharp_psnr"] == ["40.0", ""]
    for n, image in enumerate(results["images"]):  # after the two rows of the summary
        assert [float(v) for v in values["psnr"][2 + 2 * n : 4 + 2 * n]] == [
            s["psnr"] for s in image["scores"].values()
        ]
    bar = page.all("rect", data_image="img2", data_model=e.models[0].name)
    assert [float(b["data-gain"]) for b in bar] == [3.0]
    points = page.all("circle")
    assert [(float(p["data-psnr"]), float(p["data-seconds"])) for p in points] == [(22.0, 0.02), (19.5, 0.02)]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    e = evaluation()
    text = html_report(e, gallery_for(e), published=True)
    page = Page(text)
    assert "http" not in text
    assert "//" not in "".join(a.get("href", "") for _, a in page.elements)
    assert "@import" not in text
    assert "url(" not in text
    for tag, a in page.elements:
        assert tag not in ("iframe", "object", "embed")
        if tag in ("img", "script"):
            assert a.get("src", "data:").startswith("data:")
        if tag == "link":
            assert a["href"] == "data:,"


def test_names_of_files_and_models_are_escaped() -> None:
    e = evaluation(name="<script>alert(1)</script>")
    page = Page(html_report(e, gallery_for(e)))
    assert len(page.all("script")) == 1


def test_the_slider_can_be_reached_by_keyboard_and_names_its_value() -> None:
    e = evaluation()
    page = Page(html_report(e, gallery_for(e)))
    sliders = page.all("div", role="slider")
    assert len(sliders) == 2  # largest and smallest gain
    for s in sliders:
        assert s["tabindex"] == "0"
        assert {"aria-label", "aria-valuemin", "aria-valuemax", "aria-valuenow"} <= set(s)
    parts = [a["data-part"] for t, a in page.elements if t == "img" and "data-part" in a]
    assert parts == ["blurry", e.models[0].name, "other", "sharp"] * 2


def test_published_numbers_are_drawn_only_on_request_and_with_their_caption() -> None:
    e = evaluation()
    without, drawn = html_report(e, gallery_for(e)), html_report(e, gallery_for(e), published=True)
    assert not Page(without).all("circle", **{"class": "published"})
    assert len(Page(drawn).all("circle", **{"class": "published"})) == len(TABLE_1) == 12
    assert "as printed in Table 1" in drawn
    assert "as printed" not in without


def test_a_large_set_makes_a_page_of_bounded_size() -> None:
    small, large = (len(html_report(e, gallery_for(e))) for e in (evaluation(MOST_ROWS), evaluation(20 * MOST_ROWS)))
    assert large - small < 40 * 19 * MOST_ROWS  # two numbers an image and model, in the line of gains


# -- charts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.03, 0.02), (24.1, 24.1), (19.9, 33), (-7, 0), (0, 0)])
def test_ticks_enclose_and_are_even(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 12
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])


def test_points_lie_where_the_axes_say() -> None:
    page = Page(scatter([Point("a", 0.01, 20, 0), Point("b", 0.1, 30, 1), Point("c", 1.0, 25, 2)], 22.0))
    x, y = ([float(p[k]) for p in page.all("circle")] for k in ("cx", "cy"))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)  # a decade each
    assert y[0] - y[1] == pytest.approx(2 * (y[0] - y[2]), abs=0.2)
    assert x[0] < x[1]
    assert y[0] > y[1]


def test_bars_start_at_zero_and_are_as_long_as_the_gain() -> None:
    page = Page(bars(["p", "q"], [[1.0, -0.5], [0.5, math.nan]], [0, 1], ["m", "n"], "t"))
    zero = float(page.all("line", **{"class": "zero"})[0]["x1"])
    by_gain = {float(r["data-gain"]): (float(r["x"]), float(r["width"])) for r in page.all("rect")}
    assert set(by_gain) == {1.0, 0.5, -0.5}
    assert by_gain[1.0][0] == pytest.approx(zero, abs=0.1)
    assert by_gain[1.0][1] == pytest.approx(2 * by_gain[0.5][1], abs=0.2)
    assert sum(by_gain[-0.5]) == pytest.approx(zero, abs=0.2)


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.345, "12.3 s"), (1.0, "1 s"), (0.0344, "34.4 ms"), (0.0004, "0.4 ms"), (2e-5, "20 µs")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_region_gains_are_those_of_each_region() -> None:
    rng = np.random.default_rng(0)
    blurry, restored, sharp = (rng.integers(0, 256, (30, 41, 3), dtype=np.uint8) for _ in range(3))
    gains = region_gains(blurry, restored, sharp, 8)
    assert gains.shape == (23, 34)

    def error(p: npt.NDArray[np.uint8], y: int, x: int) -> float:
        d = p[y : y + 8, x : x + 8].astype(np.float64) - sharp[y : y + 8, x : x + 8]
        return float(np.mean(d**2)) / 255**2

    for y, x in ((0, 0), (22, 33), (11, 5)):
        expected = 10 * math.log10((error(blurry, y, x) + FLOOR) / (error(restored, y, x) + FLOOR))
        assert gains[y, x] == pytest.approx(expected, abs=1e-3)


def test_the_gallery_keeps_the_extremes_and_no_more() -> None:
    gallery = Gallery("m")
    sharp, blurry = picture(100, 200, 300), picture(120, 200, 300)
    for i in range(12):
        restored = blurry.copy()
        restored[10:60, 200:250] = 120 - i  # better by i there ...
        restored[120:180, 20:80] = 120 + 2 * i  # ... and worse by more here
        gallery.offer("s", f"img{i}", float(i), blurry, sharp, {"m": restored, "n": blurry})
    assert [c.image for c in gallery.gains] == ["img11", "img10", "img9"]
    assert [c.image for c in gallery.losses] == ["img11", "img10", "img9"]
    assert len(gallery.gains) == CROPS
    for c, (y, x) in ((gallery.gains[0], (35, 225)), (gallery.losses[0], (150, 50))):
        assert c.size == CROP
        assert c.x <= x < c.x + c.size
        assert c.y <= y < c.y + c.size
        assert list(c.parts) == ["blurry", "m", "n", "sharp"]
        assert np.array_equal(c.parts["sharp"], sharp[c.y : c.y + CROP, c.x : c.x + CROP])
    assert [w.image for w in gallery.wholes] == ["img11", "img0"]


def test_a_gallery_where_nothing_changed_has_no_crops_and_one_slider() -> None:
    gallery = Gallery("m")
    gallery.offer("s", "a", 0.0, picture(5), picture(9), {"m": picture(5)})
    assert gallery.gains == gallery.losses == []
    assert [w.image for w in gallery.wholes] == ["a"]


def test_shrinking_keeps_the_proportions() -> None:
    assert shrink(picture(7, 400, 1000), 320).shape == (128, 320, 3)
    assert shrink(picture(7, 40, 100), 320).shape == (40, 100, 3)


# -- files -------------------------------------------------------------------------------------------------------------


def test_results_are_not_replaced_unasked(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    require_room(folder, overwrite=False)
    save(folder, {"results.json": "{}", "report.html": "page"})
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "results.json"]
    with pytest.raises(OutputError, match=r"results.json exists; --overwrite"):
        require_room(folder, overwrite=False)
    require_room(folder, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        require_room(folder / "report.html", overwrite=True)


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match="can't be written"):
        save(tmp_path, {"results.json": "{}", "report.html": "page"})
    assert not list(tmp_path.glob("*.partial"))
