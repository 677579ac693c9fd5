"""Frames as pictures, and the hub that makes them: once for all, only for those who look, never in the job's way."""

from __future__ import annotations

import json
import queue
import struct
import threading
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pytest

from streamdeblur.color import planes_to_rgb
from streamdeblur.detect.detector import Detections
from streamdeblur.detect.schema import Look
from streamdeblur.frames import ColorSpec, Frame, FrameSpec
from streamdeblur.jobs.live.preview.hub import Hub, Picture
from streamdeblur.jobs.live.preview.pictures import png, small_bgr, small_size
from tests.clips import read_number
from tests.preview import Facts, pair

WAIT = 60.0


def random_frame(color: ColorSpec, size: tuple[int, int] = (32, 20)) -> Frame:
    rng = np.random.default_rng(3)
    dtype = np.uint8 if color.depth == 8 else np.uint16
    planes = tuple(
        rng.integers(0, color.max_code + 1, shape, dtype=dtype) for shape in color.plane_shapes(size[0], size[1])
    )
    return Frame(0, 0, Fraction(1, 25), planes, FrameSpec(size[0], size[1], color))


@pytest.mark.parametrize(
    "color",
    [
        *(ColorSpec("yuv", m, full) for m in ("bt601", "bt709", "bt2020") for full in (False, True)),
        ColorSpec("yuv", "bt709", depth=10),
        ColorSpec("yuv", "bt2020", depth=16),
        ColorSpec("rgb", full_range=True),
        ColorSpec("rgb", depth=12, alpha=True),
        ColorSpec("gray"),
        ColorSpec("gray", full_range=True, depth=10),
    ],
)
def test_colours_are_those_of_the_colour_room(color: ColorSpec) -> None:
    frame = random_frame(color)
    expected = planes_to_rgb(frame.planes, color)[0].clamp(0, 1).mul(255).numpy().transpose(1, 2, 0)[..., ::-1]
    assert np.abs(small_bgr(frame, 32) - expected).max() < 1  # one rounding, OpenCV's of a fixed-point sum


@pytest.mark.parametrize(
    "color", [ColorSpec("yuv", chroma_shift=(1, 1)), ColorSpec("yuv", chroma_shift=(1, 0), depth=10)]
)
def test_a_smaller_picture_keeps_the_colour_of_an_even_area(color: ColorSpec) -> None:
    codes = [np.full(s, v << (color.depth - 8), np.uint8 if color.depth == 8 else np.uint16)
             for s, v in zip(color.plane_shapes(101, 51), (120, 90, 200), strict=True)]  # fmt: skip
    frame = Frame(0, 0, Fraction(1, 25), tuple(codes), FrameSpec(101, 51, color))
    small = small_bgr(frame, 40)
    assert small.shape == (20, 40, 3)
    flat = ColorSpec("yuv", depth=color.depth)
    expected = planes_to_rgb([p[:1, :1] for p in codes], flat)[0].mul(255).numpy().reshape(3)[::-1]
    assert np.abs(small.astype(int) - np.rint(expected)).max() <= 1


def test_sizes_shrink_in_shape_and_never_grow() -> None:
    assert small_size(1920, 1080, 960) == (960, 540)
    assert small_size(640, 352, 960) == (640, 352)
    assert small_size(4000, 1, 100) == (100, 1)


def test_planes_that_are_views_and_read_only_are_taken() -> None:
    wide = np.zeros((20, 64), np.uint8)
    wide[:, ::2] = 200
    plane = wide[:, ::2]
    plane.flags.writeable = False
    frame = Frame(0, 0, Fraction(1, 25), (plane,), FrameSpec(32, 20, ColorSpec("gray", full_range=True)))
    assert (small_bgr(frame, 16) == 200).all()


