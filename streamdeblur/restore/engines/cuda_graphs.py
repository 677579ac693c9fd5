"""CUDA graphs: the network's 130 kernel launches recorded once for each tile shape, and replayed as one.

The layers are thin (32 channels at full scale), so a launch costs a good part of what it starts; a replay launches all
of them at once. Shapes are static by construction: all windows of a plan have one size.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamdeblur.errors import UsageError
from streamdeblur.models.base import ResidualModel
from streamdeblur.restore.engines.eager import TorchEngine
from streamdeblur.restore.memory import ACCELERATOR_TILE

#: Recorded shapes kept at most: whole batches and the last, smaller one, of two frame sizes. Each holds its memory.
_SHAPES = 32

#: Runs before recording: cuDNN chooses its algorithms and allocates its workspaces.
_WARM_UP = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor


class CudaGraphEngine(TorchEngine):
    """``TorchEngine`` on CUDA, recorded and replayed; takes over the module. Calls from threads wait for each other.

    The result of a call is a copy, so that callers may keep it. Recordings share one memory pool; when memory runs out
    all are dropped, and the error reaches the caller, who takes smaller tiles.
    """

    name = "cuda-graphs"
    tile = ACCELERATOR_TILE

    def __init__(self, model: ResidualModel, device: torch.device, dtype: torch.dtype) -> None:
        if device.type != "cuda":
            raise UsageError(f"engine cuda-graphs does not run on {device.type}", "take --engine auto")
        began = time.perf_counter()
        super().__init__(model, device, dtype)
        self._recordings: OrderedDict[tuple[int, ...], _Recording] = OrderedDict()
        self._pool: Any = None
        self._lock = threading.Lock()
        self._replayed: torch.cuda.Event | None = None  # when the last replay, and the copy of its result, are done
        self.prepare_seconds = time.perf_counter() - began

    @torch.inference_mode()
    def residual(self, batch: Tensor) -> Tensor:
        shape = tuple(batch.shape)
        with self._lock, torch.cuda.device(self._device):
            recording = self._recordings.get(shape)
            if recording is None:
                began = time.perf_counter()
                recording = self._record(shape)
                self.prepare_seconds += time.perf_counter() - began
            self._recordings.move_to_end(shape)
            # Threads have streams of their own, and all recordings share their memory: one replay at a time.
            stream = torch.cuda.current_stream(self._device)
            if self._replayed is not None:
                stream.wait_event(self._replayed)
            recording.x.copy_(batch)
            recording.graph.replay()
            result = recording.y.clone()
            self._replayed = stream.record_event()
            return result

    def _record(self, shape: tuple[int, ...]) -> _Recording:
        while len(self._recordings) >= _SHAPES:
            self._recordings.popitem(last=False)
        try:
            x = torch.zeros(shape, dtype=self._dtype, device=self._device).contiguous(memory_format=self._layout)
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    self._model.residual(x)
            torch.cuda.current_stream(self._device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads of the job (decoding with NVDEC, copies) may use CUDA meanwhile.
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                y = self._model.residual(x)
        except torch.OutOfMemoryError:
            self._recordings.clear()
            self._pool = None
            raise
        recording = self._recordings[shape] = _Recording(graph, x, y)
        return recording
