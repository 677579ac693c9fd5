"""The ledger of a live source, written beside the video: a disk that stands still costs lines, never frames.

The format is that of ``runtime.ledger``. What could not be written in time becomes one line with a count (a gap).
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamdeblur.errors import OutputError
from streamdeblur.runtime.ledger import (
    STATUSES,
    FrameRecord,
    LedgerGap,
    LedgerHeader,
    LedgerLine,
    LedgerSummary,
    Status,
    TileCounts,
    encode_line,
    now,
)
from streamdeblur.runtime.lines import LineFile, open_lines

log = logging.getLogger(__name__)

#: Frames whose lines wait at most: a minute or two of video, half a megabyte.
QUEUE = 2048
#: Lines that are written at once; seconds between two tries where the disk is full.
_BATCH, _PAUSE = 128, 1.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """path: of the file. lines: of frames, written. lost: frames without a line of their own, now and for good.
    waiting: lines in the queue. error: what stops it now, or stopped it for good."""

    path: str
    lines: int
    lost: int
    waiting: int
    error: str | None


class LiveLedger:
    """``record`` returns at once, whatever the file does; a thread writes.

    path: None keeps the counts only. A file of that name is of an earlier run and kept: NAME-2.EXT and so on is taken
    then (``path`` says which). A pipe or device is written to as it is. Frames are recorded in order of index from 0.
    ``record``, ``gap`` and ``close`` are for one thread; the rest for any. Raises OutputError from its constructor.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        name: str = "",
        source: str = "",
        output: str = "",
        settings: Mapping[str, Any] | None = None,
        version: str = "",
        queue: int | None = None,
    ) -> None:
        self._name, self._room = name, QUEUE if queue is None else queue
        self._frames = 0
        self._counts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
        self._tiles = TileCounts()
        self._seconds = 0.0
        self._changed = threading.Condition()
        self._queue: deque[LedgerLine] = deque()
        self._lines = self._lost = self._taken = 0
        self._error: str | None = None
        self._over = self._closing = self._counted = False
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None
        self.path: Path | None = None
        if path is None:
            return
        self.path, file = _open(Path(path))
        if self.path != Path(path):
            log.warning("source %s: ledger %s is of an earlier run and kept; this one is %s", name, path, self.path)
        self._queue.append(LedgerHeader(source, output, dict(settings or {}), version, now()))
        self._thread = threading.Thread(target=self._work, args=(file,), name=f"ledger-{name}", daemon=True)
        self._thread.start()

    # --- for the source's chain ---------------------------------------------------------------------------------------

    @property
    def counts(self) -> dict[Status, int]:
        """Frames by status; every status is a key."""
        return dict(self._counts)

    @property
    def tiles(self) -> TileCounts:
        """Tiles over all frames that told theirs."""
        return self._tiles

    def record(self, record: FrameRecord) -> None:
        """Add the next frame. ValueError for an index out of turn."""
        self._in_turn(record.index)
        self._frames += 1
        self._counts[record.status] += 1
        self._seconds += record.seconds or 0.0
        if record.tiles is not None:
            a, b = self._tiles, record.tiles
            self._tiles = TileCounts(a.restored + b.restored, a.reused + b.reused, a.skipped + b.skipped)
        self._put(record)

    def gap(self, gap: LedgerGap) -> None:
        """Add the next frames, of which no more than their number is known."""
        self._in_turn(gap.first)
        self._frames += gap.frames
        for status, count in gap.counts.items():
            self._counts[status] += count
        self._put(gap)

    def status(self) -> LedgerStatus | None:
        """A snapshot; None without a file."""
        if self.path is None:
            return None
        with self._changed:
            waiting = len(self._queue) + self._taken
            return LedgerStatus(str(self.path), self._lines, self._lost, waiting, self._error)

    def close(self, timeout: float = 5.0) -> None:
        """Write what waits and the summary, for at most ``timeout`` seconds; then what is left is lost, counted and
        told. Idempotent."""
        thread = self._thread
        if thread is None or self._closing:
            return
        with self._changed:
            self._closing = True
            self._queue.append(LedgerSummary(self._frames, self.counts, self._tiles, self._seconds, None, now()))
            self._changed.notify_all()
        thread.join(timeout)
        self._given_up.set()
        thread.join(1.0)
        with self._changed:
            self._counted = True
            left = len(self._queue) + self._taken
            self._lost += sum(_frames(line) for line in self._queue) + self._taken
            self._queue.clear()
            self._taken = 0
        if left:
            log.warning("source %s: %d last lines of the ledger %s were not written", self._name, left, self.path)

    def _in_turn(self, index: int) -> None:
        if index != self._frames:
            raise ValueError(f"frame {index} is out of turn: {self._frames} is next")

    def _put(self, line: FrameRecord | LedgerGap) -> None:
        with self._changed:
            if self.path is None:
                return
            if self._over:
                self._lost += line.frames if isinstance(line, LedgerGap) else 1
                return
            if len(self._queue) < self._room and not isinstance(line, LedgerGap):
                self._queue.append(line)
                self._changed.notify_all()
                return
            self._lost += line.frames if isinstance(line, LedgerGap) else 1
            if self._error is None:
                self._error = "it is written to too slowly"
                log.warning(
                    "source %s: the ledger %s takes nothing; frames are only counted for it", self._name, self.path
                )
            more = line.counts if isinstance(line, LedgerGap) else {line.status: 1}
            last = self._queue[-1] if self._queue else None
            if isinstance(last, LedgerGap):
                joined = {s: last.counts.get(s, 0) + more.get(s, 0) for s in STATUSES}
                self._queue[-1] = LedgerGap(last.first, {s: n for s, n in joined.items() if n})
            else:
                first = line.first if isinstance(line, LedgerGap) else line.index
                self._queue.append(LedgerGap(first, dict(more)))
            self._changed.notify_all()

    # --- the thread ---------------------------------------------------------------------------------------------------

    def _work(self, file: LineFile) -> None:
        try:
            while lines := self._take():
                if not self._write(file, lines):
                    return
            file.sync()
        except OSError as e:
            self._end(e)
        finally:
            file.close()

    def _take(self) -> list[LedgerLine]:
        """What waits; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            lines = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
            self._taken = sum(isinstance(line, FrameRecord) for line in lines)
            return lines

    def _write(self, file: LineFile, lines: list[LedgerLine]) -> bool:
        """False when the ledger ends here."""
        text = "".join(map(encode_line, lines))
        while True:
            try:
                file.write(text, self._given_up.is_set)
            except OSError as e:
                if e.errno not in _NO_ROOM:
                    self._end(e)
                    return False
                self._full()
                if self._given_up.wait(_PAUSE):
                    return False
                continue
            self._written()
            return True

    def _written(self) -> None:
        with self._changed:
            if self._counted:
                return  # as lost
            self._lines += self._taken
            self._taken = 0
            well = self._error is not None and not self._queue  # it has caught up
            lost = self._lost
            if well:
                self._error = None
        if well:
            log.warning("source %s: the ledger goes on; %d frames have no line of their own", self._name, lost)

    def _full(self) -> None:
        with self._changed:
            new, self._error = self._error != "disk full", "disk full"
        if new:
            log.warning("source %s: the ledger %s waits for room on its disk", self._name, self.path)

    def _end(self, e: OSError) -> None:
        """For good: its reader has gone, its disk is broken."""
        if e.errno == errno.EAGAIN:
            return  # given up at the end, and told there
        with self._changed:
            if self._counted:
                return
            self._over = True
            self._error = str(e.strerror)
            self._lost += self._taken + sum(_frames(line) for line in self._queue)
            self._queue.clear()
            self._taken = 0
        log.warning("source %s: the ledger %s ends here: %s", self._name, self.path, e.strerror)


def _frames(line: LedgerLine) -> int:
    """Frames that are lost with a line; those of a gap are counted already."""
    return 1 if isinstance(line, FrameRecord) else 0


def _open(path: Path) -> tuple[Path, LineFile]:
    """The file, or the first numbered one beside it that is not there yet."""
    number, candidate = 1, path
    while True:
        try:
            return candidate, open_lines(candidate, fresh=True)
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        except OSError as e:
            cause = "a pipe that nobody reads" if e.errno == errno.ENXIO else e.strerror
            raise OutputError(f"can't write the ledger {candidate}: {cause}", "name a file in a writable folder") from e
