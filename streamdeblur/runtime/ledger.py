"""The ledger: what became of every frame, as JSON lines.

The first line is a header (schema, version, source, output, settings, start), then comes one line a frame in order of
index, then a summary with the counts. A live job whose disk stands still writes one line for all the frames that it
could not tell of in the meantime (a gap). Lines are appended whole and at once, never rewritten, so that a crash leaves
all that was known; a ledger without a summary is one of a run that did not finish.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO, get_args

from streamdeblur.errors import DiskFull, InputError, MismatchError, OutputError, UnreadableInput

SCHEMA = 1

#: restored: it left with corrections (or reused ones) added. bypassed: it left as it came. failed: it did not leave,
#: the run ended or went on without it. dropped: a live job left it out to keep its deadline.
Status = Literal["restored", "bypassed", "failed", "dropped"]
STATUSES: tuple[Status, ...] = get_args(Status)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_DISK = (errno.EINVAL, errno.ENOTSUP)  # fsync of a pipe, a terminal or /dev/null


@dataclass(frozen=True, slots=True)
class TileCounts:
    """What the planner decided for the tiles of one frame."""

    restored: int = 0
    reused: int = 0
    skipped: int = 0

    @property
    def words(self) -> str:
        """Shares, as "of their tiles 62 % reused, 5 % left as sharp"; "" where there are none."""
        total = self.restored + self.reused + self.skipped
        kinds = ((self.reused, "reused"), (self.skipped, "left as sharp"))
        shares = ", ".join(f"{count / total:.0%} {kind}".replace("%", " %") for count, kind in kinds if count)
        return f"of their tiles {shares or 'none left out'}" if total else ""


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """One line of the ledger.

    pts_in, pts_out: in ``time_base`` units (seconds, rational), None where there is none. seconds: spent in the worker.
    """

    index: int
    pts_in: int | None
    pts_out: int | None
    time_base: Fraction
    status: Status
    tiles: TileCounts | None = None
    worker: str | None = None
    seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LedgerHeader:
    """The first line: what ran on what. settings: as given, JSON values only. started: ISO 8601, UTC."""

    source: str
    output: str
    settings: Mapping[str, Any]
    version: str
    started: str
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """The last line: counts over all frame lines. error: why the run ended early, or None. finished: as `started`."""

    frames: int
    counts: Mapping[Status, int]
    tiles: TileCounts
    seconds: float
    error: str | None
    finished: str


@dataclass(frozen=True, slots=True)
class LedgerGap:
    """Frames from index ``first`` on that have no lines of their own, because nothing could be written at the time."""

    first: int
    counts: Mapping[Status, int]

    @property
    def frames(self) -> int:
        return sum(self.counts.values())


LedgerLine = LedgerHeader | FrameRecord | LedgerGap | LedgerSummary


def encode_line(line: LedgerLine) -> str:
    """A line of the file, with its end; ``read_ledger`` reads it back."""
    values: dict[str, Any]
    if isinstance(line, LedgerHeader):
        values = {
            "type": "header",
            "schema": line.schema,
            "version": line.version,
            "source": line.source,
            "output": line.output,
            "settings": line.settings,
            "started": line.started,
        }
    elif isinstance(line, FrameRecord):
        values = {
            "type": "frame",
            "index": line.index,
            "pts_in": line.pts_in,
            "pts_out": line.pts_out,
            "time_base": str(line.time_base),
            "status": line.status,
            "tiles": None if line.tiles is None else _plain(line.tiles),
            "worker": line.worker,
            "seconds": None if line.seconds is None else round(line.seconds, 6),
            "reason": line.reason,
        }
    elif isinstance(line, LedgerGap):
        values = {"type": "gap", "first": line.first, "counts": dict(line.counts)}
    else:
        values = {
            "type": "summary",
            "frames": line.frames,
            "counts": dict(line.counts),
            "tiles": _plain(line.tiles),
            "seconds": round(line.seconds, 6),
            "error": line.error,
            "finished": line.finished,
        }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"), default=str) + "\n"


def _plain(tiles: TileCounts) -> dict[str, int]:
    return {"restored": tiles.restored, "reused": tiles.reused, "skipped": tiles.skipped}


class Ledger:
    """Accounts for every frame, in memory that does not grow, and in a file if there is a path.

    path: the file, replaced if it exists; None keeps the counts only. Frames are recorded in order of index from 0 on.
    Lines reach the operating system as they are recorded, the disk at `close`. For one thread.
    Raises OutputError when the file can't be written, DiskFull when there is no room.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        source: str = "",
        output: str = "",
        settings: Mapping[str, Any] | None = None,
        version: str = "",
    ) -> None:
        self._path = None if path is None else Path(path)
        self._file: TextIO | None = None
        self._closed = False
        self._frames = 0
        self._counts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
        self._tiles = [0, 0, 0]
        self._seconds = 0.0
        if self._path is not None:
            try:
                # A line at a time; what is no text (names of files) as JSON's own escapes: backslashreplace.
                self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1)
            except OSError as error:
                raise OutputError(
                    f"can't write the ledger {self._path}: {error.strerror}", "name a file in a writable folder"
                ) from error
            try:
                self._write(LedgerHeader(source, output, dict(settings or {}), version, now()))
            except BaseException:
                self._drop_file()
                raise

    @property
    def frames(self) -> int:
        """Frames recorded; the index expected next."""
        return self._frames

    @property
    def counts(self) -> dict[Status, int]:
        """Frames by status; every status is a key."""
        return dict(self._counts)

    @property
    def tiles(self) -> TileCounts:
        """Tiles over all frames that told theirs."""
        return TileCounts(*self._tiles)

    @property
    def seconds(self) -> float:
        """Spent in workers, over all frames."""
        return self._seconds

    def record(self, record: FrameRecord) -> None:
        """Add the next frame. ValueError for an index out of turn, an unknown status or a closed ledger."""
        if self._closed:
            raise ValueError("the ledger is closed")
        if record.index != self._frames:
            raise ValueError(f"frame {record.index} is out of turn: {self._frames} is next")
        if record.status not in self._counts:
            raise ValueError(f"status {record.status!r} is not one of {', '.join(STATUSES)}")
        # Written first: a line that could not be written is not counted.
        if self._file is not None:
            self._write(record)
        self._frames += 1
        self._counts[record.status] += 1
        if record.tiles is not None:
            self._tiles[0] += record.tiles.restored
            self._tiles[1] += record.tiles.reused
            self._tiles[2] += record.tiles.skipped
        self._seconds += record.seconds or 0.0

    def check(self, frames_in: int, frames_out: int) -> None:
        """Compare with what was decoded and encoded; MismatchError when the three disagree.

        frames_in: frames that came out of the decoder. frames_out: frames that the encoder took.
        """
        if frames_in != self._frames:
            raise MismatchError(
                f"{frames_in} frames were read but {self._frames} are accounted for", "the output is not complete"
            )
        expected = self._counts["restored"] + self._counts["bypassed"]
        if frames_out != expected:
            raise MismatchError(
                f"{frames_out} frames were written but {expected} of {frames_in} should have been "
                f"({self._counts['failed']} failed, {self._counts['dropped']} dropped)",
                "the output is not complete",
            )

    def close(self, error: str | None = None) -> None:
        """Write the summary and bring the file to the disk; idempotent. error: why the run ended early."""
        if self._closed:
            return
        self._closed = True
        if self._file is None:
            return
        try:
            self._write(LedgerSummary(self._frames, self._counts, self.tiles, self._seconds, error, now()))
            try:
                os.fsync(self._file.fileno())
            except OSError as failure:
                if failure.errno not in _NO_DISK:
                    raise self._explain(failure) from failure
        finally:
            self._drop_file()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(error=" ".join(str(error).split()) or type(error).__name__)
        except OutputError:
            pass  # the error under way says more

    def _write(self, line: LedgerLine) -> None:
        assert self._file is not None
        try:
            self._file.write(encode_line(line))
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> OutputError:
        kind = DiskFull if error.errno in _NO_ROOM else OutputError
        return kind(f"can't write the ledger {self._path}: {error.strerror}")

    def _drop_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:
                pass  # what could not be flushed was reported by the write


