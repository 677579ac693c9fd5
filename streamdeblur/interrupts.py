"""Signals that end the program: where they may raise, and how they come through code in C.

Python runs a signal's handler between any two instructions of the main thread. An exception from there may leave a lock
taken, a thread that nobody waits for at work on a file that is being closed, or a half-made file that nobody knows of.
So jobs hold such signals back (`held`) and look for them where they can stop (`check`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Of the main thread, which alone runs handlers.
_depth = 0
_pending: BaseException | None = None


def deliver(error: BaseException) -> None:
    """For handlers: raise ``error`` here, or, while the program holds signals back, where it looks for it next."""
    global _pending
    if not _depth:
        raise error
    if _pending is None:
        _pending = error


def check() -> None:
    """Raise what was held back. Nothing on other threads than the main one."""
    global _pending
    if _pending is not None and threading.current_thread() is threading.main_thread():
        error, _pending = _pending, None
        raise error


@contextmanager
def held() -> Iterator[None]:
    """What handlers `deliver` in here is raised by `check`, or at the end. May be nested, and decorate.

    Whoever holds signals back waits for nothing, be it a thread or a process, without looking some times a second.
    """
    global _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            check()


@contextmanager
def interruptible() -> Iterator[None]:
    """Around calls of Ray on the main thread: lets through what a signal handler raised in them.

    Ray's extension returns a value although the handler has raised, of which Python makes a SystemError with the
    handler's exception as its cause; whoever expects a KeyboardInterrupt would take that for a fault.
    """
    try:
        yield
    except SystemError as e:
        cause = e.__cause__
        if cause is not None and not isinstance(cause, Exception):
            raise cause from None
        raise
