"""Room in DEST: the job pauses while it is short, and goes on by itself."""

from __future__ import annotations

import logging
import time

from streamdeblur.jobs.batch import place

log = logging.getLogger(__name__)

#: Seconds between looks, and for which a disk that was full is left alone.
_LOOK = 5.0
_REST = 10.0


class DiskWatch:
    """paused: why nothing is handed out now, None while all is well. reserve: bytes that must be free in ``dest``."""

    def __init__(self, dest: str, reserve: float) -> None:
        self.paused: str | None = None
        self._dest = dest
        self._reserve = reserve
        self._looked = float("-inf")
        self._until = 0.0

    def look(self) -> None:
        """Pause or go on, by what is free now."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        free = place.free_bytes(self._dest)
        if free is not None and free < self._reserve:
            self._pause(f"{free / 1e9:.2f} GB free in {self._dest}")
        elif self.paused is not None and now >= self._until:
            log.warning("there is room again: going on")
            self.paused = None

    def full(self, why: str) -> None:
        """Somebody could not write: pause for a while, whatever is free here."""
        self._pause(why)
        self._until = time.monotonic() + _REST

    def _pause(self, why: str) -> None:
        if self.paused is None:
            log.warning("paused: %s; free some space, the job goes on by itself", why)
        self.paused = why
