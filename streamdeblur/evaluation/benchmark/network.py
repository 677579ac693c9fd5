"""The network alone, tensor to tensor: every way beside the reference loop, in one run."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamdeblur import heap
from streamdeblur.errors import StreamdeblurError
from streamdeblur.evaluation.benchmark import reference
from streamdeblur.evaluation.benchmark.ceiling import Product, product
from streamdeblur.evaluation.benchmark.energy import Meter, find_meter
from streamdeblur.evaluation.benchmark.pictures import picture, psnr_between
from streamdeblur.evaluation.benchmark.timing import Ratio, Timing, alternate, faster, per, plain, timed
from streamdeblur.evaluation.benchmark.ways import (
    SHIPPED,
    Builder,
    Built,
    Model,
    Way,
    asked_tiling,
    tiling_word,
    tiling_words,
)
from streamdeblur.restore.memory import free_memory, own_memory

log = logging.getLogger(__name__)

Tell = Callable[[str], None]

#: A way that took so many seconds already sits further rounds out, once it has two.
PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One way on frames of one size. What could not be measured is None; ``failed`` says why nothing could.

    engine, precision, tiling: what the words became; asked_tiling: what was asked of tilings. at_once: frames restored
    side by side; times are for one of them.
    windows: of a frame; computed: pixels computed for each one of the frame. build_s: reading and converting weights;
    ``time.first`` is the call before the measured ones. tflops: operations of the whole frame as the paper counts them,
    by the median, in 1e12 a second; ceiling_tflops: those of a matrix product in that precision, timed in turns with
    the ways. psnr_fp32: of the result against the reference's in fp32 (on CUDA its own rounds factors to TF32).
    peak_bytes: largest memory of a process that does this and nothing else;
    above_bytes: of that, what came after the engine was built.
    """

    model: str
    weights: str
    size: tuple[int, int]
    asked: str
    engine: str
    precision: str
    tiling: str
    asked_tiling: str
    batch: int
    at_once: int
    windows: int
    computed: float
    build_s: float | None
    time: Timing | None
    faster: Ratio | None = None
    tflops: float | None = None
    ceiling_tflops: float | None = None
    psnr_fp32: float | None = None
    peak_bytes: int | None = None
    above_bytes: int | None = None
    failed: str | None = None

    @property
    def fps(self) -> float | None:
        return None if self.time is None else 1 / self.time.median

    @property
    def megapixels(self) -> float | None:
        """Of frames, a second."""
        return None if self.time is None else self.size[0] * self.size[1] / self.time.median / 1e6

    @property
    def share(self) -> float | None:
        """Of the ceiling."""
        if self.tflops is None or not self.ceiling_tflops:
            return None
        return self.tflops / self.ceiling_tflops

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}" if self.engine != reference.NAME else reference.NAME

    def as_dict(self) -> dict[str, Any]:
        """JSON values only."""
        values = {n: getattr(self, n) for n in self.__slots__}
        values["size"] = f"{self.size[0]}x{self.size[1]}"
        return dict(plain({**values, "fps": self.fps, "mpx_s": self.megapixels, "share_of_ceiling": self.share}))


@dataclass(slots=True)
class NetworkResult:
    """All rows, and what the meter counts (None: nothing tells)."""

    rows: list[NetworkRow] = field(default_factory=list)
    meter: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"reference": reference.WORDS, "energy_of": self.meter, "rows": [r.as_dict() for r in self.rows]}


@dataclass(slots=True)
class _Candidate:
    way: Way
    built: Built | None = None
    first: float | None = None
    result: Tensor | None = None
    failed: str | None = None


