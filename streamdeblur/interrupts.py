"""Signals that end the program: where they may raise, and how they come through code in C.

Python runs a signal's handler between any two instructions of the main thread. An exception from there may leave a lock
taken, a thread that nobody waits for at work on a file that is being closed, or a half-made file that nobody knows of.
So jobs hold such signals back (`held`) and look for them where they can stop (`check`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

#: Seconds between two looks of those who wait.
LOOK = 0.2

# Of the main thread, which alone runs handlers.
_depth = 0
_pending: BaseException | None = None


def deliver(error: BaseException) -> None:
    """For handlers: raise ``error`` here, or, while the program holds signals back, where it looks for it next.

    It is remembered until `check` has raised it or `forget` is called, for what is raised here may be lost: Python
    prints what comes out of a ``__del__`` and goes on.
    """
    global _pending
    if _pending is None:
        _pending = error
    if not _depth:
        raise error


def wanted() -> bool:
    """Whether `check` would raise. For what should rather be cut short than be broken off."""
    return _pending is not None and threading.current_thread() is threading.main_thread() and not _on_its_way(_pending)


def check() -> None:
    """Raise what was held back. Nothing on other threads than the main one, nor while it is on its way already."""
    if wanted():
        error = _pending
        forget()
        assert error is not None
        raise error


def forget() -> None:
    """What was delivered has arrived where it ends the program."""
    global _pending
    _pending = None


def _on_its_way(error: BaseException) -> bool:
    handled = sys.exc_info()[1]
    while handled is not None and handled is not error:
        handled = handled.__cause__ or handled.__context__
    return handled is not None


@contextmanager
def held() -> Iterator[None]:
    """What handlers `deliver` in here is raised by `check`, or at the end. May be nested, and decorate.

    Whoever holds signals back waits for nothing, be it a thread or a process, without looking some times a second.
    Python's own handler of Ctrl-C, where it is installed, is held back alike.
    """
    global _depth
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    python = not _depth and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _depth += 1
    try:
        if python:
            signal.signal(signal.SIGINT, _on_interrupt)
        yield
    finally:
        if python:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _depth -= 1
        if not _depth:
            check()


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    deliver(KeyboardInterrupt())


def wait(once: Callable[[float], bool], timeout: float | None = None) -> bool:
    """Wait up to ``timeout`` seconds (None: for ever), looking for signals; whether ``once`` came to be true.

    once: waits for the seconds it is given, as ``Event.wait`` does.
    """
    end = float("inf") if timeout is None else time.monotonic() + timeout
    while not once(min(LOOK, max(0.0, end - time.monotonic()))):
        if time.monotonic() >= end:
            return False
        check()
    return True


def end_at_once() -> None:
    """While a program is being loaded there is nothing to clear up: Ctrl-C and SIGTERM end it, in one line."""
    for number, word in ((signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")):
        signal.signal(number, _ender(f"error: {word}"))


def _ender(text: str) -> Callable[[int, FrameType | None], None]:
    def end(number: int, frame: FrameType | None) -> None:
        leave(text, 128 + number)

    return end


def leave(text: str, code: int) -> NoReturn:
    """End the process here and now, with a line on stderr where that can be written to."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
    os._exit(code)


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
