"""What is measured: our variants through ``Restorer``, and anybody's restorer through a small protocol.

A model is named by one word:

    mimo-unet                        a variant, with the weights that ship (or those of ``--weights``)
    mimo-unet-small=FILE, =random:0  a variant with weights of its own
    FILE.safetensors, FILE.pkl       the variant that the checkpoint holds
    package.module:factory           a Python factory, called without arguments, returns a ``Restores``
    FILE.py:factory                  the same from a file
    FILE.pt2                         a program saved by ``torch.export.save``
    FILE.onnx                        a network for onnxruntime

Other people's restorers get one whole float32 image at a time, padded to a multiple where asked, and are never tiled.
Python factories, .pt2 files and pickles may run code of their author's: load only what you trust.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from streamdeblur.detect.factories import FactoryWord, factory_word
from streamdeblur.errors import DeviceError, StreamdeblurError, UsageError, WeightsError
from streamdeblur.evaluation.onnx_files import count_parameters
from streamdeblur.evaluation.results import legible
from streamdeblur.models import registry
from streamdeblur.models.analysis import gflop, parameters
from streamdeblur.models.base import ResidualModel
from streamdeblur.models.ensemble import SelfEnsemble
from streamdeblur.models.mimo_unet import MIMOUNet
from streamdeblur.restore import Restorer, TorchEngine
from streamdeblur.restore.blend import pad_frame
from streamdeblur.restore.engines import resolve_device, resolve_precision
from streamdeblur.restore.engines.quiet import debugging, quiet_torch
from streamdeblur.restore.tiles import round_up

log = logging.getLogger(__name__)

#: Above this a result is hardly meant to be in [0, 1].
_BRIGHTEST = 4.0

#: Names that reports use for the two sides of a pair.
RESERVED = ("blurry", "sharp")
_CHECKPOINTS = (".safetensors", ".pkl", ".pth", ".pt")


class Restores(Protocol):
    """Anything that deblurs: (N, 3, H, W) float32 R'G'B' in [0, 1] → the restored images, same shape, any float type.

    It is called with N = 1, on one device, from one thread, without gradients, and may write to what it is given. What
    leaves [0, 1] is clamped before it is measured. An attribute ``size_multiple`` (int) asks for padding to its
    multiples.
    """

    def __call__(self, x: Tensor, /) -> Tensor:
        """The restored images."""


@dataclass(eq=False)
class Candidate:
    """A restorer with what is known of it.

    name: unique among those measured together. source: the word it was asked for by. kind: "streamdeblur", "python",
    "torch.export" or "onnx". device: where images are expected. precision, tiling: for the record.
    parameters: how many numbers are learned, None where that can't be told.
    count: (height, width) → GFLOP of an image, multiply and add counted apart; None counts by running it.
    home: in which its own imports work; see ``FactoryWord.at_home``.
    """

    name: str
    source: str
    kind: str
    restores: Restores
    device: torch.device
    precision: str
    tiling: str
    parameters: int | None = None
    count: Callable[[int, int], float] | None = None
    home: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    _warned: bool = field(default=False, init=False)

    def __call__(self, x: Tensor) -> Tensor:
        """``run`` and ``check`` in one, at home."""
        with self.home():
            return self.check(x, self.run(x))

    def run(self, x: Tensor) -> Any:
        """What the restorer returns for (1, 3, H, W) on ``device``. To be timed: whoever calls it enters ``home``.

        Raises StreamdeblurError where it fails.
        """
        try:
            with torch.no_grad():
                return self.restores(x)
        except StreamdeblurError:
            raise
        except (Exception, SystemExit) as e:  # some programs exit where they fail
            cause = str(e).strip().splitlines() or [type(e).__name__]
            raise StreamdeblurError(
                f"model {self.name} failed on an image of {x.shape[3]}x{x.shape[2]}: {type(e).__name__}: "
                f"{cause[0][:200]}",
                None if self.kind == "streamdeblur" else "sizes of a multiple only? --multiple N pads them",
            ) from e

    def check(self, x: Tensor, result: Any) -> Tensor:
        """The restored image, float32, unclamped; with a warning where it is far above 1.

        Raises StreamdeblurError for what is no image like ``x``.
        """
        height, width = x.shape[-2:]
        if isinstance(result, (tuple, list)) and self.kind in ("torch.export", "onnx"):
            fitting = [r for r in result if isinstance(r, Tensor) and r.shape == x.shape]
            result = fitting[0] if len(fitting) == 1 else result
        if not isinstance(result, Tensor):
            what = type(result).__name__ + (f" of {len(result)}" if isinstance(result, (tuple, list)) else "")
            raise StreamdeblurError(f"model {self.name} returned a {what}, not a tensor", "wrap it to return one image")
        if result.shape != x.shape:
            raise StreamdeblurError(
                f"model {self.name} returned {tuple(result.shape)} for an image of {tuple(x.shape)}",
                "a restorer keeps the size; --multiple N pads what it gets",
            )
        if not result.is_floating_point():
            raise StreamdeblurError(f"model {self.name} returned {result.dtype}", "return float RGB in [0, 1]")
        if not bool(torch.isfinite(result).all()):
            raise StreamdeblurError(
                f"model {self.name} returned values that are not finite for an image of {width}x{height}",
                "check its weights, and fp16 for overflow",
            )
        if not self._warned and float(result.max()) > _BRIGHTEST:
            self._warned = True
            log.warning(
                "model %s returned values up to %g: RGB in [0, 1] is meant, what is above is cut",
                self.name,
                float(result.max()),
            )
        return result.detach().to(x.device, torch.float32)

    def gflop(self, x: Tensor) -> float | None:
        """1e9 operations for one image like ``x``, multiply and add counted apart; None where they can't be counted."""
        if self.count is not None:
            return self.count(x.shape[-2], x.shape[-1])
        if self.kind == "onnx":
            return None
        from torch.utils.flop_counter import FlopCounterMode

        try:
            with self.home(), FlopCounterMode(display=False) as counter, torch.no_grad():
                self.restores(x.clone())
        except (Exception, SystemExit):
            return None  # code that does not go with the counter; one that does not work at all is told by ``run``
        return counter.get_total_flops() / 1e9 or None


