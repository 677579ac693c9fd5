"""``streamdeblur benchmark`` and ``streamdeblur tune``: how fast this machine is, and the plan that suits it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from streamdeblur.cli.console import make_console, set_up_logging
from streamdeblur.cli.options import common, gather, model_options
from streamdeblur.errors import StreamdeblurError, UsageError
from streamdeblur.evaluation.benchmark.options import LISTS, BenchmarkOptions, BenchmarkSettings, TuneOptions

F = TypeVar("F", bound=Callable[..., Any])


def _list_options(function: F) -> F:
    """Options with several values in one word, as 720p,1080p."""
    for name in reversed(LISTS):
        info = BenchmarkOptions.model_fields[name]
        default = ",".join(map(str, info.default)) if info.default else ""
        text = (info.description or "") + (f" [default: {default}]" if default else "")
        function = click.option(f"--{name}", name, default=None, metavar="A,B,…", help=text)(function)
    return function


@click.command()
@_list_options
@model_options(BenchmarkSettings)
@click.option("--json", "json_to", metavar="FILE", help="Write the results as JSON; - is stdout, without tables.")
@common
def benchmark(json_to: str | None, quiet: bool, debug: bool, **given: Any) -> None:
    """Measure speed, quality and memory on this machine, against the usual loop of research code."""
    console = make_console()
    set_up_logging(console, debug=debug)
    values = {k: _split(k, v) if k in LISTS and v is not None else v for k, v in given.items()}
    options = gather(BenchmarkOptions, None, values)
    from streamdeblur.evaluation.benchmark.files import check_targets, write_all
    from streamdeblur.evaluation.benchmark.report import html_report
    from streamdeblur.evaluation.benchmark.run import begin, require_any
    from streamdeblur.evaluation.benchmark.run import benchmark as run

    as_json = json_to == "-"
    if options.html == Path("-"):
        raise UsageError("--html - is no file, and stdout gets no page", "name a file, as --html bench.html")
    json_file = None if json_to is None or as_json else Path(json_to)
    check_targets({"--json": json_file, "--html": options.html})
    report = begin(options, " ".join(["streamdeblur", *sys.argv[1:]]))
    if not as_json:
        print(" · ".join(f"{k} {v}" for k, v in report.machine.items()))
        print(f"load before: {report.load_before}", flush=True)
    if report.warning:
        console.print(f"warning: {report.warning}")
    for note in report.notes:
        console.print(f"note: {note}")

    def done(name: str, text: str) -> None:
        if not as_json:
            print(f"\n== {name} ({report.seconds[name]:.0f} s)\n{text}", flush=True)

    def deliver() -> None:
        if as_json:
            print(report.as_json(), end="")
        texts = {} if json_file is None else {json_file: report.as_json()}
        if options.html is not None:
            texts[options.html] = html_report(report)
        write_all(texts)

    try:
        run(options, report, tell=_steps(console, quiet=quiet), done=done)
    except BaseException:
        if report.values:  # hours of other parts' work; what failed is told, by itself and in the results
            with contextlib.suppress(StreamdeblurError):
                deliver()
        raise
    deliver()
    if options.html is not None and not quiet:
        console.print(str(options.html))
    require_any(report)


@click.command()
@model_options(TuneOptions)
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON on stdout.")
@common
def tune(as_json: bool, quiet: bool, debug: bool, **given: Any) -> None:
    """Measure the tile size, batch and frames in flight that suit this machine; jobs follow them with --tiling auto."""
    console = make_console()
    set_up_logging(console, debug=debug)
    options = gather(TuneOptions, None, given)
    from streamdeblur.evaluation.benchmark.tune import show_tune
    from streamdeblur.evaluation.benchmark.tune import tune as run

    result = run(options, tell=_steps(console, quiet=quiet))
    if result.warning:
        console.print(f"warning: {result.warning}")
    print(json.dumps(result.as_dict(), indent=2) if as_json else show_tune(result))


def _split(name: str, value: Any) -> tuple[Any, ...]:
    words = tuple(w.strip() for w in str(value).split(",") if w.strip())
    return tuple(int(w) if w.isdecimal() else w for w in words) if name == "batch" else words


def _steps(console: Console, *, quiet: bool) -> Callable[[str], None]:
    """What is being measured, on the terminal's last line; nothing elsewhere."""
    if quiet or not console.is_terminal:
        return lambda _: None
    return lambda text: console.print(f"… {text}", style="dim")
