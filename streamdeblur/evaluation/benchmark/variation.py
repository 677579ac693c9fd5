"""Ways of tiling one frame: time, memory, and how far the results lie from that of the whole frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from streamdeblur.evaluation.benchmark.network import child_memory
from streamdeblur.evaluation.benchmark.pictures import picture
from streamdeblur.evaluation.benchmark.timing import Timing, alternate, plain
from streamdeblur.evaluation.benchmark.ways import SHIPPED, Builder, Model, Way, tiling_word, tiling_words
from streamdeblur.restore import Restorer, Tiling
from streamdeblur.restore.engines import Engine, facts
from streamdeblur.restore.tiles import GRID, round_up

#: (tile, overlap) of ``fast`` for large and for small frames.
CHOICES = ((1024, 64), (512, 64), (256, 64), (256, 32), (128, 32))


@dataclass(frozen=True, slots=True)
class TilingRow:
    """largest, mean: absolute difference from the whole frame, in 1/255; each in the same precision as its whole."""

    model: str
    weights: str
    radius: int
    engine: str
    precision: str
    tiling: str
    windows: int
    computed: float
    time: Timing
    peak_bytes: int
    above_bytes: int
    largest_fp32: float
    mean_fp32: float
    largest: float
    mean: float

    def as_dict(self) -> dict[str, Any]:
        return dict(plain({n: getattr(self, n) for n in self.__slots__}))


@dataclass(slots=True)
class TilingResult:
    """Frames of one size."""

    size: tuple[int, int]
    rows: list[TilingRow] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"size": f"{self.size[0]}x{self.size[1]}", "rows": [r.as_dict() for r in self.rows]}


def tilings(size: tuple[int, int], radius: int, choices: Sequence[tuple[int, int]] = CHOICES) -> list[Tiling]:
    """Whole, exact with the cheapest tile that really cuts the frame, and fast with each (tile, overlap)."""
    width, height = size
    found = [Tiling("whole")]
    shared = 2 * round_up(radius)
    exact = [
        tiling
        for tiling in (Tiling("exact", tile, 0) for tile in range(shared + GRID, max(size), GRID))
        if tiling.plan(height, width, radius).count > 1
    ]
    if exact:
        found.append(min(exact, key=lambda t: t.plan(height, width, radius).count * t.plan(height, width, radius).area))
    fast = (Tiling("fast", tile, overlap) for tile, overlap in choices)
    return found + [tiling for tiling in fast if tiling.plan(height, width, radius).count > 1]


def variation(
    models: Sequence[Model],
    size: tuple[int, int],
    engine: str,
    precision: str,
    device: torch.device,
    rounds: int,
    *,
    tell: Callable[[str], None] = lambda _: None,
) -> TilingResult:
    """Measure all tilings in the engine and precision asked for; differences in eager fp32 as well."""
    width, height = size
    image = picture(height, width).to(device)
    result = TilingResult(size)
    for model in models:
        builder = Builder(model, str(device))
        chosen, _ = builder.exactly(engine, precision)
        exactly, _ = builder.engine("eager", "fp32")
        known = facts(chosen)
        found = tilings(size, chosen.receptive_radius)
        tell(f"{model.name}: {len(found)} tilings in turns")
        times = alternate({tiling_words(t): _call(chosen, t, image) for t in found}, device, rounds, budget=4)
        whole = {id(e): _call(e, found[0], image)() for e in (exactly, chosen)}
        for t in found:
            plan = t.plan(height, width, chosen.receptive_radius)
            differences = []
            for e in (exactly, chosen):
                difference = (_call(e, t, image)() - whole[id(e)]).abs() * 255
                differences += [float(difference.max()), float(difference.mean())]
            tell(f"{model.name}: memory of {tiling_words(t)}")
            told = child_memory(model, size, Way(engine, precision, tiling_word(t)), device)
            result.rows.append(
                TilingRow(
                    model.name,
                    model.weights or SHIPPED,
                    chosen.receptive_radius,
                    known.name,
                    known.precision,
                    tiling_words(t),
                    plan.count,
                    plan.count * plan.area / (width * height),
                    times[tiling_words(t)],
                    told["peak_bytes"],
                    told["peak_bytes"] - told["start_bytes"],
                    *differences,
                )
            )
    return result


def _call(engine: Engine, t: Tiling, image: Tensor) -> Callable[[], Tensor]:
    restorer = Restorer(engine=engine, tiling=t)
    return lambda: restorer(image)
