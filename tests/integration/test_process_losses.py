"""What a container does not hold is told, a line each, with the containers that would keep it; all else is silent."""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Discard, Disposition
from av.video.frame import PictureType

from streamdeblur import process_video
from streamdeblur.errors import OutputError
from streamdeblur.video.reader import VideoReader
from streamdeblur.video.writer import VideoWriter
from tests.clips import numbered_picture, write_numbered_clip

pytestmark = pytest.mark.integration

SIZE = (96, 64)


def write_rich(path: Path, *, flip: tuple[int, ...] | None = None) -> Path:
    """Two tracks with all that a container may say: rotation, SAR, colour, chapters, tags, languages, titles, marks."""
    with av.open(str(path), "w", options={"movflags": "+write_colr+use_metadata_tags"}) as container:
        container.metadata.update({"title": "T", "artist": "me", "odd key": "x"})
        stream: Any = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        context = stream.codec_context
        context.sample_aspect_ratio = Fraction(16, 11)
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = 2, 9, 9, 14
        context.time_base = stream.time_base = Fraction(1, 90000)
        if flip:
            stream.set_display_matrix(list(flip))
        else:
            stream.set_display_rotation(90)
        sound: Any = container.add_stream("mp2", rate=48000, layout="mono")
        for s, language, title, mark in ((stream, "fra", "pic", 0), (sound, "deu", "ton", Disposition.comment)):
            s.metadata["language"], s.metadata["title"] = language, title
            s.disposition = Disposition.default | mark
        container.set_chapters(
            [
                {"id": n, "start": 200 * n, "end": 200 * n + 200, "time_base": Fraction(1, 1000), "metadata": {}}
                for n in range(2)
            ]
        )
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(numbered_picture(i, SIZE), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = 3600 * i + i * i * 37 % 1000, Fraction(1, 90000)
            frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc = 2, 9, 9, 14
            container.mux(stream.encode(frame))
            chunk = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), "s16", "mono")
            chunk.sample_rate, chunk.pts, chunk.time_base = 48000, 1920 * i, Fraction(1, 48000)
            container.mux(sound.encode(chunk))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
    return path


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def said(messages: list[str], name: str) -> dict[str, str]:
    """What was lost, each with the endings that would keep it."""
    pattern = rf"lost, because {name} does not hold it: (.*?)(?:; ([., a-z0-9]*) would keep it)?"
    found = [re.fullmatch(pattern, m) for m in messages]
    assert all(found), messages
    return {m[1]: m[2] or "" for m in found if m}


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_nothing_is_told_where_all_is_kept(
    tmp_path: Path, ending: str, lossless: bool, caplog: pytest.LogCaptureFixture
) -> None:
    process_video(write_rich(tmp_path / "a.mp4"), tmp_path / f"b.{ending}", model="identity", lossless=lossless)
    assert told(caplog) == []