def read_ledger(path: str | os.PathLike[str]) -> Iterator[LedgerLine]:
    """Read a ledger line by line: its header, its frames (or gaps) in order, its summary.

    A last line that a crash cut short is left out, as is the summary that was never written. Raises UnreadableInput
    when the file can't be read or is no ledger, InputError naming the line when one is not what it should be.
    """
    name = Path(path)
    try:
        with name.open(encoding="utf-8") as file:
            yield from _lines(name, file)
    except OSError as error:
        raise UnreadableInput(f"can't read the ledger {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{name} is not a ledger: not UTF-8 text") from error


def _lines(name: Path, file: TextIO) -> Iterator[LedgerLine]:
    frames = 0
    counts: dict[Status, int] = dict.fromkeys(STATUSES, 0)
    finished = False
    number = 0
    for number, text in enumerate(file, 1):
        if not text.endswith("\n"):
            number -= 1
            break
        try:
            line = _parse(json.loads(text))
            if isinstance(line, LedgerHeader) != (number == 1):
                raise ValueError("the header is the first line and no other")
            if finished:
                raise ValueError("nothing follows the summary")
            if isinstance(line, FrameRecord):
                if line.index != frames:
                    raise ValueError(f"frame {line.index} in the place of frame {frames}")
                frames += 1
                counts[line.status] += 1
            elif isinstance(line, LedgerGap):
                if line.first != frames:
                    raise ValueError(f"a gap at frame {line.first} in the place of frame {frames}")
                frames += line.frames
                for status, count in line.counts.items():
                    counts[status] += count
            elif isinstance(line, LedgerSummary):
                finished = True
                if (line.frames, dict(line.counts)) != (frames, counts):
                    raise ValueError(f"the summary tells of {line.frames} frames, the lines of {frames}")
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            kind = UnreadableInput if number == 1 else InputError
            detail = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise kind(f"{name} line {number} is not a ledger's: {detail}") from error
        yield line
    if number == 0:
        raise UnreadableInput(f"{name} is not a ledger: it has no header")


