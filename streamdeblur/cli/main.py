"""The commands. Each parses, calls one public function of the library, and prints what it returned."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

from streamdeblur.cli import ablation, batch, benchmark, detection, evaluation, export, live, synthesis, training
from streamdeblur.cli.console import Reporter, make_console, make_output, set_up_logging
from streamdeblur.cli.exits import Group, run_and_exit
from streamdeblur.cli.options import common, gather, model_options, spare_stdout
from streamdeblur.config import Interlaced, ProcessOptions
from streamdeblur.errors import UsageError
from streamdeblur.version import __version__

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=Group, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="streamdeblur")
def cli() -> None:
    """Restore blurry footage with MIMO-UNet; sound, subtitles, timestamps and colour stay as they were."""


@cli.command()
@click.argument("source")
@click.option("-o", "--output", help="Output file or folder. Default: NAME.deblurred.EXT beside the source.")
@click.option("-c", "--config", help="YAML file with these options; the command line wins.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON on stdout.")
@model_options(ProcessOptions)
@common
def process(
    source: str, output: str | None, config: str | None, as_json: bool, quiet: bool, debug: bool, **given: Any
) -> None:
    """Restore one video, one image, or a folder of images."""
    console = _begin(debug)
    options = gather(ProcessOptions, config, given)
    for word, name in ((source, "SOURCE"), (output, "-o")):
        if word is not None and not word.strip():
            raise UsageError(f"{name} is an empty name", "name a file or a folder")
    spare_stdout(as_json, [options.detections])
    from streamdeblur.jobs.images import is_image_job, process_images
    from streamdeblur.jobs.process import process_video

    with Reporter(console, quiet=quiet) as reporter:
        if is_image_job(source, output):
            summary = process_images(source, output, options=options, progress=reporter.update)
        else:
            summary = process_video(source, output, options=options, progress=reporter.update)
    if as_json:
        print(json.dumps(summary.as_dict(), indent=2))
    elif not quiet:
        extra = f", {summary.bypassed} bypassed" if summary.bypassed else ""
        extra += f"; {summary.tiles.words}" if summary.tiles is not None and summary.tiles.words else ""
        console.print(
            f"{summary.output}: {summary.frames} frames ({summary.restored} restored{extra}) by {summary.model} on "
            f"{summary.device} in {summary.seconds:.1f} s, {summary.fps:.1f} fps, {summary.encoder}",
        )


@cli.command()
@click.argument("source")
@click.argument("output")
@click.option("--stream", type=int, default=0, help="Which video stream was restored.")
@click.option("--start", type=float, default=None, help="As it was given to process.")
@click.option("--duration", type=float, default=None, help="As it was given to process.")
@click.option(
    "--interlaced",
    type=click.Choice(["auto", "progressive", "tff", "bff"]),
    default="auto",
    show_default=True,
    help="As it was given to process.",
)
@click.option("--deinterlace", is_flag=True, help="As it was given to process.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@common
def verify(
    source: str,
    output: str,
    stream: int,
    start: float | None,
    duration: float | None,
    interlaced: Interlaced,
    deinterlace: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Compare SOURCE with the OUTPUT made from it; exit 1 with what differs."""
    _begin(debug)
    from streamdeblur.jobs.verify import verify as run

    report = run(
        source,
        output,
        stream=stream,
        start=start,
        duration=duration,
        interlaced=interlaced,
        deinterlace=deinterlace,
    )
    if as_json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        for line in report.differences:
            print(f"differs: {line}")
        if not quiet:
            for line in report.notes:
                print(f"note: {line}")
        if report.same:
            print(f"{output} keeps what {source} has: {report.frames} frames, {report.streams} streams")
    if not report.same:
        raise SystemExit(1)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON on stdout.")
