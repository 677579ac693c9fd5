"""The frames of one source between arrival and output: in order, bounded, and never later than the deadline.

A frame waits, is at work, or is settled (restored, passed as it is, or left out). What is at the head of the line
leaves when it is settled; and when its time is up it leaves unrestored, whatever the pool is doing with it. So a slow
device costs restoration and never time.

Knows no clock and no thread: the job holds its lock and tells the time (monotonic seconds).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from streamdeblur.jobs.live.treatment import Plan
from streamdeblur.runtime.pool import Corrections
from streamdeblur.video.live.source import Arrived

Fate = Literal["waiting", "working", "restored", "passed", "dropped"]


@dataclass(slots=True, eq=False)
class Entry:
    """One frame. due: when it has to leave. step: of the ladder that it was given to. reason: why it is not restored.

    plan: what of it was given to the pool.
    """

    arrived: Arrived
    due: float
    fate: Fate = "waiting"
    step: int | None = None
    probe: bool = False
    corrections: Corrections | None = None
    plan: Plan | None = None
    worker: str | None = None
    seconds: float | None = None
    reason: str | None = None
    missed: bool = False  # it was to be restored, and there was no time


class Line:
    """latency: seconds from arrival to leaving, output work not counted. bound: frames that may wait at most.

    late: what becomes of frames that can't be restored in time, "passed" or "dropped".
    """

    def __init__(self, latency: float, bound: int, late: Literal["passed", "dropped"] = "passed") -> None:
        self.latency = latency
        self._bound = bound
        self._late: Fate = late
        self._entries: deque[Entry] = deque()
        self._waiting = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def waiting(self) -> int:
        return self._waiting

    def arrive(self, arrived: Arrived, now: float, *, bypass: bool, reason: str = "bypass") -> Entry:
        """A frame joins; where too many wait, the oldest of them goes unrestored. bypass: it needs no restoration,
        for that reason.

        The time a frame has is counted from its arrival, but for one that was already late when it was decoded (a
        burst after a pause): that has half the time from now, or a source that runs behind would never be restored.
        """
        entry = Entry(arrived, max(arrived.arrival + self.latency, now + self.latency / 2))
        self._entries.append(entry)
        if bypass:
            self._settle(entry, "passed", reason, missed=False, counted=False)
            return entry
        self._waiting += 1
        if self._waiting > self._bound:
            oldest = next(e for e in self._entries if e.fate == "waiting")
            self._settle(oldest, self._late, "queue full", missed=True)
        return entry

    def take(self, now: float, expected: float) -> Entry | None:
        """The oldest frame that can still be restored in ``expected`` seconds; it is at work from now on. Those that
        can't be are settled."""
        for entry in self._entries:
            if entry.fate != "waiting":
                continue
            if now + expected > entry.due:
                self._settle(entry, self._late, "late", missed=True)
                continue
            entry.fate = "working"
            self._waiting -= 1
            return entry
        return None

    def pass_all(self, reason: str) -> None:
        """Frames that wait go as they are: their source stands on bypass now."""
        for entry in self._entries:
            if entry.fate == "waiting":
                self._settle(entry, "passed", reason, missed=False)

    def restored(self, entry: Entry, corrections: Corrections, worker: str, seconds: float) -> bool:
        """The pool is done with a frame. False when it has left without that."""
        if entry.fate != "working":
            return False
        entry.fate = "restored"
        entry.corrections, entry.worker, entry.seconds = corrections, worker, seconds
        return True

    def failed(self, entry: Entry, reason: str) -> None:
        """The pool could not restore a frame."""
        if entry.fate == "working":
            entry.fate, entry.reason = "passed", reason

    def leave(self, now: float) -> Iterator[Entry]:
        """Frames that go to the output now, in order."""
        while self._entries:
            head = self._entries[0]
            if head.fate in ("waiting", "working"):
                if now < head.due:
                    return
                self._settle(head, self._late, "late", missed=True, counted=head.fate == "waiting")
            yield self._entries.popleft()

    def flush(self) -> Iterator[Entry]:
        """All that is left, as it is: the source or the job ends."""
        for entry in self._entries:
            if entry.fate in ("waiting", "working"):
                self._settle(entry, "passed", "end", missed=False, counted=entry.fate == "waiting")
        while self._entries:
            yield self._entries.popleft()

    def next_due(self) -> float | None:
        """When the head has to leave."""
        return self._entries[0].due if self._entries else None

    def _settle(self, entry: Entry, fate: Fate, reason: str, *, missed: bool, counted: bool = True) -> None:
        if counted:
            self._waiting -= 1
        entry.fate, entry.reason, entry.missed = fate, reason, missed
