"""A bounded queue between two threads that can be closed from either end and carries the producer's exception."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from streamdeblur import interrupts

T = TypeVar("T")


class Closed(Exception):
    """The other side has gone: stop producing."""


class Channel(Generic[T]):
    """Items of at most ``size`` weigh in all wait (or a single one of any weight). Producers may be several.

    weigh: gives an item's weight; every item weighs 1 by default.

    ``put`` blocks while it is full and raises Closed once the consumer left. ``get`` blocks while it is empty; when the
    producer is done it gives None, and when the producer failed it raises what the producer raised, after the items
    that came before.
    """

    def __init__(self, size: int, weigh: Callable[[T], int] | None = None) -> None:
        self._size = size
        self._weigh = weigh or (lambda _: 1)
        self._weight = 0
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._done = False
        self._error: BaseException | None = None
        self._left = False

    def put(self, item: T) -> None:
        weight = self._weigh(item)
        with self._changed:
            self._wait(lambda: self._left or not self._items or self._weight + weight <= self._size)
            if self._left:
                raise Closed
            self._items.append(item)
            self._weight += weight
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """The producer has nothing more to give, or failed."""
        with self._changed:
            self._done = True
            self._error = self._error or error
            self._changed.notify_all()

    def leave(self) -> None:
        """The consumer has gone: blocked producers get Closed, what waits is dropped."""
        with self._changed:
            self._left = True
            self._items.clear()
            self._weight = 0
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> T | None:
        """The next item; None when the producer is done. Raises TimeoutError after ``timeout`` seconds."""
        with self._changed:
            if not self._wait(lambda: bool(self._items) or self._done, timeout):
                raise TimeoutError
            if self._items:
                item = self._items.popleft()
                self._weight -= self._weigh(item)
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            return None

    def _wait(self, ready: Callable[[], bool], timeout: float | None = None) -> bool:
        return interrupts.wait(lambda seconds: self._changed.wait_for(ready, seconds), timeout)
