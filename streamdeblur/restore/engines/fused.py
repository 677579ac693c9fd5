"""PyTorch on a CPU with packed weights and fused operations (``models.folding``)."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from streamdeblur.models.base import ResidualModel
from streamdeblur.models.folding import fold
from streamdeblur.restore.memory import activation_bytes

#: Largest side of a window, pixels: a 720p frame goes whole, 1080p in four windows with 10 % of overlap, 4K in twelve
#: with 11 %. Larger windows overlap less, but past a million pixels each is slower than what that saves.
CPU_TILE = 1024

#: Calls at once that are worth it at most on a CPU: each holds the activations of a window. And the share of the
#: threads that they have to use together.
_CALLERS, _USED = 4, 0.8


def cpu_callers(threads: int) -> int:
    """How many calls run side by side on so many threads, each on its whole share of them."""
    return max(n for n in range(1, min(threads, _CALLERS) + 1) if threads // n * n >= _USED * threads)


class FusedEngine:
    """A network on the CPU through oneDNN's fused operations, in float32 or bfloat16; it copies the weights.

    In bf16 results are the same to the bit for any number of threads; in fp32 see ``Restorer``. Calls from several
    threads are safe, and run side by side.
    """

    name = "fused"
    device = torch.device("cpu")
    tile = CPU_TILE
    at_once = 1

    def __init__(self, model: ResidualModel, dtype: torch.dtype) -> None:
        began = time.perf_counter()
        self.dtype = dtype
        self.precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
        self.receptive_radius = model.receptive_radius
        self.bytes_per_pixel = activation_bytes(model, dtype)
        with torch.inference_mode():
            self._model = self._fold(model).eval()
        self.prepare_seconds = time.perf_counter() - began

    def _fold(self, model: ResidualModel) -> ResidualModel:
        return fold(model, self.dtype)

    def share(self) -> int:
        """Several threads will call at once, each of them with its share of PyTorch's threads; how many gain by that.

        Side by side they need not wait for the slowest thread at every layer: on two cores, in fp32, the windows of
        ``--reuse`` take 0.6 of the time, whole frames 0.9 of it. A single call alone takes longer then.
        """
        self.at_once = cpu_callers(torch.get_num_threads())
        return self.at_once

    @torch.inference_mode()
    def residual(self, batch: Tensor) -> Tensor:
        return self._model.residual(batch.to(self.dtype, memory_format=torch.channels_last))
