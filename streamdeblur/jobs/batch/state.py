"""What the driver knows of each file while the job runs, and what it tells a progress display."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from streamdeblur.errors import WorkerError
from streamdeblur.jobs.batch.sources import Source
from streamdeblur.jobs.batch.units import Item

Status = Literal["waiting", "working", "done", "differs", "quarantined"]
STATUSES: tuple[Status, ...] = ("waiting", "working", "done", "differs", "quarantined")


class TakenOver(WorkerError):
    """Another driver has the job now: nothing more may be written into DEST."""


@dataclass(slots=True)
class FileState:
    """One file of the job. attempts: failures so far, by unit. moves: units that went down with a node. tries: all that
    was done again. spent: seconds in workers.

    left: numbers of the segments that are not done; None for a file that goes whole. resumed: it was done before.
    restored: facts of segments (or of all, as WHOLE) that are to be encoded still. together: not in two halves.
    """

    source: Source
    print: str
    size: int
    item: Item | None = None
    status: Status = "waiting"
    left: set[int] | None = None
    restored: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    together: bool = False
    parts: int = 0
    frames_done: int = 0
    spent: float = 0.0
    started: float | None = None
    seconds: float = 0.0
    attempts: dict[str, int] = field(default_factory=dict)
    moves: int = 0
    tries: int = 0
    error: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return self.status in ("done", "differs", "quarantined")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole job at a moment. frames_total: of the files that are planned; None before any is. eta: seconds.

    nodes: (host, actors, frames a second, GPU in use in percent or None). current: names of what is worked on.
    """

    files: dict[str, int]
    total: int
    frames: int
    frames_total: int | None
    fps: float
    seconds: float
    eta: float | None
    nodes: tuple[tuple[str, int, float, float | None], ...]
    current: tuple[str, ...]
    paused: str | None
