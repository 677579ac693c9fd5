"""Words for devices and precisions, and what they mean on this machine."""

from __future__ import annotations

from pathlib import Path

import torch

from streamdeblur.errors import DeviceError, UsageError
from streamdeblur.models.base import ResidualModel

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


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bf16 in hardware (AMX, AVX512-BF16, Arm BF16); emulated it is slower than fp32."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux
        return any(
            bool(getattr(torch.cpu, name, bool)()) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(value.split())
    return False


def resolve_precision(name: str, device: torch.device, model: ResidualModel) -> torch.dtype:
    """ "auto", "fp32", "bf16" or "fp16" as a data type for this model on this device.

    "auto" is bf16 on CUDA from compute capability 8.0 and fp16 before; bf16 on CPUs with the hardware for it, else
    fp32. A model without weights runs in fp32: it has nothing to gain. Raises UsageError for another word.
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
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32
