"""The machine's ceiling: how many operations a second a large matrix product reaches, in the arithmetic of a way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from streamdeblur.evaluation.benchmark.timing import synchronise

#: Sides of the products that are tried; small ones leave units idle, large ones leave caches.
_SIDES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384), "mps": (1024, 2048, 4096)}
#: Seconds that one call should take at least, so that the clock and the first touch of memory don't matter.
_LEAST = 0.1

_TYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix product to be called, ``flop`` operations each time (a multiply-add counts as two)."""

    precision: str
    side: int
    repeats: int
    call: Callable[[], None]

    @property
    def flop(self) -> float:
        return 2.0 * self.side**3 * self.repeats


def product(precision: str, device: torch.device, *, sides: tuple[int, ...] | None = None) -> Product | None:
    """The square product that runs best there in "fp32", "tf32", "bf16", "fp16" or "int8"; None where none runs."""
    best: tuple[float, int, Callable[[], None], float] | None = None
    for side in sides or _SIDES.get(device.type, _SIDES["cpu"]):
        try:
            once = _one(precision, device, side)
            if once is None:
                return None
            once()
            taken = _seconds(once, device)
            if taken < 0.5:
                taken = min(taken, _seconds(once, device))
        except RuntimeError:  # too large for the memory, or not built for this processor
            break
        rate = side**3 / taken
        if best is None or rate > best[0]:
            best = rate, side, once, taken
        if taken > 2.0:
            break  # a slow machine: larger ones would only take longer
    if best is None:
        return None
    _, side, once, taken = best
    repeats = max(1, round(_LEAST / taken))

    def call() -> None:
        for _ in range(repeats):
            once()

    return Product(precision, side, repeats, call)


def _one(precision: str, device: torch.device, side: int) -> Callable[[], None] | None:
    if precision == "int8":
        return _int8(device, side)
    if precision not in _TYPES:
        return None
    a, b = (torch.randn(side, side, device=device).to(_TYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)
    rounded = precision == "tf32"

    def call() -> None:
        with torch.inference_mode():
            if device.type != "cuda":
                torch.mm(a, b, out=out)
                return
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high" if rounded else "highest")
            try:
                torch.mm(a, b, out=out)
            finally:
                torch.set_float32_matmul_precision(before)

    return call


def _int8(device: torch.device, side: int) -> Callable[[], None] | None:
    multiply = getattr(torch, "_int_mm", None)  # the one integer product that PyTorch has; not on every device
    if multiply is None:
        return None
    a, b = (torch.randint(-99, 99, (side, side), dtype=torch.int8, device=device) for _ in range(2))
    right: Tensor = b.t()

    def call() -> None:
        multiply(a, right)

    return call


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    synchronise(device)
    begun = time.perf_counter()
    call()
    synchronise(device)
    return max(time.perf_counter() - begun, 1e-9)
