"""The training loop against a plain one, and everything that may interrupt it."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from streamdeblur.errors import TrainingError, UnreadableInput, UsageError
from streamdeblur.models.checkpoint import Metadata, load_checkpoint, read_metadata, save_checkpoint
from streamdeblur.models.mimo_unet import MIMO_UNET, MIMOUNet, MIMOUNetConfig, network_from_state
from streamdeblur.models.random_weights import random_state
from streamdeblur.training import trainer as module
from streamdeblur.training.batches import ShardBatches, augment
from streamdeblur.training.feeds import SampledBatches
from streamdeblur.training.networks import Averaged, architecture, initial_network
from streamdeblur.training.outcome import Outcome
from streamdeblur.training.recipe import Data, Loss, Optimizer, Recipe, Schedule, Source, StateOptions, Validation
from streamdeblur.training.state import INDEX, load_state
from streamdeblur.training.trainer import Trainer
from streamdeblur.training.validation import Pairs, Scores, SetScore, psnr8, restore, validate
from tests.training import TINY, pair, recipe, write_pairs, write_shards


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"))


class Watch:
    """An observer that keeps what it is told, and may act on a step."""

    def __init__(self, at: int = 0, act: Callable[[], object] | None = None) -> None:
        self.progress: list[Any] = []
        self.scores: list[tuple[int, Scores]] = []
        self._at, self._act = at, act

    def on_progress(self, progress: Any) -> None:
        self.progress.append(progress)
        if progress.step == self._at and self._act is not None:
            self._act()

    def on_validation(self, step: int, scores: Scores) -> None:
        self.scores.append((step, scores))

    def close(self) -> None:
        pass


def run(
    r: Recipe,
    folder: Path,
    *,
    validation: Sequence[tuple[str, Pairs]] = (),
    observers: Sequence[Any] = (),
    max_minutes: float | None = None,
) -> Outcome:
    batches = ShardBatches(r.data, seed=r.seed) if r.data.shards else SampledBatches(r.data, seed=r.seed)
    try:
        return Trainer(r, folder, batches, validation=validation, observers=observers).train(max_minutes)
    finally:
        batches.close()


def some_pairs(count: int = 2, size: tuple[int, int] = (22, 30)) -> Pairs:
    return lambda: ((f"p{i}", *pair(50 + i, size)) for i in range(count))


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_state(folder / "last")[0]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


# --- the step ---------------------------------------------------------------------------------------------------


def plain_loop(r: Recipe, rate: Callable[[int], float]) -> tuple[dict[str, torch.Tensor], list[float]]:
    """What a run should do, with PyTorch's plain parts and the loss as the authors' program writes it."""
    torch.manual_seed(r.seed)
    net = MIMOUNet(MIMOUNetConfig(**TINY))
    o = r.optimizer
    kind = torch.optim.AdamW if o.name == "adamw" else torch.optim.Adam
    optimizer = kind(net.parameters(), lr=1.0, betas=o.betas, weight_decay=o.weight_decay, foreach=False)
    batches = ShardBatches(r.data, seed=r.seed)
    losses = []
    for step, crops in zip(range(r.steps), batches.start(0), strict=False):
        blur, sharp = augment(crops, r.data, seed=r.seed, step=step, rank=0, device=torch.device("cpu"))
        loss = torch.zeros(())
        for k, output in zip((4, 2, 1), net(blur), strict=True):
            truth = F.interpolate(sharp, scale_factor=1 / k, mode="bilinear") if k > 1 else sharp
            a, b = (torch.view_as_real(torch.fft.fft2(t)) for t in (output, truth))
            loss = loss + F.l1_loss(output, truth) + r.loss.msfr_weight * F.l1_loss(a, b)
        optimizer.zero_grad()
        loss.backward()
        if o.clip:
            torch.nn.utils.clip_grad_norm_(net.parameters(), o.clip)
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.step()
        losses.append(loss.item())
    batches.close()
    return net.state_dict(), losses


@pytest.mark.parametrize(
    ("optimizer", "schedule", "rate"),
    [
        (Optimizer(lr=1e-3, ema=0), Schedule(kind="step", every=3), lambda s: 1e-3 * 0.5 ** (s // 3)),
        (
            Optimizer(name="adamw", lr=2e-3, betas=(0.8, 0.95), weight_decay=0.1, clip=0.5),
            Schedule(kind="cosine", warmup=3),
            lambda s: 2e-3 * 0.5 * (1 + math.cos(math.pi * s / 8)) * min(1, (s + 1) / 4),
        ),
    ],
    ids=["adam as the paper", "adamw with everything"],
)
def test_same_as_a_plain_loop(shards: Path, tmp_path: Path, optimizer, schedule, rate) -> None:
    r = recipe(shards, init="pytorch", optimizer=optimizer, schedule=schedule, seed=7)
    watch = Watch()
    outcome = run(r, tmp_path, observers=[watch])
    expected, losses = plain_loop(r, rate)
    assert (outcome.step, outcome.finished, outcome.stopped) == (8, True, "")
    assert [p.loss for p in watch.progress] == pytest.approx(losses, rel=1e-4)
    assert [p.rate for p in watch.progress] == pytest.approx([rate(s) for s in range(8)])
    got = state(tmp_path)
    start = initial_network(r).state_dict()
    for name, value in expected.items():
        moved = (value - start[name]).abs().max()
        assert moved > 1e-3
        torch.testing.assert_close(got[f"model/{name}"], value, rtol=0, atol=0.02 * moved.item())
        if not optimizer.ema:
            assert torch.equal(got[f"ema/{name}"], got[f"model/{name}"])


def test_average_follows_its_formula() -> None:
    net = network_from_state(MIMOUNetConfig(**TINY), random_state(MIMOUNetConfig(**TINY), 0))
    averaged = Averaged(net, 0.6)
    expected = net.head1.weight.detach().double().numpy().copy()
    for k in range(12):
        with torch.no_grad():
            net.head1.weight.add_(0.5 + k)
        averaged.update(k)
        decay = min(0.6, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * net.head1.weight.detach().double().numpy()
    np.testing.assert_allclose(averaged.net.head1.weight.numpy(), expected, rtol=1e-5)


def test_initial_networks(shards: Path) -> None:
    r = recipe(shards, seed=3)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    for init in ("scaled", "pytorch"):
        nets = [initial_network(replace(r, init=init, seed=s)).state_dict() for s in (3, 3, 4)]
        assert_equal(nets[0], nets[1])
        assert not torch.equal(nets[0]["stem.weight"], nets[2]["stem.weight"])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    assert_equal(
        initial_network(replace(r, init="pytorch")).state_dict(), MIMOUNet(MIMOUNetConfig(**TINY)).state_dict()
    )


@pytest.mark.parametrize("model", ["identity", "offset", "mimo-unet-plus-plus"])
def test_models_without_weights_of_their_own_are_not_trained(shards: Path, model: str) -> None:
    with pytest.raises(
        UsageError,
        match=f"model {model} is not trained; train mimo-unet-small, mimo-unet-medium, mimo-unet or mimo-unet-plus",
    ):
        initial_network(recipe(shards, model=model))
    with pytest.raises(UsageError, match=r"architecture of mimo-unet-small: width 5 is not an even number"):
        initial_network(recipe(shards, architecture={"width": 5}))


# --- resume -----------------------------------------------------------------------------------------------------


def on_the_fly(tmp_path: Path) -> Data:
    source = Source(kind="pairs", path=str(write_pairs(tmp_path / "pairs")))
    return Data(sources=(source,), crop=16, batch=2, workers=0, flips="both")


@pytest.mark.parametrize("feed", ["shards", "sources"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_half_and_resume_is_the_whole_to_the_bit(
    shards: Path, tmp_path: Path, feed: str, precision: str, dropout: float
) -> None:
    changes: dict[str, Any] = {"precision": precision, "architecture": TINY | {"dropout": dropout}}
    if feed == "sources":
        changes["data"] = on_the_fly(tmp_path)
    r = recipe(shards, **changes)
    assert run(r, tmp_path / "whole").finished
    stop = Watch(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    first = run(r, tmp_path / "halves", observers=[stop])
    assert (first.step, first.finished, first.stopped) == (4, False, "SIGTERM")
    torch.manual_seed(12345)  # another process would have other global random numbers
    second = run(r, tmp_path / "halves")
    assert (second.step, second.finished) == (8, True)
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "halves"))
    assert {"exp_avg/stem.weight", "exp_avg_sq/stem.weight", "ema/stem.weight", "optimizer_step"} <= set(
        state(tmp_path / "whole")
    )
    assert state(tmp_path / "whole")["optimizer_step"].item() == 8


def test_half_and_resume_of_muon_too(shards: Path, tmp_path: Path) -> None:
    r = recipe(shards, optimizer=Optimizer(name="muon", lr=1e-3), schedule=Schedule(kind="constant"))
    run(r, tmp_path / "whole")
    run(replace(r, steps=4), tmp_path / "halves")
    run(r, tmp_path / "halves")
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "halves"))


def test_dropout_differs_from_step_to_step_and_seed_to_seed(shards: Path, tmp_path: Path) -> None:
    r = recipe(shards, architecture=TINY | {"dropout": 0.5}, steps=3)
    for name, other in (("a", r), ("b", replace(r, architecture=TINY))):
        run(other, tmp_path / name)
    assert not torch.equal(state(tmp_path / "a")["model/stem.weight"], state(tmp_path / "b")["model/stem.weight"])


def test_a_finished_run_does_nothing_more(shards: Path, tmp_path: Path) -> None:
    r = recipe(shards)
    run(r, tmp_path)
    before = state(tmp_path)
    outcome = run(r, tmp_path)
    assert (outcome.step, outcome.finished) == (8, True)
    assert_equal(state(tmp_path), before)


def test_an_option_newer_than_the_state_is_said_too(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    r = recipe(shards, schedule=Schedule(kind="constant"))
    run(r, tmp_path)
    index = tmp_path / "last" / INDEX
    kept = json.loads(index.read_text(encoding="utf-8"))
    for key in ("zoom", "channels", "exposure"):
        del kept["values"]["recipe"]["data"][key]  # as it was written before they came
    index.write_text(json.dumps(kept), encoding="utf-8")
    run(replace(r, steps=9, data=replace(r.data, exposure=0.5)), tmp_path)
    said = [x.getMessage() for x in caplog.records if x.levelno == logging.WARNING and "data." in x.getMessage()]
    assert said == ["resumed with another data.exposure than before: 0.5, was 1.0"]
    _, about = load_checkpoint(tmp_path / "last.safetensors")
    assert about.extra["history"] == "data.exposure 1.0 until step 8"
    assert about.recipe.endswith(", exposure 0.5")


def test_changes_of_a_recipe_are_said_and_more_steps_go_on(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    r = recipe(shards, schedule=Schedule(kind="constant"))
    run(r, tmp_path)
    assert not caplog.records
    outcome = run(replace(r, steps=10, optimizer=replace(r.optimizer, lr=5e-4)), tmp_path)
    assert outcome.step == 10
    said = sorted(x.getMessage() for x in caplog.records if x.levelno == logging.WARNING)
    assert said == [
        "resumed with another optimizer.lr than before: 0.0005, was 0.001",
        "resumed with another schedule.total than before: 10, was 8",
        "resumed with another steps than before: 10, was 8",
    ]
    run(replace(r, steps=11, optimizer=replace(r.optimizer, lr=5e-4)), tmp_path)  # kept over further stops
    assert read_metadata(tmp_path / "last.safetensors").extra["history"] == "optimizer.lr 0.001 until step 8"


def test_a_folder_with_another_architecture_is_left_alone(shards: Path, tmp_path: Path) -> None:
    run(recipe(shards), tmp_path)
    before = state(tmp_path)
    with pytest.raises(
        UsageError, match="holds a run of another architecture than the recipe's; choose another folder"
    ):
        run(recipe(shards, architecture={"width": 8, "blocks": 1}), tmp_path)
    assert_equal(state(tmp_path), before)


def test_without_moments_a_resumed_run_warms_up_again(shards: Path, tmp_path: Path) -> None:
    r = recipe(
        shards,
        schedule=Schedule(kind="constant", warmup=3),
        state=StateOptions(every=1000, moments=False, dtype="bf16"),
        steps=6,
    )
    run(r, tmp_path)
    assert not any(name.startswith("exp_avg") for name in state(tmp_path))
    watch = Watch()
    run(replace(r, steps=12), tmp_path, observers=[watch])
    assert [p.rate for p in watch.progress] == pytest.approx([1e-3 * f for f in (0.25, 0.5, 0.75, 1, 1, 1)])


# --- stopping ---------------------------------------------------------------------------------------------------


def test_when_the_time_is_up_the_state_is_saved(shards: Path, tmp_path: Path) -> None:
    outcome = run(recipe(shards), tmp_path, max_minutes=1e-9)
    assert (outcome.step, outcome.finished, outcome.stopped) == (1, False, "the time is up")
    assert load_state(tmp_path / "last")[1]["step"] == 1
    assert run(recipe(shards), tmp_path).finished


def test_signal_handlers_are_put_back(shards: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    run(recipe(shards, steps=1), tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_cuts_a_validation_short_and_the_last_one_is_made_up_for(shards: Path, tmp_path: Path) -> None:
    looked_at = []

    def pairs() -> Iterator[Any]:
        for i in range(100):
            looked_at.append(i)
            if i == 2 and len(looked_at) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield "x", *pair(i, (16, 16))
            if len(looked_at) > 50:
                return

    r = recipe(shards, validation=Validation(every=3), steps=3)
    first = run(r, tmp_path, validation=[("set", pairs)])
    assert (first.step, first.finished, first.stopped, first.scores, first.best) == (3, False, "SIGTERM", None, None)
    assert looked_at == [0, 1, 2]
    assert not (tmp_path / "best.safetensors").exists()
    watch = Watch()
    second = run(r, tmp_path, validation=[("set", pairs)], observers=[watch])
    assert (second.step, second.finished, [s for s, _ in watch.scores]) == (3, True, [3])
    assert second.best == watch.scores[0][1].score
    assert load_state(tmp_path / "last")[1]["best"] == second.best


def test_a_validation_that_a_stop_came_before_is_made_up_for_first(shards: Path, tmp_path: Path) -> None:
    r = recipe(shards, validation=Validation(every=2))
    sets = [("set", some_pairs())]
    whole, first, second = Watch(), Watch(4, lambda: os.kill(os.getpid(), signal.SIGTERM)), Watch()
    run(r, tmp_path / "whole", validation=sets, observers=[whole])
    assert run(r, tmp_path / "halves", validation=sets, observers=[first]).stopped == "SIGTERM"
    assert [s for s, _ in first.scores] == [2]
    stopped = run(r, tmp_path / "halves", validation=sets, observers=[second], max_minutes=1e-9)
    assert (stopped.step, stopped.finished, stopped.stopped) == (4, False, "the time is up")
    assert run(r, tmp_path / "halves", validation=sets, observers=[second]).finished
    assert [s for s, _ in second.scores] == [4, 6, 8]  # once, whoever stops then
    assert [s.score for _, s in (*first.scores, *second.scores)] == [s.score for _, s in whole.scores]
    assert_equal(state(tmp_path / "whole"), state(tmp_path / "halves"))
    bests = [load_checkpoint(tmp_path / name / "best.safetensors") for name in ("whole", "halves")]
    assert bests[0][1] == bests[1][1]
    assert_equal(bests[0][0], bests[1][0])


def test_a_validation_cut_short_on_the_way_is_made_up_for(shards: Path, tmp_path: Path) -> None:
    def pairs() -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        yield from some_pairs()()

    r = recipe(shards, validation=Validation(every=3), steps=4)
    first = run(r, tmp_path, validation=[("set", pairs)])
    assert (first.step, first.finished, first.stopped, first.best) == (3, False, "SIGTERM", None)
    watch = Watch()
    assert run(r, tmp_path, validation=[("set", some_pairs())], observers=[watch]).finished
    assert [s for s, _ in watch.scores] == [3, 4]


def test_nan_stops_with_the_batch_and_keeps_the_state(shards: Path, tmp_path: Path) -> None:
    r = recipe(shards, state=StateOptions(every=2), log_every=1)
    run(replace(r, steps=2), tmp_path)
    before = state(tmp_path)
    checkpoint = (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(
        TrainingError, match=r"the (loss|norm of the gradient) became (nan|inf) at step \d+; its batch"
    ) as e:
        run(replace(r, optimizer=Optimizer(lr=1e25)), tmp_path)
    assert "\n" not in str(e.value)
    assert str(e.value).endswith("; lower lr or set clip; the state before it is kept")
    saved = load_file(tmp_path / "not-a-number-0.safetensors")
    modes = [(tmp_path / name).stat().st_mode for name in ("not-a-number-0.safetensors", "recipe.json")]
    assert modes[0] == modes[1]  # of the umask, for who looks into it may be another
    assert {k: tuple(v.shape) for k, v in saved.items()} == {"blur": (2, 3, 16, 16), "sharp": (2, 3, 16, 16)}
    step = int(str(e.value).split("at step ")[1].split(";")[0])
    batches = ShardBatches(r.data, seed=0)
    crops = next(batches.start(step - 1))
    batches.close()
    expected = augment(crops, r.data, seed=0, step=step - 1, rank=0, device=torch.device("cpu"))
    assert torch.equal(saved["blur"], expected[0].contiguous())
    kept = load_state(tmp_path / "last")
    assert kept[1]["step"] < step
    assert all(torch.isfinite(t).all() for t in kept[0].values())
    if kept[1]["step"] == 2:
        assert_equal(kept[0], before)
        assert (tmp_path / "last.safetensors").read_bytes() == checkpoint


def test_a_gradient_that_is_no_number_never_reaches_the_state(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(self: Trainer, *arguments: Any) -> Any:
        loss, parts, norm = step(self, *arguments)
        return loss, parts, norm * math.nan  # the loss is still finite

    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", poison)
    with pytest.raises(TrainingError, match=r"norm of the gradient became nan at step 1.*; no state was saved"):
        run(recipe(shards, state=StateOptions(every=1), log_every=100), tmp_path)
    assert not (tmp_path / "last").exists()


def test_without_a_compiler_steps_are_not_compiled(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    r = recipe(shards, steps=2, compile=True)
    batches = ShardBatches(r.data, seed=0)
    assert Trainer(r, tmp_path / "run", batches).train().finished
    batches.close()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["steps are not compiled, and slower: torch.compile needs a C++ compiler"]


def test_what_the_feed_raises_reaches_the_caller(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", (6, 6))
    r = recipe(folder, data=Data(shards=(str(folder),), crop=16, batch=2, memory_gb=1e-9))
    batches = ShardBatches(r.data, seed=0)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Exception, match=r"shard .* can't be read"):
        Trainer(r, tmp_path / "run", batches).train()
    batches.close()


# --- best and last ----------------------------------------------------------------------------------------------


def score(value: float) -> Scores:
    return Scores((SetScore("set", 1, 20.0, value, value - 20),), 40.0)


def test_the_best_is_kept_not_the_last(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, given = [], iter([21.0, 25.5, 23.0, 22.0, 25.0, 26.0])

    def fake(net: MIMOUNet, *arguments: Any, **keywords: Any) -> Scores:
        weights.append({k: v.clone() for k, v in net.state_dict().items()})
        return score(next(given))

    monkeypatch.setattr(module, "validate", fake)
    r = recipe(shards, validation=Validation(every=2), schedule=Schedule(kind="constant"))

    def best() -> tuple[int, Metadata]:
        kept, metadata = load_checkpoint(tmp_path / "best.safetensors")
        same = [i for i, w in enumerate(weights) if all(torch.equal(w[k].bfloat16(), kept[k].bfloat16()) for k in w)]
        assert len(same) == 1
        return same[0], metadata

    assert run(r, tmp_path, validation=[("set", some_pairs())]).best == 25.5
    which, metadata = best()
    assert (which, metadata.score) == (1, 25.5)
    assert metadata.score_note == "mean of set 25.50 dB (+5.50); sharp images against themselves 40.00 dB"
    # a later run does not forget how good the best was
    run(replace(r, steps=10), tmp_path, validation=[("set", some_pairs())])
    assert best()[0] == 1
    run(replace(r, steps=12), tmp_path, validation=[("set", some_pairs())])
    assert best()[0] == 5
    last, _ = load_checkpoint(tmp_path / "last.safetensors")
    for name, value in state(tmp_path).items():
        if name.startswith("ema/"):
            assert torch.equal(last[name.removeprefix("ema/")].bfloat16(), value.bfloat16())


def test_checkpoints_say_how_they_were_made(shards: Path, tmp_path: Path) -> None:
    r = recipe(shards, training_data="blocks", licence="CC0", loss=Loss(msfr_weight=0.2))
    run(r, tmp_path, validation=[("a", some_pairs()), ("b", some_pairs(1))])
    weights, metadata = load_checkpoint(tmp_path / "best.safetensors")
    assert (metadata.variant, metadata.config) == ("mimo-unet-small", MIMOUNetConfig(**TINY))
    assert (metadata.training_data, metadata.licence) == ("blocks", "CC0")
    assert metadata.recipe == (
        "8 steps of 2 crops of 16 px, adam, peak learning rate 0.001, cosine, MSFR weight 0.2, averaged with decay 0.9"
    )
    assert Recipe.from_json((tmp_path / "recipe.json").read_text()) == r.resolved(16, 1)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    assert {v.dtype for v in weights.values()} <= {torch.float32, torch.bfloat16}


def test_a_validation_that_fails_costs_no_steps(shards: Path, tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, Any, Any]]:
        raise UnreadableInput("p1.png is cut short")
        yield  # a generator, as that of a folder is

    r = recipe(shards, steps=6, validation=Validation(every=4, sharp=False))
    with pytest.raises(UnreadableInput, match=r"p1\.png is cut short"):
        run(r, tmp_path, validation=[("a", broken)])
    assert load_state(tmp_path / "last")[1]["step"] == 4
    with pytest.raises(UnreadableInput):  # it goes on, to the next validation
        run(r, tmp_path, validation=[("a", broken)])
    assert load_state(tmp_path / "last")[1]["step"] == 6
    assert_equal(state(tmp_path), plain_run(r, tmp_path / "straight"))
    assert run(r, tmp_path, validation=[("a", some_pairs())]).finished


def plain_run(r: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    run(r, folder)
    return state(folder)


def test_a_crop_that_can_not_be_read_costs_no_steps(shards: Path, tmp_path: Path) -> None:
    r = recipe(shards, steps=6)

    class Breaking(ShardBatches):
        def start(self, step: int) -> Iterator[torch.Tensor]:
            for number, crops in enumerate(super().start(step), start=step):
                if number == 3:
                    raise UnreadableInput("crop 7 is cut short")
                yield crops

    batches = Breaking(r.data, seed=r.seed)
    with pytest.raises(UnreadableInput, match="crop 7 is cut short"):
        Trainer(r, tmp_path, batches).train()
    assert load_state(tmp_path / "last")[1]["step"] == 3
    with pytest.raises(UnreadableInput):  # nothing was trained since
        Trainer(r, tmp_path, batches).train()
    batches.close()
    assert run(r, tmp_path).step == 6
    assert_equal(state(tmp_path), plain_run(r, tmp_path / "straight"))


def test_no_time_is_no_number(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nan minutes are no time to train; give a number above 0, or none"):
        run(recipe(shards), tmp_path, max_minutes=math.nan)


def test_fine_tuning_starts_from_a_checkpoint(shards: Path, tmp_path: Path) -> None:
    config = MIMOUNetConfig(**TINY)
    path = tmp_path / "start.safetensors"
    save_checkpoint(path, network_from_state(config, random_state(config, 11)), Metadata("mimo-unet-small", config))
    r = recipe(shards, start=str(path))
    assert_equal(initial_network(r).state_dict(), random_state(config, 11))
    run(replace(r, optimizer=Optimizer(lr=1e-12), steps=1), tmp_path / "run")
    torch.testing.assert_close(state(tmp_path / "run")["model/stem.weight"], random_state(config, 11)["stem.weight"])
    with pytest.raises(UsageError) as e:
        initial_network(replace(r, architecture={"width": 8, "blocks": 1}))
    assert str(e.value) == (
        f"{path} has another architecture: width 4 and 8 in the recipe; "
        "set model and architecture to what the checkpoint holds"
    )
    # dropout has no parameters: it may differ
    dropped = initial_network(replace(r, architecture=TINY | {"dropout": 0.1}))
    assert dropped.config.dropout == 0.1


def test_what_comes_of_a_checkpoint_says_where_it_began(shards: Path, tmp_path: Path) -> None:
    config = MIMOUNetConfig(**TINY)
    path = tmp_path / "start.safetensors"
    before = Metadata(
        "mimo-unet-small",
        config,
        training_data="streets",
        recipe="9 steps",
        licence="CC-BY",
        extra={"history": "deepened from 1 to 2 residual blocks"},
    )
    save_checkpoint(path, network_from_state(config, random_state(config, 11)), before)
    r = recipe(shards, start=str(path), steps=2, training_data="blocks", licence="CC0")
    run(r, tmp_path / "run")
    path.unlink()
    run(replace(r, steps=3), tmp_path / "run")  # resumed, it still knows
    about = read_metadata(tmp_path / "run" / "last.safetensors")
    assert (about.training_data, about.licence) == ("blocks; streets", "CC0; CC-BY")
    assert about.recipe.startswith("3 steps of 2 crops of 16 px, ")
    assert about.recipe.endswith("; from start.safetensors: 9 steps (deepened from 1 to 2 residual blocks)")


def test_no_path_of_a_machine_goes_into_a_checkpoint(shards: Path, tmp_path: Path) -> None:
    config = MIMOUNetConfig(**TINY)
    start, crops = tmp_path / "start.safetensors", tmp_path / "here" / "crops"
    save_checkpoint(start, network_from_state(config, random_state(config, 11)), Metadata("mimo-unet-small", config))
    shutil.copytree(shards, crops)
    r = recipe(crops, start=str(start), steps=2)
    run(r, tmp_path / "run")
    moved = Path(shutil.copytree(crops, tmp_path / "there" / "crops"))
    run(replace(r, steps=3, data=replace(r.data, shards=(str(moved),))), tmp_path / "run")
    assert not read_metadata(tmp_path / "run" / "last.safetensors").extra["history"]
    others = Path(shutil.copytree(crops, tmp_path / "there" / "others"))
    run(replace(r, start="", steps=4, data=replace(r.data, shards=(str(others),))), tmp_path / "run")
    about = read_metadata(tmp_path / "run" / "last.safetensors")
    assert about.extra["history"] == "start start.safetensors until step 3; data.shards ['crops'] until step 3"
    assert str(tmp_path) not in json.dumps(about.to_strings())


# --- validation -------------------------------------------------------------------------------------------------


def test_validation_against_plain_numbers() -> None:
    config = MIMOUNetConfig(**TINY)
    net = network_from_state(config, random_state(config, 2)).train()
    scores = validate(net, [("a", some_pairs(3, (22, 30)))], torch.device("cpu"), torch.float32, sharp=True, strips=1)
    assert scores is not None
    assert net.training
    net.eval()
    blurry, restored, kept = [], [], []
    for i in range(3):
        blur, sharp = pair(50 + i, (22, 30))
        for source, to in ((blur, restored), (sharp, kept)):
            padded = np.pad(source, ((0, 2), (0, 2), (0, 0)), mode="edge")
            x = torch.from_numpy(padded.astype(np.float32) / 255).permute(2, 0, 1)[None]
            with torch.no_grad():
                y = net(x)[-1][0].permute(1, 2, 0).numpy()[:22, :30]
            result = np.clip(y * 255, 0, 255).round().astype(np.uint8)
            np.testing.assert_array_equal(restore(net, source, torch.device("cpu"), torch.float32), result)
            to.append(10 * np.log10(255**2 / np.mean((result.astype(float) - sharp) ** 2)))
        blurry.append(10 * np.log10(255**2 / np.mean((blur.astype(float) - sharp) ** 2)))
    found = scores.sets[0]
    assert (found.blurry, found.restored, scores.sharp) == pytest.approx(
        (np.mean(blurry), np.mean(restored), np.mean(kept)), abs=1e-9
    )
    assert found.worst_gain == pytest.approx(min(np.subtract(restored, blurry)), abs=1e-9)
    assert (found.images, len(scores.strips), scores.strips[0].picture.shape) == (3, 1, (22, 90, 3))
    values = scores.as_dict()
    assert values["a/gain"] == pytest.approx(values["a/psnr"] - np.mean(blurry))
    assert psnr8(pair(1)[0], pair(1)[0]) == 100


def test_the_score_is_the_mean_over_the_sets() -> None:
    sets = tuple(SetScore(name, n, 20.0, value, 0.0) for name, n, value in (("a", 100, 30.0), ("b", 1, 25.0)))
    assert Scores(sets, None).score == 27.5
    assert "sharp/psnr" not in Scores(sets, None).as_dict()


def test_published_size_is_not_needed_to_resume() -> None:
    """The default recipe trains the paper's network."""
    r = Recipe(data=Data(shards=("x",)), steps=1)
    assert architecture(r) == MIMO_UNET
