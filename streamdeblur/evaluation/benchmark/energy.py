"""Energy that the device itself counts: NVIDIA's management library, or the processor's RAPL counters.

What is counted is the whole GPU or the whole processor package, other people's programs included. A device that does
not tell has no meter: a blank in the results, never a zero.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Protocol

import torch


class Meter(Protocol):
    """A counter of energy."""

    @property
    def name(self) -> str:
        """What it counts."""

    def joules(self) -> float | None:
        """Energy since some moment in the past; None where it can't be read just now."""


def find_meter(device: torch.device) -> Meter | None:
    """The meter of a device, or None where there is none that can be read."""
    meter: Meter | None = None
    if device.type == "cuda":
        meter = Nvml.find(device)
    elif device.type == "cpu":
        meter = Rapl.find()
    return meter if meter is not None and meter.joules() is not None else None


class Rapl:
    """The packages of Intel and AMD processors, through the kernel's power capping tree (in most places root only)."""

    name = "processor packages (RAPL)"

    def __init__(self, zones: list[tuple[Path, int]]) -> None:
        """zones: counter file and the value (µJ) at which it starts again at 0."""
        self._zones = zones
        self._last = [0] * len(zones)
        self._total = 0
        self._begun = False

    @classmethod
    def find(cls, root: Path = Path("/sys/class/powercap")) -> Rapl | None:
        zones = []
        for folder in sorted(root.glob("intel-rapl:[0-9]*")):
            if folder.name.count(":") != 1:
                continue  # a part of a package, counted there
            try:
                (folder / "energy_uj").read_text()
                wraps = int((folder / "max_energy_range_uj").read_text())
            except (OSError, ValueError):
                continue
            zones.append((folder / "energy_uj", wraps))
        return cls(zones) if zones else None

    def joules(self) -> float | None:
        try:
            now = [int(path.read_text()) for path, _ in self._zones]
        except (OSError, ValueError):
            return None
        if self._begun:
            for value, last, (_, wraps) in zip(now, self._last, self._zones, strict=True):
                self._total += value - last if value >= last else value - last + wraps
        self._last, self._begun = now, True
        return self._total / 1e6


class Nvml:
    """A GPU from Volta on, through libnvidia-ml, which comes with the driver."""

    name = "GPU (NVML)"

    def __init__(self, library: ctypes.CDLL, handle: ctypes.c_void_p) -> None:
        self._library, self._handle = library, handle

    @classmethod
    def find(cls, device: torch.device) -> Nvml | None:
        # By its identity: CUDA_VISIBLE_DEVICES numbers devices in another way than the driver does.
        uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
        try:
            library = ctypes.CDLL("libnvidia-ml.so.1")
            handle = ctypes.c_void_p()
            if uuid is None or library.nvmlInit_v2() != 0:
                return None
            word = f"GPU-{uuid}".encode()
            if library.nvmlDeviceGetHandleByUUID(word, ctypes.byref(handle)) != 0:
                return None
        except (OSError, AttributeError):  # no driver, or one without these functions
            return None
        return cls(library, handle)

    def joules(self) -> float | None:
        millijoules = ctypes.c_ulonglong()
        try:
            failed = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(millijoules))
        except AttributeError:
            return None
        return None if failed else millijoules.value / 1000
