"""One training run from its recipe: feeds, validation, process group and observers put together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from streamdeblur.errors import DeviceError
from streamdeblur.restore.engines import resolve_device
from streamdeblur.training.feeds import open_batches, open_validation
from streamdeblur.training.monitor import open_observers
from streamdeblur.training.outcome import Observer, Outcome
from streamdeblur.training.recipe import Recipe
from streamdeblur.training.state import alone, make_folder
from streamdeblur.training.trainer import Trainer


def run_training(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    max_minutes: float | None = None,
    tensorboard: bool = True,
    observers: Sequence[Observer] = (),
    asked: Callable[[], int] = lambda: 0,
) -> Outcome:
    """Train, or go on with the run in ``folder``. Under ``torchrun`` (or Ray Train) every process calls this alike.

    device: "auto", "cpu", "cuda", "cuda:N"; with several processes each takes the GPU of its local rank.
    threads: CPU threads of the network. asked: see ``Trainer.train``. Raises what ``Trainer`` and the feeds raise.
    """
    make_folder(folder)
    if threads is not None:
        torch.set_num_threads(threads)
    with process_group(device) as place, contextlib.ExitStack() as held:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if rank == 0:
            held.enter_context(alone(folder))
        cache = place if place.type == "cuda" else None
        batches = open_batches(recipe, rank=rank, world=world, device=cache)
        own: list[Observer] = list(open_observers(folder, tensorboard=tensorboard)) if rank == 0 else []
        try:
            trainer = Trainer(
                recipe,
                folder,
                batches,
                validation=open_validation(recipe.validation.sets),
                observers=[*own, *observers],
                device=place,
            )
            return trainer.train(max_minutes, asked)
        finally:
            batches.close()
            for observer in own:
                observer.close()


def _expect_a_gpu_each() -> None:
    """Raises DeviceError where ``torchrun`` starts more processes on this machine than it has GPUs: NCCL refuses that.

    Where each process sees a GPU of its own alone, as Ray's may, there is no saying.
    """
    processes, here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    masked = here == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    if processes > here and "TORCHELASTIC_RUN_ID" in os.environ and not masked:
        raise DeviceError(
            f"torchrun starts {processes} processes on a machine with {here} GPU{'s' * (here != 1)}",
            f"take --nproc-per-node {here}, or train --device cpu",
        )


@contextlib.contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """This process's device, inside the process group that ``torchrun`` describes, if it does and none exists yet."""
    place = resolve_device(device)
    if place.type == "cuda":
        _expect_a_gpu_each()
    mine = False
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        # The others wait while the main process validates; the default of NCCL would give up after ten minutes.
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(hours=2))
        mine = True
    if dist.is_initialized() and place.type == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if place.type == "cuda":
        torch.cuda.set_device(place)
    try:
        yield place
    finally:
        if mine:
            dist.destroy_process_group()
