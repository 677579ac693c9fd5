"""A Ray of the tests' own."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_ray(cpus: int = 2, memory: int = 100 << 20) -> Iterator[str]:
    """One Ray on this machine, which jobs find running and leave running; its address. memory: of the object store, in
    bytes.

    Ray takes SIGTERM for itself; here it stays what it was.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    kept = signal.getsignal(signal.SIGTERM)
    context = ray.init(
        address="local", num_cpus=cpus, num_gpus=0, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, object_store_memory=memory,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, kept)
    try:
        yield context.address_info["gcs_address"]
    finally:
        ray.shutdown()
