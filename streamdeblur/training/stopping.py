"""When a run stops before its end: signals and time, agreed on by all of its processes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from streamdeblur.errors import UsageError

#: Seconds after the first signal from which Ctrl-C stops without saving.
HURRY_AFTER = 2.0


@dataclass(frozen=True)
class World:
    """Which process this is. device: where it trains."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0


class Stop:
    """Whether to stop after this step: SIGTERM or SIGINT, or the time is up. Signals only on the main thread.

    asked: gives the number of a signal that came by another way, 0 for none. Raises UsageError for a time that is none.
    """

    def __init__(self, max_minutes: float | None, asked: Callable[[], int]) -> None:
        if max_minutes is not None and not max_minutes >= 0:  # NaN too, with which no time is ever up
            raise UsageError(f"{max_minutes:g} minutes are no time to train", "give a number above 0, or none")
        self._asked = asked
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._signal = 0
        self._since = 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *rest: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Only a second Ctrl-C, and not one that came along with the first (a terminal and a launcher both send it), may
        # cost the state; SIGTERM often comes twice, from a supervisor and to the process group.
        if self._signal and number == signal.SIGINT and time.monotonic() - self._since > HURRY_AFTER:
            raise KeyboardInterrupt
        if not self._signal:
            self._signal, self._since = number, time.monotonic()

    @property
    def signalled(self) -> bool:
        """Whether this process got a signal."""
        return bool(self._signal or self._asked())

    def reason(self, world: World) -> str:
        """Why to stop, "" to go on; the same on every process."""
        code = (
            self._signal
            or self._asked()
            or (1000 if self._deadline is not None and time.monotonic() >= self._deadline else 0)
        )
        if world.size > 1:
            flag = torch.tensor([code], device=world.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            code = int(flag)
        return "" if not code else "the time is up" if code == 1000 else signal.Signals(code).name
