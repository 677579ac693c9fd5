"""What every job that restores frames does alike: refuse options without meaning, open the ledger, keep a pool busy,
and settle what becomes of a frame.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from streamdeblur.config import ProcessOptions
from streamdeblur.errors import UsageError, WorkerError
from streamdeblur.frames import Frame, Gap, apply_correction
from streamdeblur.runtime.ledger import FrameRecord, Ledger
from streamdeblur.runtime.pool import Pool, Result
from streamdeblur.runtime.reorder import ReorderBuffer
from streamdeblur.version import __version__
from streamdeblur.video.reader import DecodedFrame, VideoReader

log = logging.getLogger(__name__)

T = TypeVar("T")

#: What goes in and what comes out.
Kind = Literal["video", "video from pictures", "pictures from a video", "pictures"]

_IMAGE_RATE = 25.0  # frames a second of a folder of images
_ENCODING = ("encoder", "crf", "preset", "lossless")
_TIMING = ("stream", "start", "duration", "interlaced", "deinterlace", "hardware")
_MEANINGLESS: dict[Kind, tuple[tuple[str, ...], str]] = {
    "video": (("rate",), "is for making a video of a folder of images"),
    "video from pictures": (("stream", "hardware"), "is for a video as the source"),
    "pictures from a video": (("rate", *_ENCODING), "is for encoding a video, and images come out"),
    "pictures": (("rate", *_ENCODING, *_TIMING), "is for videos, and the source is images"),
}


def refuse_meaningless(options: ProcessOptions, kind: Kind, source: str | os.PathLike[str]) -> None:
    """Raise UsageError for an option that is set and can have no effect on such a job, whatever its file is like."""
    names, why = _MEANINGLESS[kind]
    for name in names:
        value = getattr(options, name)
        if value != ProcessOptions.model_fields[name].default:
            flag = f"--{name}" if value is True else f"--{name} {value:g}" if _is_number(value) else f"--{name} {value}"
            raise UsageError(f"{flag} {why} ({os.fspath(source)})", "leave it out")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def open_source(options: ProcessOptions, source: str | os.PathLike[str], *, copy_streams: bool) -> VideoReader:
    """The video, or the folder of images as one, that a job reads."""
    return VideoReader(
        source,
        image_rate=(options.rate or _IMAGE_RATE) if os.path.isdir(source) else None,
        stream=options.stream,
        on_error=options.on_error,
        start=options.start,
        duration=options.duration,
        interlaced=options.interlaced,
        deinterlace=options.deinterlace,
        hardware=None if options.hardware == "none" else options.hardware,
        copy_streams=copy_streams,
    )


def open_ledger(options: ProcessOptions, source: str | os.PathLike[str], output: str | os.PathLike[str]) -> Ledger:
    """The ledger of a job, which writes to ``options.ledger`` if that is set, and counts in any case."""
    return Ledger(
        options.ledger,
        source=os.fspath(source),
        output=os.fspath(output),
        settings=options.model_dump(mode="json"),
        version=__version__,
    )


def restored(
    pool: Pool,
    take: Callable[[float], T | None],
    frame_of: Callable[[T], DecodedFrame],
    *,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[tuple[T, Result | Gap]]:
    """Items with the results of their frames, in order of their index, whatever order the pool finishes them in.

    take: the next item, None when there is none any more; it may raise TimeoutError after the seconds it is given.
    frame_of: the frame of an item; indices count up from 0. idle: called between rounds, some five times a second or
    more while a worker or ``take`` is slow. Holds what the pool has in flight and as much again. Runs on the caller's
    thread.
    """
    held: dict[int, T] = {}
    order: ReorderBuffer[Result | Gap] = ReorderBuffer(pool.capacity * 2 + 2)
    more = True
    while more or held:
        while more and pool.in_flight < pool.capacity and order.room_for(max(held) + 1 if held else order.next_index):
            try:
                item = take(0.0 if held else 0.2)
            except TimeoutError:
                break
            if item is None:
                more = False
                break
            frame = frame_of(item)
            held[frame.index] = item
            pool.submit(frame.plain())
        if held:
            for result in pool.collect(0.02 if more else 0.2):
                order.push(result.index, result)
        for done in order.pop_ready():
            yield held.pop(done.index), done
        idle()


def settle(frame: DecodedFrame, done: Result | Gap, name: str, options: ProcessOptions) -> tuple[Frame, FrameRecord]:
    """The frame to write and the line to book: the corrected one, or under ``on_error="bypass"`` the decoded one.

    name: what a message calls the frame. Raises WorkerError for a Gap under ``on_error="fail"``.
    """
    pts, base = frame.pts, frame.time_base
    if isinstance(done, Gap):
        if options.on_error == "fail":
            raise WorkerError(
                f"{name} can't be restored: {done.reason}", "--on-error bypass passes it through unrestored"
            )
        log.warning("%s is passed through unrestored: %s", name, done.reason)
        return frame, FrameRecord(frame.index, pts, None, base, "bypassed", None, None, None, done.reason)
    corrected = apply_correction(frame, done.corrections)
    return corrected, FrameRecord(frame.index, pts, None, base, "restored", None, done.worker, done.seconds, None)
