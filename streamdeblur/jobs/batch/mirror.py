"""The manifest's copy in a DEST that is a URL, so that the job can go on from another machine.

A driver appends to a file of its own machine, which a store of objects can't do, and sends all of it now and then.
Before it begins it brings together what lies here and there: mostly one is the beginning of the other. Where both
went on, DEST's lines come last, and count. No line is taken at its word: results and segments are looked at before they
are skipped, so an old copy costs work and never a result.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from pathlib import Path

from streamdeblur.errors import OutputError, StreamdeblurError, UnreadableInput
from streamdeblur.jobs.batch import place
from streamdeblur.jobs.batch.state import TakenOver

log = logging.getLogger(__name__)

#: Seconds between two copies at least, and as a multiple of what the last one took.
_EVERY = 5.0
_SHARE = 10.0
#: Tries of the last copy, seconds between them, and for which one that is on its way is waited for.
_TRIES = 4
_PAUSE = 1.0
_PATIENCE = 60.0


class Mirror:
    """path: the manifest here. url: its copy. driver: the object with the token of the driver whose job it is.

    ``fetch`` once, then ``begin``; from then on ``offer`` sends on a thread of its own, ``send`` waits. For one thread.
    """

    def __init__(self, path: Path, url: str, driver: str) -> None:
        self._path = path
        self._url = url
        self._driver = driver
        self._token: str | None = None
        self._sent = -1
        self._next = 0.0
        self._thread: threading.Thread | None = None
        self._outcome: tuple[int, float, StreamdeblurError | None] = (-1, 0.0, None)
        self._trouble = False

    def fetch(self) -> None:
        """Bring together what lies here and in DEST. Raises UnreadableInput, OutputError; DiskFull."""
        there = _lines(place.read_whole(self._url))
        if not there:
            return
        _expect_manifest(there[0], self._url)
        here = _lines(self._path.read_bytes() if self._path.exists() else None)
        same = next(
            (i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there))
        )
        new = there[same:]
        if here[len(here) - len(new) :] == new:
            return  # all of it was brought here before
        partial = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with partial.open("wb") as f:
                f.writelines((*here, *new))
                f.flush()
                os.fsync(f.fileno())
            os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)

    def begin(self, token: str) -> None:
        """From here on the manifest may be sent, as long as this is the driver's token; "" while there is none."""
        self._token = token

    def offer(self, size: int) -> None:
        """Send the first ``size`` bytes if it is time for it. Returns at once; a store that does not answer is told of,
        and tried again. Raises TakenOver."""
        if self._token is None:
            return
        if self._thread is not None:
            if self._thread.is_alive():
                return
            self._settle()
        if size == self._sent or time.monotonic() < self._next:
            return
        self._thread = threading.Thread(target=self._try, args=(size,), name="mirror", daemon=True)
        self._thread.start()

    def send(self, size: int, *, tries: int = _TRIES) -> None:
        """Send the first ``size`` bytes now. Raises OutputError, DiskFull, TakenOver."""
        if self._token is None:
            return
        if self._thread is not None:
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                raise OutputError(f"{self._url} does not answer", f"the job's record is in {self._path}")
            self._settle()
        for left in reversed(range(tries)):
            if size == self._sent:
                return
            self._try(size)
            error = self._outcome[2]
            if isinstance(error, TakenOver) or (error is not None and not left):
                raise error
            if error is not None:
                time.sleep(_PAUSE)
            self._settle()

    def _settle(self) -> None:
        self._thread = None
        size, seconds, error = self._outcome
        self._next = time.monotonic() + max(_EVERY, _SHARE * seconds)
        if isinstance(error, TakenOver):
            raise error
        if error is not None:
            if not self._trouble:
                log.warning("the job's record can't be sent, %s; it is tried again, and kept in %s", error, self._path)
            self._trouble = True
            return
        self._trouble = False
        self._sent = size

    def _try(self, size: int) -> None:
        began = time.monotonic()
        error: StreamdeblurError | None = None
        try:
            self._copy(size)
        except StreamdeblurError as e:
            error = e
        except OSError as e:
            error = OutputError(f"{self._path} can't be copied: {e.strerror or e}")
        except Exception as e:  # of whatever driver fsspec has
            error = OutputError(f"{self._url} can't be written: {type(e).__name__}: {e}")
        self._outcome = (size, time.monotonic() - began, error)

    def _copy(self, size: int) -> None:
        found = place.read_whole(self._driver)
        if (found or b"").decode("ascii", "replace") != self._token:
            raise TakenOver("another driver has taken the job over", "one job at a time can write to a DEST")
        still = self._path.with_name(f"{self._path.name}.{uuid.uuid4().hex[:8]}.sent")
        try:
            shutil.copyfile(self._path, still)
            os.truncate(still, size)
            place.send(still, self._url)
        finally:
            still.unlink(missing_ok=True)


def _lines(data: bytes | None) -> list[bytes]:
    """Whole lines."""
    return [line for line in (data or b"").splitlines(keepends=True) if line.endswith(b"\n")]


def _expect_manifest(line: bytes, name: str) -> None:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("type") != "job":
        raise UnreadableInput(f"{name} is not a manifest", "move it away to start anew")
