"""``streamdeblur batch``: many files, over a Ray cluster or on this machine."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamdeblur.cli.console import make_console, set_up_logging
from streamdeblur.cli.exits import Command
from streamdeblur.cli.options import common, gather, model_options
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.video.live.urls import MaskFilter

if TYPE_CHECKING:
    from streamdeblur.jobs.batch.state import Snapshot

#: Seconds between lines where there is no terminal, as in ``ray job logs``.
_EVERY = 10.0
_SHOWN = 12


@click.command(cls=Command)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCES...")
@click.option("-o", "--output", required=True, metavar="DEST", help="Folder that every node sees, or a URL.")
@click.option("-c", "--config", help="YAML file with these options; the command line wins.")
@click.option("--dry-run", is_flag=True, help="Print the plan and an estimate of time and disk; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON on stdout.")
@model_options(BatchOptions)
@common
def batch(
    sources: tuple[str, ...],
    output: str,
    config: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> int:
    """Restore many files: folders, globs, URLs, manifests. The same command again goes on where it was."""
    console = make_console()
    set_up_logging(console, debug=debug)
    for handler in logging.getLogger("streamdeblur").handlers:
        handler.addFilter(MaskFilter())
    options = gather(BatchOptions, config, given)
    return execute(sources, output, options, console, dry_run=dry_run, as_json=as_json, quiet=quiet)


def execute(
    sources: tuple[str, ...],
    output: str,
    options: BatchOptions,
    console: Console,
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run or estimate a job and print what became of it; the exit code."""
    if dry_run:
        from streamdeblur.jobs.batch.estimate import estimate

        found = estimate(sources, output, options)
        print(json.dumps(found.as_dict(), indent=2) if as_json else found.text())
        return 0 if not found.broken else 1
    from streamdeblur.jobs.batch.job import run_batch

    with BatchReporter(console, quiet=quiet) as reporter:
        summary = run_batch(sources, output, options=options, progress=reporter.update)
    if as_json:
        print(json.dumps(summary.as_dict(), indent=2))
    if not quiet:
        for row in [r for r in summary.rows if r["status"] == "quarantined"][:20]:
            console.print(f"quarantined: {row['source']}: {row['error']}")
        counts = ", ".join(f"{n} {status}" for status, n in summary.files.items() if n)
        before = f" ({summary.resumed} before)" if summary.resumed else ""
        tiles = f" ({summary.tiles.words})" if summary.tiles is not None and summary.tiles.words else ""
        console.print(
            f"{summary.dest}: {counts}{before}, {summary.frames} frames{tiles}, {summary.seconds:.1f} s, "
            f"{summary.fps:.1f} fps; {summary.report}",
        )
    return summary.exit_code


class BatchReporter:
    """Progress of a job: a live table on a terminal, a line now and then elsewhere, nothing when quiet."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._live: Live | None = None
        self._last = -_EVERY

    def __enter__(self) -> BatchReporter:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, s: Snapshot) -> None:
        """Show the state of a running job."""
        if self._live is not None:
            self._live.update(_table(s))
        elif not self._quiet and time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            nodes = ", ".join(f"{host} {fps:.1f} fps" for host, _, fps, _ in s.nodes)
            self._console.print(f"{_line(s)}{f' [{nodes}]' if nodes else ''}")


def _line(s: Snapshot) -> str:
    over = s.files["done"] + s.files["differs"] + s.files["quarantined"]
    bad = "".join(f", {s.files[w]} {w}" for w in ("differs", "quarantined") if s.files[w])
    frames = f"{s.frames}/{s.frames_total}" if s.frames_total else str(s.frames)
    eta = f", about {_span(s.eta)} left" if s.eta is not None else ""
    paused = f", PAUSED: {s.paused}" if s.paused else ""
    return f"{over}/{s.total} files, {frames} frames, {s.fps:.1f} fps, {s.files['working']} at work{bad}{eta}{paused}"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _table(s: Snapshot) -> Group:
    nodes = Table(box=None, pad_edge=False)
    for head in ("node", "actors", "fps", "GPU"):
        nodes.add_column(head, justify="left" if head == "node" else "right")
    for host, actors, fps, gpu in s.nodes[:_SHOWN]:
        nodes.add_row(host, str(actors), f"{fps:.1f}", "-" if gpu is None else f"{gpu:.0f} %")
    bar = ProgressBar(total=s.frames_total or 1, completed=s.frames if s.frames_total else 0, width=60)
    current = [Text(name, overflow="ellipsis", no_wrap=True) for name in s.current[:_SHOWN]]
    more = [Text(f"and {len(s.current) - _SHOWN} more")] if len(s.current) > _SHOWN else []
    return Group(Text(_line(s)), bar, nodes, *current, *more)
