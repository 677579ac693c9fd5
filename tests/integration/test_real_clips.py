"""Real footage (STREAMDEBLUR_DATA): identity is exact, verify agrees, a malformed file is one line."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamdeblur import process_video
from streamdeblur.errors import UnreadableInput
from streamdeblur.jobs.verify import verify
from streamdeblur.video.packets import without_adts

pytestmark = pytest.mark.integration

#: Seconds of each clip; the whole files are the business of ``make soak``.
CLIPS = {
    "ass_subtitles.mkv": 1.0, "bt2020_10bit.mp4": 0.3, "bt709_full_range_720p.mp4": 0.3, "chapters.mkv": 1.0,
    "driving_720p.mp4": 0.3, "edit_list_rotated_hlg.mp4": 0.2, "fixed_camera_pedestrians.avi": 0.3,
    "handheld_dog_720p_audio.mp4": 0.3, "hdr10_1080p.mp4": 0.2, "no_initial_keyframe.ts": 2.5,
    "odd_size_444_10bit.mp4": 0.5, "odd_size_vp9.mp4": 0.5, "rotated.mp4": 0.5, "sar_2x1.mp4": 0.3,
    "two_video_two_audio_subs.mp4": 0.5, "vfr_cursed.mp4": 3.0,
}  # fmt: skip
SLOW = [*CLIPS, "driving_highway_audio.mp4", "fixed_camera_cars.mp4", "fixed_camera_traffic.mp4"]


def frames(path: Path, until: int | None = None) -> Any:
    """(seconds, bytes of the visible planes) of the default video stream, by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        n = 0
        for packet in container.demux(stream):
            try:
                decoded = stream.decode(packet if packet.size else None)
            except av.error.FFmpegError:
                assert n == 0, "only a capture that starts in mid-GOP may begin with packets that don't decode"
                continue
            for frame in decoded:
                planes = []
                for plane in frame.planes:
                    wide = 2 if frame.format.components[0].bits > 8 else 1
                    rows = np.frombuffer(bytes(plane), np.uint8).reshape(plane.height, plane.line_size)
                    planes.append(rows[:, : plane.width * wide].tobytes())
                assert frame.pts is not None
                yield frame.pts * Fraction(stream.time_base or 1), planes
                n += 1
                if n == until:
                    return


def compare(source: Path, output: Path, count: int, tolerance: Fraction) -> None:
    ours = list(frames(output))
    assert len(ours) == count
    for i, ((t, planes), (u, others)) in enumerate(zip(frames(source, count), ours, strict=True)):
        assert abs(t - u) <= tolerance, f"frame {i}: {t} s became {u} s"
        assert planes == others, f"frame {i}"


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("name", CLIPS)
def test_identity_is_exact_at_the_beginning(clips: Path, tmp_path: Path, name: str, ending: str) -> None:
    output = tmp_path / f"out.{ending}"
    summary = process_video(clips / name, output, model="identity", lossless=True, duration=CLIPS[name])
    assert summary.frames >= 2
    compare(clips / name, output, summary.frames, Fraction(1, 2000) if ending == "mkv" else Fraction(0))
    assert verify(clips / name, output, duration=CLIPS[name]).differences == []


def payloads(path: Path, index: int) -> list[bytes]:
    with av.open(str(path)) as container:
        return [without_adts(bytes(p)) for p in container.demux(container.streams[index]) if p.size]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SLOW)
def test_identity_is_exact_to_the_end(clips: Path, tmp_path: Path, name: str) -> None:
    for ending, tolerance in (("mp4", Fraction(0)), ("mkv", Fraction(1, 2000))):
        output = tmp_path / f"out.{ending}"
        summary = process_video(clips / name, output, model="identity", lossless=True)
        compare(clips / name, output, sum(1 for _ in frames(clips / name)), tolerance)
        assert summary.frames == summary.restored
        assert verify(clips / name, output).differences == []
        output.unlink()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SLOW)
def test_the_default_encoder_passes_verify(clips: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / f"out{Path(name).suffix if Path(name).suffix in ('.mp4', '.mkv') else '.mkv'}"
    process_video(clips / name, output, model="offset")
    assert verify(clips / name, output).differences == []


def test_sound_is_copied_to_the_byte(clips: Path, tmp_path: Path) -> None:
    source = clips / "handheld_dog_720p_audio.mp4"
    with av.open(str(source)) as container:
        index = container.streams.audio[0].index
    process_video(source, tmp_path / "out.mkv", model="identity", preset="ultrafast", crf=40)
    assert payloads(source, index) == payloads(tmp_path / "out.mkv", index)
    assert len(payloads(source, index)) > 10


def test_a_malformed_file_is_one_line(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match=r"malformed_box\.mp4") as e:
        process_video(clips / "malformed_box.mp4", tmp_path / "out.mp4", model="identity")
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []
