"""What a job calls for each frame: the detector in a thread of its own, tracks, records, sinks, and the A/B meter."""

from __future__ import annotations

import logging
import re
import statistics
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from streamdeblur import interrupts
from streamdeblur.detect.detector import Boxes, Detections, Detector, checked, load_detector
from streamdeblur.detect.draw import draw_frame, frame_to_rgb, labels
from streamdeblur.detect.meter import Gain, Meter
from streamdeblur.detect.options import DetectOptions, parse_on
from streamdeblur.detect.schema import Look
from streamdeblur.detect.sinks import Sink, SinkStats, make_sinks
from streamdeblur.detect.tracks import LOW, Tracker
from streamdeblur.errors import UsageError
from streamdeblur.frames import Frame
from streamdeblur.restore.blur import blur_score

log = logging.getLogger(__name__)

#: Frames that wait for the detector: of a file (then the job waits), and live (then the oldest is left out).
_WAITING, _WAITING_LIVE = 4, 1
#: Seconds that a job without loss waits for a detector that does not come back, before it goes on without.
_PATIENCE = 60.0
#: Seconds without an answer after which a live job tells that its detector hangs.
_SILENCE = 5.0
#: A live detector is told to be too slow when it left out more than this share of the frames in so many stretches of so
#: many seconds one after the other. One alone says nothing: frames come in a burst when a source is opened.
_UNSEEN_SHARE, _STRETCHES, _STRETCH = 0.1, 2, 5.0
#: Seconds at most for a sink's last records, where it is down and where it is not.
_DOWN, _DELIVERY = 2.0, 30.0
#: Detector times that percentiles are taken of.
_TIMES = 512
#: Where restoration does not pay, one frame of so many is restored all the same, so that it is seen when it would.
PROBE = 12
#: Boxes of a frame this many earlier are not drawn any more; and how many frames' boxes are kept.
_STALE, _KEPT = 12, 32


