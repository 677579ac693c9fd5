"""What is measured: models, engines and tilings, from the words that name them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamdeblur.errors import DeviceError, UsageError, WeightsError
from streamdeblur.evaluation.benchmark import reference
from streamdeblur.models import registry
from streamdeblur.models.analysis import gflop
from streamdeblur.restore import Restorer, Tiling
from streamdeblur.restore.engines import ENGINES, facts
from streamdeblur.restore.engines.streams import own_stream
from streamdeblur.restore.memory import FAST_OVERLAP, own_memory
from streamdeblur.restore.tiles import GRID, MODES, round_up

#: Heights and what they stand for.
SIZES = {"360p": (640, 360), "720p": (1280, 720), "1080p": (1920, 1080), "4k": (3840, 2160)}

#: Pixels of a job that is worth any preparation.
_LONG = 10**13

_SIZE = re.compile(r"(\d+)x(\d+)")
_TILE = re.compile(r"(\d+)(?:/(\d+))?")
_EXACT = re.compile(r"exact/(\d+)")

#: What rows have for weights that ship.
SHIPPED = "shipped"


def labelled(model: str, weights: str) -> str:
    """A model as tables name it."""
    return model if weights == SHIPPED else f"{model} ({weights})"


@dataclass(frozen=True, slots=True)
class Model:
    """A variant with weights. weights: a file or random:SEED, None for what ships."""

    name: str
    weights: str | None = None

    @property
    def random(self) -> bool:
        """Whether the weights are made up: good for times, not for quality."""
        return self.weights is not None and self.weights.startswith("random:")

    @property
    def label(self) -> str:
        """The variant, and the weights where they are not those that ship."""
        return labelled(self.name, self.weights or SHIPPED)

    def gflop(self, height: int, width: int) -> float | None:
        """1e9 operations of one frame as the paper defines the network; None for a model without one."""
        variant = registry.resolve(self.name)
        if variant.config is None:
            return None
        return gflop(variant.config, round_up(height), round_up(width)) * variant.passes


@dataclass(frozen=True, slots=True)
class Way:
    """How frames are restored.

    engine: a word of ``ENGINES``, "auto", or "reference" for the loop of research code. precision: "auto", "fp32", ...
    tiling: "auto", "whole", "exact", "fast", TILE, TILE/OVERLAP or exact/TILE (px). batch: windows in a call of the
    network, None leaves it to the tiling.
    """

    engine: str
    precision: str = "auto"
    tiling: str = "auto"
    batch: int | None = None


def parse_model(word: str) -> Model:
    """NAME or NAME=WEIGHTS. A network without shipped weights gets random ones. Raises UsageError."""
    name, _, weights = word.partition("=")
    variant = registry.resolve(name)
    if not weights and variant.config is not None and registry.shipped_weights(variant) is None:
        weights = "random:0"
    return Model(variant.name, weights or None)


def check_weights(model: Model) -> None:
    """See that a file of weights is there. Raises WeightsError."""
    if model.weights is not None and not model.random and not Path(model.weights).exists():
        raise WeightsError(f"there is no weights file {model.weights}", "check the path")


def parse_size(word: str) -> tuple[int, int]:
    """(width, height) of "720p", "4k" or "1280x720". Raises UsageError."""
    known = SIZES.get(word.lower())
    if known:
        return known
    found = _SIZE.fullmatch(word.lower())
    if not found or "0" in (found[1].lstrip("0") or "0", found[2].lstrip("0") or "0"):
        raise UsageError(f"size {word!r} is none", f"write WIDTHxHEIGHT, or one of {', '.join(SIZES)}")
    return int(found[1]), int(found[2])


def parse_tiling(word: str) -> str | Tiling:
    """What a ``Restorer`` takes, of "auto", a mode, TILE, TILE/OVERLAP or exact/TILE. Raises UsageError.

    Pixels are multiples of the network's grid, and windows leave it room to advance.
    """
    if word == "auto" or word in MODES:
        return word
    if exact := _EXACT.fullmatch(word):
        return Tiling("exact", _on_grid(word, int(exact[1])), 0)
    found = _TILE.fullmatch(word)
    if not found:
        raise UsageError(f"tiling {word!r} is none", f"write auto, {', '.join(MODES)}, TILE or TILE/OVERLAP in pixels")
    tile = _on_grid(word, int(found[1]))
    overlap = int(found[2]) if found[2] else min(FAST_OVERLAP, tile // 4 // GRID * GRID)
    if overlap % GRID:
        raise UsageError(f"tiling {word!r} has an overlap off the network's grid", _nearest(overlap, "an overlap"))
    if overlap > tile - GRID:
        raise UsageError(
            f"tiling {word!r}: windows of {tile} px cannot share {overlap} px", "take a larger tile or less overlap"
        )
    return Tiling("fast", tile, overlap)


def _on_grid(word: str, tile: int) -> int:
    """The side of a window, which would be rounded down in silence otherwise."""
    if tile < GRID or tile % GRID:
        raise UsageError(f"tiling {word!r} has windows off the network's grid", _nearest(tile, "a tile"))
    return tile


def _nearest(pixels: int, what: str) -> str:
    return f"give {what} that is a multiple of {GRID} px, as {max(GRID, round_up(pixels))}"


def check_engine(word: str) -> str:
    """A word that names an engine. Raises UsageError."""
    if word != "auto" and word not in ENGINES:
        raise UsageError(f"engine {word!r} is not known", f"choose from auto, {', '.join(ENGINES)}")
    return word


def engines_for(device: torch.device) -> list[str]:
    """The words of ``ENGINES`` that may run on such a device, whatever is installed."""
    only = {
        "cpu": {"eager", "fused", "winograd", "compile", "openvino", "onnx"},
        "cuda": {"eager", "compile", "onnx", "cuda-graphs"},
    }
    return [word for word in ENGINES if word in only.get(device.type, {"eager"})]


def tiling_words(t: Tiling) -> str:
    """A tiling in words."""
    if t.mode == "whole":
        return "whole"
    return f"exact {t.tile}" if t.mode == "exact" else f"fast {t.tile}/{t.overlap}"


def tiling_word(t: Tiling) -> str:
    """What ``parse_tiling`` takes for it."""
    return {"fast": f"{t.tile}/{t.overlap}", "exact": f"exact/{t.tile}"}.get(t.mode, t.mode)


def asked_tiling(word: str) -> str:
    """A word for a tiling as rows name it: in words where it is one tiling, as it is where it leaves a choice."""
    tiling = parse_tiling(word)
    return tiling if isinstance(tiling, str) else tiling_words(tiling)


@dataclass(frozen=True, eq=False)
class Built:
    """A restorer for one way, ready for frames of one size, and what is known of it.

    build_s: seconds until the engine was there (weights read, converted), first calls not included; an engine that
    serves several ways is built once. tiling: None for the reference.
    """

    run: Callable[[Tensor], Tensor]
    device: torch.device
    engine: str
    precision: str
    tiling: Tiling | None
    windows: int
    computed: float
    build_s: float
    at_once: int = 1

    def together(self, image: Tensor) -> None:
        """As many frames as are restored side by side, on threads that stay: all alike."""
        if self.at_once == 1:
            self.run(image)
        else:
            list(callers(self.at_once).map(self._beside, [image] * self.at_once))

    def _beside(self, image: Tensor) -> None:
        with own_stream(self.device):  # as a job's threads
            self.run(image)


@cache
def callers(count: int) -> ThreadPoolExecutor:
    """Threads that call a restorer at once."""
    return ThreadPoolExecutor(count)


class Builder:
    """Builds ways of one model, each engine once. For one thread.

    memory: bytes that tilings are planned for, as if each engine were alone in the process. before: what the process
    had taken (``own_memory``) before any engine was built in it; None is what it has now.
    """

    def __init__(self, model: Model, device: str, memory: int | None = None, *, before: int | None = None) -> None:
        self._model, self._device, self._memory = model, device, memory
        self._before = 0 if memory is None else own_memory(torch.device(device)) if before is None else before
        self._grown: dict[tuple[str, str], int] = {}
        self._engines: dict[tuple[str, str], tuple[Any, float]] = {}
        self._reference: tuple[reference.Reference, float] | None = None

    def engine(self, word: str, precision: str) -> tuple[Any, float]:
        """The engine and the seconds it took; "auto" is what a long job gets. Raises what ``Restorer`` does."""
        found = self._engines.get((word, precision))
        if found is None:
            had, begun = self._taken(), time.perf_counter()
            m = self._model
            restorer = Restorer(
                m.name, weights=m.weights, device=self._device, precision=precision, engine=word, pixels=_LONG
            )
            found = restorer.engine, time.perf_counter() - begun
            self._engines[word, precision] = found
            self._grown[word, precision] = max(0, self._taken() - had)
        return found

    def _taken(self) -> int:
        return 0 if self._memory is None else own_memory(torch.device(self._device))

    def exactly(self, word: str, precision: str) -> tuple[Any, float]:
        """As ``engine``; raises DeviceError also where another one runs in place of the engine that was named."""
        found = self.engine(word, precision)
        known = facts(found[0])
        if word not in ("auto", known.name):
            raise DeviceError(f"engine {word} is not to be had here", f"{known.name} ran in its place")
        return found

    def planner(self, way: Way) -> Restorer:
        """A restorer that plans the tiling of a way, within the memory. Raises what ``exactly`` does, UsageError, and
        DeviceError where the memory is too little for any frame."""
        engine, _ = self.exactly(way.engine, way.precision)
        limit = self._memory
        if limit is not None:  # what other engines have left here does not count
            limit += max(0, self._taken() - self._before - self._grown[way.engine, way.precision])
        return Restorer(engine=engine, tiling=parse_tiling(way.tiling), memory=limit)

    def reference(self, device: torch.device) -> reference.Reference:
        """The loop of research code. Raises UsageError where the model has none."""
        if self._reference is None:
            begun = time.perf_counter()
            made = reference.Reference(self._model.name, self._model.weights, device)
            self._reference = made, time.perf_counter() - begun
        return self._reference[0]

    def build(self, way: Way, size: tuple[int, int], device: torch.device) -> Built:
        """Ready for frames of ``size`` (width, height). Raises UsageError, DeviceError, WeightsError."""
        width, height = size
        if way.engine == reference.NAME:
            loop = self.reference(device)
            assert self._reference is not None
            return Built(loop, device, reference.NAME, "fp32", None, 1, 1.0, self._reference[1])
        engine, taken = self.exactly(way.engine, way.precision)
        known = facts(engine)
        planner = self.planner(way)
        planner.share()
        tiling = planner.plan(height, width)
        if way.batch is not None:
            tiling = replace(tiling, batch=way.batch)
        plan = tiling.plan(height, width, engine.receptive_radius)
        restorer = Restorer(engine=engine, tiling=tiling)
        return Built(
            restorer,
            engine.device,
            known.name,
            known.precision,
            tiling,
            plan.count,
            plan.count * plan.area / (width * height),
            taken,
            restorer.share(),
        )
