"""The keystone: a correction of zero leaves every bit, a known correction changes the planes by what it should.

Sources are noise over all code values; outputs are decoded by PyAV alone and read by tests/clips.py, never by our own
reader. What ``offset`` must do is computed here in fractions from the equations of ITU-R BT.601, BT.709 and BT.2020.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur import process_video
from streamdeblur.video.reader import VideoReader
from tests.clips import Picture, components, read_clip, write_noise_clip

pytestmark = pytest.mark.integration

YUV = [
    *(f"yuv{sub}p{bits}" for sub in ("420", "422", "444", "440") for bits in ("", "10le", "12le")),
    "yuv411p",
    "yuv410p",
    "gray",
    "gray10le",
    "gray12le",
    "yuva420p",
    "yuva444p10le",
]
RGB = ["gbrp10le", "gbrp12le", "bgra", "bgr0", "gbrap10le"]
#: Formats that FFV1 does not know, raw in NUT.
RAW = ["nv12", "rgb24", "bgr24", "gbrp", "rgba", "yuyv422", "uyvy422", "yuv420p"]


def expect_same(source: Path, output: Path, tolerance: Fraction = Fraction(0)) -> list[Picture]:
    before, after = read_clip(source), read_clip(output)
    assert len(after) == len(before)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert a.time is not None
        assert b.time is not None
        assert abs(a.time - b.time) <= tolerance, f"frame {i}: {a.time} s became {b.time} s"
        assert a.parts.keys() == b.parts.keys()
        for name, plane in a.parts.items():
            np.testing.assert_array_equal(b.parts[name], plane, err_msg=f"frame {i}, {name}")
    return after


def identity(source: Path, output: Path) -> Any:
    return process_video(source, output, model="identity", lossless=True, overwrite=True)


@pytest.mark.parametrize("color_range", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("pix_fmt", YUV)
def test_identity_leaves_every_bit(tmp_path: Path, pix_fmt: str, color_range: int) -> None:
    source = write_noise_clip(tmp_path / "a.mkv", pix_fmt, color_range=color_range, matrix=1)
    written = read_clip(source)[0]
    assert written.native.format.name == pix_fmt  # the test's own clip is what it should be
    assert all(p.min() == 0 and p.max() == (1 << written.native.format.components[0].bits) - 1
               for p in written.parts.values())  # fmt: skip
    for ending in ("mp4", "mkv"):
        output = tmp_path / f"b.{ending}"
        summary = identity(source, output)
        assert (summary.frames, summary.restored, summary.pix_fmt) == (3, 3, pix_fmt)
        after = expect_same(source, output)  # the source's tick is Matroska's, so both containers are exact
        if not pix_fmt.startswith("gray"):
            assert {int(p.native.color_range) for p in after} == {color_range}
            assert {int(p.native.colorspace) for p in after} == {1}


@pytest.mark.parametrize("pix_fmt", RGB)
def test_identity_leaves_every_bit_of_rgb_and_alpha(tmp_path: Path, pix_fmt: str) -> None:
    source = write_noise_clip(tmp_path / "a.mkv", pix_fmt, color_range=2, matrix=0)
    assert ("A" in read_clip(source)[0].parts) == (pix_fmt in ("bgra", "gbrap10le"))
    for ending in ("mp4", "mkv"):
        identity(source, tmp_path / f"b.{ending}")
        expect_same(source, tmp_path / f"b.{ending}")


@pytest.mark.parametrize("pix_fmt", RAW)
def test_identity_leaves_every_bit_of_packed_formats(tmp_path: Path, pix_fmt: str) -> None:
    source = write_noise_clip(tmp_path / "a.nut", pix_fmt, codec="rawvideo")
    assert read_clip(source)[0].native.format.name == pix_fmt
    identity(source, tmp_path / "b.mp4")
    expect_same(source, tmp_path / "b.mp4")
    identity(source, tmp_path / "b.mkv")
    expect_same(source, tmp_path / "b.mkv", Fraction(1, 2000))


@pytest.mark.parametrize("size", [(37, 29), (16, 16), (1, 1), (130, 2)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv411p", "yuv410p"])
def test_identity_leaves_every_bit_of_any_size(tmp_path: Path, pix_fmt: str, size: tuple[int, int]) -> None:
    source = write_noise_clip(tmp_path / "a.nut", pix_fmt, codec="rawvideo", size=size)
    summary = identity(source, tmp_path / "b.mp4")
    assert (summary.width, summary.height) == size
    expect_same(source, tmp_path / "b.mp4")


# --- a known step -------------------------------------------------------------------------------------------------

#: (Kr, Kb), and the code of ITU-T H.273.
MATRICES = {
    "601": (Fraction("0.299"), Fraction("0.114"), 6),
    "709": (Fraction("0.2126"), Fraction("0.0722"), 1),
    "2020": (Fraction("0.2627"), Fraction("0.0593"), 9),
}
STEPS = ["0.0613,-0.0427,0.0199", "-0.31,0.57,-0.83"]


def step_codes(step: str, model: str, matrix: str, depth: int, full: bool) -> dict[str, int]:
    """What a constant step of R', G', B' adds to each component, in code values: the exact value plus 1/2, floored."""
    red, green, blue = (Fraction(s) for s in step.split(","))
    kr, kb, _ = MATRICES[matrix]
    top = (1 << depth) - 1
    luma_scale = top if full else 219 * (1 << (depth - 8))
    chroma_scale = top if full else 224 * (1 << (depth - 8))
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    exact = {
        "yuv": {
            "Y": luma * luma_scale,
            "U": (blue - luma) / (2 * (1 - kb)) * chroma_scale,
            "V": (red - luma) / (2 * (1 - kr)) * chroma_scale,
        },
        "gray": {"Y": luma * luma_scale},
        "rgb": {"R": red * top, "G": green * top, "B": blue * top},
    }[model]
    for name, value in exact.items():  # float32 on the way must not decide: the test's steps stay off the ties
        away = abs((value - math.floor(value)) - Fraction(1, 2))
        assert away > Fraction(1, 1000), f"{step} puts {name} on a tie: choose another"
    return {name: math.floor(value + Fraction(1, 2)) for name, value in exact.items()}


