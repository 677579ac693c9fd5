"""A page for live jobs: every source before and after, numbers, snapshots, health, metrics.

    job ── show (returns at once) ──► Hub: newest frame of each source ──► encoder thread, only while somebody looks
                                                                              │ one picture for all readers
    browser, Prometheus, probes ◄── Preview: HTTP in a thread of its own ◄────┘

    with Preview(lambda: job.status().as_dict(), options) as preview:
        job.add_tap(preview.show)
        job.run()

Needs aiohttp (``pip install 'streamdeblur[live]'``). ``docs/preview.md`` tells what is served.
"""

from streamdeblur.jobs.live.preview.hub import Facts
from streamdeblur.jobs.live.preview.options import Address, PreviewOptions, parse_address
from streamdeblur.jobs.live.preview.server import Preview
from streamdeblur.jobs.live.preview.status import STATUS_SCHEMA, StatusProvider

__all__ = ["STATUS_SCHEMA", "Address", "Facts", "Preview", "PreviewOptions", "StatusProvider", "parse_address"]