def network(
    models: Sequence[Model],
    sizes: Sequence[tuple[int, int]],
    ways: Sequence[Way],
    device: torch.device,
    rounds: int,
    *,
    compare: bool = True,
    memory: bool = True,
    limit: int | None = None,
    budget: float = 6.0,
    tell: Tell = lambda _: None,
) -> NetworkResult:
    """Measure every way on every model and size.

    compare: the reference loop is among the ways (where it fits into memory). memory: measure the peak memory of every
    way in a process of its own. limit: bytes that tilings are planned for, None for what is free. budget: seconds up to
    which rounds are added for what is quick. tell: gets a line for each step. A way that can't be built or fails has a
    row that says why.
    """
    meter = find_meter(device)
    result = NetworkResult(meter=None if meter is None else meter.name)
    products: dict[str, Product | None] = {}
    before = None if limit is None else own_memory(device)
    for model in models:
        builder = Builder(model, str(device), limit, before=before)
        wanted = [Way(reference.NAME)] if compare and reference.exists(model.name) else []
        for size in sizes:
            tell(f"{model.name} at {size[0]}x{size[1]}")
            rows = _one_size(builder, model, size, [*wanted, *ways], device, rounds, budget, meter, products, tell)
            result.rows += [_with_memory(r, w, device, tell) if memory else r for r, w in rows]
    return result


def _one_size(
    builder: Builder,
    model: Model,
    size: tuple[int, int],
    ways: Sequence[Way],
    device: torch.device,
    rounds: int,
    budget: float,
    meter: Meter | None,
    products: dict[str, Product | None],
    tell: Tell,
) -> list[tuple[NetworkRow, Way]]:
    width, height = size
    image = picture(height, width).to(device)
    candidates = _distinct([_first_call(builder, way, size, image, device, tell) for way in ways])
    running = {str(i): c for i, c in enumerate(candidates) if c.built is not None}
    calls: dict[str, Callable[[], object]] = {n: _call(c.built, image) for n, c in running.items() if c.built}
    first = {n: c.first for n, c in running.items() if c.first is not None}
    needed = {_arithmetic(c.built, device) for c in running.values() if c.built}
    for name in needed - products.keys():
        tell(f"ceiling of {name}")
        products[name] = product(name, device)
    for name in needed:
        found = products[name]
        if found is not None:
            calls[f"ceiling {name}"] = found.call
    tell(f"{len(running)} ways in turns")
    usual = {n: heap.as_usual for n, c in running.items() if c.way.engine == reference.NAME}
    times = alternate(calls, device, rounds, budget, limit=PATIENCE, meter=meter, first=first, around=usual)
    times |= {n: per(times[n], c.built.at_once) for n, c in running.items() if c.built}
    truth = next((c.result for c in candidates if c.way.engine == reference.NAME), None)
    if truth is not None and device.type == "cuda":
        truth = builder.reference(device).exact(image)
    slow = next((times[n] for n, c in running.items() if c.way.engine == reference.NAME), None)
    work = model.gflop(height, width)
    rows = []
    for i, c in enumerate(candidates):
        row = NetworkRow(
            model=model.name,
            weights=model.weights or SHIPPED,
            size=size,
            asked=c.way.engine,
            engine=c.built.engine if c.built else c.way.engine,
            precision=c.built.precision if c.built else c.way.precision,
            tiling=_tiling_words(c),
            asked_tiling=asked_tiling(c.way.tiling),
            batch=c.built.tiling.batch if c.built and c.built.tiling else c.way.batch or 1,
            at_once=c.built.at_once if c.built else 1,
            windows=c.built.windows if c.built else 0,
            computed=c.built.computed if c.built else math.nan,
            build_s=c.built.build_s if c.built else None,
            time=None,
            failed=c.failed,
        )
        if c.built is None:
            rows.append((row, c.way))
            continue
        way, planned = c.way, c.built.tiling
        if planned is not None:  # the memory of this very tiling is measured, whatever another process would plan
            way = replace(way, tiling=tiling_word(planned), batch=planned.batch)
        t = times[str(i)]
        roof = products[_arithmetic(c.built, device)]
        changes: dict[str, Any] = {"time": t}
        if slow is not None and slow is not t:
            changes["faster"] = faster(slow, t)
        if work is not None:
            changes["tflops"] = work / t.median / 1e3
        if roof is not None:
            changes["ceiling_tflops"] = roof.flop / times[f"ceiling {roof.precision}"].median / 1e12
        if truth is not None and c.result is not None and c.result is not truth:
            changes["psnr_fp32"] = psnr_between(truth, c.result)
        rows.append((_replaced(row, **changes), way))
    return rows


