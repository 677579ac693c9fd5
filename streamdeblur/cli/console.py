"""What a user sees while a job runs: warnings, progress, errors. One console on stderr for all of it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from streamdeblur.cli.exits import ReaderGone

if TYPE_CHECKING:
    from streamdeblur.jobs.process import Progress as Snapshot

#: Seconds between plain progress lines where there is no terminal.
_EVERY = 10.0


def _text(template: str) -> TextColumn:
    return TextColumn(template, markup=False)


class Reporter:
    """Progress of a job: a bar on a terminal, a line now and then elsewhere, nothing when quiet."""

    def __init__(self, console: Console, *, quiet: bool, unit: str = "frames") -> None:
        self._console = console
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last = time.monotonic()
        self._unit = unit

    def __enter__(self) -> Reporter:
        if not self._quiet and self._console.is_terminal:
            self._bar = Progress(
                _text("{task.description}"),
                BarColumn(),
                _text("{task.completed}/{task.fields[of]}"),
                _text("{task.fields[rate]}"),
                _text("ETA"),
                TimeRemainingColumn(),
                _text("{task.fields[note]}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, s: Snapshot) -> None:
        """Show a snapshot of a running job."""
        note = f"{s.restored} restored, {s.bypassed} bypassed"
        self.step("restoring", s.frames, s.total, f"{s.fps:.1f} fps", note, s.seconds)

    def step(
        self,
        what: str,
        done: int,
        total: int | None,
        rate: str = "",
        note: str = "",
        seconds: float = 0.0,
        resumed: int = 0,
    ) -> None:
        """Show ``done`` of ``total`` steps of ``what``.

        seconds: since the first of them; or, with ``resumed`` of them done by an earlier run, since the first of this.
        """
        of = str(total) if total is not None else "?"
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(what, total=total, of=of, rate=rate, note=note)
            self._bar.update(self._task, description=what, completed=done, total=total, of=of, rate=rate, note=note)
        elif not self._quiet and time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            left = ""
            if total and done > resumed and seconds:
                left = f", about {max(0.0, seconds / (done - resumed) * (total - done)):.0f} s left"
            # of how many is not known of frames that are read alone, whatever they become
            count = f"{done}/{of} {self._unit}" if total is not None else f"{done} frames"
            told = ", ".join(filter(None, (f"{what}: {count}", rate, note)))
            self._console.print(f"{told}{left}")


class LineHandler(logging.Handler):
    """Log records as one line each on the console, without markup."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = " ".join(record.getMessage().split())
            self._console.print(f"{record.levelname.lower()}: {text}", soft_wrap=True)
        except Exception:
            self.handleError(record)


class _Console(Console):
    """Prints text as it is: names of files and models hold brackets and colons, which are not meant as markup."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        raise ReaderGone


def make_console() -> Console:
    """The console on stderr."""
    return _Console(file=sys.stderr, soft_wrap=True)


def make_output(width: int) -> Console:
    """The console on stdout, for tables. width: where it is no terminal."""
    return _Console(file=sys.stdout, width=None if sys.stdout.isatty() else width)


def set_up_logging(console: Console, *, debug: bool) -> None:
    """Warnings of the package to the console, everything when debugging.

    A warning says that something is lost or changed, so ``--quiet`` does not silence it.
    """
    if not debug:  # OpenCV's own words on damaged pictures, which are told in a line; read when it is imported
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    logger = logging.getLogger("streamdeblur")
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(LineHandler(console))
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.propagate = False


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """What models of other people print while they are imported, built and run must not end up between our results.

    From Python and from C: the descriptor itself is turned.
    """
    with contextlib.redirect_stdout(sys.stderr):
        _flush()
        try:
            kept = os.dup(1)
        except OSError:  # closed: nothing to keep clean
            yield
            return
        try:
            os.dup2(2, 1)
            yield
        finally:
            _flush()  # code may have taken hold of it before
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).fflush(None)  # what C still holds back
            os.dup2(kept, 1)
            os.close(kept)


def _flush() -> None:
    if sys.__stdout__ is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.__stdout__.flush()
