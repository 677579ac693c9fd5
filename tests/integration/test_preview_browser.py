"""The preview page in a real Chromium: pictures in step, the divider by mouse, touch and keys, states, a phone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from streamdeblur.detect.detector import Detections
from streamdeblur.detect.schema import Look
from streamdeblur.frames import Frame
from streamdeblur.jobs.live.preview import Preview, PreviewOptions
from tests.browser import Browser, Page, chromium
from tests.clips import read_number
from tests.preview import STEPS, Facts, StandIn, job_status, pair, source_status

pytestmark = pytest.mark.integration

TOKEN = "a-token-of-ours"
ODD = "<img src=x onerror=alert(1)>"

#: Reads the frame numbers that both canvases of a source show: luma of the middle of each block, as in tests/clips.
NUMBERS = """
(source => {
  const numbers = [...document.querySelector(`[data-source="${source}"]`).querySelectorAll('canvas')].map(canvas => {
    const copy = new OffscreenCanvas(320, 192).getContext('2d', {willReadFrequently: true});
    copy.drawImage(canvas, 0, 0);
    const data = copy.getImageData(0, 0, 320, 192).data;
    const level = i => { const p = 4 * (8 * 320 + i * 16 + 8); return data[p] + data[p + 1] + data[p + 2]; };
    const white = level(0), black = level(1);
    let number = 0;
    for (let i = 2; i < 16; i++) number = number * 2 + (level(i) > (white + black) / 2 ? 1 : 0);
    return number;
  });
  return [...numbers, Number(document.querySelector(`[data-source="${source}"] .view`).dataset.index)];
})
"""
SHIFTS = """
new PerformanceObserver(list => list.getEntries().forEach(e => { window.shifted = (window.shifted || 0) + e.value; }))
  .observe({type: 'layout-shift', buffered: true}), 0
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(chromium()) as made:
        yield made


class Job:
    """A status whose numbers move and whose states can be set."""

    def __init__(self) -> None:
        self.changes: dict[str, dict[str, Any]] = {}
        self.calls = 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        rows = [
            source_status(name, restored=1000 + self.calls, **self.changes.get(name, {}))
            for name in ("gate", "yard", ODD)
        ]
        return job_status(*rows, seconds=float(self.calls))


def look(source: str, index: int) -> Look | None:
    if source != "gate":
        return None
    boxes = np.array([[32, 48, 160, 96]], np.float32)
    car = Detections(boxes, np.array([0.91], np.float32), np.array([0]), ("car",))
    return Look(
        source=source, time=datetime.now(UTC), index=index, pts=0, time_base=Fraction(1, 25), width=320, height=192,
        restored=True, blur=0.5, latency=0.1, detector=0.02, objects=car, tracks=(7,), unrestored=car.pick([]),
    )  # fmt: skip


@pytest.fixture
def job() -> Job:
    return Job()


@pytest.fixture
def preview(job: Job) -> Iterator[Preview]:
    shown: list[int] = [0]

    def looks(source: str) -> Look | None:
        return look(source, shown[-1])

    with Preview(job, PreviewOptions(preview=":0"), looks=looks) as made:

        def show(source: str, before: Frame, after: Frame, facts: Facts) -> None:
            shown[-1] = before.index
            made.show(source, before, after, facts)

        with StandIn(show, ("gate", "yard", ODD)):
            yield made


BEHIND = "[data-value=behind]"


def opened(browser: Browser, preview: Preview, **options: Any) -> Page:
    page = browser.page(**options)
    page.goto(preview.url)
    page.wait(
        "document.querySelectorAll('.card.seen').length === 3 || innerWidth < 600 && !!document.querySelector('.seen')"
    )
    return page


def of(source: str, what: str) -> str:
    return f"""document.querySelector('[data-source={json.dumps(source)}]').querySelector({json.dumps(what)})"""


