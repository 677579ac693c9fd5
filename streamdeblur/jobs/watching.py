"""The detector behind a job of one file: every frame is offered to it, in order, and waits where it is busy."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streamdeblur.config import ProcessOptions
from streamdeblur.errors import OutputError, UsageError
from streamdeblur.frames import Frame
from streamdeblur.runtime.ledger import FrameRecord
from streamdeblur.video.reader import DecodedFrame

log = logging.getLogger(__name__)


class Watch:
    """What ``--detect`` asks for; nothing without it. A context manager: at its end all that was found is delivered.

    source: named in the records. rotation: of the display, in degrees counterclockwise. For one thread.
    Raises UsageError, WeightsError, DeviceError, OutputError before anything is done.
    """

    def __init__(self, options: ProcessOptions, source: str | os.PathLike[str], rotation: int = 0) -> None:
        self._hook = None
        self._annotate = options.annotate
        if options.detect is None:
            return
        from streamdeblur.detect.hook import Hook

        _check_target(options, source)
        self._hook = Hook(options, source=os.fspath(source), lossless=True, rotation=rotation)
        target = options.detections
        if target is not None and target != "-" and Path(target).is_file():
            os.truncate(target, 0)  # the sink appends; nothing is lost where no detector could be had

    def see(self, before: DecodedFrame, after: Frame, record: FrameRecord) -> Frame:
        """The frame to write: with boxes under ``annotate``, else ``after``. May wait for the detector."""
        if self._hook is None:
            return after
        # The writer encodes from the decoder's own memory, which it writes to; the detector looks later.
        kept = replace(before.plain(), planes=tuple(plane.copy() for plane in before.planes))
        ticket = self._hook.offer(kept, after if record.status == "restored" else None)
        return self._hook.annotated(after, ticket) if self._annotate else after

    def summary(self) -> dict[str, Any] | None:
        """Counts, times, errors and the gain of restored over unrestored frames, for JSON; None without a detector."""
        return None if self._hook is None else self._hook.stats().as_dict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hook is None:
            return
        self._hook.close(0.0 if kind is not None else 60.0)
        if kind is None:
            stats = self._hook.stats()
            lost = stats.dropped + stats.errors
            if lost:
                log.warning("%d frames were not looked at by the detector (%s)", lost, stats.error or "it was busy")


def _check_target(options: ProcessOptions, source: str | os.PathLike[str]) -> None:
    """Refuse a file of detections that would destroy something."""
    target = options.detections
    if target in (None, "-") or not os.path.exists(target):
        return
    if os.path.exists(source) and os.path.samefile(source, target):
        raise UsageError(f"detections {target} is the source itself", "name another file with --detections")
    if os.path.isfile(target) and not options.overwrite:
        raise OutputError(f"{target} exists", "--overwrite replaces it, --detections writes elsewhere")
