"""Keeps the operating system's scheduling of this process as it was, whatever an encoder does to it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Two at once would take what the other's encoder did for how things were.
_ONE = threading.Lock()


@contextmanager
def kept_scheduling() -> Iterator[None]:
    """Open an encoder within it: threads keep their scheduling, and new ones get that of the calling thread.

    SVT-AV1 asks whether it may have real-time threads by making the one that opens it real-time (SCHED_FIFO, 99), and
    leaves it so; its own threads are too. Root may, which in a container is everybody. All that is started afterwards
    inherits it, Ray included, and holds the cores against everything else on the machine.
    """
    if sys.platform != "linux":
        yield
        return
    with _ONE:
        own = _of(0)
        before = {tid: _of(tid) for tid in _threads()}
        try:
            yield
        finally:
            for tid in _threads():
                usual = before.get(tid) or own
                if usual is not None and _of(tid) != usual:
                    with suppress(OSError):
                        os.sched_setscheduler(tid, usual[0], os.sched_param(usual[1]))


def _threads() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:  # no /proc: only the calling thread is known
        return [0]


def _of(tid: int) -> tuple[int, int] | None:
    """Policy and priority of a thread; None for one that has gone."""
    try:
        return os.sched_getscheduler(tid), os.sched_getparam(tid).sched_priority
    except OSError:
        return None
