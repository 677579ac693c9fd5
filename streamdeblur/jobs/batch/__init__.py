"""Batch jobs: a night of footage over a Ray cluster, cut into segments, resumable, accounted for to the last frame.

    sources ─► plan ─► scheduler ── units ─► actors: whole file │ segment │ join ─► DEST
                          │  manifest (fsync'd JSON lines), report, metrics

``job.run_batch`` is the way in. ``actors``, ``cluster``, ``crew``, ``metrics``, ``scheduler``, ``telling`` import Ray;
all else runs, and is tested, without it.
"""

from __future__ import annotations
