"""A stand-in for a live job, as the preview page sees one: frames that carry their number, and a status."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from streamdeblur.frames import ColorSpec, Frame, FrameSpec
from tests.clips import numbered_picture

STEPS = ("mimo-unet", "mimo-unet-small", "half scale", "bypass")


@dataclass(frozen=True)
class Facts:
    """What a job tells with a frame."""

    index: int
    wall: float = 1_700_000_000.0
    latency: float = 0.12
    status: str = "restored"
    step: str = STEPS[0]
    reason: str | None = None


def rgb_frame(rgb: Any, index: int) -> Frame:
    """A frame of an (H, W, 3) uint8 picture."""
    height, width = rgb.shape[:2]
    planes = tuple(np.ascontiguousarray(rgb[..., c]) for c in range(3))
    return Frame(index, index, Fraction(1, 25), planes, FrameSpec(width, height, ColorSpec("rgb", full_range=True)))


def pair(index: int, size: tuple[int, int] = (320, 192)) -> tuple[Frame, Frame]:
    """The numbered picture of ``index`` darkened, as it came, and as it is, restored."""
    picture = numbered_picture(index, size)
    return rgb_frame((picture * 0.7).astype(np.uint8), index), rgb_frame(picture, index)


def source_status(name: str, **changes: Any) -> dict[str, Any]:
    """One source of a status, keys as ``LiveSourceStatus`` has them."""
    return {
        "name": name, "url": f"rtsp://192.0.2.7/{name}", "state": "live", "codec": "h264", "width": 320, "height": 192,
        "fps_in": 25.0, "fps_out": 25.0, "latency_ms": 500.0, "latency_p50_ms": 110.0, "latency_p95_ms": 180.0,
        "frames": 1000, "restored": 980, "bypassed": 15, "dropped": 5, "failed": 1, "late": 7, "behind": 4,
        "undecodable": 2, "waiting": 1,
        "step": STEPS[0], "step_index": 0, "restore_ms": 31.5, "reused": 0.42, "reconnects": 3, "restarts": 1,
        "error": None,
        "outputs": [{
            "target": "hls:out", "state": "live", "packets": 900, "dropped": 4, "segments": 12, "restarts": 1,
            "stalls": 0, "disk_full": 0, "error": None,
        }],
        **changes,
    }  # fmt: skip


def job_status(*sources: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A status as ``LiveStatus`` has it."""
    return {
        "seconds": 61.5, "device": "cpu", "model": STEPS[0], "steps": STEPS, "latency_ms": 500.0, "load": 0.4,
        "memory_mb": 512.0, "gpu_mb": None, "sources": sources, **changes,
    }  # fmt: skip


class StandIn:
    """A pipeline that shows one frame after the other of each source, as fast as ``pause`` seconds let it."""

    def __init__(self, show: Any, sources: tuple[str, ...], *, pause: float = 0.04) -> None:
        self._show = show
        self._sources = sources
        self._pause = pause
        self._frames = [pair(i) for i in range(50)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.count = 0

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            before, after = self._frames[self.count % len(self._frames)]
            for source in self._sources:
                self._show(source, before, after, Facts(before.index))
            self.count += 1

    def __enter__(self) -> StandIn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