def load_candidates(
    words: Sequence[str],
    *,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    tiling: str = "auto",
    multiple: int = 1,
) -> list[Candidate]:
    """What the words name (see the module), in their order, with unique names; without words, the default variant.

    weights: for variants of ours that take weights and name none. multiple: for others, see ``MeasureOptions``.
    Raises UsageError, WeightsError, DeviceError.
    """
    place = resolve_device(device)
    asked: Sequence[str | None] = words or (None,)
    found = [_load(word, weights, place, precision, tiling, multiple) for word in asked]
    _tell_apart(found, weights)
    return found


def _tell_apart(candidates: Sequence[Candidate], weights: str | None) -> None:
    """Make names unique: by weights or file where they differ, with as much of the path as it takes; else by number."""
    counts = Counter(c.name for c in candidates)
    groups: dict[str, list[Candidate]] = {}
    for c in candidates:
        if counts[c.name] > 1 or c.name in RESERVED:
            groups.setdefault(c.name, []).append(c)
    for name, group in groups.items():
        details = [
            Path(c.source.partition("=")[2] or (weights if c.kind == "streamdeblur" else None) or c.source)
            for c in group
        ]
        for c, detail in zip(group, details, strict=True):
            c.name = f"{name} ({_shortest(detail, details)})"
    counts, seen = Counter(c.name for c in candidates), Counter[str]()
    for c in candidates:
        if counts[c.name] > 1:
            seen[c.name] += 1
            c.name = f"{c.name} #{seen[c.name]}"
        c.name = legible(c.name)


