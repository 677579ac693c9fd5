"""What runs a network on a batch of windows: the protocol, and the names of those there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

#: The engines by the word that asks for one; "auto" chooses.
ENGINES: Mapping[str, str] = MappingProxyType(
    {
        "eager": "PyTorch, operation by operation; any device",
        "fused": "PyTorch on a CPU with packed weights and oneDNN's fused operations; nothing to compile",
        "winograd": "fused with kernels of our own, which a C++ compiler makes once; the fastest on CPUs without AMX",
        "compile": "torch.compile, its cache kept between runs; CPU or CUDA",
        "openvino": "OpenVINO on the CPU; the fastest with AMX, also int8",
        "onnx": "ONNX Runtime, fp32; CPU, or CUDA with onnxruntime-gpu",
        "cuda-graphs": "PyTorch on CUDA, recorded once for each shape and replayed",
    }
)


class Engine(Protocol):
    """Predicts corrections.

    Engines of this package have more, which callers read through ``facts``: ``name`` (a word of ``ENGINES``),
    ``precision`` ("fp32", "bf16", "fp16", "int8"), ``prepare_seconds`` (spent so far on getting ready), ``tile``
    (largest side of a window that it runs well with, pixels) and ``at_once`` (calls from several threads that run side
    by side and gain by it). Such calls are safe with all of them; one that has ``share`` is told by it, before the
    first, that they will come; one that has ``prepare(height, width)`` gets ready for windows of that size.
    """

    @property
    def device(self) -> torch.device:
        """Where batches are expected and corrections come back."""

    @property
    def receptive_radius(self) -> int:
        """Pixels, see ``ResidualModel``."""

    @property
    def bytes_per_pixel(self) -> float:
        """Peak bytes of activations per input pixel, for sizing tiles."""

    def residual(self, batch: Tensor) -> Tensor:
        """The correction to add to ``batch``: (N, 3, H, W) float32 on ``device``, H and W multiples of 4.

        Returns the same shape on the same device, of any float type, unclamped.
        """


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a summary says of an engine. prepare_seconds: up to now; a new tile shape may add to it."""

    name: str
    precision: str
    prepare_seconds: float
    tile: int | None
    at_once: int = 1


_DTYPES: dict[Any, str] = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def facts(engine: Any) -> EngineFacts:
    """The facts of any engine, also of one that is not of this package."""
    dtype = getattr(engine, "dtype", None)
    precision = _DTYPES.get(dtype) or str(dtype or "engine").removeprefix("torch.")
    return EngineFacts(
        name=str(getattr(engine, "name", type(engine).__name__)),
        precision=str(getattr(engine, "precision", precision)),
        prepare_seconds=float(getattr(engine, "prepare_seconds", 0.0)),
        tile=getattr(engine, "tile", None),
        at_once=int(getattr(engine, "at_once", 1)),
    )


def share(engine: Any) -> int:
    """Tell an engine that several threads will call it at once; how many calls at a time gain by that, 1 for none."""
    told = getattr(engine, "share", None)
    return int(told()) if told is not None else 1
