"""``python -m streamdeblur.training.bare RECIPE.json -o RUN``: train where only torch, numpy and safetensors are.

RECIPE.json is the ``recipe.json`` of a run or what ``streamdeblur train --print-recipe`` prints; its crops and
validation sets must be shards (``streamdeblur prepare``), their paths relative to the current folder. So is that of a
teacher, which has to travel, too.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from pathlib import Path

import torch

from streamdeblur.errors import StreamdeblurError
from streamdeblur.restore.engines import resolve_device
from streamdeblur.training.batches import ShardBatches
from streamdeblur.training.monitor import JsonLog
from streamdeblur.training.outcome import Observer, Progress
from streamdeblur.training.recipe import Recipe
from streamdeblur.training.shards import Shard
from streamdeblur.training.state import alone, make_folder
from streamdeblur.training.trainer import Trainer
from streamdeblur.training.validation import Scores

log = logging.getLogger("streamdeblur.training.bare")


class _Lines:
    """What happens, as lines on stderr."""

    def on_progress(self, progress: Progress) -> None:
        p = progress
        log.info(
            "step %d/%d loss %.5f rate %.2e norm %.2f %.1f images/s waiting %.0f %% %.0f s",
            *(p.step, p.steps, p.loss, p.rate, p.norm, p.images_per_second, 100 * p.waiting, p.seconds),
        )

    def on_validation(self, step: int, scores: Scores) -> None:
        log.info("validation at step %d: %s", step, {k: round(v, 3) for k, v in scores.as_dict().items()})

    def close(self) -> None:
        pass


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m streamdeblur.training.bare", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run; one that exists goes on")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-minutes", type=float, default=None)
    given = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        log.error("error: this trains in one process; several take streamdeblur train under torchrun")
        return 2
    try:
        recipe = Recipe.from_json(given.recipe.read_text(encoding="utf-8"))
        device = resolve_device(given.device)
        batches = ShardBatches(recipe.data, seed=recipe.seed, device=device)
        sets = [(s.name, Shard(s.path).pairs) for s in recipe.validation.sets]
        make_folder(given.output)
        with alone(given.output), contextlib.closing(batches), contextlib.closing(JsonLog(given.output)) as kept:
            observers: list[Observer] = [_Lines(), kept]
            trainer = Trainer(recipe, given.output, batches, validation=sets, observers=observers, device=device)
            outcome = trainer.train(given.max_minutes)
    except (StreamdeblurError, OSError, ValueError, KeyError, TypeError) as e:
        log.error("error: %s", e)
        return getattr(e, "exit_code", 1)
    if device.type == "cuda":
        log.info("largest memory %.1f GiB", torch.cuda.max_memory_allocated(device) / 2**30)
    log.info("stopped at step %d%s", outcome.step, f": {outcome.stopped}" if outcome.stopped else "")
    return outcome.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
