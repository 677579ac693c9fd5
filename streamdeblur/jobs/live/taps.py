"""Those who look at frames as they leave: detection, a preview. They never hold up the video."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamdeblur.frames import Frame

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrameMeta:
    """What is known of a frame that leaves.

    index: of the source, without holes. time: seconds on its time line. wall: seconds since 1970 when it arrived.
    latency: seconds from there to leaving. status: "restored" or "bypassed". step: name of the ladder's step. reason:
    why it is not restored. seconds: of device time.
    """

    source: str
    index: int
    time: float
    wall: float
    latency: float
    status: str
    step: str
    reason: str | None
    seconds: float | None


#: before and after are one and the same frame where nothing was restored. Planes must not be written to.
OnFrame = Callable[[str, Frame, Frame, FrameMeta], Any]


class Tap:
    """Calls a function for frames on a thread of its own; while it is busy the oldest of those that wait is dropped.

    depth: frames that wait at most. An exception of the function is logged (once for each text) and counted.
    """

    def __init__(self, function: OnFrame, depth: int = 2) -> None:
        self._function = function
        self._waiting: deque[tuple[str, Frame, Frame, FrameMeta]] = deque()
        self._depth = depth
        self._changed = threading.Condition()
        self._closed = False
        self._told: set[str] = set()
        self.dropped = 0
        self.errors = 0
        self._thread = threading.Thread(target=self._run, name="tap", daemon=True)
        self._thread.start()

    def give(self, source: str, before: Frame, after: Frame, meta: FrameMeta) -> None:
        """Hand a frame over; returns at once."""
        with self._changed:
            if len(self._waiting) >= self._depth:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append((source, before, after, meta))
            self._changed.notify()

    def close(self, timeout: float = 2.0) -> None:
        """End it; what waits is dropped. A function that does not return is left alone after ``timeout`` seconds."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                item = self._waiting.popleft()
            try:
                self._function(*item)
            except Exception as e:
                self.errors += 1
                text = f"{type(e).__name__}: {e}"
                if text not in self._told and len(self._told) < 20:
                    self._told.add(text)
                    log.warning("what looks at the frames of %s failed: %s", item[0], text)
