"""The Ray cluster of a job: joined, or started on this machine; what room it has."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from streamdeblur.interrupts import interruptible
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.runtime import ray_session

log = logging.getLogger(__name__)

_ray: Any = ray

#: Bytes of Ray's object store on this machine: only weights and descriptions of work lie in it.
_STORE = 256 << 20


@contextmanager
def connected(options: BatchOptions) -> Iterator[bool]:
    """Ray for the time of a job: the one this process is in already, a cluster, or one started here. Gives whether it
    was started here, and so does not grow.

    Raises DeviceError when no cluster answers, UsageError for an address that is none.
    """
    if ray.is_initialized():
        yield False
        return
    local: dict[str, Any] = {"object_store_memory": _STORE}
    if options.workers is not None:
        local["num_cpus"] = max(1, math.ceil((options.workers + options.helpers) * options.cpus_per_worker))
    if options.device == "cpu":
        local["num_gpus"] = 0
    started = ray_session.start(options.address, **local)
    try:
        yield started
    finally:
        ray_session.shut_down()


def gpus_per_worker(options: BatchOptions) -> float:
    """What an actor asks for, unless told otherwise: a GPU where the cluster has any, and where CUDA is asked for, as a
    cluster that grows on demand may not have one yet."""
    if options.gpus_per_worker is not None:
        return options.gpus_per_worker
    if options.device.startswith("cuda"):
        return 1.0
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


def put(data: bytes) -> Any:
    """Bytes in the object store; the reference keeps them there."""
    with interruptible():
        return _ray.put(data)
