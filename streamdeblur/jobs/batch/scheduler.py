"""The driver: hands units to actors, one at a time each, and books what comes back.

Order: joins (they finish files and free disk), segments of files that are begun, then planning while few planned files
wait, then new files, longest first, short ones in groups. Everything that waits is bounded but the list of sources.

Faults: an actor that dies is replaced, and its unit done again after a pause that doubles; a group is dissolved first,
so that one file is charged. What fails ``attempts`` times, or for a reason of its own, is quarantined and the job
goes on. A node's death charges nobody. A full disk pauses the job. A file whose segments do not come out as planned
goes whole.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray
import ray.exceptions

from streamdeblur.errors import DeviceError, DiskFull, WorkerError
from streamdeblur.jobs.batch import cluster, place
from streamdeblur.jobs.batch.cluster import Actor
from streamdeblur.jobs.batch.manifest import Manifest
from streamdeblur.jobs.batch.metrics import DriverMetrics
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.sources import STATE
from streamdeblur.jobs.batch.state import STATUSES, FileState, Snapshot
from streamdeblur.jobs.batch.units import Done, Failure, JobSpec, Outcome, Probed, SegmentDone, Unit
from streamdeblur.runtime import ray_pool

log = logging.getLogger(__name__)

_ray: Any = ray

_TICK = 0.25
#: Seconds between snapshots; more where there are more files than this for each.
_SHOW = 1.0
_SHOW_FILES = 20_000
#: Seconds between looks at the cluster, and at the disk.
_LOOK = 10.0
_DISK = 5.0
#: Paths in a unit of planning; planned files that wait for each actor.
_PROBES = 16
_AHEAD = 8
#: Actors that may die in a row before any was ready; seconds to wait for room on a Ray that this job started.
_FAILED_STARTS = 4
_PLACEMENT = 180.0
#: Units that nodes may take down with them before it counts against the file after all.
_MOVES = 50
#: Of a source, for guessing how many actors files that are not planned yet will want.
_SEGMENT_BYTES = 64 << 20


class Scheduler:
    """Runs a job to its end. files: those that are not over, by id. weights: object references by hash.

    Call ``run`` once, on one thread. Raises WorkerError when no actor can be kept alive or another driver takes over,
    DeviceError when there is no room, OutputError when the manifest can't be written.
    """

    def __init__(
        self,
        files: Mapping[str, FileState],
        options: BatchOptions,
        spec: JobSpec,
        manifest: Manifest,
        weights: Mapping[str, Any],
        progress: Callable[[Snapshot], None] | None,
        all_files: Mapping[str, FileState],
    ) -> None:
        self._files = files
        self._all = all_files
        self._options = options
        self._spec = spec
        self._manifest = manifest
        self._weights = weights
        self._progress = progress
        self._metrics = DriverMetrics()
        self._class = cluster.actor_class()
        self._gpus = cluster.gpus_per_worker(options)
        self._actors: list[Actor] = []
        self._numbers = itertools.count(1)
        self._order = itertools.count()
        self._unplanned = deque(
            sorted(
                (f.source.id for f in files.values() if f.item is None or f.item.plan is None),
                key=lambda i: -files[i].size,
            )
        )
        self._unplanned_bytes = sum(files[i].size for i in self._unplanned)
        self._planned: list[tuple[float, int, str]] = []
        self._segments: deque[Unit] = deque()
        self._joins: deque[Unit] = deque()
        self._later: list[tuple[float, int, Unit]] = []
        self._alone: set[str] = set()
        self._open = len(files)
        self._limit = 0
        self._looked = -_LOOK
        self._disk_looked = -_DISK
        self._paused: str | None = None
        self._paused_until = 0.0
        self._failed_starts = 0
        self._starts_from = 0.0
        self._said_no_room = False
        self._started = time.monotonic()
        self._shown = 0.0
        self._frames_before = sum(f.frames_done for f in files.values())
        self._rates: dict[str, deque[tuple[float, int]]] = {}
        self.node_frames: dict[str, int] = {}
        self.deaths = 0
        self.retries = 0
        self.peak_actors = 0
        for f in files.values():
            if f.item is not None and f.item.plan is not None:
                self._take_plan(f)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        try:
            while self._open:
                self._man()
                self._look_at_disk()
                self._dispatch()
                self._commit()
                self._wait()
                self._show()
            self._commit()
            self._show(last=True)
        finally:
            for actor in self._actors:
                actor.kill()

    def _wait(self) -> None:
        calls = {actor.call: actor for actor in self._actors if actor.call is not None}
        if not calls:
            time.sleep(_TICK)
            return
        ready, _ = _ray.wait(list(calls), num_returns=1, timeout=_TICK)
        if ready and len(calls) > 1:
            ready, _ = _ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in ready:
            self._answer(calls[call])

    def _answer(self, actor: Actor) -> None:
        call, actor.call = actor.call, None
        try:
            answer = _ray.get(call)
        except cluster.GONE as e:
            self._died(actor, e)
            return
        except ray.exceptions.RayTaskError as e:  # not an outcome: a fault of ours, or of the machine
            unit, actor.unit = actor.unit, None
            if unit is None:
                self._died(actor, e)
            else:
                text = " ".join(str(e.cause or e).split())[-300:]
                for item in unit.items:
                    self._failed(unit, Failure(item.id, "retry", type(e.cause or e).__name__, text))
            return
        if not actor.ready:
            actor.ready = True
            actor.host, actor.node, actor.pid, actor.gpu = answer["host"], answer["node"], answer["pid"], answer["gpu"]
            self._failed_starts = 0
            return
        unit, actor.unit = actor.unit, None
        seconds = time.monotonic() - actor.since
        for outcome in answer:
            state = self._files[outcome.id]
            state.spent += seconds / len(answer)
            self._settle(unit, outcome, actor)

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def _settle(self, unit: Unit, outcome: Outcome, actor: Actor) -> None:
        state = self._files[outcome.id]
        if state.over or (unit.kind == "segment" and not self._current(unit, state)):
            return
        if isinstance(outcome, Failure):
            self._failed(unit, outcome)
        elif isinstance(outcome, Probed):
            assert state.item is not None
            state.item = replace(state.item, plan=outcome.plan, tiling=outcome.tiling)
            tiling = outcome.tiling
            self._manifest.add(
                "plan",
                id=outcome.id,
                print=state.print,
                plan=outcome.plan.as_dict(),
                plan_print=outcome.plan.print,
                segment_seconds=self._options.segment_seconds,
                tiling=None if tiling is None else [getattr(tiling, n) for n in tiling.__dataclass_fields__],
            )
            self._take_plan(state)
        elif isinstance(outcome, SegmentDone):
            self._segment_done(state, outcome)
        else:
            self._done(state, outcome)
        self._count_frames(actor, unit, outcome)

    def _count_frames(self, actor: Actor, unit: Unit, outcome: Outcome) -> None:
        if isinstance(outcome, SegmentDone):
            self.node_frames[actor.host] = self.node_frames.get(actor.host, 0) + outcome.frames
        elif isinstance(outcome, Done) and unit.kind == "files":
            self.node_frames[actor.host] = self.node_frames.get(actor.host, 0) + int(outcome.summary["frames"])

    def _segment_done(self, state: FileState, outcome: SegmentDone) -> None:
        assert state.item is not None
        assert state.item.plan is not None
        assert state.left is not None
        if outcome.number not in state.left:
            return
        self._manifest.add(
            "segment",
            id=outcome.id,
            print=state.print,
            plan_print=state.item.plan.print,
            number=outcome.number,
            frames=outcome.frames,
            preset=outcome.preset,
            device=outcome.summary.get("device", ""),
            node=outcome.summary.get("node"),
        )
        state.left.discard(outcome.number)
        state.frames_done += outcome.frames
        if state.item.preset and state.item.preset != outcome.preset:
            self._go_whole(state, "its segments were encoded with different presets")
            return
        state.item = replace(state.item, preset=outcome.preset, device=str(outcome.summary.get("device", "")))
        if not state.left:
            self._joins.append(Unit("join", (state.item,)))

    def _done(self, state: FileState, outcome: Done) -> None:
        state.status = "differs" if outcome.summary["differences"] else "done"
        state.summary = dict(outcome.summary)
        state.frames_done = int(outcome.summary["frames"])
        state.seconds = time.monotonic() - (state.started or time.monotonic())
        self._open -= 1
        self._manifest.add(
            "done",
            id=outcome.id,
            print=state.print,
            source=state.source.name,
            output=state.source.output,
            size=outcome.size,
            tag=outcome.tag,
            spent=round(state.spent, 3),
            seconds=round(state.seconds, 3),
            segments=state.parts,
            tries=state.tries,
            notes=state.notes,
            summary=state.summary,
        )

    def _failed(self, unit: Unit, failure: Failure) -> None:
        state = self._files[failure.id]
        if state.over:
            return
        if failure.kind == "superseded":
            raise WorkerError("another driver has taken the job over", "one job at a time can write to a DEST")
        single = self._single(unit, state)
        if failure.kind == "disk":
            self._pause(failure.message, 2 * _DISK)
            self._queue_later(single, 0.0)
            return
        cut = unit.kind in ("segment", "join")
        if failure.kind == "uncuttable" or (failure.kind == "file" and cut):
            self._go_whole(state, failure.message)
            return
        if failure.kind == "file":
            self._quarantine(state, failure.message)
            return
        self._charge(single, state, failure.message)

    def _charge(self, unit: Unit, state: FileState, message: str) -> None:
        """Count a failure; try again later or give the file up."""
        key = f"{unit.kind} {unit.segment}"
        state.attempts[key] = state.attempts.get(key, 0) + 1
        state.tries += 1
        count = state.attempts[key]
        if count >= self._options.attempts:
            self._quarantine(state, f"{message} ({count} attempts)" if count > 1 else message)
            return
        self.retries += 1
        self._metrics.retry()
        pause = self._options.backoff * 2 ** (count - 1)
        log.warning("%s: %s; again in %.0f s", unit.name, message, pause)
        self._alone.add(state.source.id)
        self._queue_later(unit, pause)

    def _quarantine(self, state: FileState, message: str) -> None:
        state.status, state.error = "quarantined", message
        state.seconds = time.monotonic() - (state.started or time.monotonic())
        self._open -= 1
        self._manifest.add(
            "quarantined",
            id=state.source.id,
            print=state.print,
            source=state.source.name,
            output=state.source.output,
            message=message,
        )
        place.remove(place.join(self._spec.dest, STATE, "segments", state.source.id))
        log.warning("%s is quarantined: %s", state.source.name, message)

    def _go_whole(self, state: FileState, why: str) -> None:
        assert state.item is not None
        assert state.item.plan is not None
        log.warning("%s goes whole: %s", state.source.name, why)
        state.notes.append(f"not in segments: {why}")
        plan = replace(state.item.plan, whole=why, segments=())
        state.item = replace(state.item, plan=plan, preset="")
        state.left, state.parts, state.frames_done = None, 0, 0
        self._manifest.add(
            "plan",
            id=state.source.id,
            print=state.print,
            plan=plan.as_dict(),
            plan_print=plan.print,
            segment_seconds=self._options.segment_seconds,
            tiling=None,
        )
        place.remove(place.join(self._spec.dest, STATE, "segments", state.source.id))
        self._take_plan(state)

    def _current(self, unit: Unit, state: FileState) -> bool:
        """Whether a unit is of the plan that its file has now."""
        return state.item is not None and unit.items[0].plan == state.item.plan

    def _single(self, unit: Unit, state: FileState) -> Unit:
        assert state.item is not None
        return replace(unit, items=(state.item,))

    # --- the queue ---------------------------------------------------------------------------------------------------

    def _take_plan(self, state: FileState) -> None:
        assert state.item is not None
        plan = state.item.plan
        assert plan is not None
        if plan.segments:
            state.parts = len(plan.segments)
            if state.left is None:
                state.left = {s.number for s in plan.segments}
            if not state.left:
                self._joins.append(Unit("join", (state.item,)))
                return
        heapq.heappush(self._planned, (-plan.seconds, next(self._order), state.source.id))

    def _queue_later(self, unit: Unit, pause: float) -> None:
        heapq.heappush(self._later, (time.monotonic() + pause, next(self._order), unit))

    def _requeue(self, unit: Unit) -> None:
        state = self._files[unit.items[0].id]
        if state.over or (unit.kind in ("segment", "join") and not self._current(unit, state)):
            return
        if unit.kind == "join":
            self._joins.append(unit)
        elif unit.kind == "segment":
            self._segments.appendleft(unit)
        elif unit.kind == "probe":
            self._unplanned.appendleft(state.source.id)
        else:
            self._take_plan(state)

    def _next(self, helper: bool) -> Unit | None:
        """The next unit for an idle actor."""
        while self._joins:
            unit = self._joins.popleft()
            state = self._files[unit.items[0].id]
            if not state.over and self._current(unit, state):
                return unit
        if not helper:
            while self._segments:
                unit = self._segments.popleft()
                state = self._files[unit.items[0].id]
                if not state.over and self._current(unit, state):
                    return unit
        backlog = max(4 * _PROBES, _AHEAD * len(self._actors))
        if self._unplanned and (helper or len(self._planned) < backlog):
            return self._probe_unit()
        return None if helper else self._file_unit()

    def _probe_unit(self) -> Unit:
        # Few at a time while nothing else is there to do, so that every actor gets some.
        share = max(1, len(self._unplanned) // max(1, 2 * len(self._actors)))
        items = []
        for _ in range(min(_PROBES, share)):
            state = self._files[self._unplanned.popleft()]
            assert state.item is not None
            items.append(state.item)
            if state.source.id in self._alone:
                break
        return Unit("probe", tuple(items))

    def _file_unit(self) -> Unit | None:
        if not self._planned:
            return None
        state = self._files[heapq.heappop(self._planned)[2]]
        item = state.item
        assert item is not None
        assert item.plan is not None
        if item.plan.segments:
            assert state.left is not None
            self._segments.extend(Unit("segment", (item,), number) for number in sorted(state.left))
            return self._segments.popleft()
        items, length = [item], item.plan.seconds
        # Groups get smaller towards the end, so that none holds it up.
        enough = min(self._options.group_seconds, self._left_seconds() / (3 * max(1, len(self._actors))))
        while self._planned and length < enough and item.id not in self._alone and len(items) < 64:
            other = self._files[self._planned[0][2]]
            plan = other.item.plan if other.item is not None else None
            fits = plan is not None and not plan.segments and length + plan.seconds <= enough
            if not fits or other.source.id in self._alone:
                break
            heapq.heappop(self._planned)
            assert other.item is not None
            assert plan is not None
            items.append(other.item)
            length += plan.seconds
        return Unit("files", tuple(items))

    def _left_seconds(self) -> float:
        return -sum(cost for cost, _, _ in self._planned[:4096]) * max(1.0, len(self._planned) / 4096)

    def _dispatch(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._requeue(heapq.heappop(self._later)[2])
        if self._paused is not None:
            return
        for actor in self._actors:
            if not actor.ready or actor.unit is not None:
                continue
            unit = self._next(actor.helper)
            if unit is None:
                continue
            for item in unit.items:
                state = self._files[item.id]
                if unit.kind != "probe" and state.started is None:
                    state.started, state.status = now, "working"
                    self._manifest.add(
                        "begin", id=item.id, print=state.print, source=state.source.name, output=state.source.output
                    )
            self._commit()  # what an actor writes must be known as ours before it does
            actor.unit, actor.since, actor.unit_frames = unit, now, 0
            actor.call = actor.handle.do.remote(unit)

    # --- actors ------------------------------------------------------------------------------------------------------

    def _man(self) -> None:
        """Have as many actors as there is room and work for."""
        now = time.monotonic()
        if now - self._looked >= _LOOK:
            self._looked = now
            self._limit = self._options.workers or max(1, cluster.capacity(self._options.cpus_per_worker, self._gpus))
            self._release_idle(now)
        workers = [a for a in self._actors if not a.helper]
        work = (
            len(self._segments)
            + len(self._joins)
            + len(self._planned)
            + len(self._later)
            + (len(self._unplanned) and max(len(self._unplanned), self._unplanned_bytes // _SEGMENT_BYTES))
            + sum(a.unit is not None for a in workers)
        )
        for _ in range(min(self._limit, work) - len(workers)):
            self._hire(helper=False)
        for _ in range(self._options.helpers - (len(self._actors) - len([a for a in self._actors if not a.helper]))):
            if work:
                self._hire(helper=True)
        if self._actors and not any(a.ready for a in self._actors) and now - self._starts_from > _PLACEMENT:
            needs = f"{self._options.cpus_per_worker:g} CPU, {self._gpus:g} GPU"
            if cluster.capacity(self._options.cpus_per_worker, self._gpus) == 0 and self._options.address is None:
                raise DeviceError(f"Ray has no room for an actor ({needs})", "ask for less")
            if not self._said_no_room:
                self._said_no_room = True
                log.warning("Ray has no room for an actor (%s) yet: waiting", needs)

    def _hire(self, *, helper: bool) -> None:
        if not self._actors:
            self._starts_from = time.monotonic()
        actor = Actor(next(self._numbers), self._class, self._spec, self._weights, self._options, self._gpus, helper)
        self._actors.append(actor)
        self.peak_actors = max(self.peak_actors, len(self._actors))

    def _release_idle(self, now: float) -> None:
        """Let go of actors without work, so that an autoscaling cluster can shrink, and of starts beyond the limit."""
        if self._segments or self._joins or self._planned or self._unplanned:
            return
        idle = [a for a in self._actors if a.unit is None and now - a.since > 3 * _LOOK]
        for actor in idle[1:]:  # one stays for what fails
            self._actors.remove(actor)
            actor.kill()

    def _died(self, actor: Actor, error: BaseException) -> None:
        self._actors.remove(actor)
        actor.kill()
        self.deaths += 1
        self._metrics.death()
        why = ray_pool.brief(error)
        unit = actor.unit
        if not actor.ready:
            self._failed_starts += 1
            log.warning("%s died while starting (%s)", actor.name, why)
            if self._failed_starts >= _FAILED_STARTS and not any(a.ready for a in self._actors):
                raise WorkerError(f"{self._failed_starts} actors in a row died while starting: {why}", "see Ray's logs")
            time.sleep(min(5.0, 0.2 * 2**self._failed_starts))
            return
        doing = f" at {unit.name}" if unit is not None else ""
        log.warning("%s on %s (pid %d) died%s (%s)", actor.name, actor.host, actor.pid, doing, why)
        if unit is None:
            return
        node_gone = actor.node not in cluster.alive_nodes()
        for item in unit.items:
            state = self._files[item.id]
            if state.over:
                continue
            single = self._single(unit, state)
            self._alone.add(item.id)
            moved = state.attempts.get("moved", 0)
            if (node_gone or len(unit.items) > 1) and moved < _MOVES:
                state.attempts["moved"] = moved + 1
                state.tries += 1
                self._requeue(single)
            else:
                self._charge(single, state, f"it killed {actor.name} on {actor.host} ({why})")

    # --- disk --------------------------------------------------------------------------------------------------------

    def _look_at_disk(self) -> None:
        now = time.monotonic()
        if now - self._disk_looked < _DISK:
            return
        self._disk_looked = now
        free = place.free_bytes(self._spec.dest)
        if free is not None and free < self._options.reserve_gb * 1e9:
            self._pause(f"{free / 1e9:.2f} GB free in {self._spec.dest}", 0.0)
        elif self._paused is not None and now >= self._paused_until:
            log.warning("there is room again: going on")
            self._paused = None

    def _pause(self, why: str, seconds: float) -> None:
        if self._paused is None:
            log.warning("paused: %s; free some space, the job goes on by itself", why)
        self._paused = why
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def _commit(self) -> None:
        try:
            self._manifest.commit()
        except DiskFull as e:  # the lines wait; nothing is handed out meanwhile
            self._pause(str(e), 2 * _DISK)

    # --- telling -----------------------------------------------------------------------------------------------------

    def _show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if now - self._shown < max(_SHOW, len(self._all) / _SHOW_FILES) and not last:
            return
        self._shown = now
        for actor in self._actors:
            self._watch(actor)
        snapshot = self._snapshot(now)
        waiting = len(self._segments) + len(self._joins) + len(self._planned) + len(self._later)
        ready = sum(a.ready for a in self._actors)
        self._metrics.state(snapshot.files, waiting, ready, self._paused is not None)
        if self._progress is not None:
            self._progress(snapshot)

    def _watch(self, actor: Actor) -> None:
        """Ask a busy actor how far it is, and take what it answered last time."""
        if actor.watching is not None:
            done, _ = _ray.wait([actor.watching], timeout=0)
            if not done:
                return
            try:
                found = _ray.get(actor.watching)
                actor.frames, actor.unit_frames, actor.gpu_use = found["frames"], found["unit_frames"], found["gpu"]
            except Exception:
                log.debug("%s does not answer", actor.name)
            actor.watching = None
        if actor.ready and actor.unit is not None:
            actor.watching = actor.handle.progress.remote()

    def _snapshot(self, now: float) -> Snapshot:
        counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        done = total = 0
        for f in self._all.values():
            counts[f.status] += 1
            done += f.frames_done
            plan = f.item.plan if f.item is not None else None
            total += f.frames_done if f.over else (plan.frames or 0) if plan is not None else 0
        done += sum(a.unit_frames for a in self._actors if a.unit is not None and a.unit.kind in ("segment", "files"))
        hosts: dict[str, list[Actor]] = {}
        for actor in self._actors:
            if actor.ready:
                hosts.setdefault(actor.host, []).append(actor)
        nodes = []
        fps = 0.0
        for host, actors in sorted(hosts.items()):
            count = sum(a.frames for a in actors)
            history = self._rates.setdefault(host, deque(maxlen=15))
            if history and count < history[-1][1]:
                history.clear()  # an actor has gone, with its count
            history.append((now, count))
            span = history[-1][0] - history[0][0]
            rate = (history[-1][1] - history[0][1]) / span if span > 0 else 0.0
            fps += rate
            uses = [a.gpu_use for a in actors if a.gpu_use is not None]
            nodes.append((host, len(actors), rate, sum(uses) / len(uses) if uses else None))
        elapsed = now - self._started
        made = done - self._frames_before
        eta = None
        if made > 0 and total > done and not self._unplanned:
            eta = elapsed / made * (total - done)
        return Snapshot(
            files=counts,
            total=len(self._all),
            frames=done,
            frames_total=total or None,
            fps=fps or (made / elapsed if elapsed > 0 else 0.0),
            seconds=elapsed,
            eta=eta,
            nodes=tuple(nodes),
            current=tuple(f"{a.unit.name} ({a.unit_frames} frames)" for a in self._actors if a.unit is not None),
            paused=self._paused,
        )
