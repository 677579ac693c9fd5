"""Clusters that grow, fractions of a GPU, actors without one, an object store that others have filled."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streamdeblur.jobs.batch.state import Snapshot
from tests.batching import clip, expect_undisturbed, gated, run_job
from tests.one_ray import one_ray

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


@contextmanager
def started(**more: Any) -> Iterator[Any]:
    """A simulated cluster of a head without room, joined by this process."""
    from ray.cluster_utils import Cluster

    kept = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **more})
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, kept)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_a_node_that_joins_gets_work_and_one_that_leaves_costs_none(tmp_path: Path) -> None:
    source, dest, gate = clip(tmp_path / "in" / "a.mp4", 240), tmp_path / "out", tmp_path / "gate"
    with started() as cluster:
        first = cluster.add_node(num_cpus=1, num_gpus=0)
        second: list[Any] = []

        def change(s: Snapshot) -> None:
            busy = len(s.current) if all("segment" in unit for unit in s.current) else 0
            if busy == 1 and not second:
                second.append(cluster.add_node(num_cpus=1, num_gpus=0))
            elif busy == 2 and not gate.exists():
                cluster.remove_node(first, allow_graceful=True)
                gate.touch()

        summary = run_job(source, dest, progress=change, build=gated(gate))
    assert (summary.exit_code, summary.actors, summary.retries) == (0, 2, 0)
    expect_undisturbed(source, dest / "a.mp4", 240)


def test_a_gpu_that_is_asked_for_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A cluster that grows from no GPU: the job asks for one, says so once, and takes it when it comes."""
    source, dest, seen = clip(tmp_path / "in" / "a.mp4", 90), tmp_path / "out", tmp_path / "seen"
    seen.mkdir()

    def build(options: Any) -> Any:
        from streamdeblur.restore import Restorer

        (seen / str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        return Restorer("offset")

    with started() as cluster, caplog.at_level(logging.WARNING, "streamdeblur"):
        cluster.add_node(num_cpus=2, num_gpus=0)  # room without a GPU must not do
        grown: list[Any] = []

        def grow(s: Snapshot) -> None:
            assert grown or not s.nodes
            if "no node has so much" in caplog.text and not grown:
                grown.append(cluster.add_node(num_cpus=1, num_gpus=1))

        summary = run_job(source, dest, progress=grow, build=build, device="cuda", gpus_per_worker=None)
    assert (summary.exit_code, summary.actors) == (0, 1)
    assert [p.read_text() for p in seen.iterdir()] == ["0"]
    assert caplog.text.count("waiting for 1 CPU and 1 GPU for an actor") == 1
    expect_undisturbed(source, dest / "a.mp4", 90)


def test_two_actors_share_a_gpu_and_helpers_have_none(tmp_path: Path) -> None:
    source, dest, seen = clip(tmp_path / "in" / "a.mp4", 240), tmp_path / "out", tmp_path / "seen"
    seen.mkdir()

    def build(options: Any) -> Any:
        from streamdeblur.restore import Restorer

        (seen / str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        return Restorer("offset")

    with started() as cluster:
        cluster.add_node(num_cpus=4, num_gpus=1)  # a GPU in Ray's books alone
        summary = run_job(source, dest, build=build, device="cpu", gpus_per_worker=0.5, helpers=1, backoff=0)
        left = ray.cluster_resources()
    assert left["GPU"] == 1
    assert (summary.exit_code, summary.actors) == (0, 3)  # two halves, one helper
    devices = sorted(p.read_text() for p in seen.iterdir())  # the helper may have planned, and read weights for it
    assert devices in (["0"], ["0", "0"], ["", "0"], ["", "0", "0"])
    expect_undisturbed(source, dest / "a.mp4", 240)


def test_an_object_store_that_is_full_holds_nothing_up(tmp_path: Path) -> None:
    import numpy as np

    source, dest = clip(tmp_path / "in" / "a.mp4", 240), tmp_path / "out"
    small = 80 << 20

    def used() -> float:
        return float(ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"])

    with one_ray(1, small):
        others = ray.put(np.ones(small - (6 << 20), np.uint8))
        shown: list[float] = []
        weights = tmp_path / "w.safetensors"
        _save_small(weights)
        summary = run_job(
            source, dest, progress=lambda s: shown.append(used()), workers=1, model=None, weights=str(weights),
            lossless=False, tiling="whole",
        )  # fmt: skip
        assert len(ray.get(others)) == small - (6 << 20)
    assert summary.exit_code == 0
    # the weights and nothing else; a single frame of these, as the network takes it, would be 72 kB
    assert max(shown) - (small - (6 << 20)) < weights.stat().st_size + 65536


def _save_small(path: Path) -> None:
    from streamdeblur.models import registry

    shipped = registry.shipped_weights(registry.resolve("mimo-unet-small"))
    assert shipped is not None
    path.write_bytes(Path(shipped).read_bytes())
