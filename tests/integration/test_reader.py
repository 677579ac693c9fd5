"""The reader on its own: what it says of a file that is closed or damaged."""

from __future__ import annotations

import logging
from pathlib import Path

import av
import av.error
import pytest

from streamdeblur.errors import BrokenStream, UnreadableInput
from streamdeblur.video.reader import open_video
from tests.clips import write_numbered_clip

pytestmark = pytest.mark.integration

SIZE = (96, 64)


def test_a_closed_reader_gives_no_frame(tmp_path: Path) -> None:
    video = open_video(write_numbered_clip(tmp_path / "a.mp4", 5, SIZE))
    video.close()
    video.close()
    with pytest.raises(RuntimeError, match=r"a\.mp4 is closed; open the file again"):
        next(iter(video))
    for name in ("info", "rate", "end", "tags", "first_time"):
        with pytest.raises(RuntimeError, match="is closed"):
            getattr(video, name)


def test_an_iterator_ends_with_its_reader(tmp_path: Path) -> None:
    with open_video(write_numbered_clip(tmp_path / "a.mp4", 5, SIZE)) as video:
        frames = iter(video)
        assert next(frames).index == 0
        assert next(frames).index == 1
    with pytest.raises(RuntimeError, match="is closed"):
        next(frames)


def damaged(path: Path, number: int, *, keep: int = 12) -> Path:
    """Overwrite packet ``number`` of the video but for its first bytes."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        position, size = packets[number].pos, packets[number].size
    assert position is not None
    data = bytearray(path.read_bytes())
    data[position + keep : position + size] = b"\xff" * (size - keep)
    path.write_bytes(data)
    return path


def clip(folder: Path, name: str = "a.mp4") -> Path:
    """Ten frames, of which the first and the sixth are keyframes, in one slice each."""
    return write_numbered_clip(folder / name, 10, SIZE, rate=10, options={"g": "5", "bf": "0", "threads": "1"})


def refused(path: Path) -> bool:
    with av.open(str(path)) as container:
        try:
            return not list(container.streams.video[0].decode(next(container.demux(video=0))))
        except av.error.InvalidDataError:
            return True


def test_a_damaged_first_keyframe_is_a_break(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = damaged(clip(tmp_path), 0, keep=0)
    assert refused(path)
    with pytest.raises(BrokenStream, match=r"a\.mp4 breaks at 0\.000 s: a packet can't be decoded .*bypass"):
        open_video(path)
    caplog.set_level(logging.WARNING)
    with open_video(path, on_error="bypass") as video:
        assert len(list(video)) < 10
        assert video.skipped >= 1
        assert video.broken is not None
    assert sum("breaks at 0.000 s" in r.getMessage() for r in caplog.records) == 1


def test_a_file_without_any_picture_is_no_broken_one(tmp_path: Path) -> None:
    path = clip(tmp_path)
    for number in range(10):
        damaged(path, number, keep=0)
    with pytest.raises(UnreadableInput, match="no frame that can be decoded"):
        open_video(path)


@pytest.mark.parametrize("frames", [2, 3])
def test_a_capture_that_begins_between_keyframes_says_so(
    tmp_path: Path, frames: int, caplog: pytest.LogCaptureFixture
) -> None:
    clip(tmp_path, "whole.ts")
    with av.open(str(tmp_path / "whole.ts")) as source, av.open(str(tmp_path / "a.ts"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            if number >= 5 - frames:
                packet.stream = stream
                out.mux(packet)
    caplog.set_level(logging.WARNING)
    with open_video(tmp_path / "a.ts") as video:
        assert len(list(video)) == 5
        assert video.broken is None
    said = f"a.ts does not begin with a keyframe: {frames} packets, of which no picture can be made, are left out"
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path}/{said}"]


def test_mpeg_ts_that_is_cut_within_a_packet_is_a_break(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = clip(tmp_path, "a.ts")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 // 188 * 188 + 100])
    with open_video(path) as video, pytest.raises(BrokenStream, match="truncated: its last packet lacks 88 bytes"):
        list(video)
    caplog.set_level(logging.WARNING)
    with open_video(path, on_error="bypass") as video:
        assert 0 < len(list(video)) < 10
    assert len(caplog.records) == 1
