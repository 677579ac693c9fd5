"""What is told of a frame: one flat, versioned record, the same in every sink.

A reader checks ``schema`` and ignores keys that it does not know: keys may be added within a version; a key that goes
or changes its meaning makes the next. ``JSON_SCHEMA`` is the definition (JSON Schema, draft 2020-12).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import numpy as np

from streamdeblur.detect.detector import Detections

SCHEMA = "streamdeblur.detections/1"

_OBJECT: dict[str, Any] = {
    "type": "object",
    "required": ["box", "score", "class", "name", "track"],
    "properties": {
        "box": {
            "description": "x1, y1, x2, y2 in pixels of the frame as it is coded (before any display rotation)",
            "type": "array",
            "items": {"type": "number", "minimum": 0},
            "minItems": 4,
            "maxItems": 4,
        },
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "class": {"description": "number of the class", "type": "integer"},
        "name": {"description": "name of the class", "type": "string"},
        "track": {
            "description": "number that stays with the object in this source, from 1; null without tracking, or where "
            "nothing is known of it yet",
            "type": ["integer", "null"],
            "minimum": 1,
        },
    },
}

JSON_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": SCHEMA,
    "title": "Detections in one frame of one source",
    "type": "object",
    "required": [
        "schema", "source", "time", "index", "pts", "time_base", "seconds", "width", "height", "restored", "blur",
        "latency_ms", "detector_ms", "objects", "unrestored",
    ],
    "properties": {
        "schema": {"const": SCHEMA},
        "source": {"description": "name of the source, without credentials", "type": "string"},
        "time": {
            "description": "wall time in UTC, ISO 8601: of the frame's arrival where it is live, else of its reading",
            "type": "string",
            "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$",
        },
        "index": {"description": "position among the decoded frames, from 0", "type": "integer", "minimum": 0},
        "pts": {"description": "presentation time in ticks of time_base", "type": ["integer", "null"]},
        "time_base": {"description": "seconds a tick, as a fraction", "type": "string", "pattern": r"^\d+/\d+$"},
        "seconds": {"description": "presentation time in seconds", "type": ["number", "null"]},
        "width": {"type": "integer", "minimum": 1},
        "height": {"type": "integer", "minimum": 1},
        "restored": {"description": "whether objects were found on a restored frame", "type": "boolean"},
        "blur": {
            "description": "blur of the frame before restoration, 0 to 1, higher is more blurred",
            "type": ["number", "null"],
            "minimum": 0,
            "maximum": 1,
        },
        "latency_ms": {
            "description": "from the frame's arrival to this record, restoration included",
            "type": "number",
            "minimum": 0,
        },
        "detector_ms": {"description": "the detector alone, on this frame", "type": "number", "minimum": 0},
        "objects": {"description": "best first", "type": "array", "items": _OBJECT},
        "unrestored": {
            "description": "the same detector on the frame before restoration (A/B); null where it was not run",
            "type": ["object", "null"],
            "required": ["count", "mean_score", "objects"],
            "properties": {
                "count": {"type": "integer", "minimum": 0},
                "mean_score": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
                "objects": {"type": "array", "items": _OBJECT},
            },
        },
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """A frame that was looked at. ``as_dict`` is its record.

    tracks: a number or None for each object. unrestored: found on the frame before restoration, or None. time: aware.
    latency, detector: seconds.
    """

    source: str
    time: datetime
    index: int
    pts: int | None
    time_base: Fraction
    width: int
    height: int
    restored: bool
    blur: float | None
    latency: float
    detector: float
    objects: Detections
    tracks: tuple[int | None, ...]
    unrestored: Detections | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values that fit ``JSON_SCHEMA``; boxes to a tenth of a pixel, scores to four digits."""
        seconds = None if self.pts is None else round(float(self.pts * self.time_base), 6)
        before = None
        if self.unrestored is not None:
            scores = self.unrestored.scores
            before = {
                "count": len(scores),
                "mean_score": round(float(scores.mean()), 4) if len(scores) else None,
                "objects": _objects(self.unrestored, [None] * len(scores)),
            }
        return {
            "schema": SCHEMA,
            "source": self.source,
            "time": wall_time(self.time),
            "index": self.index,
            "pts": self.pts,
            "time_base": f"{self.time_base.numerator}/{self.time_base.denominator}",
            "seconds": seconds,
            "width": self.width,
            "height": self.height,
            "restored": self.restored,
            "blur": None if self.blur is None else round(self.blur, 4),
            "latency_ms": round(max(self.latency, 0.0) * 1000, 2),
            "detector_ms": round(self.detector * 1000, 2),
            "objects": _objects(self.objects, self.tracks),
            "unrestored": before,
        }


def wall_time(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _objects(found: Detections, tracks: Sequence[int | None]) -> list[dict[str, Any]]:
    order = np.argsort(-found.scores, kind="stable")
    return [
        {
            "box": [round(float(v), 1) for v in found.boxes[i]],
            "score": round(float(found.scores[i]), 4),
            "class": int(found.class_ids[i]),
            "name": found.name(int(i)),
            "track": tracks[i],
        }
        for i in order
    ]