@dataclass(frozen=True, slots=True)
class HookStats:
    """looked: frames that the detector was run on. skipped: left out on purpose (every Nth, not blurred enough).
    dropped: left out because the detector was busy. errors: frames on which it failed; error: the last one's words, or
    that it gives no answer. stuck: whether it has given none for some seconds, and gives none now.
    p50_ms, p95_ms: the detector on one frame. objects: found on the last frame. gain: with ``both`` only."""

    looked: int
    skipped: int
    dropped: int
    errors: int
    error: str | None
    stuck: bool
    p50_ms: float | None
    p95_ms: float | None
    objects: int
    gain: Gain | None
    sinks: tuple[SinkStats, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Ticket:
    """A frame that was handed over. Thread-safe."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._look: Look | None = None

    def _settle(self, look: Look | None) -> None:
        self._look = look
        self._done.set()

    @property
    def settled(self) -> bool:
        """Whether it is known what became of the frame."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> Look | None:
        """What was found; None where nothing looked at the frame, the detector failed, or after ``timeout`` seconds."""
        interrupts.wait(self._done.wait, timeout)
        return self._look


@dataclass(frozen=True, slots=True)
class _Offer:
    before: Frame
    after: Frame | None
    arrived: float
    wall: datetime
    ticket: Ticket


class Hook:
    """The detector's place in a job of one source. Build it before the job starts, ``close`` it at the end.

    options: with ``detect`` set. source: the name in the records, without credentials. lossless: for files: ``offer``
    waits while the detector is busy, so that every frame is looked at; else (live) it returns at once and the detector
    gets the newest frame. detector, sinks: in place of those that the options name; a detector may be shared by hooks
    if calls from several threads are safe (an ``OnnxDetector``'s are). The hook closes the sinks. rotation: of the
    display, in degrees counterclockwise (``StreamInfo.rotation``): the detector sees the picture upright, and boxes are
    turned back to the coded frame.

    ``offer`` raises nothing and, without ``lossless``, never waits: a detector that fails (whatever it raises), hangs
    or is too slow, and a sink that is down, are counted, told once for each kind of error, and shown by ``stats``; that
    a detector is back is told too. With ``lossless`` it waits for one that does not come back for 60 s, once.
    Raises UsageError, WeightsError, DeviceError, OutputError from its constructor. All methods are thread-safe.
    """

    def __init__(
        self,
        options: DetectOptions,
        *,
        source: str,
        lossless: bool = False,
        detector: Detector | None = None,
        sinks: Sequence[Sink] | None = None,
        rotation: int = 0,
    ) -> None:
        if rotation % 90:
            raise UsageError(f"rotation {rotation} is no multiple of 90 degrees", "leave it out")
        self._turns = rotation // 90 % 4
        if detector is None:
            if options.detect is None:
                raise UsageError("no detector to run", "name one with --detect")
            detector = load_detector(
                options.detect,
                threshold=min(LOW, options.detect_threshold) if options.track else options.detect_threshold,
                names=options.detect_names,
                device=options.detect_device,
                threads=options.detect_threads,
            )
        self._detector = detector
        self._source = re.sub(r"://[^/\s]*@", "://", source)  # whoever gave a URL for a name
        self._options, self._lossless = options, lossless
        self._on = parse_on(options.detect_on)
        self._tracker = Tracker(high=max(options.detect_threshold, LOW)) if options.track else None
        self._meter = Meter()
        self._sinks = list(sinks) if sinks is not None else make_sinks(options, lossless=lossless)
        self._changed = threading.Condition()
        self._queue: deque[_Offer] = deque()
        self._room = _WAITING if lossless else _WAITING_LIVE
        self._busy = self._closing = self._stuck = False
        self._looked = self._skipped = self._dropped = self._errors = 0
        self._error: str | None = None
        self._told: set[str] = set()
        self._asked_at: float | None = None  # when the detector was given the frame that it looks at
        self._silence = _SILENCE
        self._hangs = self._slow = False  # told
        self._stretch = time.monotonic()  # when this one began; answers in it, frames dropped before it
        self._answers = self._unseen = self._bad = 0
        self._times: deque[float] = deque(maxlen=_TIMES)
        self._kept: deque[Look] = deque(maxlen=_KEPT)
        self._gain: Gain | None = None
        self._last_index: int | None = None
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"detector of {self._source}", daemon=True)
        self._thread.start()

    # -- for the job ---------------------------------------------------------------------------------------------------

    def offer(
        self,
        before: Frame,
        after: Frame | None,
        *,
        arrived: float | None = None,
        wall: datetime | None = None,
    ) -> Ticket:
        """Hand a frame over: as it was decoded, and restored, or None where it was not. Neither is written to.

        arrived: ``time.monotonic`` of its arrival, from which latency counts; wall: the same as (aware) date and time.
        Both default to now. With ``both``, a frame that was not restored is looked at once and not compared.
        """
        ticket = Ticket()
        now = time.monotonic()
        offer = _Offer(before, after, now if arrived is None else arrived, wall or datetime.now(UTC), ticket)
        left_out: list[_Offer] = []
        with self._changed:
            words = self._judge_silence(now)
            if self._closing:
                self._dropped += 1
                left_out.append(offer)
            elif before.index % self._options.detect_every:
                self._skipped += 1
                left_out.append(offer)
            else:
                self._wait_for_room()
                while len(self._queue) >= self._room:
                    self._dropped += 1
                    left_out.append(self._queue.popleft())
                self._queue.append(offer)
                self._changed.notify_all()
        if words is not None:
            log.warning("%s", words)
        for one in left_out:
            one.ticket._settle(None)
        return ticket

    def _judge_silence(self, now: float) -> str | None:
        """What is to be told of a live detector that does not come back. With the lock held."""
        silent = self._silent(now)
        if silent is None or self._hangs or self._lossless:
            return None
        self._hangs = True
        return f"the detector of {self._source} has given no answer for {silent:.0f} s; the job goes on without"

    def _silent(self, now: float) -> float | None:
        """Seconds for which the detector has given no answer, where that is too long. With the lock held."""
        if self._asked_at is None:
            return None
        silent = now - self._asked_at
        return silent if (self._stuck if self._lossless else silent >= self._silence) else None

    def _wait_for_room(self) -> None:
        """With the lock held."""
        if not self._lossless or self._stuck:
            return
        until = time.monotonic() + _PATIENCE
        seen = self._progress()
        while len(self._queue) >= self._room and not self._closing:
            if self._progress() != seen:
                seen, until = self._progress(), time.monotonic() + _PATIENCE
            left = until - time.monotonic()
            if left <= 0:
                self._stuck = True
                log.warning("the detector of %s does not come back; frames go on without it", self._source)
                return
            self._changed.wait(min(left, interrupts.LOOK))
            interrupts.check()

    def _progress(self) -> int:
        return self._looked + self._errors + self._skipped

    def annotated(self, frame: Frame, ticket: Ticket, timeout: float | None = None) -> Frame:
        """The frame with boxes drawn: those found on it, waiting for them up to ``timeout`` seconds (None: 60), else
        those of a frame shortly before. Unchanged where nothing is known. A live job gives 0."""
        wait = 0.0 if self._stuck else _PATIENCE if timeout is None else timeout
        look = ticket.result(wait) or self._before(frame.index)
        return draw_frame(frame, labels(look.objects, look.tracks)) if look is not None else frame

    def _before(self, index: int) -> Look | None:
        oldest = index - _STALE - self._options.detect_every
        with self._changed:
            return next((k for k in reversed(self._kept) if oldest <= k.index <= index), None)

    def restore_advised(self, index: int) -> bool:
        """For ``--auto``: whether frame ``index`` should be restored. True until restoration is known not to pay, and
        then for one frame in twelve (of those that are looked at), which keeps the comparison alive."""
        with self._changed:
            pays = self._gain.pays if self._gain is not None else None
        return pays is not False or index % (PROBE * self._options.detect_every) == 0

    def latest(self) -> Look | None:
        """The last frame that was looked at."""
        with self._changed:
            return self._kept[-1] if self._kept else None

    def stats(self) -> HookStats:
        """A snapshot."""
        now = time.monotonic()
        with self._changed:
            words, silent = self._judge_silence(now), self._silent(now)
            error = self._error if silent is None else f"no answer for {silent:.0f} s"
            times = sorted(self._times)
            p50, p95 = (_percentile(times, p) for p in (0.5, 0.95))
            values = (self._looked, self._skipped, self._dropped, self._errors, error, silent is not None, p50, p95)
            objects, gain = len(self._kept[-1].objects) if self._kept else 0, self._gain
        if words is not None:
            log.warning("%s", words)
        return HookStats(*values, objects, gain, tuple(s.stats() for s in self._sinks))

    def close(self, timeout: float = 10.0) -> None:
        """Look at what waits, as long as a frame takes no more than ``timeout`` seconds, and deliver what was found: a
        sink that is down gets 2 s, others 30 s at most; after a signal, only 2 s for sinks. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        seen, until = self._progress(), time.monotonic() + timeout
        while self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(0.1)
            if self._progress() != seen:
                seen, until = self._progress(), time.monotonic() + timeout
            if time.monotonic() >= until or interrupts.wanted():
                break
        with self._changed:
            left = list(self._queue)
            self._queue.clear()
            self._dropped += len(left)
        for one in left:
            one.ticket._settle(None)
        for sink in self._sinks:
            hurry = sink.stats().down or interrupts.wanted()
            sink.close(min(timeout, _DOWN if hurry else _DELIVERY))

    def __enter__(self) -> Hook:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closing:
                        return
                    self._changed.wait()
                offer = self._queue.popleft()
                self._asked_at = time.monotonic()
                self._changed.notify_all()
            look: Look | None = None
            try:
                look = self._look(offer)
            except BaseException as e:  # a detector is somebody else's code; no signal is raised on this thread
                self._failed(e)
            finally:
                self._stuck = False
                offer.ticket._settle(look)
            self._answered()
            if look is not None:
                record = look.as_dict()
                for sink in self._sinks:
                    sink.send(record)

    def _answered(self) -> None:
        """Tell of a live detector that is back, or too slow."""
        now = time.monotonic()
        with self._changed:
            assert self._asked_at is not None
            seconds, self._asked_at = now - self._asked_at, None
            back, self._hangs = self._hangs, False
            words = None
            if back:
                self._silence = max(self._silence, 2 * seconds)  # one that always takes so long is told once
                self._stretch, self._answers, self._unseen, self._bad = now, 0, self._dropped, 0
                words = f"the detector of {self._source} is back after {seconds:.0f} s"
            elif not self._lossless and not self._slow:
                words = self._judge_pace(now)
            if self._closing:
                return
        if words is not None:
            log.warning("%s", words)

    def _judge_pace(self, now: float) -> str | None:
        """What is to be told of a live detector that is too slow for its stream. With the lock held."""
        self._answers += 1
        seconds, answers, unseen = now - self._stretch, self._answers, self._dropped - self._unseen
        if seconds < _STRETCH or answers < 3:
            return None
        self._stretch, self._answers, self._unseen = now, 0, self._dropped
        self._bad = self._bad + 1 if unseen > _UNSEEN_SHARE * (answers + unseen) else 0
        if self._bad < _STRETCHES:
            return None
        self._slow = True
        return (
            f"the detector of {self._source} is too slow for the stream, {1000 * seconds / answers:.0f} ms a frame: "
            f"{unseen} of the last {answers + unseen} frames were not looked at; --detect-every asks for fewer"
        )

    def _failed(self, e: BaseException) -> None:
        words = " ".join(str(e).split())[:200]
        log.debug("the detector failed", exc_info=True)
        with self._changed:
            self._errors += 1
            self._error = f"{type(e).__name__}: {words}"
            new = type(e).__name__ not in self._told
            self._told.add(type(e).__name__)
            self._changed.notify_all()
        if new:
            log.warning("the detector of %s failed: %s; the job goes on without", self._source, self._error)

    def _look(self, offer: _Offer) -> Look | None:
        before, after = offer.before, offer.after
        blur = blur_score(before.planes[0], depth=before.spec.color.depth)
        if self._on.mode == "blurry" and blur <= self._on.threshold:
            with self._changed:
                self._skipped += 1
                self._changed.notify_all()
            return None
        begun = time.perf_counter()
        found = self._run(after if after is not None else before)
        seconds = time.perf_counter() - begun
        unrestored = None
        if self._on.mode == "both" and after is not None:
            unrestored = self._run(before).at_least(self._options.detect_threshold)
        sure = found.at_least(self._options.detect_threshold)
        objects, tracks = self._follow(found, before.index)
        look = Look(
            source=self._source,
            time=offer.wall,
            index=before.index,
            pts=before.pts,
            time_base=before.time_base,
            width=before.spec.width,
            height=before.spec.height,
            restored=after is not None,
            blur=blur,
            latency=time.monotonic() - offer.arrived,
            detector=seconds,
            objects=objects,
            tracks=tracks,
            unrestored=unrestored,
        )
        if unrestored is not None:
            self._meter.add(self._clock(before), unrestored, sure)
        with self._changed:
            self._looked += 1
            self._times.append(seconds)
            self._kept.append(look)
            if unrestored is not None:
                self._gain = self._meter.gain()
            self._changed.notify_all()
        return look

    def _run(self, frame: Frame) -> Detections:
        height, width = frame.spec.height, frame.spec.width
        rgb = frame_to_rgb(frame)
        if not self._turns:
            return checked(self._detector(rgb), height, width)
        shown = np.ascontiguousarray(np.rot90(rgb, self._turns))
        found = checked(self._detector(shown), *shown.shape[:2])
        return replace(found, boxes=turn_back(found.boxes, self._turns, height, width))

    def _follow(self, found: Detections, index: int) -> tuple[Detections, tuple[int | None, ...]]:
        """Objects that count, with their tracks: the sure ones, and unsure ones that go on with a track."""
        threshold = self._options.detect_threshold
        if self._tracker is None:
            sure = found.at_least(threshold)
            return sure, (None,) * len(sure)
        steps = 1 if self._last_index is None else index - self._last_index
        self._last_index = index
        tracks = self._tracker.update(found, steps)
        kept = [i for i in range(len(found)) if found.scores[i] >= threshold or tracks[i] is not None]
        return found.pick(kept), tuple(tracks[i] for i in kept)

    def _clock(self, frame: Frame) -> float:
        """Seconds of the source; of this process where it has none."""
        return frame.time if frame.time is not None else time.monotonic() - self._begun


def turn_back(boxes: Boxes, turns: int, height: int, width: int) -> Boxes:
    """Boxes of a (height, width) picture from those found on it after ``numpy.rot90(picture, turns)``."""
    x1, y1, x2, y2 = boxes.T
    turned = {
        0: (x1, y1, x2, y2),
        1: (width - y2, x1, width - y1, x2),
        2: (width - x2, height - y2, width - x1, height - y1),
        3: (y1, height - x2, y2, height - x1),
    }[turns]
    return np.stack(turned, axis=1).astype(np.float32)


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """In milliseconds; nearest rank."""
    if not ordered:
        return None
    if share == 0.5:
        return round(statistics.median(ordered) * 1000, 3)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 3)
