"""How far the job is: snapshots for a progress display, gauges for Ray's dashboard."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import ray

from streamdeblur.interrupts import interruptible
from streamdeblur.jobs.batch.actors import Actor
from streamdeblur.jobs.batch.crew import Crew
from streamdeblur.jobs.batch.metrics import DriverMetrics
from streamdeblur.jobs.batch.queue import WorkQueue
from streamdeblur.jobs.batch.state import STATUSES, FileState, Snapshot

log = logging.getLogger(__name__)

_ray: Any = ray

#: Kinds of units whose frames are new ones.
_COUNTED = ("segment", "files", "restore")
#: Seconds between snapshots; more where there are more files than this for each.
_EVERY = 1.0
_FILES = 20_000


class Teller:
    """Calls ``progress`` about once a second. files: all of the job. For the driver's thread."""

    def __init__(
        self, files: Mapping[str, FileState], metrics: DriverMetrics, progress: Callable[[Snapshot], None] | None
    ) -> None:
        self._files = files
        self._metrics = metrics
        self._progress = progress
        self._started = time.monotonic()
        self._told = 0.0
        self._before = sum(f.frames_done for f in files.values())
        self._rates: dict[str, deque[tuple[float, int]]] = {}

    def tell(self, crew: Crew, queue: WorkQueue, paused: str | None, *, now: bool = False) -> None:
        """If it is time for it, or ``now``."""
        at = time.monotonic()
        if at - self._told < max(_EVERY, len(self._files) / _FILES) and not now:
            return
        self._told = at
        for actor in crew.actors:
            _watch(actor)
        snapshot = self._snapshot(at, crew, queue, paused)
        ready = sum(a.state == "ready" for a in crew.actors)
        self._metrics.state(snapshot.files, queue.waiting, ready, paused is not None)
        if self._progress is not None:
            self._progress(snapshot)

    def _snapshot(self, now: float, crew: Crew, queue: WorkQueue, paused: str | None) -> Snapshot:
        counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        done = total = 0
        for f in self._files.values():
            counts[f.status] += 1
            done += f.frames_done + sum(int(facts["frames"]) for facts in f.restored.values())
            plan = f.item.plan if f.item is not None else None
            total += f.frames_done if f.over else (plan.frames or 0) if plan is not None else 0
        busy = [a for a in crew.actors if a.unit is not None]
        done += sum(a.unit_frames for a in busy if a.unit is not None and a.unit.kind in _COUNTED)
        nodes = self._nodes(now, crew)
        elapsed, made = now - self._started, done - self._before
        eta = None
        if made > 0 and total > done and not queue.planning:
            eta = elapsed / made * (total - done)
        return Snapshot(
            files=counts,
            total=len(self._files),
            frames=done,
            frames_total=total or None,
            fps=sum(n[2] for n in nodes) or (made / elapsed if elapsed > 0 else 0.0),
            seconds=elapsed,
            eta=eta,
            nodes=nodes,
            current=tuple(f"{a.unit.name} ({a.unit_frames} frames)" for a in busy if a.unit is not None),
            paused=paused,
        )

    def _nodes(self, now: float, crew: Crew) -> tuple[tuple[str, int, float, float | None], ...]:
        hosts: dict[str, list[Actor]] = {}
        for actor in crew.actors:
            if actor.state == "ready":
                hosts.setdefault(actor.host, []).append(actor)
        nodes = []
        for host, actors in sorted(hosts.items()):
            count = sum(a.frames for a in actors)
            history = self._rates.setdefault(host, deque(maxlen=15))
            if history and count < history[-1][1]:
                history.clear()  # an actor has gone, with its count
            history.append((now, count))
            span = history[-1][0] - history[0][0]
            rate = (history[-1][1] - history[0][1]) / span if span > 0 else 0.0
            uses = [a.gpu_use for a in actors if a.gpu_use is not None]
            nodes.append((host, len(actors), rate, sum(uses) / len(uses) if uses else None))
        return tuple(nodes)


def _watch(actor: Actor) -> None:
    """Ask a busy actor how far it is, and take what it answered last time."""
    if actor.watching is not None:
        with interruptible():
            done, _ = _ray.wait([actor.watching], timeout=0)
        if not done:
            return
        try:
            with interruptible():
                actor.heard(_ray.get(actor.watching))
        except Exception:
            log.debug("%s does not answer", actor.name)
        actor.watching = None
    if actor.state == "ready" and actor.unit is not None:
        actor.watching = actor.handle.progress.remote()
