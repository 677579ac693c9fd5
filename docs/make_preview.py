"""Draws docs/preview.png and docs/preview_phone.png: the page, on streets that we render, in a real Chromium.

Run from the repository's root: python docs/make_preview.py [DETECTOR.onnx]. Needs chromium. One street is restored by
the weights that ship and looked at by the detector, both beforehand, and replayed, so that the pictures do not depend
on how fast a machine is; latency and load are examples. The other passes through, and a third source is away.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from streamdeblur.detect import load_detector
from streamdeblur.detect.schema import Look
from streamdeblur.frames import ColorSpec, Frame, FrameSpec
from streamdeblur.jobs.live.preview import Preview, PreviewOptions
from streamdeblur.jobs.process import process_video
from streamdeblur.jobs.scene import Scene
from streamdeblur.video.simple import read_rgb, write_clip

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.browser import Browser, Page, chromium

HERE = Path(__file__).parent
MODEL = "mimo-unet-small"
STEPS = (MODEL, "half scale", "bypass")
RATE, FRAMES, SIZE, SHUTTER = Fraction(12), 24, (640, 360), 1 / 22
TIME_BASE = 1 / RATE
#: The frame in the pictures, where van, walker and signs are in view, and seconds until then: for the latency curve.
SHOWN, SETTLE = 8, 30.0


@dataclass(frozen=True)
class Facts:
    index: int
    status: str
    step: str
    reason: str | None = None
    wall: float = 0.0
    latency: float = 0.1


@dataclass(frozen=True)
class Street:
    """What is replayed: frames before and after, findings on both, and an example of a latency in seconds."""

    name: str
    before: list[Frame]
    after: list[Frame]
    looks: list[Look]
    seconds: float


def make(folder: Path, name: str, seed: int, detect: Callable[[Any], Any] | None, *, restore: bool) -> Street:
    blurry, clean = folder / f"{name}.mp4", folder / f"{name}_restored.mp4"
    shots = Scene(SIZE, seed).frames(FRAMES, RATE, samples=11, shutter_angle=float(360 * SHUTTER * RATE))
    write_clip(blurry, (s.blurry for s in shots), RATE, options={"crf": "12", "preset": "veryfast"})
    before = list(read_rgb(blurry))
    after = before
    if restore:
        process_video(blurry, clean, model=MODEL, crf=12)
        after = list(read_rgb(clean))
    looks = [look(name, i, detect(a), detect(b)) for i, (b, a) in enumerate(zip(before, after, strict=True)) if detect]
    first = [frame(p, i) for i, p in enumerate(before)]
    second = [frame(p, i) for i, p in enumerate(after)] if restore else first
    return Street(name, first, second, looks if restore else [], 0.12 if restore else 0.03)


def frame(rgb: Any, index: int) -> Frame:
    planes = tuple(np.ascontiguousarray(rgb[..., c]) for c in range(3))
    return Frame(index, index, TIME_BASE, planes, FrameSpec(*SIZE, ColorSpec("rgb", full_range=True)))


def look(name: str, index: int, found: Any, unrestored: Any) -> Look:
    return Look(
        source=name, time=datetime.now(UTC), index=index, pts=index, time_base=TIME_BASE, width=SIZE[0], height=SIZE[1],
        restored=True, blur=None, latency=0.1, detector=0.02, objects=found.at_least(0.45), tracks=(None,) * 99,
        unrestored=unrestored.at_least(0.45),
    )  # fmt: skip


class Replay:
    """Shows the streets at their rate, over and over, until it is held at a frame."""

    def __init__(self, streets: list[Street]) -> None:
        self.streets = {s.name: s for s in streets}
        self.index = self.count = 0
        self.started = time.monotonic()
        self.hold = threading.Event()
        self.end = threading.Event()

    def run(self, show: Callable[..., None]) -> None:
        while not self.end.wait(float(TIME_BASE)):
            if not (self.hold.is_set() and self.index == SHOWN):
                self.index = (self.index + 1) % FRAMES
            self.count += 1
            for s in self.streets.values():
                same = s.after is s.before
                facts = Facts(self.index, *(("bypassed", "bypass") if same else ("restored", MODEL)))
                show(s.name, s.before[self.index], s.after[self.index], facts)

    def looks(self, name: str) -> Look | None:
        street = self.streets.get(name)
        return street.looks[self.index] if street is not None and street.looks else None

    def status(self) -> dict[str, Any]:
        seconds = time.monotonic() - self.started
        rate = round(self.count / seconds, 1)
        wave = 1 + 0.06 * np.sin(seconds * 1.7) + 0.04 * np.sin(seconds * 0.6)
        rows = [self.row(s, rate, float(wave)) for s in self.streets.values()]
        away = {
            "name": "depot", "url": "rtsp://***@192.0.2.9/depot", "state": "waiting", "error": "connection refused",
            "fps_in": 0.0, "fps_out": 0.0, "step": STEPS[-1], "step_index": 2, "reconnects": 9, "frames": 0,
            "outputs": (),
            **dict.fromkeys(("restored", "bypassed", "dropped", "failed", "late", "behind", "waiting"), 0),
        }  # fmt: skip
        return {
            "seconds": seconds, "device": "cpu", "model": MODEL, "steps": STEPS,
            "latency_ms": 500.0, "sources": [*rows, away],
            "load": 0.41, "memory_mb": 690.0,
        }  # fmt: skip

    def row(self, s: Street, rate: float, wave: float) -> dict[str, Any]:
        same = s.after is s.before
        latency = s.seconds * 1000 * wave
        return {
            "name": s.name, "url": f"rtsp://***@192.0.2.7/{s.name}", "state": "live", "codec": "h264",
            "width": SIZE[0], "height": SIZE[1], "fps_in": rate, "fps_out": rate, "latency_p50_ms": latency * 0.92,
            "latency_p95_ms": latency, "frames": self.count, "restored": 0 if same else self.count,
            "bypassed": self.count if same else 0, "dropped": 0,
            "failed": 0, "late": 0, "behind": 0, "waiting": 0,
            "step": STEPS[-1 if same else 0], "step_index": 2 if same else 0,
            "reused": None if same else 0.0, "reconnects": 0,
            "outputs": ({"target": f"hls:/srv/{s.name}", "state": "live"},),
            "detection": None if same or not s.looks else {"looked": self.count, "gain": None},
        }  # fmt: skip


def pictures(address: str, replay: Replay) -> None:
    with Browser(chromium()) as browser:
        wide = browser.page((1440, 780))
        wide.goto(address)
        wide.wait("document.querySelectorAll('.card.seen').length >= 2", 120)
        time.sleep(SETTLE)
        put_divider(wide, "market", 46)
        replay.hold.set()
        take(wide, "preview.png")
        phone = browser.page((390, 844), phone=True, dark=False, scale=2)
        phone.goto(address)
        phone.wait("!!document.querySelector('.card.seen')", 120)
        replay.hold.clear()
        time.sleep(SETTLE)
        put_divider(phone, "market", 46)
        replay.hold.set()
        take(phone, "preview_phone.png")
        if wide.errors or phone.errors:
            raise SystemExit("\n".join(wide.errors + phone.errors))


def take(page: Page, name: str) -> None:
    view = "document.querySelector('[data-source=market] .view')"
    page.wait(f"{view}.dataset.index === '{SHOWN}' && !{view}.classList.contains('old')", 120)
    page.screenshot(HERE / name)


def put_divider(page: Page, name: str, percent: float) -> None:
    part = f"document.querySelector('[data-source={name}] %s').getBoundingClientRect()"
    x, y, width, height = page.js(f"(r => [r.x, r.y, r.width, r.height])({part % '.view'})")
    grip = page.js(f"(r => r.x + r.width / 2)({part % '.grip'})")
    middle, goal = y + height / 2, x + width * percent / 100
    page.mouse(
        ("Pressed", grip, middle), ("Moved", goal - 9, middle), ("Moved", goal, middle), ("Released", goal, middle)
    )
    page.js("document.activeElement.blur()")


def main() -> None:
    detect = load_detector(sys.argv[1], threads=1) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        market = make(folder, "market", 0, detect, restore=True)
        replay = Replay([market, make(folder, "harbour", 2, None, restore=False)])
    with Preview(replay.status, PreviewOptions(preview=":0"), looks=replay.looks) as preview:
        thread = threading.Thread(target=replay.run, args=(preview.show,))
        thread.start()
        try:
            pictures(preview.url, replay)
        finally:
            replay.end.set()
            thread.join()


if __name__ == "__main__":
    main()
