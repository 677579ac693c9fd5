"""Two files read side by side, each in its own order, and what belongs together brought together.

Containers interleave their streams differently, so what one file gives may have to wait until the other gives its
counterpart. What waits is a few numbers a packet, never a payload, and the file that is ahead waits for the other: the
queues hold what the two interleave differently, whatever their length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

E = TypeVar("E")

#: Entries of a stream that may wait, some ten minutes of sound. Beyond that its entries are no longer paired.
_LIMIT = 1 << 16


class Lane(Generic[E]):
    """Entries of one stream from both files, paired in the order of each. Sides: 0 is the source, 1 the output."""

    def __init__(self) -> None:
        self._waiting: deque[E] = deque()
        self._ahead = 0
        self.counts = [0, 0]
        self.loose = False  # the two are too far apart to be paired

    def waiting(self, side: int) -> int:
        """Entries of ``side`` without a counterpart yet."""
        return len(self._waiting) if side == self._ahead else 0

    def push(self, side: int, entry: E) -> tuple[E, E] | None:
        """Take an entry; the pair (of source, of output) that it completes, if it does."""
        self.counts[side] += 1
        if self.loose:
            return None
        if self._waiting and self._ahead != side:
            other = self._waiting.popleft()
            return (entry, other) if side == 0 else (other, entry)
        self._ahead = side
        if len(self._waiting) >= _LIMIT:
            self.loose = True
            self._waiting.clear()
        else:
            self._waiting.append(entry)
        return None


def read_together(
    sources: tuple[Iterator[Any], Iterator[Any]], take: Callable[[int, Any], None], lanes: list[Lane[Any]]
) -> None:
    """Read two files to their ends, the one that is behind first. take: called with the side and what it gave."""
    alive = [True, True]
    while any(alive):
        behind = 0 if sum(lane.waiting(0) for lane in lanes) <= sum(lane.waiting(1) for lane in lanes) else 1
        side = behind if alive[behind] else 1 - behind
        try:
            item = next(sources[side])
        except StopIteration:
            alive[side] = False
            continue
        take(side, item)
        del item
