"""Draws docs/synthesis.png: the three ways of blurring, on the street that the demonstration renders.

Run from the repository's root: python docs/make_synthesis.py
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from streamdeblur.jobs.scene import Scene
from streamdeblur.training.pairs import find_pairs, read_pair
from streamdeblur.training.synthesis.make import synthesize
from streamdeblur.training.synthesis.preview import sheet
from streamdeblur.training.synthesis.response import Picture

TARGET = Path(__file__).with_name("synthesis.png")
SIZE = (960, 540)


def write(folder: Path, pictures: Iterable[Picture]) -> Path:
    folder.mkdir()
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{number:04d}.png"), picture[..., ::-1])
    return folder


def main() -> None:
    scene = Scene(SIZE, seed=4)
    moments = {
        "average": [float(Fraction(k, 240)) for k in range(40)],
        "flow": [0.4 + float(Fraction(k, 24)) for k in range(9)],
        "shake": [0.2, 1.1, 2.0],
    }
    clean = {"noise": False, "demosaic": False, "compression": False, "preview": False, "frames": "11-15"}
    shown: list[tuple[str, Picture, Picture]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for method, times in moments.items():
            source = write(Path(scratch) / method, (scene.render(t) for t in times))
            target = Path(scratch) / f"{method}-pairs"
            synthesize(source, target, method=method, count=2, seed=5, response="srgb", length="16-40", **clean)
            told = json.loads((target / "pairs.json").read_text(encoding="utf-8"))["pairs"]
            for pair, entry in zip(find_pairs(target), told, strict=True):
                length = f", {entry['length']:.0f} px" if "length" in entry else f", mean of {entry['frames']} frames"
                shown.append((method + length, *read_pair(pair)))
    picture = sheet(shown)
    cv2.imwrite(str(TARGET), np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()
