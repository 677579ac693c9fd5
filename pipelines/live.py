"""Live restoration as a script to submit: cameras in, restored streams out, on the GPUs of a Ray cluster.

    python pipelines/live.py [SOURCE...] [--to OUTPUT]... [--config configs/live.yaml] [OPTIONS]
    ray job submit --working-dir . -- python pipelines/live.py --config cameras.yaml --workers 4

Takes what ``streamdeblur live`` takes. Every source is read in a process of its own beside this script; what restores
are Ray actors, shared by all sources: one for each GPU, or ``--workers`` of them. Prints the summary as JSON on stdout;
progress, warnings and errors go to stderr. Exit codes are those of ``streamdeblur live``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # As `ray job submit --working-dir .` brings it: beside the package, which need not be installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from streamdeblur import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()  # until all is loaded

from streamdeblur.cli.exits import run_and_exit
from streamdeblur.cli.live import live


def run(arguments: list[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not any(a == "--workers" or a.startswith(("--workers=", "--ray")) for a in given):
        # Inside a job the cluster is found by RAY_ADDRESS; elsewhere Ray is started on this machine.
        given.append("--ray")
    if "--json" not in given:
        given.append("--json")
    code = live.main(given, prog_name="pipelines/live.py", standalone_mode=False)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    run_and_exit(run)
