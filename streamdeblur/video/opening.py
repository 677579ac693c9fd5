"""Files, streams and folders of images opened for reading, with FFmpeg's errors in plain words."""

from __future__ import annotations

import logging
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from streamdeblur.errors import UnreadableInput
from streamdeblur.video.multipage import pictures_in

log = logging.getLogger(__name__)

#: Endings that are pictures, for a folder of them.
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm")


def open_container(path: str | os.PathLike[str], **options: Any) -> av.container.InputContainer:
    """``av.open`` for reading, with every failure as one line (UnreadableInput)."""
    name = os.fspath(path)
    if "://" not in name:
        file = Path(name)
        if not file.exists():
            raise UnreadableInput(f"{name} does not exist", "check the path")
        if file.is_dir():
            raise UnreadableInput(f"{name} is a folder", "name a file, or a folder of images")
        if file.is_file() and file.stat().st_size == 0:
            raise UnreadableInput(f"{name} is empty (0 bytes)", "copy it again")
        if file.is_fifo() or file.is_socket():
            raise UnreadableInput(f"{name} is a pipe, and a source is read more than once", "save it as a file first")
        if not os.access(file, os.R_OK):
            raise UnreadableInput(f"{name} can't be read: permission denied", "allow it to be read, as with chmod")
        name = file_name(name)
    try:
        container: av.container.InputContainer = av.open(name, "r", metadata_errors="replace", **options)
        return container
    except (av.error.FFmpegError, OSError, ValueError, UnicodeError) as e:
        raise UnreadableInput(f"{os.fspath(path)} can't be opened as video: {reason(e)}", _advice(name, e)) from e


def _advice(name: str, e: BaseException) -> str | None:
    if "://" in name:
        return "check the address"
    if isinstance(e, av.error.InvalidDataError):
        return "it is damaged or no video: try to play it, or copy it again"
    return None


def file_name(path: str | os.PathLike[str]) -> str:
    """A file's name as FFmpeg takes it: in ``12:30.mp4`` it would see a protocol, in ``%d.png`` a pattern."""
    name = os.fspath(path)
    return f"file:{name}" if ":" in name or "%" in name else name


def reason(e: BaseException) -> str:
    """FFmpeg's own words for an error, on one line and without the file name and the errno."""
    text = getattr(e, "strerror", None) or str(e) or type(e).__name__
    logged = getattr(e, "log", None)
    if logged and len(logged) > 2 and logged[2]:
        text = f"{text} ({str(logged[2]).strip()})"
    return " ".join(str(text).split())


def open_folder(path: str, rate: float) -> av.container.InputContainer:
    """A folder of images as a video, through FFmpeg's image2 demuxer, in order of their names."""
    files = [p for p in Path(path).iterdir() if p.is_file() and not p.name.startswith(".")]
    endings = sorted({p.suffix for p in files if p.suffix.lower() in IMAGE_ENDINGS})
    if len(endings) != 1:
        found = f"images of several kinds ({', '.join(endings)})" if endings else "no image"
        raise UnreadableInput(f"folder {path} holds {found}", "one kind is needed to make a video of them")
    several = [p for p in files if p.suffix == endings[0] and pictures_in(p) > 1]
    if several:
        log.warning("%s: %d files hold more pictures than one: only the first of each is read", path, len(several))
    folder = os.path.abspath(path) if ":" in path else path.rstrip("/")  # a colon would end a protocol
    escaped = "".join(f"\\{c}" if c in "*?[]\\%" else c for c in folder)
    try:
        return av.open(
            f"{escaped}/*{endings[0]}",
            "r",
            format="image2",
            options={"pattern_type": "glob", "framerate": str(Fraction(rate).limit_denominator(1001))},
        )
    except (av.error.FFmpegError, OSError, ValueError) as e:
        raise UnreadableInput(f"images of {path} can't be opened: {reason(e)}") from e


def open_with_hardware(path: str, name: str | None) -> av.container.InputContainer:
    """With a hardware decoder where that opens, else in software with one line."""
    if name is not None:
        from av.codec.hwaccel import HWAccel

        try:
            return open_container(path, hwaccel=HWAccel(device_type=name, allow_software_fallback=True))
        except (UnreadableInput, av.error.FFmpegError, OSError, ValueError, RuntimeError) as e:
            why: BaseException = (e.__cause__ or e) if isinstance(e, UnreadableInput) else e
            software = open_container(path)  # what is wrong with the file itself is said here
            log.warning("no hardware decoding with %s here (%s): decoding in software", name, reason(why))
            return software
    return open_container(path)
