"""The actors that do the work: what runs in them, and the driver's hold on one."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ray
from ray import cloudpickle

from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.units import JobSpec, Unit

log = logging.getLogger(__name__)


class Actor:
    """An actor and the one call that it may have. helper: without GPU, for planning, joining and verifying.

    state: "lost" is an actor whose call failed without a word on why; Ray says later what became of it. since: when it
    was given its unit, or became idle; moved: when that last went on, as far as it was asked. cls: of ``actor_class``.
    """

    def __init__(
        self,
        number: int,
        cls: Any,
        spec: JobSpec,
        weights: Mapping[str, Any],
        options: BatchOptions,
        gpus: float,
        helper: bool,
    ) -> None:
        self.name = f"{'helper' if helper else 'worker'} {number}"
        self.helper = helper
        self.state: Literal["starting", "ready", "lost"] = "starting"
        self.node = ""
        self.host = ""
        self.pid = 0
        self.frames = 0
        self.steps = 0
        self.moved = time.monotonic()
        self.unit: Unit | None = None
        self.unit_frames = 0
        self.since = time.monotonic()
        self.lost_at = self.ask_at = 0.0
        self.watching: Any = None
        self.gpu_use: float | None = None
        handle = cls.options(
            num_cpus=options.cpus_per_worker,
            num_gpus=0 if helper else gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
        )
        # The package itself may have to be found by the search path, before anything of it can be unpickled.
        dumps: Any = cloudpickle.dumps
        packed = dumps(spec)
        self.handle = handle.remote(_search_path(), packed, list(weights), list(weights.values()), spec.threads)
        self.call: Any = None
        self.greet()

    @property
    def where(self) -> str:
        return f"{self.name} on {self.host} (pid {self.pid})" if self.host else self.name

    def greet(self) -> None:
        """Ask whether it is there, and at its start whether it can do the work. Helpers restore nothing."""
        self.call = self.handle.hello.remote(check=self.state == "starting" and not self.helper)

    def give(self, unit: Unit) -> None:
        self.unit, self.since, self.unit_frames = unit, time.monotonic(), 0
        self.moved = self.since
        self.watching = None  # an answer still to come is about the unit before
        self.call = self.handle.do.remote(unit)

    def heard(self, found: Mapping[str, Any]) -> None:
        """What it told of its progress."""
        self.frames, self.unit_frames, self.gpu_use = found["frames"], found["unit_frames"], found["gpu"]
        if found["steps"] != self.steps:
            self.steps, self.moved = found["steps"], time.monotonic()

    def kill(self) -> None:
        try:
            ray.kill(self.handle, no_restart=True)
        except Exception:
            log.debug("%s could not be killed", self.name, exc_info=True)


def _search_path() -> list[str]:
    return [str(Path(entry).absolute()) for entry in sys.path]


def actor_class() -> Any:
    """Made in a function, and with its imports inside, so that it travels by value: see ``runtime.ray_pool``."""

    class BatchWorker:
        def __init__(
            self, search_path: list[str], spec: bytes, hashes: list[str], weights: list[Any], threads: int | None
        ) -> None:
            import os
            import sys
            from pathlib import Path

            new = [entry for entry in search_path if entry not in sys.path and Path(entry).exists()]
            sys.path[:0] = new
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ[name] = str(threads or 1)

            import ray
            from ray import cloudpickle

            from streamdeblur.jobs.batch.metrics import NodeMetrics
            from streamdeblur.jobs.batch.node import NodeWork

            get: Any = ray.get
            self._work = NodeWork(cloudpickle.loads(spec), dict(zip(hashes, get(weights), strict=True)))
            self._metrics = NodeMetrics()
            self._told = 0

        def hello(self, check: bool = False) -> dict[str, Any]:
            import os
            import socket

            import ray

            if check:
                self._work.check()

            context: Any = ray.get_runtime_context()
            return {"pid": os.getpid(), "host": socket.gethostname(), "node": context.get_node_id()}

        def do(self, unit: Any) -> Any:
            """Seconds that the unit took here, and its outcomes."""
            import time

            start = time.monotonic()
            outcomes = self._work.do(unit)
            seconds = time.monotonic() - start
            self._metrics.unit(unit.kind, seconds)
            self.progress()
            return seconds, outcomes

        def leave(self) -> None:
            self._work.close()

        def progress(self) -> Any:
            found = self._work.progress()
            self._metrics.frames(max(0, found["frames"] - self._told))
            self._told = max(self._told, found["frames"])
            return found

    return ray.remote(BatchWorker)