def _parse(line: Any) -> LedgerLine:
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")
    kind = line["type"]
    if kind == "header":
        if line["schema"] != SCHEMA:
            raise ValueError(f"schema {line['schema']!r} is not {SCHEMA}")
        return LedgerHeader(
            _typed(line, "source", str),
            _typed(line, "output", str),
            _typed(line, "settings", dict),
            _typed(line, "version", str),
            _typed(line, "started", str),
        )
    if kind == "frame":
        seconds = _typed(line, "seconds", int, float, None)
        return FrameRecord(
            _typed(line, "index", int),
            _typed(line, "pts_in", int, None),
            _typed(line, "pts_out", int, None),
            Fraction(_typed(line, "time_base", str)),
            _status(line["status"]),
            None if line["tiles"] is None else _tiles(line["tiles"]),
            _typed(line, "worker", str, None),
            None if seconds is None else float(seconds),
            _typed(line, "reason", str, None),
        )
    if kind == "gap":
        return LedgerGap(_typed(line, "first", int), _counts(line))
    if kind == "summary":
        return LedgerSummary(
            _typed(line, "frames", int),
            _counts(line),
            _tiles(line["tiles"]),
            float(_typed(line, "seconds", int, float)),
            _typed(line, "error", str, None),
            _typed(line, "finished", str),
        )
    raise ValueError(f"type {kind!r} is not header, frame, gap or summary")


def _counts(line: Mapping[str, Any]) -> dict[Status, int]:
    counts = _typed(line, "counts", dict)
    return {_status(key): _typed(counts, key, int) for key in counts}


def _typed(line: Mapping[str, Any], key: str, *kinds: type | None) -> Any:
    value = line[key]
    allowed = tuple(type(None) if kind is None else kind for kind in kinds)
    if not isinstance(value, allowed) or isinstance(value, bool):
        raise ValueError(f"{key} {value!r} is not what it should be")
    return value


def _status(value: Any) -> Status:
    for status in STATUSES:
        if value == status:
            return status
    raise ValueError(f"status {value!r} is not one of {', '.join(STATUSES)}")


def _tiles(value: Mapping[str, Any]) -> TileCounts:
    return TileCounts(*(_typed(value, key, int) for key in ("restored", "reused", "skipped")))


def now() -> str:
    """This moment as the ledger tells it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
