"""A Ray of the tests' own."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamdeblur.runtime.ray_pool import RayPool


@contextmanager
def one_ray(cpus: int = 2, memory: int = 100 << 20, gpus: int = 0) -> Iterator[str]:
    """One Ray on this machine, which jobs find running and leave running; its address. memory: of the object store, in
    bytes.

    Ray takes SIGTERM for itself; here it stays what it was.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    kept = signal.getsignal(signal.SIGTERM)
    context = ray.init(
        address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, object_store_memory=memory,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, kept)
    try:
        yield context.address_info["gcs_address"]
    finally:
        ray.shutdown()


def all_there(pool: RayPool, workers: int = 2) -> None:
    """Wait for the workers of a pool: the first to be there may be done with all before the second is."""
    limit = time.monotonic() + 120
    while len(set(pool.worker_pids())) < workers:
        assert time.monotonic() < limit, f"workers {pool.worker_pids()} of {workers} are there"
        pool.collect(0.1)
        time.sleep(0.02)