def test_a_snapshot_holds_every_pixel() -> None:
    _, after = pair(1234)
    bgr = cv2.imdecode(np.frombuffer(png(after), np.uint8), cv2.IMREAD_COLOR)
    assert (bgr[..., ::-1] == np.stack(after.planes, axis=-1)).all()


# --- the hub -------------------------------------------------------------------------------------------------------


class Taker:
    """Takes pictures; ``gate`` holds it back."""

    def __init__(self) -> None:
        self.pictures: queue.Queue[Picture] = queue.Queue()
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()

    def __call__(self, picture: Picture) -> None:
        self.inside.set()
        assert self.gate.wait(WAIT)
        self.pictures.put(picture)

    def next(self) -> Picture:
        return self.pictures.get(timeout=WAIT)


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture
def hub(taker: Taker) -> Any:
    made = Hub(taker, fps=1000.0)
    made.start()
    yield made
    taker.gate.set()
    made.close()


def show(hub: Hub, index: int, source: str = "a", **facts: Any) -> None:
    before, after = pair(index)
    hub.show(source, before, after, Facts(index, **facts))


def parts(message: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    (length,) = struct.unpack(">I", message[:4])
    header = json.loads(message[4 : 4 + length])
    rest = message[4 + length :]
    assert len(rest) == header["before_bytes"] + header["after_bytes"]
    return header, rest[: header["before_bytes"]], rest[header["before_bytes"] :]


def number_in(jpeg: bytes) -> int:
    return read_number(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE))


def test_both_sides_of_a_picture_are_one_frame(hub: Hub, taker: Taker) -> None:
    hub.watch("a")
    for index in (5, 900, 7):
        show(hub, index, status="restored", step="mimo-unet")
        picture = taker.next()
        header, before, after = parts(picture.message)
        assert number_in(before) == number_in(after) == header["index"] == picture.index == index
        assert (picture.side("before"), picture.side("after")) == (before, after)
        assert before != after
        assert (header["width"], header["height"], header["step"]) == (320, 192, "mimo-unet")


def test_a_frame_that_was_not_restored_is_sent_once(hub: Hub, taker: Taker) -> None:
    hub.watch("a")
    before, _ = pair(3)
    hub.show("a", before, before, Facts(3, status="bypassed", step="bypass", reason="late at rtsp://u:hidden@h/"))
    header, jpeg, after = parts(taker.next().message)
    assert header["after_bytes"] == 0
    assert after == b""
    assert number_in(jpeg) == 3
    assert "hidden" not in header["reason"]


def test_nothing_is_made_while_nobody_looks(hub: Hub, taker: Taker) -> None:
    for index in range(20):
        show(hub, index, "unseen")
    hub.watch("seen")
    show(hub, 1, "seen")
    assert taker.next().source == "seen"
    assert hub.encoded + hub.failed <= 1
    # and who comes late gets the newest of what was shown before
    hub.watch("unseen")
    assert taker.next().index == 19


def test_who_comes_back_gets_a_picture_of_a_source_that_stands_still(hub: Hub, taker: Taker) -> None:
    show(hub, 8)
    for _ in range(3):
        hub.watch("a")
        assert taker.next().index == 8
        hub.unwatch("a")


def test_showing_never_waits_and_the_newest_frame_wins(hub: Hub, taker: Taker) -> None:
    hub.watch("a")
    taker.gate.clear()
    show(hub, 0)
    assert taker.inside.wait(WAIT)  # a reader's picture is being handed over, and stays so
    before, after = pair(41)
    for index in range(1, 2001):
        hub.show("a", before, after, Facts(index))
    assert hub.newest("a").facts.index == 2000  # type: ignore[union-attr]
    taker.gate.set()
    assert taker.next().index == 0
    assert taker.next().index == 2000
    assert taker.pictures.empty()


def test_one_picture_serves_all_who_watch(hub: Hub, taker: Taker) -> None:
    for _ in range(50):
        hub.watch("a")
    numbers = []
    for index in range(5):
        show(hub, index)
        numbers.append(taker.next().number)
    assert taker.pictures.empty()
    assert len(set(numbers)) == 5


