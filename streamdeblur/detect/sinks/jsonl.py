"""JSON lines, to a file or to stdout."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import time
from pathlib import Path

from streamdeblur.detect.sinks.base import QUEUE, Record, Refused, Sink, encode
from streamdeblur.errors import OutputError

#: Seconds that a lossless sink waits for room before it drops after all: a disk that hangs must not hang the job.
_PATIENCE = 10.0


class JsonLinesSink(Sink):
    """Appends a line for each record, written at once, so that a reader sees it and a crash loses none.

    target: a file, which is appended to, or "-" for stdout. Where the disk is full, lines are dropped and counted, and
    none is ever half written. lossless: ``send`` waits for room while the thread works, for at most 10 s.
    Raises OutputError where the file can't be opened.
    """

    def __init__(self, target: str | os.PathLike[str], *, lossless: bool = False, queue: int = QUEUE) -> None:
        word = os.fspath(target)
        super().__init__("detections on stdout" if word == "-" else f"detections file {word}", batch=64, queue=queue)
        self._lossless = lossless
        self._own = word != "-"
        self._torn = False  # part of a line is in the file, and can't be taken back
        if self._own:
            try:
                Path(word).parent.mkdir(parents=True, exist_ok=True)
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK
                self._file = os.open(word, flags, 0o666)  # a pipe without a reader must not block here
                os.set_blocking(self._file, True)
            except OSError as e:
                raise OutputError(f"{self.name} can't be written: {e.strerror}", "name another file") from e
        else:
            sys.stdout.flush()
            try:
                self._file = sys.stdout.fileno()
            except (OSError, ValueError, AttributeError) as e:  # a notebook's, a test's
                raise OutputError("stdout is no file here", "write the detections to a file") from e
        self._regular = stat.S_ISREG(os.fstat(self._file).st_mode)
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
                self._write(encode(record) + "\n")
            except OSError as e:
                lost += 1
                cause = "no space left" if e.errno in (errno.ENOSPC, errno.EDQUOT) else str(e.strerror)
        if lost:
            raise Refused(f"can't be written: {cause}", lost=lost)

    def _write(self, line: str) -> None:
        before = os.fstat(self._file).st_size if self._regular else 0
        data = (("\n" if self._torn else "") + line).encode("utf-8")
        done = 0
        try:
            while done < len(data):
                self._await_room()
                done += os.write(self._file, data[done:] if self._regular else data[done : done + select.PIPE_BUF])
        except OSError:
            if done:
                self._torn = True
                if self._regular and os.fstat(self._file).st_size == before + done:  # nobody appended meanwhile
                    os.ftruncate(self._file, before)
                    self._torn = False
            raise
        self._torn = False

    def _await_room(self) -> None:
        """A reader of a pipe who stands still is waited for here, so that the end of the job is not."""
        while not self._regular and not select.select([], [self._file], [], 0.2)[1]:
            if self._abandoned.is_set():
                raise OSError(errno.EAGAIN, "its reader does not read")

    def _shut(self) -> None:
        if self._own:
            os.close(self._file)
