"""A part of a file: copied pictures begin where they can be decoded, and sound stays with its picture."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamdeblur import process_video
from streamdeblur.video.reader import CopyPacket, VideoReader
from tests.clips import numbered_picture, read_clip, read_number

pytestmark = pytest.mark.integration

SIZE = (96, 64)
SECONDS = 4
RATE = 10
#: Clicks in the sound, one with each picture whose number is a multiple of this.
CLICKS = 5
SOUND = 48000


def write_two_angles(
    path: Path,
    *,
    gop: int = 12,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    audio: str = "pcm_s16le",
) -> Path:
    """Two pictures of the same numbers, of which the second has a keyframe every ``gop``, and a click every 0.5 s."""
    with av.open(str(path), "w") as container:
        first: Any = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "g": "7", "bf": "2"})
        extra = {"g": str(gop), "sc_threshold": "0", **(options or {"bf": "2"})}
        second: Any = container.add_stream(codec, rate=RATE, options=extra)
        sound: Any = container.add_stream(audio, rate=SOUND, layout="mono")
        for s in (first, second):
            s.width, s.height, s.pix_fmt = *SIZE, "yuv420p"
        step = SOUND // RATE
        kind = sound.codec_context.format.name
        for i in range(SECONDS * RATE):
            for s in (first, second):
                frame = av.VideoFrame.from_ndarray(numbered_picture(i, SIZE), format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = i, Fraction(1, RATE)
                container.mux(s.encode(frame))
            wave = np.zeros((1, step), np.float32)
            if i % CLICKS == 0:
                wave[0, :480] = 0.9 * np.sin(np.arange(480) * 0.8)
            packed = wave if kind.startswith("flt") else (wave * 32767).astype(np.int16)
            chunk = av.AudioFrame.from_ndarray(packed, format=kind, layout="mono")
            chunk.sample_rate, chunk.pts, chunk.time_base = SOUND, step * i, Fraction(1, SOUND)
            container.mux(sound.encode(chunk))
        for s in (first, second, sound):
            container.mux(s.encode(None))
    return path


def shown(path: Path, stream: int) -> list[tuple[float, int]]:
    """Time and number of every picture that a player shows."""
    pictures = read_clip(path, stream)
    return [(float(p.time), read_number(p.parts["Y"])) for p in pictures if p.time is not None]


def clicks(path: Path) -> list[float]:
    """When clicks begin, in seconds, by decoding the sound at its own times."""
    found: list[float] = []
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        for frame in container.decode(stream):
            assert frame.pts is not None
            assert frame.time_base is not None
            samples = frame.to_ndarray().astype(np.float64).reshape(-1)
            if frame.format.name.startswith("s16"):
                samples = samples / 32768
            for i in np.flatnonzero(np.abs(samples) > 0.3):
                at = float(frame.pts * frame.time_base) + i / SOUND
                if not found or at - found[-1] > 0.1:
                    found.append(at)
    return found


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records]


@pytest.mark.parametrize("source", ["mkv", "mov", "ts"])
@pytest.mark.parametrize(
    "kind", [{}, {"options": {"bf": "3", "x264-params": "open-gop=1"}}, {"codec": "mpeg4", "options": {"bf": "2"}}]
)
def test_mp4_begins_before_zero_and_shows_every_picture(
    tmp_path: Path, source: str, kind: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """From the last keyframe before the start on; the edit list hides what lies before zero."""
    path = write_two_angles(tmp_path / f"a.{source}", audio="aac" if source == "ts" else "pcm_s16le", **kind)
    start, duration = 1.7, 1.5
    process_video(path, tmp_path / "b.mov", model="identity", start=start, duration=duration)
    first, second = shown(tmp_path / "b.mov", 0), shown(tmp_path / "b.mov", 1)
    origin = min(t for t, _ in shown(path, 0)) if source == "ts" else 0.0
    assert [n for _, n in first] == [n for t, n in shown(path, 0) if -1e-6 <= t - origin - start < duration - 1e-6]
    after = [p for p in second if p[0] >= -1e-6]
    if first[0][0] > 1e-4:  # the picture on show at the start is shown from there
        assert after.pop(0) == (pytest.approx(0, abs=1e-4), first[0][1] - 1)
    assert after[0][0] == pytest.approx(first[0][0], abs=1e-4)
    assert [n for _, n in after][: len(first)] == [n for _, n in first]
    assert [t for t, _ in after][: len(first)] == pytest.approx([t for t, _ in first], abs=1e-4)
    assert len(after) <= len(first) + 4
    assert not [m for m in messages(caplog) if "missing" in m]


@pytest.mark.parametrize("ending", ["mkv", "ts"])
def test_other_containers_begin_with_the_next_keyframe(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_two_angles(tmp_path / "a.mkv", options={"bf": "3", "x264-params": "open-gop=1"})
    process_video(path, tmp_path / f"b.{ending}", model="identity", start=1.7)
    first, second = shown(tmp_path / f"b.{ending}", 0), shown(tmp_path / f"b.{ending}", 1)
    origin = first[0][0]
    assert [n for _, n in first] == list(range(17, 40))
    # keyframes of the second are at 0, 1.2, 2.4 and 3.6 s
    assert [n for _, n in second] == list(range(24, 40))
    assert [t - origin for t, _ in second] == pytest.approx([(n - 17) / RATE for _, n in second], abs=1e-3)
    (said,) = [m for m in messages(caplog) if "missing" in m]
    assert said.startswith("stream 1 (video, h264)")
    assert "0.700 s" in said


def test_a_keyframe_at_the_start_needs_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_two_angles(tmp_path / "a.mkv")
    process_video(path, tmp_path / "b.mkv", model="identity", start=2.4, duration=0.5)
    assert [n for _, n in shown(tmp_path / "b.mkv", 1)][:5] == [24, 25, 26, 27, 28]
    assert messages(caplog) == []


def test_a_stream_without_a_keyframe_in_the_part_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_two_angles(tmp_path / "a.mkv", gop=100)
    summary = process_video(path, tmp_path / "b.mkv", model="identity", start=1.7, duration=1.0)
    assert summary.dropped == ("stream 1 (video, h264)",)
    (said,) = [m for m in messages(caplog) if "stream 1" in m]
    assert "no keyframe" in said
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
    process_video(path, tmp_path / "b.mov", model="identity", start=1.7, duration=1.0)
    assert [n for t, n in shown(tmp_path / "b.mov", 1) if t >= 0][:10] == list(range(17, 27))


def test_every_copied_packet_of_a_part_can_be_decoded(tmp_path: Path) -> None:
    """Pictures at the end are not cut off from those that they are made from."""
    path = write_two_angles(tmp_path / "a.mkv", options={"bf": "3", "b-adapt": "0", "preset": "ultrafast"})
    for tenths in range(12, 18):
        with VideoReader(path, start=1.2, duration=(tenths - 12 + 3) / 10) as reader:
            packets = [i.packet for i in reader.items() if isinstance(i, CopyPacket)]
            mine = [p for p in packets if p.stream.index == 1]
            context = av.CodecContext.create("h264", "r")
            context.extradata = reader.container.streams[1].codec_context.extradata
            frames = [f for p in mine for f in context.decode(p)] + list(context.decode(None))
        numbers = sorted(read_number(np.asarray(f.to_ndarray())[: SIZE[1]]) for f in frames)
        end = tenths + 3
        assert numbers[: end - 12] == list(range(12, end))
        assert not any(f.is_corrupt for f in frames)


@pytest.mark.parametrize(
    ("audio", "source", "output"),
    [
        ("pcm_s16le", "mkv", "mkv"),
        ("pcm_s16le", "mov", "mov"),
        ("aac", "mp4", "mp4"),
        ("aac", "mp4", "mkv"),
        ("aac", "mkv", "mp4"),
        ("libopus", "mkv", "mkv"),
        ("libopus", "mkv", "mp4"),
        ("aac", "ts", "mp4"),
        ("aac", "mp4", "ts"),
    ],
)
@pytest.mark.parametrize("start", [1.7, 1.0])
def test_sound_stays_with_its_picture(tmp_path: Path, audio: str, source: str, output: str, start: float) -> None:
    path = write_two_angles(tmp_path / f"a.{source}", audio=audio)
    process_video(path, tmp_path / f"b.{output}", model="identity", start=start)
    pictures = {n: t for t, n in shown(path, 0)}
    before = [at - pictures[i * CLICKS] for i, at in enumerate(clicks(path))]
    assert len(before) == SECONDS * RATE // CLICKS
    after = {n: t for t, n in shown(tmp_path / f"b.{output}", 0)}
    heard = [at for at in clicks(tmp_path / f"b.{output}") if at > -0.05]
    expected = [after[n] + before[n // CLICKS] for n in after if n % CLICKS == 0]
    # of a click right at the start its very beginning may be cut
    assert len(heard) in (len(expected), len(expected) - (start == 1.0))
    assert heard == pytest.approx(expected[-len(heard) :], abs=0.002)


@pytest.mark.parametrize("ending", ["ts", "mkv", "mov", "nut"])
@pytest.mark.parametrize("first", [1, 5, 9, 13, 30])
def test_no_picture_is_missing_at_the_start(tmp_path: Path, ending: str, first: int) -> None:
    """Wherever in a group of pictures the start lies, and however the demuxer searches: MPEG-TS lands between."""
    path = write_two_angles(tmp_path / f"a.{ending}", audio="aac")
    process_video(path, tmp_path / "b.mkv", model="identity", lossless=True, start=first / RATE)
    numbers = [n for _, n in shown(tmp_path / "b.mkv", 0)]
    # the sound of TS and NUT begins 21 ms before the picture, and with it the file's clock
    assert numbers[0] in (first, first - 1)
    assert numbers == list(range(numbers[0], SECONDS * RATE))