def _shortest(path: Path, among: Sequence[Path]) -> Path:
    """The end of a path that no other one of these has."""
    for n in range(1, len(path.parts)):
        if all(other == path or other.parts[-n:] != path.parts[-n:] for other in among):
            return Path(*path.parts[-n:])
    return path


def _load(
    word: str | None, weights: str | None, place: torch.device, precision: str, tiling: str, multiple: int
) -> Candidate:
    if word is None:
        return _ours("", None, weights, place, precision, tiling)
    suffix = Path(word).suffix.lower()
    name, equals, own = word.partition("=")
    if equals and registry.knows(name):
        return _ours(word, name, own, place, precision, tiling)
    if suffix == ".pt2":
        return _exported(word, place, multiple)
    if suffix == ".onnx":
        return _onnx(word, place, multiple)
    if suffix in _CHECKPOINTS:
        return _ours(word, None, word, place, precision, tiling)
    factory = factory_word(word)
    if factory:
        return _python(factory, place, multiple)
    try:
        variant = registry.resolve(name)
    except UsageError as e:
        raise UsageError(
            e.what, f"{e.hint}; or give NAME=WEIGHTS, module:factory, FILE.py:factory, FILE.pt2 or FILE.onnx"
        ) from None
    return _ours(word, name, weights if variant.config is not None else None, place, precision, tiling)


def _ours(
    word: str, name: str | None, weights: str | None, place: torch.device, precision: str, tiling: str
) -> Candidate:
    network = registry.build(name, weights)
    dtype = resolve_precision(precision, place, network)
    learned = parameters(network)
    if name is None:
        name = _variant_of(network, weights)
    count = _counter(network)
    restorer = Restorer(engine=TorchEngine(network, place, dtype), tiling=tiling)
    label = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    return Candidate(name, word or name, "streamdeblur", restorer, place, label, tiling, learned, count)


def _variant_of(network: ResidualModel, weights: str | None) -> str:
    if weights is not None and not weights.startswith("random:"):
        return registry.read_weights(weights)[1].variant
    default = registry.default_variant()
    return default.name if default is not None else type(network).__name__


def _counter(network: ResidualModel) -> Callable[[int, int], float] | None:
    """GFLOP by the definition of ``models.analysis``, of the padded image, every pass of an ensemble."""
    plain = network.net if isinstance(network, SelfEnsemble) else network
    passes = network.transforms if isinstance(network, SelfEnsemble) else 1
    if isinstance(plain, MIMOUNet):
        config = plain.config
        return lambda height, width: passes * gflop(config, round_up(height), round_up(width))
    return lambda height, width: 0.0


class _Padded:
    """A restorer that sees whole images, extended to multiples at the right and bottom by reflection, and cut again."""

    def __init__(self, inner: Callable[[Tensor], Any], multiple: int) -> None:
        self._inner, self._multiple = inner, multiple

    def __call__(self, x: Tensor, /) -> Any:
        height, width = x.shape[-2:]
        padded = (round_up(height, self._multiple), round_up(width, self._multiple))
        if padded == (height, width):
            return self._inner(x)
        result = self._inner(pad_frame(x, padded))
        if isinstance(result, Tensor):
            return _cut(result, padded, (height, width))
        if isinstance(result, (tuple, list)):
            return [_cut(r, padded, (height, width)) for r in result]
        return result


def _cut(result: Any, padded: tuple[int, int], size: tuple[int, int]) -> Any:
    if isinstance(result, Tensor) and result.dim() == 4 and result.shape[-2:] == padded:
        return result[..., : size[0], : size[1]]
    return result


def _python(factory: FactoryWord, place: torch.device, multiple: int) -> Candidate:
    made = factory.build("model")
    learned = None
    precision = "its own"
    if isinstance(made, nn.Module):
        made = made.eval().requires_grad_(False).to(place)
        learned = parameters(made)
        kinds = {str(p.dtype).removeprefix("torch.") for p in made.parameters()}
        precision = "/".join(sorted(kinds)).replace("float32", "fp32") or precision
    step = _positive(getattr(made, "size_multiple", 1))
    restores = cast(Restores, _Padded(made, max(multiple, step)))
    return Candidate(
        factory.label, factory.word, "python", restores, place, precision, "whole", learned, home=factory.at_home
    )


