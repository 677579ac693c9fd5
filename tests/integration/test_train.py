"""Training as people run it: the command line, signals, several processes, bare machines; and that it learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from streamdeblur.models.checkpoint import load_checkpoint
from streamdeblur.training.batches import ShardBatches
from streamdeblur.training.pairs import find_pairs, read_pair
from streamdeblur.training.recipe import Data, Optimizer, Schedule, StateOptions
from streamdeblur.training.shards import Shard, ShardWriter, find_shards
from streamdeblur.training.state import load_state
from streamdeblur.training.trainer import Trainer
from tests.commands import command, environment, run
from tests.training import Picture, pair, read_log, recipe, write_pairs, write_shards

pytestmark = pytest.mark.integration

CONFIG: dict[str, Any] = {
    "model": "mimo-unet-small",
    "architecture": {"width": 4, "blocks": 1},
    "data": {"shards": ["crops"], "crop": 16, "batch": 2, "flips": "both", "rotations": True, "sharp_share": 0.1},
    "optimizer": {"lr": "1e-3"},
    "schedule": {"kind": "constant"},
    "validation": {"every": 5000, "sets": [{"name": "blocks", "path": "pairs"}]},
    "state": {"every": 5000},
    "steps": 12,
    "precision": "fp32",
    "log_every": 1,
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with crops, pairs and a recipe."""
    write_shards(tmp_path / "crops")
    write_pairs(tmp_path / "pairs")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
    return tmp_path


def train(place: Path, output: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run("train", "-c", "r.yaml", "-o", output, "--no-tensorboard", "--threads", "1", *more, cwd=place)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_state(folder / "last")[0]


def assert_equal(a: Path, b: Path) -> None:
    x, y = tensors(a), tensors(b)
    assert set(x) == set(y)
    for name in x:
        assert torch.equal(x[name], y[name]), name


# --- it learns --------------------------------------------------------------------------------------------------


def overfit(blur: Picture, sharp: Picture, folder: Path) -> float:
    """Gain in dB on the very picture that a tiny network was trained on for a few hundred steps."""
    with ShardWriter(folder / "one", quality=0) as writer:
        for x in (0, blur.shape[1] - 160):
            writer.add(*(np.ascontiguousarray(p[:160, x : x + 160]) for p in (blur, sharp)), "one")
    r = recipe(
        folder / "one",
        architecture={"width": 8, "blocks": 2},
        data=Data(shards=(str(folder / "one"),), crop=96, batch=2),
        optimizer=Optimizer(lr=3e-3, betas=(0.9, 0.99), clip=1.0, ema=0.98),
        schedule=Schedule(kind="cosine", warmup=10),
        state=StateOptions(every=10_000),
        steps=350,
        log_every=50,
    )
    batches = ShardBatches(r.data, seed=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sets = [("one", lambda: iter([("one", blur, sharp)]))]
        outcome = Trainer(r, folder / "run", batches, validation=sets).train()
    finally:
        torch.set_num_threads(threads)
        batches.close()
    assert outcome.scores is not None
    return outcome.scores.sets[0].gain


def test_overfits_a_pair(tmp_path: Path) -> None:
    """Of GoPro where there is real footage, else a rendered one."""
    if value := os.environ.get("STREAMDEBLUR_DATA"):
        blur, sharp = read_pair(find_pairs(Path(value) / "data" / "train" / "gopro_pairs")[0])
        # the window with the most detail, so that there is something to restore
        windows = [np.s_[y : y + 160, x : x + 224] for y in range(0, 500, 100) for x in range(0, 1000, 100)]
        window = max(windows, key=lambda w: np.abs(np.diff(sharp[w].astype(float), axis=1)).mean())
        blur, sharp = np.ascontiguousarray(blur[window]), np.ascontiguousarray(sharp[window])
    else:
        from streamdeblur.jobs.scene import Scene

        picture = Scene((224, 160), 0).expose(0.5, 1 / 20, 15)
        blur, sharp = picture.blurry, picture.sharp
    assert overfit(blur, sharp, tmp_path) > 3


# --- the command ------------------------------------------------------------------------------------------------


def test_train_writes_a_run_and_says_what_came_of_it(place: Path) -> None:
    done = train(place, "run", "--json", "--set", "validation.every=6")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["step"], outcome["finished"], outcome["stopped"]) == (12, True, "")
    log = read_log(place / "run")
    assert [x["step"] for x in log if "loss" in x] == list(range(1, 13))
    scores = [x["validation"]["score"] for x in log if "validation" in x]
    assert len(scores) == 2
    assert outcome["best"] == pytest.approx(max(scores), abs=1e-3)
    assert load_checkpoint(place / "run" / "best.safetensors")[1].score == pytest.approx(max(scores), abs=1e-3)
    assert [line for line in done.stderr.splitlines() if line.startswith("step 6: blocks ")]
    # what was trained can be used, and named for fine-tuning
    tuned = train(place, "tuned", "--start", "run/best.safetensors", "--set", "steps=2", "--json")
    assert tuned.returncode == 0, tuned.stderr
    other = train(place, "other", "--start", "run/best.safetensors", "--set", "architecture.width=8")
    assert other.returncode == 2
    assert other.stderr.splitlines()[-1] == (
        "error: run/best.safetensors has another architecture: width 4 and 8 in the recipe; "
        "set model and architecture to what the checkpoint holds"
    )


def test_faults_are_one_line(place: Path) -> None:
    assert train(place, "run", "--set", "steps=1").returncode == 0
    for code, part, more in (
        (2, "run holds a run already; leave --fresh out", ("--fresh",)),
        (2, "--workers counts processes on Ray", ("--workers", "2")),
        (2, "did you mean steps?", ("--set", "stpes=3")),
        (1, "there are no shards", ("--set", "data.shards=[pairs]")),
        (1, "is not a folder", ("--set", "validation.sets=[{name: a, path: none}]")),
        (1, "lower lr or set clip", ("--set", "optimizer.lr=1e25", "--set", "steps=9")),
    ):
        done = train(place, "run", *more)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: resumed with another")]
        assert (done.returncode, len(lines)) == (code, 1), done.stderr
        assert lines[0].startswith("error: ")
        assert part in lines[0]
    assert load_state(place / "run" / "last")[1]["step"] < 9


def test_sigterm_saves_and_the_same_command_goes_on(place: Path) -> None:
    words = command("train", "-c", "r.yaml", "-o", "run", "--no-tensorboard", "--threads", "1")
    process = subprocess.Popen(
        [*words, "--set", "steps=100000"], cwd=place, env=environment(), stderr=subprocess.PIPE, text=True
    )
    log = place / "run" / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and log.read_text().count("\n") >= 5):
        assert process.poll() is None, process.stderr
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # supervisors signal the process and its group
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143, errors
    assert "stopped (SIGTERM); the same command goes on" in errors
    step = load_state(place / "run" / "last")[1]["step"]
    assert 5 <= step < 100_000
    done = train(place, "run", "--set", f"steps={step + 10}")
    assert done.returncode == 0, done.stderr
    assert train(place, "straight", "--set", f"steps={step + 10}").returncode == 0
    assert_equal(place / "run", place / "straight")
    steps = [x["step"] for x in read_log(place / "run") if "loss" in x]
    assert steps == list(range(1, step + 11))


