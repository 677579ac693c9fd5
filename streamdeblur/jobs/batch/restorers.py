"""What restores, kept from file to file: weights are read once by each actor, and the tiling is the plan's."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from streamdeblur.config import ProcessOptions
from streamdeblur.jobs import workforce
from streamdeblur.jobs.workforce import Workforce
from streamdeblur.restore import Restorer, Tiling
from streamdeblur.restore.engines import facts
from streamdeblur.runtime.pool import InProcessPool

log = logging.getLogger(__name__)

#: Sets of weights an actor holds at most: files of a job may name their own.
_KEPT = 2


class KeptWorkforce(Workforce):
    """The in-process workforce of one job around a restorer that outlives it."""

    def __init__(self, restorer: Restorer, options: ProcessOptions, tiling: Tiling | None) -> None:
        engine = restorer.engine
        self.model = workforce.model_name(options)
        self.device = str(engine.device)
        known = facts(engine)
        self.precision, self.engine, self.prepare_seconds = known.precision, known.name, known.prepare_seconds
        self.tiling = tiling
        self.workers = 1
        if tiling is not None:
            restorer = Restorer(tiling=tiling, engine=engine)
        work = restorer.correction
        self.pool = InProcessPool(lambda: work, options.in_flight)


class Restorers:
    """Restorers by what they are built of. build: makes one, instead of the options' own model. For one thread."""

    def __init__(self, build: Callable[[ProcessOptions], Restorer] | None = None) -> None:
        self._build = build or _from_options
        self._kept: OrderedDict[tuple[Any, ...], Restorer] = OrderedDict()
        self.loads = 0

    def get(self, options: ProcessOptions) -> Restorer:
        """The restorer of these options. Raises WeightsError, DeviceError, UsageError."""
        o = options
        key = (o.model, o.weights, o.device, o.precision, o.tiling, o.threads, o.engine, o.memory)
        found = self._kept.get(key)
        if found is None:
            while len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            found = self._build(o)
            self.loads += 1
            self._kept[key] = found
        self._kept.move_to_end(key)
        return found

    def plan(self, options: ProcessOptions, width: int, height: int) -> Tiling:
        """The tiling of pictures of this size with what memory is free now."""
        return self.get(options).plan(height, width)

    def workforce(self, options: ProcessOptions, tiling: Tiling | None, size: tuple[int, int]) -> KeptWorkforce:
        """tiling: as it was planned; None plans for ``size`` (width, height)."""
        restorer = self.get(options)
        return KeptWorkforce(restorer, options, tiling or restorer.plan(size[1], size[0]))


def _from_options(o: ProcessOptions) -> Restorer:
    return workforce.restorer_spec(o).build()
