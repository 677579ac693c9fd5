"""Live restoration: any number of sources, one device, a deadline for every frame."""

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
