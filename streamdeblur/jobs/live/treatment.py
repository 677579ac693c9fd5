"""What is done to the frames of one source around the pool: whole, or only the parts that need it.

A frame is planned on the job's thread before it goes to the pool, and composed on the thread of the source's outputs
when it leaves; both in order of index. Unlike in a file job, a frame that was planned may leave before its result is
there: then its parts are planned anew.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from streamdeblur.frames import Frame, apply_correction
from streamdeblur.jobs.live.options import LiveOptions
from streamdeblur.restore.composer import Composer
from streamdeblur.restore.planner import Planner, Region, SpendOptions, TileRequest
from streamdeblur.runtime.ledger import TileCounts
from streamdeblur.runtime.pool import Corrections


@dataclass(frozen=True, slots=True)
class Plan:
    """What a worker shall restore of a frame. regions: None for all of it, empty for nothing. request, step: of the
    planner that made it."""

    regions: Sequence[Region] | None = None
    request: TileRequest | None = None
    step: int = 0


class Treatment(Protocol):
    """One object a source."""

    def plan(self, frame: Frame, step: int) -> Plan:
        """What is to be restored of a frame, which goes to a worker on this step of the ladder now."""

    def compose(self, frame: Frame, corrections: Corrections, plan: Plan) -> tuple[Frame, TileCounts | None]:
        """The frame that leaves. corrections: what the worker returned for the plan."""

    def missed(self, plan: Plan) -> None:
        """A frame left without what was planned for it."""

    def forget(self) -> None:
        """Frames left, and it is not known what was planned for them."""


class WholeFrames:
    """Every frame is restored as a whole."""

    def plan(self, frame: Frame, step: int) -> Plan:
        return Plan(step=step)

    def compose(self, frame: Frame, corrections: Corrections, plan: Plan) -> tuple[Frame, TileCounts | None]:
        return apply_correction(frame, corrections), None

    def missed(self, plan: Plan) -> None:
        pass

    def forget(self) -> None:
        pass


class Tiles:
    """Corrections of what did not change are reused, and tiles that are sharp are left alone (``restore.planner``).

    Each step of the ladder has a planner and a composer of its own, so that corrections of a small model are never
    taken for those of a large one.
    """

    def __init__(self, options: SpendOptions) -> None:
        self._options = options
        self._planners: dict[int, Planner] = {}
        self._composers: dict[int, Composer] = {}
        self._lock = threading.Lock()

    def plan(self, frame: Frame, step: int) -> Plan:
        with self._lock:
            planner = self._planners.setdefault(step, Planner(self._options))
            request = planner.plan(frame)
        return Plan(request.regions, request, step)

    def compose(self, frame: Frame, corrections: Corrections, plan: Plan) -> tuple[Frame, TileCounts | None]:
        assert plan.request is not None
        r = plan.request
        composer = self._composers.setdefault(plan.step, Composer())
        counts = TileCounts(r.cells_restored, r.cells_reused, r.cells_skipped)
        return composer.compose(frame, r, corrections), counts

    def missed(self, plan: Plan) -> None:
        assert plan.request is not None
        if plan.step in self._composers:
            self._composers[plan.step].miss(plan.request)
        with self._lock:
            self._planners[plan.step].reset()

    def forget(self) -> None:
        self._composers.clear()
        with self._lock:
            for planner in self._planners.values():
                planner.reset()


def treatment_of(options: LiveOptions) -> Treatment:
    """What the options ask for."""
    spend = SpendOptions(
        options.reuse,
        options.reuse_threshold,
        options.reuse_refresh,
        options.reuse_halo,
        options.skip_sharp,
        options.sharp_below,
    )
    return Tiles(spend) if spend.active else WholeFrames()
