"""The clips that other tests stand on are what they say."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.clips import (
    components,
    draw_number,
    noise_frame,
    numbered_picture,
    read_clip,
    read_number,
    read_packets,
    write_noise_clip,
    write_numbered_clip,
)

pytestmark = pytest.mark.integration


def test_numbers_are_drawn_and_read() -> None:
    for number in (0, 1, 2, 5461, 10922, 16383):
        assert read_number(numbered_picture(number, (96, 64))[..., 1]) == number
    with pytest.raises(ValueError, match="no room"):
        draw_number(np.zeros((16, 16, 3), np.uint8), 1)
    with pytest.raises(ValueError, match="14 bits"):
        numbered_picture(16384, (96, 64))
    with pytest.raises(ValueError, match="no frame number"):
        read_number(np.full((64, 96), 90, np.uint8))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le", "yuv444p"])
@pytest.mark.parametrize("full_range", [False, True])
def test_numbers_survive_a_lossy_encoder(tmp_path: Path, pix_fmt: str, full_range: bool) -> None:
    path = write_numbered_clip(
        tmp_path / "a.mp4",
        [3, 1, 4, 159, 9000],
        (96, 64),
        pix_fmt=pix_fmt,
        full_range=full_range,
        options={"crf": "30"},
    )
    pictures = read_clip(path)
    assert [read_number(p.parts["Y"]) for p in pictures] == [3, 1, 4, 159, 9000]
    assert [p.time for p in pictures] == [Fraction(i, 30) for i in range(5)]
    assert {int(p.native.color_range) for p in pictures} == {2 if full_range else 1}


def test_audio_lasts_as_long_as_the_pictures(tmp_path: Path) -> None:
    path = write_numbered_clip(tmp_path / "a.mp4", 10, (96, 64), rate=10, audio=True)
    with av.open(str(path)) as container:
        samples = sum(f.samples for f in container.decode(audio=0))
    assert samples == pytest.approx(48000, abs=2048)
    assert len(read_packets(path, 1)) > 40
    with pytest.raises(ValueError, match="1 pts for 2 frames"):
        write_numbered_clip(tmp_path / "b.mp4", 2, (96, 64), pts=[1])


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "nv12", "yuv422p10le", "gbrp10le", "rgb24", "bgra", "yuyv422", "gray"])
def test_components_agree_with_pyav(pix_fmt: str) -> None:
    """The second opinion: PyAV's own conversion to arrays."""
    frame = noise_frame(pix_fmt, (24, 16), np.random.default_rng(1))
    parts = components(frame)
    array = frame.to_ndarray()
    if pix_fmt == "yuv420p":
        assert np.array_equal(array[:16], parts["Y"])
        assert np.array_equal(array[16:].reshape(-1), np.concatenate([parts["U"].ravel(), parts["V"].ravel()]))
    elif pix_fmt == "nv12":
        assert np.array_equal(array[16:, 0::2], parts["U"])
        assert np.array_equal(array[16:, 1::2], parts["V"])
    elif pix_fmt == "yuyv422":
        assert np.array_equal(array[..., 0], parts["Y"])
        assert np.array_equal(array[:, 0::2, 1], parts["U"])
        assert np.array_equal(array[:, 1::2, 1], parts["V"])
    elif pix_fmt == "gray":
        assert np.array_equal(array, parts["Y"])
    elif pix_fmt == "yuv422p10le":
        assert parts["Y"].shape == (16, 24)
        assert parts["U"].shape == (16, 12)
        assert parts["V"].max() == 1023
    else:
        order = {"gbrp10le": "RGB", "rgb24": "RGB", "bgra": "BGRA"}[pix_fmt]
        for i, name in enumerate(order):
            assert np.array_equal(array[..., i], parts[name]), name


def test_noise_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = write_noise_clip(tmp_path / "a.mkv", "yuv420p", pts=[0, 40, 95], time_base=Fraction(1, 1000), seed=7)
    rng = np.random.default_rng(7)
    pictures = read_clip(path)
    assert [p.time for p in pictures] == [Fraction(0), Fraction(40, 1000), Fraction(95, 1000)]
    for picture in pictures:
        for name, plane in components(noise_frame("yuv420p", (64, 48), rng)).items():
            assert np.array_equal(picture.parts[name], plane)
    assert not pictures[0].same(pictures[1])
