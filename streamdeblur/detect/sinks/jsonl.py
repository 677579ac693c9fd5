"""JSON lines, to a file or to stdout."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from streamdeblur.detect.sinks.base import QUEUE, Record, Refused, Sink, encode
from streamdeblur.errors import OutputError
from streamdeblur.runtime.lines import open_lines

#: Seconds that a lossless sink waits for room before it drops after all: a disk that hangs must not hang the job.
_PATIENCE = 10.0


class JsonLinesSink(Sink):
    """Appends a line for each record, written at once, so that a reader sees it and a crash loses none.

    target: a file, which is appended to, or "-" for stdout. Sinks of one process with the same target share it, and
    lines never mix. Where the disk is full, lines are dropped and counted, and none is ever half written. lossless:
    ``send`` waits for room while the thread works, for at most 10 s.
    Raises OutputError where the file can't be opened.
    """

    def __init__(self, target: str | os.PathLike[str], *, lossless: bool = False, queue: int = QUEUE) -> None:
        word = os.fspath(target)
        super().__init__("detections on stdout" if word == "-" else f"detections file {word}", batch=64, queue=queue)
        self._lossless = lossless
        try:
            if word != "-":
                Path(word).parent.mkdir(parents=True, exist_ok=True)
            self._file = open_lines(None if word == "-" else word)
        except (OSError, ValueError, AttributeError) as e:
            if word == "-":  # a notebook's, a test's
                raise OutputError("stdout is no file here", "write the detections to a file") from e
            raise OutputError(f"{self.name} can't be written: {_cause(e)}", "name another file") from e
        self.start()

    def send(self, record: Record) -> None:
        """Queue a record; a lossless sink waits for room first."""
        if self._lossless:
            until = time.monotonic() + _PATIENCE
            with self._changed:
                while len(self._queue) >= self._room and not self._closing:
                    left = until - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
        super().send(record)

    def _deliver(self, records: list[Record]) -> None:
        lost = 0
        cause = ""
        for record in records:
            try:
                self._file.write(encode(record) + "\n", self._abandoned.is_set)
            except OSError as e:
                lost += 1
                cause = "no space left" if e.errno in (errno.ENOSPC, errno.EDQUOT) else str(e.strerror)
        if lost:
            raise Refused(f"can't be written: {cause}", lost=lost)

    def _shut(self) -> None:
        self._file.close()


def _cause(e: Exception) -> str:
    if isinstance(e, OSError) and e.errno == errno.ENXIO:
        return "a pipe that nobody reads"
    return getattr(e, "strerror", None) or str(e)