def middle(page: Page, element: str) -> tuple[float, float]:
    x, y = page.js(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({element}.getBoundingClientRect())")
    return float(x), float(y)


def at(page: Page, source: str = "gate") -> int:
    return int(page.js(f"{of(source, '.divider')}.getAttribute('aria-valuenow')"))


def test_the_page_shows_live_pictures_in_step_and_numbers_move(browser: Browser, preview: Preview) -> None:
    page = browser.page((1400, 900))
    page.call("Page.addScriptToEvaluateOnNewDocument", source=SHIFTS)
    page.goto(preview.url)
    page.wait("document.querySelectorAll('.card.seen').length === 3")
    seen = set()
    while len(seen) < 4:
        before, after, index = page.js(f"{NUMBERS}('gate')")
        assert before == after == index  # left and right of the divider: always one frame
        seen.add(index)
    text = page.js(f"{of('gate', '[data-value=restored]')}.textContent")
    page.wait(f"{of('gate', '[data-value=restored]')}.textContent !== {json.dumps(text)}")
    assert page.js(f"{of('gate', '[data-value=p95]')}.textContent") == "180 ms"
    assert page.js(f"{of('gate', '[data-value=reused]')}.textContent") == "42 %"
    assert page.js("document.querySelector('[data-job=live]').textContent") == "3 of 3"
    assert page.js("document.getElementById('link').textContent") == "connected"
    # a name is a text, whatever is in it
    assert page.js("[...document.querySelectorAll('h2')].map(h => h.textContent)") == ["gate", "yard", ODD]
    assert page.js("document.querySelectorAll('img').length") == 0
    # boxes of the detector: on the restored side, and none where it found none before
    page.wait(f"{of('gate', '.after .mark span')}?.textContent === '#7 car 0.91'")
    assert page.js(f"{of('gate', '.before .marks')}.childElementCount") == 0
    assert page.js("window.shifted || 0") == 0  # nothing jumped while all of this came in
    assert page.errors == []
    assert all(u.startswith((preview.url, preview.url.replace("http", "ws", 1), "blob:", "about:")) for u in page.urls)


def test_the_divider_goes_where_mouse_and_keys_take_it(browser: Browser, preview: Preview) -> None:
    page = opened(browser, preview, size=(1400, 900))
    x, y = middle(page, of("gate", ".divider"))
    left, width = page.js(f"(r => [r.x, r.width])({of('gate', '.view')}.getBoundingClientRect())")
    page.mouse(("Pressed", x, y), ("Moved", x - 20, y), ("Moved", left + 0.25 * width, y))
    assert at(page) == 25
    page.mouse(("Moved", left - 50, y), ("Released", left - 50, y))
    assert at(page) == 0
    assert page.js(f"document.activeElement === {of('gate', '.divider')}")
    for key, code, value in (("ArrowRight", 39, 2), ("PageUp", 33, 12), ("End", 35, 100), ("Home", 36, 0)):
        page.key(key, code)
        assert at(page) == value, key
    assert at(page, "yard") == 50  # each source has its own
    # the clip of the upper picture follows
    page.key("End", 35)
    assert page.js(f"getComputedStyle({of('gate', '.view')}).getPropertyValue('--at')") == "100%"
    assert "100 % before" in page.js(f"{of('gate', '.divider')}.getAttribute('aria-valuetext')")
    assert page.errors == []


def test_a_click_enlarges_one_source_and_escape_brings_it_back(browser: Browser, preview: Preview) -> None:
    page = opened(browser, preview, size=(1400, 900))
    x, y = middle(page, of("yard", ".stage"))
    before = page.js(f"{of('yard', '.stage')}.getBoundingClientRect().width")
    page.mouse(("Pressed", x + 100, y), ("Released", x + 100, y))
    assert page.js("document.querySelectorAll('.card.big').length") == 1
    assert page.js(f"{of('yard', '.stage')}.getBoundingClientRect().width") > 2 * before
    assert page.js(f"{of('yard', '.grow')}.getAttribute('aria-pressed')") == "true"
    page.wait(f"{of('yard', '.view')}.getBoundingClientRect().top >= 0")
    # enlarged, a click moves the divider
    left, top, width = page.js(f"(r => [r.x, r.y, r.width])({of('yard', '.view')}.getBoundingClientRect())")
    page.mouse(("Pressed", left + 0.75 * width, top + 90), ("Released", left + 0.75 * width, top + 90))
    assert at(page, "yard") == 75
    page.key("Escape", 27)
    assert page.js("document.querySelectorAll('.card.big').length") == 0
    page.js(f"{of('gate', '.grow')}.click()")
    assert page.js("document.querySelector('.card.big').dataset.source") == "gate"
    assert page.errors == []


def test_states_are_told_in_words(browser: Browser, preview: Preview, job: Job) -> None:
    page = opened(browser, preview, size=(1400, 900))
    for state, changes, word, title in (
        (
            "waiting",
            {"error": "refused by rtsp://u:hidden@192.0.2.1/"},
            "lost",
            "Connection to the source lost, trying again",
        ),
        ("connecting", {}, "connecting", "Connecting"),
        ("gave up", {"error": "nothing for 60 s"}, "given up", "This source was given up"),
        ("ended", {}, "ended", "This source has ended"),
    ):
        job.changes["gate"] = {"state": state, **changes}
        page.wait(f"{of('gate', '.state span')}.textContent === {json.dumps(word)}")
        assert page.js(f"getComputedStyle({of('gate', '.veil')}).visibility") == "visible"
        assert page.js(f"{of('gate', '.veil strong')}.textContent") == title
        assert "hidden" not in page.js("document.body.textContent")
    job.changes["gate"] = {"state": "live", "step": "bypass", "step_index": len(STEPS) - 1}
    page.wait(f"{of('gate', '.state span')}.textContent === 'live, bypass'")
    assert page.js(f"getComputedStyle({of('gate', '.veil')}).visibility") == "hidden"
    assert page.js(f"{of('gate', '.rungs')}.querySelectorAll('.on').length") == 1
    job.changes["gate"] = {}
    page.wait(f"{of('gate', '.state span')}.textContent === 'live'")
    assert page.errors == []


def test_deadlines_and_what_encoding_had_no_time_for_are_shown(browser: Browser, preview: Preview, job: Job) -> None:
    page = opened(browser, preview, size=(1400, 900))
    assert page.js("document.querySelector('[data-job=deadline]').textContent") == "500 ms"
    assert "alarm" not in page.js(f"{of('gate', '[data-value=p95]')}.className")
    job.changes["gate"] = {"latency_ms": 150.0, "behind": 0}
    job.changes["yard"] = {"latency_ms": 900.0, "latency_p95_ms": 620.0, "behind": 1234}
    page.wait(f"{of('gate', '[data-value=deadline]')}.textContent === '150 ms'")
    page.wait(f"{of('yard', '[data-value=deadline]')}.textContent === '900 ms'")
    assert page.js("document.querySelector('[data-job=deadline]').textContent") == "150–900 ms"
    assert "alarm" in page.js(f"{of('gate', '[data-value=p95]')}.className")
    assert "alarm" not in page.js(f"{of('yard', '[data-value=p95]')}.className")
    behind = page.js(f"['gate', 'yard'].map(s => document.querySelector(`[data-source=${{s}}] {BEHIND}`).textContent)")
    assert behind == ["0", "1\u202f234 dropped"]
    job.changes.clear()
    assert page.errors == []


def test_what_ails_a_detector_is_told(browser: Browser, preview: Preview, job: Job) -> None:
    page = opened(browser, preview, size=(1400, 900))
    row = of("gate", "[data-value=detector]")
    told = {"looked": 400, "dropped": 1310, "errors": 2, "error": "RuntimeError: out of memory", "stuck": False}
    job.changes["gate"] = {"detection": told}
    page.wait(f"{row}.textContent === '400 frames, 1\u202f310 not looked at, 2 failed'")
    assert page.js(f"{row}.title") == "RuntimeError: out of memory"
    job.changes["gate"] = {"detection": {**told, "stuck": True, "error": "no answer for 7 s"}}
    page.wait(f"{row}.textContent === 'no answer for 7 s'")
    assert "alarm" in page.js(f"{row}.className")
    assert page.js(f"{of('yard', '[data-value=detector]')}.offsetHeight") == 0  # it has none
    job.changes.clear()
    assert page.errors == []


def test_the_page_comes_back_with_the_server(browser: Browser, job: Job) -> None:
    first = Preview(job, PreviewOptions(preview=":0")).start()
    try:
        first.show("gate", *pair(5), Facts(5))
        page = browser.page((1000, 800))
        page.goto(first.url)
        page.wait(f"!!document.querySelector('.card') && {of('gate', '.view')}.dataset.index === '5'")
    finally:
        first.close()
    page.wait("document.getElementById('link').dataset.tone === 'bad'")
    port = first.url.rstrip("/").rsplit(":", 1)[1]
    with Preview(job, PreviewOptions(preview=f":{port}")) as second:
        second.show("gate", *pair(6), Facts(6))
        page.wait(f"{of('gate', '.view')}.dataset.index === '6'")
        assert page.js("document.getElementById('link').textContent") == "connected"


def test_snapshots_of_one_frame_are_saved(browser: Browser, preview: Preview, tmp_path: Path) -> None:
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page = opened(browser, preview, size=(1400, 900))
    page.js(f"{of('gate', '.snap')}.click()")
    end = time.monotonic() + 60
    while len(files := sorted(tmp_path.glob("*.png"))) < 2:
        assert time.monotonic() < end, [f.name for f in tmp_path.iterdir()]
        time.sleep(0.05)
    after, before = files
    assert (before.name, after.name) == (before.name, before.name.replace("before", "after"))
    index = int(before.name.split("-")[1])
    for file in files:
        assert read_number(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)) == index
    page.wait(f"!{of('gate', '.snap')}.disabled")
    assert page.errors == []


