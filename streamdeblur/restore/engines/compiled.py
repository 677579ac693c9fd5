"""torch.compile: one kernel for what lies between convolutions. Compiled code is kept in the cache folder."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from streamdeblur.errors import DeviceError
from streamdeblur.models.base import ResidualModel
from streamdeblur.restore.engines import cache
from streamdeblur.restore.engines.eager import TorchEngine
from streamdeblur.restore.engines.fused import CPU_TILE
from streamdeblur.restore.engines.quiet import quiet_torch
from streamdeblur.restore.memory import ACCELERATOR_TILE

log = logging.getLogger(__name__)


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
        own = cache.cache_folder() / "inductor"
        if os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(own)) == str(own):
            _drop_damaged(own)
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
        with quiet_torch():
            result: Tensor = self._compiled(x)
        if not self._warm:
            self._warm = True
            self.prepare_seconds += time.perf_counter() - began
        return result


def _drop_damaged(folder: Path) -> None:
    """Remove compiled graphs whose name isn't the digest of what is in them, as Inductor names them.

    It would read them at each start, with tracebacks of what it can't load, and run what it can.
    """
    with contextlib.suppress(OSError):
        files = [f for f in (*folder.glob("fxgraph/*/*/*"), *folder.glob("aotautograd/*/*")) if f.name[0] != "."]
        if not files:
            return
        try:
            from torch._inductor.codecache import sha256_hash
        except ImportError:  # it has no promise of staying there
            return
        for file in files:
            if sha256_hash(file.read_bytes()) != file.name:
                log.debug("%s is damaged: removed", file)
                file.unlink()


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
