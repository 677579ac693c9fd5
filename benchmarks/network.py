"""The network alone: the usual loop of research code against ``Restorer``, and ways of tiling.

Needs torch, numpy and safetensors only. Run as a script it is the child that measures the memory of one tiling.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from measure import alternate, in_subprocess, peak_memory, picture, psnr, ratio, synchronise, table
from torch import Tensor, nn

from streamdeblur.models import MIMOUNet, build
from streamdeblur.models.mimo_unet import AFF
from streamdeblur.restore import Engine, Restorer, Tiling
from streamdeblur.restore.engine import resolve_device
from streamdeblur.restore.tiles import GRID, round_up

WEIGHTS = "random:0"


class PlainAFF(nn.Module):
    """AFF as the paper draws it (Fig. 4c) and research code runs it: resize all, concatenate, convolve."""

    def __init__(self, ours: AFF) -> None:
        super().__init__()
        self.level, self.mix, self.conv = ours.level, ours.mix, ours.conv

    def forward(self, *encoded: Tensor) -> Tensor:
        resized = [
            F.interpolate(features, scale_factor=2.0 ** (level - self.level))
            for level, features in enumerate(encoded, start=1)
        ]
        return cast(Tensor, self.conv(F.relu(self.mix(torch.cat(resized, 1)))))


def reference(model: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The loop of research code: eager, float32, contiguous, whole frame, all three heads, one image at a time.

    On CUDA with what PyTorch then does by default: convolutions in TF32, cuDNN's heuristics.
    """
    net = build(model, WEIGHTS)
    assert isinstance(net, MIMOUNet)
    for name in ("aff1", "aff2"):
        setattr(net, name, PlainAFF(getattr(net, name)))
    net = net.to(device)

    def run(image: Tensor) -> Tensor:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            return cast(Tensor, net(image.to(device))[-1])

    return run


def network(models: list[str], sizes: list[tuple[int, int]], device_name: str, rounds: int) -> dict[str, Any]:
    """Seconds a frame of both ways on one random-weight network, and the PSNR between their results."""
    device = resolve_device(device_name)
    rows = []
    for model in models:
        slow = reference(model, device)
        fast = Restorer(model, weights=WEIGHTS, device=device_name)
        for width, height in sizes:
            image = picture(height, width).to(device)
            results: dict[str, Tensor] = {}
            ways = {name: _keep(results, name, way, image) for name, way in (("reference", slow), ("restorer", fast))}
            times = alternate(ways, device, rounds, budget=6)
            engine = fast.engine
            rows.append(
                {
                    "model": model,
                    "size": f"{width}x{height}",
                    "reference": times["reference"],
                    "restorer": times["restorer"],
                    "faster": ratio(times["reference"], times["restorer"]),
                    "psnr_between": psnr(results["reference"], results["restorer"]),
                    "precision": str(getattr(engine, "dtype", "")).removeprefix("torch."),
                    "tiling": words(fast.plan(height, width)),
                }
            )
    return {"weights": WEIGHTS, "reference": "eager, float32, contiguous, whole frame, three heads", "rows": rows}


def _keep(results: dict[str, Tensor], name: str, way: Callable[[Tensor], Tensor], image: Tensor) -> Callable[[], None]:
    def run() -> None:
        results[name] = way(image)

    return run


def show_network(result: dict[str, Any]) -> str:
    heads = ("model", "size", "research loop", "Restorer", "faster", "PSNR between", "precision, tiling", "rounds")
    return table(
        heads,
        [
            (
                r["model"],
                r["size"],
                str(r["reference"]),
                str(r["restorer"]),
                r["faster"],
                f"{r['psnr_between']:.1f} dB",
                f"{r['precision']}, {r['tiling']}",
                str(r["restorer"].rounds),
            )
            for r in result["rows"]
        ],
    )


def words(t: Tiling) -> str:
    """A tiling in words."""
    if t.mode == "whole":
        return "whole"
    return f"exact {t.tile}" if t.mode == "exact" else f"fast {t.tile}/{t.overlap}"


