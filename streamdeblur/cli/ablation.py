"""The command that trains and tables the paper's ablations."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.table import Table

from streamdeblur.cli.console import Reporter, make_console, make_output, set_up_logging
from streamdeblur.cli.options import common
from streamdeblur.cli.training import ShownRun


@click.command()
@click.option("-c", "--config", required=True, help="Recipe of the rows (YAML), for example configs/ablate.yaml.")
@click.option("-o", "--output", required=True, help="Folder of the study; one that is there goes on where it was.")
@click.option("--table", "tables", multiple=True, type=click.Choice(["3", "4"]), help="Only the rows of this table.")
@click.option("--row", "rows", multiple=True, help="Only this row: plain, mise, mosd, aff, ..., full, concat, sum.")
@click.option("--steps", type=click.IntRange(1), default=None, help="Steps a row.")
@click.option("--minutes", type=click.FloatRange(min=0), default=None, help="At most so many a row; 0 for no limit.")
@click.option("--width", type=click.IntRange(2), default=None, help="Channels at full scale; the paper has 32.")
@click.option("--blocks", type=click.IntRange(1), default=None, help="Residual blocks; the paper has 8.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change the recipe: optimizer.lr=2e-4.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads of the network.")
@click.option("--json", "as_json", is_flag=True, help="Print the tables as JSON on stdout.")
@common
def ablate(
    config: str,
    output: str,
    tables: tuple[str, ...],
    rows: tuple[str, ...],
    steps: int | None,
    minutes: float | None,
    width: int | None,
    blocks: int | None,
    changes: tuple[str, ...],
    device: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Train the rows of the paper's Tables 3 and 4 at a budget of your own, and compare."""
    from streamdeblur.training.ablation import Row, lines, load_study, run_study

    console = make_console()
    set_up_logging(console, debug=debug)
    given = {"steps": steps, "architecture.width": width, "architecture.blocks": blocks}
    more = [f"{key}={value}" for key, value in given.items() if value is not None]
    study = load_study(config, [*changes, *more], tables=[int(t) for t in tables], rows=list(rows), minutes=minutes)

    def begin(row: Row, number: int, count: int) -> None:
        if not quiet:
            console.print(f"row {number} of {count}: {row.name}")

    with Reporter(console, quiet=quiet, unit="steps") as reporter:
        results = run_study(
            study,
            Path(output),
            device=device,
            threads=threads,
            observers=[ShownRun(reporter, console, quiet)],
            begin=begin,
        )
    if as_json:
        print(json.dumps({f"table_{n}": found for n, found in results.shown.items()}, indent=2))
    else:
        out = make_output(120)
        for number, found in results.shown.items():
            head, *rest = lines(number, found)
            table = Table(title=f"Table {number}", box=None, pad_edge=False, title_justify="left")
            for name in head:
                table.add_column(name, justify="left" if name == "fusion" else "right")
            for row in rest:
                table.add_row(*row)
            out.print(table)
    if results.stopped:
        console.print(f"stopped ({results.stopped}); the same command goes on")
    return results.exit_code
