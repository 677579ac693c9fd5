"""Who is restored next, and on which step: the lines of all sources, the ladder, and one pool.

Knows no clock and no thread: ``LiveJob`` holds its lock around every call and tells the time (monotonic seconds), tests
tell a time of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from streamdeblur.frames import FrameSpec, Gap
from streamdeblur.jobs.live.engines import ticketed
from streamdeblur.jobs.live.ladder import Ladder, LadderSettings
from streamdeblur.jobs.live.line import Entry, Line
from streamdeblur.jobs.live.treatment import Treatment
from streamdeblur.runtime.pool import Pool, Result
from streamdeblur.video.live.source import Arrived

log = logging.getLogger(__name__)

#: Seconds between two judgements of the ladder.
_JUDGE = 0.1


@dataclass(slots=True)
class Lane:
    """One source. emit: takes the frames that leave, in order; False where one was left out for that, because the cores
    that restore had no time for what follows. failures: frames that a worker could not restore."""

    name: str
    line: Line
    treatment: Treatment
    emit: Callable[[Entry], bool]
    spec: FrameSpec | None = None
    probing: bool = False
    failures: int = 0
    moves: int = 0
    error: str | None = None


@dataclass(slots=True)
class _Ticket:
    lane: Lane
    entry: Entry


@dataclass(slots=True)
class _Lanes:
    by_name: dict[str, Lane] = field(default_factory=dict)
    turn: int = 0


class Scheduler:
    """pool: asked for credits, given frames; ``done`` takes what it returns. workers: that share the load."""

    def __init__(
        self, steps: Sequence[str], pool: Pool, *, settings: LadderSettings | None = None, workers: int = 1
    ) -> None:
        self.ladder = Ladder(steps, settings, workers=workers)
        self._pool = pool
        self._lanes = _Lanes()
        self._tickets: dict[int, _Ticket] = {}
        self._next = 0
        self._judged = float("-inf")

    def add(
        self,
        name: str,
        latency: float,
        bound: int,
        late: Literal["passed", "dropped"],
        treatment: Treatment,
        emit: Callable[[Entry], bool],
    ) -> Lane:
        """A source joins. latency, bound, late: see ``Line``; emit: see ``Lane``."""
        lane = Lane(name, Line(latency, bound, late), treatment, emit)
        self._lanes.by_name[name] = lane
        self.ladder.add(name)
        return lane

    def arrived(self, lane: Lane, arrived: Arrived, now: float, *, spare: bool = False) -> None:
        """A frame came. spare: it is not worth restoring."""
        if lane.spec != arrived.frame.spec:
            if lane.spec is not None:
                self.ladder.renew(lane.name)
            lane.spec = arrived.frame.spec
        step = self.ladder.step_of(lane.name)
        if spare:
            lane.line.arrive(arrived, now, bypass=True, reason="does not pay").step = self.ladder.bypass
            return
        self.ladder.arrived(lane.name, now, lane.line.latency)
        probe = None if lane.probing else self.ladder.probe(lane.name, now)
        entry = lane.line.arrive(arrived, now, bypass=probe is None and step == self.ladder.bypass)
        entry.step = step if probe is None else probe
        if probe is not None:
            entry.probe = lane.probing = True

    def turn(self, now: float) -> float | None:
        """Let leave what is due, fill the pool, judge; when the next frame will be due, if one waits."""
        next_due: float | None = None
        self._leave(now)
        if self._feed(now):
            self._leave(now)  # what needed no worker
        if now - self._judged >= _JUDGE:
            self._judged = now
            self._judge(now)
        for lane in self._lanes.by_name.values():
            due = lane.line.next_due()
            if due is not None:
                next_due = due if next_due is None else min(next_due, due)
        return next_due

    def done(self, result: Result | Gap, now: float) -> None:
        """What the pool returned for one frame."""
        ticket = self._tickets.pop(result.index)
        lane, entry = ticket.lane, ticket.entry
        assert entry.step is not None
        if isinstance(result, Result):
            lane.line.restored(entry, result.corrections, result.worker, result.seconds)
            self._served(lane, entry, result.seconds, now)
            return
        lane.failures += 1
        if lane.error != result.reason:
            lane.error = result.reason
            log.warning("source %s: a frame can't be restored and passes as it is: %s", lane.name, result.reason)
        self.ladder.failed(lane.name, entry.step, now)
        lane.line.failed(entry, result.reason)
        if entry.probe:
            lane.probing = False

    def _leave(self, now: float) -> None:
        for lane in self._lanes.by_name.values():
            for entry in lane.line.leave(now):
                self._left(lane, entry, now)

    def _feed(self, now: float) -> bool:
        """Sources in turn, each with the oldest frame that can still be restored in time; whether any was taken."""
        taken = False
        lanes = list(self._lanes.by_name.values())
        empty = 0
        while self._pool.in_flight < self._pool.capacity and empty < len(lanes):
            lane = lanes[self._lanes.turn % len(lanes)]
            self._lanes.turn += 1
            entry = lane.line.take(now, self.ladder.cost(lane.name))
            if entry is None:
                empty += 1
                continue
            empty, taken = 0, True
            if not entry.probe:
                entry.step = self.ladder.step_of(lane.name)  # as of now, not of its arrival
                if entry.step == self.ladder.bypass:
                    lane.line.failed(entry, "bypass")
                    continue
            self._give(lane, entry, now)
        return taken

    def _give(self, lane: Lane, entry: Entry, now: float) -> None:
        assert entry.step is not None
        frame = entry.arrived.frame
        entry.plan = lane.treatment.plan(frame, entry.step)
        if entry.plan.regions is not None and not entry.plan.regions:
            # Nothing of it changed, or all of it is sharp: no worker is needed.
            lane.line.restored(entry, (), "", 0.0)
            self._served(lane, entry, 0.0, now)
            return
        ticket = self._next
        self._next += 1
        self._tickets[ticket] = _Ticket(lane, entry)
        self._pool.submit(ticketed(frame, ticket, entry.step), entry.plan.regions)

    def _served(self, lane: Lane, entry: Entry, seconds: float, now: float) -> None:
        assert entry.step is not None
        self.ladder.served(lane.name, entry.step, seconds, now)
        if entry.probe:
            lane.probing = False

    def _left(self, lane: Lane, entry: Entry, now: float) -> None:
        if entry.probe:
            # It was only to be timed: that it came too late says nothing about the step the source stands on.
            entry.missed = False
            if lane.probing and entry.fate != "restored" and not self._at_work(entry):
                self.ladder.abandon_probe(lane.name)
                lane.probing = False
        elif entry.missed:
            self.ladder.delivered(lane.name, late=True, now=now)
        elif entry.fate == "restored":
            self.ladder.delivered(lane.name, late=False, now=now)
        if not lane.emit(entry):
            self.ladder.behind(lane.name, now)

    def _at_work(self, entry: Entry) -> bool:
        return any(t.entry is entry for t in self._tickets.values())

    def _judge(self, now: float) -> None:
        for move in self.ladder.judge(now):
            lane = self._lanes.by_name[move.source]
            lane.moves += 1
            names = self.ladder.steps
            log.info("source %s: %s to %s (%s)", move.source, names[move.before], names[move.after], move.reason)
            if move.after == self.ladder.bypass:
                lane.line.pass_all("bypass")
