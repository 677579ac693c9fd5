"""The clip that stages and jobs are measured on: one of the caller's, or one that is rendered."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from streamdeblur.errors import UnreadableInput, UsageError
from streamdeblur.jobs.scene import Scene
from streamdeblur.video.simple import write_clip

RATE = Fraction(30)
_SHUTTER = 0.7


def render(path: Path, size: tuple[int, int], frames: int) -> None:
    """Write a blurry clip with sound: H.264 in MP4. size: (width, height), even."""
    if size[0] % 2 or size[1] % 2:
        raise UsageError(f"a clip of {size[0]}x{size[1]} can't be written as H.264 4:2:0", "take even sides")
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
        if not clip.is_file():
            raise UnreadableInput(f"{clip} is not a file", "check the path of --clip")
        yield clip
        return
    with tempfile.TemporaryDirectory(prefix="streamdeblur-bench-") as name:
        tell(f"rendering {frames} frames of {size[0]}x{size[1]}")
        path = Path(name) / "clip.mp4"
        render(path, size, frames)
        yield path
