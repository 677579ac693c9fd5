"""Training as a script to submit: a recipe in, a folder with the run out, on Ray Train.

    python pipelines/train.py --config configs/train_gopro.yaml -o runs/gopro [KEY=VALUE ...]
    ray job submit -- python pipelines/train.py --config train.yaml -o /shared/runs/gopro --workers 8 data.batch=1

Keys are those of the recipe; KEY=VALUE wins over the file. On a cluster all nodes see the run's folder and the data
under the same paths and have streamdeblur installed with ray[train]. A run that is there goes on where it was; SIGTERM
saves it and stops. Prints the outcome as JSON on stdout; progress, warnings and errors go to stderr, one line each.
Exit codes are those of ``streamdeblur train``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NoReturn

from streamdeblur import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()  # until all is loaded

from streamdeblur.cli.console import Reporter, make_console, set_up_logging
from streamdeblur.cli.exits import run_and_exit
from streamdeblur.cli.training import ShownRun
from streamdeblur.errors import UsageError
from streamdeblur.training.config import load
from streamdeblur.training.ray import run_on_ray
from streamdeblur.training.recipe import Recipe


class Parser(argparse.ArgumentParser):
    """Faults of usage become one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help tells more")


def run(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("changes", metavar="KEY=VALUE", nargs="*", default=[], help="values over those of the file")
    parser.add_argument("-c", "--config", required=True, help="recipe (YAML)")
    parser.add_argument("-o", "--output", required=True, help="folder of the run")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="auto or HOST:PORT; default: the job's cluster, or this machine"
    )
    parser.add_argument("--workers", type=int, help="processes; default: one a GPU")
    parser.add_argument("--threads", type=int, help="CPU threads of each")
    parser.add_argument("--max-minutes", type=float, help="save and stop then")
    parser.add_argument("--no-tensorboard", action="store_true", help="no curves in RUN/tensorboard")
    given = parser.parse_intermixed_args(arguments)
    for name in ("workers", "threads", "max_minutes"):
        value = getattr(given, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name.replace('_', '-')} {value} is not above 0")
    console = make_console()
    set_up_logging(console, debug=False)
    recipe = load(Recipe, given.config, given.changes)
    with Reporter(console, quiet=False, unit="steps") as reporter:
        outcome = run_on_ray(
            recipe,
            Path(given.output),
            address=given.ray,
            workers=given.workers,
            max_minutes=given.max_minutes,
            threads=given.threads,
            tensorboard=not given.no_tensorboard,
            observers=[ShownRun(reporter, console, False)],
        )
    print(json.dumps(outcome.as_dict(), indent=2))
    return outcome.exit_code


if __name__ == "__main__":
    run_and_exit(run)
