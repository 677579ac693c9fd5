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
from streamdeblur.jobs.verify import VerifyReport, verify
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
#: What verify finds of lossless outputs: what FFV1 or MP4 do not hold, and others would. All else is kept.
LOST = {
    ("hdr10_1080p.mp4", "mp4"): ["the mastering display metadata", "the content light level"],
    ("hdr10_1080p.mp4", "mkv"): ["the mastering display metadata", "the content light level"],
    ("ass_subtitles.mkv", "mp4"): ["stream 2 (subtitle, ass) is not in the output: mp4 can't hold it"],
}
#: What nothing here holds, and is a note.
NOWHERE = {
    "hdr10_1080p.mp4": ["HDR10+ dynamic metadata is not in the output"],
    "edit_list_rotated_hlg.mp4": [
        "Dolby Vision metadata is not in the output",
        "ambient viewing environment is not in the output",
        "stream 2 (data, unknown) is not in the output",
        "stream 3 (data, unknown) is not in the output",
    ],
}
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


def check(report: VerifyReport, name: str, differences: list[str]) -> None:
    """Exactly these lines, by their beginnings; and among the notes those of what nothing here holds."""
    assert len(report.differences) == len(differences), report.differences
    assert all(d.startswith(w) for d, w in zip(report.differences, differences, strict=True)), report.differences
    lost = [n for n in report.notes if "is not in the output" in n and "is kept" not in n]
    expected = NOWHERE.get(name, [])
    assert len(lost) == len(expected), lost
    assert all(n.startswith(w) for n, w in zip(lost, expected, strict=True)), lost


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("name", CLIPS)
def test_identity_is_exact_at_the_beginning(clips: Path, tmp_path: Path, name: str, ending: str) -> None:
    output = tmp_path / f"out.{ending}"
    summary = process_video(clips / name, output, model="identity", lossless=True, duration=CLIPS[name])
    assert summary.frames >= 2
    compare(clips / name, output, summary.frames, Fraction(1, 2000) if ending == "mkv" else Fraction(0))
    check(verify(clips / name, output, duration=CLIPS[name]), name, LOST.get((name, ending), []))


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
        check(verify(clips / name, output), name, LOST.get((name, ending), []))
        output.unlink()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SLOW)
def test_the_default_encoder_passes_verify(clips: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / f"out{Path(name).suffix if Path(name).suffix in ('.mp4', '.mkv') else '.mkv'}"
    process_video(clips / name, output, model="offset")
    check(verify(clips / name, output), name, [])


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