@common
def models(as_json: bool, quiet: bool, debug: bool) -> None:
    """List the variants: parameters, work, receptive field, weights found.

    NAME:4 and NAME:8 are a network averaged over 4 flips, or over these and their transposes: better, and as many times
    the work.
    """
    _begin(debug)
    from streamdeblur.models.analysis import describe

    rows = describe()
    if as_json:
        print(json.dumps([{k: str(v) if isinstance(v, Path) else v for k, v in r.items()} for r in rows], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for head, side in (
        ("model", "left"),
        ("parameters", "right"),
        ("GFLOP at 720p", "right"),
        ("receptive field", "right"),
        ("weights", "left"),
        ("what it is", "left"),
    ):
        table.add_column(head, justify="right" if side == "right" else "left", overflow="fold")
    for r in rows:
        score = f" ({r['score']})" if r.get("score") else ""
        table.add_row(
            str(r["name"]),
            f"{r['parameters'] / 1e6:.2f} M" if r["parameters"] else "-",
            f"{r['gflop_720p']:,.0f}" if r["gflop_720p"] else "-",
            f"{r['receptive_field']} px",
            f"{r['weights']}{score}" if r["weights"] else "not needed" if not r["parameters"] else "none",
            str(r["summary"]),
        )
    make_output(160).print(table)


@cli.group()
def weights() -> None:
    """Checkpoints: import the authors' ones, average and deepen ours, look into them."""


@weights.command("import")
@click.argument("source")
@click.option("-o", "--output", required=True, help="Checkpoint to write (.safetensors).")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@common
def weights_import(source: str, output: str, overwrite: bool, quiet: bool, debug: bool) -> None:
    """Convert MIMO-UNet.pkl or MIMO-UNetPlus.pkl of the authors to a checkpoint of ours."""
    console = _begin(debug)
    from streamdeblur.models.authors import authors_metadata, import_authors
    from streamdeblur.models.checkpoint import save_checkpoint

    _check_checkpoint_output(output, [source], overwrite=overwrite)
    state, variant = import_authors(source)
    save_checkpoint(output, state, authors_metadata(variant))
    if not quiet:
        count = sum(t.numel() for t in state.values())
        console.print(f"{output}: {variant}, {count / 1e6:.2f} M parameters")


def _check_checkpoint_output(output: str, sources: Sequence[str], *, overwrite: bool) -> None:
    from streamdeblur.errors import OutputError

    if not output.lower().endswith(".safetensors"):
        raise UsageError(f"output {output} of a checkpoint does not end in .safetensors", "name it so with -o")
    if os.path.exists(output):
        if any(os.path.exists(source) and os.path.samefile(source, output) for source in sources):
            raise UsageError(f"output {output} is the source itself", "choose another output with -o")
        if not overwrite:
            raise OutputError(f"{output} exists", "--overwrite replaces it")
    folder = os.path.dirname(output) or "."
    if not os.path.isdir(folder):
        raise OutputError(
            f"{output} can't be written: there is no folder {folder}", "make it, or write elsewhere with -o"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{output} can't be written: folder {folder} is not writable", "write elsewhere with -o")


@weights.command("average")
@click.argument("files", nargs=-1, required=True)
@click.option("-o", "--output", required=True, help="Checkpoint to write (.safetensors).")
@click.option("--shares", help="One number for each file, for example 3,1. Default: equal.")
@click.option("--data", multiple=True, help="Pairs to validate it on; may be repeated. Without, it is a preview.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@common
def weights_average(
    files: tuple[str, ...],
    output: str,
    shares: str | None,
    data: tuple[str, ...],
    overwrite: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """The mean of checkpoints that come from one another.

    A fine-tuned network forgets a part of what it knew; its mean with the one it came from keeps most of both. Weights
    are written in bf16, as training writes them.
    """
    console = _begin(debug)
    try:
        parts = None if shares is None else [float(part) for part in shares.split(",")]
    except ValueError:
        raise UsageError(f"shares {shares!r} are no numbers", "give one for each file, for example 3,1") from None
    _check_checkpoint_output(output, files, overwrite=overwrite)
    from streamdeblur.models.checkpoint import save_checkpoint
    from streamdeblur.training.averaging import average

    state, metadata = average(files, parts, data)
    save_checkpoint(output, state, metadata)
    if not quiet:
        said = metadata.score_note or "never validated"
        console.print(f"{output}: {metadata.variant}, the mean of {len(files)}; {said}")


@weights.command("deepen")
@click.argument("file")
@click.option("-o", "--output", required=True, help="Checkpoint to write (.safetensors).")
@click.option(
    "--blocks", type=click.IntRange(1, 100), required=True, help="Residual blocks in every stage, more than there are."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the new blocks' random weights."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@common
def weights_deepen(file: str, output: str, blocks: int, seed: int, overwrite: bool, quiet: bool, debug: bool) -> None:
    """A deeper network that computes the same, to go on training from.

    train with start=OUTPUT, for the variant of that depth or with architecture.blocks set.
    """
    console = _begin(debug)
    _check_checkpoint_output(output, [file], overwrite=overwrite)
    from streamdeblur.models.checkpoint import save_checkpoint
    from streamdeblur.models.depth import deepen_checkpoint

    state, metadata = deepen_checkpoint(file, blocks, seed)
    save_checkpoint(output, state, metadata)
    if not quiet:
        _say_network(console, output, metadata.variant, sum(t.numel() for t in state.values()))


@weights.command("shorten")
@click.argument("file")
@click.option("-o", "--output", required=True, help="Checkpoint to write (.safetensors).")
@click.option(
    "--keep", required=True, metavar="N,N,...", help="Residual blocks of every stage to keep, from 1 on: 1,6."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@common
def weights_shorten(file: str, output: str, keep: str, overwrite: bool, quiet: bool, debug: bool) -> None:
    """A shallower network with some of the residual blocks, to go on training from.

    It is faster and knows less; with loss.teacher it soon learns what it can hold of what FILE knows.
    """
    console = _begin(debug)
    try:
        kept = [int(number) for number in keep.split(",")]
    except ValueError as e:
        raise UsageError(f"--keep {keep} is no list of numbers", "give as 1,6") from e
    _check_checkpoint_output(output, [file], overwrite=overwrite)
    from streamdeblur.models.checkpoint import save_checkpoint
    from streamdeblur.models.depth import shorten_checkpoint

    state, metadata = shorten_checkpoint(file, kept)
    save_checkpoint(output, state, metadata)
    if not quiet:
        _say_network(console, output, metadata.variant, sum(t.numel() for t in state.values()))


def _say_network(console: Console, output: str, variant: str, parameters: int) -> None:
    console.print(f"{output}: {variant}, {parameters / 1e6:.2f} M parameters")


@weights.command("show")
@click.argument("file")
@common
def weights_show(file: str, quiet: bool, debug: bool) -> None:
    """Print a checkpoint's metadata as JSON."""
    _begin(debug)
    from dataclasses import asdict

    from streamdeblur.models.checkpoint import read_metadata

    print(json.dumps(asdict(read_metadata(file)), indent=2, default=str))


@cli.command()
@click.option("-o", "--output", default="demo", show_default=True, help="Folder for everything it makes.")
@click.option("-m", "--model", default=None, help="Default: the best that ships, else identity.")
@click.option("-w", "--weights", default=None, help="Checkpoint.")
@click.option("--size", default="640x360", show_default=True, help="WIDTHxHEIGHT, even.")
@click.option("--seconds", type=float, default=2.5, show_default=True, help="Length of the clip.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, another street.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@common
def demo(
    output: str,
    model: str | None,
    weights: str | None,
    size: str,
    seconds: float,
    seed: int,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Render a blurry clip with sound, restore it, and measure against the sharp truth."""
    console = _begin(debug)
    from streamdeblur.jobs.demo import DemoOptions, run_demo

    width, _, height = size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"size {size!r} is not WIDTHxHEIGHT", "for example 640x360")
    options = DemoOptions(
        Path(output), size=(int(width), int(height)), seconds=seconds, seed=seed, model=model, weights=weights
    )
    with Reporter(console, quiet=quiet, unit="steps") as reporter:
        report = run_demo(options, reporter.step)
    if as_json:
        print(Path(report.summary).read_text(encoding="utf-8"))
        return
    if report.note and not quiet:
        console.print(f"note: {report.note}")
    print(f"{report.frames} frames by {report.model} at {report.fps:.1f} fps")
    print(f"PSNR against the sharp truth: blurry {report.psnr_blurry:.2f} dB, restored {report.psnr_restored:.2f} dB")
    for path in (report.blurry, report.restored, report.sharp, report.picture, report.summary):
        print(path)


def _begin(debug: bool) -> Any:
    console = make_console()
    set_up_logging(console, debug=debug)
    return console


for command in (
    ablation.ablate,
    batch.batch,
    benchmark.benchmark,
    benchmark.tune,
    detection.detect_eval,
    evaluation.evaluate,
    export.export,
    live.live,
    synthesis.synthesize,
    training.prepare,
    training.train,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and end the process (``exits``)."""
    given = sys.argv[1:] if arguments is None else arguments
    run_and_exit(
        lambda: cli.main(args=given, prog_name="streamdeblur", standalone_mode=False), debug="--debug" in given
    )
