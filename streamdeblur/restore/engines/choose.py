"""From a model and the words of the user to an engine that was seen to compute what it should."""

from __future__ import annotations

import copy
import importlib.util
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from streamdeblur import heap
from streamdeblur.errors import DeviceError, StreamdeblurError, UsageError
from streamdeblur.models.base import ResidualModel
from streamdeblur.models.ensemble import SelfEnsemble
from streamdeblur.models.folding import can_fold
from streamdeblur.models.trial import fingerprint
from streamdeblur.restore.engines import kernels
from streamdeblur.restore.engines.devices import PRECISIONS, bf16_pays, resolve_precision
from streamdeblur.restore.engines.eager import TorchEngine
from streamdeblur.restore.engines.protocol import ENGINES, Engine, facts, share
from streamdeblur.restore.engines.verdicts import Trials

log = logging.getLogger(__name__)

#: Input pixels (of MIMO-UNet's 1.9 MFLOP each) from which exporting a graph for OpenVINO, about 10 s and once for a set
#: of weights, pays within a job.
PAYS_FLOP = 150e12


@dataclass(frozen=True, slots=True)
class _Way:
    """One engine in one precision. version: of its library."""

    name: str
    precision: str
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} in {self.precision}"


def build_engine(
    model: ResidualModel,
    *,
    engine: str = "auto",
    device: torch.device | None = None,
    precision: str = "auto",
    flop: float | None = None,
) -> Engine:
    """The engine asked for, or with "auto" the fastest that is there; takes over the module.

    precision: "auto", "fp32", "bf16", "fp16", or "int8" (OpenVINO only). flop: what the job will ask of the network in
    all, if that is known; with "auto" it decides whether an engine that takes long to prepare is worth it, unless that
    is prepared already.

    Each engine but eager mode is compared with eager fp32 when it is first used on a machine (``Trials``); one that
    computes something else gives way to the next, with a warning. "auto" takes for networks on CUDA: cuda-graphs; on a
    CPU in fp32, or in bf16 where that gains (``winograd.gains_by_bf16``): winograd where there is a C++ compiler; on a
    CPU else: openvino where it is installed and prepared or worth preparing, else fused; the process then keeps the
    memory that it frees (``heap``). Models without weights run in eager mode. Raises UsageError for unknown or
    impossible words, DeviceError for what this machine lacks.
    """
    began = time.perf_counter()
    if engine != "auto" and engine not in ENGINES:
        raise UsageError(f"engine {engine!r} is not known", f"choose from auto, {', '.join(ENGINES)}")
    place = device if device is not None else torch.device("cpu")
    inner = model.net if isinstance(model, SelfEnsemble) else model
    if next(inner.parameters(), None) is None:
        ignored = engine not in ("auto", "eager")
        if ignored or precision == "int8":
            words = [w for w in (f"engine {engine}" * ignored, "int8" * (precision == "int8")) if w]
            log.warning("a model without weights runs in eager fp32: %s has no effect", " and ".join(words))
        return TorchEngine(model, place, _float_type(precision, place, model))
    if place.type == "cpu":
        heap.keep_freed()  # PyTorch allocates the result of every layer anew
    print_ = fingerprint(inner)
    ways = _ways(inner, engine, place, precision, flop, print_)
    if ways[0].name == "eager":
        return TorchEngine(model, place, PRECISIONS[ways[0].precision])
    reference = copy.deepcopy(inner).eval().requires_grad_(False).to("cpu", torch.float32)

    @torch.inference_mode()
    def compute(batch: Tensor) -> Tensor:
        return reference.residual(batch)

    trials = Trials(print_, compute)
    for position, way in enumerate(ways[:-1]):
        explicit = engine == way.name or precision == "int8" == way.precision
        try:
            found = _try(way, inner, place, trials)
        except StreamdeblurError:
            if explicit:
                raise
            log.debug("engine %s is not there", way.name, exc_info=True)
            continue
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # exporters and compilers raise what they like
            cause = (str(e).strip().splitlines() or [type(e).__name__])[0][:160]
            log.warning("engine %s fails here (%s): goes on with %s", way.name, cause, ways[position + 1])
            log.debug("engine %s", way.name, exc_info=True)
            continue
        if isinstance(found, str):
            log.warning("%s: goes on with %s", found, ways[position + 1])
            continue
        result: Engine = found if inner is model else EnsembleEngine(found, _transforms(model))
        _add_seconds(result, time.perf_counter() - began - facts(found).prepare_seconds)
        return result
    return TorchEngine(model, place, PRECISIONS[ways[-1].precision])


