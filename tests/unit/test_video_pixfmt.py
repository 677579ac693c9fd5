"""Component views against FFmpeg's own scaler as the independent reader."""

from __future__ import annotations

import contextlib

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from streamdeblur.video.pixfmt import LAYOUTS, nearest, read_components, write_components

#: A packed or semi-planar format and the planar one with the same code values.
_PAIRS = {
    "nv12": "yuv420p",
    "nv21": "yuv420p",
    "nv16": "yuv422p",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "p010le": "yuv420p10le",
    "p010be": "yuv420p10le",
    "yuv420p10be": "yuv420p10le",
    "rgb24": "gbrp",
    "bgr24": "gbrp",
    "bgra": "gbrap",
    "argb": "gbrap",
    "0rgb": "gbrp",
    "rgb48be": "gbrp16le",
    "gray16be": "gray16le",
}


def _known() -> list[str]:
    """Layouts whose format this FFmpeg has; the table is regular and has some that no FFmpeg has."""
    known = []
    for name in LAYOUTS:
        with contextlib.suppress(ValueError):
            known.append(av.VideoFormat(name).name)
    return known


def _noise(name: str, width: int, height: int) -> av.VideoFrame:
    frame = av.VideoFrame(width, height, name)
    rng = np.random.default_rng(7)
    for plane in frame.planes:
        data = rng.integers(0, 256, plane.buffer_size, dtype=np.uint8)
        if name.startswith("p010"):
            words = data[: plane.buffer_size // 2 * 2].view("<u2" if name.endswith("le") else ">u2")
            words &= 0xFFC0
        elif "10be" in name:
            words = data[: plane.buffer_size // 2 * 2].view(">u2")
            words &= 0x03FF
        plane.update(data.tobytes())
    return frame


@pytest.mark.parametrize("name", sorted(_PAIRS))
@pytest.mark.parametrize("size", [(34, 18), (2, 2)])
def test_views_are_what_swscale_makes_planar(name: str, size: tuple[int, int]) -> None:
    frame = _noise(name, *size)
    planar = VideoReformatter().reformat(frame, format=_PAIRS[name], threads=1)
    ours = read_components(frame, LAYOUTS[name])
    theirs = read_components(planar, LAYOUTS[_PAIRS[name]])
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", sorted(_known()))
def test_write_then_read_gives_the_same(name: str) -> None:
    layout = LAYOUTS[name]
    frame = av.VideoFrame(18, 10, name)
    color = layout.color("bt709", bool(layout.full_range))
    rng = np.random.default_rng(3)
    dtype = np.uint8 if layout.depth == 8 else np.uint16
    planes = [rng.integers(0, 1 << layout.depth, s).astype(dtype) for s in color.plane_shapes(18, 10)]
    write_components(frame, layout, planes, color)
    for a, b in zip(read_components(frame, layout), planes, strict=True):
        np.testing.assert_array_equal(a, b)


def test_widening_keeps_every_bit() -> None:
    source, wide = LAYOUTS["yuv411p"], LAYOUTS["yuv444p10le"]
    color = source.color("bt601", False)
    rng = np.random.default_rng(5)
    planes = [rng.integers(0, 256, s).astype(np.uint8) for s in color.plane_shapes(18, 4)]
    frame = av.VideoFrame(18, 4, wide.name)
    write_components(frame, wide, planes, color)
    y, u, _ = read_components(frame, wide)
    np.testing.assert_array_equal(y >> 2, planes[0])
    np.testing.assert_array_equal(u[:, ::4] >> 2, planes[1])


def test_narrowing_is_refused() -> None:
    color = LAYOUTS["yuv444p10le"].color("bt709", False)
    planes = [np.zeros((4, 4), np.uint16)] * 3
    with pytest.raises(ValueError, match="does not fit"):
        write_components(av.VideoFrame(4, 4, "yuv444p"), LAYOUTS["yuv444p"], planes, color)
    with pytest.raises(ValueError, match="coarser"):
        write_components(av.VideoFrame(4, 4, "yuv420p10le"), LAYOUTS["yuv420p10le"], planes, color)


def test_bottom_up_pictures() -> None:
    class Plane:
        def __init__(self, memory: np.ndarray, stride: int) -> None:
            self._memory = memory
            self.line_size = -stride
            self.buffer_ptr = memory.ctypes.data + memory.nbytes - stride

    class Frame:
        width, height = 3, 2

        def __init__(self, memory: np.ndarray) -> None:
            self.planes = [Plane(memory, 12)]

    memory = np.arange(24, dtype=np.uint8).reshape(2, 12)
    red, green, blue = read_components(Frame(memory), LAYOUTS["bgr24"])
    np.testing.assert_array_equal(blue, [[12, 15, 18], [0, 3, 6]])
    np.testing.assert_array_equal(green, blue + 1)
    np.testing.assert_array_equal(red, blue + 2)


def test_every_other_format_has_a_nearest() -> None:
    assert nearest("pal8", is_rgb=True, bits=8, components=1) == "bgra"
    for name in ("rgb565le", "bayer_rggb16le", "xyz12le", "y210le", "monob", "unheard_of"):
        assert nearest(name, is_rgb="rgb" in name, bits=12, components=3) in LAYOUTS