def test_max_minutes(place: Path) -> None:
    done = train(place, "run", "--max-minutes", "0.01", "--set", "steps=100000", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert (outcome["finished"], outcome["stopped"]) == (False, "the time is up")
    assert 0 < outcome["step"] == load_state(place / "run" / "last")[1]["step"] < 100_000


# --- several processes ------------------------------------------------------------------------------------------


def torchrun(place: Path, output: str, *more: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = command("train", "-c", "r.yaml", "-o", output, "--no-tensorboard", "--threads", "1", *more)[1:]
    return subprocess.run(
        [*launcher, *words], cwd=place, env=environment(), capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.parametrize("taught", [False, True])
def test_two_processes_are_one_with_twice_the_batch(place: Path, taught: bool) -> None:
    more: tuple[str, ...] = ()
    if taught:
        assert train(place, "teacher", "--set", "seed=5", "--set", "steps=4").returncode == 0
        of = {"teacher": "teacher/last.safetensors", "teacher_share": 0.9, "teacher_views": 2}
        more = tuple(word for key, value in of.items() for word in ("--set", f"loss.{key}={value}"))
    done = torchrun(place, "two", "--json", *more)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 12  # printed once
    assert train(place, "one", "--set", "data.batch=4", *more).returncode == 0
    two, one = tensors(place / "two"), tensors(place / "one")
    assert set(two) == set(one)
    start = tensors_at_start(place)
    for name, value in one.items():
        if name.startswith(("model/", "ema/")):
            moved = (value - start[name.partition("/")[2]]).abs().max().item()
            assert moved > 1e-3
            torch.testing.assert_close(two[name], value, rtol=0, atol=0.02 * moved)
    if taught:
        return  # of a resume, the teacher's part is held by tests/unit/test_training_teacher.py
    # and a resume on two processes is exact
    assert torchrun(place, "halves", "--set", "steps=6", *more).returncode == 0
    again = torchrun(place, "halves", *more)
    assert again.returncode == 0, again.stderr
    assert_equal(place / "two", place / "halves")
    assert [x["step"] for x in read_log(place / "halves") if "loss" in x] == list(range(1, 13))


def test_two_processes_make_up_for_a_validation_that_a_stop_came_before(place: Path) -> None:
    more = ("--set", "steps=2", "--set", "validation.every=1")
    stopped = torchrun(place, "run", "--max-minutes", "1e-9", *more)
    assert stopped.returncode == 0, stopped.stderr
    assert [x["step"] for x in read_log(place / "run") if "validation" in x] == []
    again = torchrun(place, "run", *more)
    assert again.returncode == 0, again.stderr
    log = [(x["step"], "validation" in x) for x in read_log(place / "run")]
    assert log == [(1, False), (1, True), (2, False), (2, True)]


def tensors_at_start(place: Path) -> dict[str, torch.Tensor]:
    from streamdeblur.training.config import load
    from streamdeblur.training.networks import initial_network
    from streamdeblur.training.recipe import Recipe

    return initial_network(load(Recipe, place / "r.yaml")).state_dict()


# --- prepared crops and bare machines ---------------------------------------------------------------------------


def test_prepare_then_train_from_its_shards(place: Path) -> None:
    values = {
        "sources": [{"kind": "pairs", "path": "pairs", "options": {"identity": 0.0}}],
        "count": 9,
        "size": 20,
        "quality": 0,
        "workers": 1,
    }
    (place / "p.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    for output in ("made", "again"):
        done = run("prepare", "-c", "p.yaml", "-o", output, "--json", cwd=place)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["pairs"] == 9
    first, second = (Shard(find_shards([place / name])[0]) for name in ("made", "again"))
    sharp = [pair(100 + i, (40, 36))[1] for i in range(3)]
    for (_, blur, truth), (_, *other) in zip(first.pairs(), second.pairs(), strict=True):
        assert np.array_equal(blur, other[0])
        assert np.array_equal(truth, other[1])
        assert any(
            np.array_equal(s[y : y + 20, x : x + 20], truth) for s in sharp for y in range(21) for x in range(17)
        )
    refused = run("prepare", "-c", "p.yaml", "-o", "made", cwd=place)
    assert refused.returncode == 1
    assert "--overwrite replaces them" in refused.stderr
    assert train(place, "run", "--set", "data.shards=[made]").returncode == 0


#: Hides what a bare machine lacks; its one decoder of pictures is Pillow or torchvision, here OpenCV stands in.
BARE = """
import sys, runpy
class Bare:
    hidden = {"av", "ray", "pydantic", "yaml", "click", "rich", "psutil"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.hidden:
            raise ModuleNotFoundError(f"{name} is not on a bare machine", name=name)
sys.meta_path.insert(0, Bare())
sys.argv[0] = "bare"
runpy.run_module("streamdeblur.training.bare", run_name="__main__")
"""


def test_a_bare_machine_gives_the_same_run(place: Path) -> None:
    done = run("prepare", "--pairs", ".", "-o", "../whole", cwd=place / "pairs")
    assert done.returncode == 0, done.stderr
    refused = run("prepare", "--pairs", "pairs", "-o", "other", "--set", "count=1", cwd=place)
    assert refused.returncode == 2
    assert refused.stderr == (
        "error: --set count=1 has no meaning with --pairs; pairs are kept as they are: leave it out\n"
    )
    assert train(place, "teacher", "--set", "seed=5", "--set", "steps=4").returncode == 0
    more = (
        *("--set", "validation.sets=[{name: blocks, path: whole/pairs-00000.shard}]"),
        *("--set", "loss.teacher=teacher/last.safetensors", "--set", "loss.teacher_share=0.5"),
    )
    assert train(place, "here", *more).returncode == 0
    done = train(place, "none", *more, "--print-recipe")
    (place / "recipe.json").write_text(done.stdout, encoding="utf-8")
    assert not (place / "none").exists()
    bare = subprocess.run(
        [sys.executable, "-c", BARE, "recipe.json", "-o", "there"],
        cwd=place, env=environment() | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert bare.returncode == 0, bare.stderr
    assert_equal(place / "here", place / "there")
    best = [load_checkpoint(place / name / "best.safetensors")[1].score for name in ("here", "there")]
    assert best[0] == best[1]
    again = subprocess.run(
        [sys.executable, "-c", BARE, "none.json", "-o", "there"],
        cwd=place, env=os.environ | environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (again.returncode, len(again.stderr.strip().splitlines())) == (1, 1)
