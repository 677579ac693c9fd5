"""An output that never holds up the video: bounded queue, a thread, and a process that can be killed.

    encoder ── put (never blocks) ──► queue ──► thread ── link ──► process: mux to RTSP, HLS, TS, file

The process acknowledges every packet. One that stays unacknowledged means that the peer stalls: the process is killed
and started again with a growing pause, and goes on from a keyframe. A full queue drops what waits, and goes on from a
keyframe too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

from streamdeblur.video.live.backoff import Backoff
from streamdeblur.video.live.link import Note, SoundStream
from streamdeblur.video.live.process import Child
from streamdeblur.video.live.urls import mask
from streamdeblur.video.publish_targets import Target
from streamdeblur.video.publish_wire import (
    Begin,
    Failed,
    Finish,
    Finished,
    Opened,
    Out,
    PublishSettings,
    Segment,
    Taken,
)

log = logging.getLogger(__name__)

State = Literal["idle", "opening", "live", "waiting", "disk full", "closed"]

_START = 15.0
#: Seconds for closing in order at the end: trailers, renames, a playlist.
_CLOSING = 8.0


@dataclass(frozen=True, slots=True)
class OutputStatus:
    """packets: that the output took. dropped: that did not fit into its queue, came while it was away or were under way
    when it broke; at the end the two add up to all that was handed over. segments: complete files. restarts: times that
    it was opened again. stalls: times that its process was killed. error: last."""

    target: str
    state: State = "idle"
    packets: int = 0
    dropped: int = 0
    segments: int = 0
    restarts: int = 0
    stalls: int = 0
    disk_full: int = 0
    error: str | None = None


_Item = Begin | tuple[Out, bytes]


class Publisher:
    """One output of one source. ``put`` and ``begin`` may be called from any one thread."""

    def __init__(self, name: str, target: Target, settings: PublishSettings) -> None:
        self.target = target
        self._name = name
        self._settings = settings
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._finishing = False
        self._current: Begin | None = None
        self._want_key = True  # of what is put
        self._from_key = True  # of what is sent
        self._status = OutputStatus(target.shown)
        self._child: Child | None = None
        self._sent: deque[float] = deque()  # when the packets were sent that are not acknowledged
        self._backoff = Backoff(0.5, 4.0)
        self._retry_at = 0.0
        self._told: str | None = None
        self._muted: set[SoundStream] = set()  # what broke the output
        self._notes: set[str] = set()  # that were told: an output that begins anew says the same
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"output-{name}", daemon=True)
        self._thread.start()

    @property
    def status(self) -> OutputStatus:
        with self._changed:
            return self._status

    @property
    def pid(self) -> int | None:
        """Of the muxing process."""
        child = self._child
        return child.pid if child is not None else None

    def begin(self, video: bytes, sound: SoundStream | None, turn: tuple[int, ...] | None = None) -> None:
        """The streams from here on, as in ``Begin``; the output is opened anew."""
        with self._changed:
            self._queue.append(Begin(self.target, self._settings, video, sound, turn))
            self._want_key = True
            self._changed.notify_all()

    def put(self, out: Out, data: bytes) -> None:
        """Hand over a packet; returns at once."""
        with self._changed:
            if self._finishing or self._closed.is_set():
                self._status = replace(self._status, dropped=self._status.dropped + 1)
                return
            if len(self._queue) >= self._settings.queue:
                self._clear()
            if self._want_key:
                if not (out.video and out.key):
                    self._status = replace(self._status, dropped=self._status.dropped + 1)
                    return
                self._want_key = False
            self._queue.append((out, data))
            self._changed.notify_all()

    def close(self, timeout: float = _CLOSING) -> None:
        """Send what waits, close the output in order, and end its process; killed after ``timeout`` seconds."""
        with self._changed:
            self._finishing = True
            self._changed.notify_all()
        if not self._closed.wait(timeout):
            log.warning("output %s of %s did not close in %.0f s: its process is ended", *self._words(), timeout)
            child = self._child
            if child is not None:
                child.kill()
        self._thread.join(2.0)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._round():
                pass
        except Exception as e:
            log.exception("output %s of %s failed", *self._words())
            self._set(error=mask(f"{type(e).__name__}: {e}"))
        finally:
            self._kill()
            with self._changed:
                self._clear()
                self._status = replace(self._status, state="closed", dropped=self._status.dropped + len(self._sent))
                self._closed.set()

    def _round(self) -> bool:
        """One step; False when the output is closed for good."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._finishing, 0.1)
            item = self._queue.popleft() if self._queue else None
            finishing = self._finishing
        unsent = isinstance(item, tuple)
        again = self._status.state in ("waiting", "disk full") and time.monotonic() >= self._retry_at
        try:
            if isinstance(item, Begin):
                self._current = item
                self._open(item)
            elif again and not finishing:
                assert self._current is not None
                self._open(self._current)
            live = self._status.state == "live"
            if live:
                self._listen(0.0)
            if isinstance(item, tuple):
                if live:
                    unsent = not self._send(*item)
            elif item is None and finishing:
                if live:
                    self._finish()
                return False
        except TimeoutError:
            self._stalled()
        except (EOFError, OSError):
            # Not TimeoutError, which is an OSError: that is caught above.
            fate = self._child.fate() if self._child is not None else "it has no process"
            crashed = self._child is not None and self._child.crashed
            self._kill()
            self._failed(Failed("broken", fate, sound=crashed))
        except _OutputFailed as e:
            self._failed(e.failure)
        if unsent:
            self._lose(1)
        return True

    def _send(self, out: Out, data: bytes) -> bool:
        """False for a packet with which an output can't begin."""
        if self._from_key:
            if not (out.video and out.key):
                return False
            self._from_key = False
        assert self._child is not None
        self._child.link.send(out, [data], timeout=self._settings.stall)
        self._sent.append(time.monotonic())
        return True

    def _open(self, begin: Begin) -> None:
        self._set(state="opening")
        self._from_key = True
        if self._child is None:
            self._child = Child("streamdeblur.video.publish_child")
        if begin.sound in self._muted:
            begin = replace(begin, sound=None)
        self._child.link.send(begin, timeout=self._settings.stall)
        deadline = time.monotonic() + _START
        while self._status.state == "opening":
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._listen(min(left, 0.2))
        self._lose_sent()

    def _took(self) -> None:
        """A packet arrived: only now a file has begun, and a peer does what it promised."""
        self._backoff.reset()
        if self._told is not None:
            log.warning("output %s of %s is there again", *self._words())
            self._told = None

    def _listen(self, timeout: float) -> None:
        """Take what the process says; raises TimeoutError when a packet waits too long for its acknowledgement."""
        assert self._child is not None
        link = self._child.link
        while link.ready(timeout):
            timeout = 0.0
            message, _ = link.receive(self._settings.stall)
            if isinstance(message, Taken):
                for _ in range(min(message.count, len(self._sent))):
                    self._sent.popleft()
                with self._changed:
                    self._status = replace(self._status, packets=self._status.packets + message.count)
                if message.count:
                    self._took()
            elif isinstance(message, Opened):
                self._set(state="live")
            elif isinstance(message, Failed):
                raise _OutputFailed(message)
            elif isinstance(message, Segment):
                with self._changed:
                    self._status = replace(self._status, segments=self._status.segments + 1)
            elif isinstance(message, Finished):
                self._set(state="closed")
            elif isinstance(message, Note) and message.text not in self._notes:
                self._notes.add(message.text)
                log.log(message.level, "output %s of %s: %s", *self._words(), mask(message.text))
        if self._sent and time.monotonic() - self._sent[0] > self._settings.stall:
            raise TimeoutError

    def _finish(self) -> None:
        assert self._child is not None
        self._child.link.send(Finish(), timeout=self._settings.stall)
        deadline = time.monotonic() + _CLOSING
        while self._status.state != "closed" and time.monotonic() < deadline:
            self._listen(0.1)

    def _stalled(self) -> None:
        with self._changed:
            self._status = replace(self._status, stalls=self._status.stalls + 1)
        self._kill()
        self._failed(Failed("broken", f"it took nothing for {self._settings.stall:g} s; its process is started anew"))

    def _failed(self, failure: Failed) -> None:
        full = failure.kind == "disk full"
        sound = self._current.sound if self._current is not None else None
        if failure.sound and sound is not None and sound not in self._muted:
            # The picture must not be lost a second time for it.
            self._muted.add(sound)
            log.warning("output %s of %s: %s sound is left out: it may be why it failed", *self._words(), sound.codec)
        if self._child is not None and self._child.returncode is not None:
            self._kill()  # one that only reports a failure is kept: starting it costs as much as encoding 30 frames
        with self._changed:
            s = self._status
            self._status = replace(
                s,
                state="disk full" if full else "waiting",
                restarts=s.restarts + 1,
                disk_full=s.disk_full + (full and failure.text.split(" (")[0] != (self._told or "").split(" (")[0]),
                error=failure.text,
            )
            self._clear()
        if (self._told or "").split(" (")[0] != failure.text.split(" (")[0]:
            self._told = failure.text
            again = "" if self._finishing else "; trying again"
            log.warning("output %s of %s: %s%s", *self._words(), failure.text, again)
        self._lose_sent()
        self._retry_at = time.monotonic() + self._backoff.wait(1.0 if full else 0.0)

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def _lose(self, count: int) -> None:
        with self._changed:
            self._status = replace(self._status, dropped=self._status.dropped + count)

    def _lose_sent(self) -> None:
        """What was not acknowledged will not be."""
        self._lose(len(self._sent))
        self._sent.clear()

    def _clear(self) -> None:
        """Drop the packets that wait; what begins anew among them is kept. With the lock held."""
        begins = [i for i in self._queue if isinstance(i, Begin)]
        lost = len(self._queue) - len(begins)
        self._queue.clear()
        self._queue.extend(begins[-1:])
        self._want_key = True
        self._status = replace(self._status, dropped=self._status.dropped + lost)

    def _words(self) -> tuple[str, str]:
        return self.target.shown, self._name

    def _set(self, **values: object) -> None:
        with self._changed:
            self._status = replace(self._status, **values)  # type: ignore[arg-type]


class _OutputFailed(Exception):
    def __init__(self, failure: Failed) -> None:
        super().__init__(failure.text)
        self.failure = failure
