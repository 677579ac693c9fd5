"""The main job keeps what a file says of itself: time, geometry, colour, fields, and every other stream."""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import time
import weakref
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from streamdeblur import process_video
from streamdeblur.errors import ConfigError, EncoderError, OutputError, UsageError
from streamdeblur.frames import Frame
from streamdeblur.jobs.process import Job
from streamdeblur.restore import Restorer
from streamdeblur.video.reader import VideoReader
from streamdeblur.video.writer import VideoWriter
from tests.clips import (
    Picture,
    components,
    numbered_picture,
    read_clip,
    read_number,
    read_packets,
    write_noise_clip,
    write_numbered_clip,
)

pytestmark = pytest.mark.integration

SIZE = (96, 64)


def identity(source: Path, output: Path, **options: Any) -> Any:
    return process_video(source, output, **{"model": "identity", "lossless": True, **options})


def numbers(path: Path) -> list[int]:
    return [read_number(p.parts["Y"]) for p in read_clip(path)]


def times(path: Path, stream: int = 0) -> list[Fraction | None]:
    return [p.time for p in read_clip(path, stream)]


def expect_same_pixels(a: list[Picture], b: list[Picture]) -> None:
    assert len(a) == len(b)
    assert all(x.same(y) for x, y in zip(a, b, strict=True))


# --- order and time -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "avi"])
def test_b_frames_come_out_in_order(tmp_path: Path, ending: str) -> None:
    source = write_numbered_clip(
        tmp_path / f"a.{ending}", 24, SIZE, options={"bf": "0" if ending == "avi" else "3", "g": "12", "b-adapt": "0"}
    )
    if ending != "avi":
        packets = read_packets(source, 0)
        assert [t for t, _ in packets] != sorted(t for t, _ in packets if t is not None)  # the source is reordered
    summary = identity(source, tmp_path / "b.mp4")
    assert summary.frames == 24
    assert numbers(tmp_path / "b.mp4") == list(range(24))
    assert times(tmp_path / "b.mp4") == times(source)
    expect_same_pixels(read_clip(source), read_clip(tmp_path / "b.mp4"))


def test_variable_frame_rate_through_the_lossy_encoder(tmp_path: Path) -> None:
    pts = [0, 3003, 3500, 9009, 9100, 27027, 45045, 45100, 90090, 180180]
    source = write_numbered_clip(tmp_path / "a.mp4", 10, SIZE, pts=pts, options={"bf": "2"})
    process_video(source, tmp_path / "b.mp4", model="identity")
    assert times(tmp_path / "b.mp4") == times(source) == [Fraction(p, 90000) for p in pts]
    assert numbers(tmp_path / "b.mp4") == list(range(10))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("start", "duration", "expected"),
    [(0.4, 0.6, range(4, 10)), (None, 0.5, range(5)), (1.5, None, range(15, 20)), (0.05, 0.1, range(1, 2))],
)
def test_a_part_of_a_file(
    tmp_path: Path, ending: str, start: float | None, duration: float | None, expected: range
) -> None:
    """Frames with start <= time < start + duration, whatever the decoder still holds at the end of the file."""
    source = write_numbered_clip(tmp_path / f"a.{ending}", 20, SIZE, rate=10, audio=True, options={"bf": "2"})
    summary = identity(source, tmp_path / "b.mkv", start=start, duration=duration)
    assert numbers(tmp_path / "b.mkv") == list(expected)
    assert summary.frames == len(expected)
    first = Fraction(str(start or 0))
    assert times(tmp_path / "b.mkv") == [Fraction(n, 10) - first for n in expected]
    heard = [t for t, _ in read_packets(tmp_path / "b.mkv", 1) if t is not None]
    length = Fraction(str(duration)) if duration else 2 - first
    assert Fraction(-1, 20) <= min(heard) <= Fraction(1, 20)
    assert length - Fraction(1, 10) <= max(heard) <= length + Fraction(1, 20)


