"""The frames of one source as they leave: corrected, shown to those who look, encoded once, handed to every output.

A thread of its own for each source, with a bounded queue before it. When encoding can't keep up, frames are left out
(and booked so, in their turn) rather than kept waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

from streamdeblur.errors import EncoderError
from streamdeblur.frames import Frame, FrameSpec
from streamdeblur.jobs.live.line import Entry
from streamdeblur.jobs.live.options import LiveOptions
from streamdeblur.jobs.live.record import LiveLedger
from streamdeblur.jobs.live.status import Meter
from streamdeblur.jobs.live.taps import FrameMeta, Tap
from streamdeblur.jobs.live.treatment import Plan, Treatment
from streamdeblur.jobs.live.watching import LiveWatch
from streamdeblur.runtime.ledger import FrameRecord, LedgerGap, Status, TileCounts
from streamdeblur.video.live.clock import TIME_BASE
from streamdeblur.video.live.link import SoundStream
from streamdeblur.video.live.source import SoundPacket
from streamdeblur.video.publish import Publisher
from streamdeblur.video.publish_encoder import EncodedPacket, LiveEncoder
from streamdeblur.video.publish_wire import Out
from streamdeblur.video.tags import SourceTags

log = logging.getLogger(__name__)

#: Frames that wait, and those among them and left out that are still to be booked one by one.
_QUEUE, _UNBOOKED = 12, 512
#: Packets of sound that wait for the pictures they belong to: some ten seconds of small ones.
_SOUND = 1024
#: Seconds before an encoder that failed is tried again.
_ENCODER_PAUSE = 5.0


@dataclass(frozen=True, slots=True)
class _Gone:
    """A frame that was left out, without its picture: it is booked in its turn."""

    record: FrameRecord
    plan: Plan | None


class Chain:
    """steps: names of the ladder's steps. publishers: the outputs. taps: those who look, asked for each frame.

    watch: the detector of this source, and what it draws.
    """

    def __init__(
        self,
        name: str,
        options: LiveOptions,
        steps: Sequence[str],
        publishers: Sequence[Publisher],
        treatment: Treatment,
        ledger: LiveLedger,
        taps: Callable[[], Sequence[Tap]],
        watch: LiveWatch | None = None,
    ) -> None:
        self._name = name
        self._options = options
        self._steps = tuple(steps)
        self.publishers = tuple(publishers)
        self._treatment = treatment
        self.ledger = ledger
        self._taps = taps
        self._watch = watch
        self._queue: deque[Entry | _Gone | LedgerGap] = deque()
        self._waiting = 0  # entries among them
        self._sound: deque[SoundPacket] = deque(maxlen=_SOUND)
        self._changed = threading.Condition()
        self._closing = False
        self._encoder: LiveEncoder | None = None
        self._spec: FrameSpec | None = None
        self._announced = False
        self._announced_sound: SoundStream | None = None
        self._shown: Fraction | None = None  # time of the last picture
        self._interval = Fraction(0)  # for which it stands
        self._blocked_until = 0.0
        self.latency = Meter()
        self.late = 0
        #: Frames that were left out because those before them were not done.
        self.behind = 0
        #: Mean seconds from leaving the line to the outputs' queues: the line lets frames go that much earlier.
        self.work = 0.0
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"chain-{name}", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> bool:
        """Hand over a frame that leaves the line; returns at once. False where one had to be left out for that."""
        with self._changed:
            before = self.behind
            self.late += entry.missed
            if entry.fate == "dropped":
                self._queue.append(_gone(entry))
            else:
                if self._waiting >= _QUEUE:
                    self._leave_out("encoding behind")
                self._queue.append(entry)
                self._waiting += 1
            if len(self._queue) > _UNBOOKED:
                self._shorten()
            self._changed.notify()
            return self.behind == before

    def _leave_out(self, reason: str) -> None:
        """The oldest frame that waits. With the lock held."""
        for n, old in enumerate(self._queue):
            if isinstance(old, Entry):
                old.fate, old.reason = "dropped", reason
                self._queue[n] = _gone(old)
                self._waiting -= 1
                self.behind += 1
                return

    def _shorten(self) -> None:
        """Two items at the head become one: of frames that wait to be booked for so long only the number is kept. With
        the lock held."""
        items = [self._queue.popleft() for _ in range(2)]
        left_out = sum(isinstance(i, Entry) for i in items)
        self._waiting -= left_out
        self.behind += left_out
        first = items[0].first if isinstance(items[0], LedgerGap) else _record_of(items[0]).index
        count = sum(i.frames if isinstance(i, LedgerGap) else 1 for i in items)
        self._queue.appendleft(LedgerGap(first, {"dropped": count}))

    def sound(self, packet: SoundPacket) -> None:
        """A packet of sound; it leaves with the pictures of its time."""
        with self._changed:
            self._sound.append(packet)

    def close(self) -> None:
        """Finish what waits, then close the outputs in order."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(30.0)
        threads = [threading.Thread(target=p.close, name="closing") for p in self.publishers]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if self._encoder is not None:
            self._encoder.close()
        self.ledger.close()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    break
                item = self._queue.popleft()
                self._waiting -= isinstance(item, Entry)
            if isinstance(item, LedgerGap):
                self._treatment.forget()
                self.ledger.gap(item)
            elif isinstance(item, _Gone):
                if item.plan is not None:
                    self._treatment.missed(item.plan)
                self.ledger.record(item.record)
            else:
                self._leave(item)
        if self._shown is not None:
            self._give_sounds(self._shown + self._interval)

    def _leave(self, entry: Entry) -> None:
        try:
            self._handle(entry)
        except Exception as e:  # one frame must not end a source
            log.exception("frame %d of source %s", entry.arrived.frame.index, self._name)
            self.error = entry.reason = f"{type(e).__name__}: {e}"
            entry.corrections = None
            with suppress(ValueError):  # it was booked already
                self.ledger.record(_record(entry, "failed", None))

    def _handle(self, entry: Entry) -> None:
        started = time.monotonic()
        frame = entry.arrived.frame
        status: Status = "restored" if entry.fate == "restored" else "bypassed"
        tiles: TileCounts | None = None
        after = frame
        if entry.corrections is not None and entry.plan is not None:
            after, tiles = self._treatment.compose(frame, entry.corrections, entry.plan)
        elif entry.plan is not None:
            self._treatment.missed(entry.plan)
        shown = after
        if self._watch is not None:
            shown = self._watch.see(entry.arrived, after if status == "restored" else None)
        self._encode(entry, shown)
        now = time.monotonic()
        latency = now - entry.arrived.arrival
        self.latency.add(now, latency)
        self.work += 0.1 * (now - started - self.work)
        self._show(entry, frame, after, status, latency)
        entry.corrections = None
        self.ledger.record(_record(entry, status, tiles))

    def _show(self, entry: Entry, before: Frame, after: Frame, status: Status, latency: float) -> None:
        taps = self._taps()
        if not taps:
            return
        step = self._steps[entry.step] if entry.step is not None else self._steps[-1]
        meta = FrameMeta(
            self._name,
            before.index,
            float(entry.arrived.time),
            entry.arrived.wall,
            latency,
            status,
            step,
            entry.reason,
            entry.seconds,
        )
        for tap in taps:
            tap.give(self._name, before, after, meta)

    # --- encoding ----------------------------------------------------------------------------------------------------

    def _encode(self, entry: Entry, after: Frame) -> None:
        if not self.publishers:
            with self._changed:
                self._sound.clear()
            return
        if time.monotonic() < self._blocked_until:
            return
        try:
            encoder = self._encoder_for(after.spec, entry.arrived.tags, entry.arrived.rate)
            packets = encoder.encode(after)
        except EncoderError as e:
            log.warning("source %s: %s; trying again in %.0f s", self._name, e, _ENCODER_PAUSE)
            self.error = str(e)
            self._drop_encoder()
            self._blocked_until = time.monotonic() + _ENCODER_PAUSE
            return
        for packet in packets:
            self._give(packet, entry, encoder)

    def _encoder_for(self, spec: FrameSpec, tags: SourceTags, rate: Fraction | None) -> LiveEncoder:
        if self._encoder is None or spec != self._spec:
            self._drop_encoder()
            o = self._options
            self._encoder = LiveEncoder(
                spec,
                tags,
                rate,
                TIME_BASE,
                encoder=o.encoder,
                crf=o.crf,
                preset="veryfast" if o.preset == "auto" else o.preset,
                keyframes=o.keyframe_seconds,
            )
            self._spec = spec
            self._announced = False
        return self._encoder

    def _drop_encoder(self) -> None:
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close()

    def _give(self, packet: EncodedPacket, entry: Entry, encoder: LiveEncoder) -> None:
        now = entry.arrived.time
        stream = entry.arrived.sound
        self._give_sounds(now)
        if not self._announced or (packet.key and stream is not None and stream != self._announced_sound):
            # An encoder is new, or a source came back with another sound than it went with.
            self._announced, self._announced_sound = True, stream
            for publisher in self.publishers:
                publisher.begin(encoder.header, stream, entry.arrived.tags.display_matrix)
        out = Out(True, packet.pts, packet.dts, 0, TIME_BASE, packet.key, entry.arrived.wall)
        for publisher in self.publishers:
            publisher.put(out, packet.data)
        if self._shown is not None:
            self._interval = now - self._shown
        elif entry.arrived.rate:
            self._interval = 1 / entry.arrived.rate
        self._shown = now

    def _give_sounds(self, until: Fraction) -> None:
        """Hand over the sound from before ``until``: it belongs to the pictures that went before. What precedes the
        first picture of all belongs to none, and goes."""
        for sound in self._due_sounds(until):
            if sound.stream != self._announced_sound:
                continue
            ticks, length = round(sound.time / TIME_BASE), round(sound.duration / TIME_BASE)
            out = Out(False, ticks, ticks, length, TIME_BASE, True, 0.0)
            for publisher in self.publishers:
                publisher.put(out, sound.data)

    def _due_sounds(self, until: Fraction) -> list[SoundPacket]:
        with self._changed:
            due = []
            while self._sound and self._sound[0].time < until:
                due.append(self._sound.popleft())
            return due


def _record(entry: Entry, status: Status, tiles: TileCounts | None) -> FrameRecord:
    frame = entry.arrived.frame
    out = None if status in ("dropped", "failed") else frame.pts
    return FrameRecord(frame.index, frame.pts, out, TIME_BASE, status, tiles, entry.worker, entry.seconds, entry.reason)


def _gone(entry: Entry) -> _Gone:
    return _Gone(_record(entry, "dropped", None), entry.plan)


def _record_of(item: Entry | _Gone) -> FrameRecord:
    return item.record if isinstance(item, _Gone) else _record(item, "dropped", None)
