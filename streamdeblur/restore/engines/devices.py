"""Words for devices and precisions, and what they mean on this machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from streamdeblur.errors import DeviceError, UsageError
from streamdeblur.models.base import ResidualModel
from streamdeblur.restore.engines import cache

#: Side of the product by which precisions are compared, and what bf16 must take of the time of fp32 to be chosen.
_PRODUCT, _GAIN = 768, 0.9

#: What was measured, by the file that keeps it: that may not be writable.
_decided: dict[Path, dict[str, Any]] = {}
_deciding = threading.Lock()

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """ "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:N" or "mps" as a device that is there.

    Raises UsageError for another word, DeviceError for a device that this machine or this PyTorch has not.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device {name!r} is not known", "choose from auto, cpu, cuda, cuda:N, mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no GPU"
            raise DeviceError(f"device {name} is not there: {why}", "take --device cpu or auto")
        count = torch.cuda.device_count()
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= count:
            raise DeviceError(f"device {name} is not there", f"this machine has cuda:0 to cuda:{count - 1}")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device mps is not there", "take --device cpu or auto")
    return device


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """Which of the instructions for bf16 the CPU names: amx_bf16, avx512_bf16, bf16 (Arm)."""
    known = {"amx_bf16", "avx512_bf16", "bf16"}
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux
        asked = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
        return {flag for flag, name in asked.items() if bool(getattr(torch.cpu, name, bool)())}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return known & set(value.split())
    return set()


def bf16_pays() -> bool:
    """Whether the CPU multiplies faster in bf16 than in fp32.

    Without instructions for it bf16 is emulated and slow, with AMX it is several times as fast. Those of AVX-512 and
    Arm are measured once on a machine: an Intel Xeon whose AMX is hidden took twice the time of fp32.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    flags = cpu_flags()
    if not flags:
        return False
    if "amx_bf16" in flags and "ONEDNN_MAX_CPU_ISA" not in os.environ:
        return True
    path = cache.cache_folder() / f"bf16-{cache.key(_PRODUCT, cache.machine(torch.device('cpu')))}.json"
    return bool(decided(path, _measure_bf16).get("pays"))


def decided(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``measure`` found when this machine first asked; kept in ``path``, else in this process."""
    with _deciding:
        found = cache.read_json(path) or _decided.get(path)
        if found is None:
            # A process that measured at the same time may have been the first.
            found = _decided[path] = cache.keep_first(path, measure())
    return found


def _measure_bf16() -> dict[str, Any]:
    fp32, bf16 = _product_seconds()
    return {"pays": bf16 < _GAIN * fp32, "fp32_s": fp32, "bf16_s": bf16}


def bf16_pays_without_amx() -> bool:
    """Whether bf16 pays here by AVX512-BF16, where there is no AMX."""
    flags = cpu_flags()
    return "avx512_bf16" in flags and "amx_bf16" not in flags and bf16_pays()


def _product_seconds() -> tuple[float, float]:
    """Least seconds of a matrix product in fp32 and in bf16, one thread: tens of milliseconds in all."""
    pairs = [
        [torch.full((_PRODUCT, _PRODUCT), value, dtype=kind, device="cpu") for value in (0.5, 0.25)]
        for kind in (torch.float32, torch.bfloat16)
    ]
    fp32, bf16 = in_turns(lambda: pairs[0][0] @ pairs[0][1], lambda: pairs[1][0] @ pairs[1][1])
    return fp32, bf16


def in_turns(*ways: Callable[[], object]) -> list[float]:
    """The least seconds that each of ``ways`` takes on one thread, of seven times in turns."""
    taken: list[list[float]] = [[] for _ in ways]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(7):
                for way, times in zip(ways, taken, strict=True):
                    begun = time.perf_counter()
                    way()
                    times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return [min(times) for times in taken]


def resolve_precision(name: str, device: torch.device, model: ResidualModel) -> torch.dtype:
    """ "auto", "fp32", "bf16" or "fp16" as a data type for this model on this device.

    "auto" is bf16 on CUDA from compute capability 8.0 and fp16 before; bf16 on CPUs that multiply faster in it,
    else fp32. A model without weights runs in fp32: it has nothing to gain. Raises UsageError for another word.
    """
    if name != "auto":
        if name not in PRECISIONS:
            raise UsageError(f"precision {name!r} is not known", f"choose from auto, {', '.join(PRECISIONS)}")
        return PRECISIONS[name]
    if next(model.parameters(), None) is None:
        return torch.float32
    if device.type == "cuda":
        modern = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if modern else torch.float16
    return torch.bfloat16 if device.type == "cpu" and bf16_pays() else torch.float32
