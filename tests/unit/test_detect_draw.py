"""Boxes on pictures and on planes: only what is drawn on changes, in any format, and in the colour that is meant."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from streamdeblur.detect import draw as module
from streamdeblur.detect.detector import Detections
from streamdeblur.detect.draw import PALETTE, Label, code_values, draw_frame, draw_rgb, frame_to_rgb, labels
from streamdeblur.frames import ColorSpec, Frame, FrameSpec

FORMATS = [
    ColorSpec("yuv", "bt709", False, 8, (1, 1)),
    ColorSpec("yuv", "bt601", True, 8, (1, 0)),
    ColorSpec("yuv", "bt2020", False, 10, (1, 1)),
    ColorSpec("yuv", "bt709", False, 8, (0, 0)),
    ColorSpec("yuv", "bt601", False, 8, (2, 2)),
    ColorSpec("rgb", depth=8, full_range=True, alpha=True),
    ColorSpec("rgb", depth=16, full_range=True),
    ColorSpec("gray", depth=8),
]
BOX = (21.0, 31.0, 90.0, 75.0)


def frame(color: ColorSpec, width: int = 131, height: int = 97) -> Frame:
    rng = np.random.default_rng(0)
    kind = np.uint8 if color.depth == 8 else np.uint16
    planes = tuple(rng.integers(0, color.max_code, s, kind) for s in color.plane_shapes(width, height))
    for p in planes:
        p.flags.writeable = False
    return Frame(3, 30, Fraction(1, 25), planes, FrameSpec(width, height, color))


@pytest.mark.parametrize("color", FORMATS, ids=str)
def test_only_outline_and_label_change(color: ColorSpec) -> None:
    source = frame(color)
    result = draw_frame(source, [Label(BOX, "car 0.9", 0)])
    assert (result.index, result.pts, result.spec) == (source.index, source.pts, source.spec)
    for number, (before, after) in enumerate(zip(source.planes, result.planes, strict=True)):
        sx, sy = color.chroma_shift if number in (1, 2) else (0, 0)
        changed = np.argwhere(before != after)
        if number == 3:
            assert not len(changed)  # alpha
            continue
        assert len(changed)
        rows, columns = changed[:, 0] << sy, changed[:, 1] << sx
        block = (1 << sy, 1 << sx)
        # inside of the box, and all that is left of it and below
        inside = (rows >= 31 + 4) & (rows + block[0] <= 75 - 4) & (columns >= 21 + 4) & (columns + block[1] <= 90 - 4)
        assert not inside.any()
        assert rows.max() < 75 + block[0]
        assert columns.min() > 21 - block[1]


@pytest.mark.parametrize("color", [c for c in FORMATS if c.model != "gray"], ids=str)
def test_the_outline_has_the_palettes_colour(color: ColorSpec) -> None:
    # read back by the conversion that restoration uses, far from the label
    shown = frame_to_rgb(draw_frame(frame(color), [Label((8.0, 16.0, 120.0, 88.0), "", 1)]))
    step = 1 << color.chroma_shift[0]
    assert np.abs(shown[87, 16 : 120 - step].astype(int) - PALETTE[1]).max() <= 2


def test_code_values_of_known_colours() -> None:
    # BT.709 limited: white 235, 128, 128; blue 32, 240, 118 (ITU-R BT.709-6, rounded)
    assert code_values((255, 255, 255), ColorSpec("yuv", "bt709")) == (235, 128, 128)
    assert code_values((0, 0, 0), ColorSpec("yuv", "bt709", depth=10)) == (64, 512, 512)
    assert code_values((0, 0, 255), ColorSpec("yuv", "bt709", chroma_shift=(1, 1))) == (32, 240, 118)
    assert code_values((255, 0, 0), ColorSpec("rgb", full_range=True, depth=16)) == (65535, 0, 0)
    assert code_values((255, 255, 255), ColorSpec("gray", full_range=True)) == (255,)


@pytest.mark.parametrize(
    "box",
    [(-50, -50, 5, 5), (0, 0, 131, 97), (130.9, 96.9, 500, 500), (5, 5, 5, 5), (60, 0, 61, 97)],
)
def test_boxes_at_the_border_and_degenerate_ones(box: tuple[float, float, float, float]) -> None:
    source = frame(FORMATS[0])
    result = draw_frame(source, [Label(box, "a rather long name of a class 0.99", 5)])
    assert [p.shape for p in result.planes] == [p.shape for p in source.planes]
    assert any((a != b).any() for a, b in zip(result.planes, source.planes, strict=True))


def test_a_tiny_frame_has_no_room_for_words() -> None:
    source = frame(FORMATS[0], 6, 4)
    assert draw_frame(source, [Label((0, 0, 6, 4), "car", 0)]).planes[0].shape == (4, 6)


def test_nothing_to_draw_is_the_frame_itself() -> None:
    source = frame(FORMATS[0])
    assert draw_frame(source, []) is source


def test_pictures_are_copied() -> None:
    rgb = np.zeros((97, 131, 3), np.uint8)
    drawn = draw_rgb(rgb, [Label(BOX, "pâté 0.5", 2)])
    assert not rgb.any()
    assert drawn[50, 21].tolist() == list(PALETTE[2])
    assert drawn[50, 50].tolist() == [0, 0, 0]


def test_labels_tell_name_score_and_track() -> None:
    found = Detections(np.zeros((2, 4), np.float32), np.array([0.5, 0.25], np.float32), np.array([1, 0]), ("a", "b"))
    assert [x.text for x in labels(found)] == ["b 0.50", "a 0.25"]
    tracked = labels(found, [12, None])
    assert [(x.text, x.color) for x in tracked] == [("#12 b 0.50", 12), ("a 0.25", 0)]


def test_colours_are_converted_once_for_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    converted = []
    convert = module.rgb_correction_to_planes

    def counted(delta: Any, color: ColorSpec) -> Any:
        converted.append(color)
        return convert(delta, color)

    monkeypatch.setattr(module, "rgb_correction_to_planes", counted)
    color = ColorSpec("yuv", "bt2020", True, 14, (1, 0))  # of no other test
    many = [Label((10.0 + n, 20.0, 60.0 + n, 70.0), f"#{n} car", n) for n in range(20)]
    for _ in range(3):
        draw_frame(frame(color), many)
    assert 0 < len(converted) <= 2 * len(PALETTE) + 1  # outlines, the labels' backgrounds, and white


def test_frame_to_rgb_clamps() -> None:
    color = ColorSpec("yuv", "bt709")
    planes = (np.array([[0, 255]], np.uint8), *(np.full((1, 2), 128, np.uint8) for _ in range(2)))
    assert frame_to_rgb(Frame(0, 0, Fraction(1, 1), planes, FrameSpec(2, 1, color))).tolist() == [[[0] * 3, [255] * 3]]
