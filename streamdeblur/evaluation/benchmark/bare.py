"""``python -m streamdeblur.evaluation.benchmark.bare``: the network's part where only torch, numpy, safetensors are.

Prints tables, or with --json one object. The whole is ``streamdeblur benchmark``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from streamdeblur.errors import StreamdeblurError, UsageError
from streamdeblur.evaluation.benchmark.machine import busy, load, machine
from streamdeblur.evaluation.benchmark.network import network
from streamdeblur.evaluation.benchmark.results import show_network, show_tiling
from streamdeblur.evaluation.benchmark.variation import variation
from streamdeblur.evaluation.benchmark.ways import (
    Way,
    check_engine,
    engines_for,
    parse_model,
    parse_size,
    parse_tiling,
)
from streamdeblur.restore.engines import resolve_device

log = logging.getLogger("streamdeblur.evaluation.benchmark.bare")


def ways_of(
    engines: Sequence[str],
    precisions: Sequence[str],
    tiles: Sequence[str],
    batch: Sequence[int],
    device: torch.device,
) -> list[Way]:
    """Every engine in every precision, tiling and batch. Raises UsageError for words that mean nothing."""
    chosen = [check_engine(e) for e in engines] or [*engines_for(device), "auto"]
    for word in tiles:
        parse_tiling(word)
    sizes: Sequence[int | None] = batch or (None,)
    return [Way(e, p, t, b) for e in chosen for p in precisions for t in tiles for b in sizes]


def main(arguments: list[str] | None = None) -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m streamdeblur.evaluation.benchmark.bare", description=__doc__)
    parser.add_argument("--what", default="network", help="network,tiling")
    parser.add_argument("--models", default="mimo-unet-small,mimo-unet", help="NAME or NAME=WEIGHTS, with commas")
    parser.add_argument("--engines", default="", help="default: all that such a device may have")
    parser.add_argument("--precisions", default="auto")
    parser.add_argument("--sizes", default="720p", help="360p, 720p, 1080p, 4k or WIDTHxHEIGHT")
    parser.add_argument("--tiles", default="auto", help="auto, whole, exact, fast, TILE or TILE/OVERLAP")
    parser.add_argument("--batch", default="", help="windows in one call; default: as planned")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-reference", action="store_true", help="leave the loop of research code out")
    parser.add_argument("--no-memory", action="store_true", help="don't measure memory in processes of their own")
    parser.add_argument("--json", type=Path, help="write results there as well")
    o = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        text, values = _measure(o)
        if o.json is not None:
            o.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except (StreamdeblurError, OSError) as e:
        log.error("error: %s", e)
        return getattr(e, "exit_code", 1)
    sys.stdout.write(text + "\n")
    return 0


def _words(text: str) -> list[str]:
    return [w.strip() for w in text.split(",") if w.strip()]


def _measure(o: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if o.threads is not None:
        torch.set_num_threads(o.threads)
    device = resolve_device(o.device)
    try:
        batch = [int(w) for w in _words(o.batch)]
    except ValueError:
        raise UsageError(f"--batch {o.batch} is no list of whole numbers", "as 1,2,4") from None
    ways = ways_of(_words(o.engines), _words(o.precisions), _words(o.tiles), batch, device)
    models, sizes = [parse_model(w) for w in _words(o.models)], [parse_size(w) for w in _words(o.sizes)]
    before = load()
    where = machine(device)
    parts = [" · ".join(f"{k} {v}" for k, v in where.items()), f"load before: {before}"]
    warning = busy(before)
    if warning:
        parts.append(f"warning: {warning}")
    values: dict[str, Any] = {"machine": where, "load_before": before}
    what = _words(o.what)
    for word in what:
        if word not in ("network", "tiling"):
            raise UsageError(f"{word!r} needs the whole package", "streamdeblur benchmark has it")
    if "network" in what:
        found = network(
            models, sizes, ways, device, o.rounds, compare=not o.no_reference, memory=not o.no_memory, tell=log.info
        )
        parts.append(show_network(found))
        values["network"] = found.as_dict()
    if "tiling" in what:
        for size in sizes:
            other = variation(models, size, ways[0].engine, ways[0].precision, device, o.rounds, tell=log.info)
            parts.append(show_tiling(other))
            values.setdefault("tiling", []).append(other.as_dict())
    return "\n\n".join(parts), values


if __name__ == "__main__":
    raise SystemExit(main())
