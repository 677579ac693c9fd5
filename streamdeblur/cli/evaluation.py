"""``streamdeblur evaluate``: models on pairs of blurry and sharp images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import click
from rich.table import Table

from streamdeblur.cli.console import Reporter, make_console, set_up_logging
from streamdeblur.cli.measuring import measure_and_tell
from streamdeblur.cli.options import common, gather, model_options
from streamdeblur.evaluation.options import EvaluateOptions, MeasureOptions

_FIELDS = EvaluateOptions.model_fields


@click.command()
@click.option("-d", "--data", multiple=True, metavar="FOLDER", help=_FIELDS["data"].description)
@click.option("-m", "--model", multiple=True, help=_FIELDS["model"].description)
@click.option("-o", "--output", metavar="FOLDER", help=_FIELDS["output"].description)
@click.option("-c", "--config", help="YAML file with these options; the command line wins.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON on stdout.")
@model_options(MeasureOptions)
@common
def evaluate(
    data: tuple[str, ...],
    model: tuple[str, ...],
    output: str | None,
    config: str | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> None:
    """Measure PSNR, SSIM and run time of models on pairs of blurry and sharp images."""
    console = make_console()
    set_up_logging(console, debug=debug)
    options = gather(EvaluateOptions, config, {**given, "data": data or None, "model": model or None, "output": output})
    from streamdeblur.evaluation.charts import duration
    from streamdeblur.evaluation.measure import Progress, measure, write

    def step(reporter: Reporter, p: Progress) -> None:
        rate = duration(p.seconds / p.done) + " a pair"
        note = f"{p.set_name} {p.gain:+.2f} dB" if p.gain is not None else p.set_name
        reporter.step("evaluating", p.done, p.total, rate, note, p.seconds)

    def tables(result: Any) -> Iterator[Table | str]:
        for s in result.sets:
            yield _table(s, result.models, duration)
            if s.note:
                yield s.note

    measure_and_tell(
        console,
        options,
        measure=measure,
        write=write,
        step=step,
        tables=tables,
        width=180,
        as_json=as_json,
        quiet=quiet,
    )


def _table(s: Any, models: Any, duration: Any) -> Table:
    title = f"{s.name}: {len(s.images)} pair{'s' if len(s.images) != 1 else ''}{', registered' if s.aligned else ''}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for head in ("model", "PSNR", "gain", "8-bit", "SSIM", "8-bit", "time", "parameters", "GFLOP", "sharp kept"):
        table.add_column(head, justify="left" if head == "model" else "right", no_wrap=head != "model")
    table.add_column("worst image", overflow="fold")
    table.add_row("blurry input", _number(s.input_psnr), "", "", _number(s.input_ssim, 4))
    for m in models:
        x = s.summary(m.name)
        table.add_row(
            m.name,
            _number(x.psnr),
            f"{x.gain:+.2f}" if math.isfinite(x.gain) else "-",
            _number(x.psnr_8bit),
            _number(x.ssim, 4),
            _number(x.ssim_8bit, 4),
            duration(x.seconds),
            "-"
            if m.parameters is None
            else f"{m.parameters / 1e6:.2f} M"
            if m.parameters >= 10_000
            else f"{m.parameters:,}",
            "-" if m.gflop is None else f"{m.gflop:,.0f}" if m.gflop >= 10 or m.gflop == 0 else f"{m.gflop:.2g}",
            "-" if x.sharp_psnr is None else _number(x.sharp_psnr),
            f"{x.worst_gain:+.2f} {x.worst_image}" if x.worst_image else "-",
        )
    return table


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else "inf" if math.isinf(value) else f"{value:.{digits}f}"