def expect_step(source: Path, output: Path, codes: dict[str, int], depth: int) -> int:
    """Every component moved by its codes and clipped; returns how many samples were clipped."""
    top = (1 << depth) - 1
    clipped = 0
    before, after = read_clip(source), read_clip(output)
    assert len(before) == len(after) > 0
    for a, b in zip(before, after, strict=True):
        assert a.parts.keys() == b.parts.keys()
        for name, plane in a.parts.items():
            moved: npt.NDArray[np.int64] = plane.astype(np.int64) + codes.get(name, 0)  # alpha does not move
            clipped += int(((moved < 0) | (moved > top)).sum())
            np.testing.assert_array_equal(b.parts[name], np.clip(moved, 0, top), err_msg=name)
    return clipped


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(("sub", "bits"), list(itertools.product(("420", "422", "444"), (8, 10, 12))))
@pytest.mark.parametrize("matrix", MATRICES)
def test_a_step_changes_planes_by_what_the_equations_say(
    tmp_path: Path, matrix: str, sub: str, bits: int, full: bool
) -> None:
    pix_fmt = f"yuv{sub}p" + ("" if bits == 8 else f"{bits}le")
    code = MATRICES[matrix][2]
    source = write_noise_clip(tmp_path / "a.mkv", pix_fmt, size=(37, 29), frames=2, color_range=1 + full, matrix=code)
    for n, step in enumerate(STEPS):
        output = tmp_path / f"{n}.mkv"
        process_video(source, output, model=f"offset:{step}", lossless=True)
        codes = step_codes(step, "yuv", matrix, bits, full)
        assert all(codes.values())
        assert expect_step(source, output, codes, bits) > 100


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    "pix_fmt", ["yuv440p", "yuv440p10le", "yuv411p", "yuv410p", "yuva420p", "gray", "gray10le", "gray12le"]
)
def test_a_step_on_other_grids_gray_and_alpha(tmp_path: Path, pix_fmt: str, full: bool) -> None:
    bits = int(pix_fmt.removesuffix("le")[-2:]) if pix_fmt.endswith("le") else 8
    source = write_noise_clip(tmp_path / "a.mkv", pix_fmt, size=(40, 32), frames=2, color_range=1 + full, matrix=1)
    process_video(source, tmp_path / "b.mkv", model=f"offset:{STEPS[0]}", lossless=True)
    codes = step_codes(STEPS[0], "gray" if pix_fmt.startswith("gray") else "yuv", "709", bits, full)
    assert expect_step(source, tmp_path / "b.mkv", codes, bits) > 20


