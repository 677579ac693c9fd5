"""What travels between the driver and the nodes: descriptions of work and what became of it. Never a frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from streamdeblur.config import ProcessOptions
from streamdeblur.jobs.batch.plan import Plan
from streamdeblur.restore import Restorer, Tiling

#: "restore" is the first half of "files" or "segment", "encode" the second, of one file or segment.
Kind = Literal["probe", "files", "segment", "restore", "encode", "join"]
#: In place of a segment's number: the whole file.
WHOLE = -1


@dataclass(frozen=True, slots=True)
class Item:
    """One file. print: hash of all that its result depends on. preset, device: of the encoder and of the network,
    as the segments have it."""

    id: str
    source: str
    output: str
    options: ProcessOptions
    print: str
    plan: Plan | None = None
    tiling: Tiling | None = None
    preset: str = ""
    device: str = ""
    thumbnails: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """What an actor does in one call. segment: its number, WHOLE for all of a file. facts: of the first half, for
    "encode"."""

    kind: Kind
    items: tuple[Item, ...]
    segment: int = WHOLE
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        first = self.items[0].source
        if self.segment != WHOLE:
            return f"segment {self.segment} of {first}"
        more = f" and {len(self.items) - 1} more" if len(self.items) > 1 else ""
        return f"{first}{more}"


@dataclass(frozen=True, slots=True)
class Failure:
    """kind: "file" is certain to happen again; "retry" may pass; "disk" waits for room; "uncuttable" goes whole;
    "superseded" means that another driver has taken the job over; "unmatched" that it can't be done in two halves."""

    id: str
    kind: Literal["file", "retry", "disk", "uncuttable", "superseded", "unmatched"]
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Probed:
    id: str
    plan: Plan
    tiling: Tiling | None


@dataclass(frozen=True, slots=True)
class SegmentDone:
    id: str
    number: int
    frames: int
    counts: Mapping[str, int]
    seconds: float
    preset: str
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Restored:
    """The corrections of a file or segment are there, and it is to be encoded. facts: JSON values, a summary."""

    id: str
    number: int
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Done:
    """size, tag: of the result, as ``place.stat`` tells. detections: the same of the file of detections, where there is
    one. summary: JSON values, see ``node``."""

    id: str
    size: int
    tag: str
    summary: Mapping[str, Any]
    detections: tuple[int, str] | None = None


Outcome = Failure | Probed | SegmentDone | Restored | Done


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What every actor must know of the job. token: of this driver. threads: of the network, per actor.

    weights: for each name in the options what the actor reads instead: (hash, ending); the bytes come beside it.
    build: see ``run_batch``. networks, detectors: options whose network and detector every actor tries at its start.
    """

    dest: str
    token: str
    scratch: str | None
    segment_seconds: float
    verify: bool
    threads: int | None
    weights: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    build: Callable[[ProcessOptions], Restorer] | None = None
    networks: tuple[ProcessOptions, ...] = ()
    detectors: tuple[ProcessOptions, ...] = ()
