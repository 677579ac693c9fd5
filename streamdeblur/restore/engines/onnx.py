"""ONNX Runtime: fp32 on a CPU without OpenVINO, or CUDA with onnxruntime-gpu."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamdeblur.errors import DeviceError
from streamdeblur.models.base import ResidualModel
from streamdeblur.models.export import export_program, require, to_onnx
from streamdeblur.models.trial import fingerprint
from streamdeblur.restore.engines import cache
from streamdeblur.restore.engines.fused import CPU_TILE
from streamdeblur.restore.memory import ACCELERATOR_TILE, activation_bytes

log = logging.getLogger(__name__)


def version() -> str:
    """Of the library. Raises UsageError where it is not installed."""
    return str(require("onnxruntime", "onnx").__version__)


class OnnxEngine:
    """A network through ONNX Runtime in fp32, as many CPU threads as PyTorch has when it is built.

    The ONNX file is exported once and kept in the cache folder. Calls from several threads wait for each other.
    Raises UsageError where a library is missing, DeviceError where ONNX Runtime has no CUDA.
    """

    name = "onnx"
    precision = "fp32"

    def __init__(self, model: ResidualModel, device: torch.device) -> None:
        began = time.perf_counter()
        runtime = require("onnxruntime", "onnx")
        self.device = device
        self.tile = ACCELERATOR_TILE if device.type == "cuda" else CPU_TILE
        self.receptive_radius = model.receptive_radius
        self.bytes_per_pixel = activation_bytes(model, torch.float32)
        providers: list[Any] = ["CPUExecutionProvider"]
        if device.type == "cuda":
            if "CUDAExecutionProvider" not in runtime.get_available_providers():
                raise DeviceError("onnxruntime has no CUDA", "install onnxruntime-gpu, or take --engine auto")
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 3
        self._session = runtime.InferenceSession(self._source(model), settings, providers=providers)
        self._lock = threading.Lock()
        self.prepare_seconds = time.perf_counter() - began

    @staticmethod
    def _source(model: ResidualModel) -> str | bytes:
        digest = cache.key(fingerprint(model), torch.__version__)
        path = cache.cache_folder() / "onnx" / f"{digest}.onnx"
        if cache.intact(path):
            return str(path)
        program = export_program(model, output="correction")
        try:
            with cache.replacing(path) as temporary:
                to_onnx(program, temporary)
            cache.seal(path)
            return str(path)
        except OSError as e:
            log.debug("the ONNX graph can't be kept: %s", e)
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            to_onnx(program, Path(folder) / "network.onnx")
            return (Path(folder) / "network.onnx").read_bytes()

    def residual(self, batch: Tensor) -> Tensor:
        values = batch.detach().to("cpu", torch.float32).contiguous().numpy()
        with self._lock:
            (result,) = self._session.run(None, {"x": values})
        return torch.from_numpy(result).to(self.device)