@pytest.mark.parametrize("pix_fmt", ["rgb24", "bgr24", "gbrp", "rgba", "bgra", "gbrp10le", "gbrp12le", "gbrap10le"])
def test_a_step_on_rgb(tmp_path: Path, pix_fmt: str) -> None:
    bits = int(pix_fmt[-4:-2]) if pix_fmt.endswith("le") else 8
    source = write_noise_clip(tmp_path / "a.nut", pix_fmt, codec="rawvideo", size=(37, 29), frames=2)
    for n, step in enumerate(STEPS):
        output = tmp_path / f"{n}.mkv"
        process_video(source, output, model=f"offset:{step}", lossless=True)
        assert expect_step(source, output, step_codes(step, "rgb", "709", bits, True), bits) > 50


@pytest.mark.parametrize("pix_fmt", ["nv12", "yuyv422", "uyvy422"])
def test_a_step_on_packed_yuv(tmp_path: Path, pix_fmt: str) -> None:
    """Raw and untagged: BT.601 below 720 lines, limited range."""
    source = write_noise_clip(tmp_path / "a.nut", pix_fmt, codec="rawvideo", size=(36, 28), frames=2)
    process_video(source, tmp_path / "b.mkv", model=f"offset:{STEPS[0]}", lossless=True)
    assert expect_step(source, tmp_path / "b.mkv", step_codes(STEPS[0], "yuv", "601", 8, False), 8) > 20


