"""Who works: actors are hired while there is room and work, listened to, replaced when they die, let go when idle.

What became of an actor that does not answer is for Ray to say, and that takes as long as its health checks, some
fifteen seconds. Until then its unit waits and its place stays taken, for Ray would start the next one on the node that
is gone. Only a process that died on a node that lives speaks against the file that it had.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
import ray.exceptions

from streamdeblur import interrupts
from streamdeblur.errors import DeviceError, StreamdeblurError, WorkerError
from streamdeblur.jobs.batch import cluster
from streamdeblur.jobs.batch.actors import Actor, actor_class
from streamdeblur.jobs.batch.metrics import DriverMetrics
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.units import JobSpec, Outcome, Unit
from streamdeblur.runtime import ray_session
from streamdeblur.runtime.pool import one_line

log = logging.getLogger(__name__)

_ray: Any = ray

#: Seconds between looks at the cluster.
_LOOK = 10.0
#: Actors that may die in a row before any was ready; seconds at most between two of their starts.
_FAILED_STARTS = 4
_SLOWEST = 60.0
#: Seconds after which it is told that there is no room for any actor, and that there should be some.
_NO_ROOM = 15.0
_PLACEMENT = 120.0
#: Seconds that the driver may be held up itself (a disk that hangs) before it counts against no actor.
_HELD_UP = 10.0
#: Seconds at most for actors to clear up after themselves.
_LEAVE = 10.0
#: Seconds between questions to an actor that is lost, and after which it is given up without Ray's word.
_ASK = 1.0
_GIVE_UP = 120.0
#: Ends of a process that are its own, or its work's, by Ray's word (WorkerExitType); others come with the node's.
_OWN_ENDS = {"SYSTEM_ERROR", "USER_ERROR", "INTENDED_USER_EXIT", "NODE_OUT_OF_MEMORY"}
#: What a call may end with when its actor, or the node under it, has gone.
_GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)


@dataclass(frozen=True, slots=True)
class Answered:
    """A unit came back. seconds: since it was sent; inside: those that the actor worked on it."""

    unit: Unit
    outcomes: list[Outcome]
    host: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Raised:
    """A unit came back as an exception that is no outcome: a fault of ours, or of the machine."""

    unit: Unit
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Died:
    """The actor with this unit has gone. guilty: the unit may be why."""

    unit: Unit
    guilty: bool
    message: str


Event = Answered | Raised | Died
Verdict = Literal["process", "node", "unknown"]


def verdict(error: BaseException, node: str, alive: set[str]) -> Verdict:
    """What an actor's end was: of its process, of the node under it (or of its result on the way), or not yet known.

    node: its id, "" where it never told. alive: ids of the nodes that Ray takes for alive.
    """
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "node" if node and node not in alive else "unknown"
    if isinstance(error, ray.exceptions.NodeDiedError | ray.exceptions.ObjectLostError):
        return "node"
    if isinstance(error, ray.exceptions.ActorDiedError) and error.preempted:
        return "node"
    if (node and node not in alive) or "its node has died" in str(error):
        return "node"
    end = re.search(r"Worker exit type: (\w+)", str(error))
    return "process" if end is None or end[1] in _OWN_ENDS else "node"


def _why(error: BaseException) -> str:
    """In a line; of a constructor that raised, its own last words."""
    if getattr(error, "actor_init_failed", False):
        return " ".join(str(error).strip().splitlines()[-1].split())[:200]
    return ray_session.brief(error)


class Crew:
    """The actors of a job. For the driver's thread; ``close`` ends them.

    idle: seconds that actors waited for their next unit; transit: that units and outcomes were on their way.
    ever_ready: whether any but a helper could be given work. fixed: the cluster does not grow. Raises WorkerError when
    no actor can be kept alive, DeviceError when there is no room for any, and what the first actor finds wrong with
    weights, detectors or the device, before anything is done.
    """

    def __init__(
        self, options: BatchOptions, spec: JobSpec, weights: Mapping[str, Any], metrics: DriverMetrics, fixed: bool
    ) -> None:
        self.actors: list[Actor] = []
        self.deaths = 0
        self.peak = 0
        self.idle = 0.0
        self.transit = 0.0
        self._options = options
        self._spec = spec
        self._weights = weights
        self._metrics = metrics
        self._class = actor_class()
        self._fixed = fixed
        self._gpus = cluster.gpus_per_worker(options)
        self.ever_ready = False
        self._looked_at_all = time.monotonic()
        self._numbers = itertools.count(1)
        self._limit = self._room = 0
        self._looked = float("-inf")
        self._failed_starts = 0
        self._starts_from = 0.0
        self._hire_from = 0.0
        self._said_no_room = False

    def man(self, work: int, *, queued: bool) -> None:
        """Have as many actors as there is room and work for. work: units, as far as known. queued: any waits now."""
        now = time.monotonic()
        if now - self._looked >= _LOOK:
            self._looked = now
            self._room = cluster.capacity(self._options.cpus_per_worker, self._gpus)
            self._limit = self._options.workers or max(1, self._room)
            self._let_go(now, queued)
        for actor in self.actors:
            if actor.state == "lost" and actor.call is None and now >= actor.ask_at:
                actor.greet()
        if now < self._hire_from:
            return
        helpers = sum(a.helper for a in self.actors)
        for _ in range(min(self._limit, work) - (len(self.actors) - helpers)):
            self._hire(helper=False)
        for _ in range(self._options.helpers - helpers if work else 0):
            self._hire(helper=True)
        self._look_for_room(now)

    def ready(self) -> list[Actor]:
        """Those that can take a unit."""
        return [a for a in self.actors if a.state == "ready" and a.unit is None]

    def give(self, actor: Actor, unit: Unit) -> None:
        self.idle += time.monotonic() - actor.since
        actor.give(unit)

    def listen(self, seconds: float) -> Iterator[Event]:
        """What happens next, or nothing for so long."""
        yield from self._hung()
        calls = {actor.call: actor for actor in self.actors if actor.call is not None}
        if not calls:
            time.sleep(seconds)
            return
        with interrupts.interruptible():
            ready, _ = _ray.wait(list(calls), num_returns=1, timeout=seconds)
            if ready and len(calls) > 1:
                ready, _ = _ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in ready:
            event = self._answer(calls[call])
            if event is not None:
                yield event

    def leave(self) -> None:
        """Let the actors clear up on their nodes, at the end of a job that came to its end."""
        calls = [a.handle.leave.remote() for a in self.actors if a.state == "ready"]
        if calls:
            end = time.monotonic() + _LEAVE
            with interrupts.interruptible():
                while calls and time.monotonic() < end and not interrupts.wanted():
                    _, calls = _ray.wait(calls, num_returns=len(calls), timeout=interrupts.LOOK)

    def close(self) -> None:
        for actor in self.actors:
            actor.kill()

    # --- answers -----------------------------------------------------------------------------------------------------

    def _hung(self) -> Iterator[Event]:
        """End actors whose unit does not go on."""
        now, limit = time.monotonic(), self._options.unit_timeout
        held_up, self._looked_at_all = now - self._looked_at_all, now
        for actor in [a for a in self.actors if a.state == "ready" and a.unit is not None]:
            if held_up > _HELD_UP:  # nobody asked the actors meanwhile
                actor.moved += held_up
            if limit and now - actor.moved >= limit:
                event = self._remove(actor, "process", f"no progress for {limit:g} s, so it was ended", hung=True)
                if event is not None:
                    yield event

    def _answer(self, actor: Actor) -> Event | None:
        call, actor.call = actor.call, None
        try:
            with interrupts.interruptible():
                answer = _ray.get(call)
        except _GONE as e:
            return self._gone(actor, e)
        except ray.exceptions.LocalRayletDiedError as e:
            raise WorkerError("Ray on this machine has died", "the same command goes on where the job was") from e
        except ray.exceptions.RayError as e:  # from within the actor, or the answer did not come through
            unit, cause = actor.unit, getattr(e, "cause", None) or e
            if unit is None or actor.state != "ready":
                return self._remove(actor, "process", ray_session.brief(e), cause=cause)
            actor.unit, actor.since = None, time.monotonic()
            return Raised(unit, type(cause).__name__, one_line(cause))
        if actor.state == "lost" and actor.unit is not None:
            # It is alive and perhaps still at work, but its answer will never come.
            return self._remove(actor, "node", "its answer was lost")
        if actor.state != "ready":
            actor.state = "ready"
            self.ever_ready |= not actor.helper
            actor.host, actor.node, actor.pid = answer["host"], answer["node"], answer["pid"]
            actor.since = time.monotonic()
            self._failed_starts = 0
            return None
        unit, actor.unit = actor.unit, None
        assert unit is not None
        now = time.monotonic()
        inside, outcomes = answer
        seconds, actor.since = now - actor.since, now
        self.transit += max(0.0, seconds - inside)
        return Answered(unit, outcomes, actor.host, seconds)

    def _gone(self, actor: Actor, error: BaseException) -> Event | None:
        now, why = time.monotonic(), _why(error)
        found = verdict(error, actor.node, cluster.alive_nodes())
        if found == "unknown":
            if actor.state != "lost":
                log.warning("no contact with %s (%s): waiting for Ray to tell what became of it", actor.where, why)
                actor.state, actor.lost_at = "lost", now
            if now - actor.lost_at < _GIVE_UP:
                actor.ask_at = now + _ASK
                return None
        return self._remove(actor, found, why)

    def _remove(
        self, actor: Actor, found: Verdict, why: str, *, cause: BaseException | None = None, hung: bool = False
    ) -> Event | None:
        """cause: what it raised. hung: it was alive, and did nothing."""
        self.actors.remove(actor)
        actor.kill()
        self._looked = float("-inf")  # there may be less room now
        started = bool(actor.host)
        if started or found == "process":
            self.deaths += 1
            self._metrics.death()
        what = "the node under it died" if found == "node" else "it died"
        if not started:
            self._not_started(actor, found, f"{what} ({why})", cause)
            return None
        doing = f" at {actor.unit.name}" if actor.unit is not None else ""
        log.warning("%s%s: %s", actor.where, doing, why if hung else f"{what} ({why})")
        if actor.unit is None:
            return None
        message = (
            f"{why}, by {actor.name} on {actor.host}" if hung else f"it killed {actor.name} on {actor.host} ({why})"
        )
        return Died(actor.unit, found == "process", message)

    def _not_started(self, actor: Actor, found: Verdict, why: str, cause: BaseException | None) -> None:
        ours = cause if isinstance(cause, StreamdeblurError) else None
        if ours is not None and not self.ever_ready and not isinstance(ours, DeviceError):
            raise ours  # it is the same wherever it is tried
        log.warning("%s did not start: %s", actor.name, why if ours is None else ours)
        if found != "process":
            return
        self._failed_starts += 1
        if self._failed_starts >= _FAILED_STARTS and not any(a.state == "ready" and not a.helper for a in self.actors):
            if ours is not None:
                raise ours
            raise WorkerError(f"{self._failed_starts} actors in a row died while starting: {why}", "see Ray's logs")
        self._hire_from = time.monotonic() + min(_SLOWEST, 0.2 * 2**self._failed_starts)

    # --- hiring ------------------------------------------------------------------------------------------------------

    def _hire(self, *, helper: bool) -> None:
        if not self.actors:
            self._starts_from = time.monotonic()
        actor = Actor(next(self._numbers), self._class, self._spec, self._weights, self._options, self._gpus, helper)
        self.actors.append(actor)
        self.peak = max(self.peak, len(self.actors))

    def _let_go(self, now: float, queued: bool) -> None:
        """Let go of starts for which there is no room any more, and of actors without work, so that an autoscaling
        cluster can shrink."""
        workers = [a for a in self.actors if not a.helper]
        waiting = [a for a in workers if a.state == "starting"]
        surplus = waiting[max(0, len(waiting) - max(0, len(workers) - self._limit)) :]
        idle = [a for a in self.actors if a.unit is None and a.state == "ready" and now - a.since > 3 * _LOOK]
        for actor in (*surplus, *([] if queued else idle[1:])):  # one stays for what fails
            self.actors.remove(actor)
            actor.kill()

    def _look_for_room(self, now: float) -> None:
        if not self.actors or any(a.host for a in self.actors):
            return
        needs = f"{self._options.cpus_per_worker:g} CPU" + (f" and {self._gpus:g} GPU" if self._gpus else "")
        if self._fixed and not self._room:
            raise DeviceError(f"this machine has no room for an actor, which asks for {needs}", "ask for less")
        if now - self._starts_from >= (_PLACEMENT if self._room else _NO_ROOM) and not self._said_no_room:
            self._said_no_room = True
            why = "others may have taken it" if self._room else "no node has so much, and one must join"
            log.warning("waiting for %s for an actor: %s", needs, why)
