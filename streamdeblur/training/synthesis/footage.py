"""Footage to read at random: a folder of frames, or a video held in memory; and pictures by path."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur.errors import InputError, UnreadableInput, UsageError
from streamdeblur.training.pictures import read_picture
from streamdeblur.training.synthesis.flow import FrameMeasure, measure, usable_centers
from streamdeblur.training.synthesis.response import Picture
from streamdeblur.video.simple import read_rgb

log = logging.getLogger(__name__)

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".ts", ".mpg", ".mpeg", ".mts", ".y4m", ".wmv"})

_HELD = 512 << 20  # bytes of one video, compressed without loss


def is_picture(path: Path) -> bool:
    """True for a file name that ends like a picture."""
    return path.suffix.lower() in PICTURES


def list_pictures(path: Path) -> list[Path]:
    """The pictures in a folder and the folders inside it, by name. Raises UsageError, UnreadableInput."""
    if not path.is_dir():
        raise UnreadableInput(f"{path} is not a folder", "give a folder of pictures")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and not _foreign(p, path))
    if not found:
        raise UsageError(f"folder {path} holds no picture", f"looked for {', '.join(sorted(PICTURES))}")
    return found


def _foreign(path: Path, root: Path) -> bool:
    """Hidden, or of what file managers and archives leave behind."""
    return any(part.startswith((".", "@", "__MACOSX")) for part in path.relative_to(root).parts)


@dataclass(slots=True)
class Sequence:
    """Consecutive frames, in order: the files of ``frames``, or those of a ``video``, read when first needed."""

    name: str
    frames: list[Path] = field(default_factory=list)
    video: Path | None = None
    _packed: list[npt.NDArray[np.uint8]] | None = None
    _measures: list[FrameMeasure] | None = None

    def __len__(self) -> int:
        if self.video is None:
            return len(self.frames)
        return len(self._load())

    def read(self, index: int) -> Picture:
        """Frame ``index``, (H, W, 3) uint8 R'G'B'."""
        if self.video is None:
            return read_picture(self.frames[index])
        picture = np.asarray(cv2.imdecode(self._load()[index], cv2.IMREAD_COLOR), np.uint8)
        return np.ascontiguousarray(picture[..., ::-1])

    def centers(self) -> list[int]:
        """Frames that can be a truth (``flow.usable_centers``). Reads everything once."""
        if self._measures is None:
            self._measures = [measure(self.read(i)) for i in range(len(self))]
        return usable_centers(self._measures)

    def _load(self) -> list[npt.NDArray[np.uint8]]:
        if self._packed is None:
            assert self.video is not None
            packed: list[npt.NDArray[np.uint8]] = []
            held = 0
            for picture in read_rgb(self.video):
                _, data = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
                packed.append(np.asarray(data, np.uint8))
                held += data.nbytes
                if held > _HELD:
                    log.warning(
                        "%s is long: its first %d frames are used; extract frames into folders to use all of it",
                        self.video,
                        len(packed),
                    )
                    break
            self._packed = packed
        return self._packed

    def __getstate__(self) -> tuple[str, list[Path], Path | None]:
        return self.name, self.frames, self.video

    def __setstate__(self, state: tuple[str, list[Path], Path | None]) -> None:
        self.name, self.frames, self.video = state
        self._packed = None
        self._measures = None


def find_sequences(path: Path, *, videos: bool) -> list[Sequence]:
    """Sequences in ``path``: a video, a folder of frames, or a folder of such. Raises InputError if there is none."""
    if path.is_file() and videos:
        return [Sequence(path.name, video=path)]
    if not path.is_dir():
        raise UnreadableInput(f"{path} is not there" if not path.exists() else f"{path} is not a folder")
    found = []
    for folder in [path, *sorted(p for p in path.rglob("*") if p.is_dir() and not _foreign(p, path))]:
        inside = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
        frames = [p for p in inside if p.suffix.lower() in PICTURES]
        if frames:
            found.append(Sequence(str(folder.relative_to(path)), frames))
        if videos:
            found.extend(Sequence(str(p.relative_to(path)), video=p) for p in inside if p.suffix.lower() in VIDEOS)
    if not found:
        raise InputError(f"{path} holds no frames", "give a folder of consecutive frames, or of such folders")
    return found
