"""Signals that arrive while code in C is at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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
