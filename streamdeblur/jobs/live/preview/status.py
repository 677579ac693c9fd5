"""What is told of a job: its status as a versioned JSON document, and whether it is ready.

The job gives plain values (``LiveStatus.as_dict``, and more keys as it likes); here they lose every credential once
more, whatever the job did, and everything that is no JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from streamdeblur.version import __version__
from streamdeblur.video.live.urls import HIDDEN, mask

#: Returns a snapshot of the job: a dict of plain values. Called on threads of the page; may be slow, or raise.
StatusProvider = Callable[[], Mapping[str, Any]]

SCHEMA = "streamdeblur.live.status/1"
#: States of a source that is not meant to deliver any more.
OVER = ("ended", "stopped")
STATES = ("starting", "connecting", "live", "waiting", "ended", "gave up", "stopped")
OUTPUT_STATES = ("idle", "opening", "live", "waiting", "disk full", "closed")

_NUMBER = {"type": ["number", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": ["string", "null"]}

#: JSON Schema (draft 2020-12) of ``/api/status``. Keys may be added within a version; a key that goes or changes its
#: meaning makes the next.
STATUS_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": SCHEMA,
    "title": "Status of a live job",
    "type": "object",
    "required": ["schema", "time", "version", "ready", "problems", "preview", "sources"],
    "properties": {
        "schema": {"const": SCHEMA},
        "time": {"description": "UTC, ISO 8601", "type": "string", "pattern": r"^\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z$"},
        "version": {"description": "of streamdeblur", "type": "string"},
        "ready": {"description": "every source that should deliver does", "type": "boolean"},
        "problems": {"description": "why it is not ready", "type": "array", "items": {"type": "string"}},
        "seconds": {"description": "since the start of the job", "type": "number", "minimum": 0},
        "device": {"type": "string"},
        "model": {"type": "string"},
        "steps": {"description": "of the ladder, best first", "type": "array", "items": {"type": "string"}},
        "latency_ms": {"description": "the deadline: from arrival to output, at most", "type": "number"},
        "load": {"description": "share of the device's time that the sources need", "type": "number"},
        "memory_mb": {"description": "resident memory of the process", "type": "number"},
        "gpu_mb": {"description": "memory that PyTorch holds on the GPU; null without one", **_NUMBER},
        "preview": {
            "type": "object",
            "required": ["readers", "readers_limit", "pictures", "refused", "fps", "width"],
            "properties": {
                "readers": {"description": "who looks at pictures now", **_COUNT},
                "readers_limit": _COUNT,
                "pictures": {"description": "made since the start", **_COUNT},
                "refused": {"description": "readers turned away because there were too many", **_COUNT},
                "fps": {"description": "pictures a second and source, at most", "type": "number"},
                "width": {"description": "of pictures, at most", **_COUNT},
            },
        },
        "sources": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "state"],
                "properties": {
                    "name": {"type": "string"},
                    "url": {"description": "without credentials", "type": "string"},
                    "state": {"enum": list(STATES)},
                    "codec": _TEXT,
                    "width": {"type": ["integer", "null"]},
                    "height": {"type": ["integer", "null"]},
                    "fps_in": {"description": "frames a second that arrive, over the last seconds", **_NUMBER},
                    "fps_out": {"description": "that leave", **_NUMBER},
                    "latency_p50_ms": {"description": "from arrival to output, over the last seconds", **_NUMBER},
                    "latency_p95_ms": _NUMBER,
                    "latency_ms": {"description": "the deadline of this source", "type": "number"},
                    "frames": {"description": "that arrived since the start", **_COUNT},
                    "restored": _COUNT,
                    "bypassed": {"description": "passed through as they came", **_COUNT},
                    "dropped": {"description": "left out", **_COUNT},
                    "failed": {"description": "that could not be restored because of an error", **_COUNT},
                    "late": {"description": "of those bypassed or dropped, the ones that were too late", **_COUNT},
                    "behind": {"description": "of those dropped, the ones that encoding had no time for", **_COUNT},
                    "undecodable": _COUNT,
                    "waiting": {"description": "frames that wait to be restored now", **_COUNT},
                    "step": {"description": "of the ladder, now", "type": "string"},
                    "step_index": _COUNT,
                    "restore_ms": {"description": "device time for a frame on this step", **_NUMBER},
                    "reused": {"description": "share of tiles whose correction was reused", **_NUMBER},
                    "reconnects": _COUNT,
                    "restarts": {"description": "of the reading process", **_COUNT},
                    "error": {"description": "the last one", **_TEXT},
                    "outputs": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["target", "state"],
                            "properties": {
                                "target": {"description": "without credentials", "type": "string"},
                                "state": {"enum": list(OUTPUT_STATES)},
                                "packets": _COUNT,
                                "dropped": _COUNT,
                                "segments": _COUNT,
                                "restarts": _COUNT,
                                "stalls": _COUNT,
                                "error": _TEXT,
                            },
                        },
                    },
                    "detection": {
                        "description": "of the detector, where one runs",
                        "type": ["object", "null"],
                        "properties": {
                            "looked": {"description": "frames that it was run on", **_COUNT},
                            "skipped": {"description": "left out on purpose", **_COUNT},
                            "dropped": {"description": "left out because it was busy", **_COUNT},
                            "errors": {"description": "frames on which it failed", **_COUNT},
                            "error": {"description": "the last one, or that it gives no answer", **_TEXT},
                            "stuck": {"description": "it has given no answer for some seconds", "type": "boolean"},
                            "objects": {"description": "found on the last frame", **_COUNT},
                        },
                    },
                    "ledger": {
                        "description": "what is written of every frame; null without a file",
                        "type": ["object", "null"],
                        "properties": {
                            "path": {"type": "string"},
                            "lines": {"description": "of frames, written", **_COUNT},
                            "lost": {"description": "frames without a line of their own", **_COUNT},
                            "waiting": _COUNT,
                            "error": _TEXT,
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip


def clean(value: Any, secrets: Sequence[str] = ()) -> Any:
    """JSON values only, without credentials: what urls.mask finds, and ``secrets``, in every text and key."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(clean(str(k), secrets)): clean(v, secrets) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(v, secrets) for v in value]
    text = mask(str(value))
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def problems(status: Mapping[str, Any]) -> list[str]:
    """Why the job is not ready, one line a source; empty when every source that should deliver does.

    No text of an error is in it: whoever may ask for readiness need not be let in.
    """
    found = []
    sources = status.get("sources") or []
    if not sources:
        return ["no source yet"]
    for source in sources:
        name, state = source.get("name", "?"), source.get("state", "?")
        if state in OVER:
            continue
        if state != "live":
            found.append(f"{name}: {state}")
        elif not source.get("fps_out"):
            found.append(f"{name}: no frames leave")
    return found


def document(status: Mapping[str, Any], preview: Mapping[str, Any], secrets: Sequence[str] = ()) -> dict[str, Any]:
    """``/api/status``, from the job's own words and the page's."""
    plain = clean(status, secrets)
    plain.setdefault("sources", [])
    why = problems(plain)
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {
        **plain,
        "schema": SCHEMA,
        "time": now,
        "version": __version__,
        "ready": not why,
        "problems": why,
        "preview": dict(preview),
    }
