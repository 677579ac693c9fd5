"""Display sizes written into a Matroska header in place."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamdeblur.video.matroska import booked_name, display_size, write_display_sizes


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
    write_display_sizes(
        path,
        {
            first: ("left", display_size(176, 144, Fraction(44, 45))),
            second: ("", display_size(176, 144, Fraction(12, 11))),
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
        write_display_sizes(path, {booked_name("other", 0): ("", (4, 3))})


def test_a_file_that_is_not_matroska_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    path.write_bytes(bytes(range(1, 200)))
    with pytest.raises(ValueError):
        write_display_sizes(path, {})