def tilings(size: tuple[int, int], radius: int, choices: list[tuple[int, int]]) -> list[Tiling]:
    """Whole, exact with the cheapest tile that really cuts the frame, and fast with each (tile, overlap)."""
    width, height = size
    found = [Tiling("whole")]
    shared = 2 * round_up(radius)
    exact = [
        tiling
        for tiling in (Tiling("exact", tile, 0) for tile in range(shared + GRID, max(size), GRID))
        if tiling.plan(height, width, radius).count > 1
    ]
    if exact:
        found.append(min(exact, key=lambda t: t.plan(height, width, radius).count * t.plan(height, width, radius).area))
    fast = (Tiling("fast", tile, overlap) for tile, overlap in choices)
    return found + [tiling for tiling in fast if tiling.plan(height, width, radius).count > 1]


def tiling(
    models: list[str], size: tuple[int, int], choices: list[tuple[int, int]], device_name: str, rounds: int
) -> dict[str, Any]:
    """Time and memory in the precision that ``auto`` takes; differences from the whole frame in float32 and in that."""
    device = resolve_device(device_name)
    width, height = size
    image = picture(height, width).to(device)
    rows = []
    for model in models:
        auto = Restorer(model, weights=WEIGHTS, device=device_name).engine
        exactly = Restorer(model, weights=WEIGHTS, device=device_name, precision="fp32").engine
        dtype = getattr(auto, "dtype", torch.float32)
        found = tilings(size, auto.receptive_radius, choices)
        times = alternate({words(t): _call(auto, t, image) for t in found}, device, rounds, budget=4)
        whole = {e: _call(e, found[0], image)() for e in (exactly, auto)}
        for t in found:
            plan = t.plan(height, width, auto.receptive_radius)
            row: dict[str, Any] = {
                "model": model,
                "radius": auto.receptive_radius,
                "tiling": words(t),
                "windows": plan.count,
                "computed": plan.count * plan.area / (width * height),
                "time": times[words(t)],
                "precision": str(dtype).removeprefix("torch."),
            }
            for name, engine in (("fp32", exactly), ("auto", auto)):
                difference = (_call(engine, t, image)() - whole[engine]).abs() * 255
                row[f"largest_{name}"] = float(difference.max())
                row[f"mean_{name}"] = float(difference.mean())
            child = ["--memory", json.dumps([model, width, height, t.mode, t.tile, t.overlap, device_name])]
            row.update(in_subprocess(Path(__file__), child))
            rows.append(row)
    return {"weights": WEIGHTS, "size": f"{width}x{height}", "rows": rows}


def _call(engine: Engine, t: Tiling, image: Tensor) -> Callable[[], Tensor]:
    restorer = Restorer(engine=engine, tiling=t)
    return lambda: restorer(image)


def show_tiling(result: dict[str, Any]) -> str:
    rows = result["rows"]
    heads = (
        "model",
        "tiling",
        "windows",
        "pixels computed",
        f"time ({rows[0]['precision']})",
        "peak memory",
        "above start",
        "largest, fp32",
        "mean, fp32",
        f"largest, {rows[0]['precision']}",
        f"mean, {rows[0]['precision']}",
    )
    return f"frames of {result['size']}; differences from the whole frame in 1/255\n" + table(
        heads,
        [
            (
                f"{r['model']} (radius {r['radius']})",
                r["tiling"],
                str(r["windows"]),
                f"{r['computed']:.2f}x",
                str(r["time"]),
                f"{r['peak_bytes'] / 2**20:.0f} MiB",
                f"{(r['peak_bytes'] - r['start_bytes']) / 2**20:.0f} MiB",
                f"{r['largest_fp32']:.2g}",
                f"{r['mean_fp32']:.2g}",
                f"{r['largest_auto']:.2g}",
                f"{r['mean_auto']:.2g}",
            )
            for r in rows
        ],
    )


def _memory(
    model: str, width: int, height: int, mode: Any, tile: int, overlap: int, device_name: str
) -> dict[str, int]:
    """Peak of a process that restores one frame, and what it had with the weights loaded and the frame made."""
    device = resolve_device(device_name)
    image = picture(height, width).to(device)
    restorer = Restorer(model, weights=WEIGHTS, device=device_name, tiling=Tiling(mode, tile, overlap))
    start = peak_memory(device)
    restorer(image)
    synchronise(device)
    return {"start_bytes": start, "peak_bytes": peak_memory(device)}


if __name__ == "__main__":
    print(json.dumps(_memory(*json.loads(sys.argv[2]))))