# --- geometry and colour ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lossless", [True, False], ids=["lossless", "lossy"])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_aspect_ratio_rotation_and_colour_tags(tmp_path: Path, ending: str, lossless: bool) -> None:
    source = tmp_path / "a.mp4"
    with av.open(str(source), "w", options={"movflags": "+write_colr"}) as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        context = stream.codec_context
        context.sample_aspect_ratio = Fraction(16, 11)
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 2, 9, 9, 14
        stream.set_display_rotation(90)
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(numbered_picture(i, SIZE), format="rgb24").reformat(format="yuv420p")
            frame.pts = i
            frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc = 2, 9, 9, 14
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    def facts(path: Path) -> tuple[Any, ...]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frame = next(container.decode(stream))
            tags = (frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc)
            return stream.sample_aspect_ratio, frame.rotation, *(int(t) for t in tags)

    assert facts(source)[0] == Fraction(16, 11)
    assert abs(facts(source)[1]) == 90
    assert facts(source)[2:] == (2, 9, 9, 14)
    process_video(source, tmp_path / f"b.{ending}", model="identity", lossless=lossless)
    assert facts(tmp_path / f"b.{ending}") == facts(source)


def write_interlaced(path: Path, order: str, frames: int = 4, size: tuple[int, int] = (96, 64)) -> list[Any]:
    """Fields of different moments woven together, coded losslessly by x264; returns the weave."""
    woven = []
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(
            "libx264", rate=25, options={"preset": "ultrafast", "qp": "0", "x264-params": f"{order}=1"}
        )
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.flags |= int(av.codec.context.Flags.interlaced_dct)
        stream.codec_context.field_order = 2 if order == "tff" else 3
        rng = np.random.default_rng(5)
        base = rng.integers(60, 180, (size[1] + 80, size[0] + 80), dtype=np.uint8)
        for i in range(frames):
            frame = av.VideoFrame(*size, "yuv420p")
            for n, plane in enumerate(frame.planes):
                codes = np.zeros((plane.height, plane.line_size), np.uint8)
                for parity in (0, 1):
                    moment = 2 * i + (parity if order == "tff" else 1 - parity)
                    picture = base[: plane.height, 5 * moment + n : 5 * moment + n + plane.width]
                    codes[parity::2, : plane.width] = picture[parity::2]
                plane.update(codes.tobytes())
            frame.pts = i
            woven.append(components(frame))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return woven


@pytest.mark.parametrize("order", ["tff", "bff"])
def test_fields_are_kept_and_their_order_too(tmp_path: Path, order: str) -> None:
    source = tmp_path / "a.mkv"
    woven = write_interlaced(source, order)
    assert all(p.native.interlaced_frame for p in read_clip(source))
    for name, options in {"ffv1.mkv": {}, "ffv1.mp4": {}, "x264.mkv": {"encoder": "x264"}}.items():
        output = tmp_path / name
        identity(source, output, **options)
        after = read_clip(output)
        for picture, planes in zip(after, woven, strict=True):
            assert all(np.array_equal(picture.parts[k], planes[k]) for k in planes)
        if not name.endswith("mp4") or options:
            with VideoReader(output) as again:
                assert again.info.field_order == order, name


@pytest.mark.parametrize("order", ["tff", "bff"])
def test_each_field_is_restored_as_its_own_picture(tmp_path: Path, order: str) -> None:
    """The network sees each field alone: the result is that of the fields as two progressive clips, interwoven."""
    source = tmp_path / "a.mkv"
    woven = write_interlaced(source, order, frames=2)
    network: dict[str, Any] = {"model": "mimo-unet-small", "weights": "random:1", "precision": "fp32", "threads": 1}
    identity(source, tmp_path / "b.mkv", **network)
    after = read_clip(tmp_path / "b.mkv")
    for parity in (0, 1):
        path = tmp_path / f"{parity}.mkv"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
            for i, planes in enumerate(woven):
                frame = av.VideoFrame(96, 32, "yuv420p")
                for plane, codes in zip(frame.planes, planes.values(), strict=True):
                    rows = np.zeros((plane.height, plane.line_size), np.uint8)
                    rows[:, : plane.width] = codes[parity::2]
                    plane.update(rows.tobytes())
                frame.pts = i
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        identity(path, tmp_path / f"{parity}.out.mkv", **network)
        changed = 0
        for picture, field, planes in zip(after, read_clip(tmp_path / f"{parity}.out.mkv"), woven, strict=True):
            for k, codes in field.parts.items():
                np.testing.assert_array_equal(picture.parts[k][parity::2], codes)
                changed += int((codes != planes[k][parity::2]).sum())
        assert changed > 500  # the network did something