def test_avi(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    process_video(write_rich(tmp_path / "a.mp4"), tmp_path / "b.avi", model="identity", lossless=True)
    lost = said(told(caplog), "AVI")
    exact = [k for k in lost if k.startswith("the exact times of frames (rounded by up to 0.")]
    assert len(exact) == 1
    assert {k: v for k, v in lost.items() if k not in exact} == {
        "the rotation or flip of the picture (90 degrees became 0)": ".mp4, .mov, .mkv",
        "the sample aspect ratio 16/11": ".mp4, .mov, .mkv",
        "the colour matrix, colour primaries, transfer characteristic, colour range of the picture": ".mp4, .mkv",
        "2 chapters": ".mp4, .mov, .mkv",
        "the tags odd key": ".mp4, .mkv",
        "the language fra of stream 0 (video); deu of stream 1 (audio)": ".mkv",
        "the mark comment of stream 1 (audio)": ".mkv",
    }


def test_mpeg_ts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its 90 kHz clock is the source's, and x264 itself carries aspect ratio and colour."""
    process_video(write_rich(tmp_path / "a.mp4"), tmp_path / "b.ts", model="identity")
    assert said(told(caplog), "MPEG-TS") == {
        "the rotation or flip of the picture (90 degrees became 0)": ".mp4, .mov, .mkv",
        "2 chapters": ".mp4, .mov, .mkv",
        "the tags artist, odd key, title": ".mp4, .mkv",
        "the language fra of stream 0 (video)": ".mkv",
        "the title 'pic' of stream 0 (video); 'ton' of stream 1 (audio)": ".mkv",
        "the mark comment of stream 1 (audio)": ".mkv",
        # decoding begins two frames of 40 ms before the picture is shown, and nothing is before zero
        "the time at which it begins (frames are moved by 0.082 s)": ".mp4, .mov, .mkv",
    }


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("flip", [(-1, 1), (1, -1)], ids=["horizontal", "vertical"])
def test_flips_are_kept(tmp_path: Path, flip: tuple[int, int], ending: str, caplog: pytest.LogCaptureFixture) -> None:
    source = write_rich(tmp_path / "a.mp4", flip=(flip[0] << 16, 0, 0, 0, flip[1] << 16, 0, 0, 0, 1 << 30))
    process_video(source, tmp_path / f"b.{ending}", model="identity")
    assert told(caplog) == []
    with VideoReader(tmp_path / f"b.{ending}") as reader:
        matrix = reader.tags.display_matrix
        assert matrix is not None
        assert (matrix[0], matrix[4]) == (flip[0] << 16, flip[1] << 16)


def test_times_that_a_clock_of_90_khz_does_not_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 4, SIZE, pts=[0, 1001, 2002, 3003], time_base=Fraction(1, 24000))
    process_video(source, tmp_path / "b.ts", model="identity")
    # 1001 / 24000 s is 3753.75 ticks: a quarter or a half of 1 / 90000 s is rounded off
    lost = said(told(caplog), "MPEG-TS")
    assert lost["the exact times of frames (rounded by up to 0.006 ms)"] == ".mp4, .mov"


def test_hevc_in_mpeg_ts_has_its_headers(tmp_path: Path) -> None:
    """The container has no place for them: they must stand in the stream, at every keyframe."""
    source = write_numbered_clip(tmp_path / "a.mkv", 4, SIZE)
    process_video(source, tmp_path / "b.ts", model="identity", encoder="x265")
    with VideoReader(tmp_path / "b.ts") as reader:
        assert [f.index for f in reader] == [0, 1, 2, 3]
        assert reader.info.codec == "hevc"


def test_a_title_of_a_track_stays_in_mp4(tmp_path: Path) -> None:
    process_video(write_rich(tmp_path / "a.mp4"), tmp_path / "b.mp4", model="identity")
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert [s.metadata.get("name") for s in container.streams][:2] == ["pic", "ton"]


def test_dropped_streams_name_who_would_keep_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 4, SIZE, audio=True)
    process_video(source, tmp_path / "b.webm", model="identity")
    (line,) = told(caplog)
    assert line.startswith("stream 1 (audio, aac) is left out: webm can't hold it")
    assert line.endswith("; .mkv would keep it")


def test_a_file_that_cannot_be_read_again_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 4, SIZE)
    finish = VideoWriter._tell_losses

    def spoiled(self: VideoWriter, tracks: list[Any]) -> None:
        self.partial.write_bytes(b"nothing of a video")
        finish(self, tracks)

    monkeypatch.setattr(VideoWriter, "_tell_losses", spoiled)
    with pytest.raises(OutputError, match=r"b\.mp4: what was written can't be read again"):
        process_video(source, tmp_path / "b.mp4", model="identity")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4"]


# --- fields -------------------------------------------------------------------------------------------------------


