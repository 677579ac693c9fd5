"""A training step: ours against the plain eager float32 one on the same batch; and whether data keeps the device busy.

Needs torch, numpy and safetensors only.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import alternate, peak_memory, picture, ratio, table
from torch import Tensor

from streamdeblur import heap
from streamdeblur.evaluation.benchmark.reference import as_published
from streamdeblur.restore.engines import resolve_device
from streamdeblur.training.batches import augment
from streamdeblur.training.networks import initial_network
from streamdeblur.training.outcome import Progress
from streamdeblur.training.recipe import Data, Optimizer, Recipe, Schedule, StateOptions, Validation
from streamdeblur.training.trainer import Trainer
from streamdeblur.training.validation import Scores


class _Held:
    """Crops of a picture and of its blurred self, held on the device; every step takes others."""

    def __init__(self, data: Data, device: torch.device) -> None:
        self._data = data
        sharp = picture(720, 1280)
        blur = F.avg_pool2d(F.pad(sharp, (7, 7, 0, 0), mode="replicate"), (1, 15), 1)
        both = torch.cat((blur, sharp)).mul(255).round().to(torch.uint8)
        size = data.crop + 64
        rng = np.random.default_rng(0)
        places = [(int(rng.integers(720 - size)), int(rng.integers(1280 - size))) for _ in range(4 * data.batch)]
        self._crops = torch.stack([both[..., y : y + size, x : x + size] for y, x in places]).to(device)

    @property
    def samples(self) -> int:
        return len(self._crops)

    def start(self, step: int) -> Iterator[Tensor]:
        while True:
            first = step * self._data.batch % self.samples
            yield self._crops[first : first + self._data.batch]
            step += 1

    def close(self) -> None:
        pass


class _Waiting:
    """Remembers what share of each stretch of steps the loop waited for data."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def on_progress(self, progress: Progress) -> None:
        self.shares.append(progress.waiting)

    def on_validation(self, step: int, scores: Scores) -> None:
        pass

    def close(self) -> None:
        pass


def _plain_step(recipe: Recipe, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    """As research code trains: eager, float32, contiguous, concatenating AFF, two full transforms a scale, Adam."""
    net = as_published(initial_network(recipe)).to(device).to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def step(blur: Tensor, sharp: Tensor) -> None:
        restored = net(blur)
        small = F.interpolate(sharp, scale_factor=0.5, mode="bilinear")
        tiny = F.interpolate(sharp, scale_factor=0.25, mode="bilinear")
        loss = torch.zeros((), device=device)
        for a, b in zip(restored, (tiny, small, sharp), strict=True):
            spectra = [torch.view_as_real(torch.fft.fft2(t)) for t in (a, b)]
            loss = loss + F.l1_loss(a, b) + 0.1 * F.l1_loss(*spectra)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def training(
    models: list[str], batch: int, crop: int, device_name: str, rounds: int, steps: int = 10
) -> dict[str, Any]:
    """Seconds a step of both ways, images a second, and the share of its time that a run is not waiting for data."""
    device = resolve_device(device_name)
    return {"batch": batch, "crop": crop, "rows": [_one(m, batch, crop, device, rounds, steps) for m in models]}


def _one(model: str, batch: int, crop: int, device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    recipe = Recipe(
        model=model,
        data=Data(shards=("held",), crop=crop, batch=batch, flips="both", rotations=True, sharp_share=0.1),
        optimizer=Optimizer(name="adamw", clip=1.0),
        schedule=Schedule(kind="constant"),
        validation=Validation(every=10**9),
        state=StateOptions(every=10**9),
        steps=10**9,
        compile=True,
    )
    data = _Held(recipe.data, device)
    plain = _plain_step(recipe, device)
    with tempfile.TemporaryDirectory() as folder:
        ours = Trainer(recipe, Path(folder), data, device=device)
        blur, sharp = augment(next(data.start(0)), recipe.data, seed=0, step=0, rank=0, device=device)
        rough, smooth = blur.contiguous(), sharp.contiguous()
        for _ in range(3):  # the compiler's work, and the allocator's
            ours.train_step(blur, sharp)
        ways = {"plain": lambda: plain(rough, smooth), "ours": lambda: ours.train_step(blur, sharp)}
        # Of both ways: what came before, or another network, is no part of it.
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times = alternate(ways, device, rounds, budget=20, around={"plain": heap.as_usual})
        peak = peak_memory(device)
        watcher = _Waiting()
        run = dataclasses.replace(recipe, steps=4 * steps, log_every=steps)
        Trainer(run, Path(folder) / "run", data, observers=[watcher], device=device).train()
    return {
        "model": model,
        "parameters": sum(p.numel() for p in ours.net.parameters()),
        "plain": times["plain"],
        "ours": times["ours"],
        "images_per_second": batch / times["ours"].median,
        "busy": 1 - statistics.fmean(watcher.shares[1:]),  # the first share holds the compiler's time
        "peak_memory": peak,
    }


def show_training(result: dict[str, Any]) -> str:
    rows = [
        [
            r["model"],
            str(r["plain"]),
            str(r["ours"]),
            str(ratio(r["plain"], r["ours"])),
            f"{r['images_per_second']:.1f}",
            f"{r['busy']:.1%}",
            f"{r['peak_memory'] / 2**30:.2f} GiB",
        ]
        for r in result["rows"]
    ]
    heads = ["model", "plain eager fp32 step", "our step", "faster", "images/s", "device busy", "peak memory"]
    about = f"batch {result['batch']}, crop {result['crop']}; ours: compiled, mixed precision, channels_last"
    return f"{about}\n{table(heads, rows)}"
