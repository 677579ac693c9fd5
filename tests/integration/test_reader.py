"""The reader on its own: what it says of a file that is closed or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

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
