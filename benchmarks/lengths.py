"""How well networks undo blur of a known length: what a gain on a set of pairs does not tell apart from its look.

    python benchmarks/lengths.py SHARP... [--models MODEL...] [--lengths 4,8,14,22,32] [--response none]

SHARP: folders of sharp pictures that no model was trained on, folders in them included. Each is smeared along a line at
constant speed, in three directions, as a panning camera would, with no noise and no compression. For each length: the
PSNR of the smeared picture, and what each model adds to it (in dB, mean of pictures and directions; and the least).

--response: of the camera: none averages code values, as GoPro's test set; srgb and gamma average light, as cameras do.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from measure import machine, psnr, table

from streamdeblur.errors import StreamdeblurError
from streamdeblur.evaluation.restorers import load_candidates
from streamdeblur.training.pictures import read_picture
from streamdeblur.training.synthesis import shake
from streamdeblur.training.synthesis.footage import list_pictures
from streamdeblur.training.synthesis.response import RESPONSES, Floats, Picture, Response, to_coded, to_linear

ANGLES = (17, 76, 137)  # degrees; none along the rows or columns of the pixels
SHORTEST, LONGEST = 2, 64  # below, interpolation blurs as much as the motion
MARGIN = 108  # pixels around what is compared, which know of the picture's edge: half the longest blur, and the small
# network's view; larger networks see a little of the edge, repeated, at the rim


def smeared(linear: Floats, length: float, degrees: float, response: Response) -> Picture:
    """The whole picture, blurred along a line: (H, W, 3) uint8; its margins repeat the picture's edge."""
    high, wide = linear.shape[:2]
    way = np.linspace(-0.5, 0.5, 65)[:, None] * length
    angle = math.radians(degrees)
    moves = np.hstack([way * math.cos(angle), way * math.sin(angle), np.zeros((65, 4))])
    path = shake.Trajectory(moves, ((wide - 1) / 2, (high - 1) / 2))
    return to_coded(shake.expose(linear, (0, 0), (0, 0, wide, high), path)[0], response)


def tensor(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def pixels(text: str) -> list[float]:
    try:
        found = [float(x) for x in text.split(",")]
    except ValueError:
        found = [math.nan]
    if not all(SHORTEST <= x <= LONGEST for x in found):
        raise argparse.ArgumentTypeError(f"{text}: give pixels from {SHORTEST} to {LONGEST}, for example 4,14,32")
    return found


def measure(a: argparse.Namespace) -> None:
    paths = [path for folder in a.sharp for path in list_pictures(folder)]
    models = load_candidates(a.models, device="cpu")
    inside = np.s_[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    blurry: dict[float, list[float]] = {length: [] for length in a.lengths}
    gains: dict[tuple[float, str], list[float]] = {(length, m.name): [] for length in a.lengths for m in models}
    for path in paths:
        picture = read_picture(path)
        if min(picture.shape[:2]) < 4 * MARGIN:
            raise StreamdeblurError(f"{path} is too small", f"take pictures of {4 * MARGIN} pixels and more a side")
        sharp, linear = tensor(picture)[inside], to_linear(picture, a.response)
        for length in a.lengths:
            for angle in ANGLES:
                image = tensor(smeared(linear, length, angle, a.response))
                before = psnr(image[inside], sharp)
                blurry[length].append(before)
                for model in models:
                    restored = model(image.clone()).clamp(0, 1)
                    gains[length, model.name].append(psnr(restored[inside], sharp) - before)
    rows = []
    for length in a.lengths:
        found = [gains[length, m.name] for m in models]
        cells = [f"{np.mean(g):+.2f} dB (least {min(g):+.2f})" for g in found]
        rows.append([f"{length:g} px", f"{np.mean(blurry[length]):.2f} dB", *cells])
    print(" · ".join(f"{k} {v}" for k, v in machine(torch.device("cpu")).items()))
    print(f"{len(paths)} pictures, {len(ANGLES)} directions, response {a.response}")
    print(table(["blur", "blurry", *(f"{m.name}, {m.precision}" for m in models)], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharp", nargs="+", type=Path)
    parser.add_argument("--models", nargs="+", default=["mimo-unet-small"], help="as of streamdeblur evaluate")
    parser.add_argument("--lengths", type=pixels, default="4,8,14,22,32", help=f"{SHORTEST} to {LONGEST} pixels")
    parser.add_argument("--response", choices=RESPONSES, default="none")
    a = parser.parse_args()
    try:
        measure(a)
    except StreamdeblurError as e:
        parser.error(str(e))


if __name__ == "__main__":
    main()
