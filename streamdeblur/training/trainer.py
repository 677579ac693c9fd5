"""The training loop. Needs torch, numpy and safetensors, nothing else: it travels to bare machines.

A run is a folder: ``recipe.json``, ``last/`` (the state to resume from), ``best.safetensors`` (averaged weights of the
best validation), ``last.safetensors``, ``log.jsonl``. Everything random is a function of the seed and the step, so N
steps straight and N/2 steps twice give the same weights, to the bit on the CPU (with one number of threads; and, with
AMX, while the cache folder keeps what was measured there: ``convolutions``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from streamdeblur import heap
from streamdeblur.errors import DeviceError, StreamdeblurError, TrainingError, UsageError, WeightsError
from streamdeblur.models.checkpoint import Metadata, save_checkpoint
from streamdeblur.restore.engines import resolve_precision
from streamdeblur.restore.engines.compiled import require_compiler
from streamdeblur.restore.engines.devices import PRECISIONS
from streamdeblur.training.batches import Ahead, Batches, augment, generator
from streamdeblur.training.convolutions import quicken
from streamdeblur.training.losses import DeblurLoss
from streamdeblur.training.meter import Meter
from streamdeblur.training.networks import Averaged, Origin, initial_network, origin
from streamdeblur.training.optimizers import make_optimizer
from streamdeblur.training.outcome import Observer, Outcome, Progress
from streamdeblur.training.recipe import Recipe
from streamdeblur.training.schedule import rate_factor
from streamdeblur.training.state import has_state, load_state, make_folder, save_state, write_tensors
from streamdeblur.training.stopping import Stop, World
from streamdeblur.training.teacher import Teacher
from streamdeblur.training.validation import Pairs, Scores, validate

log = logging.getLogger(__name__)

#: Keys of a recipe that don't shape the weights; changes of the others go into the checkpoint's history.
_NO_HISTORY = (
    "steps",
    "schedule.total",
    "validation",
    "state",
    "log_every",
    "data.workers",
)

#: Streams of random numbers of dropout and of what a teacher is shown (``batches`` has 1 and 2, ``feeds`` 3 and 5).
_DROPOUT, _VIEWS = 4, 6


class Trainer:
    """One run in one process (of several under ``torch.distributed``, whose process group exists already).

    recipe: with paths that exist. folder: of the run; an existing state in it is resumed. batches: gives the crops.
    validation: name and pairs of every set. observers: told on the main process.

    Raises UsageError for a recipe that does not fit the run in the folder, TrainingError when the loss is no number.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        batches: Batches,
        *,
        validation: Sequence[tuple[str, Pairs]] = (),
        observers: Sequence[Observer] = (),
        device: torch.device | str = "cpu",
    ) -> None:
        device = torch.device(device)
        if device.type == "cpu":
            heap.keep_freed()
        several = dist.is_available() and dist.is_initialized()
        self.world = World(dist.get_rank(), dist.get_world_size(), device) if several else World(0, 1, device)
        self.recipe = recipe.resolved(batches.samples, self.world.size)
        self.folder = folder
        self._batches, self._validation = batches, validation
        self._observers = observers if self.world.main else ()
        # A run that goes on brings its own weights; the checkpoint that it began from may be gone.
        begun = self._begun()
        first = dataclasses.replace(recipe, start="") if begun else recipe
        net = initial_network(first)
        self._origin = origin(first)
        self._dtype = self._same_everywhere(resolve_precision(recipe.precision, device, net))
        self.net = net.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.averaged = Averaged(self.net, recipe.optimizer.ema)
        o = recipe.optimizer
        self._names = {parameter: name for name, parameter in self.net.named_parameters()}
        self._optimizer = make_optimizer(o, self.net, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype == torch.float16)
        self._loss = DeblurLoss(recipe.loss.msfr_weight, recipe.loss.msfr, recipe.loss.epsilon)
        self.step = 0
        self.best: float | None = None
        self._reliable = False  # whether the best is more than a preview
        self._history: list[str] = []  # what was otherwise in earlier sessions of the run
        self._validated: int | None = None  # the step of the last validation, or of the last try (``_try_validation``)
        self._warm_from: int | None = None
        if begun:
            self._resume()
        compiled = self._compiles()
        self._run = self._prepare(compiled)
        self._teacher = self._hire(compiled)

    # --- state -------------------------------------------------------------------------------------------------------

    def _begun(self) -> bool:
        """Whether there is a state to resume from; the same on every process."""
        begun = self.world.main and has_state(self.folder / "last")  # finishes a cut-off replacement
        if self.world.size > 1:
            flag = torch.tensor([int(begun)], device=self.world.device)
            dist.broadcast(flag, 0)
            begun = bool(flag)
        return begun

    def _same_everywhere(self, dtype: torch.dtype) -> torch.dtype:
        """That of the main process: "auto" may be another on another machine."""
        if self.world.size == 1:
            return dtype
        kinds = list(PRECISIONS.values())
        number = torch.tensor([kinds.index(dtype)], device=self.world.device)
        dist.broadcast(number, 0)
        return kinds[int(number)]

    def _resume(self) -> None:
        tensors, values = load_state(self.folder / "last")
        if values["architecture"] != asdict(self.net.config):
            raise UsageError(
                f"{self.folder} holds a run of another architecture than the recipe's", "choose another folder"
            )
        self.step, self.best, self._validated = values["step"], values["best"], values.get("validated")
        self._reliable = bool(values.get("reliable"))
        self._history = list(values.get("history", ()))
        self._origin = Origin(**values["origin"]) if values.get("origin") else None
        self._say_changes(values["recipe"])
        self.net.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
        self.averaged.net.load_state_dict(
            {k.removeprefix("ema/"): v for k, v in tensors.items() if k.startswith("ema/")}
        )
        self._load_moments(tensors)
        if values.get("scaler"):
            self._scaler.load_state_dict(values["scaler"])

    def _load_moments(self, tensors: dict[str, Tensor]) -> None:
        """The optimiser's state, where the one that was saved has all that this one needs; else a new warm-up."""
        fused = self.recipe.optimizer.name != "muon" and self.world.device.type == "cuda"
        for group in self._optimizer.param_groups:
            keys = ("exp_avg",) if group.get("muon") else ("exp_avg", "exp_avg_sq")
            for parameter in group["params"]:
                name = self._names[parameter]
                if any(f"{key}/{name}" not in tensors for key in keys):
                    self._optimizer.state.clear()
                    self._warm_from = self.step
                    return
                step = tensors["optimizer_step"].clone()
                self._optimizer.state[parameter] = {
                    "step": step.to(self.world.device) if fused else step,  # fused Adam wants its counters there
                    # In the memory layout of the parameter: fused Adam walks both side by side.
                    **{k: torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"{k}/{name}"]) for k in keys},
                }

    def _say_changes(self, before: dict[str, Any]) -> None:
        # Keys that came after the state was written had their defaults.
        old = _flat(json.loads(Recipe.from_json(json.dumps(before)).to_json()))
        for key, value in _flat(_plain(asdict(self.recipe))).items():
            if key not in old or old[key] == value:
                continue
            if self.world.main:
                log.warning("resumed with another %s than before: %s, was %s", key, value, old[key])
            was = _named(key, old[key])
            if was != _named(key, value) and not key.startswith(_NO_HISTORY):
                self._history.append(f"{key} {was} until step {self.step}")

    def save(self) -> None:
        """Write the state and the averaged weights. On the main process; the others do nothing."""
        if not self.world.main:
            return
        tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema/{k}": v for k, v in self.averaged.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            moments = self._optimizer.state.get(parameter)
            if moments and self.recipe.state.moments:
                tensors |= {f"{k}/{name}": moments[k] for k in ("exp_avg", "exp_avg_sq") if k in moments}
                tensors["optimizer_step"] = moments["step"]
        values = {
            "step": self.step,
            "best": self.best,
            "reliable": self._reliable,
            "validated": self._validated,
            "history": self._history,
            "origin": self._origin and asdict(self._origin),
            "architecture": asdict(self.net.config),
            "recipe": _plain(asdict(self.recipe)),
            "scaler": self._scaler.state_dict(),
        }
        make_folder(self.folder)
        save_state(self.folder / "last", tensors, values, self.recipe.state)
        self._checkpoint(self.folder / "last.safetensors", None)

    def _checkpoint(self, path: Path, scores: Scores | None) -> None:
        r, before = self.recipe, self._origin
        metadata = Metadata(
            variant=r.model,
            config=self.net.config,
            training_data=_with(r.training_data, before.training_data if before else ""),
            recipe=f"{self.step} steps of {r.data.batch * self.world.size} crops of {r.data.crop} px, "
            f"{r.optimizer.name}, peak learning rate {r.optimizer.lr:g}, {r.schedule.kind}, "
            f"MSFR weight {r.loss.msfr_weight:g}"
            + f", {r.loss.teacher_share:.0%} of the target from {Path(r.loss.teacher).name}" * bool(r.loss.teacher)
            + f" in {r.loss.teacher_views} orientations" * (r.loss.teacher_views > 1)
            + f", averaged with decay {r.optimizer.ema:g}" * bool(r.optimizer.ema)
            + f", zoom {r.data.zoom:g}" * (r.data.zoom < 1)
            + ", channels in any order" * r.data.channels
            + f", exposure {r.data.exposure:g}" * (r.data.exposure < 1)
            + (f"; from {before.name}: {before.recipe}" if before else ""),
            score=None if scores is None else round(scores.score, 4),
            score_note="" if scores is None else scores.note,
            licence=_with(r.licence, before.licence if before else ""),
            extra={
                "preview": "never validated" if scores is None else scores.shortfall,
                "history": "; ".join(self._history),
            },
        )
        weights = {k: v.to(torch.bfloat16) for k, v in self.averaged.net.state_dict().items()}
        save_checkpoint(path, weights, metadata)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _compiles(self) -> bool:
        if not self.recipe.compile:
            return False
        try:
            require_compiler(self.world.device)
        except DeviceError as e:  # else the first step would end in Inductor's own error
            if self.world.main:
                log.warning("steps are not compiled, and slower: %s", e.what)
            return False
        return True

    def _prepare(self, compiled: bool) -> Callable[[Tensor], tuple[Tensor, ...]]:
        net: nn.Module = self.net
        if compiled and self.world.device.type == "cpu":
            log.debug("%d convolutions run through kernels of our own", quicken(net, self._dtype))
        if self.world.size > 1:
            ids = [self.world.device.index] if self.world.device.type == "cuda" else None
            net = nn.parallel.DistributedDataParallel(net, device_ids=ids, gradient_as_bucket_view=True)
        return torch.compile(net) if compiled else net

    def _hire(self, compiled: bool) -> Teacher | None:
        wanted = self.recipe.loss
        if not wanted.teacher or self.step >= self.recipe.steps:  # a run that is done needs none, nor its file
            return None
        try:
            return Teacher(
                wanted.teacher,
                wanted.teacher_share,
                self.world.device,
                self._dtype,
                views=wanted.teacher_views,
                compiled=compiled,
            )
        except WeightsError as e:
            raise WeightsError(f"loss.teacher: {e.what}", e.hint) from e

    def _target(self, blur: Tensor, sharp: Tensor) -> Tensor:
        """What the step makes of ``blur`` shall be like: the sharp side, or on the way to what the teacher makes of it.

        The orientations are of seed and step alone: two processes see what one with twice the batch would.
        """
        if self._teacher is None:
            return sharp
        return self._teacher.targets(blur, sharp, generator(self.recipe.seed, _VIEWS, self.step))

    def _rate(self) -> float:
        factor = rate_factor(self.recipe.schedule, self.step)
        if self._warm_from is not None:  # no moments came with the state: let Adam gather new ones first
            factor *= min(1.0, (self.step - self._warm_from + 1) / (self.recipe.schedule.warmup + 1))
        return self.recipe.optimizer.lr * factor

    def train_step(self, blur: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """One update. blur, target: (N, 3, H, W) float32 in [0, 1] on the run's device, channels_last for speed.

        Returns the loss, its parts and the norm of the gradient before clipping: scalars on the device, not waited for.
        ``step`` is the caller's to count.
        """
        rate = self._rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if self.net.config.dropout:
            # Of seed, step and process alone, as all that is random: nothing to save, and no two processes alike.
            seed = generator(self.recipe.seed, _DROPOUT, self.step, self.world.rank).integers(2**63)
            torch.manual_seed(int(seed))
        device = self.world.device.type
        with torch.autocast(device, self._dtype, enabled=self._dtype != torch.float32):
            outputs = self._run(blur)
        loss, parts = self._loss(outputs, target)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        clip = self.recipe.optimizer.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), clip, foreach=True)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.averaged.update(self.step)
        return loss.detach(), parts, norm.detach()

    def train(self, max_minutes: float | None = None, asked: Callable[[], int] = lambda: 0) -> Outcome:
        """Run to the last step, or until the time is up or a signal comes; the state is saved in every case.

        asked: looked at after every step; the number of a signal where one came by another way, as from Ray's driver.
        """
        r, world = self.recipe, self.world
        started, before = time.monotonic(), self.step
        scores: Scores | None = None
        stopped = ""
        make_folder(self.folder)
        if world.main:
            partial = self.folder / "recipe.json.partial"
            partial.write_text(r.to_json(), encoding="utf-8")
            partial.replace(self.folder / "recipe.json")
        meter = Meter()
        pending: _Done | None = None
        with Stop(max_minutes, asked) as stop, contextlib.closing(Ahead(self._feed())) as feed:
            if self.step and self._due() and self._validated != self.step:
                with meter.paused():
                    scores = self._try_validation(stop)  # a stop came before it, or cut it short
                    stopped = stop.reason(world)
                    self.save()
            while self.step < r.steps and not stopped:
                waited = time.monotonic()
                try:
                    blur, sharp = next(feed)
                except StreamdeblurError:  # a picture that can't be read costs no steps
                    self._check(pending)
                    self._keep(before)
                    raise
                except RuntimeError:
                    stopped = stop.reason(world) if world.size == 1 else ""
                    if not stopped:
                        raise
                    self._check(pending)  # whoever stopped us stopped the processes that make crops, too
                    self.save()
                    break
                meter.waited += time.monotonic() - waited
                target = self._target(blur, sharp)
                loss, parts, norm = self.train_step(blur, target)
                # The loss of the step before is looked at while the device works on this one.
                self._check(pending)
                pending = _Done(loss, norm, {"blur": blur, "sharp": sharp, "target": target})
                meter.add(loss, parts, norm)
                self.step += 1
                if self.step % r.log_every == 0 or self.step == r.steps:
                    self._check(pending)
                    pending = None
                    self._report(meter, started, before)
                    meter = Meter()
                # Several processes must agree; on GPUs that would wait for the step in hand every time.
                ask = world.size == 1 or world.device.type == "cpu" or self.step % 10 == 0
                stopped = stop.reason(world) if ask else ""
                if self._due() and not stopped:
                    self._check(pending)
                    pending = None
                    with meter.paused():
                        scores = self._try_validation(stop) or scores
                    stopped = stop.reason(world)
                if self.step % r.state.every == 0 or self.step == r.steps or stopped:
                    self._check(pending)
                    pending = None
                    with meter.paused():
                        self.save()
        finished = self.step >= r.steps and (not self._validation or self._validated == self.step)
        return Outcome(self.step, finished, stopped, scores, self.best, self.folder, time.monotonic() - started)

    def _keep(self, before: int) -> None:
        """Save what was trained since step ``before``, on the way out of an error that has nothing to do with it."""
        if self.step > before:
            self.save()

    def _feed(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step, crops in enumerate(self._batches.start(self.step), start=self.step):
            yield augment(
                crops,
                self.recipe.data,
                seed=self.recipe.seed,
                step=step,
                rank=self.world.rank,
                device=self.world.device,
            )

    def _check(self, pending: _Done | None) -> None:
        """Raise unless the loss and the gradient of step ``self.step`` are finite (fp16 skips steps that are not)."""
        if pending is None:
            return
        loss, norm = pending.numbers()
        values = {"loss": loss}
        if not self._scaler.is_enabled():
            values["norm of the gradient"] = norm
        wrong = [(name, value) for name, value in values.items() if not math.isfinite(value)]
        if not wrong:
            return
        path = self.folder / f"not-a-number-{self.world.rank}.safetensors"
        batch = {name: crops.contiguous().cpu() for name, crops in pending.batch.items()}
        if self._teacher is None:
            del batch["target"]
        with contextlib.suppress(OSError, SafetensorError):
            write_tensors(batch, path, {"step": str(self.step), **{k: str(v) for k, v in values.items()}})
        kept = "the state before it is kept" if has_state(self.folder / "last") else "no state was saved before it"
        raise TrainingError(
            f"the {wrong[0][0]} became {wrong[0][1]} at step {self.step}; its batch is in {path}",
            f"lower lr or set clip; {kept}"
            if not self._teacher or bool(torch.isfinite(batch["target"]).all())
            else "what the teacher makes of it is no number: take another one, or precision fp32",
        )

    def _report(self, meter: Meter, started: float, before: int) -> None:
        if self.world.main:
            means = meter.means()
            progress = Progress(
                step=self.step,
                steps=self.recipe.steps,
                loss=means["loss"],
                parts={k.removeprefix("part/"): v for k, v in means.items() if k.startswith("part/")},
                rate=self._optimizer.param_groups[0]["lr"],
                norm=means["norm"],
                images_per_second=meter.steps * self.recipe.data.batch * self.world.size / meter.seconds,
                waiting=meter.waited / meter.seconds,
                seconds=time.monotonic() - started,
                resumed=before,
                best=self.best,
            )
            for observer in self._observers:
                observer.on_progress(progress)

    def _due(self) -> bool:
        """Whether there is a validation after step ``self.step``; the same on every process."""
        last = self.step >= self.recipe.steps
        return bool(self._validation) and (last or self.step % self.recipe.validation.every == 0)

    def _try_validation(self, stop: Stop) -> Scores | None:
        """``_validate``; where it fails the state is kept, and a resume goes on to the next one, if there is one."""
        try:
            return self._validate(stop)
        except (StreamdeblurError, OSError):
            if self.step < self.recipe.steps:
                self._validated = self.step
            self.save()
            raise

    def _validate(self, stop: Stop) -> Scores | None:
        """On the main process; None on the others, or where a signal cut it short. The others wait in what follows."""
        scores = None
        if self.world.main:
            scores = validate(
                self.averaged.net,
                self._validation,
                self.world.device,
                self._dtype,
                sharp=self.recipe.validation.sharp,
                strips=2,
                stop=lambda: stop.signalled,
            )
        if scores is not None or not self.world.main:
            self._validated = self.step
        if scores is not None:
            reliable = not scores.shortfall
            # Weights to rely on come before a preview, whatever its mean.
            if self.best is None or (reliable, scores.score) > (self._reliable, self.best):
                self.best, self._reliable = scores.score, reliable
                self._checkpoint(self.folder / "best.safetensors", scores)
            for observer in self._observers:
                observer.on_validation(self.step, scores)
        return scores


class _Done:
    """A step whose numbers nobody has looked at yet.

    They leave a GPU by themselves: who looks at them waits for this step, and not for the next, which is at work then.
    """

    def __init__(self, loss: Tensor, norm: Tensor, batch: dict[str, Tensor]) -> None:
        self.batch = batch
        self._numbers = torch.stack([loss.float(), norm.float()])
        self._copied: torch.cuda.Event | None = None
        if self._numbers.is_cuda:
            stream = torch.cuda.current_stream(self._numbers.device)  # which need not be that of the current device
            self._numbers = torch.empty(2, pin_memory=True).copy_(self._numbers, non_blocking=True)
            self._copied = stream.record_event()

    def numbers(self) -> tuple[float, float]:
        """Loss, and norm of the gradient."""
        if self._copied is not None:
            self._copied.synchronize()
        loss, norm = self._numbers.tolist()
        return loss, norm


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: inner}
    return flat


def _named(key: str, value: Any) -> Any:
    """A value of ``_flat`` with names in place of paths: a checkpoint is for others, on other machines."""
    if key in ("start", "loss.teacher"):
        return Path(value).name or "none"
    if key == "data.shards":
        return [Path(path).name for path in value]
    if key == "data.sources":
        return [{**source, "path": Path(source["path"]).name} for source in value]
    return value


def _with(text: str, earlier: str) -> str:
    return text if earlier in text else f"{text}; {earlier}"


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
