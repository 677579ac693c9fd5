"""torch.compile: one kernel for what lies between convolutions. Compiled code is kept in the cache folder."""

from __future__ import annotations

import copy
import os
import shutil
import time

import torch
from torch import Tensor

from streamdeblur.errors import DeviceError
from streamdeblur.models.base import ResidualModel
from streamdeblur.restore.engines import cache
from streamdeblur.restore.engines.eager import TorchEngine
from streamdeblur.restore.engines.fused import CPU_TILE
from streamdeblur.restore.memory import ACCELERATOR_TILE


class CompiledEngine(TorchEngine):
    """``TorchEngine`` with its network compiled on its first call, for shapes of any size; copies the weights.

    The first call takes half a minute, with a warm cache a few seconds. Raises DeviceError where Inductor finds no C++
    compiler (CPU) or no Triton (CUDA).
    """

    name = "compile"

    def __init__(self, model: ResidualModel, device: torch.device, dtype: torch.dtype) -> None:
        began = time.perf_counter()
        require_compiler(device)
        super().__init__(copy.deepcopy(model), device, dtype)
        self.tile = CPU_TILE if device.type == "cpu" else ACCELERATOR_TILE
        # Read by Inductor when it compiles; a folder that the user chose stays.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.cache_folder() / "inductor"))
        # One program for all tile shapes: convolutions are library calls, which lose nothing by it.
        self._compiled = torch.compile(self._model.residual, dynamic=True)
        self._warm = False
        self.prepare_seconds = time.perf_counter() - began

    def share(self) -> int:
        """One: what Inductor makes of a network is called from one thread at a time."""
        return 1

    @torch.inference_mode()
    def residual(self, batch: Tensor) -> Tensor:
        began = time.perf_counter()
        x = batch.to(self._device, self._dtype, memory_format=self._layout)
        result: Tensor = self._compiled(x)
        if not self._warm:
            self._warm = True
            self.prepare_seconds += time.perf_counter() - began
        return result


def require_compiler(device: torch.device) -> None:
    """Raises DeviceError where ``torch.compile`` has nothing to compile with."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise DeviceError("torch.compile on CUDA needs Triton", "pip install triton, or take --engine auto")
        if not any(map(shutil.which, [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"])):
            raise DeviceError("torch.compile on CUDA needs a C compiler", "install gcc, or take --engine auto")
    elif device.type == "cpu":
        # Inductor takes that of CXX, else g++, and no other.
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            raise DeviceError("torch.compile needs a C++ compiler", "install g++, or take --engine auto")
    else:
        raise DeviceError(f"torch.compile is not used on {device.type}", "take --engine auto")
