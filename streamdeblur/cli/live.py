"""``streamdeblur live``: cameras and other live sources, restored in time."""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from streamdeblur.cli.console import make_console, set_up_logging
from streamdeblur.cli.exits import Command
from streamdeblur.cli.options import common, gather, model_options, spare_stdout
from streamdeblur.config import StrictModel
from streamdeblur.jobs.live.options import LiveOptions
from streamdeblur.video.live.urls import MaskFilter, mask

if TYPE_CHECKING:
    from streamdeblur.jobs.live.status import LiveSourceStatus, LiveStatus

#: Seconds between lines where there is no terminal.
_EVERY = 10.0


def _scalars() -> type[StrictModel]:
    """The options of the job without its lists, which have words of their own on the command line."""
    from pydantic import create_model

    fields: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in LiveOptions.model_fields.items()
        if name not in ("to", "sources")
    }
    return create_model("LiveScalars", __base__=StrictModel, **fields)


@click.command(cls=Command)
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option(
    "-t",
    "--to",
    multiple=True,
    metavar="OUTPUT",
    help="rtsp://… (publish), hls:FOLDER, udp:// or tcp://… (MPEG-TS), FILE, none. Several times for several outputs; "
    "{name} stands for the name of the source.",
)
@click.option("-c", "--config", help="YAML file with these options and a list of sources; the command line wins.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON on stdout at the end.")
@model_options(_scalars())
@common
def live(
    sources: tuple[str, ...],
    to: tuple[str, ...],
    config: str | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    **given: Any,
) -> int:
    """Restore live streams in time: RTSP cameras, any URL, or files at their own pace. Ctrl-C ends it in order."""
    console = make_console()
    begin_logging(console, debug=debug)
    options = gather(LiveOptions, config, {**given, "to": to or None})
    spare_stdout(as_json, [options.detections, *(s.detections for s in options.sources)])
    return execute(sources, options, console, as_json=as_json, quiet=quiet)


def begin_logging(console: Console, *, debug: bool) -> None:
    """As for every command, and nothing that is logged has credentials in it."""
    set_up_logging(console, debug=debug)
    for handler in logging.getLogger("streamdeblur").handlers:
        handler.addFilter(MaskFilter())


