"""``streamdeblur export``: a network as a file of another program."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

import click

from streamdeblur.cli.console import make_console, set_up_logging
from streamdeblur.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

#: Side of the crops that int8 is calibrated on, pixels.
_CROP = 256


@click.command()
@click.option("-o", "--output", required=True, help="File to write: .onnx, .pt2 or .xml (with .bin beside it).")
@click.option(
    "--format",
    "kind",
    required=True,
    type=click.Choice(["onnx", "torch", "openvino"]),
    help="ONNX, torch.export or OpenVINO IR.",
)
@click.option("-m", "--model", default=None, help="Variant: see `streamdeblur models`. Default: the best that ships.")
@click.option("-w", "--weights", default=None, help="Checkpoint (.safetensors, or the authors' .pkl), or random:SEED.")
@click.option("--size", default="dynamic", show_default=True, help="WIDTHxHEIGHT of the only input, or dynamic.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Weights and arithmetic.",
)
@click.option("--int8", is_flag=True, help="Quantise (openvino only), calibrated on --calibrate.")
@click.option("--calibrate", metavar="PAIRS", default=None, help="Folder of pairs; their blurry pictures are used.")
@click.option("--pictures", type=click.IntRange(1, 10_000), help="To calibrate on. Default: 64.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON on stdout.")
@click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")
@click.option("-q", "--quiet", is_flag=True, help="No summary; warnings are still told.")
def export(
    output: str,
    kind: Literal["onnx", "torch", "openvino"],
    model: str | None,
    weights: str | None,
    size: str,
    precision: str,
    int8: bool,
    calibrate: str | None,
    pictures: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Write a network for other programs: images in, restored images out; checked against eager mode."""
    console = make_console()
    set_up_logging(console, debug=debug)
    shape = _size(size)
    if calibrate is not None and not int8:
        raise UsageError("--calibrate is for --int8", "give both or neither")
    if pictures is not None and calibrate is None:
        raise UsageError("--pictures is for --calibrate", "give both or neither")
    if int8 and precision != "fp32":
        raise UsageError(f"--int8 and --precision {precision} exclude each other", "leave one out")
    from streamdeblur.jobs.export import export_network

    made = export_network(
        output,
        kind,
        model=model,
        weights=weights,
        size=shape,
        precision="int8" if int8 else precision,
        calibration=None if calibrate is None else _crops(calibrate, pictures or 64),
        overwrite=overwrite,
    )
    if as_json:
        print(json.dumps(asdict(made), indent=2))
    elif not quiet:
        console.print(
            f"{made.output}: {made.model} in {made.precision}, {made.bytes / 1e6:.1f} MB; largest difference from "
            f"eager fp32 {made.difference:.2g}, root mean square {made.error:.2g} of {made.allowed:.2g} allowed",
        )


def _size(text: str) -> tuple[int, int] | None:
    if text == "dynamic":
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UsageError(f"size {text!r} is neither WIDTHxHEIGHT nor dynamic", "for example 1280x720")
    return int(width), int(height)


def _crops(folder: str, count: int) -> list[Tensor]:
    """The middles of blurry pictures, evenly over the set, as (1, 3, H, W) float32 in [0, 1]."""
    import torch

    from streamdeblur.errors import InputError
    from streamdeblur.training.pairs import find_pairs, read_pair

    try:
        pairs = find_pairs(folder, split="train")
    except InputError:
        pairs = []
    pairs = pairs or find_pairs(folder, split="test")
    chosen = [pairs[i * len(pairs) // min(count, len(pairs))] for i in range(min(count, len(pairs)))]
    found = []
    for pair in chosen:
        blur = torch.from_numpy(read_pair(pair)[0]).permute(2, 0, 1)[None].float() / 255
        high, wide = (min(side, _CROP) // 4 * 4 for side in blur.shape[-2:])
        if not (high and wide):
            raise UsageError(f"{pair.blur} is smaller than 4x4", "calibrate on larger pictures")
        top, left = (blur.shape[-2] - high) // 2, (blur.shape[-1] - wide) // 2
        found.append(blur[..., top : top + high, left : left + wide].contiguous())
    return found
