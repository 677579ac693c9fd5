"""A page for live jobs: every source before and after, numbers, snapshots, health, metrics.

    job ── show (returns at once) ──► Hub: newest frame of each source ──► encoder thread, only while somebody looks
                                                                              │ one picture for all readers
    browser, Prometheus, probes ◄── Preview: HTTP in a thread of its own ◄────┘

    with Preview(lambda: job.status().as_dict(), options) as preview:
        job.add_tap(preview.show)
        job.run()

Needs aiohttp (``pip install 'streamdeblur[live]'``). What is served: ``docs/preview.md``. Names are loaded on first
use: the options, which the command line needs, load neither PyTorch nor OpenCV.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamdeblur.jobs.live.preview.hub import Facts
    from streamdeblur.jobs.live.preview.options import Address, PreviewOptions, parse_address
    from streamdeblur.jobs.live.preview.server import Preview
    from streamdeblur.jobs.live.preview.status import STATUS_SCHEMA, StatusProvider

__all__ = ["STATUS_SCHEMA", "Address", "Facts", "Preview", "PreviewOptions", "StatusProvider", "parse_address"]

_HOMES = {
    "Facts": "hub",
    **dict.fromkeys(("Address", "PreviewOptions", "parse_address"), "options"),
    "Preview": "server",
    **dict.fromkeys(("STATUS_SCHEMA", "StatusProvider"), "status"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
