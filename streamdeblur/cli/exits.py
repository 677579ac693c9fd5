"""How a program of this package ends: signals, errors and exit codes, one line each.

0 done, 1 failed, 2 wrong usage, 130 Ctrl-C, 141 the reader of our output has gone, 143 SIGTERM.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TextIO

import click

from streamdeblur import heap, interrupts
from streamdeblur.errors import StreamdeblurError

_PATIENCE = 2.0  # seconds after the first signal in which others are the same wish


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


class Command(click.Command):
    """Keeps click from seeing that a reader has gone. For those that may be a program of their own."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with watching_for_readers():  # prints the help
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with watching_for_readers():
            return super().invoke(ctx)


class Group(Command, click.Group):
    """The whole command line."""


def run_and_exit(action: Callable[[], object], *, debug: bool = False) -> NoReturn:
    """`run`, then end the process with its exit code. Call it on the main thread, last."""
    _fill_streams()
    heap.one_for_all()
    on_signal = OnSignal()
    _watch_for_haste(on_signal)
    code = run(action, debug=debug, on_signal=on_signal)
    _end(code, wait=on_signal.number is None)


def run(action: Callable[[], object], *, debug: bool = False, on_signal: OnSignal | None = None) -> int:
    """Run ``action``, whose int result is the exit code; what it raises is told in a line. On the main thread.

    on_signal: what it installs as the handler of SIGINT and SIGTERM, and leaves installed.
    """
    on_signal = on_signal or OnSignal()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        with watching_for_readers():
            result = action()
            interrupts.check()  # what was lost on its way
            _flush(sys.stdout)  # what can't be printed is told here, and not while the process ends
        return result if isinstance(result, int) else 0
    except SystemExit as e:
        on_signal.ending = True
        if on_signal.number is not None:
            return _say(Stopped(on_signal.number), debug)
        try:
            _flush(sys.stdout)
        except OSError as error:
            return _say(error, debug)
        return e.code if isinstance(e.code, int) else 1 if e.code else 0
    except BaseException as e:
        on_signal.ending = True
        return _say(e, debug)
    finally:
        on_signal.ending = True
        interrupts.forget()


def _end(code: int, *, wait: bool) -> NoReturn:
    """What the interpreter does at its end, up to where it would tear itself and the libraries down.

    That part has nothing to save, and a thread that is still in native code, or on its way out of it, would meet
    libraries whose state is gone: SIGABRT or SIGSEGV in place of the exit code. Joining the threads does not help, for
    one counts as joined before its native part has ended.

    wait: for threads that are no daemons. Not after a signal: what it broke off may hold the locks that this needs.
    """
    if wait:
        threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing ends its processes
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            _flush(stream)
    os._exit(code)


def _fill_streams() -> None:
    """A standard stream that was closed before the start goes nowhere, lest another file take its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _flush(stream: TextIO | None) -> None:
    if stream is not None:  # it is None where it was closed before the start
        stream.flush()


class OnSignal:
    """Handler of SIGINT and SIGTERM: the first stops the program in order, others change nothing.

    Supervisors send theirs to the process and to its group, so that the same wish often comes twice.
    """

    def __init__(self) -> None:
        self.ending = False  # the action is over: there is nothing left to stop
        self.number: int | None = None  # of the signal that came

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is None and not self.ending:
            self.number = number
            interrupts.deliver(Stopped(number))


def _watch_for_haste(on_signal: OnSignal) -> None:
    """A second wish, well after the first, ends the process at once, be the main thread stuck where it may.

    Only while ``on_signal`` is the handler: the trainer and live jobs have rules of their own.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        first: float | None = None
        while numbers := os.read(reading, 64):
            now = time.monotonic()
            for number in numbers:
                if number not in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) is not on_signal:
                    continue
                if first is None:
                    first = now
                elif now - first >= _PATIENCE:
                    interrupts.leave(
                        "error: stopped at once; unfinished files (NAME.partial) may be left", 128 + number
                    )

    threading.Thread(target=watch, name="signals", daemon=True).start()


def _say(e: BaseException, debug: bool) -> int:
    """Print an exception as one line; its exit code."""
    e = _stopped_by(e) or e
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
    if isinstance(e, OSError) and e.filename is not None:
        name = os.fsdecode(e.filename) if isinstance(e.filename, (str, bytes)) else str(e.filename)
        return _line(f"{name}: {e.strerror or e}; check the path (--debug shows where)", 1)
    text = str(e) or "no message"
    return _line(f"unexpected {type(e).__name__}: {text}; --debug shows where, please report it", 1)


def _stopped_by(e: BaseException | None) -> Stopped | None:
    """The signal that an exception comes of: one raised in code of C, in a lock (RuntimeError), in a clean-up."""
    while e is not None and not isinstance(e, Stopped):
        e = e.__cause__ or e.__context__
    return e


def _line(text: str, code: int) -> int:
    with suppress(OSError, ValueError):  # whoever read stderr has gone: the code tells
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return code
