"""The main job as a script to submit: one video in, the restored one out.

    python pipelines/process.py SOURCE [-o OUTPUT] [--config configs/process.yaml] [KEY=VALUE ...]
    ray job submit -- python pipelines/process.py /footage/a.mp4 --config process.yaml ray=auto workers=4

Keys are those of configs/process.yaml; KEY=VALUE wins over the file, and ``KEY=null`` stands for not given. Source and
output are paths on the node where the script runs, which has streamdeblur installed. Prints the summary as JSON on
stdout; progress, warnings and errors go to stderr, one line each. Exit codes are those of ``streamdeblur process``.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, NoReturn

from streamdeblur import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()  # until all is loaded

from streamdeblur import process_video
from streamdeblur.cli.console import Reporter, make_console, set_up_logging
from streamdeblur.cli.exits import run_and_exit
from streamdeblur.config import ProcessOptions, load_yaml, merge
from streamdeblur.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Faults of usage become one line, as all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help tells more")


def read_options(config: str | None, overrides: list[str]) -> ProcessOptions:
    """The file's values, and over them those of ``KEY=VALUE``."""
    given: dict[str, Any] = {}
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"{item!r} is not KEY=VALUE", "for example device=cpu")
        given[key.replace("-", "_")] = None if value == "null" else value
    return merge(ProcessOptions, {} if config is None else load_yaml(config), given, config or "the command line")


def run(arguments: list[str] | None = None) -> None:
    assert __doc__ is not None
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="video file")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", default=[], help="options over those of the file")
    parser.add_argument("-o", "--output", help="default: NAME.deblurred.EXT beside the source")
    parser.add_argument("-c", "--config", help="YAML file of options")
    given = parser.parse_intermixed_args(arguments)
    console = make_console()
    set_up_logging(console, debug=False)
    options = read_options(given.config, given.overrides)
    with Reporter(console, quiet=False) as reporter:
        summary = process_video(given.source, given.output, options=options, progress=reporter.update)
    print(json.dumps(summary.as_dict(), indent=2))


if __name__ == "__main__":
    run_and_exit(run)