def _transforms(model: ResidualModel) -> SelfEnsemble:
    assert isinstance(model, SelfEnsemble)
    return model


def _add_seconds(engine: Engine, seconds: float) -> None:
    target = engine.inner if isinstance(engine, EnsembleEngine) else engine
    target.prepare_seconds = facts(target).prepare_seconds + seconds  # type: ignore[attr-defined]


def _float_type(precision: str, device: torch.device, model: ResidualModel) -> torch.dtype:
    if precision == "int8":
        return torch.float32
    return resolve_precision(precision, device, model)


def _ways(
    model: ResidualModel, engine: str, device: torch.device, precision: str, flop: float | None, print_: str
) -> list[_Way]:
    """What to try, in order; the last is eager mode."""
    if precision == "int8":
        if engine not in ("auto", "openvino") or device.type != "cpu":
            raise UsageError("precision int8 needs engine openvino on the CPU", "take --precision auto elsewhere")
        from streamdeblur.restore.engines import openvino

        full = _word(resolve_precision("auto", device, model))
        return [
            _Way("openvino", "int8", f"{openvino.version()}, {full}"),  # what is not quantised runs in that
            _Way("openvino", full, openvino.version()),
            _Way("eager", full),
        ]
    if engine == "onnx":
        if precision not in ("auto", "fp32"):
            raise UsageError(f"engine onnx runs in fp32, not {precision}", "leave --precision out")
        from streamdeblur.restore.engines import onnx

        return [_Way("onnx", "fp32", onnx.version()), _Way("eager", "fp32")]
    if engine == "winograd":
        kind = ("bf16" if _kernels_take_bf16() else "fp32") if precision == "auto" else precision
        if kind not in ("fp32", "bf16"):
            raise UsageError(f"engine winograd runs in fp32 or bf16, not {kind}", "leave --precision out")
        if device.type != "cpu" or not can_fold(model, PRECISIONS[kind]):
            raise UsageError(
                f"engine winograd does not run this network in {kind} on {device}", "take --engine auto or eager"
            )
        return [_Way("winograd", kind, kernels.version()), _Way("eager", kind)]
    dtype = resolve_precision(precision, device, model)
    kind = _word(dtype)
    last = _Way("eager", kind)
    if engine == "eager":
        return [last]
    if engine == "openvino":
        if device.type != "cpu" or kind == "fp16":
            raise UsageError(f"engine openvino does not run {kind} on {device}", "take fp32, bf16 or int8 on the CPU")
        from streamdeblur.restore.engines import openvino

        return [_Way("openvino", kind, openvino.version()), last]
    if engine == "fused":
        if device.type != "cpu" or not can_fold(model, dtype):
            raise UsageError(
                f"engine fused does not run this network in {kind} on {device}", "take --engine auto or eager"
            )
        return [_Way("fused", kind), last]
    if engine == "cuda-graphs" and device.type != "cuda":
        raise UsageError(f"engine cuda-graphs does not run on {device}", "take --engine auto")
    if engine != "auto":
        return [_Way(engine, kind), last]
    if device.type == "cuda":
        return [_Way("cuda-graphs", kind), last]
    if device.type != "cpu":
        return [last]
    found = []
    if kind in ("fp32", "bf16") and can_fold(model, dtype):
        try:
            if kind == "fp32" or _kernels_gain_by_bf16():
                found.append(_Way("winograd", kind, kernels.version()))
        except DeviceError:
            log.debug("no kernels of our own", exc_info=True)
    if kind in ("fp32", "bf16") and importlib.util.find_spec("openvino") is not None:
        from streamdeblur.restore.engines import openvino

        try:
            if openvino.is_ready(print_) or (flop is not None and flop >= PAYS_FLOP):
                found.append(_Way("openvino", kind, openvino.version()))
        except UsageError:  # it is there and can't be imported
            log.debug("openvino can't be imported", exc_info=True)
    if can_fold(model, dtype):
        found.append(_Way("fused", kind))
    return [*found, last]


def _kernels_take_bf16() -> bool:
    """Whether kernels of our own are faster in bf16 than in fp32. Raises DeviceError as ``kernels.library``."""
    return bf16_pays() and bool(kernels.library().streamdeblur_half())


def _kernels_gain_by_bf16() -> bool:
    """Whether they are faster in bf16 than others are."""
    from streamdeblur.restore.engines.winograd import gains_by_bf16

    return gains_by_bf16()


