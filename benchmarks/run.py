"""Measure speed and quality on this machine: what ``make bench`` runs.

    python benchmarks/run.py [network] [tiling] [job] [pools] [training] [--quick] [--json] [--device cuda]

network  the usual loop of research code against Restorer, side by side
tiling   exact, fast and whole: time, memory, and how far the results lie apart
job      the whole of process_video against the corrections alone
pools    process_video in this process and on Ray actors
training our training step against the plain eager float32 one

Ways that are compared run in turns in one process, each once beforehand, with the device synchronised around every
call. Figures are medians (least–most). Weights are random: arithmetic and memory do not depend on them, the
differences between tilings do. ``network``, ``tiling`` and ``training`` need torch, numpy and safetensors only.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from measure import load, machine, plain

from streamdeblur.restore.engine import resolve_device

Measured = tuple[dict[str, Any], str]

#: (tile, overlap) of ``fast``; the first is what ``auto`` takes on a CPU.
FULL_CHOICES = [(512, 64), (256, 64), (256, 32), (128, 32)]
QUICK_CHOICES = [(256, 64), (256, 32), (128, 32)]


def run_network(o: argparse.Namespace) -> Measured:
    from network import network, show_network

    sizes = [(320, 180)] if o.quick else [(640, 360), (1280, 720)]
    result = network(["mimo-unet-small", "mimo-unet"], sizes, o.device, o.rounds)
    return result, show_network(result)


def run_tiling(o: argparse.Namespace) -> Measured:
    from network import show_tiling, tiling

    models = ["mimo-unet-small"] if o.quick else ["mimo-unet-small", "mimo-unet"]
    size, choices = ((480, 272), QUICK_CHOICES) if o.quick else ((768, 432), FULL_CHOICES)
    result = tiling(models, size, choices, o.device, o.rounds)
    return result, show_tiling(result)


def run_job(o: argparse.Namespace) -> Measured:
    from job import job, show_job

    cases = [("identity", 30), ("mimo-unet-small", 8)] if o.quick else [("identity", 120), ("mimo-unet-small", 30)]
    result = job(cases, (320, 180) if o.quick else (640, 360), o.device, o.rounds)
    return result, show_job(result)


def run_pools(o: argparse.Namespace) -> Measured:
    from job import pools, show_pools

    frames, size = (8, (320, 180)) if o.quick else (30, (640, 360))
    result = pools("mimo-unet-small", frames, size, [1, 2], o.device, o.rounds)
    return result, show_pools(result)


def run_training(o: argparse.Namespace) -> Measured:
    from training import show_training, training

    on_gpu = resolve_device(o.device).type == "cuda"
    models = ["mimo-unet-small"] if o.quick else ["mimo-unet-small", "mimo-unet"]
    batch, crop = (2, 64) if o.quick else (32 if on_gpu else 4, 256)
    result = training(models, batch, crop, o.device, o.rounds)
    return result, show_training(result)


SECTIONS: dict[str, Callable[[argparse.Namespace], Measured]] = {
    "network": run_network,
    "tiling": run_tiling,
    "job": run_job,
    "pools": run_pools,
    "training": run_training,
}


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"default: all of {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="small pictures, two rounds")
    parser.add_argument("--rounds", type=int, help="measured calls of each way, at least. Default: 3, quick 2")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of tables")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section {unknown[0]!r}: choose from {', '.join(SECTIONS)}")
    if options.rounds is None:
        options.rounds = 2 if options.quick else 3
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} measures nothing: give 1 or more")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")

    where = machine(resolve_device(options.device))
    settings = {"command": " ".join(["benchmarks/run.py", *(arguments or sys.argv[1:])]), "rounds": options.rounds}
    if not options.json:
        print(" · ".join(f"{k} {v}" for k, v in where.items()))
        print(" · ".join(f"{k} {v}" for k, v in settings.items()), flush=True)
    report: dict[str, Any] = {"machine": where, "settings": settings, "sections": {}}
    for name in dict.fromkeys(options.sections or SECTIONS):
        before, start = load(), time.perf_counter()
        result, text = SECTIONS[name](options)
        took = time.perf_counter() - start
        report["sections"][name] = {**result, "seconds": took, "load_before": before}
        if not options.json:
            busy = ": others are at work, figures are unreliable" if before > where["cores"] + 1 else ""
            print(f"\n== {name} (took {took:.0f} s, load before {before}{busy})\n{text}", flush=True)
    if options.json:
        print(json.dumps(plain(report), indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