def test_a_step_on_interlaced_frames_is_the_step_everywhere(tmp_path: Path) -> None:
    woven = write_interlaced(tmp_path / "a.mkv", "tff")
    identity(tmp_path / "a.mkv", tmp_path / "b.mkv", model="offset:0.1,0.1,0.1")
    for picture, planes in zip(read_clip(tmp_path / "b.mkv"), woven, strict=True):
        assert np.array_equal(picture.parts["Y"], planes["Y"] + 22)  # 21.9 codes of 219
        assert np.array_equal(picture.parts["U"], planes["U"])


def test_deinterlacing_gives_progressive_frames(tmp_path: Path) -> None:
    write_interlaced(tmp_path / "a.mkv", "tff", frames=6)
    summary = identity(tmp_path / "a.mkv", tmp_path / "b.mkv", deinterlace=True)
    after = read_clip(tmp_path / "b.mkv")
    assert summary.frames == len(after) == 6
    assert not any(p.native.interlaced_frame for p in after)
    assert [p.time for p in after] == times(tmp_path / "a.mkv")
    assert not any(a.same(b) for a, b in zip(after, read_clip(tmp_path / "a.mkv"), strict=True))


# --- other streams ------------------------------------------------------------------------------------------------


def write_everything(path: Path, subtitles: str = "subrip", *, second_video: bool = True) -> Path:
    """A file with two videos, two sound tracks, subtitles, an attachment, chapters and tags."""
    header = b"[Script Info]\n\n[V4+ Styles]\n\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Everything"
        container.metadata["comment"] = "kept"
        video: Any = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        videos = [video]
        if second_video:
            videos.append(container.add_stream("mpeg4", rate=25))
        for v in videos:
            v.width, v.height, v.pix_fmt = 96, 64, "yuv420p"
        videos[0].disposition = Disposition.default
        videos[0].metadata["title"] = "the picture"
        english: Any = container.add_stream("aac", rate=48000, layout="mono")
        german: Any = container.add_stream("flac" if path.suffix == ".mkv" else "mp2", rate=48000, layout="stereo")
        for s, language, title in ((english, "eng", "Main"), (german, "deu", "Kommentar")):
            s.metadata["language"], s.metadata["title"] = language, title
        english.disposition = Disposition.default
        german.disposition = Disposition.comment
        text: Any = container.add_stream("ass") if subtitles == "ass" else container.add_mux_stream(subtitles)
        text.metadata["language"] = "fra"
        text.time_base = Fraction(1, 1000)
        if subtitles == "ass":
            text.codec_context.subtitle_header = header
        if path.suffix == ".mkv":
            container.add_attachment("font.ttf", "application/x-truetype-font", b"not really a font" * 20)
        container.set_chapters(
            [
                {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "One"}},
                {"id": 2, "start": 400, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "Two"}},
            ]
        )
        container.start_encoding()
        lines = {"subrip": b"<i>Bonjour</i> %d", "ass": b"%d,0,Default,,0,0,0,,Bonjour", "mov_text": b"Bonjour %d"}
        for i in range(25):
            for n, v in enumerate(videos):
                frame = av.VideoFrame.from_ndarray(numbered_picture(i + 100 * n, SIZE), format="rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(v.encode(frame))
            for s, channels in ((english, 1), (german, 2)):
                kind = s.codec_context.format.name
                rng = np.random.default_rng(i)
                wave = rng.integers(-2000, 2000, (1, 1920 * channels)).astype(np.int16)
                chunk = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono" if channels == 1 else "stereo")
                chunk.sample_rate, chunk.pts, chunk.time_base = 48000, 1920 * i, Fraction(1, 48000)
                resampler = av.AudioResampler(kind, "mono" if channels == 1 else "stereo", 48000)
                for part in resampler.resample(chunk):
                    container.mux(s.encode(part))
            if i in (3, 13):
                payload = lines[subtitles] % i
                if subtitles == "mov_text":
                    payload = len(payload).to_bytes(2, "big") + payload
                packet: Any = av.Packet(payload)
                packet.stream, packet.pts, packet.dts, packet.duration = text, i * 40, i * 40, 300
                packet.time_base = Fraction(1, 1000)
                container.mux(packet)
        for s in (*videos, english, german):
            container.mux(s.encode(None))
    return path


def layout_of(path: Path) -> list[tuple[Any, ...]]:
    with av.open(str(path)) as container:
        return [
            (s.type, s.codec_context.name if s.codec_context else None, s.language, s.metadata.get("title"),
             int(s.disposition))
            for s in container.streams
        ]  # fmt: skip


def test_every_other_stream_is_kept_in_matroska(tmp_path: Path) -> None:
    source = write_everything(tmp_path / "a.mkv")
    summary = identity(source, tmp_path / "b.mkv")
    before, after = layout_of(source), layout_of(tmp_path / "b.mkv")
    assert [s[0] for s in before] == ["video", "video", "audio", "audio", "subtitle", "attachment"]
    assert [s[0] for s in after] == [s[0] for s in before]
    assert after[0][1:] == ("ffv1", *before[0][2:])
    assert after[1:] == before[1:]
    for index in (1, 2, 3, 4):
        mine, theirs = read_packets(source, index), read_packets(tmp_path / "b.mkv", index)
        assert [d for _, d in mine] == [d for _, d in theirs]
        assert [t for t, _ in mine] == [t for t, _ in theirs]
    with av.open(str(source)) as a, av.open(str(tmp_path / "b.mkv")) as b:
        assert b.streams.attachments[0].data == a.streams.attachments[0].data == b"not really a font" * 20
        assert b.streams.attachments[0].metadata["filename"] == "font.ttf"
        assert (b.metadata["title"], b.metadata["COMMENT"]) == ("Everything", "kept")

        def chapters(c: Any) -> list[tuple[Any, ...]]:
            return [(x["start"] * x["time_base"], x["end"] * x["time_base"], x["metadata"]) for x in c.chapters()]

        assert chapters(b) == chapters(a)
        assert len(chapters(a)) == 2
    assert len(summary.copied) == 5
    assert summary.dropped == ()


def test_what_mp4_cannot_hold_is_converted_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_everything(tmp_path / "a.mkv")
    summary = identity(source, tmp_path / "b.mp4")
    after = layout_of(tmp_path / "b.mp4")
    assert [s[0] for s in after][:5] == ["video", "video", "audio", "audio", "subtitle"]
    assert after[4][1:3] == ("mov_text", "fra")
    assert [s[2] for s in after[2:4]] == ["eng", "deu"]
    for index in (1, 2, 3):
        assert [d for _, d in read_packets(source, index)] == [d for _, d in read_packets(tmp_path / "b.mp4", index)]
    texts = [(t, d[2:]) for t, d in read_packets(tmp_path / "b.mp4", 4) if len(d) > 2]
    assert texts == [(Fraction(120, 1000), b"Bonjour 3"), (Fraction(520, 1000), b"Bonjour 13")]
    (dropped,) = summary.dropped
    assert dropped.startswith("stream 5 (attachment")
    assert any("stream 5 (attachment" in r.getMessage() for r in caplog.records)
    with av.open(str(tmp_path / "b.mp4")) as b:
        assert [c["metadata"]["title"] for c in b.chapters()] == ["One", "Two"]
        assert b.metadata["title"] == "Everything"


def test_mov_text_becomes_subrip_in_matroska(tmp_path: Path) -> None:
    source = write_everything(tmp_path / "a.mp4", "mov_text", second_video=False)
    identity(source, tmp_path / "b.mkv")
    after = layout_of(tmp_path / "b.mkv")
    assert [s[:3] for s in after if s[0] == "subtitle"] == [("subtitle", "srt", "fra")]
    index = [s[0] for s in after].index("subtitle")
    assert read_packets(tmp_path / "b.mkv", index) == [
        (Fraction(120, 1000), b"Bonjour 3"),
        (Fraction(520, 1000), b"Bonjour 13"),
    ]
    with av.open(str(tmp_path / "b.mkv")) as b:
        durations = [p.duration * p.time_base for p in b.demux(subtitles=0) if p.size]
    assert durations == [Fraction(300, 1000)] * 2


def test_ass_in_mp4_is_dropped_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_everything(tmp_path / "a.mkv", "ass")
    summary = identity(source, tmp_path / "b.mp4")
    assert "stream 4 (subtitle, ass)" in summary.dropped
    assert any("stream 4 (subtitle, ass) is left out" in r.getMessage() for r in caplog.records)
    assert [s[0] for s in layout_of(tmp_path / "b.mp4")][:4] == ["video", "video", "audio", "audio"]
    identity(source, tmp_path / "b.mkv")
    assert read_packets(source, 4) == read_packets(tmp_path / "b.mkv", 4)


def test_the_second_video_by_choice(tmp_path: Path) -> None:
    source = write_everything(tmp_path / "a.mkv")
    identity(source, tmp_path / "b.mkv", stream=1)
    assert [s[1] for s in layout_of(tmp_path / "b.mkv")][:2] == ["h264", "ffv1"]
    assert [read_number(p.parts["Y"]) for p in read_clip(tmp_path / "b.mkv", 1)] == list(range(100, 125))
    assert [d for _, d in read_packets(source, 0)] == [d for _, d in read_packets(tmp_path / "b.mkv", 0)]
    with pytest.raises(UsageError, match="video stream 2"):
        identity(source, tmp_path / "c.mkv", stream=2)


# --- encoders -----------------------------------------------------------------------------------------------------


def codec_of(path: Path) -> tuple[str, str]:
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return str(context.codec.canonical_name), str(context.pix_fmt)


def test_the_default_is_x264_at_crf_18(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 6, SIZE)
    summary = process_video(source, model="identity")
    output = tmp_path / "a.deblurred.mp4"
    assert summary.output == str(output)
    assert codec_of(output) == ("h264", "yuv420p")
    assert b"crf=18.0" in output.read_bytes()  # x264 writes its settings into the stream
    assert numbers(output) == list(range(6))
    assert caplog.records == []
    process_video(source, tmp_path / "b.mp4", model="identity", crf=31, preset="medium")
    assert b"crf=31.0" in (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(("ending", "expected"), [("mov", "mov"), ("mkv", "mkv"), ("avi", "mkv"), ("ts", "mkv")])
def test_default_outputs(tmp_path: Path, ending: str, expected: str) -> None:
    source = write_numbered_clip(tmp_path / f"a.{ending}", 4, SIZE)
    assert process_video(source, model="identity").output == str(tmp_path / f"a.deblurred.{expected}")
    assert numbers(tmp_path / f"a.deblurred.{expected}") == list(range(4))


@pytest.mark.parametrize(
    ("pix_fmt", "size", "codec", "said"),
    [
        ("yuv420p", (97, 65), "av1", "libx264 takes no yuv420p of 97x65"),
        ("yuv420p10le", (96, 64), "h264", None),
        ("yuv422p10le", (96, 64), "h264", None),
        ("yuv444p", (97, 65), "h264", None),
        ("yuv420p12le", (96, 64), "hevc", "libx264 takes no yuv420p12le"),
        ("yuv444p12le", (96, 64), "hevc", "libx264 takes no yuv444p12le"),
    ],
)
def test_depth_size_and_chroma_never_change(
    tmp_path: Path, pix_fmt: str, size: tuple[int, int], codec: str, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_numbered_clip(tmp_path / "a.mkv", 4, size, codec="ffv1", pix_fmt=pix_fmt)
    summary = process_video(source, tmp_path / "b.mp4", model="identity")
    assert codec_of(tmp_path / "b.mp4") == (codec, pix_fmt)
    assert (summary.width, summary.height, summary.pix_fmt) == (*size, pix_fmt)
    assert numbers(tmp_path / "b.mp4") == list(range(4))
    messages = [r.getMessage() for r in caplog.records]
    if said is None:
        assert messages == []
    else:
        assert len([m for m in messages if said in m and f"using {summary.encoder}" in m]) == 1


class _Scheduling:
    """How this process's threads are scheduled, now and whenever a frame is written."""

    def __init__(self) -> None:
        self.before = (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority)
        self.seen: set[tuple[int, int]] = set()

    def look(self, _: object = None) -> None:
        for tid in map(int, os.listdir("/proc/self/task")):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                self.seen.add((os.sched_getscheduler(tid), os.sched_getparam(tid).sched_priority))


@pytest.mark.parametrize("name", ["x265", "av1", "vp9", "ffv1"])
def test_encoders_by_name(tmp_path: Path, name: str) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 4, (320, 240))
    preset = "auto" if name == "ffv1" else "ultrafast"
    threads = _Scheduling()
    process_video(source, tmp_path / "b.mkv", model="identity", encoder=name, preset=preset, progress=threads.look)
    threads.look()
    assert threads.seen == {threads.before}  # SVT-AV1 makes all of them real-time where it may
    expected = {"x265": "hevc"}.get(name, name)
    assert codec_of(tmp_path / "b.mkv") == (expected, "yuv420p")
    assert numbers(tmp_path / "b.mkv") == list(range(4))
    assert times(tmp_path / "b.mkv") == [Fraction(round(1000 * i / 30), 1000) for i in range(4)]


def test_sound_before_the_first_frame_makes_no_thread_real_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder opens with the file's header then, and not with its first frame."""
    source = write_everything(tmp_path / "a.mkv")
    threads, came, late = _Scheduling(), [], Job.settled
    copy, write = VideoWriter.copy, VideoWriter.write

    def slowly(self: Job, done: Any) -> Any:
        time.sleep(0.0 if came else 0.5)
        return late(self, done)

    monkeypatch.setattr(Job, "settled", slowly)
    monkeypatch.setattr(VideoWriter, "copy", lambda *a: (came.append("packet"), copy(*a))[1])
    monkeypatch.setattr(VideoWriter, "write", lambda *a: (came.append("frame"), write(*a))[1])
    process_video(
        source, tmp_path / "b.mkv", model="identity", encoder="av1", preset="ultrafast", progress=threads.look
    )
    threads.look()
    assert came[0] == "packet"
    assert threads.seen == {threads.before}


@pytest.mark.parametrize(("name", "ending"), [("x264", "mp4"), ("x265", "mp4"), ("vp9", "mkv"), ("auto", "mov")])
def test_lossless_of_other_encoders(tmp_path: Path, name: str, ending: str) -> None:
    source = write_noise_clip(tmp_path / "a.mkv", "yuv420p", frames=3, matrix=1)
    identity(source, tmp_path / f"b.{ending}", encoder=name, preset="ultrafast")
    expect_same_pixels(read_clip(source), read_clip(tmp_path / f"b.{ending}"))


def test_webm_drops_what_it_cannot_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 4, (320, 240), audio=True)
    summary = process_video(source, tmp_path / "b.webm", model="identity", preset="ultrafast")
    assert codec_of(tmp_path / "b.webm")[0] in ("av1", "vp9")
    assert numbers(tmp_path / "b.webm") == list(range(4))
    assert summary.dropped == ("stream 1 (audio, aac)",)
    assert sum("stream 1 (audio, aac)" in r.getMessage() for r in caplog.records) == 1


MASTER = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"


def test_hdr10_goes_to_x265_with_its_light_levels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "a.mp4"
    params = f"log-level=error:hdr10=1:master-display={MASTER}:max-cll=1000,400:colorprim=9:transfer=16:colormatrix=9"
    with av.open(str(source), "w") as container:
        stream: Any = container.add_stream("libx265", rate=25, options={"preset": "ultrafast", "x265-params": params})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        context = stream.codec_context
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 1, 9, 9, 16
        for i in range(4):
            frame = av.VideoFrame.from_ndarray(numbered_picture(i, SIZE), format="rgb24").reformat(format="yuv420p10le")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))

    def light(path: Path) -> dict[str, bytes]:
        side = read_clip(path)[0].native.side_data
        wanted = ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")
        return {d.type.name: bytes(d) for d in side if d.type.name in wanted}

    assert len(light(source)) == 2
    summary = process_video(source, tmp_path / "b.mp4", model="identity")
    assert (summary.encoder, summary.pix_fmt) == ("libx265", "yuv420p10le")
    assert light(tmp_path / "b.mp4") == light(source)
    assert int(read_clip(tmp_path / "b.mp4")[0].native.color_trc) == 16
    assert caplog.records == []
    process_video(source, tmp_path / "c.mp4", model="identity", encoder="x264")
    assert any("HDR10" in r.getMessage() and "lost" in r.getMessage() for r in caplog.records)


