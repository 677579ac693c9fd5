"""The pool of Ray actors: one a device, on this machine or on a cluster.

What the pool owns, and Ray is told not to do (``max_restarts=0, max_task_retries=0``): a restarted actor would be one
without weights, and retried calls come back out of order. So a dead actor is replaced by a new one here, and the frames
it held are dispatched again, lowest index first.

A frame that kills: an actor runs its frames one by one in the order of dispatch, so when it dies the oldest unfinished
one is charged with it. A charged frame is a suspect: from then on it is dispatched alone, to an actor that has just
answered, so it takes no other frame with it and is not charged with a death it had no part in. At ``max_kills`` charges
it becomes a `Gap`. Every death charges a frame or counts towards giving up the worker: nothing goes on for ever.

A worker goes through: placing (Ray looks for room) → building (the factory runs) → ready → … → retired (given up).
"""

from __future__ import annotations

import logging
import math
import pickle
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import psutil
import ray
import ray.exceptions
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from streamdeblur.errors import DeviceError, StreamdeblurError, WorkerError
from streamdeblur.frames import Frame, Gap
from streamdeblur.interrupts import interruptible
from streamdeblur.runtime import ray_session
from streamdeblur.runtime.pool import Factory, Result, one_line

if TYPE_CHECKING:
    from streamdeblur.restore.planner import Region

logger = logging.getLogger(__name__)

# Parts of Ray without type hints.
_ray: Any = ray
_cloudpickle: Any = cloudpickle

#: Starts in a row that may end in a death before a worker is given up.
MAX_STARTS = 3

#: Longest wait in Ray, in seconds: how soon `close` from another thread and overdue placements are noticed.
_TICK = 0.25

# Ray's store holds a frame and its corrections: 64 MiB is 4K 4:2:0 in 16 bit with 32-bit corrections. Only what is used
# is really taken from memory, and what does not fit goes to disk.
_MIB = 1 << 20
_STORE_PER_FRAME = 64 * _MIB
_STORE_MINIMUM = 80 * _MIB  # Ray refuses less than 75

_GONE = (
    ray.exceptions.RayActorError,  # died, or not reachable any more
    ray.exceptions.OutOfMemoryError,  # killed by Ray's memory monitor
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
)


@dataclass(slots=True)
class _Job:
    """A frame on its way; lives until its result or gap is known."""

    frame: Frame
    regions: Sequence[Region] | None = None
    kills: list[str] = field(default_factory=list)  # who died over it
    call: Any = None

    def __lt__(self, other: _Job) -> bool:
        return self.frame.index < other.frame.index


@dataclass(slots=True)
class _Slot:
    """A worker's place; actors come and go in it."""

    name: str
    actor: Any = None
    state: Literal["placing", "building", "ready", "retired"] = "placing"
    since: float = 0.0
    control: Any = None  # the call under way that is not a frame: hello, build or ping
    jobs: deque[_Job] = field(default_factory=deque)  # dispatched, oldest first
    suspect: _Job | None = None  # waits for the ping
    failed_starts: int = 0
    pid: int | None = None
    host: str = ""
    was_ready: bool = False
    warned: bool = False

    @property
    def who(self) -> str:
        return self.name if self.pid is None else f"{self.name} (pid {self.pid})"