@pytest.mark.parametrize(
    ("pix_fmt", "planar"), [("p010le", "yuv420p10le"), ("p012le", "yuv420p12le"), ("p210le", "yuv422p10le")]
)
def test_planes_of_hardware_decoders(
    tmp_path: Path, pix_fmt: str, planar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No container stores P010: it comes from hardware. Here the decoder's frames are rearranged into it by hand."""
    decode = VideoReader._decode_packet

    def as_hardware(self: VideoReader, packet: Any, last: Any) -> list[av.VideoFrame]:
        out = []
        for frame in decode(self, packet, last):
            parts = components(frame)
            fresh = av.VideoFrame(frame.width, frame.height, pix_fmt)
            shift = 16 - frame.format.components[0].bits
            chroma = np.stack([parts["U"], parts["V"]], axis=-1).reshape(parts["U"].shape[0], -1)
            for plane, codes in zip(fresh.planes, (parts["Y"], chroma), strict=True):
                row = np.zeros((plane.height, plane.line_size // 2), np.uint16)
                row[:, : codes.shape[1]] = codes << shift
                plane.update(row.tobytes())
            fresh.pts = frame.pts
            if frame.time_base is not None:
                fresh.time_base = frame.time_base
            fresh.colorspace, fresh.color_range = frame.colorspace, frame.color_range
            out.append(fresh)
        return out

    bits = int(planar[-4:-2])
    source = write_noise_clip(tmp_path / "a.mkv", planar, matrix=9)
    monkeypatch.setattr(VideoReader, "_decode_packet", as_hardware)
    assert identity(source, tmp_path / "b.mp4").pix_fmt == planar
    process_video(source, tmp_path / "c.mp4", model=f"offset:{STEPS[1]}", lossless=True)
    expect_same(source, tmp_path / "b.mp4")
    assert expect_step(source, tmp_path / "c.mp4", step_codes(STEPS[1], "yuv", "2020", bits, False), bits) > 100


@pytest.mark.parametrize(("height", "matrix"), [(718, "601"), (720, "709")])
def test_untagged_sources_are_709_from_720_lines_on(tmp_path: Path, height: int, matrix: str) -> None:
    source = write_noise_clip(tmp_path / "a.mkv", "yuv420p", size=(16, height), frames=1)
    process_video(source, tmp_path / "b.mkv", model=f"offset:{STEPS[1]}", lossless=True)
    assert expect_step(source, tmp_path / "b.mkv", step_codes(STEPS[1], "yuv", matrix, 8, False), 8) > 20
    assert {int(p.native.colorspace) for p in read_clip(tmp_path / "b.mkv")} == {2}  # not tagged by guesswork


@pytest.mark.parametrize("tiling", ["whole", "exact", "fast"])
def test_tiles_change_nothing(tmp_path: Path, tiling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step and a zero have no surroundings, so any cutting into tiles must give the very same planes."""
    size = (320, 200)
    if tiling != "whole":
        # With little memory the plan has to cut; what it planned is in the summary.
        frame_bytes = size[0] * size[1] * 48
        monkeypatch.setattr("streamdeblur.restore.restorer.device_budget", lambda *_, **__: frame_bytes + 1_000_000)
    source = write_noise_clip(tmp_path / "a.mkv", "yuv420p", size=size, frames=2, matrix=1)
    for model, codes in (("identity", {}), (f"offset:{STEPS[0]}", step_codes(STEPS[0], "yuv", "709", 8, False))):
        output = tmp_path / f"{model[:3]}.mkv"
        summary = process_video(source, output, model=model, lossless=True, tiling=tiling)
        mode, _, tile = summary.tiling.partition(" ")
        assert mode == tiling
        assert tiling == "whole" or int(tile) < 200
        expect_step(source, output, codes, 8)


# --- time ---------------------------------------------------------------------------------------------------------

VFR = [0, 3003, 3004, 9009, 9100, 27027, 90001, 90002, 1234567, 8100001]


@pytest.mark.parametrize(
    ("time_base", "pts"),
    [
        (Fraction(1, 90000), VFR),
        (Fraction(1, 90000), [p + 123457 for p in VFR]),
        (Fraction(1001, 30000), [0, 1, 2, 5, 6, 30, 31, 60, 61, 1000]),
        (Fraction(1, 1000), [7, 8, 40, 73, 107, 140, 141, 500, 501, 9999]),
        (Fraction(1, 44100), [0, 1, 1471, 2941, 2942, 44099, 44100, 44101, 70001, 88201]),
    ],
    ids=["90k", "90k-late", "1001/30000", "ms", "44100"],
)
def test_timestamps_are_kept_as_rational_seconds(tmp_path: Path, time_base: Fraction, pts: list[int]) -> None:
    source = write_noise_clip(tmp_path / "a.nut", "yuv420p", frames=len(pts), pts=pts, time_base=time_base)
    assert [p.time for p in read_clip(source)] == [p * time_base for p in pts]
    for ending, tolerance in (("mp4", Fraction(0)), ("mkv", Fraction(1, 2000))):
        output = tmp_path / f"b.{ending}"
        identity(source, output)
        after = expect_same(source, output, tolerance)
        # No common shift: what is off is rounding alone, each frame by its own.
        offs = [b.time - p * time_base for b, p in zip(after, pts, strict=True) if b.time is not None]
        assert all(o == 0 for o in offs) or min(offs) < max(offs)
    # and from MP4 to MP4 once more, whose edit list now holds the start
    again = tmp_path / "c.mp4"
    identity(tmp_path / "b.mp4", again)
    expect_same(tmp_path / "b.mp4", again)