def test_unknown_words_are_one_line(tmp_path: Path) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 2, SIZE)
    for options, error, text in (
        ({"encoder": "x624"}, UsageError, "did you mean x26[45]"),
        ({"model": "mimo-unet-smal", "weights": "random:1"}, UsageError, "did you mean mimo-unet-small"),
        ({"preset": "fastest"}, ConfigError, "preset"),
        ({"qualty": 3}, ConfigError, "unknown option 'qualty'"),
        ({"lossles": True}, ConfigError, "did you mean lossless"),
        ({"duration": 0.0}, ConfigError, "selects nothing"),
    ):
        with pytest.raises(error, match=text) as e:
            process_video(source, tmp_path / "b.mp4", **{"model": "identity", **options})
        assert "\n" not in str(e.value)
    with pytest.raises(UsageError, match=r"\.xyz"):
        process_video(source, tmp_path / "b.xyz", model="identity")
    with pytest.raises(EncoderError, match="no encoder"):
        process_video(write_noise_clip(tmp_path / "g.mkv", "gray16le", color_range=2),
                      tmp_path / "b.ts", model="identity")  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "g.mkv"]


# --- ledger -------------------------------------------------------------------------------------------------------


def test_the_ledger_has_a_line_for_every_frame(tmp_path: Path) -> None:
    pts = [0, 3003, 3500, 9009, 9100]
    source = write_numbered_clip(tmp_path / "a.mp4", 5, SIZE, pts=pts)
    ledger = tmp_path / "l.jsonl"
    summary = process_video(source, tmp_path / "b.mp4", model="offset", ledger=ledger)
    header, *frames, last = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert (header["type"], header["source"], header["output"]) == ("header", str(source), summary.output)
    assert header["settings"]["model"] == "offset"
    assert [f["index"] for f in frames] == list(range(5))
    assert [f["pts_in"] for f in frames] == [f["pts_out"] for f in frames] == pts
    assert {f["time_base"] for f in frames} == {"1/90000"}
    assert {f["status"] for f in frames} == {"restored"}
    assert last["type"] == "summary"
    assert last["frames"] == 5
    assert last["counts"] == {"restored": 5, "bypassed": 0, "failed": 0, "dropped": 0}
    assert last["error"] is None


