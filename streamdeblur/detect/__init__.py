"""What looks at frames: detectors, tracks, records, sinks, boxes drawn into the video, and whether restoring helps.

Knows no Ray and no PyAV. A job builds a ``hook.Hook`` and offers it each frame; everything else is behind it. Names are
loaded on first use: the options alone, which the command line needs, load neither PyTorch nor OpenCV.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamdeblur.detect.detector import Detections, Detector, load_detector
    from streamdeblur.detect.hook import Hook, HookStats, Ticket
    from streamdeblur.detect.options import DetectOptions
    from streamdeblur.detect.schema import JSON_SCHEMA, SCHEMA, Look

__all__ = [
    "JSON_SCHEMA",
    "SCHEMA",
    "DetectOptions",
    "Detections",
    "Detector",
    "Hook",
    "HookStats",
    "Look",
    "Ticket",
    "load_detector",
]

_HOMES = {
    **dict.fromkeys(("Detections", "Detector", "load_detector"), "detector"),
    **dict.fromkeys(("Hook", "HookStats", "Ticket"), "hook"),
    "DetectOptions": "options",
    **dict.fromkeys(("JSON_SCHEMA", "SCHEMA", "Look"), "schema"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
