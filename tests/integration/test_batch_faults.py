"""Actors, nodes and drivers die in the middle of a job: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from streamdeblur.jobs.batch.state import Snapshot
from tests.batching import clip, expect_undisturbed, gated, lines, nodes_of, run_job, until, workers
from tests.commands import environment

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@contextmanager
def simulated(nodes: int) -> Iterator[Any]:
    """A cluster of a head without room and so many nodes with room for one actor each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, num_gpus=0)
        yield cluster
    finally:
        cluster.shutdown()


@contextmanager
def joined(cluster: Any) -> Iterator[None]:
    """This process in that cluster."""
    kept = signal.getsignal(signal.SIGTERM)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, kept)
    try:
        yield
    finally:
        ray.shutdown()


def with_worker(cluster: Any) -> list[tuple[Any, psutil.Process, psutil.Process]]:
    """Nodes that have an actor: node, raylet, actor."""
    return [(node, raylet, found[0]) for node, raylet in nodes_of(cluster) if (found := workers(raylet))]


def end(*processes: psutil.Process) -> None:
    """kill -9, the node's own process first, so that nobody is left to tell of the others."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("nodes", "how"), [(2, "removed"), (2, "killed"), (3, "removed"), (3, "killed")])
def test_a_node_dies(tmp_path: Path, nodes: int, how: str) -> None:
    source, dest, gate = clip(tmp_path / "in" / "a.mp4", 240), tmp_path / "out", tmp_path / "gate"
    gone: list[Any] = []
    with simulated(nodes) as cluster, joined(cluster):

        def end_one(s: Snapshot) -> None:
            if len(s.current) < nodes or not all("segment" in unit for unit in s.current) or gone:
                return  # all must be at work
            node, raylet, worker = with_worker(cluster)[-1]
            gone.append(node)
            if how == "removed":
                cluster.remove_node(node, allow_graceful=False)
            end(raylet, worker)
            gate.touch()

        summary = run_job(source, dest, progress=end_one, build=gated(gate))
    assert gone
    # charged to nobody
    assert (summary.exit_code, summary.deaths, summary.retries) == (0, 1, 0)
    assert summary.rows[0]["segments"] == 8
    assert sorted(line["number"] for line in lines(dest, "segment")) == list(range(8))
    expect_undisturbed(source, dest / "a.mp4", 240)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_is_cut_off_works_on(tmp_path: Path) -> None:
    """Ray takes the node for dead, while its actor still lives, and may finish and publish what others do as well."""
    source, dest, gate = clip(tmp_path / "in" / "a.mp4", 240), tmp_path / "out", tmp_path / "gate"
    with simulated(2) as cluster, joined(cluster):

        def cut_off(s: Snapshot) -> None:
            if len(s.current) == 2 and all("segment" in unit for unit in s.current) and not gate.exists():
                _, raylet, _ = with_worker(cluster)[-1]
                end(raylet)
                gate.touch()

        summary = run_job(source, dest, progress=cut_off, build=gated(gate))
    assert (summary.exit_code, summary.retries) == (0, 0)
    assert sorted(line["number"] for line in lines(dest, "segment")) == list(range(8))
    expect_undisturbed(source, dest / "a.mp4", 240)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("nodes", [2, 3])
def test_an_actor_a_node_and_the_driver_are_killed_in_one_job(tmp_path: Path, nodes: int) -> None:
    source, dest, gates = clip(tmp_path / "in" / "a.mp4", 240), tmp_path / "out", tmp_path / "gates"
    gates.mkdir()
    with simulated(nodes) as cluster:
        command = [sys.executable, "-m", "tests.batching", cluster.address, source, dest, gates, "40"]
        log = tmp_path / "log"

        def told() -> list[dict[str, Any]]:
            return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]

        def all_hold(count: int) -> bool:
            """So many actors are at a segment."""
            assert driver.poll() is None
            current = (told() or [{"current": []}])[-1]["current"]
            return len(current) == count == len(with_worker(cluster)) and all("segment" in unit for unit in current)

        with log.open("w") as out, (tmp_path / "errors").open("w") as err:
            driver = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=out, stderr=err)
            try:
                until(lambda: all_hold(nodes), "work for all nodes")
                actor = with_worker(cluster)[0][2]
                end(actor)
                until(lambda: all_hold(nodes), "work for the actor's successor")
                _, raylet, worker = with_worker(cluster)[-1]
                end(raylet, worker)
                (gates / "1").touch()  # forty pictures for each that is left: a segment of thirty, and some of the next
                until(lambda: len(lines(dest, "segment")) == nodes - 1, "the first segments")
            finally:
                driver.kill()
                driver.wait()
        until(lambda: not with_worker(cluster), "the end of its actors")
        assert len(lines(dest, "segment")) == nodes - 1
        assert not (dest / "a.mp4").exists()
        (gates / "2").touch()
        again = subprocess.run(
            command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
        )
    assert again.returncode == 0, again.stderr
    errors = (tmp_path / "errors").read_text()
    assert json.loads(again.stdout.splitlines()[-1])["files"]["done"] == 1, errors
    # what was booked before was not done again
    assert sorted(line["number"] for line in lines(dest, "segment")) == list(range(8))
    assert len(lines(dest, "job")) == 2
    expect_undisturbed(source, dest / "a.mp4", 240)


def test_the_driver_dies_and_the_job_is_resumed(tmp_path: Path) -> None:
    source, dest, gates = clip(tmp_path / "in" / "a.mp4", 240), tmp_path / "out", tmp_path / "gates"
    gates.mkdir()
    (gates / "1").touch()
    command = [sys.executable, "-m", "tests.batching", "local", source, dest, gates, "70"]
    first = subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until(lambda: len(lines(dest, "segment")) == 2 or first.poll() is not None, "the first segments")
        assert first.poll() is None, first.communicate()
        os.kill(first.pid, signal.SIGKILL)  # at the eleventh picture of a third
    finally:
        first.kill()
        first.communicate()
    assert len(lines(dest, "segment")) == 2
    assert not (dest / "a.mp4").exists()
    (gates / "2").touch()
    again = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["files"]["done"] == 1
    # what was booked before was not done again
    assert sorted(line["number"] for line in lines(dest, "segment")) == list(range(8))
    assert len(lines(dest, "job")) == 2
    expect_undisturbed(source, dest / "a.mp4", 240)
