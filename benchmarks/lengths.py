"""How well networks undo blur of a known length and shape: what a gain on pairs does not tell apart from their look.

    python benchmarks/lengths.py SHARP... [--models MODEL...] [--lengths 4,8,14,22,32] [--response none] [--shapes line]

SHARP: folders of sharp pictures that no model was trained on, folders in them included. Each is smeared in
three directions, with no noise and no compression, the truth being the middle of the exposure. For each length: the
PSNR of the smeared picture, and what each model adds to it (in dB, mean of pictures and directions; and the least).

--shapes: of the motion, one or more: a line at constant speed, as of a camera that pans; slowing, a line that comes to
rest; swing, a line with rests at both ends; arc, a quarter of a circle; hook, a line that goes on across at half speed.
A length is the diagonal of the box around the motion as written here.

--response: of the camera: none averages code values, as GoPro's test set; srgb and gamma average light, as cameras do.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from measure import machine, psnr, table

from streamdeblur.errors import StreamdeblurError
from streamdeblur.evaluation.restorers import load_candidates
from streamdeblur.training.pictures import read_picture
from streamdeblur.training.synthesis import shake
from streamdeblur.training.synthesis.footage import list_pictures
from streamdeblur.training.synthesis.response import RESPONSES, Floats, Picture, Response, to_coded, to_linear

Way = npt.NDArray[np.float64]

ANGLES = (17, 76, 137)  # degrees; none along the rows or columns of the pixels
SHORTEST, LONGEST = 2, 64  # below, interpolation blurs as much as the motion
MARGIN = 108  # pixels around what is compared, which know of the picture's edge: half the longest line, and the small
# network's view; larger networks, and where a long motion ends far from its middle, see a little of the edge, repeated


TIMES = np.linspace(0, 1, 65)
#: Where a point is at TIMES, (x, y), in any unit.
SHAPES: dict[str, tuple[Way, Way]] = {
    "line": (TIMES, 0 * TIMES),
    "slowing": (1 - (1 - TIMES) ** 2, 0 * TIMES),
    "swing": (-np.cos(math.pi * TIMES), 0 * TIMES),
    "arc": (np.sin(math.pi / 2 * TIMES), np.cos(math.pi / 2 * TIMES)),
    "hook": (np.minimum(TIMES, 0.5), np.maximum(TIMES, 0.5) / 2),
}


def smeared(linear: Floats, length: float, degrees: float, response: Response, shape: str = "line") -> Picture:
    """The whole picture, blurred by a motion of a shape: (H, W, 3) uint8; its margins repeat the picture's edge."""
    high, wide = linear.shape[:2]
    x, y = (way - way[len(way) // 2] for way in SHAPES[shape])
    size = length / math.hypot(np.ptp(x), np.ptp(y))
    cos, sin = math.cos(math.radians(degrees)) * size, math.sin(math.radians(degrees)) * size
    moves = np.hstack([np.stack([x * cos - y * sin, x * sin + y * cos], axis=1), np.zeros((len(x), 4))])
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
    motions = [(shape, length) for shape in a.shapes for length in a.lengths]
    blurry: dict[tuple[str, float], list[float]] = {motion: [] for motion in motions}
    gains: dict[tuple[str, float, str], list[float]] = {(*motion, m.name): [] for motion in motions for m in models}
    for path in paths:
        picture = read_picture(path)
        if min(picture.shape[:2]) < 4 * MARGIN:
            raise StreamdeblurError(f"{path} is too small", f"take pictures of {4 * MARGIN} pixels and more a side")
        sharp, linear = tensor(picture)[inside], to_linear(picture, a.response)
        for shape, length in motions:
            for angle in ANGLES:
                image = tensor(smeared(linear, length, angle, a.response, shape))
                before = psnr(image[inside], sharp)
                blurry[shape, length].append(before)
                for model in models:
                    restored = model(image.clone()).clamp(0, 1)
                    gains[shape, length, model.name].append(psnr(restored[inside], sharp) - before)
    rows = []
    for shape, length in motions:
        found = [gains[shape, length, m.name] for m in models]
        cells = [f"{np.mean(g):+.2f} dB (least {min(g):+.2f})" for g in found]
        rows.append([f"{shape}, {length:g} px", f"{np.mean(blurry[shape, length]):.2f} dB", *cells])
    print(" · ".join(f"{k} {v}" for k, v in machine(torch.device("cpu")).items()))
    print(f"{len(paths)} pictures, {len(ANGLES)} directions, response {a.response}")
    print(table(["blur", "blurry", *(f"{m.name}, {m.precision}" for m in models)], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharp", nargs="+", type=Path)
    parser.add_argument("--models", nargs="+", default=["mimo-unet-small"], help="as of streamdeblur evaluate")
    parser.add_argument("--lengths", type=pixels, default="4,8,14,22,32", help=f"{SHORTEST} to {LONGEST} pixels")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["line"])
    parser.add_argument("--response", choices=RESPONSES, default="none")
    a = parser.parse_args()
    try:
        measure(a)
    except StreamdeblurError as e:
        parser.error(str(e))


if __name__ == "__main__":
    main()
