"""PyTorch's eager mode: the engine that is always there, and that the others are compared with."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from streamdeblur.models.base import ResidualModel
from streamdeblur.restore.engines.streams import AT_ONCE
from streamdeblur.restore.memory import activation_bytes


class TorchEngine:
    """A network in PyTorch's eager mode: its own data type, channels_last, inference mode.

    Weights and activations are in ``dtype``; batches are converted on the way in. The image itself stays float32
    with the caller, who adds the correction to it, so a correction of zero is exact in any precision.

    With float32 on CUDA, cuDNN would by default round the factors of convolutions to TF32 (10 bits of mantissa);
    this engine turns that off, for the whole process, since PyTorch has one switch. So it does, on CUDA, with
    algorithms whose results differ from call to call.
    Takes over the module (it is moved and cast in place). Calls from several threads are safe; they gain on CUDA, where
    the copies of one run beside the kernels of the other (``streams``).
    """

    name = "eager"
    prepare_seconds = 0.0
    at_once = 1

    def __init__(self, model: ResidualModel, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._bytes_per_pixel = activation_bytes(model, dtype)
        self._device, self._dtype = device, dtype
        self._layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
        model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=self._layout)
        self._model = model
        if device.type == "cuda":
            # Workers agree to the bit; some of cuDNN's algorithms for transposed convolutions add in any order.
            torch.backends.cudnn.deterministic = True
            if dtype == torch.float32:
                _without_tf32()

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def precision(self) -> str:
        return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self._dtype]

    @property
    def receptive_radius(self) -> int:
        return self._model.receptive_radius

    @property
    def bytes_per_pixel(self) -> float:
        return self._bytes_per_pixel

    def share(self) -> int:
        """Several threads will call at once; how many gain by that."""
        self.at_once = AT_ONCE if self._device.type == "cuda" else 1
        return self.at_once

    @torch.inference_mode()
    def residual(self, batch: Tensor) -> Tensor:
        return self._model.residual(batch.to(self._device, self._dtype, memory_format=self._layout))


def _without_tf32() -> None:
    with warnings.catch_warnings():  # the name that PyTorch 2.8 knows is deprecated from 2.9 on
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