def test_a_phone_gets_one_column_fingers_and_big_targets(browser: Browser, preview: Preview) -> None:
    page = opened(browser, preview, size=(390, 844), phone=True, dark=False)
    assert page.js("document.documentElement.scrollWidth") == 390  # nothing sticks out
    assert (
        page.js("new Set([...document.querySelectorAll('.card')].map(c => c.getBoundingClientRect().left)).size") == 1
    )
    small = page.js(
        "[...document.querySelectorAll('button, a, .divider')].filter(e => e.offsetWidth < 44 || e.offsetHeight < 44)"
        ".map(e => e.className || e.textContent)"
    )
    assert small == []
    assert page.js(
        "[...document.querySelectorAll('button, [role=slider]')]"
        ".every(e => e.getAttribute('aria-label') || e.textContent)"
    )
    x, y = middle(page, of("gate", ".grip"))
    page.touch((x, y), (x - 30, y), (x - 90, y))
    assert at(page) in range(20, 35)
    # what is out of sight is not asked for
    assert page.js(f"{of(ODD, '.view')}.dataset.index === undefined")
    assert set(preview._hub._watchers) < {"gate", "yard", ODD}
    page.js("scrollTo(0, document.body.scrollHeight)")
    page.wait(f"{of(ODD, '.view')}.dataset.index !== undefined")
    page.js("scrollTo(0, 0)")
    assert page.errors == []


def test_a_token_is_asked_for_and_kept(browser: Browser, job: Job) -> None:
    options = PreviewOptions(preview=":0", preview_token=TOKEN)  # type: ignore[arg-type]
    with Preview(job, options) as preview:
        preview.show("gate", *pair(5), Facts(5))
        page = browser.page((1000, 800))
        page.goto(preview.url)
        page.wait("!!document.querySelector('input[type=password]')")
        page.js("document.querySelector('input').value = 'wrong-token', document.querySelector('form').submit()")
        page.wait("(document.querySelector('[role=alert]')?.textContent ?? '') !== ''")
        page.js(f"document.querySelector('input').value = {json.dumps(TOKEN)}, document.querySelector('form').submit()")
        page.wait("!!document.querySelector('.card.seen')")
        # a refused page is an error to the console, and no other is there
        assert all("401" in e for e in page.errors), page.errors
        other = browser.page((1000, 800))
        other.goto(f"{preview.url}?token={TOKEN}")
        other.wait("!!document.querySelector('.card.seen')")
        assert TOKEN not in other.js("location.href")
        assert TOKEN not in other.js("document.cookie")
        assert other.errors == []
