"""Training on real Ray Train: two processes, one of which is killed; faults; the script that people submit."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from streamdeblur.errors import DeviceError, StreamdeblurError, UsageError
from streamdeblur.training.recipe import Data, Schedule, StateOptions, Validation, ValidationSet
from streamdeblur.training.state import load_state
from tests.commands import ROOT, environment
from tests.training import read_log, recipe, write_shards

ray = pytest.importorskip("ray")
pytest.importorskip("ray.train", reason="needs ray[train]", exc_type=ImportError)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the module, which runs find running and leave running."""
    kept = signal.getsignal(signal.SIGTERM)
    os.environ["PYTHONPATH"], before = environment()["PYTHONPATH"], os.environ.get("PYTHONPATH")
    ray.init(
        address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, object_store_memory=100 << 20,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, kept)
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    yield
    ray.shutdown()


class Killer:
    """Kills one worker once the run is under way."""

    def __init__(self, after: int) -> None:
        self.killed_at = 0
        self._after = after

    def on_progress(self, progress: Any) -> None:
        if not self.killed_at and progress.step >= self._after:
            workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in "".join(p.cmdline())]
            assert len(workers) == 2
            self.killed_at = progress.step
            workers[-1].send_signal(signal.SIGKILL)

    def on_validation(self, step: int, scores: Any) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_run_survives_a_killed_worker(cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from streamdeblur.training.ray import run_on_ray

    r = recipe(
        write_shards(tmp_path / "crops", size=64),
        architecture={"width": 8, "blocks": 1},  # slow enough to be killed in mid-run
        data=Data(shards=(str(tmp_path / "crops"),), crop=64, batch=2),
        steps=120,
        state=StateOptions(every=10),
        schedule=Schedule(kind="constant"),
    )
    killer = Killer(after=20)
    outcome = run_on_ray(r, tmp_path / "run", workers=2, threads=1, tensorboard=False, observers=[killer])
    assert killer.killed_at >= 20
    assert (outcome.step, outcome.finished, outcome.folder) == (120, True, tmp_path / "run")
    assert [x.getMessage() for x in caplog.records if "a worker died" in x.getMessage()] == [
        f"a worker died; all of them go on from the last state in {tmp_path / 'run'}"
    ]
    # it went on from a state, not from the beginning, and what was done twice came out the same
    losses: dict[int, set[float]] = {}
    log = read_log(tmp_path / "run")
    for line in log:
        losses.setdefault(line["step"], set()).add(line["loss"])
    assert sorted(losses) == list(range(1, 121))
    assert 0 <= len(log) - 120 < 100
    assert all(len(values) == 1 for values in losses.values())
    assert load_state(tmp_path / "run" / "last")[1]["step"] == 120
    assert not (tmp_path / "run" / ".ray").exists()


def test_faults_are_found_before_workers_come_up(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamdeblur.training import ray as training_ray

    monkeypatch.setattr(training_ray._Fit, "start", lambda self: pytest.fail("workers were asked for"))
    with pytest.raises(DeviceError, match="3 workers of 1 threads need 3 CPUs, the cluster has 2"):
        training_ray.run_on_ray(recipe(tmp_path / "none"), tmp_path / "run", workers=3, threads=1)
    with pytest.raises(StreamdeblurError, match=r"there is no shard .*none"):
        training_ray.run_on_ray(recipe(tmp_path / "none"), tmp_path / "run", workers=2, threads=1)
    sets = (ValidationSet(name="v", path=str(tmp_path / "v")),)
    r = recipe(write_shards(tmp_path / "crops"), validation=Validation(sets=sets))
    with pytest.raises(StreamdeblurError, match=str(tmp_path / "v")):
        training_ray.run_on_ray(r, tmp_path / "run", workers=2, threads=1)
    assert sorted(os.listdir(tmp_path)) == ["crops"]


def test_a_fault_that_a_worker_finds_is_told_once_as_it_is(cluster: None, tmp_path: Path) -> None:
    from streamdeblur.training.ray import run_on_ray

    r = recipe(write_shards(tmp_path / "crops"), start=str(tmp_path / "gone.safetensors"))
    seen: set[int] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.2):
            for p in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "RayTrainWorker" in "".join(p.cmdline()):
                        seen.add(p.pid)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        with pytest.raises(StreamdeblurError, match=r"gone\.safetensors") as e:
            run_on_ray(r, tmp_path / "run", workers=1, threads=1, tensorboard=False)
    finally:
        ended.set()
        thread.join()
    assert "\n" not in str(e.value)
    assert len(seen) == 1  # and not another, which would fail likewise


def test_the_script_trains_on_a_ray_of_its_own_and_sigterm_saves(tmp_path: Path) -> None:
    write_shards(tmp_path / "crops")
    values = {
        "model": "mimo-unet-small",
        "architecture": {"width": 4, "blocks": 1},
        "data": {"shards": ["crops"], "crop": 16, "batch": 2},
        "schedule": {"kind": "constant"},
        "steps": 10**7,
        "precision": "fp32",
        "log_every": 1,
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    words = [sys.executable, str(ROOT / "pipelines" / "train.py"), "-c", "r.yaml", "-o", "run", "--no-tensorboard"]
    process = subprocess.Popen(
        [*words, "--workers", "1", "--threads", "1", "data.batch=3"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "run" / "log.jsonl"
    while not (log.is_file() and log.stat().st_size > 1000):
        with pytest.raises(subprocess.TimeoutExpired):  # it must not end before it has trained
            process.wait(0.2)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 143, errors
    outcome = json.loads(out)
    assert (outcome["finished"], outcome["stopped"]) == (False, "SIGTERM")
    state = load_state(tmp_path / "run" / "last")[1]
    assert state["step"] == outcome["step"] > 0
    assert state["recipe"]["data"]["batch"] == 3


def test_missing_libraries_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamdeblur.training.ray import run_on_ray

    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    with pytest.raises(UsageError, match=r"lacks libraries of its own \(pandas, pyarrow\); pip install 'ray\[train\]'"):
        run_on_ray(recipe(tmp_path), tmp_path / "run")
    assert os.listdir(tmp_path) == []
