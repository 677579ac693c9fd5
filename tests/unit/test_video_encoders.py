"""Which encoder is chosen, and that it never loses depth, chroma or size."""

from __future__ import annotations

from typing import Any

import pytest

from streamdeblur.errors import EncoderError, UsageError
from streamdeblur.video.encoders import EncoderRequest, choose, layouts_for
from streamdeblur.video.pixfmt import LAYOUTS
from streamdeblur.video.reader import SourceTags


def _choose(name: str, size: tuple[int, int] = (64, 48), transfer: int = 2, **options: Any) -> Any:
    layout = LAYOUTS[name]
    tags = SourceTags(name, layout, 2, 2, transfer, 0, None, None, None, ())
    container = options.pop("container", "")
    supported = options.pop("supported", None)
    color = layout.color("bt709", bool(layout.full_range))
    return choose(EncoderRequest(**options), tags, color, size, supported=supported, container=container)


@pytest.mark.parametrize(
    ("name", "size", "codec", "stored"),
    [
        ("yuv420p", (64, 48), "libx264", "yuv420p"),
        ("yuv444p10le", (63, 47), "libx264", "yuv444p10le"),
        ("nv12", (64, 48), "libx264", "nv12"),
        ("gray", (64, 48), "libx264", "gray"),
    ],
)
def test_x264_first(name: str, size: tuple[int, int], codec: str, stored: str) -> None:
    choice = _choose(name, size)
    assert (choice.codec, choice.layout.name, choice.lossless) == (codec, stored, False)


def test_odd_size_goes_to_an_encoder_that_takes_it() -> None:
    choice = _choose("yuv420p", (63, 47))
    assert choice.codec != "libx264"
    assert choice.layout.same_components(LAYOUTS["yuv420p"])
    assert any("odd size" in n for n in choice.notes)


def test_hdr_goes_to_x265() -> None:
    assert _choose("yuv420p10le", transfer=16).codec == "libx265"


def test_vp9_in_mp4_never_gets_440() -> None:
    choice = _choose("yuv440p", container="mp4")
    assert (choice.layout.name == "yuv440p" and choice.codec != "libvpx-vp9") or choice.layout.chroma_shift == (0, 0)


@pytest.mark.parametrize("name", sorted(n for n, x in LAYOUTS.items() if x.dtype.isnative))
def test_lossless_holds_every_bit(name: str) -> None:
    source = LAYOUTS[name]
    choice = _choose(name, (20, 12), lossless=True)
    assert choice.lossless
    assert choice.layout.model == source.model
    assert choice.layout.depth >= source.depth
    assert all(a <= b for a, b in zip(choice.layout.chroma_shift, source.chroma_shift, strict=True))


def test_layouts_never_narrow() -> None:
    source = LAYOUTS["yuv422p10le"]
    for layout in layouts_for("libx265", source.color("bt709", False), source):
        assert layout.depth >= 10
        assert layout.chroma_shift in ((1, 0), (0, 0))


def test_refusals_are_one_line() -> None:
    with pytest.raises(UsageError, match=r"did you mean vp9"):
        _choose("yuv420p", encoder="vp99")
    with pytest.raises(EncoderError, match="no encoder"):
        _choose("yuv420p", supported=frozenset())
    with pytest.raises(UsageError, match="preset"):
        _choose("yuv420p", preset="quick")
