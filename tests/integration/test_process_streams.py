"""Streams that are copied from sources of other programs and older containers."""

from __future__ import annotations

import itertools
import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from streamdeblur import process_video
from streamdeblur.config import ProcessOptions
from streamdeblur.jobs.images import process_images
from streamdeblur.jobs.verify import verify
from streamdeblur.video.reader import open_video
from streamdeblur.video.simple import read_rgb, write_clip
from streamdeblur.video.streams import plan_streams
from tests.clips import numbered_picture, read_clip, read_number, read_packets, write_numbered_clip

pytestmark = pytest.mark.integration

SIZE = (96, 64)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def write_two_videos(path: Path, count: int = 20) -> Path:
    """Two H.264 streams, both with B-frames."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        for _ in range(2):
            stream: Any = container.add_stream("libx264", rate=25, options={"bf": "3", "b-adapt": "0"})
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
            streams.append(stream)
        for i in range(count):
            for n, stream in enumerate(streams):
                picture = numbered_picture(i + 100 * n, SIZE)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
def test_a_further_video_with_reordered_pictures_keeps_its_times(tmp_path: Path, ending: str) -> None:
    source, output = write_two_videos(tmp_path / "a.mkv"), tmp_path / f"b.{ending}"
    with av.open(str(source)) as container:
        first = [p.dts for p in container.demux(container.streams[1]) if p.size][:3]
    assert first[0] is None  # Matroska does not say it
    process_video(source, output, model="identity")
    was, now = read_packets(source, 1), read_packets(output, 1)
    assert len(now) == len(was)
    shift = now[0][0] - was[0][0] if now[0][0] is not None and was[0][0] is not None else None
    assert shift is not None
    assert shift == 0 or ending == "ts"  # which begins later as a whole
    assert [t for t, _ in now] == [None if t is None else t + shift for t, _ in was]
    assert verify(source, output).differences == []


def test_a_relative_name_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg takes what stands before it for a protocol."""
    monkeypatch.chdir(tmp_path)
    write_numbered_clip(tmp_path / "12:30.mp4", 5, SIZE)
    process_video("12:30.mp4", model="identity")
    with open_video("12:30.deblurred.mp4") as video:
        assert len(list(video)) == 5
    process_images("12:30.mp4", "1:2/", options=ProcessOptions(model="identity"))
    assert len(list((tmp_path / "1:2").iterdir())) == 5
    process_video("1:2", "1:3.mkv", model="identity")
    assert [p.name for p in tmp_path.glob("1:3*")] == ["1:3.mkv"]
    assert write_clip("1:4.mp4", (numbered_picture(i, SIZE) for i in range(3)), Fraction(25)) == 3
    assert len(list(read_rgb("1:4.mp4"))) == 3


