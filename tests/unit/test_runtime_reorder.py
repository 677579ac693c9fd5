"""The reorder buffer: every index once, in turn, within its size."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdeblur.runtime import ReorderBuffer

State = tuple[int, tuple[int, ...], int]


def state(buffer: ReorderBuffer[str]) -> State:
    return buffer.next_index, buffer.pending, len(buffer)


def test_whole_state_step_by_step() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer(3, start=10)
    assert buffer.capacity == 3
    assert state(buffer) == (10, (), 0)
    assert buffer.pop_ready() == []
    buffer.push(12, "c")
    assert state(buffer) == (10, (12,), 1)
    assert buffer.pop_ready() == []
    assert state(buffer) == (10, (12,), 1)
    buffer.push(11, "b")
    assert state(buffer) == (10, (11, 12), 2)
    buffer.push(10, "a")
    assert state(buffer) == (10, (10, 11, 12), 3)
    assert buffer.pop_ready() == ["a", "b", "c"]
    assert state(buffer) == (13, (), 0)
    buffer.push(13, "d")
    buffer.push(15, "f")
    assert buffer.pop_ready() == ["d"]
    assert state(buffer) == (14, (15,), 1)


def test_refusals_leave_the_state_alone() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer(2)
    buffer.push(0, "a")
    assert buffer.pop_ready() == ["a"]
    buffer.push(2, "c")
    before = state(buffer)
    with pytest.raises(ValueError, match="index 2 is held"):
        buffer.push(2, "again")
    with pytest.raises(ValueError, match="index 0 has left"):
        buffer.push(0, "again")
    assert state(buffer) == before == (1, (2,), 1)
    buffer.push(4, "e")
    with pytest.raises(RuntimeError, match="no room for index 3: 2 items wait for index 1"):
        buffer.push(3, "d")
    assert state(buffer) == (1, (2, 4), 2)


def test_room_for_is_a_window() -> None:
    buffer: ReorderBuffer[str] = ReorderBuffer(2)
    assert [buffer.room_for(index) for index in range(4)] == [True, True, False, False]
    buffer.push(0, "a")
    buffer.pop_ready()
    assert [buffer.room_for(index) for index in range(1, 5)] == [True, True, False, False]


def test_capacity_is_positive() -> None:
    with pytest.raises(ValueError, match="capacity 0"):
        ReorderBuffer(0)


@given(st.permutations(range(12)), st.integers(0, 5), st.data())
def test_any_order_comes_out_in_order(order: list[int], start: int, data: st.DataObject) -> None:
    buffer: ReorderBuffer[int] = ReorderBuffer(12, start)
    out: list[int] = []
    pushed: set[int] = set()
    for index in order:
        buffer.push(start + index, index)
        pushed.add(index)
        if data.draw(st.booleans()):
            out += buffer.pop_ready()
            run = next(i for i in range(13) if i not in pushed)
            assert out == list(range(run))
            assert buffer.pending == tuple(start + i for i in sorted(pushed - set(out)))
    out += buffer.pop_ready()
    assert out == list(range(12))
    assert state_is_empty(buffer)


def state_is_empty(buffer: ReorderBuffer[int]) -> bool:
    return buffer.pending == () and len(buffer) == 0


@given(st.integers(1, 6), st.integers(0, 2**32))
def test_a_pump_that_asks_for_room_never_overfills(capacity: int, seed: int) -> None:
    """Frames come back in any order, submitted only while there is room: nothing is refused, nothing gets stuck."""
    chance = random.Random(seed)
    buffer: ReorderBuffer[int] = ReorderBuffer(capacity)
    away: list[int] = []
    submitted, out = 0, []
    while len(out) < 30:
        while submitted < 30 and buffer.room_for(submitted):
            away.append(submitted)
            submitted += 1
        index = away.pop(chance.randrange(len(away)))
        buffer.push(index, index)
        out += buffer.pop_ready()
        assert len(buffer) < capacity
    assert out == list(range(30))
