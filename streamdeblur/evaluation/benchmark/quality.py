"""What a way of computing costs in quality: PSNR on pairs of blurry and sharp images, against fp32 on the same."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from streamdeblur.errors import StreamdeblurError
from streamdeblur.evaluation.benchmark.timing import plain
from streamdeblur.evaluation.benchmark.ways import SHIPPED, Builder, Model, Way, asked_tiling
from streamdeblur.evaluation.metrics import psnr
from streamdeblur.restore import Restorer
from streamdeblur.restore.engines import facts
from streamdeblur.restore.memory import own_memory

#: Name, blurry and sharp image of each pair: (1, 3, H, W) float32 in [0, 1].
Pairs = Callable[[], Iterator[tuple[str, Tensor, Tensor]]]


@dataclass(frozen=True, slots=True)
class QualityRow:
    """One way on one set: means over its pairs in dB. lost: PSNR of fp32 minus that of this way; lost_most: of a pair.

    tiling: what was asked for, as ``asked_tiling`` names it. Images are clamped to [0, 1] and not rounded. fp32 is
    eager, the whole frame or a tiling equal to it.
    """

    model: str
    weights: str
    random: bool
    set_name: str
    pairs: int
    engine: str
    precision: str
    tiling: str
    psnr_blurry: float
    psnr_fp32: float
    psnr: float
    lost: float
    lost_most: float

    def as_dict(self) -> dict[str, Any]:
        return dict(plain({n: getattr(self, n) for n in self.__slots__}))


@dataclass(slots=True)
class QualityResult:
    """failed: (way, reason)."""

    rows: list[QualityRow] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {"rows": [r.as_dict() for r in self.rows], "failed": [list(f) for f in self.failed]}


def quality(
    models: Sequence[Model],
    ways: Sequence[Way],
    sets: Mapping[str, Pairs],
    device: torch.device,
    *,
    limit: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> QualityResult:
    """Measure every way and model on every set. limit: bytes that tilings are planned for, None for what is free.
    Raises what reading the pairs raises."""
    result = QualityResult()
    before = None if limit is None else own_memory(device)
    for model in models:
        builder = Builder(model, str(device), limit, before=before)
        exact, _ = builder.engine("eager", "fp32")
        truth = Restorer(engine=exact, tiling="whole")
        for set_name, pairs in sets.items():
            found: list[_Scores] = _restorers(builder, ways, result, set_name)
            blurry_scores: list[float] = []
            exact_scores: list[float] = []
            for name, blurry, sharp in pairs():
                tell(f"{model.name} on {set_name}: {name}")
                blurry_scores.append(_score(blurry, sharp))
                exact_scores.append(_score(truth(blurry), sharp))
                for f in found:
                    f.scores.append(_score(f.restorer(blurry), sharp))
            result.rows += [
                QualityRow(
                    model.name,
                    model.weights or SHIPPED,
                    model.random,
                    set_name,
                    len(f.scores),
                    f.engine,
                    f.precision,
                    f.tiling,
                    statistics.mean(blurry_scores),
                    statistics.mean(exact_scores),
                    statistics.mean(f.scores),
                    statistics.mean(exact_scores) - statistics.mean(f.scores),
                    max(e - s for e, s in zip(exact_scores, f.scores, strict=True)),
                )
                for f in found
            ]
    return result


@dataclass(slots=True)
class _Scores:
    restorer: Restorer
    engine: str
    precision: str
    tiling: str
    scores: list[float] = field(default_factory=list)


def _restorers(builder: Builder, ways: Sequence[Way], result: QualityResult, set_name: str) -> list[_Scores]:
    found: dict[tuple[str, str, str], _Scores] = {}
    for way in ways:
        try:
            restorer = builder.planner(way)
        except (StreamdeblurError, RuntimeError, ImportError) as e:
            why = (str(e).strip().splitlines() or [type(e).__name__])[0]
            result.failed.append((f"{way.engine} {way.precision} on {set_name}", why))
            continue
        known = facts(restorer.engine)
        words = asked_tiling(way.tiling)
        made = _Scores(restorer, known.name, known.precision, words)
        found.setdefault((known.name, known.precision, words), made)
    return list(found.values())


def _score(image: Tensor, sharp: Tensor) -> float:
    return float(psnr(image.clamp(0, 1), sharp.to(image.device)))
