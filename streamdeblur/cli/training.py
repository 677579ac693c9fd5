"""Commands that make weights: prepare, train."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from streamdeblur.cli.console import Reporter, make_console, set_up_logging
from streamdeblur.cli.options import common
from streamdeblur.errors import UsageError


@click.command()
@click.option("-c", "--config", required=True, help="Recipe (YAML), for example configs/train_small.yaml.")
@click.option("-o", "--output", required=True, help="Folder of the run; a run that is there goes on where it was.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change the recipe: optimizer.lr=2e-4.")
@click.option("--start", default=None, help="Fine-tune from this checkpoint (.safetensors or the authors' .pkl).")
@click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), default=None, help="Save and stop then.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads of the network.")
@click.option("--ray", default=None, is_flag=False, flag_value="local", metavar="[ADDRESS]", help="Train on Ray.")
@click.option("--workers", type=click.IntRange(1), default=None, help="With --ray: processes. Default: one a GPU.")
@click.option("--tensorboard/--no-tensorboard", default=True, help="Curves and picture strips in RUN/tensorboard.")
@click.option("--fresh", is_flag=True, help="Refuse a folder that holds a run already.")
@click.option("--print-recipe", is_flag=True, help="Print the recipe as JSON (for machines without YAML) and end.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON on stdout.")
@common
def train(
    config: str,
    output: str,
    changes: tuple[str, ...],
    start: str | None,
    max_minutes: float | None,
    device: str,
    threads: int | None,
    ray: str | None,
    workers: int | None,
    tensorboard: bool,
    fresh: bool,
    print_recipe: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Train a network, or go on with a run. Ctrl-C or SIGTERM saves its state and stops."""
    from streamdeblur.training.config import load
    from streamdeblur.training.recipe import Recipe
    from streamdeblur.training.state import has_state

    console = make_console()
    set_up_logging(console, debug=debug)
    more = (f"start={json.dumps(start)}",) if start else ()
    recipe = load(Recipe, config, (*changes, *more))
    if print_recipe:
        print(recipe.to_json())
        return 0
    if workers is not None and ray is None:
        raise UsageError("--workers counts processes on Ray", "add --ray, or start several with torchrun")
    if ray is not None and device != "auto":
        raise UsageError(f"--device {device} has no meaning with --ray", "workers take a GPU each, or CPUs without any")
    folder = Path(output)
    main = os.environ.get("RANK", "0") == "0"  # of several under torchrun, one speaks
    quiet, as_json = quiet or not main, as_json and main
    if fresh and has_state(folder / "last"):
        raise UsageError(f"{folder} holds a run already", "leave --fresh out to go on with it")
    with Reporter(console, quiet=quiet, unit="steps") as reporter:
        observer = ShownRun(reporter, console, quiet)
        if ray is not None:
            from streamdeblur.training.ray import run_on_ray

            outcome = run_on_ray(
                recipe,
                folder,
                address=None if ray == "local" else ray,
                workers=workers,
                max_minutes=max_minutes,
                threads=threads,
                tensorboard=tensorboard,
                observers=[observer],
            )
        else:
            from streamdeblur.training.run import run_training

            outcome = run_training(
                recipe,
                folder,
                device=device,
                threads=threads,
                max_minutes=max_minutes,
                tensorboard=tensorboard,
                observers=[observer],
            )
    if as_json:
        print(json.dumps(outcome.as_dict(), indent=2))
    elif not quiet:
        how = "done" if outcome.finished else f"stopped ({outcome.stopped}); the same command goes on"
        best = (
            "" if outcome.best is None else f", best validation {outcome.best:.2f} dB in {folder / 'best.safetensors'}"
        )
        console.print(f"{folder}: step {outcome.step}, {how}{best}")
    return outcome.exit_code


class ShownRun:
    """A run on the terminal: the bar, and a line for every validation."""

    def __init__(self, reporter: Reporter, console: Any, quiet: bool) -> None:
        self._reporter, self._console, self._quiet = reporter, console, quiet

    def on_progress(self, progress: Any) -> None:
        p = progress
        rate = f"{p.images_per_second:.1f} images/s"
        self._reporter.step("training", p.step, p.steps, rate, f"loss {p.loss:.4f}", p.seconds, p.resumed)

    def on_validation(self, step: int, scores: Any) -> None:
        if not self._quiet:
            sets = ", ".join(f"{s.name} {s.restored:.2f} dB ({s.gain:+.2f})" for s in scores.sets)
            sharp = "" if scores.sharp is None else f", sharp {scores.sharp:.1f} dB"
            self._console.print(f"step {step}: {sets}{sharp}")

    def close(self) -> None:
        pass


@click.command()
@click.option("-c", "--config", default=None, help="Sources and sizes (YAML), for example configs/prepare.yaml.")
@click.option("--pairs", default=None, help="Instead: a folder of pairs, kept whole and lossless, for validation.")
@click.option("-o", "--output", required=True, help="Folder for the shards.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change the configuration: count=2000.")
@click.option("--overwrite", is_flag=True, help="Replace shards that lie there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON on stdout.")
@common
def prepare(
    config: str | None,
    pairs: str | None,
    output: str,
    changes: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Make training crops beforehand and keep them in shards, which train anywhere."""
    from streamdeblur.training.config import load
    from streamdeblur.training.prepare import prepare_crops, prepare_pairs
    from streamdeblur.training.recipe import Preparation

    if (config is None) == (pairs is None):
        raise UsageError("give --config or --pairs, one of the two")
    if pairs is not None and changes:
        raise UsageError(f"--set {changes[0]} has no meaning with --pairs", "pairs are kept as they are: leave it out")
    console = make_console()
    set_up_logging(console, debug=debug)
    with Reporter(console, quiet=quiet, unit="crops") as reporter:

        def show(done: int, total: int) -> None:
            reporter.step("preparing", done, total)

        if config is not None:
            recipe = load(Preparation, config, changes)
            made = prepare_crops(recipe, Path(output), overwrite=overwrite, progress=show)
        else:
            made = prepare_pairs(Path(str(pairs)), Path(output), overwrite=overwrite, progress=show)
    if as_json:
        values = {"files": [str(f) for f in made.files], "pairs": made.pairs, "bytes": made.bytes}
        print(json.dumps({**values, "by_source": made.by_source}, indent=2))
    elif not quiet:
        by = ", ".join(f"{count} from {name}" for name, count in sorted(made.by_source.items()))
        console.print(
            f"{output}: {made.pairs} pairs in {len(made.files)} shards, {made.bytes / 2**20:.0f} MiB ({by})",
        )