class RayPool:
    """Ray actors, one a device. See `Pool` for the protocol.

    factory: pickled to every worker and called there. workers: actors. address: None starts Ray on this machine, or
    uses the Ray that this process is in already, or joins the cluster that RAY_ADDRESS names; "auto", "host:port" and
    "ray://host:port" join a running one. num_cpus, num_gpus: what each actor asks of Ray; fractions share a device.
    in_flight_per_worker: frames at an actor at most. max_kills: deaths after which a frame becomes a gap.
    threads: intra-op threads of a worker (Ray sets one by default); None leaves them alone.
    placement_timeout: seconds for the cluster to find room for the first worker.

    Workers start while the pool is in use already: the first `submit` does not wait for them. The other machines
    of a cluster must have streamdeblur installed, or see it under the same path. A Ray started here ends with the
    thread that made the pool (the kernel ties them together): make it in one that outlives the pool.

    Raises UsageError for an address that is none, DeviceError when no cluster answers there or the machine lacks what
    was asked for; later, from `submit` and `collect`, what the factory raised, WorkerError when every worker died while
    starting, DeviceError when the cluster has no room.
    """

    def __init__(
        self,
        factory: Factory,
        *,
        workers: int,
        address: str | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
        in_flight_per_worker: int = 2,
        max_kills: int = 3,
        threads: int | None = None,
        placement_timeout: float = 60.0,
    ) -> None:
        for name, value in (
            ("workers", workers),
            ("in_flight_per_worker", in_flight_per_worker),
            ("max_kills", max_kills),
            ("threads", 1 if threads is None else threads),
        ):
            if value < 1:
                raise ValueError(f"{name} {value} is not at least 1")
        self._per_worker = in_flight_per_worker
        self._max_kills = max_kills
        self._threads = threads
        self._num_cpus = num_cpus
        self._num_gpus = num_gpus
        self._placement_timeout = placement_timeout
        self._recipe: bytes = _cloudpickle.dumps(factory)
        self._slots = [_Slot(f"ray:{i}") for i in range(workers)]
        self._waiting: list[_Job] = []
        self._done: list[Result | Gap] = []
        self._in_flight = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._shut = False
        self._lock = threading.RLock()
        self._owns_ray = False
        try:
            if not ray.is_initialized():
                self._connect(address)
            self._actor_class: Any = ray.remote(_worker_class())
            self._node = _this_node()
            for slot in self._slots:
                self._start(slot)
        except BaseException:
            self.close(abort=True)
            raise

    @property
    def capacity(self) -> int:
        return len(self._slots) * self._per_worker

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def worker_pids(self) -> list[int]:
        """Process ids of the actors placed so far, each on its own machine; an unnoticed dead one is among them."""
        return [slot.pid for slot in self._slots if slot.pid is not None]

    def submit(self, frame: Frame, regions: Sequence[Region] | None = None) -> None:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise RuntimeError("the pool is closed")
            if self._in_flight >= self.capacity:
                raise RuntimeError(f"all {self.capacity} credits of the pool are in use")
            self._in_flight += 1
            self._waiting.append(_Job(_contiguous(frame), regions))
            self._guarded(self._dispatch)

    def collect(self, timeout: float | None = None) -> list[Result | Gap]:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        left = 0.0  # the first round takes what is there without waiting
        while True:
            with self._lock:
                if self._closed:
                    return []
                if self._failure is None:
                    self._guarded(self._step, left)
                if self._done or self._failure is not None or self._in_flight == 0:
                    return self._take()
            if time.monotonic() >= deadline:
                return []
            left = max(0.0, min(_TICK, deadline - time.monotonic()))

    def close(self, *, abort: bool = False) -> None:
        if not abort:
            while not self._closed and self._in_flight and self._failure is None:
                try:
                    self.collect(_TICK)
                except StreamdeblurError:
                    logger.debug("the workers failed while the pool was closed", exc_info=True)
        self._closed = True
        with self._lock:  # a `collect` in another thread leaves Ray within a tick
            if self._shut:
                return
            self._shut = True
            for slot in self._slots:
                self._kill(slot)
                slot.jobs.clear()
                slot.suspect = None
            self._waiting.clear()
            self._done.clear()
            self._in_flight = 0
            if self._owns_ray:
                ray_session.shut_down()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(abort=kind is not None)

    # Starting

    def _connect(self, address: str | None) -> None:
        local: dict[str, Any] = {
            "num_cpus": max(1, math.ceil(len(self._slots) * self._num_cpus)),
            "object_store_memory": _store_size(self.capacity),
        }
        if self._num_gpus == 0:
            local["num_gpus"] = 0
        started = ray_session.start(address, **local)
        self._owns_ray = True
        if started and self._num_gpus > 0:
            wanted = len(self._slots) * self._num_gpus
            there = _ray.cluster_resources().get("GPU", 0.0)
            if wanted > there:
                raise DeviceError(
                    f"{len(self._slots)} workers with {self._num_gpus:g} GPU each need {wanted:g}, "
                    f"this machine has {there:g}",
                    "ask for fewer workers or a smaller share",
                )

    def _start(self, slot: _Slot) -> None:
        options: dict[str, Any] = {
            "num_cpus": self._num_cpus,
            "num_gpus": self._num_gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 1,
        }
        if self._node is not None:  # frames should not cross from node to node
            options["scheduling_strategy"] = _prefer(self._node)
        slot.actor = self._actor_class.options(**options).remote(_search_path(), self._threads)
        slot.state = "placing"
        slot.since = time.monotonic()
        slot.pid = None
        slot.control = slot.actor.hello.remote()

    def _kill(self, slot: _Slot) -> None:
        actor, slot.actor, slot.control, slot.pid = slot.actor, None, None, None
        if actor is not None:
            try:
                ray.kill(actor, no_restart=True)
            except Exception:
                logger.debug("%s could not be killed", slot.name, exc_info=True)

    # Going on

    def _take(self) -> list[Result | Gap]:
        if not self._done and self._failure is not None:
            raise self._failure
        done, self._done = self._done, []
        self._in_flight -= len(done)
        return done

    def _step(self, timeout: float) -> None:
        """Wait for Ray once, act on all that is ready, dispatch what became possible."""
        calls = [slot.control for slot in self._slots if slot.control is not None]
        calls += [job.call for slot in self._slots for job in slot.jobs]
        if calls:
            with interruptible():
                ready, _ = ray.wait(calls, num_returns=1, timeout=timeout)
                if ready and len(calls) > 1:
                    ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
            arrived = set(ready)
            for slot in self._slots:
                self._advance(slot, arrived)
        if self._failure is None:
            self._check_slots()
            self._dispatch()

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        """Keep what ends the pool for the caller: what was done before is collected first."""
        try:
            action(*arguments)
        except StreamdeblurError as error:
            self._failure = error
        except (ray.exceptions.RayError, ConnectionError) as error:  # a full store, a head node that went away
            self._failure = WorkerError(f"Ray failed: {ray_session.brief(error)}")

    def _advance(self, slot: _Slot, arrived: set[Any]) -> None:
        death: BaseException | None = None
        for job in [job for job in slot.jobs if job.call in arrived]:
            try:
                with interruptible():
                    outcome = ray.get(job.call)
            except _GONE as error:
                death = error
                continue
            except ray.exceptions.RayTaskError as error:
                outcome = one_line(error.cause if error.cause is not None else error)
            except ray.exceptions.RayError as error:  # the result was lost on its way, with the node that held it
                logger.warning(
                    "the result of frame %d was lost (%s): it is done again", job.frame.index, ray_session.brief(error)
                )
                slot.jobs.remove(job)
                self._charge(job, slot)
                continue
            slot.jobs.remove(job)
            slot.failed_starts = 0
            self._finish(job, slot, outcome)
        if death is None and slot.control in arrived:
            control, slot.control = slot.control, None
            try:
                self._answered(slot, ray.get(control))
            except ray.exceptions.RayError as error:
                death = error
        if death is not None:
            self._died(slot, death)

    def _finish(self, job: _Job, slot: _Slot, outcome: Any) -> None:
        job.call = None
        if isinstance(outcome, str):
            self._done.append(Gap(job.frame.index, outcome))
            return
        corrections, seconds = outcome
        # Copied: Ray's arrays are views of its store, which would stay full as long as they are held and is unmapped
        # at shutdown.
        self._done.append(Result(job.frame.index, tuple(np.array(c) for c in corrections), slot.name, seconds))

    def _answered(self, slot: _Slot, answer: Any) -> None:
        """The control call came back: one step further."""
        if slot.state == "placing":
            slot.pid, slot.host = answer
            slot.state = "building"
            slot.control = slot.actor.build.remote(self._recipe)
        elif slot.state == "building":
            if answer is None:
                slot.state = "ready"
                slot.was_ready = True
                logger.info("%s is ready on %s", slot.who, slot.host)
            else:
                self._factory_failed(slot, pickle.loads(answer))
        elif slot.suspect is not None:
            job, slot.suspect = slot.suspect, None
            self._send(slot, job)

    def _factory_failed(self, slot: _Slot, error: Exception) -> None:
        """The factory is certain to fail again: it ends the pool, unless this worker had been running with it."""
        who = slot.who
        self._kill(slot)
        slot.state = "retired"
        if not slot.was_ready:
            self._failure = error
        else:
            logger.warning("%s is given up: it could not be started again: %s", who, one_line(error))

    def _died(self, slot: _Slot, error: BaseException) -> None:
        starting = slot.state != "ready"
        charged = slot.jobs[0] if slot.jobs else None
        back = list(slot.jobs)
        if slot.suspect is not None:
            back.append(slot.suspect)
        slot.jobs.clear()
        slot.suspect = None
        who = slot.who
        if charged is None:
            slot.failed_starts += 1
        lost = (
            f"while it held frames {', '.join(str(job.frame.index) for job in back)}: they are dispatched again"
            if back
            else "while it started"
            if starting
            else "idle"
        )
        logger.warning("worker %s died %s (%s)", who, lost, ray_session.brief(error))
        for job in back:
            if job is charged:
                self._charge(job, slot)
            else:
                job.call = None
                self._waiting.append(job)
        self._kill(slot)
        if slot.failed_starts >= MAX_STARTS:
            slot.state = "retired"
            logger.warning("worker %s is given up after it died %d times while starting", slot.name, slot.failed_starts)
        else:
            self._start(slot)

    def _charge(self, job: _Job, slot: _Slot) -> None:
        job.call = None
        job.kills.append(slot.who)
        if len(job.kills) >= self._max_kills:
            count = len(job.kills)
            reason = f"killed {count} worker{'s' if count > 1 else ''}: {', '.join(job.kills)}"
            logger.warning("frame %d is given up: it %s", job.frame.index, reason)
            self._done.append(Gap(job.frame.index, reason))
        else:
            self._waiting.append(job)

    def _check_slots(self) -> None:
        if all(slot.state == "retired" for slot in self._slots):
            raise WorkerError(
                f"every Ray worker died {MAX_STARTS} times while starting",
                "see the logs of Ray's workers, by default under /tmp/ray",
            )
        placed = any(slot.state in ("building", "ready") for slot in self._slots)
        for slot in self._slots:
            if slot.state != "placing" or time.monotonic() - slot.since < self._placement_timeout:
                continue
            needs = f"{self._num_cpus:g} CPU, {self._num_gpus:g} GPU"
            if not placed:
                raise DeviceError(
                    f"Ray found no room for a worker ({needs}) within {self._placement_timeout:g} s",
                    "ask for less, or wait until the cluster is free",
                )
            if not slot.warned:
                slot.warned = True
                logger.warning("Ray has no room for worker %s (%s) yet: going on without it", slot.name, needs)

    def _dispatch(self) -> None:
        """Hand out what waits, lowest index first; suspects alone, to idle workers only."""
        if not self._waiting:
            return
        suspects = sorted(job for job in self._waiting if job.kills)
        plain = sorted(job for job in self._waiting if not job.kills)
        # A worker that has a suspect, or waits to get one, takes nothing else.
        free = [
            slot
            for slot in self._slots
            if slot.state == "ready" and slot.suspect is None and not any(job.kills for job in slot.jobs)
        ]
        free.sort(key=lambda slot: len(slot.jobs))
        # As many workers as there are suspects get no new frames, so that they become idle.
        kept, free = free[: len(suspects)], free[len(suspects) :]
        try:
            for slot in kept:
                if not slot.jobs:
                    slot.control = slot.actor.ping.remote()
                    slot.suspect = suspects.pop(0)
            while plain and free:
                slot = min(free, key=lambda slot: len(slot.jobs))
                if len(slot.jobs) >= self._per_worker:
                    break
                self._send(slot, plain.pop(0))
        finally:
            self._waiting = suspects + plain

    def _send(self, slot: _Slot, job: _Job) -> None:
        job.call = slot.actor.restore.remote(job.frame, job.regions)
        slot.jobs.append(job)


