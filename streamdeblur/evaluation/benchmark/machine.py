"""What figures were measured on, and whether it had time for them."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from streamdeblur.version import __version__


def machine(device: torch.device) -> dict[str, Any]:
    """What figures were measured on: plain values."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "device": str(device),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "streamdeblur": __version__,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def cores() -> int:
    """Logical processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """How many threads, of anybody, wanted to run in the last minute; None where the system does not tell."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def busy(before: float | None) -> str | None:
    """A warning where others were at work before anything was measured."""
    if before is None or before <= cores() / 2:
        return None
    return f"load {before:.1f} on {cores()} cores before it began: others are at work, take ratios only"


def _cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {k.strip(): v.strip() for k, v in known.items()}
    name = fields.get("model name", platform.machine())
    matrix = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    return f"{name} ({', '.join(matrix)})" if matrix else name


def peak_memory(device: torch.device) -> int:
    """Bytes this process had resident at most, or what PyTorch had allocated on its GPU at most."""
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
