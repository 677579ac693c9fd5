"""The frames of one source as they leave: corrected, shown to those who look, encoded once, handed to every output.

A thread of its own for each source, with a bounded queue before it. When encoding can't keep up, frames are left out
(and booked so) rather than kept waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction

from streamdeblur.errors import EncoderError, OutputError
from streamdeblur.frames import Frame, FrameSpec
from streamdeblur.jobs.live.line import Entry
from streamdeblur.jobs.live.options import LiveOptions
from streamdeblur.jobs.live.status import Meter
from streamdeblur.jobs.live.taps import FrameMeta, Tap
from streamdeblur.jobs.live.treatment import Treatment
from streamdeblur.jobs.live.watching import LiveWatch
from streamdeblur.runtime.ledger import STATUSES, FrameRecord, Ledger, Status, TileCounts
from streamdeblur.video.live.clock import TICKS, TIME_BASE
from streamdeblur.video.live.source import SoundPacket
from streamdeblur.video.live.wire import SoundStream
from streamdeblur.video.publish import Publisher
from streamdeblur.video.publish_encoder import EncodedPacket, LiveEncoder
from streamdeblur.video.publish_wire import Out
from streamdeblur.video.tags import SourceTags

log = logging.getLogger(__name__)

_QUEUE = 12
#: Packets of sound that wait for the pictures they belong to: some ten seconds of small ones.
_SOUND = 1024
#: Seconds before an encoder that failed is tried again.
_ENCODER_PAUSE = 5.0


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
        ledger: Ledger,
        taps: Callable[[], Sequence[Tap]],
        watch: LiveWatch | None = None,
    ) -> None:
        self._name = name
        self._options = options
        self._steps = tuple(steps)
        self.publishers = tuple(publishers)
        self._treatment = treatment
        self._ledger: Ledger | None = ledger
        self.counts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
        self.tiles = TileCounts()
        self._taps = taps
        self._watch = watch
        self._queue: deque[Entry] = deque()
        self._sound: deque[SoundPacket] = deque(maxlen=_SOUND)
        self._changed = threading.Condition()
        self._closing = False
        self._encoder: LiveEncoder | None = None
        self._spec: FrameSpec | None = None
        self._announced = False
        self._announced_sound: SoundStream | None = None
        self._blocked_until = 0.0
        self.latency = Meter()
        self.late = 0
        #: Mean seconds from leaving the line to the outputs' queues: the line lets frames go that much earlier.
        self.work = 0.0
        self.error: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"chain-{name}", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Hand over a frame that leaves the line; returns at once."""
        with self._changed:
            waiting = sum(e.fate != "dropped" for e in self._queue)
            if waiting >= _QUEUE:
                for old in self._queue:
                    if old.fate != "dropped":
                        old.fate, old.reason, old.corrections = "dropped", "encoding behind", None
                        break
            self._queue.append(entry)
            self._changed.notify()

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
        try:
            if self._ledger is not None:
                self._ledger.close()
        except OutputError as e:
            log.warning("source %s: %s", self._name, e)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                entry = self._queue.popleft()
            try:
                self._handle(entry)
            except Exception as e:  # one frame must not end a source
                log.exception("frame %d of source %s", entry.arrived.frame.index, self._name)
                self.error = entry.reason = f"{type(e).__name__}: {e}"
                entry.corrections = None
                with suppress(Exception):  # if it was booked already
                    self._book(entry, "failed", None)

    def _handle(self, entry: Entry) -> None:
        started = time.monotonic()
        frame = entry.arrived.frame
        status: Status = (
            "restored" if entry.fate == "restored" else "dropped" if entry.fate == "dropped" else "bypassed"
        )
        tiles: TileCounts | None = None
        if entry.missed:
            self.late += 1
        if status != "dropped":
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
        elif entry.plan is not None:
            self._treatment.missed(entry.plan)
        entry.corrections = None
        self._book(entry, status, tiles)

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

    def _book(self, entry: Entry, status: Status, tiles: TileCounts | None) -> None:
        frame = entry.arrived.frame
        out = None if status == "dropped" else frame.pts
        record = FrameRecord(
            frame.index, frame.pts, out, TIME_BASE, status, tiles, entry.worker, entry.seconds, entry.reason
        )
        self.counts[status] += 1
        if tiles is not None:
            t = self.tiles
            self.tiles = TileCounts(t.restored + tiles.restored, t.reused + tiles.reused, t.skipped + tiles.skipped)
        if self._ledger is None:
            return
        try:
            self._ledger.record(record)
        except OutputError as e:
            # A full disk ends the ledger, not the stream.
            log.warning("source %s: %s; the ledger ends here", self._name, e)
            self.error = str(e)
            self._ledger = None

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
        sounds = self._due_sounds(entry.arrived.time)
        stream = entry.arrived.sound
        if not self._announced or (packet.key and stream is not None and stream != self._announced_sound):
            # An encoder is new, or a source came back with another sound than it went with.
            self._announced, self._announced_sound = True, stream
            for publisher in self.publishers:
                publisher.begin(encoder.header, stream.header if stream else None, stream.codec if stream else "")
        for sound in sounds:
            if sound.stream != self._announced_sound:
                continue
            base = Fraction(1, TICKS)
            ticks, length = round(sound.time / base), round(sound.duration / base)
            for publisher in self.publishers:
                publisher.put(Out(False, ticks, ticks, length, base, True, 0.0), sound.data)
        out = Out(True, packet.pts, packet.dts, 0, TIME_BASE, packet.key, entry.arrived.wall)
        for publisher in self.publishers:
            publisher.put(out, packet.data)

    def _due_sounds(self, time_now: Fraction) -> list[SoundPacket]:
        with self._changed:
            due = []
            while self._sound and self._sound[0].time <= time_now:
                due.append(self._sound.popleft())
            return due
