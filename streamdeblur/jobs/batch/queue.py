"""What is to be done next: joins (they finish files and free disk), segments of files that are begun, then planning
while few planned files wait, then new files, longest first, short ones in groups that shrink towards the end.

Where helpers encode, they get what was restored; the others take of it, and of the joins, what helpers fall behind
with, so that no more than a few wait on the disk.

Everything that waits here is a description; all but the list of files is bounded by the number of actors.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace

from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.state import FileState
from streamdeblur.jobs.batch.units import WHOLE, Kind, Unit

#: Paths in a unit of planning; planned files that wait for each actor; files in a group.
_PROBES = 16
_AHEAD = 8
_GROUP = 64
#: Units that may wait for each helper before the others lend a hand.
_BEHIND = 2
#: Of a source, for guessing how many actors files that are not planned yet will want.
_SEGMENT_BYTES = 64 << 20


def single(unit: Unit, state: FileState) -> Unit:
    """The unit for one of its files, as that is known now."""
    assert state.item is not None
    return replace(unit, items=(state.item,))


class WorkQueue:
    """Units in the order in which they are handed out. files: those that are not over, by id; not changed here.

    alone: ids of files that are not put in a group any more. For one thread.
    """

    def __init__(self, files: Mapping[str, FileState], options: BatchOptions) -> None:
        self.alone: set[str] = set()
        self._files = files
        self._options = options
        self._order = itertools.count()
        unplanned = [f.source.id for f in files.values() if f.item is None or f.item.plan is None]
        self._unplanned = deque(sorted(unplanned, key=lambda i: -files[i].size))
        self._unplanned_bytes = sum(files[i].size for i in self._unplanned)
        self._planned: list[tuple[float, int, str]] = []
        self._segments: deque[Unit] = deque()
        self._joins: deque[Unit] = deque()
        self._encodes: deque[Unit] = deque()
        self._later: list[tuple[float, int, Unit]] = []
        for f in files.values():
            if f.item is not None and f.item.plan is not None:
                self.take_plan(f)

    @property
    def planning(self) -> bool:
        """Whether files are left of which nothing is known yet."""
        return bool(self._unplanned)

    @property
    def waiting(self) -> int:
        """Units that wait, as far as they are known."""
        return len(self._segments) + len(self._joins) + len(self._encodes) + len(self._planned) + len(self._later)

    @property
    def queued(self) -> bool:
        """Whether anything could be handed out now."""
        return bool(self._segments or self._joins or self._encodes or self._planned or self._unplanned)

    def work(self) -> int:
        """About how many units are left to hand out."""
        unplanned = len(self._unplanned) and max(len(self._unplanned), self._unplanned_bytes // _SEGMENT_BYTES)
        return self.waiting + unplanned

    def take_plan(self, state: FileState) -> None:
        """Queue a file that is planned, or planned anew."""
        assert state.item is not None
        plan = state.item.plan
        assert plan is not None
        if plan.segments:
            state.parts = len(plan.segments)
            if state.left is None:
                state.left = {s.number for s in plan.segments}
            if not state.left:
                self.join(state)
                return
        for number in sorted(state.restored):
            self.encode(state, number)
        if state.restored and state.restored.keys() >= (state.left or {WHOLE}):
            return
        heapq.heappush(self._planned, (-plan.seconds, next(self._order), state.source.id))

    def join(self, state: FileState) -> None:
        """Queue the join of a file whose segments are all done."""
        assert state.item is not None
        self._joins.append(Unit("join", (state.item,)))

    def encode(self, state: FileState, number: int) -> None:
        """Queue the second half of a file's segment, or of all of it."""
        assert state.item is not None
        self._encodes.append(Unit("encode", (state.item,), number, state.restored[number]))

    def put_back(self, unit: Unit, pause: float = 0.0) -> None:
        """Queue a unit again, its files one by one, after ``pause`` seconds; nothing of it that is not wanted now."""
        for item in unit.items:
            if not self.current(unit, self._files[item.id]):
                continue
            one = single(unit, self._files[item.id])
            if pause > 0:
                heapq.heappush(self._later, (time.monotonic() + pause, next(self._order), one))
            else:
                self._requeue(one)

    def current(self, unit: Unit, state: FileState) -> bool:
        """Whether a unit is wanted: of a file that is not over, and of the plan that it has now."""
        if state.over or state.item is None:
            return False
        if unit.kind == "encode" and unit.segment not in state.restored:
            return False
        cut = unit.kind == "join" or unit.segment != WHOLE
        return not cut or unit.items[0].plan == state.item.plan

    def next(self, helper: bool, actors: int) -> Unit | None:
        """The next unit for an idle actor, one of so many."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._requeue(heapq.heappop(self._later)[2])
        if helper:
            unit = self._first(self._joins, self._encodes)
        else:
            unit = self._first(*self._left_behind(), self._segments)
        if unit is not None:
            return unit
        if self._unplanned and (helper or len(self._planned) < max(4 * _PROBES, _AHEAD * actors)):
            return self._probe_unit(actors)
        if helper:
            return None
        return self._file_unit(actors) or self._first(self._joins, self._encodes)

    def _left_behind(self) -> Iterator[deque[Unit]]:
        """What helpers do not come to, if there are any."""
        helpers = self._options.helpers if self._options.encode_on == "helpers" else 0
        for queue in (self._joins, self._encodes):
            if len(queue) > _BEHIND * helpers:
                yield queue

    def _first(self, *queues: deque[Unit]) -> Unit | None:
        """The first unit of those that is wanted still."""
        for queue in queues:
            while queue:
                unit = queue.popleft()
                if self.current(unit, self._files[unit.items[0].id]):
                    return unit
        return None

    def _kind(self, state: FileState) -> Kind:
        """How a file, or a segment of it, is worked on."""
        if self._options.encode_on == "helpers" and not state.together:
            return "restore"
        return "segment" if state.item and state.item.plan and state.item.plan.segments else "files"

    def _requeue(self, unit: Unit) -> None:
        state = self._files[unit.items[0].id]
        if not self.current(unit, state):
            return
        if unit.kind == "join":
            self._joins.append(unit)
        elif unit.kind == "encode":
            self._encodes.append(unit)
        elif unit.segment != WHOLE:
            self._segments.appendleft(replace(unit, kind=self._kind(state)))
        elif unit.kind == "probe":
            self._unplanned.appendleft(state.source.id)
            self._unplanned_bytes += state.size
        else:
            self.take_plan(state)

    def _probe_unit(self, actors: int) -> Unit:
        # Few at a time while nothing else is there to do, so that every actor gets some.
        share = max(1, len(self._unplanned) // max(1, 2 * actors))
        items = []
        for _ in range(min(_PROBES, share)):
            state = self._files[self._unplanned.popleft()]
            self._unplanned_bytes -= state.size
            assert state.item is not None
            items.append(state.item)
            if state.source.id in self.alone:
                break
        return Unit("probe", tuple(items))

    def _file_unit(self, actors: int) -> Unit | None:
        if not self._planned:
            return None
        state = self._files[heapq.heappop(self._planned)[2]]
        item = state.item
        assert item is not None
        assert item.plan is not None
        if item.plan.segments:
            assert state.left is not None
            kind = self._kind(state)
            numbers = sorted(state.left - state.restored.keys())
            self._segments.extend(Unit(kind, (item,), number) for number in numbers)
            return self._segments.popleft()
        items, length = [item], item.plan.seconds
        # Groups get smaller towards the end, so that none holds it up.
        enough = min(self._options.group_seconds, self._left_seconds() / (3 * max(1, actors)))
        while self._planned and length < enough and item.id not in self.alone and len(items) < _GROUP:
            other = self._files[self._planned[0][2]]
            plan = other.item.plan if other.item is not None else None
            fits = plan is not None and not plan.segments and length + plan.seconds <= enough
            fits = fits and other.together == state.together
            if not fits or other.source.id in self.alone:
                break
            heapq.heappop(self._planned)
            assert other.item is not None
            assert plan is not None
            items.append(other.item)
            length += plan.seconds
        return Unit(self._kind(state), tuple(items))

    def _left_seconds(self) -> float:
        return -sum(cost for cost, _, _ in self._planned[:4096]) * max(1.0, len(self._planned) / 4096)
