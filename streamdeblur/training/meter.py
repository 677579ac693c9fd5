"""Means of a run between two reports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor


class Meter:
    """Sums of what steps told, which stay on the device until a mean is asked for, and the time that steps took."""

    def __init__(self) -> None:
        self.steps = 0
        self.waited = 0.0  # seconds, for data
        self._sums: dict[str, Tensor] = {}
        self._since = time.monotonic()
        self._paused = 0.0

    def add(self, loss: Tensor, parts: dict[str, Tensor], norm: Tensor) -> None:
        """The numbers of one step: scalars."""
        for key, value in {"loss": loss, "norm": norm, **{f"part/{k}": v for k, v in parts.items()}}.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile something else than steps takes the time: a validation, a save."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - began

    @property
    def seconds(self) -> float:
        """That steps and waiting for data took."""
        return max(1e-9, time.monotonic() - self._since - self._paused)

    def means(self) -> dict[str, float]:
        """Of everything added, by name: "loss", "norm", "part/...". Waits for the device."""
        return {k: float(v) / self.steps for k, v in self._sums.items()}
