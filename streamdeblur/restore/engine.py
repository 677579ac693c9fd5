"""What runs a network on a batch of windows: the protocol, and PyTorch's eager mode."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from streamdeblur.errors import DeviceError, UsageError
from streamdeblur.models.base import ResidualModel
from streamdeblur.restore.memory import activation_bytes

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine(Protocol):
    """Predicts corrections. One call at a time."""

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


def resolve_device(name: str) -> torch.device:
    """ "auto" (CUDA where there is one, else the CPU), "cpu", "cuda", "cuda:N" or "mps" as a device that is there.

    Raises UsageError for another word, DeviceError for a device that this machine or this PyTorch has not.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"device {name!r} is not known", "choose from auto, cpu, cuda, cuda:N, mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no GPU"
            raise DeviceError(f"device {name} is not there: {why}", "take --device cpu or auto")
        count = torch.cuda.device_count()
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= count:
            raise DeviceError(f"device {name} is not there", f"this machine has cuda:0 to cuda:{count - 1}")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device mps is not there", "take --device cpu or auto")
    return device


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bf16 in hardware (AMX, AVX512-BF16, Arm BF16); emulated it is slower than fp32."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        text = cpuinfo.read_text()
    except OSError:  # not Linux
        return any(
            bool(getattr(torch.cpu, name, bool)()) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(value.split())
    return False


def resolve_precision(name: str, device: torch.device, model: ResidualModel) -> torch.dtype:
    """ "auto", "fp32", "bf16" or "fp16" as a data type for this model on this device.

    "auto" is bf16 on CUDA from compute capability 8.0 and fp16 before; bf16 on CPUs with the hardware for it, else
    fp32. A model without weights runs in fp32: it has nothing to gain. Raises UsageError for another word.
    """
    if name != "auto":
        if name not in PRECISIONS:
            raise UsageError(f"precision {name!r} is not known", f"choose from auto, {', '.join(PRECISIONS)}")
        return PRECISIONS[name]
    if next(model.parameters(), None) is None:
        return torch.float32
    if device.type == "cuda":
        modern = torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if modern else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32


class TorchEngine:
    """A network in PyTorch's eager mode: its own data type, channels_last, inference mode.

    Weights and activations are in ``dtype``; batches are converted on the way in. The image itself stays float32
    with the caller, who adds the correction to it, so a correction of zero is exact in any precision.

    With float32 on CUDA, cuDNN would by default round the factors of convolutions to TF32 (10 bits of mantissa);
    this engine turns that off, for the whole process, since PyTorch has one switch.
    Takes over the module (it is moved and cast in place). Calls from several threads are safe, and gain nothing.
    """

    def __init__(self, model: ResidualModel, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._bytes_per_pixel = activation_bytes(model, dtype)
        self._device, self._dtype = device, dtype
        self._layout = torch.contiguous_format if device.type == "mps" else torch.channels_last
        model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=self._layout)
        self._model = model
        if device.type == "cuda" and dtype == torch.float32:
            with warnings.catch_warnings():  # the name that PyTorch 2.8 knows is deprecated from 2.9 on
                warnings.simplefilter("ignore")
                torch.backends.cudnn.allow_tf32 = False
                torch.backends.cuda.matmul.allow_tf32 = False

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def receptive_radius(self) -> int:
        return self._model.receptive_radius

    @property
    def bytes_per_pixel(self) -> float:
        return self._bytes_per_pixel

    @torch.inference_mode()
    def residual(self, batch: Tensor) -> Tensor:
        return self._model.residual(batch.to(self._device, self._dtype, memory_format=self._layout))
