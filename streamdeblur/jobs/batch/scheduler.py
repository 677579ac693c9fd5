"""The driver's loop: units go to actors, one at a time each, and what comes back is booked.

Faults: a unit that failed, or whose actor died, is done again after a pause that doubles; a group is dissolved first,
so that one file is charged. What fails ``attempts`` times, or for a reason of its own, is quarantined and the job
goes on. A node's death charges nobody. A full disk pauses the job. A file whose segments do not come out as planned
goes whole; one that can't be restored in one place and encoded in another is done in one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from streamdeblur import interrupts
from streamdeblur.errors import DiskFull, OutputError
from streamdeblur.jobs.batch import place
from streamdeblur.jobs.batch.crew import Answered, Crew, Died, Event, Raised
from streamdeblur.jobs.batch.disk import DiskWatch
from streamdeblur.jobs.batch.manifest import Manifest
from streamdeblur.jobs.batch.metrics import DriverMetrics
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.queue import WorkQueue, single
from streamdeblur.jobs.batch.sources import STATE
from streamdeblur.jobs.batch.state import FileState, Snapshot, TakenOver
from streamdeblur.jobs.batch.telling import Teller
from streamdeblur.jobs.batch.units import (
    WHOLE,
    Done,
    Failure,
    JobSpec,
    Kind,
    Outcome,
    Probed,
    Restored,
    SegmentDone,
    Unit,
)
from streamdeblur.video.live.urls import mask

log = logging.getLogger(__name__)

#: Seconds that the loop waits for an answer.
_TICK = 0.25
#: Times that nodes may take a unit down with them before it counts against its file after all.
_MOVES = 50


class Scheduler:
    """Runs a job to its end. files: those that are not over, by id. weights: object references by hash. fixed:
    the cluster does not grow.

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
        fixed: bool,
    ) -> None:
        self._files = files
        self._options = options
        self._spec = spec
        self._manifest = manifest
        self._metrics = DriverMetrics()
        self._queue = WorkQueue(files, options)
        self._disk = DiskWatch(spec.dest, options.reserve_gb * 1e9)
        self._teller = Teller(all_files, self._metrics, progress)
        self._open = len(files)
        self.crew = Crew(options, spec, weights, self._metrics, fixed)
        self.node_frames: dict[str, int] = {}
        self.retries = 0

    def run(self) -> None:
        try:
            while self._open:
                busy = sum(a.unit is not None for a in self.crew.actors)
                self.crew.man(self._queue.work() + busy, queued=self._queue.queued)
                self._disk.look()
                self._dispatch()
                for event in self.crew.listen(_TICK):
                    self._take(event)
                self._commit()
                self._teller.tell(self.crew, self._queue, self._disk.paused)
                interrupts.check()
            self._teller.tell(self.crew, self._queue, None, now=True)
            while not self._commit():
                time.sleep(1.0)
                interrupts.check()
            self.crew.leave()
        finally:
            self.crew.close()

    def _dispatch(self) -> None:
        if self._disk.paused is not None:
            return
        given = []
        for actor in self.crew.ready():
            unit = self._queue.next(actor.helper, len(self.crew.actors))
            if unit is not None:
                self._begin(unit)
                given.append((actor, unit))
        # What an actor writes must be known as ours before it does.
        if self._commit():
            for actor, unit in given:
                self.crew.give(actor, unit)
        else:
            for _, unit in given:
                self._queue.put_back(unit)

    def _begin(self, unit: Unit) -> None:
        for item in unit.items:
            state = self._files[item.id]
            if unit.kind != "probe" and state.started is None:
                state.started, state.status = time.monotonic(), "working"
                self._manifest.add(
                    "begin", id=item.id, print=state.print, source=mask(state.source.name), output=state.source.output
                )

    def _commit(self) -> bool:
        """False on a full disk: the lines wait, and nothing is handed out meanwhile."""
        try:
            self._manifest.commit()
        except DiskFull as e:
            self._disk.full(str(e))
            return False
        return True

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        if isinstance(event, Died):
            self._died(event)
        elif isinstance(event, Raised):
            for item in event.unit.items:
                self._failed(event.unit, Failure(item.id, "retry", event.error, event.message))
        else:
            for outcome in event.outcomes:
                self._files[outcome.id].spent += event.seconds / len(event.outcomes)
                self._settle(event, outcome)

    def _settle(self, event: Answered, outcome: Outcome) -> None:
        unit, state = event.unit, self._files[outcome.id]
        if not self._queue.current(unit, state):
            return
        if isinstance(outcome, Failure):
            self._failed(unit, outcome)
        elif isinstance(outcome, Probed):
            self._probed(state, outcome)
        elif isinstance(outcome, SegmentDone):
            self._segment_done(state, outcome)
            if unit.kind == "segment":
                self._count(event.host, outcome.frames)
        elif isinstance(outcome, Restored):
            self._restored(state, outcome)
            self._count(event.host, int(outcome.facts["frames"]))
        else:
            self._done(state, outcome)
            if unit.kind == "files":
                self._count(event.host, int(outcome.summary["frames"]))

    def _count(self, host: str, frames: int) -> None:
        self.node_frames[host] = self.node_frames.get(host, 0) + frames

    def _probed(self, state: FileState, outcome: Probed) -> None:
        assert state.item is not None
        state.item = replace(state.item, plan=outcome.plan, tiling=outcome.tiling)
        self._book_plan(state)
        self._queue.take_plan(state)

    def _book_plan(self, state: FileState) -> None:
        assert state.item is not None
        plan, tiling = state.item.plan, state.item.tiling
        assert plan is not None
        self._manifest.add(
            "plan",
            id=state.source.id,
            print=state.print,
            plan=plan.as_dict(),
            plan_print=plan.print,
            segment_seconds=self._options.segment_seconds,
            tiling=None if tiling is None else [getattr(tiling, n) for n in tiling.__dataclass_fields__],
        )

    def _restored(self, state: FileState, outcome: Restored) -> None:
        assert state.item is not None
        assert state.item.plan is not None
        self._manifest.add(
            "restored",
            id=outcome.id,
            print=state.print,
            plan_print=state.item.plan.print,
            number=outcome.number,
            facts=outcome.facts,
        )
        state.restored[outcome.number] = outcome.facts
        self._queue.encode(state, outcome.number)

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
        state.restored.pop(outcome.number, None)
        state.frames_done += outcome.frames
        if state.item.preset and state.item.preset != outcome.preset:
            self._go_whole(state, "its segments were encoded with different presets")
            return
        state.item = replace(state.item, preset=outcome.preset, device=str(outcome.summary.get("device", "")))
        if not state.left:
            self._queue.join(state)

    def _done(self, state: FileState, outcome: Done) -> None:
        state.status = "differs" if outcome.summary["differences"] else "done"
        state.summary = dict(outcome.summary)
        state.frames_done = int(outcome.summary["frames"])
        state.restored.clear()
        state.seconds = time.monotonic() - (state.started or time.monotonic())
        self._open -= 1
        self._manifest.add(
            "done",
            id=outcome.id,
            print=state.print,
            source=mask(state.source.name),
            output=state.source.output,
            size=outcome.size,
            tag=outcome.tag,
            detections=outcome.detections,
            spent=round(state.spent, 3),
            seconds=round(state.seconds, 3),
            segments=state.parts,
            tries=state.tries,
            notes=state.notes,
            summary=state.summary,
        )

    # --- faults ------------------------------------------------------------------------------------------------------

    def _died(self, event: Died) -> None:
        unit = event.unit
        for item in unit.items:
            state = self._files[item.id]
            if not self._queue.current(unit, state):
                continue
            self._queue.alone.add(item.id)
            if (not event.guilty or len(unit.items) > 1) and state.moves < _MOVES:
                state.moves += 1
                state.tries += 1
                self._queue.put_back(single(unit, state))
            else:
                self._charge(single(unit, state), state, event.message)

    def _failed(self, unit: Unit, failure: Failure) -> None:
        state = self._files[failure.id]
        if not self._queue.current(unit, state):
            return
        if failure.kind == "superseded":
            raise TakenOver("another driver has taken the job over", "one job at a time can write to a DEST")
        if failure.kind == "disk":
            self._disk.full(failure.message)
            self._queue.put_back(single(unit, state))
            return
        if failure.kind == "unmatched":
            self._do_together(unit, state, failure.message)
            return
        cut = unit.kind == "join" or unit.segment != WHOLE
        if failure.kind == "uncuttable" or (failure.kind == "file" and cut):
            self._go_whole(state, failure.message)
        elif failure.kind == "file":
            self._quarantine(state, failure.message)
        else:
            self._charge(single(unit, state), state, failure.message)

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
        log.warning("%s: %s; again in %g s", unit.name, message, pause)
        self._queue.alone.add(state.source.id)
        self._queue.put_back(unit, pause)

    def _do_together(self, unit: Unit, state: FileState, why: str) -> None:
        """Restore and encode in one place from now on what was to be in two."""
        log.warning("%s: %s; it is restored and encoded in one place", unit.name, why)
        if not state.together:
            state.notes.append(f"restored and encoded in one place: {why}")
        state.together = True
        state.restored.pop(unit.segment, None)
        kind: Kind = "segment" if unit.segment != WHOLE else "files"
        self._queue.put_back(replace(unit, kind=kind, facts={}))

    def _quarantine(self, state: FileState, message: str) -> None:
        state.status, state.error = "quarantined", message
        state.seconds = time.monotonic() - (state.started or time.monotonic())
        self._open -= 1
        state.restored.clear()
        self._manifest.add(
            "quarantined",
            id=state.source.id,
            print=state.print,
            source=mask(state.source.name),
            output=state.source.output,
            message=mask(message),
        )
        self._drop_segments(state)
        log.warning("%s is quarantined: %s", state.source.name, message)

    def _go_whole(self, state: FileState, why: str) -> None:
        assert state.item is not None
        assert state.item.plan is not None
        log.warning("%s goes whole: %s", state.source.name, why)
        state.notes.append(f"not in segments: {why}")
        plan = replace(state.item.plan, whole=why, segments=())
        state.item = replace(state.item, plan=plan, tiling=None, preset="")
        state.left, state.parts, state.frames_done = None, 0, 0
        state.restored.clear()
        self._book_plan(state)
        self._drop_segments(state)
        self._queue.take_plan(state)

    def _drop_segments(self, state: FileState) -> None:
        try:
            place.remove(place.join(self._spec.dest, STATE, "segments", state.source.id))
        except OutputError as e:  # they take room and do no harm; the end of the job removes them
            log.warning("segments of %s are left for now: %s", state.source.name, e)
