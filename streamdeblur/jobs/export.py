"""A network as a file of another program, checked against eager mode before it gets its name."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from streamdeblur import interrupts
from streamdeblur.errors import DiskFull, OutputError, StreamdeblurError, UsageError
from streamdeblur.models import registry
from streamdeblur.models.base import ResidualModel
from streamdeblur.models.export import export_program, require, to_onnx, to_openvino
from streamdeblur.models.trial import TOLERANCES, picture, pictures
from streamdeblur.restore.engines.cache import replacing
from streamdeblur.restore.engines.devices import PRECISIONS

Format = Literal["onnx", "torch", "openvino"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}

#: Types of weights and arithmetic that a file of each format can have; int8 is made by calibration.
_TYPES: dict[str, tuple[str, ...]] = {
    "onnx": ("fp32", "fp16"),
    "torch": ("fp32", "bf16", "fp16"),
    "openvino": ("fp32", "fp16", "int8"),
}

#: (height, width) and batch of what a program of free size is tried on.
_TRIALS = ((96, 160), (64, 128))


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written. output: the file. size: (width, height) or None for any. bytes: of all its files.

    difference: largest absolute one from eager fp32 over the test pictures, nominal [0, 1]; error and allowed: root
    mean squares (``models.trial``).
    """

    output: str
    format: Format
    model: str
    precision: str
    size: tuple[int, int] | None
    difference: float
    error: float
    allowed: float
    bytes: int


