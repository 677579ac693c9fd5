"""What a batch job says of itself."""

from __future__ import annotations

from typing import Any

from streamdeblur.jobs.batch.job import BatchSummary


def test_tiles_of_a_job_are_those_of_its_files() -> None:
    tiles = ({"restored": 1, "reused": 2, "skipped": 0}, None, {"restored": 3, "reused": 0, "skipped": 4})
    rows = tuple({"tiles": t} for t in tiles)
    common: dict[str, Any] = {"files": {"done": 3}, "resumed": 0, "frames": 3, "seconds": 1.0, "fps": 3.0, "deaths": 0}
    common |= {"retries": 0, "actors": 1, "idle": 0.0, "transit": 0.0, "report": "r"}
    summary = BatchSummary("out", "finished", rows=rows, **common)
    assert summary.as_dict()["tiles"] == {"restored": 4, "reused": 2, "skipped": 4}
    assert BatchSummary("out", "finished", rows=({"tiles": None},), **common).as_dict()["tiles"] is None
