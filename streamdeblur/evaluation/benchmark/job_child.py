"""``python -m streamdeblur.evaluation.benchmark.job_child``: a process that runs one job and tells of itself."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def process(source: str, output: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run a job. startup_s: since this process began, until its first frame was handed to the network.

    cpu_seconds: of all its threads, once the first frame was written.
    """
    import torch

    from streamdeblur.config import ProcessOptions, parse
    from streamdeblur.evaluation.benchmark.machine import peak_memory
    from streamdeblur.jobs.process import Job, Progress

    entered: list[float] = []

    class Watched(Job):
        def workforce(self, *given: Any, **named: Any) -> Any:
            force = super().workforce(*given, **named)
            submit = force.pool.submit

            def watched(*given: Any, **named: Any) -> None:
                entered.append(time.time())
                submit(*given, **named)

            force.pool.submit = watched  # type: ignore[method-assign]
            return force

    first: list[float] = []

    def written(progress: Progress) -> None:
        if not first:
            first.append(time.process_time())

    chosen = parse(ProcessOptions, {**options, "overwrite": True})
    begun = _started()
    summary = Watched(source, Path(output), chosen, written).run()
    return {
        "startup_s": entered[0] - begun,
        "peak_bytes": peak_memory(torch.device("cpu")),
        "cpu_seconds": time.process_time() - first[0],
        "frames": summary.frames,
        "seconds": summary.seconds,
        "first_frame_seconds": summary.first_frame_seconds,
    }


def _started() -> float:
    """When this process began, in seconds of ``time.time``: interpreter and imports count."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - (uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):  # not Linux: what the imports above took is lost
        return time.time() - time.process_time()


def main(arguments: list[str]) -> int:
    """Write the result, or the error, as one line of JSON; the exit code."""
    from streamdeblur.errors import StreamdeblurError

    try:
        told = {"process": process}[arguments[0]](*json.loads(arguments[1]))
    except StreamdeblurError as e:
        told = {"error": str(e)}
    sys.stdout.write(f"\n{json.dumps(told)}\n")
    return 1 if "error" in told else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