def test_the_ledger_of_a_failed_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 6, SIZE)
    correction = Restorer.correction

    def broken(self: Restorer, frame: Frame) -> Any:
        if frame.index == 3:
            raise ValueError("cursed")
        return correction(self, frame)

    monkeypatch.setattr(Restorer, "correction", broken)
    with pytest.raises(Exception, match=r"frame 3 at 0\.100 s of .*a\.mp4 can't be restored: ValueError: cursed"):
        process_video(source, tmp_path / "b.mp4", model="identity", ledger=tmp_path / "l")
    last = json.loads((tmp_path / "l").read_text().splitlines()[-1])
    assert "frame 3" in last["error"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "l"]

    seen: list[Any] = []
    summary = identity(source, tmp_path / "b.mkv", on_error="bypass", ledger=tmp_path / "l", progress=seen.append)
    assert (summary.frames, summary.restored, summary.bypassed) == (6, 5, 1)
    frames = [json.loads(line) for line in (tmp_path / "l").read_text().splitlines()][1:-1]
    assert [f["status"] for f in frames] == ["restored"] * 3 + ["bypassed"] + ["restored"] * 2
    assert frames[3]["reason"] == "ValueError: cursed"
    expect_same_pixels(read_clip(source), read_clip(tmp_path / "b.mkv"))
    assert [p.frames for p in seen] == list(range(1, 7))
    assert seen[-1].bypassed == 1
    assert seen[-1].total == 6


