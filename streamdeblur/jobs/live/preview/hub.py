"""The newest frame of each source, and its picture for those who look.

``show`` keeps references and returns: nothing that readers do reaches the job. One thread makes pictures, of watched
sources only, each once for all readers, at a limited rate and for a limited share of a core.
"""

from __future__ import annotations

import json
import logging
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from streamdeblur.detect.schema import Look
from streamdeblur.frames import Frame
from streamdeblur.jobs.live.preview.pictures import jpeg, small_bgr
from streamdeblur.video.live.urls import mask

log = logging.getLogger(__name__)

#: Share of one core's time that making pictures may take: the restorer needs the rest.
_DUTY = 1 / 4
_LONGEST_PAUSE = 1.0
#: Frames of a watched source that are kept until the detector has seen them: boxes belong on their own frame.
_KEPT = 6
#: Boxes of another frame are shown if it is not further away than this: seconds, or frames where there is no time.
_NEAR_SECONDS, _NEAR_FRAMES = 1.0, 12
#: Seconds that a frame waits for a detector that keeps up, and between two looks whether it has come.
_GRACE, _POLL = 0.15, 0.03
_MOST_TOLD = 20


class Facts(Protocol):
    """What is told with a frame. index: of the source. wall: seconds since 1970 of its arrival. latency: seconds from
    there to its output. status: "restored", "bypassed". step: of the ladder. reason: why it is not restored."""

    @property
    def index(self) -> int: ...
    @property
    def wall(self) -> float: ...
    @property
    def latency(self) -> float: ...
    @property
    def status(self) -> str: ...
    @property
    def step(self) -> str: ...
    @property
    def reason(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Shown:
    """The newest frame of a source; after is before where nothing was restored. number: counts all frames shown.
    at: when it was, monotonic."""

    number: int
    at: float
    before: Frame
    after: Frame
    facts: Facts


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame of one source for readers.

    before, after: JPEG, one and the same object where nothing was restored. message: for the page: length of a JSON
    text (4 bytes, big-endian), the text, the JPEG before, and the one after unless it is the same.
    """

    source: str
    number: int
    index: int
    before: bytes
    after: bytes
    message: bytes

    def side(self, which: str) -> bytes:
        return self.before if which == "before" else self.after


class Hub:
    """on_picture: called on the thread that makes pictures. looks: the last findings on a source, for boxes.

    All methods are thread-safe; ``show`` never waits for anything that is not a few instructions away.
    """

    def __init__(
        self,
        on_picture: Callable[[Picture], None],
        *,
        fps: float = 10.0,
        width: int = 960,
        looks: Callable[[str], Look | None] | None = None,
    ) -> None:
        self._on_picture = on_picture
        self._interval = 1.0 / fps
        self._width = width
        self._looks = looks
        self._changed = threading.Condition()
        self._frames: dict[str, Shown] = {}
        self._history: dict[str, deque[Shown]] = {}
        self._watchers: Counter[str] = Counter()
        self._made: dict[str, int] = {}  # number of the frame that a source's last picture is of
        self._due: dict[str, float] = {}
        self._free_at = 0.0
        self._shown = 0
        self._closing = False
        self._told: set[str] = set()
        self.encoded = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name="preview-pictures", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def show(self, source: str, before: Frame, after: Frame, facts: Facts) -> None:
        """Take the newest frame of a source; returns at once. Its planes must not be written to afterwards."""
        with self._changed:
            if self._closing:
                return
            self._shown += 1
            shown = self._frames[source] = Shown(self._shown, time.monotonic(), before, after, facts)
            if self._watchers[source]:
                if self._looks is not None:
                    self._history.setdefault(source, deque(maxlen=_KEPT)).append(shown)
                self._changed.notify()

    def newest(self, source: str) -> Shown | None:
        with self._changed:
            return self._frames.get(source)

    def names(self) -> tuple[str, ...]:
        """Sources that have shown a frame."""
        with self._changed:
            return tuple(self._frames)

    def watch(self, source: str) -> None:
        """One reader more: from now on pictures are made."""
        with self._changed:
            self._watchers[source] += 1
            self._changed.notify()

    def unwatch(self, source: str) -> None:
        with self._changed:
            self._watchers[source] -= 1
            if self._watchers[source] <= 0:
                del self._watchers[source]
                self._history.pop(source, None)
                self._made.pop(source, None)  # who comes next gets a picture, even of a source that stands still

    def close(self, timeout: float = 1.0) -> None:
        with self._changed:
            self._closing = True
            self._frames.clear()
            self._history.clear()
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                found, wait = self._next(time.monotonic())
                while found is None and not self._closing:
                    self._changed.wait(wait)
                    found, wait = self._next(time.monotonic())
                if self._closing or found is None:
                    return
                source, shown = found
                last = self._made.get(source, 0)
                kept = tuple(self._history.get(source, ()))
            begun = time.monotonic()
            try:
                look = self._looks(source) if self._looks is not None else None
                chosen = _choose(look, shown, kept, last, begun)
                if chosen is None:
                    self._due[source] = begun + _POLL
                    continue
                shown = chosen
                self._on_picture(self._make(source, shown, look))
                self.encoded += 1
            except Exception as e:  # one picture must not end the page
                self._tell(source, e)
            with self._changed:
                if self._watchers[source]:
                    self._made[source] = shown.number
            now = time.monotonic()
            self._due[source] = begun + self._interval
            self._free_at = now + min((now - begun) * (1 / _DUTY - 1), _LONGEST_PAUSE)

    def _next(self, now: float) -> tuple[tuple[str, Shown] | None, float | None]:
        """What to make a picture of, or the seconds until there may be something; the longest due comes first."""
        best: str | None = None
        earliest = float("inf")
        for source in self._watchers:
            shown = self._frames.get(source)
            if shown is None or self._watchers[source] <= 0 or shown.number == self._made.get(source):
                continue
            due = self._due.get(source, 0.0)
            if due < earliest:
                best, earliest = source, due
        if best is None:
            return None, None
        start = max(earliest, self._free_at)
        if start > now:
            return None, start - now
        return (best, self._frames[best]), None

    def _make(self, source: str, shown: Shown, look: Look | None) -> Picture:
        if look is not None and not _near(look, shown.before):
            look = None
        before = jpeg(small_bgr(shown.before, self._width))
        same = shown.after is shown.before
        after = before if same else jpeg(small_bgr(shown.after, self._width))
        facts = shown.facts
        header = {
            "source": source,
            "number": shown.number,
            "index": facts.index,
            "wall": round(facts.wall, 3),
            "latency_ms": round(facts.latency * 1000, 1),
            "status": facts.status,
            "step": facts.step,
            "reason": None if facts.reason is None else mask(facts.reason),
            "width": shown.after.spec.width,
            "height": shown.after.spec.height,
            "before_bytes": len(before),
            "after_bytes": 0 if same else len(after),
            **_boxes(look),
            "boxes_index": None if look is None else look.index,
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        message = b"".join((struct.pack(">I", len(text)), text, before, b"" if same else after))
        return Picture(source, shown.number, facts.index, before, after, message)

    def _tell(self, source: str, error: Exception) -> None:
        self.failed += 1
        text = mask(f"{type(error).__name__}: {error}")
        if text not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(text)
            log.warning("no picture of %s on the preview page: %s", source, text)


def _choose(look: Look | None, newest: Shown, kept: Sequence[Shown], last: int, now: float) -> Shown | None:
    """The frame to show: the newest; with a detector that keeps up the one that it has just seen, or, when that does
    not come in time, one that has waited long enough. None is not yet. last: number of the frame shown last."""
    if look is None or not _near(look, newest.before):
        return newest
    unseen = [s for s in kept if s.number > last] or [newest]
    own = next((s for s in unseen if s.before.index == look.index), None)
    if own is not None:
        return own
    aged = [s for s in unseen if now - s.at >= _GRACE]
    if aged:
        return aged[-1]
    return unseen[0] if len(unseen) == _KEPT else None


def _near(look: Look, frame: Frame) -> bool:
    if look.pts is None or frame.time is None:
        return abs(frame.index - look.index) <= _NEAR_FRAMES
    return abs(frame.time - float(look.pts * look.time_base)) <= _NEAR_SECONDS


def _boxes(look: Look | None) -> dict[str, Any]:
    """boxes: on the restored frame; boxes_before: on the other, where a detector looked at both. In shares of the
    frame, so that a page need not know its size."""
    if look is None:
        return {"boxes": None, "boxes_before": None}
    record = look.as_dict()
    size = (look.width, look.height, look.width, look.height)

    def shares(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "box": [round(v / s, 5) for v, s in zip(o["box"], size, strict=True)],
                "name": o["name"],
                "score": o["score"],
                "track": o["track"],
            }
            for o in objects
        ]

    both = record["unrestored"]
    return {"boxes": shares(record["objects"]), "boxes_before": None if both is None else shares(both["objects"])}
