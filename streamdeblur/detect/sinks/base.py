"""What every sink does: a bounded queue, a thread, counts, one message when it fails and one when it works again."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import Any

from streamdeblur.errors import StreamdeblurError

log = logging.getLogger(__name__)

Record = dict[str, Any]

#: Records that wait at most. A record of ten objects takes about 4 kB, so a sink that is down holds 4 MB.
QUEUE = 1000
#: Seconds between attempts: the first, and the longest.
BACK_OFF = (0.5, 30.0)


@dataclass(frozen=True, slots=True)
class SinkStats:
    """name: without credentials. sent: records that arrived. dropped: that did not and never will: no room in the
    queue, refused, or left at the end. waiting: in the queue. errors: failed attempts. down: the last attempt failed.
    error: what it said, without credentials."""

    name: str
    sent: int
    dropped: int
    waiting: int
    errors: int
    down: bool
    error: str | None


class Sink(ABC):
    """A queue of records and the thread that empties it into ``_deliver``.

    ``send`` returns at once: where the queue is full, the oldest record is dropped and counted. All public methods are
    thread-safe. A subclass has its own state only in the thread (``_open``, ``_deliver``, ``_shut``).

    name: for people; never with credentials. batch: records that ``_deliver`` gets at most. linger: seconds to wait
    for a batch to fill. queue: records that wait at most.
    """

    def __init__(self, name: str, *, batch: int = 1, linger: float = 0.0, queue: int = QUEUE) -> None:
        self.name = name
        self._batch, self._linger, self._room = batch, linger, queue
        self._queue: deque[Record] = deque()
        self._changed = threading.Condition()
        self._closing = self._counted = False
        self._abandoned = threading.Event()
        self._sent = self._dropped = self._errors = self._taken = 0
        self._down = False
        self._error: str | None = None
        self._told_full = False
        self._thread = threading.Thread(target=self._work, name=f"sink {name}", daemon=True)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    def start(self) -> None:
        """Begin to deliver; a subclass calls it at the end of its constructor."""
        self._thread.start()

    def send(self, record: Record) -> None:
        """Queue a record. It must not be changed afterwards."""
        with self._changed:
            if self._closing:
                self._dropped += 1
                return
            self._make_room()
            self._queue.append(record)
            self._changed.notify_all()

    def _make_room(self) -> None:
        """With the lock held: bring the queue below its limit."""
        while len(self._queue) >= self._room:
            self._queue.popleft()
            self._dropped += 1
            if not self._told_full:
                self._told_full = True
                log.warning("%s is too slow: %d records wait, the oldest are dropped", self.name, self._room)

    def close(self, timeout: float = 5.0) -> None:
        """Deliver what waits, for at most ``timeout`` seconds; what is left then is dropped and counted. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        self._abandoned.set()  # wakes a thread that waits to try again
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)
        with self._changed:
            self._counted = True  # a delivery that ends after this was given up already
            left = len(self._queue) + self._taken
            self._queue.clear()
            self._taken = 0
            self._dropped += left
        if left:
            log.warning("%s: %d records were not delivered before the end", self.name, left)

    def stats(self) -> SinkStats:
        """A snapshot."""
        with self._changed:
            waiting = len(self._queue) + self._taken
            return SinkStats(self.name, self._sent, self._dropped, waiting, self._errors, self._down, self._error)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:  # noqa: B027
        """Called once, before the first delivery; may raise StreamdeblurError, which is as a failed delivery."""

    @abstractmethod
    def _deliver(self, records: list[Record]) -> None:
        """Bring records where they belong. Raises StreamdeblurError (without credentials) where it fails:
        ``Refused`` where trying again is of no use, anything else to be tried again later."""

    def _shut(self) -> None:  # noqa: B027
        """Called once, at the end."""

    def _work(self) -> None:
        opened = False
        try:
            while (records := self._take()) is not None:
                wait = BACK_OFF[0]
                while True:
                    try:
                        if not opened:
                            self._open()
                            opened = True
                        self._deliver(records)
                    except Refused as e:
                        lost = len(records) if e.lost is None else e.lost
                        self._failed(e, lost, len(records) - lost)
                        break
                    except StreamdeblurError as e:
                        self._failed(e, 0)
                        if self._abandoned.wait(_jittered(wait)):
                            return
                        wait = min(2 * wait, BACK_OFF[1])
                    except Exception as e:  # a fault of ours must not end the thread unseen
                        log.debug("%s failed", self.name, exc_info=True)
                        self._failed(Refused(f"{type(e).__name__}"), len(records))
                        break
                    else:
                        self._succeeded(len(records))
                        break
        finally:
            try:
                self._shut()
            except Exception:
                log.debug("%s did not close cleanly", self.name, exc_info=True)

    def _take(self) -> list[Record] | None:
        """The next batch, or None at the end."""
        with self._changed:
            while not self._queue:
                if self._closing or self._abandoned.is_set():
                    return None
                self._changed.wait()
            until = time.monotonic() + self._linger
            while len(self._queue) < self._batch and not self._closing:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            records = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
            self._taken = len(records)
            self._changed.notify_all()
            return records

    def _succeeded(self, count: int) -> None:
        with self._changed:
            if self._counted:
                return
            self._sent += count
            self._taken = 0
            was, self._down = self._down, False
            dropped = self._dropped
            self._told_full = False
        if was:
            log.warning("%s works again; %d records were dropped so far", self.name, dropped)

    def _failed(self, e: StreamdeblurError, lost: int, sent: int = 0) -> None:
        with self._changed:
            if self._counted:
                return
            self._errors += 1
            self._dropped += lost
            self._sent += sent
            if lost or sent:
                self._taken = 0
            first, self._down = not self._down, True
            new = self._error != e.what
            self._error = e.what
        log.log(logging.WARNING if first and new else logging.DEBUG, "%s: %s; the job goes on", self.name, e)


class Refused(StreamdeblurError):
    """A delivery that would fail again. lost: how many of its records are lost, the others arrived; None is all."""

    def __init__(self, what: str, hint: str | None = None, *, lost: int | None = None) -> None:
        super().__init__(what, hint)
        self.lost = lost


def encode(record: Record) -> str:
    """One line of JSON, without the line's end."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _jittered(seconds: float) -> float:
    """Between half and all of it: many clients of one server must not come back at the same moment."""
    return seconds * random.uniform(0.5, 1.0)
