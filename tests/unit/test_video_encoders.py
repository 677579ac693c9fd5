"""Which encoder is chosen, and that it never loses depth, chroma or size."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import av.error
import pytest

from streamdeblur.config import CRF_LIMITS
from streamdeblur.errors import EncoderError, UsageError
from streamdeblur.video.encoders import ENCODERS, EncoderRequest, choose, layouts_for
from streamdeblur.video.pixfmt import LAYOUTS
from streamdeblur.video.scheduling import kept_scheduling
from streamdeblur.video.tags import SourceTags


def _choose(name: str, size: tuple[int, int] = (64, 48), transfer: int = 2, **options: Any) -> Any:
    layout = LAYOUTS[name]
    tags = SourceTags(name, layout, 2, 2, transfer, 0, None, None, None, ())
    container = options.pop("container", "")
    fields = options.pop("fields", "progressive")
    supported = options.pop("supported", None)
    color = layout.color("bt709", bool(layout.full_range))
    return choose(
        EncoderRequest(**options), tags, color, size, field_order=fields, supported=supported, container=container
    )


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


@pytest.mark.parametrize(
    ("name", "size", "multiple"),
    [("yuv420p", (96, 66), 4), ("yuv420p10le", (96, 486), 4), ("yuv422p", (96, 65), 2), ("yuv444p", (96, 65), 2)],
)
def test_fields_that_x264_does_not_take_go_to_an_encoder_that_keeps_them(
    name: str, size: tuple[int, int], multiple: int
) -> None:
    """Of the encoders here, x265 codes fields as pictures of their own and the others know none: FFV1 is left."""
    assert _choose(name, size).codec == "libx264"
    choice = _choose(name, size, fields="tff")
    assert (choice.codec, choice.layout.name) == ("ffv1", name)
    (note,) = choice.notes
    assert f"interlaced coding needs a height that is a multiple of {multiple}; using ffv1, which is lossless" in note
    whole = (size[0], size[1] // multiple * multiple)
    assert _choose(name, whole, fields="tff").codec == "libx264"


def test_fields_go_where_they_were_sent_all_the_same() -> None:
    choice = _choose("yuv420p", (96, 66), fields="bff", encoder="x265")
    assert choice.codec == "libx265"
    assert any("no interlaced coding" in n for n in choice.notes)
    choice = _choose("yuv420p", (96, 66), fields="bff", supported=frozenset(("h264", "hevc")), container="mpegts")
    assert choice.codec == "libx265"
    assert any("multiple of 4" in n for n in choice.notes)


@pytest.mark.parametrize(
    ("encoder", "crf", "options", "says"),
    [
        ("auto", 55, "51", "libx264 takes 0 to 51 for --crf: 55 is taken as 51"),
        ("auto", 51, "51", None),
        ("auto", 23.5, "23.5", None),
        ("av1", 23.75, "24", "libsvtav1 takes whole numbers of 0 to 63 for --crf: 23.75 is taken as 24"),
        ("vp9", 63, "63", None),
    ],
)
def test_a_quality_that_is_not_taken_as_given_is_told(encoder: str, crf: float, options: str, says: str | None) -> None:
    choice = _choose("yuv420p", (320, 240), encoder=encoder, crf=crf)
    assert choice.options["crf"] == options
    assert list(choice.notes) == ([says] if says else [])


def test_quality_of_a_fallback_without_any_is_told() -> None:
    """16-bit gray fits FFV1 alone."""
    choice = _choose("gray16le", crf=20)
    assert choice.codec == "ffv1"
    assert "ffv1 is lossless: --crf 20 has no effect" in choice.notes


@pytest.mark.parametrize(("codec", "limit"), [("libsvtav1", 63), ("libvpx-vp9", 63)])
def test_limits_of_quality_are_those_of_the_encoders(codec: str, limit: int) -> None:
    def opens(crf: int) -> bool:
        context: Any = av.CodecContext.create(codec, "w")
        context.width, context.height, context.pix_fmt = 320, 240, "yuv420p"
        context.time_base, context.options = Fraction(1, 25), {"crf": str(crf)}
        try:
            with kept_scheduling():
                context.open()
        except av.error.FFmpegError:
            return False
        return True

    assert {ENCODERS[k]: v for k, v in CRF_LIMITS.items()}[codec] == limit
    assert opens(limit)
    assert not opens(limit + 1)


def test_refusals_are_one_line() -> None:
    with pytest.raises(UsageError, match=r"did you mean vp9"):
        _choose("yuv420p", encoder="vp99")
    with pytest.raises(EncoderError, match="no encoder"):
        _choose("yuv420p", supported=frozenset())
    with pytest.raises(UsageError, match="preset"):
        _choose("yuv420p", preset="quick")
