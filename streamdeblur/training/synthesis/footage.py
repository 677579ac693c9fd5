"""Footage to read at random: a folder of frames, or a video held in memory; and pictures by path."""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Iterable
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

_FOREIGN = (".", "@", "__MACOSX")
_HELD = 512 << 20  # bytes of one video, compressed without loss


def is_picture(path: Path) -> bool:
    """True for a file name that ends like a picture."""
    return path.suffix.lower() in PICTURES


def list_pictures(path: Path, besides: Path | None = None) -> list[Path]:
    """The pictures in a folder and the folders inside it, by name, numbers in names as numbers.

    Left out are pairs made by ``synthesize``, blurred as half of them are, and ``besides``, the folder that it is about
    to write. Raises UsageError where nothing is left, UnreadableInput where ``path`` is no folder.
    """
    if not path.is_dir():
        raise UnreadableInput(f"{path} is not a folder", "give a folder of pictures")
    inside = _inside(path)
    pictures = [p for p in inside if p.suffix.lower() in PICTURES and _is_picture_file(p)]
    made = _made_folders(path, inside)
    if besides is not None and besides.is_dir():
        name = besides.resolve().name  # of a link, what it leads to is written
        made += [p for p in inside if p.name == name and p.is_dir() and p.samefile(besides)]
    found = [p for p in pictures if not _within(p, made)]
    if not found and pictures:
        raise UsageError(
            f"folder {path} holds no picture but pairs made by synthesize", "give other pictures, or their sharp folder"
        )
    if not found:
        raise UsageError(f"folder {path} holds no picture", f"looked for {', '.join(sorted(PICTURES))}")
    return sorted(found, key=lambda p: _by_number(p.relative_to(path)))


def by_folder(pictures: Iterable[Path]) -> list[list[Path]]:
    """Pictures of one folder each, in the order given: exposures end where a folder does."""
    folders: dict[Path, list[Path]] = {}
    for picture in pictures:
        folders.setdefault(picture.parent, []).append(picture)
    return list(folders.values())


def _is_picture_file(path: Path) -> bool:
    """Whether it is no folder. What can't be looked at is one until it is read, and then told."""
    try:
        return not path.is_dir()
    except OSError:
        return True


def _files(folder: Path) -> list[Path]:
    """The files in a folder; none where it can't be read, which ``_inside`` has told."""
    try:
        return [p for p in folder.iterdir() if p.is_file()]
    except OSError as e:
        _say_left_out(str(folder), str(e.strerror))
        return []


@functools.cache  # a source is looked through more than once
def _say_left_out(folder: str, why: str) -> None:
    log.warning("folder %s can't be read (%s): what it holds is left out", folder, why)


def _inside(root: Path) -> list[Path]:
    """All in a folder and the folders inside it but what is hidden, or left behind by file managers and archives.

    A folder that can't be read is left out, with a warning.
    """
    found: list[Path] = []

    for folder, folders, files in os.walk(root, onerror=lambda e: _say_left_out(str(e.filename), str(e.strerror))):
        folders[:] = [f for f in folders if not f.startswith(_FOREIGN)]
        found += (Path(folder, name) for name in (*folders, *files) if not name.startswith(_FOREIGN))
    return found


def _by_number(path: Path) -> tuple[list[list[tuple[int, int]]], tuple[str, ...]]:
    """To sort by: text, but for a run of digits as the number that it is: frame2 before frame10.

    A number stands where its digits would in text, so that names padded to one width keep that order. Names that
    differ in zeros only go by text.
    """
    parts = [
        [(ord("0"), int(p)) if p[0] in "0123456789" else (ord(p), 0) for p in re.findall(r"[0-9]+|[^0-9]", part)]
        for part in path.parts
    ]
    return parts, path.parts


def _made_folders(root: Path, inside: Iterable[Path]) -> list[Path]:
    """Of ``root`` and what is ``inside`` it, the folders that ``synthesize`` made."""
    lists = [root / "pairs.json", *(p for p in inside if p.name == "pairs.json")]
    return [p.parent for p in lists if _is_list_of_pairs(p)]


def _is_list_of_pairs(path: Path) -> bool:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and {"source", "method", "options", "pairs"} <= told.keys()


def _within(path: Path, folders: Iterable[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


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

    def called(self, index: int) -> str:
        """What messages call frame ``index``."""
        return self.name if self.video is not None else self.frames[index].name

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
    """Sequences in ``path``: a video, a folder of frames, or a folder of such; none are pairs made by ``synthesize``.

    Numbers in names of frames are taken as numbers. Raises InputError if there is no sequence.
    """
    if path.is_file() and videos:
        return [Sequence(path.name, video=path)]
    if not path.is_dir():
        raise UnreadableInput(f"{path} is not there" if not path.exists() else f"{path} is not a folder")
    found = []
    below = _inside(path)
    made = _made_folders(path, below)
    # by text, as folders are in no order: seeds keep their bytes
    for folder in [path, *sorted(p for p in below if p.is_dir())]:
        if _within(folder, made):
            continue
        inside = sorted(p for p in _files(folder) if not p.name.startswith("."))
        frames = sorted(
            (p for p in inside if p.suffix.lower() in PICTURES), key=lambda p: _by_number(p.relative_to(path))
        )
        if frames:
            found.append(Sequence(str(folder.relative_to(path)), frames))
        if videos:
            found.extend(Sequence(str(p.relative_to(path)), video=p) for p in inside if p.suffix.lower() in VIDEOS)
    if not found:
        raise InputError(f"{path} holds no frames", "give a folder of consecutive frames, or of such folders")
    return found
