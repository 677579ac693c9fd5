"""Tiny runs for the tests of training: shards, recipes, and pictures that a network can learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur.training.recipe import Data, Loss, Optimizer, Recipe, Schedule, StateOptions, Validation
from streamdeblur.training.shards import ShardWriter

Picture = npt.NDArray[np.uint8]

TINY = {"width": 4, "blocks": 1}


def pair(seed: int, size: tuple[int, int] = (24, 24)) -> tuple[Picture, Picture]:
    """Blurred and sharp: coloured blocks, and their box blur along a row. The sharp one's first pixel is the seed."""
    rng = np.random.default_rng(seed)
    rows, columns = (-(-n // 4) for n in size)
    sharp = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]
    sharp = np.ascontiguousarray(sharp)
    sharp[0, 0] = seed
    return cv2.blur(sharp, (5, 1)), sharp


def write_shards(folder: Path, counts: tuple[int, ...] = (5, 7, 4), *, size: int = 24, quality: int = 0) -> Path:
    """Shards of so many crops each; the crops are numbered through by the first pixel of their sharp side."""
    number = 0
    with ShardWriter(folder, quality=quality, part_mib=1000) as writer:
        for count in counts:
            for _ in range(count):
                writer.add(*pair(number, (size, size)), f"crop/{number}")
                number += 1
            writer.flush()
    return folder


def write_pairs(folder: Path, count: int = 3, size: tuple[int, int] = (40, 36)) -> Path:
    """A folder of pairs in the plain layout."""
    for number in range(count):
        for side, picture in zip(("blur", "sharp"), pair(100 + number, size), strict=True):
            (folder / side).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / side / f"{number}.png"), picture[..., ::-1])
    return folder


def recipe(shards: Path | None = None, **changes: Any) -> Recipe:
    """A run of a few steps of a tiny network in fp32."""
    values: dict[str, Any] = {
        "model": "mimo-unet-small",
        "architecture": TINY,
        "data": Data(shards=(str(shards),), crop=16, batch=2, flips="both", rotations=True, sharp_share=0.1),
        "loss": Loss(),
        "optimizer": Optimizer(lr=1e-3, ema=0.9),
        "schedule": Schedule(kind="cosine", warmup=2),
        "validation": Validation(every=1000),
        "state": StateOptions(every=1000),
        "steps": 8,
        "precision": "fp32",
        "log_every": 1,
    }
    return Recipe(**(values | changes))


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