def test_h264_with_b_frames_in_avi_runs_evenly_to_its_end(tmp_path: Path) -> None:
    """The decoder gives its last frames when the file has ended, and those have no decoding time."""
    write_numbered_clip(tmp_path / "a.ts", 25, SIZE, rate=25, options={"bf": "2", "b-adapt": "0", "g": "12"})
    with av.open(str(tmp_path / "a.ts")) as source, av.open(str(tmp_path / "a.avi"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
        packets = [p for p in source.demux(video=0) if p.size]
        for i, packet in enumerate(packets):
            packet.stream = stream
            packet.pts, packet.dts, packet.time_base = i, i, Fraction(1, 25)  # AVI keeps the order only
            out.mux(packet)
    with open_video(tmp_path / "a.avi") as video:
        found = [f.pts * f.time_base for f in video if f.pts is not None]
    assert len(found) == 25
    assert {b - a for a, b in itertools.pairwise(found)} == {Fraction(1, 25)}
    process_video(tmp_path / "a.avi", tmp_path / "b.mp4", model="identity", lossless=True)
    written = read_clip(tmp_path / "b.mp4")
    assert [p.time for p in written] == found
    assert [read_number(p.parts["Y"]) for p in written] == list(range(25))


def mux_with(path: Path, video: Path, sounds: dict[str, bool], *, tags: dict[str, str] | None = None) -> Path:
    """The video of a clip and a second of silence in each codec, with whether it is marked as the default."""
    with av.open(str(video)) as source, av.open(str(path), "w") as out:
        picture: Any = out.add_stream_from_template(source.streams.video[0], opaque=True)
        picture.disposition = Disposition.default
        picture.metadata.update(tags or {})
        streams: list[Any] = []
        for codec, default in sounds.items():
            stream: Any = out.add_stream(codec, rate=48000 if codec == "libopus" else 44100, layout="mono")
            stream.bit_rate = 64000
            stream.disposition = Disposition.default if default else Disposition(0)
            streams.append(stream)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                out.mux(packet)
        for stream in streams:
            context = stream.codec_context
            silence = np.zeros((1, context.sample_rate), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
            frame.sample_rate, frame.pts = context.sample_rate, 0
            resampler = av.AudioResampler(context.format, "mono", context.sample_rate, context.frame_size or None)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(stream.encode(part))
            out.mux(stream.encode(None))
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_numbered_clip(tmp_path / "video.mp4", 25, SIZE, rate=25)


def test_mp2_in_mp4_is_no_difference(tmp_path: Path, video: Path) -> None:
    """MP4 has one code for all layers, and FFmpeg reads it as MP3 until it decodes."""
    source = mux_with(tmp_path / "a.mkv", video, {"mp2": True})
    process_video(source, tmp_path / "b.mp4", model="identity")
    report = verify(source, tmp_path / "b.mp4")
    assert report.differences == []
    assert [n for n in report.notes if "mp2 and mp3" in n]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_tags_of_streams_that_get_lost_are_told(
    tmp_path: Path, video: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = mux_with(tmp_path / "a.mkv", video, {"aac": True}, tags={"SOURCE_OSHASH": "9bbb", "title": "pic"})
    process_video(source, tmp_path / f"b.{ending}", model="identity")
    lost = "lost, because MP4 does not hold it: the tags SOURCE_OSHASH of stream 0 (video); .mkv would keep it"
    assert told(caplog) == ([lost] if ending == "mp4" else [])
    assert len(verify(source, tmp_path / f"b.{ending}").differences) == len(told(caplog))


def test_a_mark_that_a_container_adds_is_told(tmp_path: Path, video: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MOV can't hold the stream that was marked, and needs an enabled one of each kind."""
    source = mux_with(tmp_path / "a.mkv", video, {"aac": False, "libopus": True})
    process_video(source, tmp_path / "b.mov", model="identity")
    assert [t for t in told(caplog) if "the mark not default of stream 1 (audio)" in t]
    assert "stream 1 (audio, aac) is now marked default" in verify(source, tmp_path / "b.mov").differences


def test_the_last_frame_is_shown_as_long_as_its_track_says(tmp_path: Path, video: Path) -> None:
    """An edit list may last a little longer than the pictures that it shows."""
    data = bytearray(video.read_bytes())
    at = data.index(b"elst") + 12  # duration in the movie's ticks, beginning in the track's
    length, begin = (int.from_bytes(data[at + k : at + k + 4], "big") for k in (0, 4))
    movie, track = (int.from_bytes(data[data.index(k) + 16 :][:4], "big") for k in (b"mvhd", b"mdhd"))
    data[at : at + 4] = (length - movie * 17 // 100).to_bytes(4, "big")  # five frames less, 30 ms more
    data[at + 4 : at + 8] = (begin + track // 5).to_bytes(4, "big")
    (tmp_path / "a.mp4").write_bytes(data)
    with open_video(tmp_path / "a.mp4") as was:
        assert was.end == Fraction(83, 100)
        assert [f.pts * f.time_base for f in was if f.pts is not None][-1] == Fraction(76, 100)
    process_video(tmp_path / "a.mp4", tmp_path / "b.mp4", model="identity")
    assert verify(tmp_path / "a.mp4", tmp_path / "b.mp4").differences == []
    with open_video(tmp_path / "b.mp4") as now:
        assert now.end == Fraction(83, 100)


@pytest.mark.parametrize(
    "codec", ["wmav1", "wmav2", "pcm_mulaw", "pcm_alaw", "adpcm_ima_wav", "adpcm_ms", "adpcm_yamaha"]
)
def test_sound_of_avi_is_kept_in_matroska(
    tmp_path: Path, video: Path, codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    """FFmpeg's muxer knows no place for it, but the format has one."""
    plain = write_numbered_clip(tmp_path / "plain.avi", 25, SIZE, codec="mpeg4", rate=25)
    source = mux_with(tmp_path / "a.avi", plain, {codec: True, "libmp3lame": False})
    summary = process_video(source, model="identity")
    output = tmp_path / "a.deblurred.mkv"
    assert summary.dropped == ()
    assert told(caplog) == []
    assert verify(source, output).differences == []
    assert [p for _, p in read_packets(output, 1)] == [p for _, p in read_packets(source, 1)]
    with av.open(str(source)) as a, av.open(str(output)) as b:
        x, y = a.streams.audio[0].codec_context, b.streams.audio[0].codec_context
        assert (x.name, x.channels, x.sample_rate) == (y.name, y.channels, y.sample_rate)
        heard = [[f.to_ndarray().tobytes() for f in c.decode(c.streams.audio[0])] for c in (a, b)]
        assert heard[0] == heard[1] != []
    with av.open(str(source)) as container:
        sound = container.streams.audio[0]
        for other in ("mp4", "webm"):
            assert plan_streams(container, 0, other, str(source))[0].keeper == ".mkv", sound.name
