"""Display sizes and codecs of WAV written into a Matroska header in place."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamdeblur.video.matroska import STAND_IN, Rewrite, booked_name, display_size, rewrite_tracks


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ((176, 144), Fraction(44, 45)),
        ((720, 576), Fraction(16, 11)),
        ((3, 5), Fraction(7, 3)),
        ((640, 480), Fraction(1)),
    ],
)
def test_display_size_is_exact(size: tuple[int, int], ratio: Fraction) -> None:
    width, height = display_size(*size, ratio)
    assert Fraction(width, height) / Fraction(*size) == ratio


def test_display_size_of_an_odd_ratio_is_close_and_small() -> None:
    ratio = Fraction(4321, 1234)
    width, height = display_size(176, 144, ratio)
    assert abs(Fraction(width, height) / Fraction(176, 144) / ratio - 1) < Fraction(1, 10**4)
    assert max(width, height) < 40000


def _write(path: Path, names: list[str]) -> None:
    with av.open(str(path), "w", format="matroska") as out:
        streams: list[Any] = []
        for name in names:
            stream: Any = out.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
            stream.metadata["title"] = name
            streams.append(stream)
        for i in range(3):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.full((216, 176), 40 * i, np.uint8), "yuv420p")
                frame.pts = i
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))


def test_ratio_and_name_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    first, second = booked_name("left", 0), booked_name("", 1)
    _write(path, [first, second])
    size = path.stat().st_size
    rewrite_tracks(
        path,
        {
            first: Rewrite("left", display_size(176, 144, Fraction(44, 45))),
            second: Rewrite("", display_size(176, 144, Fraction(12, 11))),
        },
    )
    assert path.stat().st_size == size
    with av.open(str(path)) as container:
        a, b = container.streams.video
        assert (a.sample_aspect_ratio, b.sample_aspect_ratio) == (Fraction(44, 45), Fraction(12, 11))
        assert a.metadata.get("title") == "left"
        assert "title" not in b.metadata
        assert [f.to_ndarray()[0, 0] for f in container.decode(a)] == [0, 40, 80]


def test_unknown_track_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    _write(path, ["plain"])
    with pytest.raises(ValueError, match="not found"):
        rewrite_tracks(path, {booked_name("other", 0): Rewrite("", (4, 3))})


def test_a_file_that_is_not_matroska_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(bytes(range(1, 200)))
    with pytest.raises(ValueError):
        rewrite_tracks(path, {})


@pytest.mark.parametrize("extra", [0, 2, 130, 400])
def test_sound_under_the_name_of_another_codec_gets_its_own(tmp_path: Path, extra: int) -> None:
    """mu-law, one byte a sample; a description may be longer than one byte of length says."""
    wave = bytes.fromhex("0700020044ac00008858010002000800") + extra.to_bytes(2, "little") + bytes(extra)
    path, name = tmp_path / "a.mkv", booked_name("sound", 0, wave)
    with av.open(str(path), "w", format="matroska") as out:
        stream: Any = out.add_mux_stream(STAND_IN, rate=44100)
        stream.time_base = Fraction(1, 1000)
        stream.metadata["title"] = name
        for i in range(4):
            packet: av.Packet[Any] = av.Packet(bytes([i]) * 2000)
            packet.pts = packet.dts = 23 * i
            packet.time_base, packet.stream = Fraction(1, 1000), stream
            out.mux(packet)
    size = path.stat().st_size
    rewrite_tracks(path, {name: Rewrite("sound", wave=wave)})
    assert path.stat().st_size == size
    with av.open(str(path)) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == "pcm_mulaw"
        assert (sound.codec_context.channels, sound.codec_context.sample_rate) == (2, 44100)
        assert sound.metadata["title"] == "sound"
        assert [bytes(p) for p in container.demux(sound) if p.size] == [bytes([i]) * 2000 for i in range(4)]
