"""Which step of the ladder each source stands on: best quality that the device has time for, and no flapping.

    model → small model → half scale → bypass

The law, for one device shared by all sources:

- A step costs ``cost[step]`` seconds of device time a frame (measured, averaged), a source brings ``rate`` frames a
  second; the *load* of the device is the sum of cost times rate over all sources, divided by the number of workers.
- Down: when frames of a source came too late (a share of its last frames, not a single one), or when the load is
  above 1. One source at a time, the one with the greatest load among those in trouble, to the next step that is known
  to fit or whose cost is not known; then the effect is awaited.
- Down, too, when frames were left out behind the ladder because encoding could not keep up: where restoration takes the
  same cores, less of it gives room to that. Any source's frames count, those of sources on bypass as well.
- Up: one step, when no frame came late or was left out for a while and the load with that step is below ``room``. The
  gap between ``room`` and 1 is the hysteresis, and a step up that had to be taken back doubles the time until the next.
- What comes all at once after a pause of its source (a camera or a network that stood still) says nothing about load:
  such frames are left out of the rate, and what is late or left out on their account is not held against a step.
- A step above whose cost is not known, or was measured long ago, is *probed*: some frames are restored with it, one
  after the other, and timed. What does not fit is probed ever less often.

Knows no clock: every call is told the time, in seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Frames of a probe, and the seconds of device time after which it ends with fewer (three at least): the first time,
#: and later. What is late within so many seconds after a frame of a probe is late because of that.
_PROBE_FRAMES = 8
_PROBE_SECONDS = (2.0, 0.25)
_DISTURBED = 0.5
#: Seconds in which frames that were left out behind the ladder are counted. They must spread over half of it: those of
#: a burst, as after a pause of the source, say nothing about the load.
_BEHIND = 2.0
#: A frame that comes within this share of the usual interval, at most so many seconds after a pause, belongs to what
#: piled up in it. Pauses sooner than that after the last are the way in which a source comes, and count.
_CROWDED = 0.5
_CATCHING_UP = 3.0
#: Frames that the cost of a step is the mean of, and the share of them that counts: the dearest pay for compiling,
#: allocating and choosing kernels, or met a hiccup of the machine. When they make frames late, that is seen as such.
_FRAMES = 32
_COUNTED = 0.85


@dataclass(frozen=True, slots=True)
class LadderSettings:
    """room: load below which a step up is taken. window: frames of a source that are looked at. late_share: share of
    them that may be late. settle: seconds after a step down in which nothing is judged. hold: seconds without a late
    frame before a step up, after one down. hold_most: where doubling it ends. probe, probe_most: seconds between probes
    of a step above. absent: seconds without a frame after which a source brings no load."""

    room: float = 0.8
    window: int = 24
    late_share: float = 0.1
    settle: float = 1.0
    hold: float = 3.0
    hold_most: float = 120.0
    probe: float = 10.0
    probe_most: float = 120.0
    absent: float = 1.0


@dataclass(frozen=True, slots=True)
class Move:
    """A step taken. before, after: indices into the steps."""

    source: str
    before: int
    after: int
    reason: str


@dataclass(slots=True)
class _Climber:
    step: int
    samples: list[deque[float]]  # seconds of the last frames on each step
    measured: list[float]  # when each step was last probed
    interval: float | None = None
    arrival: float | None = None
    late: deque[bool] = field(default_factory=deque)
    left_out: deque[float] = field(default_factory=lambda: deque(maxlen=512))  # when frames were, behind the ladder
    last_late: float = -math.inf
    moved: float = -math.inf
    went_up: float = -math.inf
    hold: float = 0.0  # nothing is held before the first step down
    pinned: int | None = None
    probe_wait: float = 0.0
    resumed: float = -math.inf  # when it came back after a pause
    piled: float = -math.inf  # when the last frame came that had piled up in one
    probing: int | None = None
    trial: list[float] = field(default_factory=list)  # of the step that is probed
    asked: bool = False  # a frame is under way to it

    def cost(self, step: int) -> float | None:
        """Seconds of device time a frame; None where it is not known."""
        samples = self.samples[step]
        if not samples:
            return None
        counted = sorted(samples)[: max(1, math.floor(_COUNTED * len(samples)))]
        return sum(counted) / len(counted)


class Ladder:
    """Steps of all sources on one device. steps: their names, best first; the last one costs nothing (bypass).

    For one thread. Sources begin on the last step and climb as measurements come in.
    """

    def __init__(self, steps: Sequence[str], settings: LadderSettings | None = None, *, workers: int = 1) -> None:
        if len(steps) < 1:
            raise ValueError("a ladder has at least one step")
        self.steps = tuple(steps)
        self._settings = settings or LadderSettings()
        #: That share the load; may change while it runs.
        self.workers = workers
        self._disturbed = -math.inf
        self._behind = -math.inf  # when a frame was last left out behind the ladder
        self._climbers: dict[str, _Climber] = {}

    @property
    def bypass(self) -> int:
        """Index of the last step."""
        return len(self.steps) - 1

    def add(self, source: str) -> None:
        self._climbers[source] = self._blank()

    def remove(self, source: str) -> None:
        self._climbers.pop(source, None)

    def renew(self, source: str) -> None:
        """The pictures of a source changed: what was measured does not hold any more."""
        old = self._climbers[source]
        new = self._climbers[source] = self._blank()
        new.interval, new.arrival, new.pinned = old.interval, old.arrival, old.pinned

    def pin(self, source: str, step: int | None) -> None:
        """Keep a source on a step; None lets it go again."""
        self._climbers[source].pinned = step

    def step_of(self, source: str) -> int:
        c = self._climbers[source]
        return c.step if c.pinned is None else c.pinned

    def cost(self, source: str) -> float:
        """Seconds of device time that a frame is expected to take on its step; 0 where that is not known."""
        return self._climbers[source].cost(self.step_of(source)) or 0.0

    def costs(self, source: str) -> tuple[float | None, ...]:
        """Seconds of device time a frame on every step, as far as they are known."""
        c = self._climbers[source]
        return tuple(c.cost(step) for step in range(len(self.steps)))

    def load(self, now: float) -> float:
        """Share of the device's time that all sources take together, as far as costs are known."""
        return sum(self._load(c, self._step(c), now) or 0.0 for c in self._climbers.values())

    # --- what happened -----------------------------------------------------------------------------------------------

    def arrived(self, source: str, now: float, latency: float = 0.0) -> None:
        """A frame of a source came, which leaves ``latency`` seconds from now at the latest."""
        c = self._climbers[source]
        before, c.arrival = c.arrival, now
        if before is None:
            return
        interval = now - before
        if interval >= self._settings.absent:
            if now - c.piled > _CATCHING_UP:
                c.resumed = now
        elif c.interval is None:
            c.interval = interval
        elif interval < _CROWDED * c.interval and now - c.resumed < _CATCHING_UP:
            c.piled = now
            self._disturbed = max(self._disturbed, now + latency + _DISTURBED)
        else:
            c.interval += 0.1 * (interval - c.interval)

    def served(self, source: str, step: int, seconds: float, now: float) -> None:
        """A frame was restored on ``step`` in ``seconds`` of device time."""
        c = self._climbers[source]
        if c.probing != step:
            c.samples[step].append(seconds)
            return
        c.asked = False
        c.trial.append(seconds)
        self._disturbed = max(self._disturbed, now + _DISTURBED)
        enough = _PROBE_SECONDS[c.cost(step) is not None]
        if len(c.trial) >= _PROBE_FRAMES or (len(c.trial) >= 3 and sum(c.trial) >= enough):
            self._probed(c, step, c.trial[1:], now)  # the first one warms up

    def _probed(self, c: _Climber, step: int, samples: Sequence[float], now: float) -> None:
        c.probing, c.trial, c.asked = None, [], False
        c.measured[step] = now
        if samples:
            c.samples[step].clear()
            c.samples[step].extend(samples)
        fits = bool(samples) and self._total(c, step, now) <= self._settings.room
        c.probe_wait = 0.0 if fits else min(max(c.probe_wait * 2, self._settings.probe), self._settings.probe_most)

    def failed(self, source: str, step: int, now: float) -> None:
        """Restoring a frame failed: that step is left alone for a while."""
        c = self._climbers[source]
        if c.probing == step:
            self._probed(c, step, (), now)
        self.delivered(source, late=True, now=now)

    def delivered(self, source: str, *, late: bool, now: float) -> None:
        """A frame that was to be restored left, in time or too late for it."""
        c = self._climbers[source]
        if late and self._is_disturbed(now):
            return
        c.late.append(late)
        while len(c.late) > self._settings.window:
            c.late.popleft()
        if late:
            c.last_late = now

    def behind(self, source: str, now: float) -> None:
        """A frame of a source, restored or not, was left out because the cores had no time to encode it."""
        if self._is_disturbed(now):
            return
        self._behind = now
        self._climbers[source].left_out.append(now)

    # --- what follows ------------------------------------------------------------------------------------------------

    def judge(self, now: float) -> list[Move]:
        """Take the steps that are due, at most one source down and one up. Call it a few times a second."""
        down = self._down(now)
        if down is not None:
            return [down]
        up = self._up(now)
        return [up] if up is not None else []

    def probe(self, source: str, now: float) -> int | None:
        """The step above that a frame of this source should be timed on now, or None. Counts as begun when asked."""
        c = self._climbers[source]
        if c.pinned is not None or c.asked or c.step == 0 or self._interval(c, now) is None:
            return None
        above = c.step - 1
        if c.probing not in (None, above):
            c.probing, c.trial = None, []  # it has moved meanwhile
        if c.probing is None:
            known = c.cost(above) is not None
            if known and self._total(c, above, now) <= self._settings.room:
                return None  # it is taken as soon as it may
            if now - c.measured[above] < (max(c.probe_wait, self._settings.probe) if known else c.probe_wait):
                return None
            c.probing = above
        c.asked = True
        return above

    def abandon_probe(self, source: str) -> None:
        """The frame that was to be timed was not restored."""
        self._climbers[source].asked = False

    def _down(self, now: float) -> Move | None:
        s = self._settings
        movable = {n: c for n, c in self._climbers.items() if c.pinned is None and c.step < self.bypass}
        if not movable or any(now - c.moved < s.settle for c in movable.values() if c.went_up < c.moved):
            return None
        if any(self._is_late(c) for c in movable.values()):
            reason = "late"
        elif any(self._is_behind(c, now) for c in self._climbers.values()):
            reason = "encoding behind"
        elif self.load(now) > 1.0:
            reason = "overloaded"
        else:
            return None
        # The cause may be a neighbour: the greatest load steps down, whoever suffers.
        name = max(movable, key=lambda n: (self._load(movable[n], movable[n].step, now) or 0.0, -movable[n].step, n))
        c = movable[name]
        target = c.step + 1
        while target < self.bypass and c.cost(target) is not None and self._total(c, target, now) > 1.0:
            target += 1
        if now - c.went_up < max(10.0, 2 * c.hold):
            c.hold = min(max(c.hold, s.hold) * 2, s.hold_most)
        else:
            c.hold = s.hold
        move = Move(name, c.step, target, reason)
        c.step, c.moved = target, now
        for other in self._climbers.values():
            other.late.clear()  # what was late was so under the old load
            other.left_out.clear()
        return move

    def _up(self, now: float) -> Move | None:
        s = self._settings
        best: tuple[tuple[int, float, str], str] | None = None
        quiet = all(now - c.last_late >= c.hold for c in self._climbers.values())
        for name, c in self._climbers.items():
            if c.pinned is not None or c.step == 0 or not quiet or now - max(c.moved, self._behind) < c.hold:
                continue
            if c.cost(c.step - 1) is None or self._interval(c, now) is None:
                continue
            if self._total(c, c.step - 1, now) > s.room:
                continue
            key = (-c.step, self._load(c, c.step - 1, now) or 0.0, name)
            if best is None or key < best[0]:
                best = key, name
        if best is None:
            return None
        c = self._climbers[best[1]]
        move = Move(best[1], c.step, c.step - 1, "room")
        c.step -= 1
        c.moved = c.went_up = now
        for other in self._climbers.values():
            other.left_out.clear()  # without it
        return move

    def _is_late(self, c: _Climber) -> bool:
        late = sum(c.late)
        return late >= 2 and late > self._settings.late_share * max(len(c.late), self._settings.window // 2)

    def _is_behind(self, c: _Climber, now: float) -> bool:
        interval = self._interval(c, now)
        while c.left_out and c.left_out[0] < now - _BEHIND:
            c.left_out.popleft()
        if not interval or len(c.left_out) <= self._settings.late_share * _BEHIND / interval:
            return False
        return c.left_out[-1] - c.left_out[0] >= _BEHIND / 2

    def _is_disturbed(self, now: float) -> bool:
        """Whether a probe is, or was a moment ago, the cause of what comes too late."""
        return now < self._disturbed or any(o.probing is not None for o in self._climbers.values())

    def _blank(self) -> _Climber:
        samples: list[deque[float]] = [deque(maxlen=_FRAMES) for _ in self.steps]
        samples[-1].append(0.0)
        return _Climber(self.bypass, samples, [-math.inf] * len(self.steps))

    def _step(self, c: _Climber) -> int:
        return c.step if c.pinned is None else c.pinned

    def _interval(self, c: _Climber, now: float) -> float | None:
        if c.arrival is None or now - c.arrival > self._settings.absent:
            return None
        return c.interval

    def _load(self, c: _Climber, step: int, now: float) -> float | None:
        """Of one source on a step; None where cost or rate is not known."""
        interval, cost = self._interval(c, now), c.cost(step)
        if interval is None or cost is None or interval <= 0:
            return None
        return cost / interval / self.workers

    def _total(self, mine: _Climber, step: int, now: float) -> float:
        """The load of the device if this source stood on that step."""
        others = sum(self._load(c, self._step(c), now) or 0.0 for c in self._climbers.values() if c is not mine)
        return others + (self._load(mine, step, now) or 0.0)
