"""Decoded pictures and flows, kept within a number of bytes; the one used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import numpy.typing as npt

A = TypeVar("A", bound=npt.NDArray[Any])


class ArrayCache(Generic[A]):
    """Arrays by key, at most ``limit`` bytes of them. Not thread-safe. Pickled empty: workers fill their own."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._size = 0
        self._held: OrderedDict[Hashable, A] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], A]) -> A:
        """The array under ``key``, made by ``make`` if it isn't here."""
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
            return found
        made = make()
        self._held[key] = made
        self._size += made.nbytes
        while self._size > self.limit and len(self._held) > 1:
            _, old = self._held.popitem(last=False)
            self._size -= old.nbytes
        return made

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._size

    def __getstate__(self) -> dict[str, int]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["limit"])  # type: ignore[misc]
