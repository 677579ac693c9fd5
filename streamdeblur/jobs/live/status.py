"""A snapshot of a live job, for progress lines, a status page and metrics. Plain values, no credentials."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from streamdeblur.jobs.live.record import LedgerStatus
from streamdeblur.video.publish import OutputStatus

#: Seconds that rates and percentiles look back.
WINDOW = 10.0
_SAMPLES = 4096


@dataclass(frozen=True, slots=True)
class LiveSourceStatus:
    """One source.

    state: starting, connecting, live, waiting, ended, gave up, stopped. latency_ms: its deadline. fps_in, fps_out: over
    the last seconds. latency_p*_ms: from arrival to output, over the last seconds. restored, bypassed, dropped, failed:
    frames since the start. late: of those bypassed or dropped, the ones that were to be restored. behind: of those
    dropped, the ones that encoding had no time for. step: name of the ladder's step, best
    is 0. restore_ms: device time of a frame on it; costs_ms: on every step, None where it was not measured. reused:
    share of tiles whose correction was reused, None without reuse. detection: ``detect.HookStats``, None without a
    detector. ledger: None without a file.
    """

    name: str
    url: str
    state: str
    codec: str | None
    width: int | None
    height: int | None
    latency_ms: float
    fps_in: float
    fps_out: float
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    frames: int
    restored: int
    bypassed: int
    dropped: int
    failed: int
    late: int
    behind: int
    undecodable: int
    waiting: int
    step: str
    step_index: int
    restore_ms: float | None
    costs_ms: tuple[float | None, ...]
    reused: float | None
    reconnects: int
    restarts: int
    error: str | None
    outputs: tuple[OutputStatus, ...]
    detection: dict[str, Any] | None = None
    ledger: LedgerStatus | None = None


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """The job. load: share of the device's time that the sources need, 1 is all of it. memory_mb: of this process
    (resident). gpu_mb: that PyTorch holds on the device, None without CUDA."""

    seconds: float
    device: str
    model: str
    steps: tuple[str, ...]
    latency_ms: float
    load: float
    memory_mb: float
    gpu_mb: float | None
    sources: tuple[LiveSourceStatus, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return asdict(self)


class Meter:
    """Rates and latencies over the last seconds. Thread-safe; memory does not grow."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)

    def add(self, now: float, value: float = 0.0) -> None:
        with self._lock:
            self._samples.append((now, value))

    def _recent(self, now: float) -> list[tuple[float, float]]:
        with self._lock:
            while self._samples and self._samples[0][0] < now - self._window:
                self._samples.popleft()
            return list(self._samples)

    def rate(self, now: float) -> float:
        """Samples a second."""
        recent = self._recent(now)
        if len(recent) < 2:
            return 0.0
        span = max(now - recent[0][0], recent[-1][0] - recent[0][0])
        return len(recent) / span if span > 0 else 0.0

    def percentiles(self, now: float, shares: Sequence[float]) -> tuple[float | None, ...]:
        """Of the values, nearest rank."""
        values = sorted(v for _, v in self._recent(now))
        if not values:
            return tuple(None for _ in shares)
        return tuple(values[max(0, math.ceil(s * len(values)) - 1)] for s in shares)


def memory_mb() -> float:
    """Resident memory of this process."""
    return float(psutil.Process(os.getpid()).memory_info().rss) / 1e6


def gpu_mb(device: str) -> float | None:
    """What PyTorch holds on a CUDA device."""
    if not device.startswith("cuda"):
        return None
    import torch

    return float(torch.cuda.memory_reserved(device)) / 1e6


def monotonic() -> float:
    """The clock of all arrivals and deadlines."""
    return time.monotonic()
