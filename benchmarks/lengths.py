"""How well networks undo blur of a known length: what a gain on a set of pairs does not tell apart from its look.

    python benchmarks/lengths.py SHARP... [--models MODEL...] [--lengths 4,8,14,22,32] [--response none]

SHARP: folders of sharp pictures that no model was trained on. Each is smeared along a line at constant speed, in three
directions, as a panning camera would, with no noise and no compression. For each length: the PSNR of the smeared
picture, and what each model adds to it (in dB, mean of pictures and directions; and the least of them).

--response: of the camera: none averages code values, as GoPro's pairs do; srgb averages light, as cameras do.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from measure import machine, psnr, table

from streamdeblur.evaluation.restorers import load_candidates
from streamdeblur.training.pictures import read_picture
from streamdeblur.training.synthesis import shake
from streamdeblur.training.synthesis.footage import list_pictures
from streamdeblur.training.synthesis.response import RESPONSES, Floats, Picture, Response, to_coded, to_linear

ANGLES = (17, 76, 137)  # degrees; none along the rows or columns of the pixels
MARGIN = 80  # pixels around what is compared: longer than any blur, and what the network sees beyond
LONGEST = 64


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharp", nargs="+", type=Path)
    parser.add_argument("--models", nargs="+", default=["mimo-unet-small"], help="as of streamdeblur evaluate")
    parser.add_argument("--lengths", default="4,8,14,22,32", help=f"pixels, at most {LONGEST}")
    parser.add_argument("--response", choices=RESPONSES, default="none")
    a = parser.parse_args()
    lengths = [float(x) for x in a.lengths.split(",")]
    if not all(0 < length <= LONGEST for length in lengths):
        parser.error(f"--lengths {a.lengths}: give pixels above 0 and up to {LONGEST}")
    pictures = [read_picture(path) for folder in a.sharp for path in list_pictures(folder)]
    small = [p.shape[:2] for p in pictures if min(p.shape[:2]) < 4 * MARGIN]
    if small:
        parser.error(f"a picture of {small[0][1]}x{small[0][0]} is too small: take {4 * MARGIN} pixels or more")
    models = load_candidates(a.models)
    inside = np.s_[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    rows = []
    for length in lengths:
        blurry: list[float] = []
        gains: dict[str, list[float]] = {m.name: [] for m in models}
        for picture in pictures:
            sharp, linear = tensor(picture)[inside], to_linear(picture, a.response)
            for angle in ANGLES:
                image = tensor(smeared(linear, length, angle, a.response))
                blurry.append(psnr(image[inside], sharp))
                for model in models:
                    restored = model(image).clamp(0, 1)
                    gains[model.name].append(psnr(restored[inside], sharp) - blurry[-1])
        cells = [f"{np.mean(g):+.2f} dB (least {min(g):+.2f})" for g in gains.values()]
        rows.append([f"{length:g} px", f"{np.mean(blurry):.2f} dB", *cells])
    print(machine(torch.device("cpu")), f"{len(pictures)} pictures, {len(ANGLES)} directions", sep="\n")
    print(table(["blur", "blurry", *(m.name for m in models)], rows))


if __name__ == "__main__":
    main()
