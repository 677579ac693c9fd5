"""Who works on a job: one restorer in this process, or Ray actors, all alike and with one plan.

The restorer is built on the driver in any case, so that weights, device and memory are checked before anything is
written, and the tiling is planned once: every worker cuts its frames alike, and results do not depend on how many there
are.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamdeblur.config import ProcessOptions
from streamdeblur.frames import Frame
from streamdeblur.restore import Restorer, RestorerSpec, Tiling
from streamdeblur.restore.engines import ENGINES, Engine, facts
from streamdeblur.restore.engines.streams import give_back_memory
from streamdeblur.restore.memory import device_budget, own_memory
from streamdeblur.restore.tuning import known_plan
from streamdeblur.runtime.pool import InProcessPool, Pool

log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


class Workforce:
    """The pool for a job, and what it consists of, for the summary."""

    def __init__(self, options: ProcessOptions, size: tuple[int, int] | None, pictures: int | None = None) -> None:
        """size: (width, height) of every picture the network will see; None when they differ.

        pictures: how many there will be, None when that is not known; with ``--engine auto`` an engine that takes long
        to prepare is chosen where it pays.
        """
        import torch

        pixels = None if size is None or pictures is None else size[0] * size[1] * pictures
        spec = restorer_spec(options, pixels=pixels)
        several = options.device in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.device_count() > 1
        address = None if options.ray in (None, "local", "") else options.ray
        use_ray = options.workers is not None or options.ray is not None or several
        # Built here in any case: weights and device are checked before anything is written, and the plan for the
        # frame size is made once, so that every worker cuts its frames alike.
        restorer = spec.build()
        if options.engine == "auto" and facts(restorer.engine).name == "winograd" and use_ray:
            from streamdeblur.runtime.ray_session import LOCAL, chosen_address

            if chosen_address(address) != LOCAL:
                # It is compiled on each machine: others may have no compiler, or other vectors and so other last bits.
                spec = dataclasses.replace(spec, engine="fused")
                restorer = spec.build()
        engine = restorer.engine
        on_gpu = engine.device.type == "cuda"
        self.model = model_name(options)
        self.device = str(engine.device)
        known = facts(engine)
        self.precision = known.precision
        self.engine = known.name
        #: Seconds that the engine took to get ready, before any frame.
        self.prepare_seconds = known.prepare_seconds
        self.tiling: Tiling | None = None
        if not use_ray:
            if options.gpus_per_worker is not None:
                log.warning("--gpus-per-worker has no effect without Ray: give --workers or --ray with it")
            self.workers = 1
            callers = restorer.share()  # which hold the activations of a window each
            if size is not None:
                self.tiling = restorer.plan(size[1], size[0])
                restorer = Restorer(tiling=self.tiling, engine=engine)
                restorer.share()
            work = restorer.correction
            self.pool: Pool = InProcessPool(lambda: work, frames_in_flight(options, engine), callers)
            return
        from streamdeblur.runtime.ray_pool import RayPool

        self.workers = options.workers or (torch.cuda.device_count() if on_gpu else 1)
        if size is not None:
            self.tiling = restorer.plan(size[1], size[0], workers=self.workers)
        threads = options.threads
        if not on_gpu:
            if self.precision != "bf16":
                # fp32 sums in another order with other threads, so every worker has as many as each caller in one
                # process would, and the results are the same to the bit.
                threads = max(1, (threads or torch.get_num_threads()) // restorer.share())
            elif threads is None:
                threads = max(1, torch.get_num_threads() // self.workers)
        memory = None if options.memory_limit is None else options.memory_limit // self.workers
        if size is None and memory is None and not on_gpu:
            # Pictures of any size, planned where they are restored: each worker within its part of what is free now,
            # so that all plan alike.
            memory = device_budget(engine.device, self.workers) + own_memory(engine.device)
        weights = options.weights
        if weights is not None and not weights.startswith("random:"):
            weights = os.path.abspath(weights)
        factory = WorkerRecipe(
            RestorerSpec(
                options.model,
                weights,
                "cuda" if on_gpu else options.device,
                self.precision if self.precision in PRECISIONS else "auto",
                self.tiling or options.tiling,
                threads,
                # What was chosen here, not "auto": all workers compute alike, to the bit.
                self.engine if self.engine in ENGINES else "auto",
                memory=memory,
            )
        )
        device = engine.device
        del restorer, engine
        give_back_memory(device)
        gpus = options.gpus_per_worker if options.gpus_per_worker is not None else float(on_gpu)
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
    return facts(engine).precision


def restorer_spec(options: ProcessOptions, pixels: int | None = None) -> RestorerSpec:
    """What the options ask for. pixels: that the network will see in all, None if that is not known."""
    o = options
    return RestorerSpec(
        o.model, o.weights, o.device, o.precision, o.tiling, o.threads, o.engine, pixels, o.memory_limit
    )


def frames_in_flight(options: ProcessOptions, engine: Engine) -> int:
    """Frames that a worker in this process holds: as asked, else as tuned for such an engine, else the default, and one
    more than are worked on at once.
    """
    if "in_flight" in options.model_fields_set:
        return options.in_flight
    plan = known_plan(engine) if options.tiling == "auto" else None
    if plan is not None and plan.in_flight is not None:
        return plan.in_flight
    return max(options.in_flight, facts(engine).at_once + 1)


def tiling_words(tiling: Tiling | None, asked: str) -> str:
    """A tiling in words."""
    if tiling is None:
        return asked
    return tiling.mode if tiling.mode == "whole" else f"{tiling.mode} {tiling.tile}"


def encoder_preset(preset: str, workforce: Workforce, *, reuse: bool = False) -> str:
    """auto: a network on a CPU leaves the encoder all the time it wants; a GPU, no network at all, or one that sees
    little of most frames (reuse) leaves none."""
    if preset != "auto":
        return preset
    slow = workforce.device == "cpu" and workforce.model not in ("identity", "offset") and not reuse
    return "medium" if slow else "veryfast"
