"""The Ray cluster of a job: joined, or started on this machine; what room it has; the actors that do the work."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from streamdeblur.errors import DeviceError
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.units import JobSpec
from streamdeblur.runtime import ray_pool
from streamdeblur.runtime.pool import one_line

log = logging.getLogger(__name__)

_ray: Any = ray

#: An actor, or the node under it, has gone.
GONE = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)

#: Bytes of Ray's object store on this machine: only weights and descriptions of work lie in it.
_STORE = 256 << 20


@contextmanager
def connected(options: BatchOptions) -> Iterator[None]:
    """Ray for the time of a job: the one this process is in already, a cluster, or one started here.

    Raises DeviceError when no cluster answers, UsageError for an address that is none.
    """
    if ray.is_initialized():
        yield
        return
    address = options.address or os.environ.get("RAY_ADDRESS") or None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address in (None, "local"):
        start: dict[str, Any] = {"address": "local", "include_dashboard": False, "object_store_memory": _STORE}
        if options.workers is not None:
            start["num_cpus"] = max(1, math.ceil((options.workers + options.helpers) * options.cpus_per_worker))
        if options.device == "cpu":
            start["num_gpus"] = 0
        where = "on this machine"
    else:
        assert address is not None
        ray_pool.check_address(address)
        start, where = {"address": address}, f"at {address}"
    with ray_pool.signal_handlers_kept():
        try:
            ray.init(**start, **quiet)
        except Exception as e:
            raise DeviceError(f"Ray can't be used {where}: {one_line(e)}") from e
    ray_pool.messages_to_log(True)
    try:
        yield
    finally:
        ray.shutdown()
        ray_pool.messages_to_log(False)


def gpus_per_worker(options: BatchOptions) -> float:
    """What an actor asks for: a GPU each where the cluster has any, unless told otherwise."""
    if options.gpus_per_worker is not None:
        return options.gpus_per_worker
    return 0.0 if options.device == "cpu" else float(_ray.cluster_resources().get("GPU", 0) > 0)


def capacity(cpus: float, gpus: float) -> int:
    """Actors that fit onto the nodes that are alive, were they empty."""
    count = 0
    for node in _ray.nodes():
        if node.get("Alive"):
            there: Mapping[str, float] = node.get("Resources", {})
            fits = [there.get("CPU", 0.0) / cpus] + ([there.get("GPU", 0.0) / gpus] if gpus else [])
            count += math.floor(min(fits) + 1e-9)
    return count


def alive_nodes() -> set[str]:
    """Ids of the nodes that Ray takes for alive."""
    return {node["NodeID"] for node in _ray.nodes() if node.get("Alive")}


class Actor:
    """An actor and the one call that it may have. helper: without GPU, for planning, joining and verifying."""

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
        self.node = ""
        self.host = ""
        self.pid = 0
        self.gpu = ""
        self.frames = 0
        self.unit_frames = 0
        self.since = time.monotonic()
        self.ready = False
        self.unit: Any = None
        self.watching: Any = None
        self.gpu_use: float | None = None
        threads = spec.threads
        handle = cls.options(
            num_cpus=options.cpus_per_worker,
            num_gpus=0 if helper else gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
        )
        self.handle = handle.remote(_search_path(), spec, list(weights), list(weights.values()), threads)
        self.call: Any = self.handle.hello.remote()

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
            self, search_path: list[str], spec: Any, hashes: list[str], weights: list[Any], threads: int | None
        ) -> None:
            import os
            import sys
            from pathlib import Path

            new = [entry for entry in search_path if entry not in sys.path and Path(entry).exists()]
            sys.path[:0] = new
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ[name] = str(threads or 1)

            import ray

            from streamdeblur.jobs.batch.metrics import NodeMetrics
            from streamdeblur.jobs.batch.node import NodeWork

            get: Any = ray.get
            self._work = NodeWork(spec, dict(zip(hashes, get(weights), strict=True)))
            self._metrics = NodeMetrics()
            self._told = 0

        def hello(self) -> dict[str, Any]:
            import os
            import socket

            import ray

            context: Any = ray.get_runtime_context()
            gpus: Any = ray.get_gpu_ids()
            return {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "node": context.get_node_id(),
                "gpu": ",".join(map(str, gpus)),
            }

        def do(self, unit: Any) -> Any:
            import time

            start = time.monotonic()
            outcomes = self._work.do(unit)
            self._metrics.unit(unit.kind, time.monotonic() - start)
            self.progress()
            return outcomes

        def progress(self) -> Any:
            found = self._work.progress()
            self._metrics.frames(max(0, found["frames"] - self._told))
            self._told = max(self._told, found["frames"])
            return found

    return ray.remote(BatchWorker)


def put(data: bytes) -> Any:
    """Bytes in the object store; the reference keeps them there."""
    return _ray.put(data)
