"""Puts what comes in any order back into the order of frame indices, with a bounded memory."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class ReorderBuffer(Generic[T]):
    """Holds items by index until their turn; order is by index alone, never by pts.

    capacity: items held at most. start: the first index to leave. Not thread-safe: it belongs to the thread that
    collects. A caller that submits an index only while `room_for` it can never overfill the buffer.
    """

    def __init__(self, capacity: int, start: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity} is not at least 1")
        self._capacity = capacity
        self._next = start
        self._held: dict[int, T] = {}

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def next_index(self) -> int:
        """The index that leaves next."""
        return self._next

    @property
    def pending(self) -> tuple[int, ...]:
        """Indices held, ascending."""
        return tuple(sorted(self._held))

    def __len__(self) -> int:
        return len(self._held)

    def room_for(self, index: int) -> bool:
        """Whether an item of this index fits even if all before it are still missing."""
        return index - self._next < self._capacity

    def push(self, index: int, item: T) -> None:
        """Take an item.

        Raises ValueError for an index that is held or has left already, RuntimeError when the buffer is full; either
        leaves the buffer as it was.
        """
        if index < self._next:
            raise ValueError(f"index {index} has left already (next is {self._next})")
        if index in self._held:
            raise ValueError(f"index {index} is held already")
        if len(self._held) >= self._capacity:
            raise RuntimeError(f"no room for index {index}: {self._capacity} items wait for index {self._next}")
        self._held[index] = item

    def pop_ready(self) -> list[T]:
        """Release the unbroken run of items from `next_index` on; empty while that one is missing."""
        ready: list[T] = []
        while self._next in self._held:
            ready.append(self._held.pop(self._next))
            self._next += 1
        return ready
