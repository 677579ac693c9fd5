"""What runs a network on a batch of windows. ``build_engine`` chooses; optional libraries are loaded when asked for."""

from __future__ import annotations

from streamdeblur.restore.engines.choose import build_engine
from streamdeblur.restore.engines.devices import bf16_pays, resolve_device, resolve_precision
from streamdeblur.restore.engines.eager import TorchEngine
from streamdeblur.restore.engines.protocol import ENGINES, Engine, EngineFacts, facts, share

__all__ = [
    "ENGINES",
    "Engine",
    "EngineFacts",
    "TorchEngine",
    "build_engine",
    "bf16_pays",
    "facts",
    "resolve_device",
    "resolve_precision",
    "share",
]
