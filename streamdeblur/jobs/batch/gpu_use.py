"""How busy the GPUs are that this process was given, as ``nvidia-smi`` tells."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

_EVERY = 5.0


class GpuUse:
    """Asks at most every few seconds; None where there is no GPU or no tool to ask. For one thread."""

    def __init__(self) -> None:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        self._tool = shutil.which("nvidia-smi") if devices not in ("", "-1") else None
        self._devices = devices
        self._asked = -_EVERY
        self._last: float | None = None

    def use(self) -> float | None:
        """Percent, the mean of several."""
        if self._tool is None or time.monotonic() - self._asked < _EVERY:
            return self._last
        self._asked = time.monotonic()
        command = [self._tool, f"--id={self._devices}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=3, check=True)
            found = [float(line) for line in done.stdout.split()]
            self._last = sum(found) / len(found)
        except (OSError, subprocess.SubprocessError, ValueError, ZeroDivisionError):
            self._tool = None
        return self._last
