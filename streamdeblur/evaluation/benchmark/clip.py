"""The clip that stages and jobs are measured on: one of the caller's, or one that is rendered."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from streamdeblur.errors import UnreadableInput, UsageError
from streamdeblur.jobs.scene import Scene
from streamdeblur.video.opening import open_container
from streamdeblur.video.reader import VideoReader
from streamdeblur.video.simple import write_clip

RATE = Fraction(30)
_SHUTTER = 0.7


def check_clip(clip: Path | None, sizes: Sequence[tuple[int, int]]) -> None:
    """What can be said of a clip before anything is measured. sizes: (width, height) of those to render without one.

    Raises UnreadableInput where it is no file or opens as no video, UsageError for sizes that make no clip.
    """
    if clip is None:
        for size in sizes:
            _check_even(size)
        return
    _check_file(clip)
    open_container(clip).close()


def clip_size(clip: Path) -> tuple[int, int]:
    """(width, height) of its frames. Raises UnreadableInput."""
    with VideoReader(clip, copy_streams=False) as reader:
        return reader.info.width, reader.info.height


def _check_even(size: tuple[int, int]) -> None:
    if size[0] % 2 or size[1] % 2:
        raise UsageError(f"a clip of {size[0]}x{size[1]} can't be written as H.264 4:2:0", "take even sides")


def _check_file(clip: Path) -> None:
    if not clip.is_file():
        raise UnreadableInput(f"{clip} is not a file", "check the path of --clip")


def render(path: Path, size: tuple[int, int], frames: int) -> None:
    """Write a blurry clip with sound: H.264 in MP4. size: (width, height), even."""
    _check_even(size)
    scene = Scene(size)
    pictures = (scene.expose(i / float(RATE), _SHUTTER / float(RATE), 3).blurry for i in range(frames))
    sound = (scene.sound(float(frames / RATE)), 48000)
    write_clip(path, pictures, RATE, audio=sound, options={"crf": "16", "preset": "veryfast"})


@contextmanager
def with_clip(
    clip: Path | None, size: tuple[int, int], frames: int, tell: Callable[[str], None] = lambda _: None
) -> Iterator[Path]:
    """The caller's clip, or a rendered one that is gone afterwards. Raises UnreadableInput where there is none."""
    if clip is not None:
        _check_file(clip)
        yield clip
        return
    with tempfile.TemporaryDirectory(prefix="streamdeblur-bench-") as name:
        tell(f"rendering {frames} frames of {size[0]}x{size[1]}")
        path = Path(name) / "clip.mp4"
        render(path, size, frames)
        yield path