def _word(dtype: torch.dtype) -> str:
    return next(word for word, kind in PRECISIONS.items() if kind == dtype)


def _try(way: _Way, model: ResidualModel, device: torch.device, trials: Trials) -> Engine | str:
    """The engine, or why it is not to be used. Raises what it raises while it gets ready."""
    known = trials.known(way.name, way.precision, device, _version(way, trials.fingerprint))
    if known is None or known.passed:
        engine = _MAKERS[way.name](model, device, way.precision)
        # Asked for anew: the engine may have calibrated a graph that was not there.
        known = trials.judge(engine, way.name, way.precision, _version(way, trials.fingerprint))
        if known.passed:
            return engine
    return (
        f"engine {way} is {known.error:.2g} from eager fp32 on test pictures, more than the {known.allowed:.2g} allowed"
    )


def _version(way: _Way, print_: str) -> str | None:
    """What a verdict on the way goes by beside machine and weights; None while the graph in question isn't kept."""
    if way.precision != "int8":
        return way.version
    from streamdeblur.restore.engines import openvino

    graph = openvino.int8_contents(print_)
    return None if graph is None else f"{way.version}, {graph}"


def _fused(model: ResidualModel, device: torch.device, precision: str) -> Engine:
    from streamdeblur.restore.engines.fused import FusedEngine

    return FusedEngine(model, PRECISIONS[precision])


def _winograd(model: ResidualModel, device: torch.device, precision: str) -> Engine:
    from streamdeblur.restore.engines.winograd import WinogradEngine

    return WinogradEngine(model, PRECISIONS[precision])


def _compiled(model: ResidualModel, device: torch.device, precision: str) -> Engine:
    from streamdeblur.restore.engines.compiled import CompiledEngine

    return CompiledEngine(model, device, PRECISIONS[precision])


def _openvino(model: ResidualModel, device: torch.device, precision: str) -> Engine:
    from streamdeblur.restore.engines.openvino import OpenVINOEngine

    return OpenVINOEngine(model, precision)


def _onnx(model: ResidualModel, device: torch.device, precision: str) -> Engine:
    from streamdeblur.restore.engines.onnx import OnnxEngine

    return OnnxEngine(model, device)


def _cuda_graphs(model: ResidualModel, device: torch.device, precision: str) -> Engine:
    from streamdeblur.restore.engines.cuda_graphs import CudaGraphEngine

    return CudaGraphEngine(copy.deepcopy(model), device, PRECISIONS[precision])


_MAKERS: dict[str, Callable[[ResidualModel, torch.device, str], Engine]] = {
    "fused": _fused,
    "winograd": _winograd,
    "compile": _compiled,
    "openvino": _openvino,
    "onnx": _onnx,
    "cuda-graphs": _cuda_graphs,
}


class _Residual(ResidualModel):
    """An engine in the place of a network."""

    def __init__(self, engine: Engine, size_multiple: int) -> None:
        super().__init__()
        self._engine = engine
        self.size_multiple = size_multiple

    @property
    def receptive_radius(self) -> int:
        return self._engine.receptive_radius

    def residual(self, x: Tensor) -> Tensor:
        return self._engine.residual(x)


class EnsembleEngine:
    """The self-ensemble of a network that ``inner`` runs: its passes one after the other, their mean in float32."""

    def __init__(self, inner: Engine, model: SelfEnsemble) -> None:
        self.inner = inner
        self.name, self.precision, self.tile = facts(inner).name, facts(inner).precision, facts(inner).tile
        self.device, self.receptive_radius = inner.device, inner.receptive_radius
        # Beside one pass of the network: the sum and one flipped copy of input and result, float32 RGB.
        self.bytes_per_pixel = inner.bytes_per_pixel + 4 * 3 * 4
        self._model = SelfEnsemble(_Residual(inner, model.size_multiple), model.transforms)

    @property
    def prepare_seconds(self) -> float:
        return facts(self.inner).prepare_seconds

    @property
    def at_once(self) -> int:
        return facts(self.inner).at_once

    def share(self) -> int:
        return share(self.inner)

    def prepare(self, height: int, width: int) -> None:
        ready = getattr(self.inner, "prepare", None)
        if ready is not None:
            ready(height, width)
            ready(width, height)  # of the turned passes

    @torch.inference_mode()
    def residual(self, batch: Tensor) -> Tensor:
        return self._model.residual(batch)
