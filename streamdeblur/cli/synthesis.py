"""``streamdeblur synthesize``: pairs to train on, made from sharp footage or photographs."""

from __future__ import annotations

import json
from typing import Any

import click

from streamdeblur.cli.console import Reporter, make_console, set_up_logging
from streamdeblur.cli.options import common, gather, model_options
from streamdeblur.training.synthesis.options import SynthesizeOptions


@click.command()
@click.argument("source")
@click.option("-o", "--output", required=True, help="Folder of the pairs to make: blur/, sharp/, pairs.json.")
@click.option("-c", "--config", help="YAML file with these options; the command line wins.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON on stdout.")
@model_options(SynthesizeOptions)
@common
def synthesize(
    source: str, output: str, config: str | None, as_json: bool, quiet: bool, debug: bool, **given: Any
) -> None:
    """Make blurred and sharp pairs from SOURCE: a video, a folder of frames, or photographs."""
    console = make_console()
    set_up_logging(console, debug=debug)
    options = gather(SynthesizeOptions, config, given)
    from streamdeblur.training.synthesis.make import synthesize as run

    with Reporter(console, quiet=quiet, unit="pairs") as reporter:
        report = run(source, output, options=options, progress=reporter.step)
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    elif not quiet:
        skipped = f", {report.skipped} frames blurred or at a cut" if report.skipped else ""
        console.print(
            f"{report.output}: {report.pairs} pairs of {report.width}x{report.height} by {report.method} from "
            f"{report.frames} pictures{skipped}, in {report.seconds:.1f} s",
        )