def write_fields(path: Path, order: str, size: tuple[int, int], frames: int = 5) -> list[Any]:
    """Lossless frames whose two fields differ in time, of a height that x264 does not take interlaced."""
    woven = []
    rng = np.random.default_rng(3)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25, options={"level": "3"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.field_order = 2 if order == "tff" else 3
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=size[0], height=size[1], format=av.VideoFormat("yuv420p"), time_base=Fraction(1, 25)
        )
        flag = graph.add("setfield", order)
        sink = graph.add("buffersink")
        source.link_to(flag)
        flag.link_to(sink)
        graph.configure()
        for i in range(frames):
            codes = rng.integers(40, 200, (size[1] * 3 // 2, size[0]), dtype=np.uint8)
            codes[1::2] //= 2
            frame = av.VideoFrame.from_ndarray(codes, format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            woven.append(codes)
            graph.push(frame)
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode(None))
    return woven


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
@pytest.mark.parametrize("order", ["tff", "bff"])
def test_fields_of_an_odd_half_height_keep_their_order(
    tmp_path: Path, order: str, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    """486 lines of NTSC: x264 refuses, and what is used instead is seen to say so when it is decoded."""
    woven = write_fields(tmp_path / "a.mkv", order, (72, 486))
    with VideoReader(tmp_path / "a.mkv") as reader:
        assert reader.info.field_order == order
    summary = process_video(tmp_path / "a.mkv", tmp_path / f"b.{ending}", model="identity")
    assert summary.encoder == "ffv1"
    (line,) = told(caplog)
    assert "libx264" in line
    assert "interlaced coding needs a height that is a multiple of 4; using ffv1" in line
    with VideoReader(tmp_path / f"b.{ending}") as reader:
        assert reader.info.field_order == order
        frames = list(reader)
    assert all(f.spec.field_order == order for f in frames)
    for frame, codes in zip(frames, woven, strict=True):
        assert np.array_equal(frame.planes[0], codes[:486])


def test_deinterlacing_what_is_not_interlaced_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_numbered_clip(tmp_path / "a.mkv", 4, SIZE)
    process_video(source, tmp_path / "b.mkv", model="identity", lossless=True, deinterlace=True)
    (line,) = told(caplog)
    assert "--deinterlace has no effect" in line


def test_a_field_order_given_by_hand_makes_deinterlacing_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is wrong about itself: fields stored as plain frames."""
    source = write_numbered_clip(tmp_path / "a.mkv", 4, SIZE)
    process_video(source, tmp_path / "b.mkv", model="identity", lossless=True, deinterlace=True, interlaced="tff")
    assert told(caplog) == []
    with av.open(str(source)) as a, av.open(str(tmp_path / "b.mkv")) as b:
        pairs = zip(a.decode(video=0), b.decode(video=0), strict=True)
        assert all(not np.array_equal(x.to_ndarray(), y.to_ndarray()) for x, y in pairs)


def test_text_that_would_be_nameless_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MPEG-TS takes the packets of any codec, and says nothing of what they are."""
    source = tmp_path / "a.mp4"
    with av.open(str(source), "w") as container:
        video: Any = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        text: Any = container.add_mux_stream("mov_text")
        text.time_base = Fraction(1, 1000)
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(numbered_picture(i, SIZE), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        packet: Any = av.Packet(b"\0\5words")
        packet.stream, packet.time_base, packet.pts, packet.dts = text, Fraction(1, 1000), 0, 0
        packet.duration, packet.is_keyframe = 150, True
        container.mux_one(packet)
    process_video(source, tmp_path / "b.ts", model="identity")
    assert any(
        m == "stream 1 (subtitle, mov_text) is left out: mpegts can't hold it "
        "(it would be private data of no known kind); .mp4 would keep it"
        for m in told(caplog)
    ), told(caplog)
    with av.open(str(tmp_path / "b.ts")) as container:
        assert [s.type for s in container.streams] == ["video"]
    process_video(source, tmp_path / "b.mkv", model="identity")
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert [s.type for s in container.streams] == ["video", "subtitle"]


def test_sound_that_mpeg_ts_knows_is_kept(tmp_path: Path) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 4, SIZE, audio=True)
    process_video(source, tmp_path / "b.ts", model="identity")
    with av.open(str(tmp_path / "b.ts")) as container:
        assert [s.name for s in container.streams] == ["h264", "aac"]


def with_chapters(path: Path) -> Path:
    source = write_numbered_clip(path.with_suffix(".mkv"), 30, SIZE)
    with av.open(str(source)) as a, av.open(str(path), "w") as b:
        b.set_chapters(
            [
                {"id": n, "start": s, "end": e, "time_base": Fraction(1, 1000), "metadata": {"title": f"no {n}"}}
                for n, (s, e) in enumerate(((0, 400), (400, 800), (800, 1200)))
            ]
        )
        target = b.add_stream_from_template(a.streams.video[0], opaque=True)
        for packet in a.demux(video=0):
            if packet.size:
                packet.stream = target
                b.mux(packet)
    return path


def spans(path: Path) -> list[tuple[float, float, str]]:
    with av.open(str(path)) as container:
        return [
            (
                round(float(c["start"] * Fraction(c["time_base"] or 1)), 6),
                round(float(c["end"] * Fraction(c["time_base"] or 1)), 6),
                c["metadata"]["title"],
            )
            for c in container.chapters()
        ]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_chapters_of_a_part_move_with_it(tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture) -> None:
    source, output = with_chapters(tmp_path / "a.mp4"), tmp_path / f"b.{ending}"
    options: dict[str, Any] = {"model": "identity", "overwrite": True}
    process_video(source, output, start=0.5, **options)
    assert spans(output) == [(0, 0.3, "no 1"), (0.3, 0.7, "no 2")]
    process_video(source, output, start=0.4, duration=0.6, **options)
    assert spans(output) == [(0, 0.4, "no 1"), (0.4, 0.6, "no 2")]
    process_video(source, output, duration=0.4, **options)
    assert spans(output) == [(0, 0.4, "no 0")]
    process_video(source, output, **options)
    assert spans(output) == [(0, 0.4, "no 0"), (0.4, 0.8, "no 1"), (0.8, 1.2, "no 2")]
    assert told(caplog) == []


@pytest.mark.parametrize("ending", ["mkv", "avi", "mp4", "mov"])
def test_the_track_of_chapters_is_no_stream_of_its_own(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, output = with_chapters(tmp_path / "a.mp4"), tmp_path / f"b.{ending}"
    summary = process_video(source, output, model="identity")
    assert (summary.copied, summary.dropped) == ((), ())
    assert not any("stream" in m for m in told(caplog))
    with av.open(str(output)) as container:
        assert len([s for s in container.streams if s.discard != Discard.all]) == 1
        assert bool(container.chapters()) == (ending != "avi")


def test_avi_has_its_pictures_in_the_order_of_display(tmp_path: Path) -> None:
    """It stores no presentation times, so that B-frames would be shown at those of their packets."""
    source = write_numbered_clip(tmp_path / "a.mp4", 12, SIZE)
    process_video(source, tmp_path / "b.avi", model="identity", encoder="x264")
    with av.open(str(tmp_path / "b.avi")) as container:
        kinds = {f.pict_type for f in container.decode(video=0)}
        assert PictureType.B not in kinds
        assert not container.streams.video[0].codec_context.has_b_frames


@pytest.mark.parametrize(("last", "end"), [(2400, 175), (2408, 161)], ids=["15 ms of it", "less than a millisecond"])
def test_an_edit_list_that_ends_within_the_last_frame(tmp_path: Path, last: int, end: int) -> None:
    """Its decoder knows the whole length of the frame; what is shown is what the edit list leaves of it."""
    times = [0, 600, 1200, 1800, last]
    source = write_numbered_clip(tmp_path / "a.mp4", 5, SIZE, pts=times, time_base=Fraction(1, 15000))
    data = bytearray(source.read_bytes())
    at = data.index(b"elst") + 12  # version and flags, count, then the duration in ticks of the movie: milliseconds
    data[at : at + 4] = end.to_bytes(4, "big")
    source.write_bytes(data)
    for ending in ("mp4", "mkv", "mov"):
        process_video(source, tmp_path / f"b.{ending}", model="identity")
        with VideoReader(tmp_path / f"b.{ending}") as reader:
            assert reader.end is not None
            assert abs(reader.end - Fraction(end, 1000)) <= Fraction(1, 1000)
            assert sum(1 for _ in reader) == 5
