"""What ``evaluate`` and ``detect-eval`` share: measure, write the files, print; of a part too, where it ends early."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console

from streamdeblur.cli.console import Reporter, make_output, stdout_to_stderr
from streamdeblur.cli.exits import ReaderGone
from streamdeblur.errors import StreamdeblurError


def measure_and_tell(
    console: Console,
    options: Any,
    *,
    measure: Callable[..., tuple[Any, Any]],
    write: Callable[[Any, Any, Any], None],
    step: Callable[[Reporter, Any], None],
    tables: Callable[[Any], Iterable[Any]],
    width: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure and deliver; where an error or a signal ends it early, deliver what there is and raise that.

    measure: (options, progress, rescue=...) → what was measured, and pictures of it. write: both and the options, to
    files. step: shows progress. tables: of what was measured, to print; width: where stdout is no terminal.
    """

    def deliver(measured: Any, pictures: Any) -> None:
        try:
            write(measured, pictures, options)
        finally:  # hours of work are not lost with a disk that is full
            if as_json:
                print(measured.as_json(), end="")
            else:
                out = make_output(width)
                for table in tables(measured):
                    out.print(table)
                if measured.stopped:
                    out.print(measured.stopped)
        if options.output is not None and not quiet:
            console.print(str(options.output / "report.html"))

    part: list[Any] = []
    try:
        with stdout_to_stderr(), Reporter(console, quiet=quiet, unit="pairs") as reporter:
            whole = measure(options, lambda p: step(reporter, p), rescue=lambda *values: part.extend(values))
    except BaseException:
        if part:
            with contextlib.suppress(StreamdeblurError, OSError, ReaderGone):  # what ended it is to be told
                deliver(*part)
        raise
    deliver(*whole)