def _worker_class() -> type:
    """The class of the actors.

    Made in a function, and with its imports inside its methods, so that it travels by value: a worker can make one
    before it is told where streamdeblur is.
    """

    class RestoreWorker:
        def __init__(self, search_path: list[str], threads: int | None) -> None:
            import os
            import sys
            from pathlib import Path

            new = [entry for entry in search_path if entry not in sys.path and Path(entry).exists()]
            sys.path[:0] = new
            self._threads = threads
            self._work: Any = None
            if threads is not None:
                for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported, later
                    os.environ[name] = str(threads)

        def hello(self) -> tuple[int, str]:
            import os
            import socket

            return os.getpid(), socket.gethostname()

        def ping(self) -> None:
            return None

        def build(self, recipe: bytes) -> bytes | None:
            """Call the factory; None, or its exception pickled (as WorkerError where it does not pickle)."""
            import pickle

            try:
                factory = pickle.loads(recipe)
                self._limit_threads()
                self._work = factory()
                self._limit_threads()
            except Exception as error:
                from streamdeblur.errors import WorkerError
                from streamdeblur.runtime.pool import one_line

                try:
                    data = pickle.dumps(error)
                    pickle.loads(data)
                except Exception:
                    data = pickle.dumps(WorkerError(f"a Ray worker can't be set up: {one_line(error)}"))
                return data
            return None

        def _limit_threads(self) -> None:
            import sys

            torch = sys.modules.get("torch")  # a worker without torch does not pay for its import
            if self._threads is not None and torch is not None:
                torch.set_num_threads(self._threads)

        def restore(self, frame: Frame, regions: Sequence[Region] | None) -> Any:
            """Corrections and seconds, or the reason why there are none."""
            import time

            from streamdeblur.runtime.pool import checked, one_line

            start = time.perf_counter()
            try:
                corrections = checked(self._work(frame) if regions is None else self._work(frame, regions))
            except Exception as error:
                return one_line(error)
            return corrections, time.perf_counter() - start

    return RestoreWorker


