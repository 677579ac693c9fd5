"""How a program of this package ends: signals, errors and exit codes, one line each.

0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 141 the reader of our output has gone, 143 SIGTERM.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click

from streamdeblur.errors import StreamdeblurError


class Stopped(BaseException):
    """Ctrl-C or SIGTERM, on its way up through every clean-up. Not a KeyboardInterrupt: click would reword that."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class ReaderGone(BaseException):
    """Whoever read our output has gone. In place of BrokenPipeError, over which click and rich exit 1 in silence."""


@contextmanager
def watching_for_readers() -> Iterator[None]:
    """Raise ReaderGone for BrokenPipeError."""
    try:
        yield
    except BrokenPipeError as e:
        raise ReaderGone from e


def run_and_exit(action: Callable[[], object], *, debug: bool = False) -> NoReturn:
    """Run ``action``, whose int result is the exit code, and end the process. Call it on the main thread, last."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    try:
        result = action()
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()  # what can't be printed is told here, and not while the interpreter ends
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1 if e.code else 0
        try:
            sys.stdout.flush()
        except OSError as error:
            code = _say(error, debug)
    except BaseException as e:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        code = _say(e, debug)
    if any(t.name == "restore" for t in threading.enumerate()):
        # A frame is still inside the network; tearing the interpreter down around it would abort the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def _on_signal(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _say(e: BaseException, debug: bool) -> int:
    """Print an exception as one line; its exit code."""
    if isinstance(e, SystemError) and isinstance(e.__cause__, Stopped):  # raised while code in C was at work
        e = e.__cause__
    if isinstance(e, click.exceptions.NoArgsIsHelpError):
        print(e.format_message())
        return 0
    if isinstance(e, (BrokenPipeError, ReaderGone)):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (whoever read stdout has gone)
        return 141
    if isinstance(e, OSError) and e.filename is None and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what it holds back can't go anywhere)
        return _line(f"standard output can't be written: {e.strerror}", 1)
    if debug:
        traceback.print_exception(e)
    if isinstance(e, (Stopped, KeyboardInterrupt, click.Abort)):
        number = e.number if isinstance(e, Stopped) else int(signal.SIGINT)
        word = "terminated" if number == signal.SIGTERM else "interrupted"
        return _line(f"{word}: no unfinished file is left under its final name", 128 + number)
    if isinstance(e, StreamdeblurError):
        return _line(str(e), e.exit_code)
    if isinstance(e, click.ClickException):
        context = getattr(e, "ctx", None)
        path = context.command_path if context else "streamdeblur"
        return _line(f"{e.format_message()} ({path} --help tells more)", 2)
    if isinstance(e, MemoryError):
        return _line("out of memory; a smaller picture, --tiling fast or a smaller model takes less", 1)
    text = str(e) or "no message"
    return _line(f"unexpected {type(e).__name__}: {text}; --debug shows where, please report it", 1)


def _line(text: str, code: int) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return code
