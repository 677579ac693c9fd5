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
from streamdeblur.restore.engines.streams import capturing
from streamdeblur.restore.memory import ACCELERATOR_TILE

#: Recorded shapes kept at most, and pixels of their inputs: each holds input and output. ``--reuse`` has 25 sizes of
#: windows, and ``live`` calls with four numbers of them.
_SHAPES, _PIXELS = 256, 1 << 25

#: Runs before recording: cuDNN chooses its algorithms and allocates its workspaces.
_WARM_UP = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    x: Tensor
    y: Tensor


class CudaGraphEngine(TorchEngine):
    """``TorchEngine`` on CUDA, recorded and replayed; takes over the module. Calls from threads wait for each other.

    The result of a call is a copy, so that callers may keep it. Recordings share one memory pool; when one fails, as
    when memory runs out, all are dropped, and the error reaches the caller, who takes smaller tiles.
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
        self._stream: torch.cuda.Stream | None = None  # of warm-up and capture
        self._lock = threading.Lock()
        self._replayed: torch.cuda.Event | None = None  # when the last replay, and the copy of its result, are done
        self.prepare_seconds = time.perf_counter() - began

    @torch.inference_mode()
    def residual(self, batch: Tensor) -> Tensor:
        shape = tuple(batch.shape)
        with self._lock, torch.cuda.device(self._device):
            recording = self._recorded(shape)
            # Threads have streams of their own, and all recordings share their memory: one replay at a time.
            stream = torch.cuda.current_stream(self._device)
            if self._replayed is not None:
                stream.wait_event(self._replayed)
            recording.x.copy_(batch)
            recording.graph.replay()
            result = recording.y.clone()
            self._replayed = stream.record_event()
            return result

    @torch.inference_mode()
    def prepare(self, height: int, width: int) -> None:
        """Record windows of that size, one in a call."""
        with self._lock, torch.cuda.device(self._device):
            self._recorded((1, 3, height, width))

    def _recorded(self, shape: tuple[int, ...]) -> _Recording:
        recording = self._recordings.get(shape)
        if recording is None:
            began = time.perf_counter()
            if self._replayed is not None:
                self._replayed.synchronize()  # its recording, or what goes with it, may be dropped
            while self._recordings and (
                len(self._recordings) >= _SHAPES or sum(map(_pixels, (*self._recordings, shape))) > _PIXELS
            ):
                self._recordings.popitem(last=False)
            try:
                with capturing:
                    recording = self._record(shape)
            except BaseException:
                self._recordings.clear()
                self._pool = None
                raise
            self._recordings[shape] = recording
            self.prepare_seconds += time.perf_counter() - began
        self._recordings.move_to_end(shape)
        return recording

    def _record(self, shape: tuple[int, ...]) -> _Recording:
        x = torch.zeros(shape, dtype=self._dtype, device=self._device).contiguous(memory_format=self._layout)
        if self._stream is None:
            # PyTorch hands out 32 in turn, and what goes to this one while it captures would be captured: threads have
            # theirs from those of normal priority.
            self._stream = torch.cuda.Stream(self._device, priority=-1)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                self._model.residual(x)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Other threads of the job (decoding with NVDEC, copies) may use CUDA meanwhile.
        # A capture that fails leaves its stream the current one.
        with (
            torch.cuda.stream(current),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            y = self._model.residual(x)
        return _Recording(graph, x, y)


def _pixels(shape: tuple[int, ...]) -> int:
    return shape[0] * shape[-2] * shape[-1]