def _contiguous(frame: Frame) -> Frame:
    """The same frame; planes that are strided views are packed, for those would be copied element by element."""
    if all(plane.flags.c_contiguous for plane in frame.planes):
        return frame
    planes = tuple(np.ascontiguousarray(plane) for plane in frame.planes)
    return Frame(frame.index, frame.pts, frame.time_base, planes, frame.spec)


def _search_path() -> list[str]:
    return [str(Path(entry).absolute()) for entry in sys.path]


def _this_node() -> str | None:
    try:
        return str(ray.get_runtime_context().get_node_id())
    except Exception:  # a Ray client has no node of its own
        return None


def _prefer(node: str) -> Any:
    """Scheduling on ``node`` while it has room, else anywhere."""
    try:
        return NodeAffinitySchedulingStrategy(node, soft=True, _spill_on_unavailable=True)
    except TypeError:  # not a public option: without it a full node would be waited for
        return "DEFAULT"


def _store_size(frames: int) -> int:
    """Bytes for the object store of ``frames`` in flight, within memory and /dev/shm where that leaves enough."""
    wanted = min(frames * _STORE_PER_FRAME, psutil.virtual_memory().available // 4)
    try:
        shared = int(shutil.disk_usage("/dev/shm").free * 0.8)
    except OSError:
        shared = 0
    if shared >= _STORE_MINIMUM:
        wanted = min(wanted, shared)
    # With less shared memory than that (64 MiB in a container by default) Ray takes files under /tmp: slower, sound.
    return max(wanted, _STORE_MINIMUM)
