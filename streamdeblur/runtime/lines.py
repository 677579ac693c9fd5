"""Lines appended to a file, a pipe or stdout: whole ones, from any number of threads, none of them held for ever.

Plain system calls and no file object of Python's: a thread that a dead disk keeps in a write must hold no lock which
the interpreter wants at its end.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

#: Seconds between looks whether a writer still wants to wait.
_LOOK = 0.2
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
_files: dict[object, LineFile] = {}
_files_lock = threading.Lock()


class LineFile:
    """One open file for all who write lines to it. Use ``open_lines``; ``close`` as often as that. Thread-safe."""

    def __init__(self, number: int, own: bool, key: object) -> None:
        self._number, self._own, self._key = number, own, key
        self._regular = stat.S_ISREG(os.fstat(number).st_mode)
        self._torn = False  # part of a line is in there, and can't be taken back
        self._lock = threading.Lock()
        self._users = 0

    def write(self, text: str, given_up: Callable[[], bool] = lambda: False) -> None:
        """Append whole lines. What is no text (parts of names of files) is written as JSON's own escapes.

        A reader of a pipe who stands still, and others who write, are waited for as long as ``given_up`` is false. A
        full disk leaves no part of the lines behind. Raises OSError (EAGAIN after giving up).
        """
        while not self._lock.acquire(timeout=_LOOK):
            _unless(given_up)
        try:
            self._write(text, given_up)
        finally:
            self._lock.release()

    def _write(self, text: str, given_up: Callable[[], bool]) -> None:
        before = os.fstat(self._number).st_size if self._regular else 0
        data = (("\n" if self._torn else "") + text).encode("utf-8", "backslashreplace")
        done = 0
        try:
            while done < len(data):
                self._await_room(given_up)
                part = data[done:] if self._regular else data[done : done + select.PIPE_BUF]
                try:
                    done += os.write(self._number, part)
                except BlockingIOError:
                    continue  # somebody else took the room
        except OSError:
            if done:
                self._torn = True
                if self._regular and os.fstat(self._number).st_size == before + done:  # nobody appended meanwhile
                    os.ftruncate(self._number, before)
                    self._torn = False
            raise
        self._torn = False

    def _await_room(self, given_up: Callable[[], bool]) -> None:
        if self._regular:
            return
        poll = select.poll()  # not select, which ends at 1024 open files
        poll.register(self._number, select.POLLOUT)
        while not poll.poll(_LOOK * 1000):
            _unless(given_up)

    def sync(self) -> None:
        """Bring what is written to the disk; nothing for a pipe or a device."""
        try:
            os.fsync(self._number)
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise

    def close(self) -> None:
        """Once for each ``open_lines``."""
        with _files_lock:
            self._users -= 1
            if self._users or not self._own:
                return
            del _files[self._key]
        os.close(self._number)


def open_lines(path: str | os.PathLike[str] | None, *, fresh: bool = False) -> LineFile:
    """The file for appending, made if need be; None is stdout. Whoever else has it open in this process shares it.

    fresh: FileExistsError where a regular file of that name is there already. Raises OSError; ENXIO for a pipe that
    nobody reads.
    """
    if path is None:
        sys.stdout.flush()
        number = sys.stdout.fileno()
        with _files_lock:
            file = _files.get(None)
            if file is None or file._number != number:
                file = _files[None] = LineFile(number, False, None)
            file._users += 1
            return file
    name = Path(path)
    flags = _FLAGS | (os.O_EXCL if fresh and not _is_special(name) else 0)
    number = os.open(name, flags, 0o666)  # without waiting for the reader of a pipe
    try:
        told = os.fstat(number)
        key = (told.st_dev, told.st_ino)
        with _files_lock:
            file = _files.get(key)
            if file is None:
                file = _files[key] = LineFile(number, True, key)
                number = -1
            file._users += 1
            return file
    finally:
        if number >= 0:
            os.close(number)


def _is_special(path: Path) -> bool:
    """A pipe, a device."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode)


def _unless(given_up: Callable[[], bool]) -> None:
    if given_up():
        raise OSError(errno.EAGAIN, "its reader does not read")