def test_the_rate_is_limited_for_each_source(taker: Taker) -> None:
    hub = Hub(taker, fps=0.001)
    hub.start()
    try:
        hub.watch("a")
        hub.watch("b")
        show(hub, 1, "a")
        assert taker.next().source == "a"
        show(hub, 2, "a")
        show(hub, 1, "b")
        assert taker.next().source == "b"  # it came later and is there: the second of a has to wait
        assert taker.pictures.empty()
    finally:
        hub.close()


def found(index: int, *, both: bool = False) -> Look:
    boxes = np.array([[32, 48, 160, 96]], np.float32)
    objects = Detections(boxes, np.array([0.9], np.float32), np.array([0]), ("car",))
    return Look(
        source="a", time=datetime.now(UTC), index=index, pts=index, time_base=Fraction(1, 25), width=320, height=192,
        restored=True, blur=0.5, latency=0.1, detector=0.02, objects=objects, tracks=(7,),
        unrestored=objects.pick([]) if both else None,
    )  # fmt: skip


def test_boxes_come_with_the_picture_until_they_are_stale(taker: Taker) -> None:
    looks = {"a": found(10, both=True)}
    hub = Hub(taker, fps=1000.0, looks=looks.get)
    hub.start()
    try:
        hub.watch("a")
        for index, expected in ((12, True), (40, False), (9, True)):
            show(hub, index)
            header, _, _ = parts(taker.next().message)
            if expected:
                assert header["boxes"] == [{"box": [0.1, 0.25, 0.5, 0.5], "name": "car", "score": 0.9, "track": 7}]
                assert header["boxes_before"] == []
            else:
                assert header["boxes"] is None
    finally:
        hub.close()


def test_boxes_come_on_their_own_frame_where_it_is_still_to_be_shown(taker: Taker) -> None:
    looks: dict[str, Look] = {}
    hub = Hub(taker, fps=1000.0, looks=looks.get)
    hub.start()
    try:
        hub.watch("a")
        show(hub, 0)
        assert taker.next().index == 0
        taker.gate.clear()
        taker.inside.clear()
        show(hub, 1)
        assert taker.inside.wait(WAIT)  # 1 is being made
        for index in (2, 3, 4, 5):
            show(hub, index)
        looks["a"] = found(3)
        taker.gate.set()
        got = [taker.next(), taker.next()]
        while got[-1].index != 5:  # the newest comes after a while, seen by the detector or not
            got.append(taker.next())
        indices = [p.index for p in got]
        assert indices[:2] == [1, 3]
        assert indices == sorted(set(indices))  # never back
        headers = [parts(p.message)[0] for p in got]
        assert [h["boxes_index"] for h in headers] == [None] + [3] * (len(got) - 1)
        assert number_in(parts(got[1].message)[1]) == 3
    finally:
        hub.close()


def test_a_picture_that_fails_ends_nothing(taker: Taker, caplog: pytest.LogCaptureFixture) -> None:
    failing = {"left": 2}

    def looks(_: str) -> Look | None:
        if failing["left"]:
            failing["left"] -= 1
            raise RuntimeError("rtsp://u:hidden@h/ broke")
        return None

    hub = Hub(taker, fps=1000.0, looks=looks)
    hub.start()
    try:
        hub.watch("a")
        index = 0
        while taker.pictures.empty():
            index += 1
            show(hub, index)
            taker.inside.wait(0.05)
            assert index < 2000
        assert taker.next().index > 0
        assert hub.failed == 2
    finally:
        hub.close()
    assert caplog.text.count("broke") == 1  # told once
    assert "hidden" not in caplog.text


def test_after_the_end_nothing_is_kept(hub: Hub) -> None:
    show(hub, 1)
    hub.close()
    show(hub, 2)
    assert hub.newest("a") is None
