"""A source that is always there: frames as they arrive, whatever happens to the process that reads them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from streamdeblur.frames import Frame, FrameSpec
from streamdeblur.video.live.backoff import Backoff
from streamdeblur.video.live.clock import TIME_BASE, LiveClock
from streamdeblur.video.live.link import Note, SoundStream
from streamdeblur.video.live.process import Child
from streamdeblur.video.live.urls import is_url, mask, with_credentials
from streamdeblur.video.live.wire import (
    Decoded,
    NewClock,
    Opened,
    OpenSource,
    Over,
    Picture,
    Sound,
    Undecodable,
    planes_of,
)
from streamdeblur.video.tags import SourceTags

log = logging.getLogger(__name__)

State = Literal["starting", "connecting", "live", "waiting", "ended", "gave up", "stopped"]

#: Seconds between two tries with credentials that were refused: cameras lock accounts.
_REFUSED_CREDENTIALS = 30.0
#: Seconds for a process to start and a source to open beside the time that FFmpeg is given.
_START = 10.0
#: Packets of sound that wait for the first picture: a decoder holds pictures back, and a camera waits for a keyframe.
_EARLY = 512
#: Seconds that two frames of a file may lie apart.
_PAUSE = 120.0


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """transport: of RTSP. stall: seconds without a frame after which the reading process is killed and started again.
    give_up: seconds without a frame after which the source is given up; None never. loop: begin a file anew at its end.
    audio: take the first sound stream along."""

    transport: Literal["tcp", "udp"] = "tcp"
    stall: float = 5.0
    give_up: float | None = None
    loop: bool = False
    audio: bool = True


@dataclass(frozen=True, slots=True)
class Arrived:
    """A decoded frame. Its ``index`` counts all frames of the source, its pts are ``clock.TIME_BASE`` from the first.

    arrival: monotonic seconds when its packet came. wall: the same moment as seconds since 1970. tags,
    rate: for an encoder. sound: the stream that comes with the pictures.
    """

    frame: Frame
    arrival: float
    wall: float
    tags: SourceTags
    rate: Fraction | None
    sound: SoundStream | None

    @property
    def time(self) -> Fraction:
        """Seconds on the time line of the source."""
        assert self.frame.pts is not None
        return self.frame.pts * TIME_BASE


@dataclass(frozen=True, slots=True)
class SoundPacket:
    """time, duration: seconds on the time line of the frames. stream: what it belongs to."""

    time: Fraction
    duration: Fraction
    data: bytes
    stream: SoundStream


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """state: what it does now. frames: that arrived. undecodable: packets and frames that a decoder refused.
    reconnects: times it was opened again. restarts: times its process was killed. error: the last, masked."""

    state: State = "starting"
    frames: int = 0
    undecodable: int = 0
    reconnects: int = 0
    restarts: int = 0
    codec: str | None = None
    size: tuple[int, int] | None = None
    error: str | None = None


class LiveSource:
    """Reads one source on a thread of its own, in a process of its own, until it is stopped, ends or is given up.

    url: anything FFmpeg opens, or a file, which is paced by its timestamps. on_frame, on_sound, on_end: called on that
    thread; they must not block for long, or frames wait in the reading process. on_end: once, with the last error for a
    source that was given up, else None.
    """

    def __init__(
        self,
        name: str,
        url: str,
        settings: SourceSettings,
        *,
        on_frame: Callable[[Arrived], None],
        on_sound: Callable[[SoundPacket], None] = lambda _: None,
        on_end: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.url = with_credentials(url)
        self.settings = settings
        self._on_frame = on_frame
        self._on_sound = on_sound
        self._on_end = on_end
        self._stop = threading.Event()
        self._child: Child | None = None
        self._clock = LiveClock()
        self._backoff = Backoff()
        self._lock = threading.Lock()
        self._status = SourceStatus()
        self._picture: Picture | None = None
        self._spec: FrameSpec | None = None
        self._rate: Fraction | None = None
        self._sound: SoundStream | None = None
        #: Sound that came before the first picture of its connection, which tells its time.
        self._early: deque[tuple[Sound, bytes]] = deque(maxlen=_EARLY)
        self._index = 0
        self._last_good = time.monotonic()
        self._told: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"source-{name}", daemon=True)

    @property
    def shown(self) -> str:
        """The URL as it may be shown."""
        return mask(self.url)

    @property
    def status(self) -> SourceStatus:
        with self._lock:
            return self._status

    @property
    def pid(self) -> int | None:
        """Of the reading process, for tests and those who look."""
        child = self._child
        return child.pid if child is not None else None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End it; waits for the thread, a second at most for the process to say goodbye to its server."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        error: str | None = None
        try:
            error = self._sessions()
        except Exception as e:
            log.exception("source %s failed", self.name)
            error = f"{type(e).__name__}: {e}"
            self._set(state="gave up", error=mask(error))
        finally:
            child, self._child = self._child, None
            if child is not None:
                child.kill()
            self._on_end(error)

    def _sessions(self) -> str | None:
        first = True
        while not self._stop.is_set():
            self._set(state="connecting")
            over = self._session()
            if over.kind == "stopped" or self._stop.is_set():
                break
            if over.kind == "finished":
                self._set(state="ended")
                return None
            if not is_url(self.url):
                # A file does not get better by waiting for it.
                self._set(state="gave up", error=mask(over.text))
                return mask(over.text)
            self._failed(over, first)
            first = False
            limit = self.settings.give_up
            if limit is not None and time.monotonic() - self._last_good >= limit:
                self._set(state="gave up")
                return f"{over.text}, for {limit:g} s"
            floor = _REFUSED_CREDENTIALS if over.kind in ("unauthorized", "forbidden") else 0.0
            wait = self._backoff.wait(floor)
            if limit is not None:
                wait = min(wait, max(0.0, self._last_good + limit - time.monotonic()))
            self._set(state="waiting")
            self._stop.wait(wait)
        self._set(state="stopped")
        return None

    def _failed(self, over: Over, first: bool) -> None:
        text = mask(over.text)
        with self._lock:
            live = self._status.frames > 0
            self._status = replace(self._status, error=text, reconnects=self._status.reconnects + 1)
        # Once for each way to fail: a camera that is off for a night is not a thousand lines.
        if text != self._told:
            self._told = text
            again = "trying again" if live or not first else "trying until it is there"
            log.warning("source %s (%s): %s; %s", self.name, self.shown, text, again)

    def _session(self) -> Over:
        """One opening of the source, until it is over one way or another."""
        s = self.settings
        if self._child is None or self._child.returncode is not None:
            self._drop_child()
            self._child = Child("streamdeblur.video.live.child")
        child = self._child
        self._new_clock()
        self._sound = None
        try:
            child.link.send(OpenSource(self.url, s.transport, s.stall, s.loop, s.audio), timeout=_START)
            return self._receive(child)
        except (EOFError, OSError) as e:
            fate = child.fate() if isinstance(e, EOFError) else str(e) or type(e).__name__
            self._drop_child()
            return Over("failed", f"the reader failed: {fate}")

    def _receive(self, child: Child) -> Over:
        # A recording may rest on one picture for long.
        stall = self.settings.stall if is_url(self.url) else max(self.settings.stall, _PAUSE)
        deadline = time.monotonic() + _START + stall
        fresh = True
        while True:
            if self._stop.is_set():
                return self._goodbye(child)
            if not child.link.ready(min(0.25, deadline - time.monotonic())):
                if time.monotonic() < deadline:
                    continue
                # Whatever it waits for: nothing in there can be trusted to end it.
                self._drop_child()
                with self._lock:
                    self._status = replace(self._status, restarts=self._status.restarts + 1)
                return Over("timeout", f"no frame for {stall:g} s; its process is started anew")
            message, payload = child.link.receive(_START)
            if isinstance(message, Decoded):
                if fresh:
                    fresh = False
                    self._live()
                deadline = time.monotonic() + stall
                self._frame(message, payload)
            elif isinstance(message, Over):
                return message
            else:
                self._other(message, payload)

    def _goodbye(self, child: Child) -> Over:
        """Let the process close its connection: a server may hold the session of one that vanished for a minute."""
        try:
            child.link.send(None, timeout=1.0)
            limit = time.monotonic() + 1.0
            while child.link.ready(limit - time.monotonic()):
                message, _ = child.link.receive(1.0)
                if isinstance(message, Over):
                    break
        except (EOFError, OSError):
            pass
        self._drop_child()
        return Over("stopped", "")

    def _live(self) -> None:
        self._backoff.reset()
        if self._told is not None:
            log.warning("source %s (%s) is there", self.name, self.shown)
            self._told = None
        self._set(state="live")

    def _other(self, message: object, payload: bytearray) -> None:
        if isinstance(message, Sound):
            self._give_sound(message, bytes(payload))
        elif isinstance(message, Opened):
            self._rate = message.rate or self._rate
            self._sound = message.sound
            self._set(codec=message.codec)
        elif isinstance(message, Picture):
            self._change(message)
        elif isinstance(message, NewClock):
            self._new_clock()
        elif isinstance(message, Undecodable):
            with self._lock:
                self._status = replace(self._status, undecodable=self._status.undecodable + message.count)
        elif isinstance(message, Note):
            log.log(message.level, "source %s: %s", self.name, mask(message.text))

    def _change(self, picture: Picture) -> None:
        old, new = self._spec, picture.spec
        if old is not None and old != new:
            was, now = f"{old.width}x{old.height}", f"{new.width}x{new.height}"
            what = f"from {was} to {now}" if was != now else f"their format to {picture.tags.pix_fmt}"
            log.warning("source %s: its pictures change %s; its outputs begin anew", self.name, what)
        self._picture = picture
        self._spec = new
        self._set(size=(new.width, new.height))

    def _frame(self, message: Decoded, payload: bytearray) -> None:
        assert self._picture is not None
        spec = self._picture.spec
        pts = message.pts * message.time_base if message.pts is not None else None
        at = self._clock.video(pts, message.arrival)
        frame = Frame(self._index, round(at / TIME_BASE), TIME_BASE, planes_of(payload, spec), spec)
        self._index += 1
        self._last_good = time.monotonic()
        with self._lock:
            self._status = replace(self._status, frames=self._index)
        wall = time.time() - (time.monotonic() - message.arrival)
        self._on_frame(Arrived(frame, message.arrival, wall, self._picture.tags, self._rate, self._sound))
        # A picture without a timestamp tells nothing: RTSP may begin with such.
        while self._early and self._clock.knows:
            self._give_sound(*self._early.popleft())

    def _new_clock(self) -> None:
        self._clock.new_session()
        self._early.clear()

    def _give_sound(self, message: Sound, data: bytes) -> None:
        if not self._clock.knows:
            self._early.append((message, data))
            return
        at = self._clock.sound(message.pts * message.time_base)
        if at is not None and self._sound is not None:
            self._on_sound(SoundPacket(at, message.duration * message.time_base, data, self._sound))

    def _drop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()

    def _set(self, **values: object) -> None:
        with self._lock:
            self._status = replace(self._status, **values)  # type: ignore[arg-type]
