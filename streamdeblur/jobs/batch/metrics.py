"""Metrics of a job for Ray's dashboard and whoever scrapes it, through ``ray.util.metrics``.

``streamdeblur_batch_*``: frames, units by kind and their seconds from every node; files by status, queued units,
actors, retries and deaths from the driver.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge, Histogram


class NodeMetrics:
    """What an actor counts."""

    def __init__(self) -> None:
        tags = {"host": socket.gethostname()}
        self._frames = Counter("streamdeblur_batch_frames", "Frames written.", ("host",))
        self._units = Counter("streamdeblur_batch_units", "Units of work done.", ("host", "kind"))
        self._seconds = Histogram(
            "streamdeblur_batch_unit_seconds",
            "Seconds a unit of work took.",
            boundaries=[0.1, 1, 10, 60, 300, 1800, 7200],
            tag_keys=("host", "kind"),
        )
        for metric in (self._frames, self._units, self._seconds):
            metric.set_default_tags(tags)

    def frames(self, count: int) -> None:
        if count:
            self._frames.inc(count)

    def unit(self, kind: str, seconds: float) -> None:
        self._units.inc(1, {"kind": kind})
        self._seconds.observe(max(seconds, 1e-3), {"kind": kind})


class DriverMetrics:
    """What the driver knows of the job."""

    def __init__(self) -> None:
        self._files = Gauge("streamdeblur_batch_files", "Files by status.", ("status",))
        self._queue = Gauge("streamdeblur_batch_queue", "Units of work that wait.")
        self._actors = Gauge("streamdeblur_batch_actors", "Actors that are ready.")
        self._paused = Gauge("streamdeblur_batch_paused", "1 while the job waits for room on a disk.")
        self._retries = Counter("streamdeblur_batch_retries", "Units tried again.")
        self._deaths = Counter("streamdeblur_batch_deaths", "Actors that died.")

    def state(self, files: Mapping[str, int], queue: int, actors: int, paused: bool) -> None:
        for status, count in files.items():
            self._files.set(count, {"status": status})
        self._queue.set(queue)
        self._actors.set(actors)
        self._paused.set(int(paused))

    def retry(self) -> None:
        self._retries.inc(1)

    def death(self) -> None:
        self._deaths.inc(1)
