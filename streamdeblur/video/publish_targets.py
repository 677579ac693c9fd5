"""Where a live output goes, read from one word on the command line."""

from __future__ import annotations

import difflib
import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streamdeblur.errors import OutputError, UsageError
from streamdeblur.video.live.urls import check_url, is_url, mask, scheme_of, with_credentials
from streamdeblur.video.writer import muxer_for

Kind = Literal["rtsp", "hls", "stream", "file", "none"]

#: Containers that can be cut at any keyframe and stay readable when a process is killed in mid-file.
_FILES = ("mp4", "mov", "matroska", "mpegts")
_STREAMS = ("udp", "tcp", "srt")
_FORMS = "rtsp://…, hls:FOLDER, udp://… or tcp://… (MPEG-TS), a file (.mp4, .mov, .mkv, .ts), none"


@dataclass(frozen=True, slots=True)
class Target:
    """kind: rtsp (publish), hls (fMP4 segments in a folder), stream (MPEG-TS to a network address), file, none.

    where: the URL with its credentials, or the path. shown: the same as it may be shown. format: FFmpeg's muxer.
    """

    kind: Kind
    where: str
    shown: str
    format: str


def parse_target(text: str) -> Target:
    """Raises UsageError for a word that names no kind of output, OutputError for a folder that is not there."""
    if text == "none":
        return Target("none", "", "none", "")
    if text.startswith("hls:"):
        folder = text.removeprefix("hls:")
        if not folder:
            raise UsageError("output hls: names no folder", "for example hls:live")
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise OutputError(f"output {folder} is a file", "HLS needs a folder")
        return Target("hls", folder, text, "hls")
    if is_url(text):
        scheme = scheme_of(text)
        if scheme in ("rtsp", "rtsps"):
            check_url(text, "output")
            return Target("rtsp", with_credentials(text), mask(text), "rtsp")
        if scheme in _STREAMS:
            check_url(text, "output")
            return Target("stream", with_credentials(text), mask(text), "mpegts")
        near = difflib.get_close_matches(scheme, ("rtsp", *_STREAMS), 1)
        raise UsageError(
            f"output {mask(text)} has a scheme that is not published here",
            f"{f'did you mean {near[0]}? ' if near else ''}known are {_FORMS}",
        )
    if text.endswith(("/", os.sep)) or os.path.isdir(text):
        raise UsageError(f"output {text} is a folder", f"name a file in it, or hls:{text.rstrip('/')}")
    muxer = muxer_for(text)
    if muxer not in _FILES:
        raise UsageError(f"output {text} is no container for a live recording", f"known are {_FORMS}")
    folder = os.path.dirname(text) or "."
    if not os.path.isdir(folder):
        raise OutputError(f"folder {folder} of the output does not exist", "create it")
    return Target("file", text, text, muxer)


def prepare(target: Target) -> None:
    """Make the folder of HLS, and try whether a file can be written where the output will.

    Raises OutputError where that can't ever be. A full disk is no such thing: it is waited for.
    """
    if target.kind not in ("hls", "file"):
        return
    folder = target.where if target.kind == "hls" else os.path.dirname(target.where) or "."
    try:
        if target.kind == "hls":
            os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        what = "nothing can be written into" if os.path.isdir(folder) else "can't make"
        raise OutputError(f"{what} folder {folder} of the output: {e.strerror or e}", "name another folder") from e


def segment_path(path: Path, stamp: str) -> Path:
    """NAME-STAMP.EXT beside ``path``; while that is taken, a number is added, so that names sort by time."""
    candidate = path.with_name(f"{path.stem}-{stamp}{path.suffix}")
    number = 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{stamp}_{number}{path.suffix}")
    return candidate
