"""Batch jobs as a script to submit: many files over the Ray cluster it runs on.

    python pipelines/batch.py SOURCE... -o DEST [--config configs/batch.yaml] [OPTIONS]
    ray job submit --working-dir . -- python pipelines/batch.py /footage -o /restored --config configs/batch.yaml

Takes what ``streamdeblur batch`` takes, prints the summary as JSON on stdout and progress, warnings and errors on
stderr, and ends with the same exit codes: 0 all done, 1 some files are quarantined or differ, 2 wrong usage. Sources
and DEST are paths that every node sees, or URLs.
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

from streamdeblur.cli.batch import batch
from streamdeblur.cli.exits import run_and_exit


def run(arguments: list[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "--json" not in given and "--dry-run" not in given:
        given.append("--json")
    code = batch.main(given, prog_name="pipelines/batch.py", standalone_mode=False)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    run_and_exit(run)
