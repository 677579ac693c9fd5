"""Who works on a job: one restorer in this process, or Ray actors, all alike and with one plan.

The restorer is built on the driver in any case, so that weights, device and memory are checked before anything is
written, and the tiling is planned once: every worker cuts its frames alike, and results do not depend on how many there
are.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamdeblur.config import ProcessOptions
from streamdeblur.frames import Frame
from streamdeblur.restore import Restorer, RestorerSpec, Tiling
from streamdeblur.runtime.pool import InProcessPool, Pool

log = logging.getLogger(__name__)


class Workforce:
    """The pool for a job, and what it consists of, for the summary."""

    def __init__(self, options: ProcessOptions, size: tuple[int, int] | None) -> None:
        """size: (width, height) of every picture the network will see; None when they differ."""
        import torch

        spec = RestorerSpec(
            options.model, options.weights, options.device, options.precision, options.tiling, options.threads
        )
        several = options.device in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.device_count() > 1
        use_ray = options.workers is not None or options.ray is not None or several
        # Built here in any case: weights and device are checked before anything is written, and the plan for the
        # frame size is made once, so that every worker cuts its frames alike.
        restorer = spec.build()
        engine = restorer.engine
        on_gpu = engine.device.type == "cuda"
        self.model = model_name(options)
        self.device = str(engine.device)
        self.precision = precision_name(engine)
        self.tiling: Tiling | None = None
        if not use_ray:
            if options.gpus_per_worker is not None:
                log.warning("--gpus-per-worker has no effect without Ray: give --workers or --ray with it")
            self.workers = 1
            if size is not None:
                self.tiling = restorer.plan(size[1], size[0])
                restorer = Restorer(tiling=self.tiling, engine=engine)
            work = restorer.correction
            self.pool: Pool = InProcessPool(lambda: work, options.in_flight)
            return
        from streamdeblur.runtime.ray_pool import RayPool

        self.workers = options.workers or (torch.cuda.device_count() if on_gpu else 1)
        if size is not None:
            self.tiling = restorer.plan(size[1], size[0], workers=self.workers)
        threads = options.threads
        if threads is None and not on_gpu:
            threads = torch.get_num_threads()
            if self.precision == "bf16":
                # Bit-identical whatever the number of threads; fp32 sums in another order, so there every worker has
                # as many as one process would, and the results are the same to the bit.
                threads = max(1, threads // self.workers)
        weights = options.weights
        if weights is not None and not weights.startswith("random:"):
            weights = os.path.abspath(weights)
        factory = WorkerRecipe(
            RestorerSpec(
                options.model,
                weights,
                "cuda" if on_gpu else options.device,
                self.precision if self.precision in ("fp32", "bf16", "fp16") else "auto",
                self.tiling or options.tiling,
                threads,
            )
        )
        del restorer, engine
        if on_gpu:
            torch.cuda.empty_cache()
        gpus = options.gpus_per_worker if options.gpus_per_worker is not None else float(on_gpu)
        address = None if options.ray in (None, "local", "") else options.ray
        self.pool = RayPool(
            factory,
            workers=self.workers,
            address=address,
            num_gpus=gpus,
            in_flight_per_worker=options.in_flight,
            threads=threads,
        )


@dataclass(frozen=True, slots=True)
class WorkerRecipe:
    """Pickles to a worker; called there, it builds the restorer and gives its ``correction``."""

    spec: RestorerSpec

    def __call__(self) -> Callable[[Frame], tuple[Any, ...]]:
        return self.spec.build().correction


def model_name(options: ProcessOptions) -> str:
    from streamdeblur.models import registry

    if options.model is not None:
        return registry.resolve(options.model).name
    if options.weights is not None:
        return str(registry.read_weights(options.weights)[1].variant)
    variant = registry.default_variant()
    return variant.name if variant else "identity"


def precision_name(engine: Any) -> str:
    dtype = str(getattr(engine, "dtype", "")).removeprefix("torch.")
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype or "engine")


def tiling_words(tiling: Tiling | None, asked: str) -> str:
    """A tiling in words."""
    if tiling is None:
        return asked
    return tiling.mode if tiling.mode == "whole" else f"{tiling.mode} {tiling.tile}"


def encoder_preset(preset: str, workforce: Workforce) -> str:
    """auto: a network on a CPU leaves the encoder all the time it wants; a GPU or no network at all leaves none."""
    if preset != "auto":
        return preset
    slow = workforce.device == "cpu" and workforce.model not in ("identity", "offset")
    return "medium" if slow else "veryfast"
