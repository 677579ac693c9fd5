"""Is a seam to be seen? Makes docs/tiling_difference.png: python benchmarks/tiling_picture.py [--model M --weights W]

A frame of the project's own scene, blurred by its shutter, is restored with ``fast`` tiles and whole, both in float32.
The picture shows the frame, the result, and the two results' difference as it is and amplified; ticks on the rim mark
where windows meet. Printed beside: the differences, and how much of them lies along the seams. With --sweep no picture
is made, and the differences are printed for several tiles and overlaps.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from measure import machine, table

from streamdeblur.jobs.scene import Scene
from streamdeblur.models.registry import default_variant
from streamdeblur.restore import Restorer, Tiling
from streamdeblur.restore.engines import resolve_device
from streamdeblur.restore.tiles import TilePlan

TARGET = Path(__file__).parents[1] / "docs" / "tiling_difference.png"
#: (tile, overlap) of --sweep.
CHOICES = [(512, 128), (512, 64), (512, 32), (256, 128), (256, 64), (256, 32), (256, 16), (128, 32)]
LABEL = 34
RIM = 12
GAP = 6


def restored(frame: Any, model: str, weights: str | None, device: str, tiling: Tiling) -> Any:
    """(H, W, 3) float32 in 1/255, unclamped, of an (H, W, 3) uint8 frame."""
    x = torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
    restorer = Restorer(model, weights=weights, device=device, precision="fp32", tiling=tiling)
    return (restorer(x)[0].permute(1, 2, 0) * 255).numpy()


def amplification(largest: float) -> int:
    """The power of two that brings the largest difference to between a quarter and a half of the scale."""
    return 2 ** max(0, math.floor(math.log2(127 / largest))) if largest > 0 else 1


def as_picture(difference: Any, factor: int) -> Any:
    """No difference is mid-grey."""
    return np.clip(np.rint(128 + difference * factor), 0, 255).astype(np.uint8)


def seams(plan: TilePlan, axis: int) -> list[int]:
    """Middles of what neighbouring windows share, in pixels."""
    spans = plan.rows if axis == 0 else plan.columns
    length = plan.window[axis]
    return [(left.origin + length + right.origin) // 2 for left, right in pairwise(spans)]


def panel(picture: Any, words: str, plan: TilePlan) -> Any:
    """A picture with a line of text over it and, on a rim around it, ticks where seams would be."""
    height, width = picture.shape[:2]
    sheet = np.full((LABEL + height + 2 * RIM, width + 2 * RIM, 3), 24, np.uint8)
    sheet[LABEL + RIM : LABEL + RIM + height, RIM : RIM + width] = picture
    for axis, last in ((0, width + RIM), (1, LABEL + height + RIM)):
        for at in seams(plan, axis):
            for begin in (0 if axis == 0 else LABEL, last):
                across, along = slice(begin, begin + RIM), slice(at + RIM - 1, at + RIM + 2)
                if axis == 0:
                    sheet[LABEL:][along, across] = (255, 200, 60)
                else:
                    sheet[across, along] = (255, 200, 60)
    cv2.putText(sheet, words, (RIM, LABEL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.62, (240, 240, 240), 1, cv2.LINE_AA)
    return sheet


def along_seams(difference: Any, plan: TilePlan, reach: int = 8) -> tuple[float, float]:
    """Mean absolute difference within ``reach`` pixels of a seam, and elsewhere."""
    near = np.zeros(difference.shape[:2], bool)
    for at in seams(plan, 0):
        near[at - reach : at + reach] = True
    for at in seams(plan, 1):
        near[:, at - reach : at + reach] = True
    size = np.abs(difference).mean(axis=2)
    return float(size[near].mean()), float(size[~near].mean())


def sweep(frame: Any, model: str, weights: str | None, device: str) -> str:
    """A table of the differences from the whole frame, by tile and overlap."""
    whole = restored(frame, model, weights, device, Tiling("whole"))
    rows = []
    for tile, overlap in CHOICES:
        plan = Tiling("fast", tile, overlap).plan(frame.shape[0], frame.shape[1], 0)
        if plan.count > 1:
            result = restored(frame, model, weights, device, Tiling("fast", tile, overlap))
            size = np.abs(result - whole)
            codes = np.rint(np.clip(result, 0, 255)) != np.rint(np.clip(whole, 0, 255))
            extra = plan.count * plan.area / (frame.shape[0] * frame.shape[1])
            figures = (f"{extra:.2f}x", f"{size.max():.2g}", f"{size.mean():.2g}", f"{codes.mean():.2%}")
            rows.append((str(tile), str(overlap), str(plan.count), *figures))
    heads = ("tile", "overlap", "windows", "pixels computed", "largest, 1/255", "mean, 1/255", "8-bit values changed")
    return table(heads, rows)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the best that ships, else mimo-unet with random weights")
    parser.add_argument("--weights", help="checkpoint, or random:SEED")
    parser.add_argument("--size", default="960x540", help="WIDTHxHEIGHT of the frame")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sweep", action="store_true", help="print the differences of several tiles and overlaps")
    parser.add_argument("-o", "--output", type=Path, default=TARGET)
    o = parser.parse_args()
    best = default_variant()
    model = o.model or (best.name if best else "mimo-unet")
    weights = o.weights or (None if best else "random:0")
    width, height = (int(side) for side in o.size.split("x"))

    frame = Scene((width, height)).expose(1.0, 1 / 40, 11).blurry
    what = f"{model}, {weights or 'shipped weights'}"
    print(" · ".join(f"{k} {v}" for k, v in machine(resolve_device(o.device)).items()))
    if o.sweep:
        print(f"{what}, float32, {width}x{height}\n{sweep(frame, model, weights, o.device)}")
        return
    whole = restored(frame, model, weights, o.device, Tiling("whole"))
    fast = Tiling("fast", o.tile, o.overlap)
    result = restored(frame, model, weights, o.device, fast)
    radius = Restorer(model, weights=weights, device="cpu").engine.receptive_radius
    plan = fast.plan(height, width, radius)
    difference = result - whole
    largest, mean = float(np.abs(difference).max()), float(np.abs(difference).mean())
    factor = amplification(largest)
    near, far = along_seams(difference, plan)

    columns = [
        panel(frame, f"frame, {width}x{height}", plan),
        panel(np.clip(np.rint(result), 0, 255).astype(np.uint8), f"fast {o.tile}/{o.overlap}: {what}", plan),
        panel(as_picture(difference, 1), "fast - whole, 1x, grey is 0", plan),
        panel(as_picture(difference, factor), f"fast - whole, {factor}x; largest {largest:.2g}/255", plan),
    ]
    column = np.full((columns[0].shape[0], GAP, 3), 255, np.uint8)
    top, bottom = (np.hstack((columns[i], column, columns[i + 1])) for i in (0, 2))
    sheet = np.vstack((top, np.full((GAP, top.shape[1], 3), 255, np.uint8), bottom))
    ok, data = cv2.imencode(".png", sheet[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not ok:
        raise SystemExit("the picture can't be encoded as PNG")
    o.output.write_bytes(data.tobytes())

    codes = np.rint(np.clip(result, 0, 255)) != np.rint(np.clip(whole, 0, 255))
    print(f"{what}, float32, receptive radius {radius} px, {width}x{height} in {plan.count} windows of {plan.window}")
    print(f"difference fast - whole in 1/255: largest {largest:.3g}, mean {mean:.3g}")
    print(f"mean within 8 px of a seam {near:.3g}, elsewhere {far:.3g}")
    print(f"8-bit values that differ: {codes.mean():.3%}")
    print(f"{o.output}: amplified {factor}x")


if __name__ == "__main__":
    main()
