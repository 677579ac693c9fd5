"""Live restoration: any number of sources, one device, a deadline for every frame.

Names are loaded on first use: the options, which the command line needs, load neither PyTorch nor PyAV.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamdeblur.jobs.live.job import Engine, LiveJob, LiveSummary, build_engine, run_live
    from streamdeblur.jobs.live.options import LiveOptions, SourceOptions
    from streamdeblur.jobs.live.status import LiveSourceStatus, LiveStatus
    from streamdeblur.jobs.live.taps import FrameMeta, OnFrame, Tap

__all__ = [
    "Engine",
    "FrameMeta",
    "LiveJob",
    "LiveOptions",
    "LiveSourceStatus",
    "LiveStatus",
    "LiveSummary",
    "OnFrame",
    "SourceOptions",
    "Tap",
    "build_engine",
    "run_live",
]

_HOMES = {
    **dict.fromkeys(("Engine", "LiveJob", "LiveSummary", "build_engine", "run_live"), "job"),
    **dict.fromkeys(("LiveOptions", "SourceOptions"), "options"),
    **dict.fromkeys(("LiveSourceStatus", "LiveStatus"), "status"),
    **dict.fromkeys(("FrameMeta", "OnFrame", "Tap"), "taps"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
