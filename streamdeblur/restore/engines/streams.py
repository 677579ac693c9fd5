"""CUDA streams: each thread that restores has one of its own, so that the copies of one frame run beside the kernels of
another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Threads that restore at once on a CUDA device: while one waits for its frame's kernels, the other's frame goes up.
AT_ONCE = 2

_mine = threading.local()

#: Held while a CUDA graph is captured: PyTorch captures one at a time in a process, and asserts that no cached memory
#: is given back meanwhile.
capturing = threading.Lock()


def give_back_memory(device: torch.device) -> None:
    """What PyTorch holds of a CUDA device's memory and nobody uses goes back to it. Nothing for other devices."""
    if device.type == "cuda":
        with capturing:
            torch.cuda.empty_cache()


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """What this thread does on the device meanwhile goes to its own stream, after what was asked of the default one
    before (weights that were moved there). Nothing for devices that are no CUDA devices.

    Results must have left the device, or be waited for, before it ends.
    """
    if device.type != "cuda":
        yield
        return
    streams: dict[torch.device, torch.cuda.Stream] = _mine.__dict__.setdefault("streams", {})
    stream = streams.get(device)
    if stream is None:
        stream = streams[device] = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield
