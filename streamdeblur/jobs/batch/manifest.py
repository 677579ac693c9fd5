"""The job's memory: an append-only file of JSON lines in DEST, on disk before anything relies on it.

Lines: ``job`` (a driver began), ``begin`` (a file was taken up; what lies under its output's name from then on is
ours), ``plan``, ``restored``, ``segment``, ``done``, ``quarantined``, ``end``. The last word on a file counts. A line
that a crash cut short is dropped. One driver at a time: it holds a lock on the folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from streamdeblur.errors import DiskFull, OutputError, UnreadableInput, UsageError
from streamdeblur.jobs.batch.mirror import Mirror

SCHEMA = 1


@dataclass(slots=True)
class Entry:
    """All that is known of a file. begun: we may have written its output. segments: finished ones, by number; restored:
    those (or all of it, as WHOLE) whose corrections are there, to be encoded."""

    begun: bool = False
    print: str = ""
    status: str = ""
    plan: dict[str, Any] | None = None
    plan_print: str = ""
    segments: dict[int, dict[str, Any]] = field(default_factory=dict)
    restored: dict[int, dict[str, Any]] = field(default_factory=dict)
    done: dict[str, Any] | None = None
    error: str = ""


class Manifest:
    """Reads what is there and appends. folder: local; made where missing. url, driver: of its copy where DEST is a URL,
    see ``mirror``. For one thread.

    Raises UsageError when another driver holds the job, UnreadableInput for a file that is no manifest, OutputError and
    DiskFull when it can't be written.
    """

    def __init__(self, folder: Path, url: str | None = None, driver: str = "") -> None:
        self.path = folder / "manifest.jsonl"
        self._mirror = Mirror(self.path, url, driver) if url is not None else None
        self.entries: dict[str, Entry] = {}
        #: What was ever taken up, by its name in DEST: what lies there is ours.
        self.outputs: set[str] = set()
        self._anew = False
        self._pending: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock: IO[str] = (folder / "lock").open("a")
        except OSError as e:
            raise OutputError(f"{folder} can't be written: {e.strerror}", "name another DEST with -o") from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            self._lock.close()
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(f"another batch job is at work in {folder.parent}", "wait for it, or stop it") from e
            raise OutputError(f"{folder} can't be locked: {e.strerror}") from e
        try:
            if self._mirror is not None:
                self._mirror.fetch()
            whole = self._load()
            self._file: IO[bytes] = self.path.open("ab")
            if self._file.tell() > whole:
                self._file.truncate(whole)
        except OSError as e:
            self._lock.close()
            raise OutputError(f"{self.path} can't be opened: {e.strerror}") from e
        except BaseException:
            self._lock.close()
            raise

    def _load(self) -> int:
        """Read the file; bytes of it that are whole lines."""
        position = 0
        if not self.path.exists():
            return 0
        with self.path.open("rb") as f:
            for number, text in enumerate(f, 1):
                if not text.endswith(b"\n"):
                    break
                try:
                    line = json.loads(text)
                    if number == 1 and line.get("type") != "job":
                        raise ValueError("it does not begin with a job")
                    if line.get("type") == "job" and line["schema"] != SCHEMA:
                        raise ValueError(f"schema {line['schema']} is not {SCHEMA}")
                    self._take(line)
                except (ValueError, KeyError, TypeError, AttributeError) as e:
                    raise UnreadableInput(
                        f"{self.path} line {number} is not a manifest's: {e}", "move it away to start anew"
                    ) from e
                position += len(text)
        return position

    def _take(self, line: Mapping[str, Any]) -> None:
        kind = line["type"]
        if kind in ("job", "end"):
            self.outputs.update(line.get("outputs", ()))
            return
        entry = self.entries.setdefault(line["id"], Entry())
        mark = line["print"]
        if kind == "begin":
            entry.begun = True
        if "output" in line and kind in ("begin", "done"):
            self.outputs.add(line["output"])
        if mark != entry.print:
            entry.print, entry.status, entry.done, entry.error = mark, "", None, ""
            entry.plan, entry.plan_print, entry.segments, entry.restored = None, "", {}, {}
        if kind == "plan":
            if line["plan_print"] != entry.plan_print:
                entry.segments, entry.restored = {}, {}
            entry.plan, entry.plan_print = {"plan": line["plan"], "tiling": line["tiling"]}, line["plan_print"]
        elif kind == "segment":
            entry.segments[line["number"]] = dict(line)
            entry.restored.pop(line["number"], None)
        elif kind == "restored":
            entry.restored[line["number"]] = dict(line)
        elif kind == "done":
            entry.status, entry.done = "done", dict(line)
            entry.segments, entry.restored = {}, {}
        elif kind == "quarantined":
            entry.status, entry.error = "quarantined", line["message"]

    def add(self, kind: str, **values: Any) -> None:
        """Book a line; it is safe after ``commit``."""
        line = {"type": kind, **values}
        self._take(line)
        self._pending.append(json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=str))

    def commit(self) -> None:
        """Write what was added and bring it to the disk. What could not be written stays, for the next try."""
        if self._pending:
            self._write()
        if self._mirror is not None:
            self._mirror.offer(self._file.tell())

    def begin_copies(self, token: str) -> None:
        """Keep the copy in a URL's DEST up to date from now on. token: of this driver, "" for one that does nothing."""
        if self._mirror is not None:
            self._mirror.begin(token)

    def send(self, **how: int) -> None:
        """Bring the copy up to date now; see ``Mirror.send``."""
        if self._mirror is not None:
            self._mirror.send(self._file.tell(), **how)

    def _write(self) -> None:
        # Names that are no text become JSON's own escapes.
        data = "".join(f"{line}\n" for line in self._pending).encode("utf-8", "backslashreplace")
        try:
            if self._anew:
                self._replace(data)
            else:
                self._append(data)
        except OSError as e:
            kind = DiskFull if e.errno in (errno.ENOSPC, errno.EDQUOT) else OutputError
            raise kind(f"{self.path} can't be written: {e.strerror}", "the job can be resumed") from e
        self._pending.clear()

    def _append(self, data: bytes) -> None:
        at = self._file.tell()
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            try:
                os.truncate(self.path, at)
            except OSError:
                pass
            self._file = self.path.open("ab")
            raise

    def _replace(self, data: bytes) -> None:
        """Put the file aside, as NAME.old, and begin one with this; at every moment one of them has its name."""
        new, old = (self.path.with_name(f"{self.path.name}.{word}") for word in ("new", "old"))
        try:
            with new.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if self._file.tell():
                shutil.copyfile(self.path, old)
            os.replace(new, self.path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = self.path.open("ab")
        self._anew = False

    def forget(self) -> None:
        """Begin anew with the next ``commit``, which puts the file aside as NAME.old; until then it stays as it is."""
        begun = [key for key, entry in self.entries.items() if entry.begun]
        self.entries = {}
        self._anew = True
        self.add("job", schema=SCHEMA, anew=True, outputs=sorted(self.outputs))
        for key in begun:
            self.add("begin", id=key, print="")

    def close(self) -> None:
        """Idempotent."""
        if not self._file.closed:
            self._file.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
