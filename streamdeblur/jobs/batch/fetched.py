"""Sources from elsewhere, fetched once for all actors of a node, and kept while there is room.

    FOLDER/HASH/NAME    the copy, whole; HASH is of its URL and of what the store says of its content
    FOLDER/HASH/lock    held exclusively while it is fetched or removed, shared while it is read

The system lets go of a lock when its process ends, however that ends, so nothing stays locked. What is over is removed,
the longest unused first: when a job ends, when room is needed, and when nobody has read it for a day.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from streamdeblur.errors import InputError, StreamdeblurError
from streamdeblur.jobs.batch import place

log = logging.getLogger(__name__)

#: Part of the room that copies nobody reads may take, of what would be free without them.
_SHARE = 0.5
_OLD = 24 * 3600.0
_LOCK = "lock"
#: Seconds between looks at a lock that another actor holds.
_LOOK = 0.2


class NotFetched(StreamdeblurError):
    """A source that could not be copied here, this time."""


class Fetched:
    """The copies of a node. folder: shared by its actors. moved: called while data come. For one thread."""

    def __init__(self, folder: Path, moved: Callable[[], None]) -> None:
        self._folder = folder
        self._moved = moved
        self._used: set[str] = set()

    @contextmanager
    def local(self, source: str) -> Iterator[str]:
        """The path of a copy, which stays for as long as this is entered; of a local source its own.

        Raises NotFetched, DiskFull, OutputError.
        """
        if not place.is_url(source):
            yield source
            return
        found = place.stat(source)
        if found is None:
            raise NotFetched(f"{source} does not exist", "check the URL and its access")
        key = hashlib.blake2b(f"{source}\0{found.size}\0{found.tag}".encode(), digest_size=12).hexdigest()
        path = self._folder / key / (source.split("?", 1)[0].rsplit("/", 1)[-1][-120:] or "source")
        while (lock := self._reading(path)) is None:
            if not self._fetch(source, path, found.size):
                self._moved()  # another actor is fetching it, and is watched itself
                time.sleep(_LOOK)
        with lock:
            self._used.add(key)
            yield str(path)

    def _reading(self, path: Path) -> IO[bytes] | None:
        """The shared lock of a copy, None where there is no copy, or somebody is about to remove it."""
        lock = _locked(path.parent, fcntl.LOCK_SH)
        if lock is None:
            return None
        try:
            os.utime(path)
        except FileNotFoundError:
            lock.close()
            return None
        return lock

    def _fetch(self, source: str, path: Path, size: int) -> bool:
        """Make a copy. False where another actor is at it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _locked(path.parent, fcntl.LOCK_EX)
        if lock is None:
            return False
        with lock:
            if not path.exists():
                for half in _files(path.parent):
                    if half.name != _LOCK:
                        half.unlink(missing_ok=True)  # of an actor that died
                self._make_room(size, path.parent.name)
                try:
                    place.fetch(source, path, self._moved)
                except InputError as e:
                    raise NotFetched(e.what, e.hint) from e
        return True

    def clear(self) -> None:
        """Remove what this actor had fetched or read and nobody reads now."""
        for key in self._used:
            self._drop(self._folder / key)
        self._used.clear()

    def _make_room(self, size: int, mine: str) -> None:
        kept = []
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            files = [f for f in _files(folder) if f.name != _LOCK] if folder.name != mine else []
            if files:
                stats = [s for f in files if (s := _stat(f)) is not None]
                kept.append((max((s.st_mtime for s in stats), default=0.0), sum(s.st_size for s in stats), folder))
        kept.sort(key=lambda k: k[0])
        total = sum(k[1] for k in kept)
        free = shutil.disk_usage(self._folder).free
        for used, taken, folder in kept:
            crowded = total + size > (free + total) * _SHARE
            if (crowded or time.time() - used > _OLD) and self._drop(folder):
                total, free = total - taken, free + taken

    def _drop(self, folder: Path) -> bool:
        """Remove a copy that nobody reads."""
        try:
            lock = _locked(folder, fcntl.LOCK_EX)
            if lock is None:
                return False
            with lock:
                for path in _files(folder):
                    if path.name != _LOCK:
                        path.unlink(missing_ok=True)
                (folder / _LOCK).unlink(missing_ok=True)  # whoever has it open looks whether it still is the lock
                with suppress(OSError):
                    folder.rmdir()
                return True
        except OSError:
            log.debug("%s stays", folder, exc_info=True)
            return False


def _locked(folder: Path, kind: int) -> IO[bytes] | None:
    """The lock of a copy; None where another has it, or there is no such folder."""
    try:
        lock = (folder / _LOCK).open("ab")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
        found = _stat(folder / _LOCK)
        if found is not None and os.path.samestat(os.fstat(lock.fileno()), found):
            return lock  # else it was removed between the two
    except BlockingIOError:
        pass
    lock.close()
    return None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _files(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
