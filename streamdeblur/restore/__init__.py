"""Frame → corrections: tile plan, engines, blending, memory. Knows torch and numpy; no video, no processes."""

from __future__ import annotations

from streamdeblur.restore.engines import Engine, TorchEngine
from streamdeblur.restore.memory import Tiling
from streamdeblur.restore.restorer import Restorer, RestorerSpec

__all__ = ["Engine", "Restorer", "RestorerSpec", "Tiling", "TorchEngine"]
