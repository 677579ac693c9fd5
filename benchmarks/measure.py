"""How the benchmarks measure: alternating, warmed up, synchronised; what machine it was; memory of a process.

Needs torch and numpy only, so that the sections about the network run on bare GPU machines.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: median, least and most of ``rounds`` calls."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{seconds(self.median)} ({seconds(self.low)}–{seconds(self.high)})"


def seconds(value: float) -> str:
    """A duration with three significant digits."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def ratio(slow: Timing, fast: Timing) -> str:
    """How many times ``fast`` is faster by the medians, and the least and most that the spreads allow."""
    low, high = slow.low / fast.high, slow.high / fast.low
    return f"{slow.median / fast.median:.3g}x ({low:.3g}–{high:.3g})"


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    ways: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, budget: float = 0.0
) -> dict[str, Timing]:
    """Time several ways of doing the same, in turns, so that what else the machine does hits all of them alike.

    Each is called once beforehand, unmeasured. rounds: how often at least; budget: seconds up to which rounds are
    added where they are short, ten times ``rounds`` at most.
    """
    for way in ways.values():
        way()
    synchronise(device)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    begin = time.perf_counter()
    done = 0
    while done < rounds or (done < 10 * rounds and time.perf_counter() - begin < budget):
        for name, way in ways.items():
            synchronise(device)
            start = time.perf_counter()
            way()
            synchronise(device)
            taken[name].append(time.perf_counter() - start)
        done += 1
    return {n: Timing(statistics.median(t), min(t), max(t), len(t)) for n, t in taken.items()}


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1; infinite where both are equal."""
    error = float(torch.mean((a.double() - b.double()) ** 2))
    return math.inf if error == 0 else -10 * math.log10(error)


def picture(height: int, width: int) -> Tensor:
    """(1, 3, H, W) float32 RGB in [0, 1], always the same: clouds of many sizes, and hard edges."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, 3, height, width)
    cell = max(1, min(height, width) // 4)
    while cell >= 1:
        coarse = torch.randn(1, 3, -(-height // cell) + 1, -(-width // cell) + 1, generator=generator)
        fine = F.interpolate(coarse, scale_factor=cell, mode="bilinear", align_corners=False)
        total += fine[..., :height, :width] * cell**0.5
        cell //= 2
    total = (total - total.mean()) / total.std() * 0.18 + 0.45
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    bars = ((rows + 2 * columns) // 48 + (rows // 40)) % 3 == 0
    return torch.where(bars, 1 - total, total).clamp(0, 1)


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "device": str(device),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def load() -> float:
    """How many threads, of anybody, wanted to run in the last minute."""
    return round(os.getloadavg()[0], 2)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {k.strip(): v.strip() for k, v in known.items()}
    name = fields.get("model name", platform.machine())
    matrix = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    return f"{name} ({', '.join(matrix)})" if matrix else name


def peak_memory(device: torch.device) -> int:
    """Bytes this process had resident at most, or what was allocated on its GPU at most."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        # Unlike ru_maxrss, which starts from the parent's at a fork, this belongs to the process image alone.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_subprocess(script: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a script in a fresh interpreter and return the JSON object that is its last line."""
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script.name} {' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def plain(value: Any) -> Any:
    """JSON values only: timings as objects, infinities as None."""
    if isinstance(value, Timing):
        return {"median_s": value.median, "low_s": value.low, "high_s": value.high, "rounds": value.rounds}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first flush left, the others flush right."""
    widths = [max(len(str(row[i])) for row in (heads, *rows)) for i in range(len(heads))]
    lines = []
    for row in (heads, *rows):
        cells = [
            str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
