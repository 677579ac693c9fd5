"""What every job that restores frames does alike: refuse options without meaning, open the ledger, keep a pool busy,
and settle what becomes of a frame.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from streamdeblur import interrupts
from streamdeblur.config import ProcessOptions
from streamdeblur.errors import UsageError, WorkerError
from streamdeblur.frames import Frame, Gap, apply_correction
from streamdeblur.restore.composer import Composer
from streamdeblur.restore.planner import Planner, SpendOptions, TileRequest
from streamdeblur.runtime.ledger import FrameRecord, Ledger, TileCounts
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


class Spending:
    """Planner and composer of one source (``--reuse``, ``--skip-sharp``), and what they have spent. For one thread."""

    def __init__(self, options: SpendOptions) -> None:
        self._planner = Planner(options)
        self._composer = Composer()
        self.pixels = 0
        self.total = 0

    @property
    def share(self) -> float | None:
        """Pixels that the network saw, halos included, of those in the frames so far."""
        return self.pixels / self.total if self.total else None

    def plan(self, frame: Frame) -> TileRequest:
        return self._planner.plan(frame)

    def compose(self, frame: Frame, request: TileRequest, result: Result) -> tuple[Frame, TileCounts]:
        """The corrected frame, and what became of its tiles."""
        self.pixels += request.pixels
        self.total += request.total
        corrected = self._composer.compose(frame, request, result.corrections)
        return corrected, TileCounts(request.cells_restored, request.cells_reused, request.cells_skipped)

    def miss(self, request: TileRequest) -> None:
        """The frame has no result: what its corrections were for is computed with the next frame that is planned."""
        self._composer.miss(request)
        self._planner.reset()


def spending(options: ProcessOptions) -> Spending | None:
    """What ``--reuse`` and ``--skip-sharp`` ask for; None where neither is set. Warns of options without effect."""
    depends = {
        "reuse": ("reuse_threshold", "reuse_halo", "reuse_refresh"),
        "skip_sharp": ("sharp_below",),
    }
    for name, details in depends.items():
        for detail in details:
            if not getattr(options, name) and getattr(options, detail) != type(options).model_fields[detail].default:
                flags = (f"--{n.replace('_', '-')}" for n in (detail, name))
                log.warning("%s has no effect without %s", *flags)
    chosen = SpendOptions(
        options.reuse,
        options.reuse_threshold,
        options.reuse_refresh,
        options.reuse_halo,
        options.skip_sharp,
        options.sharp_below,
    )
    return Spending(chosen) if chosen.active else None


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """An item whose frame came back. request: what was asked for it, None for all as ever."""

    item: T
    result: Result | Gap
    request: TileRequest | None


def restored(
    pool: Pool,
    take: Callable[[float], T | None],
    frame_of: Callable[[T], DecodedFrame],
    *,
    plan: Callable[[Frame], TileRequest] | None = None,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[Done[T]]:
    """Items with the results of their frames, in order of their index, whatever order the pool finishes them in.

    take: the next item, None when there is none any more; it may raise TimeoutError after the seconds it is given.
    frame_of: the frame of an item; indices count up from 0. plan: decides what of a frame the pool gets; called in
    order. idle: called between rounds, some five times a second or more while a worker or ``take`` is slow. Holds what
    the pool has in flight and as much again. Runs on the caller's thread, and raises there what was held back.
    """
    held: dict[int, tuple[T, TileRequest | None]] = {}
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
            frame = frame_of(item).plain()
            request = plan(frame) if plan is not None else None
            held[frame.index] = item, request
            if request is not None and request.regions == ():
                order.push(frame.index, Result(frame.index, (), "", 0.0))  # nothing to compute: no worker sees it
            else:
                pool.submit(frame, None if request is None else request.regions)
        if held and pool.in_flight:
            for result in pool.collect(0.02 if more else 0.2):
                order.push(result.index, result)
        for done in order.pop_ready():
            item, request = held.pop(done.index)
            yield Done(item, done, request)
        idle()
        interrupts.check()


def settle(
    frame: DecodedFrame,
    done: Done[Any],
    name: str,
    options: ProcessOptions,
    spent: Spending | None = None,
) -> tuple[Frame, FrameRecord]:
    """The frame to write and the line to book: the corrected one, or under ``on_error="bypass"`` the decoded one.

    name: what a message calls the frame. spent: what planned the request. Raises WorkerError for a Gap under
    ``on_error="fail"``.
    """
    pts, base = frame.pts, frame.time_base
    result, request = done.result, done.request
    if isinstance(result, Gap):
        if options.on_error == "fail":
            raise WorkerError(
                f"{name} can't be restored: {result.reason}", "--on-error bypass passes it through unrestored"
            )
        log.warning("%s is passed through unrestored: %s", name, result.reason)
        if spent is not None and request is not None:
            spent.miss(request)
        return frame, FrameRecord(frame.index, pts, None, base, "bypassed", None, None, None, result.reason)
    tiles: TileCounts | None = None
    if spent is not None and request is not None:
        corrected, tiles = spent.compose(frame, request, result)
    else:
        corrected = apply_correction(frame, result.corrections)
    worker = result.worker or None
    return corrected, FrameRecord(frame.index, pts, None, base, "restored", tiles, worker, result.seconds, None)
