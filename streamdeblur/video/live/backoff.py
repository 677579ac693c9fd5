"""How long to wait before the next try."""

from __future__ import annotations

import random


class Backoff:
    """Doubling waits with jitter, up to a limit: many cameras behind one switch must not come back in step.

    first, limit: seconds. The limit is small because a source that is back shall be seen at once.
    """

    def __init__(self, first: float = 0.25, limit: float = 1.0, *, random_state: random.Random | None = None) -> None:
        self._first = first
        self._limit = limit
        self._random = random_state or random.Random()
        self._next = first

    def reset(self) -> None:
        """It went well."""
        self._next = self._first

    def wait(self, floor: float = 0.0) -> float:
        """Seconds before the next try, at least ``floor`` but for the jitter of a quarter to either side."""
        base = max(self._next, floor)
        self._next = min(self._next * 2, self._limit)
        return base * self._random.uniform(0.75, 1.25)