def _replaced(row: NetworkRow, **changes: Any) -> NetworkRow:
    return NetworkRow(**{**{n: getattr(row, n) for n in row.__slots__}, **changes})


def _tiling_words(c: _Candidate) -> str:
    if c.built is None:
        return c.way.tiling
    return "whole" if c.built.tiling is None else tiling_words(c.built.tiling)


def _arithmetic(built: Built, device: torch.device) -> str:
    """The precision of the product that a way is compared with."""
    return "tf32" if built.engine == reference.NAME and device.type == "cuda" else built.precision


def _call(built: Built, image: Tensor) -> Callable[[], None]:
    return lambda: built.together(image)


def _first_call(
    builder: Builder, way: Way, size: tuple[int, int], image: Tensor, device: torch.device, tell: Tell
) -> _Candidate:
    """The way built and called once; its failure is kept in place of a result."""
    c = _Candidate(way)
    try:
        if way.engine == reference.NAME:
            _require_room(builder.reference(device), size, device)
        tell(f"{way.engine} {way.precision} {way.tiling}: building, first call")
        c.built = builder.build(way, size, device)
        built = c.built

        def call() -> None:
            c.result = built.run(image)

        c.first = timed(call, device)
    except (StreamdeblurError, RuntimeError, ImportError) as e:  # other engines' errors are RuntimeErrors
        c.built, c.result = None, None
        c.failed = (str(e).strip().splitlines() or [type(e).__name__])[0]
        log.warning("%s %s at %dx%d is left out: %s", way.engine, way.precision, *size, c.failed)
    return c


def _require_room(loop: reference.Reference, size: tuple[int, int], device: torch.device) -> None:
    """Raises StreamdeblurError where a whole frame would not fit: on a CPU that is a kill, not an exception."""
    if device.type == "cpu":
        needed, free = loop.bytes_per_pixel * size[0] * size[1], free_memory()
        if needed > 0.9 * free:
            raise StreamdeblurError(f"a whole frame needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} are free")


def _distinct(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Each thing once: "auto" is one of the engines, and several tilings may cut a small frame alike."""
    kept: list[_Candidate] = []
    seen: dict[Any, _Candidate] = {}
    for c in candidates:
        if c.built is not None:
            key = (c.built.engine, c.built.precision, c.built.tiling)
            if key in seen:
                continue
            seen[key] = c
        kept.append(c)
    return kept


# --- memory, in a process of its own ---------------------------------------------------------------------------------


def _with_memory(row: NetworkRow, way: Way, device: torch.device, tell: Tell) -> NetworkRow:
    if row.time is None:
        return row
    tell(f"memory of {row.name} at {row.size[0]}x{row.size[1]}")
    try:
        told = child_memory(Model(row.model, None if row.weights == SHIPPED else row.weights), row.size, way, device)
    except StreamdeblurError as e:
        log.warning("no memory figure for %s: %s", row.name, e)
        return row
    return _replaced(row, peak_bytes=told["peak_bytes"], above_bytes=told["peak_bytes"] - told["start_bytes"])


def child_memory(model: Model, size: tuple[int, int], way: Way, device: torch.device) -> dict[str, Any]:
    """What ``child.network`` tells of a way, with as many threads of PyTorch as this process has. Raises
    StreamdeblurError."""
    threads = torch.get_num_threads()
    return in_child("network", [model.name, model.weights, list(size), asdict(way), str(device), threads])


def in_child(what: str, arguments: Sequence[Any], *, module: str = "child") -> dict[str, Any]:
    """Run a measurement in a fresh interpreter: what the module of this package writes as the last line of its output.

    Raises StreamdeblurError where the child fails, with the last line it said.
    """
    root = str(Path(__file__).resolve().parents[3])
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-m", f"streamdeblur.evaluation.benchmark.{module}", what, json.dumps(list(arguments))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    try:
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()[-1:] or [f"it ended with {done.returncode}"]
        raise StreamdeblurError(f"a measuring process ({what}) failed: {said[0][:300]}") from None
    if done.returncode or "error" in told:
        raise StreamdeblurError(f"a measuring process ({what}) failed: {told.get('error', done.returncode)}")
    return told
