"""What becomes of the other streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from streamdeblur.video.streams import (
    has_styles,
    mov_text_to_subrip,
    needs_metadata_tags,
    plan_streams,
    subrip_to_mov_text,
)


def _clip(path: Path, audio: str, *, cover: bool = False) -> Path:
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 32, 16, "yuv420p"
        sound: Any = out.add_stream(audio, rate=48000)
        sound.layout = "mono"
        picture: Any = None
        if cover:
            picture = out.add_stream("mjpeg", rate=25)
            picture.width, picture.height, picture.pix_fmt = 16, 16, "yuvj420p"
            picture.disposition = Disposition.attached_pic
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32), 20 * i, np.uint8), "yuv420p")
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if picture is not None:
            frame = av.VideoFrame.from_ndarray(np.full((24, 16), 90, np.uint8), "yuvj420p")
            frame.pts = 0
            out.mux(picture.encode(frame))
            out.mux(picture.encode(None))
        format_name = sound.codec_context.format.name
        packed = np.zeros((1, 9600), {"s16": np.int16, "u8": np.uint8}.get(format_name, np.float32))
        chunk = av.AudioFrame.from_ndarray(packed, format=format_name, layout="mono")
        chunk.sample_rate = 48000
        out.mux(sound.encode(chunk))
        out.mux(sound.encode(None))
    return path


@pytest.mark.parametrize(
    ("audio", "container", "action"),
    [("aac", "mp4", "copy"), ("aac", "matroska", "copy"), ("pcm_s16le", "matroska", "copy"), ("pcm_u8", "mp4", "drop")],
)
def test_audio_is_copied_where_the_container_takes_it(tmp_path: Path, audio: str, container: str, action: str) -> None:
    path = _clip(tmp_path / "a.mkv", audio)
    with av.open(str(path)) as source:
        (plan,) = plan_streams(source, 0, container, str(path))
    assert plan.action == action
    assert bool(plan.why) == (action == "drop")
    assert plan.label == f"stream 1 (audio, {audio})"


def test_a_cover_picture_becomes_an_attachment_in_matroska_and_stays_one_in_mp4(tmp_path: Path) -> None:
    path = _clip(tmp_path / "a.mp4", "aac", cover=True)
    with av.open(str(path)) as source:
        actions = {c: plan_streams(source, 0, c, str(path))[-1] for c in ("matroska", "mp4", "avi")}
    assert actions["matroska"].action == "attach"
    assert actions["mp4"].action == "copy"
    assert actions["avi"].action == "drop"
    assert "cover" in actions["avi"].why
    cover = actions["matroska"].cover
    assert cover is not None
    assert cover.data[:2] == b"\xff\xd8"
    assert (cover.name, cover.mime) == ("cover.jpg", "image/jpeg")


def test_text_there_and_back() -> None:
    sample, styled = subrip_to_mov_text("Zwei\nä".encode())
    assert sample == b"\0\x07Zwei\n\xc3\xa4"
    assert not styled
    assert mov_text_to_subrip(sample) == "Zwei\nä".encode()
    assert subrip_to_mov_text(b"<i>x</i>{\\an8}") == (b"\0\1x", True)


def test_empty_and_foreign_samples() -> None:
    assert mov_text_to_subrip(b"\0\0") is None
    assert mov_text_to_subrip(b"") is None
    assert mov_text_to_subrip(b"\0\4\xfe\xff\0A") == b"A"
    assert has_styles(b"\0\1x" + b"styl")
    assert not has_styles(b"\0\1x")


def test_only_unknown_keys_need_quicktime_metadata() -> None:
    assert not needs_metadata_tags({"title": "a", "Artist": "b"})
    assert needs_metadata_tags({"title": "a", "foo": "b"})
