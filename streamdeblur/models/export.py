"""Networks as files of other programs: torch.export, ONNX, OpenVINO IR; and their int8 form.

What is exported is the full-scale path alone: the heads of 1/2 and 1/4 scale are not in it. Optional libraries are
imported where they are used, and are named in one line where they are missing.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from streamdeblur.errors import UsageError
from streamdeblur.models.base import ResidualModel
from streamdeblur.models.mimo_unet import MIMOUNet

Output = Literal["restored", "correction"]

#: Largest side that a program of dynamic size takes, pixels.
LARGEST = 1 << 14


def require(module: str, extra: str) -> Any:
    """An optional library. Raises UsageError with the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UsageError(f"{module} is not installed", f"pip install 'streamdeblur[{extra}]'") from e


class _Program(nn.Module):
    """(N, 3, H, W) float32 → the restored images or their correction, float32; inside, the network's own type."""

    def __init__(self, model: ResidualModel, dtype: torch.dtype, output: Output) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False).to("cpu", dtype)
        for part in list(self.model.modules()):
            if isinstance(part, MIMOUNet) and part.config.mosd:
                # Not called by ``residual``, but an exported program keeps every parameter of its module.
                part.config = dataclasses.replace(part.config, mosd=False)
                del part.head2, part.head3
        self.dtype = dtype
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        correction = self.model.residual(x.to(self.dtype)).to(torch.float32)
        return x + correction if self.output == "restored" else correction


def export_program(
    model: ResidualModel,
    *,
    size: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
    output: Output = "restored",
) -> torch.export.ExportedProgram:
    """The network as a ``torch.export`` program of one input ``x`` and one output.

    size: (height, width) of its only input shape, a batch of one; None takes any batch and any multiples of
    ``size_multiple`` up to ``LARGEST``. Raises UsageError for a size that is no multiple.
    """
    step = model.size_multiple
    if size is not None and (size[0] % step or size[1] % step or min(size) < step):
        raise UsageError(f"size {size[1]}x{size[0]} is no multiple of {step}", "pad frames to one, or leave it dynamic")
    dynamic: Any = None
    if size is None:
        batch = torch.export.Dim("batch", min=1, max=1024)
        high = torch.export.Dim("rows", min=1, max=LARGEST // step)
        wide = torch.export.Dim("columns", min=1, max=LARGEST // step)
        dynamic = {"x": {0: batch, 2: step * high, 3: step * wide}}
    high_, wide_ = size or (24 * step, 40 * step)
    example = torch.rand(1 if size else 2, 3, high_, wide_)
    with torch.no_grad(), quiet_libraries():
        return torch.export.export(_Program(model, dtype, output), (example,), dynamic_shapes=dynamic, strict=False)


def to_openvino(program: torch.export.ExportedProgram) -> Any:
    """The program as an ``openvino.Model`` with fp32 weights. Raises UsageError where OpenVINO is not installed."""
    openvino = require("openvino", "openvino")
    with quiet_libraries():
        model = openvino.convert_model(program)
    model.outputs[0].get_tensor().set_names({"y"})
    return model


def to_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write the program as one ONNX file, input ``x``, output ``y``. Raises UsageError where a library is missing."""
    require("onnx", "onnx")
    require("onnxscript", "onnx")
    with quiet_libraries():
        torch.onnx.export(
            program,
            f=str(path),
            input_names=["x"],
            output_names=["y"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def quantize(model: Any, calibration: Sequence[Tensor]) -> Any:
    """An int8 form of an ``openvino.Model`` (post-training quantisation of NNCF).

    calibration: (1, 3, H, W) float32 pictures like those that will be restored; H and W multiples of 4. Their range of
    activations sets the scales; 30 to 300 of them do. Raises UsageError where NNCF is not installed.
    """
    logger = logging.getLogger("nncf")
    level = logger.level
    try:
        # It greets on stdout when it is imported, and draws progress bars there.
        with quiet_libraries(), contextlib.redirect_stdout(io.StringIO()):
            nncf = require("nncf", "int8")
            logger.setLevel(logging.ERROR)
            return nncf.quantize(
                model,
                nncf.Dataset([x.numpy() for x in calibration]),
                subset_size=len(calibration),
                preset=nncf.QuantizationPreset.MIXED,
                fast_bias_correction=True,
            )
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the chatter of exporters (deprecations inside them, notes on opsets) from the user's terminal."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