def export_network(
    output: str | os.PathLike[str],
    format: Format,  # noqa: A002  (the word of the command line)
    *,
    model: str | None = None,
    weights: str | None = None,
    size: tuple[int, int] | None = None,
    precision: str = "fp32",
    calibration: Sequence[Tensor] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a network that takes and gives images: (N, 3, H, W) float32 R'G'B' in [0, 1], H and W multiples of 4.

    format: "onnx", "torch" (``torch.export``) or "openvino" (IR: .xml, with .bin beside it). size: (width, height) of
    its only input, with a batch of one; None leaves batch and size free. precision: of weights and arithmetic; for
    "openvino" bf16 is chosen where the file runs. calibration: for "int8", (1, 3, H, W) pictures; None takes rendered
    ones. An int8 network is also put where the openvino engine of this machine finds it.

    The file is loaded again and compared with the network in eager fp32; outside of the tolerance nothing is written,
    and the engine keeps the int8 network that it had.
    Raises UsageError, WeightsError, OutputError, DiskFull.
    """
    path = Path(output)
    if format not in get_args(Format):
        raise UsageError(f"format {format!r} is not known", f"choose from {', '.join(get_args(Format))}")
    if path.suffix.lower() != SUFFIXES[format]:
        raise UsageError(f"output {path} of format {format} does not end in {SUFFIXES[format]}", "name it so with -o")
    if precision not in _TYPES[format]:
        raise UsageError(f"format {format} has no {precision} here", f"choose from {', '.join(_TYPES[format])}")
    if calibration is not None and precision != "int8":
        raise UsageError("calibration pictures are for int8", "give --int8 with them")
    files = [path, path.with_suffix(".bin")] if format == "openvino" else [path]
    for file in files:
        if file.exists() and not overwrite:
            raise OutputError(f"{file} exists", "--overwrite replaces it")
    network = registry.build(model, weights).eval().requires_grad_(False)
    shape = None if size is None else (size[1], size[0])
    write, load, keep = _formats(network, format, precision, shape, calibration)
    try:
        with contextlib.ExitStack() as put, replacing(path) as temporary:
            write(temporary)
            try:
                run = load(temporary)
                difference, error, allowed = _compare(network, run, shape, precision)
                if not error <= allowed:
                    raise OutputError(
                        f"{path} would be {error:.2g} from eager fp32 on test pictures, more than {allowed:.2g}",
                        f"nothing was written; {_advice(precision, calibration is not None)}",
                    )
                if format == "openvino":
                    put.enter_context(interrupts.held())  # until the graph is in its place, too
                    temporary.with_suffix(".bin").replace(files[1])
            finally:
                if format == "openvino":
                    temporary.with_suffix(".bin").unlink(missing_ok=True)
        keep()
    except StreamdeblurError:
        raise
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise DiskFull(f"no room for {path}", "free some space on its file system") from e
        raise OutputError(f"{path} can't be written: {e.strerror or e}", "choose another place with -o") from e
    except torch.OutOfMemoryError:
        raise
    except Exception as e:  # exporters and loaders raise what they like
        cause = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
        raise OutputError(f"{path} can't be exported as {format}: {type(e).__name__}: {cause}") from e
    name = registry.resolve(model).name if model else _variant(weights)
    total = sum(file.stat().st_size for file in files)
    return Exported(str(path), format, name, precision, size, difference, error, allowed, total)


def _advice(precision: str, calibrated: bool) -> str:
    """What to do about a network that computes something else."""
    if precision != "int8":
        return "report it with the versions of torch and of the format's library"
    # Scales are of what the pictures had in them: those of flat ones cut off all that the network corrects.
    return f"calibrate on pictures like the footage{'' if calibrated else ' with --calibrate'}"


def _variant(weights: str | None) -> str:
    if weights is not None:
        return str(registry.read_weights(weights)[1].variant)
    default = registry.default_variant()
    return default.name if default is not None else "identity"


def _formats(
    network: ResidualModel,
    format: Format,  # noqa: A002
    precision: str,
    shape: tuple[int, int] | None,
    calibration: Sequence[Tensor] | None,
) -> tuple[Callable[[Path], None], Callable[[Path], Callable[[Tensor], Tensor]], Callable[[], None]]:
    """How to write the file, how to load it as a function of a batch, and what else to do once it was found good."""
    if format == "openvino":
        from streamdeblur.restore.engines import openvino as ov

        calibrated: list[Any] = []

        def write_ir(path: Path) -> None:
            require("openvino", "openvino")
            if precision == "int8":
                calibrated.append(ov.calibrate(network, calibration or ov.default_calibration()))
                graph = _restored(calibrated[0])
                if shape is not None:
                    graph.reshape([1, 3, *shape])
            else:
                graph = to_openvino(export_program(network, size=shape))
            ov.save_graph(graph, path, half=precision == "fp16")

        def keep_calibrated() -> None:
            for graph in calibrated:
                ov.keep_int8(network, graph)

        return write_ir, _load_openvino, keep_calibrated

    program = export_program(network, size=shape, dtype=PRECISIONS[precision])
    if format == "onnx":
        return lambda path: to_onnx(program, path), _load_onnx, lambda: None

    def write_torch(path: Path) -> None:
        data = io.BytesIO()  # PyTorch's writer of files aborts the process where a disk is full
        torch.export.save(program, data)
        path.write_bytes(data.getbuffer())

    return write_torch, _load_torch, lambda: None


def _restored(graph: Any) -> Any:
    """A graph of the correction, with the input added to its result."""
    openvino = require("openvino", "openvino")
    graph = graph.clone()
    (x,), (y,) = graph.get_parameters(), graph.get_results()
    total = openvino.opset13.add(x, y.input_value(0))
    total.output(0).get_tensor().set_names({"y"})
    return openvino.Model([openvino.opset13.result(total)], [x], "restored")


def _load_torch(path: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(path).module()

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = module(x)
        return y

    return run


def _load_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    runtime = require("onnxruntime", "onnx")
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(os.fspath(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _load_openvino(path: Path) -> Callable[[Tensor], Tensor]:
    openvino = require("openvino", "openvino")
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda x: torch.from_numpy(compiled([x.numpy()])[0].copy())


def _compare(
    network: ResidualModel, run: Callable[[Tensor], Tensor], shape: tuple[int, int] | None, precision: str
) -> tuple[float, float, float]:
    """(largest absolute difference over the test pictures; root mean square and what is allowed of the worst)."""
    batches = [picture(*shape)] if shape else [pictures(*_TRIALS[0]), picture(*_TRIALS[1])]
    wanted: list[Tensor] = []
    got: list[Tensor] = []
    for x in batches:
        with torch.inference_mode():
            wanted += network.residual(x)
        result = run(x.clone())
        if result.shape != x.shape:
            raise OutputError(f"the exported network gives {tuple(result.shape)} for {tuple(x.shape)}")
        got += result.float() - x
    difference = max(float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True))
    return difference, *TOLERANCES[precision].judge(got, wanted)
