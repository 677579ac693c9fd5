"""``streamdeblur detect-eval``: does restoring help a detector?"""

from __future__ import annotations

import math
from typing import Any

import click
from rich.table import Table

from streamdeblur.cli.console import Reporter, make_console, set_up_logging
from streamdeblur.cli.measuring import measure_and_tell
from streamdeblur.cli.options import gather, model_options
from streamdeblur.evaluation.detection_options import DetectEvalOptions, DetectionMeasureOptions

_FIELDS = DetectEvalOptions.model_fields


@click.command("detect-eval")
@click.option("-d", "--data", multiple=True, metavar="FOLDER", help=_FIELDS["data"].description)
@click.option("-m", "--model", multiple=True, help=_FIELDS["model"].description)
@click.option("-o", "--output", metavar="FOLDER", help=_FIELDS["output"].description)
@click.option("-c", "--config", help="YAML file with these options; the command line wins.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")
@model_options(DetectionMeasureOptions)
@click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary; warnings are still told.")
def detect_eval(
    data: tuple[str, ...],
    model: tuple[str, ...],
    output: str | None,
    config: str | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Measure a detector on blurry and restored images, against what it finds on the sharp ones."""
    console = make_console()
    set_up_logging(console, debug=debug)
    options = gather(
        DetectEvalOptions, config, {**given, "data": data or None, "model": model or None, "output": output}
    )
    from streamdeblur.evaluation.detection import measure_detection, write_detection
    from streamdeblur.evaluation.measure import Progress

    def step(reporter: Reporter, p: Progress) -> None:
        reporter.step("detecting", p.done, p.total, f"{p.seconds / p.done:.2g} s a pair", p.set_name, p.seconds)

    measure_and_tell(
        console,
        options,
        measure=measure_detection,
        write=write_detection,
        step=step,
        tables=lambda result: [_table(s, ["blurry", *result.models]) for s in result.sets],
        width=140,
        as_json=as_json,
        quiet=quiet,
    )


def _table(s: Any, versions: list[str]) -> Table:
    title = f"{s.name}: {len(s.images)} pair{'s' if len(s.images) != 1 else ''}, {s.truth} true objects; AP in percent"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for head in ("class", "true", "images", "AP", "AP50", "AP75", "found"):
        table.add_column(head, justify="left" if head in ("class", "images") else "right", no_wrap=True)
    for n, v in enumerate(versions):
        x = s.versions[v]
        first = ("mean of classes", str(s.truth)) if n == 0 else ("", "")
        table.add_row(*first, v, _percent(x.ap), _percent(x.ap50), _percent(x.ap75), _percent(x.recall))
    for c in s.classes:
        for n, v in enumerate(versions):
            p = c.precision[v]
            first = (c.name, str(c.truth)) if n == 0 else ("", "")
            table.add_row(*first, v, _percent(p.ap), _percent(p.ap50), _percent(p.ap75), "")
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"
