"""All that is measured on this machine, what ``make bench`` runs: python benchmarks/run.py [--quick] [OPTIONS]

First ``streamdeblur benchmark``, with all parts unless --what names some; OPTIONS are its own (docs/cli.md). Then our
training step against the plain eager float32 one, which needs torch, numpy and safetensors only; with --what, only
where ``training`` is among the words.
"""

from __future__ import annotations

import os
import subprocess
import sys

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def value_of(option: str, words: list[str], default: str) -> str:
    """What follows an option on the command line, as ``--what x`` or ``--what=x``."""
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return default


def train(quick: bool, device: str, rounds: int) -> None:
    from training import show_training, training

    from streamdeblur.restore.engines import resolve_device

    on_gpu = resolve_device(device).type == "cuda"
    models = ["mimo-unet-small"] if quick else ["mimo-unet-small", "mimo-unet"]
    batch, crop = (2, 64) if quick else (32 if on_gpu else 4, 256)
    print(f"\n== training\n{show_training(training(models, batch, crop, device, rounds))}", flush=True)


def main(words: list[str]) -> int:
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    what = value_of("--what", words, "all,training").split(",")
    parts = [part for part in what if part != "training"]
    if parts:
        rest = [w for i, w in enumerate(words) if not (w.startswith("--what") or (i and words[i - 1] == "--what"))]
        command = [sys.executable, "-m", "streamdeblur", "benchmark", "--what", ",".join(parts), *rest]
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
    if "training" in what:
        quick = "--quick" in words
        train(quick, value_of("--device", words, "auto"), int(value_of("--rounds", words, "2" if quick else "3")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
