"""What is handed out next, and how what failed comes back."""

from __future__ import annotations

from typing import Any

import pytest

from streamdeblur.config import ProcessOptions, parse
from streamdeblur.jobs.batch import disk, queue
from streamdeblur.jobs.batch.disk import DiskWatch
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.plan import Plan, Segment
from streamdeblur.jobs.batch.queue import WorkQueue
from streamdeblur.jobs.batch.sources import Source
from streamdeblur.jobs.batch.state import FileState
from streamdeblur.jobs.batch.units import WHOLE, Item


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(queue, "time", made)
    monkeypatch.setattr(disk, "time", made)
    return made


def plan(seconds: float, segments: int = 0) -> Plan:
    cuts = tuple(Segment(n, n or None, n + 1, 10) for n in range(segments))
    return Plan(seconds, 100, 64, 48, "h264", 1, "1/25", 0, None if segments else "short", cuts)


def files(**plans: Plan | None) -> dict[str, FileState]:
    """States by id; a plan of None is a file that nothing is known of."""
    made = {}
    for name, p in plans.items():
        source = Source(name, f"{name}.mp4", ProcessOptions())
        state = FileState(source, "print", 1, Item(source.id, name, f"{name}.mp4", ProcessOptions(), "print", p))
        made[source.id] = state
    return made


def queued(states: dict[str, FileState], **options: Any) -> WorkQueue:
    return WorkQueue(states, parse(BatchOptions, {"group_seconds": 0, **options}))


def names(q: WorkQueue, *, helper: bool = False, actors: int = 1) -> list[str]:
    """All that is handed out, in order."""
    found = []
    while (unit := q.next(helper, actors)) is not None:
        found.append(f"{unit.kind}{'' if unit.segment < 0 else unit.segment} {'+'.join(i.source for i in unit.items)}")
    return found


def test_long_files_first_and_segments_before_the_next_file() -> None:
    states = files(a=plan(5), b=plan(90, segments=3), c=plan(70))
    assert names(queued(states)) == ["segment0 b", "segment1 b", "segment2 b", "files c", "files a"]


def test_short_files_are_grouped_by_what_is_left_for_each_actor() -> None:
    states = files(**{f"f{i}": plan(10) for i in range(12)})
    groups = names(queued(states, group_seconds=30), actors=1)
    assert sorted(n for g in groups for n in g.split(" ")[1].split("+")) == sorted(f"f{i}" for i in range(12))
    sizes = [g.count("+") + 1 for g in groups]
    assert sizes[0] == 3
    assert sizes == sorted(sizes, reverse=True)  # smaller towards the end
    assert sizes[-1] == 1


def test_helpers_plan_and_join_and_nothing_else() -> None:
    states = files(a=plan(50), b=None, c=plan(60, segments=2))
    for s in states.values():
        if s.source.name == "c":
            s.left = set()  # all its segments are done
    q = queued(states)
    assert names(q, helper=True) == ["join c", "probe b"]
    assert names(q) == ["files a"]


def test_helpers_encode_and_workers_lend_a_hand_when_they_fall_behind() -> None:
    states = files(a=plan(90, segments=6))
    (state,) = states.values()
    q = queued(states, encode_on="helpers", helpers=1)
    assert [f"{u.kind} {u.segment}" for u in [q.next(False, 2)] if u] == ["restore 0"]
    for number in range(3):
        state.restored[number] = {"frames": 10}
        q.encode(state, number)
    lent = q.next(False, 2)  # three wait, which is more than two for the one helper
    assert lent is not None
    assert (lent.kind, lent.segment, lent.facts) == ("encode", 0, {"frames": 10})
    assert names(q, helper=True) == ["encode1 a", "encode2 a"]
    assert names(q) == ["restore1 a", "restore2 a", "restore3 a", "restore4 a", "restore5 a"]
    state.restored[3] = {"frames": 10}
    q.encode(state, 3)
    assert names(q) == ["encode3 a"]  # nothing is left to restore
    q.put_back(lent)
    state.restored.clear()
    assert names(q, helper=True) == []  # nobody wants it any more


def test_a_file_that_goes_on_is_restored_only_where_it_was_not() -> None:
    states = files(a=plan(90, segments=3), b=plan(10), c=plan(20))
    a, b, c = states.values()
    a.restored = {1: {"frames": 10}}
    b.restored = {WHOLE: {"frames": 10}}
    c.together = True
    q = queued(states, encode_on="helpers", helpers=3)
    assert names(q, helper=True) == ["encode1 a", "encode b"]
    assert names(q) == ["restore0 a", "restore2 a", "files c"]


def test_what_failed_comes_back_after_its_pause_and_alone(clock: Clock) -> None:
    states = files(a=plan(10), b=plan(10))
    q = queued(states, group_seconds=1000)
    unit = q.next(False, 1)
    assert unit is not None
    first = states[unit.items[0].id]
    q.alone.add(first.source.id)
    assert names(q) == [f"files {'b' if first.source.name == 'a' else 'a'}"]
    q.put_back(unit, 5.0)
    assert q.waiting == 1
    assert not q.queued
    assert q.next(False, 1) is None
    clock.now += 5.1
    assert names(q) == [f"files {first.source.name}"]


def test_what_is_over_or_planned_anew_is_not_handed_out_again() -> None:
    from dataclasses import replace

    states = files(a=plan(90, segments=2))
    (state,) = states.values()
    q = queued(states)
    unit = q.next(False, 1)
    assert unit is not None
    assert state.item is not None
    state.item = replace(state.item, plan=plan(90))  # it goes whole
    state.left = None
    q.take_plan(state)
    q.put_back(unit)
    assert not q.current(unit, state)
    assert names(q) == ["files a"]
    state.status = "done"
    q.put_back(unit)
    assert names(q) == []


def test_the_job_pauses_while_the_disk_is_short(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[int | None] = [5000]
    monkeypatch.setattr(disk.place, "free_bytes", lambda name: free[0])
    watch = DiskWatch("/dest", 1000)
    watch.look()
    assert watch.paused is None
    free[0] = 999
    clock.now += 60
    watch.look()
    assert "/dest" in (watch.paused or "")
    free[0] = 5000
    watch.look()  # not yet time to look again
    assert watch.paused is not None
    clock.now += 60
    watch.look()
    assert watch.paused is None
    watch.full("no space left for x")  # elsewhere, though there is room here
    clock.now += 6
    watch.look()
    assert watch.paused == "no space left for x"
    clock.now += 60
    watch.look()
    assert watch.paused is None
    free[0] = None  # a URL
    clock.now += 60
    watch.look()
    assert watch.paused is None