def _positive(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def _exported(word: str, place: torch.device, multiple: int) -> Candidate:
    path = _file(word)
    try:
        with quiet_torch():
            program = torch.export.load(path)
        if place.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, place)
        module = program.module()
    except Exception as e:  # zip, schema and operator errors all differ
        cause = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise WeightsError(
            f"{word} is not a program that this PyTorch loads: {cause[:200]}", "save it with torch.export.save"
        ) from e
    learned = sum(p.numel() for p in program.parameters())
    kinds = {str(p.dtype).removeprefix("torch.") for p in program.parameters()}
    precision = "/".join(sorted(kinds)).replace("float32", "fp32") or "its own"
    restores = cast(Restores, _Padded(module, multiple))
    return Candidate(path.stem, word, "torch.export", restores, place, precision, "whole", learned)


def _onnx(word: str, place: torch.device, multiple: int) -> Candidate:
    path = _file(word)
    try:
        import onnxruntime
    except ImportError as e:
        raise UsageError(f"{word} needs onnxruntime", "pip install 'streamdeblur[detect]'") from e
    providers = ["CPUExecutionProvider"]
    if place.type == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise DeviceError(f"onnxruntime has no CUDA for {word}", "install onnxruntime-gpu, or take --device cpu")
        providers.insert(0, "CUDAExecutionProvider")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # its errors are raised as well, and become one line of ours
    settings.log_severity_level = 3 if debugging() else 4
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), settings, providers=providers)
    except Exception as e:  # its exceptions share no base class
        cause = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise WeightsError(f"{word} is not a network that onnxruntime loads: {cause[:200]}") from e
    inputs = session.get_inputs()
    shape = list(inputs[0].shape) if len(inputs) == 1 else []
    if len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        raise WeightsError(
            f"{word} takes {', '.join(f'{i.name} {i.shape}' for i in inputs)}", "it must take one (N, 3, H, W) image"
        )
    if isinstance(shape[0], int) and shape[0] != 1:
        raise WeightsError(f"{word} takes {shape[0]} images at once", "export it for one, or for any number")
    kinds: dict[str, type[np.floating[Any]]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    if inputs[0].type not in kinds:
        raise WeightsError(f"{word} takes {inputs[0].type}", "it must take float or float16")
    restores = cast(Restores, _Padded(_Session(session, word, kinds[inputs[0].type]), multiple))
    precision = "fp16" if kinds[inputs[0].type] is np.float16 else "fp32"
    learned = count_parameters(path)
    return Candidate(path.stem, word, "onnx", restores, torch.device("cpu"), precision, "whole", learned)


class _Session:
    """An onnxruntime session as a function of a tensor; it takes and returns memory of the CPU."""

    def __init__(self, session: Any, word: str, kind: type[np.floating[Any]]) -> None:
        self._session, self._word, self._kind = session, word, kind
        self._input = session.get_inputs()[0]

    def __call__(self, x: Tensor) -> Any:
        for wanted, given in zip(self._input.shape[2:], x.shape[2:], strict=True):
            if isinstance(wanted, int) and wanted != given:
                high, wide = self._input.shape[2:]
                raise UsageError(
                    f"{self._word} takes {wide}x{high} only, and the image is {x.shape[3]}x{x.shape[2]}",
                    "export it with dynamic height and width",
                )
        results = self._session.run(None, {self._input.name: x.numpy().astype(self._kind, copy=False)})
        tensors = [torch.from_numpy(np.asarray(r)) for r in results]
        return tensors[0] if len(tensors) == 1 else tensors


def _file(word: str) -> Path:
    path = Path(word)
    if not path.is_file():
        raise WeightsError(f"model file {word} does not exist", "check the path")
    return path