def execute(sources: tuple[str, ...], options: LiveOptions, console: Console, *, as_json: bool, quiet: bool) -> int:
    """Run a job until its end or a signal, and print what became of it; the exit code.

    The first SIGINT or SIGTERM closes all outputs in order (128 plus its number is the exit code, as everywhere), a
    second one ends the process at once.
    """
    from streamdeblur.jobs.live.job import LiveJob

    job = LiveJob(sources, options=options)
    if job.page is not None:
        console.print(f"preview: {job.page}")
    caught: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        job.stop()
        for n in (signal.SIGINT, signal.SIGTERM):
            signal.signal(n, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for n in (signal.SIGINT, signal.SIGTERM):
            signal.signal(n, on_signal)
    with LiveReporter(console, quiet=quiet) as reporter:
        summary = job.run(reporter.update, reporter.every)
    if as_json:
        print(json.dumps(_masked(summary.as_dict()), indent=2))
    if not quiet:
        for source in summary.status.sources:
            console.print(_sum(source))
    for name, why in summary.failed.items():
        console.print(f"error: source {name} was given up: {why}")
    for target, why in summary.silent.items():
        console.print(f"error: output {target} took nothing: {mask(why)}")
    if caught:
        return 128 + caught[0]
    return 1 if summary.failed or summary.silent else 0


def _masked(value: Any) -> Any:
    """JSON values with credentials out of every text."""
    if isinstance(value, dict):
        return {k: _masked(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(v) for v in value]
    return mask(value) if isinstance(value, str) else value


class LiveReporter:
    """Progress of a job: a table on a terminal, a line for each source now and then elsewhere, nothing when quiet."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._live: Live | None = None
        self.every = 0.5 if console.is_terminal else _EVERY

    def __enter__(self) -> LiveReporter:
        if not self._quiet and self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, s: LiveStatus) -> None:
        """Show the state of a running job."""
        if self._live is not None:
            self._live.update(_table(s))
        elif not self._quiet:
            for source in s.sources:
                self._console.print(_line(source))


def _line(s: LiveSourceStatus) -> str:
    parts = [f"{s.name}: {s.state}, {s.fps_in:.1f} fps in, {s.fps_out:.1f} out, {s.step}"]
    if s.latency_p50_ms is not None and s.latency_p95_ms is not None:
        parts.append(f"latency {s.latency_p50_ms:.0f} ms (p95 {s.latency_p95_ms:.0f})")
    parts.append(f"{s.restored} restored, {s.bypassed} bypassed")
    parts += [
        f"{n} {word}" for n, word in ((s.dropped, _dropped(s)), (s.late, "late"), (s.reconnects, "reconnects")) if n
    ]
    parts += [f"{o.target} {o.state}" for o in s.outputs if o.state != "live"]
    if s.detection is not None and s.detection["stuck"]:
        parts.append(f"detector: {s.detection['error']}")
    parts += [f"{sink['name']} down" for sink in (s.detection or {}).get("sinks", ()) if sink["down"]]
    if s.ledger is not None and s.ledger.error is not None:
        parts.append(f"ledger: {s.ledger.error}")
    if s.state != "live" and s.error:
        parts.append(s.error)
    return ", ".join(parts)


def _sum(s: LiveSourceStatus) -> str:
    parts = [f"{s.name}: {s.frames} frames, {s.restored} restored, {s.bypassed} bypassed"]
    parts += [
        f"{n} {word}"
        for n, word in (
            (s.dropped, _dropped(s)),
            (s.late, "late"),
            (s.failed, "failed"),
            (s.undecodable, "undecodable"),
            (s.reconnects, "reconnects"),
        )
        if n
    ]
    for o in s.outputs:
        lost = f", {o.dropped} packets lost" if o.dropped else ""
        parts.append(f"{o.target} ({o.packets} packets{lost}{f', {o.segments} files' if o.segments else ''})")
    if s.detection is not None:
        parts.append(_looked(s.detection))
    for sink in (s.detection or {}).get("sinks", ()):
        parts.append(f"{sink['name']} ({sink['sent']} records{_lost(sink['dropped'])})")
    if s.ledger is not None:
        parts.append(f"ledger {s.ledger.path} ({s.ledger.lines} lines{_lost(s.ledger.lost)})")
    return ", ".join(parts)


def _dropped(s: LiveSourceStatus) -> str:
    return f"dropped ({s.behind} of them: encoding behind)" if s.behind else "dropped"


def _looked(detection: Mapping[str, Any]) -> str:
    """What the detector did, in a word for each that happened."""
    words = [f"{detection['looked']} frames"]
    for key, word in (("dropped", "not looked at"), ("errors", "failed")):
        if detection[key]:
            words.append(f"{detection[key]} {word}")
    if detection["stuck"]:
        words.append(detection["error"])
    return f"detector ({', '.join(words)})"


def _lost(count: int) -> str:
    return f", {count} lost" if count else ""


def _table(s: LiveStatus) -> Table:
    title = f"{s.model} on {s.device}, load {100 * s.load:.0f} %, {s.memory_mb:.0f} MB, {s.seconds:.0f} s"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for head in ("source", "state", "in", "out", "step", "p50 ms", "p95 ms", "restored", "bypassed", "late", "dropped"):
        table.add_column(head, justify="left" if head in ("source", "state", "step") else "right")
    table.add_column("outputs", overflow="fold")
    for x in s.sources:
        table.add_row(
            x.name,
            x.state if x.state == "live" or not x.error else f"{x.state}: {x.error}",
            f"{x.fps_in:.1f}",
            f"{x.fps_out:.1f}",
            x.step,
            "-" if x.latency_p50_ms is None else f"{x.latency_p50_ms:.0f}",
            "-" if x.latency_p95_ms is None else f"{x.latency_p95_ms:.0f}",
            str(x.restored),
            str(x.bypassed),
            str(x.late),
            str(x.dropped),
            ", ".join(f"{o.target} {o.state}" for o in x.outputs),
        )
    return table