# --- what is left behind, and what is held ------------------------------------------------------------------------


def test_an_existing_file_needs_overwrite_and_survives_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 6, SIZE)
    output = tmp_path / "b.mp4"
    output.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"b\.mp4 exists; --overwrite"):
        process_video(source, output, model="identity")
    write = VideoWriter.write

    def failing(self: VideoWriter, frame: Frame, like: Any = None) -> int:
        if frame.index == 4:
            raise OutputError("the disk fell off")
        return write(self, frame, like)

    monkeypatch.setattr(VideoWriter, "write", failing)
    with pytest.raises(OutputError, match="the disk fell off"):
        process_video(source, output, model="identity", overwrite=True)
    monkeypatch.undo()
    assert output.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    process_video(source, output, model="identity", overwrite=True)
    assert numbers(output) == list(range(6))


@pytest.mark.parametrize("slow", ["writer", "network"])
def test_frames_in_memory_do_not_depend_on_the_length(
    tmp_path: Path, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planes alive at any time, of source frames: what the queues may hold, however far the reader could run ahead."""
    alive = peak = made = 0
    lock = threading.Lock()
    make, write, correction = VideoReader._make, VideoWriter.write, Restorer.correction

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def counted(self: VideoReader, native: Any) -> Any:
        nonlocal alive, peak, made
        frame = make(self, native)
        if self.path != str(source):
            return frame  # the output, read again at the end
        with lock:
            alive, made = alive + 1, made + 1
            peak = max(peak, alive)
        weakref.finalize(frame.planes[0], gone)
        return frame

    def slow_write(self: VideoWriter, frame: Frame, like: Any = None) -> int:
        time.sleep(0.004 if slow == "writer" else 0)
        return write(self, frame, like)

    def slow_correction(self: Restorer, frame: Frame) -> Any:
        time.sleep(0.004 if slow == "network" else 0)
        return correction(self, frame)

    monkeypatch.setattr(VideoReader, "_make", counted)
    monkeypatch.setattr(VideoWriter, "write", slow_write)
    monkeypatch.setattr(Restorer, "correction", slow_correction)
    source = write_noise_clip(tmp_path / "a.mkv", "yuv420p", size=(16, 16), frames=400)
    identity(source, tmp_path / "b.mkv")
    # The reader's queue (3) and hand (1), the first frame that the reader keeps (1), the pool's credits and the reorder
    # buffer's room (2 * 2 + 2), the pump's hand (1), the writer's queue (4) and hand (1), and its corrected original.
    assert made == 400
    assert 5 <= peak <= 20
    gc.collect()
    assert alive <= 1


def test_threads_end_with_the_job(tmp_path: Path) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 4, SIZE)
    before = set(threading.enumerate())
    process_video(source, tmp_path / "b.mp4", model="identity")
    with pytest.raises(UsageError):
        process_video(source, tmp_path / "c.mp4", model="identity", encoder="none")
    for thread in set(threading.enumerate()) - before:
        if thread.name == "restore":
            thread.join(60)  # told to end, and not waited for where a frame may still be in the network
    names = {t.name for t in set(threading.enumerate()) - before}
    assert not names & {"reader", "writer", "restore"}


def test_quiet_where_nothing_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    source = write_numbered_clip(tmp_path / "a.mkv", 4, SIZE, audio=True, metadata={"title": "t"})
    process_video(source, tmp_path / "b.mkv", model="identity")
    process_video(source, tmp_path / "b.mp4", model="identity")
    assert caplog.records == []
