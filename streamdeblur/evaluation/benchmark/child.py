"""``python -m streamdeblur.evaluation.benchmark.child``: the process that measures the memory of one way."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from streamdeblur.errors import StreamdeblurError
from streamdeblur.evaluation.benchmark.machine import peak_memory
from streamdeblur.evaluation.benchmark.pictures import picture
from streamdeblur.evaluation.benchmark.timing import synchronise
from streamdeblur.evaluation.benchmark.ways import Builder, Model, Way


def network(
    model: str,
    weights: str | None,
    size: tuple[int, int],
    way: dict[str, Any],
    device_name: str,
    threads: int | None = None,
) -> dict[str, Any]:
    """Peak of a process that restores two frames, or twice as many as it does at once; and what it had with the engine
    built and the frame made. threads: of PyTorch on the CPU.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device(device_name)
    image = picture(size[1], size[0]).to(device)
    built = Builder(Model(model, weights), device_name).build(Way(**way), (size[0], size[1]), device)
    synchronise(device)
    start = peak_memory(device)
    for _ in range(2):
        built.together(image)
    synchronise(device)
    return {"start_bytes": start, "peak_bytes": peak_memory(device)}


def main(arguments: list[str]) -> int:
    """Write the result, or the error, as one line of JSON; the exit code."""
    try:
        told = {"network": network}[arguments[0]](*json.loads(arguments[1]))
    except StreamdeblurError as e:
        told = {"error": str(e)}
    sys.stdout.write(f"\n{json.dumps(told)}\n")
    return 1 if "error" in told else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
