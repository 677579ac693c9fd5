"""The tile and batch that an engine runs best with on this machine: measured once, kept, followed by ``tiling="auto"``.

A plan is a wish, not an order: where memory is short, tiles are smaller all the same (``memory.choose_tiling``). It
holds for an engine as it shows itself (name, precision, receptive radius, memory for a pixel), on one device, with one
number of CPU threads and these versions; anything else has a plan of its own or none. Tiles overlap as ``fast`` always
does, so results differ from those of other plans by no more than ``fast`` differs from the whole frame. A plan is for
frames of every size: where small ones did best whole, it says nothing of how far that goes.

Kept as JSON in the folder of the engines' cache, safe to delete.
"""

from __future__ import annotations

import importlib.metadata
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from streamdeblur.errors import DeviceError
from streamdeblur.restore.engines import cache, kernels
from streamdeblur.restore.engines.protocol import Engine, facts
from streamdeblur.restore.memory import ACCELERATOR_TILE, FAST_OVERLAP, FAST_TILE, OVERHEAD, Tiling, frame_bytes
from streamdeblur.restore.tiles import GRID, round_up
from streamdeblur.version import __version__

log = logging.getLogger(__name__)

#: Sides of windows that are tried, pixels.
CPU_TILES = (256, 384, 512, 768, 1024, 1536)
ACCELERATOR_TILES = (512, 768, 1024, 1536, 2048, 3072)
#: The least side of a window that a plan may have: below, windows share less than ``fast`` promises.
LEAST_TILE = 4 * FAST_OVERLAP
#: Most pixels of a batch of several windows that are tried: past that nothing is gained but memory spent.
CPU_BATCH = 1 << 20
ACCELERATOR_BATCH = 16 << 20
#: Times so close to the best are as good; the plan that takes least memory is taken.
TIE = 1.03
#: What is so much slower than the best is not timed again.
HOPELESS = 1.3
_ROUNDS = 7

#: Whose versions an engine depends on beside PyTorch's.
_LIBRARIES = {"openvino": "openvino", "onnx": "onnxruntime"}


@dataclass(frozen=True, slots=True)
class Plan:
    """tile: largest side of a window, pixels. batch_pixels: most pixels in one call of the network. in_flight: frames a
    worker in this process holds, None where that was not measured. The rest is for the record: seconds of a frame of
    ``size`` (width, height) by this plan, and when it was measured.
    """

    tile: int
    batch_pixels: int
    in_flight: int | None
    seconds: float
    size: tuple[int, int]
    measured: str


@dataclass(slots=True)
class Trial:
    """One way that was tried. seconds: of a frame, each time; empty where it does not fit or would take too long."""

    tiling: Tiling
    windows: int
    area: int
    bytes: int
    seconds: list[float] = field(default_factory=list)
    left_out: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


def identity(engine: Engine) -> dict[str, Any]:
    """All that a plan depends on; plain values."""
    known = facts(engine)
    return {
        "engine": known.name,
        "precision": known.precision,
        "receptive_radius": engine.receptive_radius,
        "bytes_per_pixel": round(engine.bytes_per_pixel, 3),
        "device": str(engine.device.type),
        "machine": cache.machine(engine.device),
        "threads": torch.get_num_threads() if engine.device.type == "cpu" else None,
        "at_once": known.at_once,
        "streamdeblur": __version__,
        "library": _version(known.name),
    }


def _version(engine: str) -> str | None:
    if engine == "winograd":
        return kernels.loaded_version()
    library = _LIBRARIES.get(engine)
    try:
        return None if library is None else importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def plan_path(engine: Engine) -> Path:
    """Where the plan of an engine is kept, or would be."""
    known = identity(engine)
    digest = cache.key(*(f"{k}={known[k]}" for k in sorted(known)))
    return cache.cache_folder() / "tuning" / f"{known['engine']}-{known['precision']}-{digest}.json"


def known_plan(engine: Engine) -> Plan | None:
    """The plan that was measured for an engine like this one; None where there is none that can be read."""
    path = plan_path(engine)
    found = cache.read_json(path)
    if found is None:
        return None
    try:
        plan = found["plan"]
        width, height = plan["size"]
        in_flight = plan["in_flight"]
        made = Plan(
            int(plan["tile"]),
            int(plan["batch_pixels"]),
            None if in_flight is None else int(in_flight),
            float(plan["seconds"]),
            (int(width), int(height)),
            str(plan["measured"]),
        )
        if found["identity"] != identity(engine) or made.tile < LEAST_TILE or made.batch_pixels < 1:
            raise ValueError("not of this engine")
        if made.in_flight is not None and made.in_flight < 1:
            raise ValueError("no frame in flight")
    except (KeyError, TypeError, ValueError) as e:
        log.debug("%s is no plan: %s", path, e)
        return None
    return made


def keep_plan(engine: Engine, plan: Plan) -> Path:
    """Keep a plan for engines like this one, in place of an earlier one; its file appears as a whole.

    Raises DeviceError where it can't be written.
    """
    path = plan_path(engine)
    try:
        cache.put_json(path, {"identity": identity(engine), "plan": asdict(plan)})
    except OSError as e:
        raise _unwritable(path, e) from e
    return path


def require_place(engine: Engine) -> None:
    """Raise DeviceError where the plan of an engine could not be kept: better before it is measured than after."""
    path = plan_path(engine)
    try:
        with cache.replacing(path.with_name(path.name + ".trial")) as temporary:
            temporary.touch()
        path.with_name(path.name + ".trial").unlink()
    except OSError as e:
        raise _unwritable(path, e) from e


def _unwritable(path: Path, e: OSError) -> DeviceError:
    return DeviceError(
        f"the plan can't be kept in {path}: {e.strerror or e}", "set STREAMDEBLUR_CACHE to a folder that can be written"
    )


def forget_plan(engine: Engine) -> bool:
    """Remove the plan of engines like this one; whether there was one."""
    path = plan_path(engine)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as e:
        raise DeviceError(f"{path} can't be removed: {e.strerror}") from e
    return True


def trials(engine: Engine, size: tuple[int, int], budget: int) -> list[Trial]:
    """What there is to try for frames of ``size`` (width, height) in ``budget`` bytes, small windows first.

    Raises DeviceError where not even the smallest fits.
    """
    width, height = size
    on_cpu = engine.device.type == "cpu"
    found: dict[tuple[tuple[int, int], int], Trial] = {}
    sides = [s for s in (CPU_TILES if on_cpu else ACCELERATOR_TILES) if s < max(size)] + [round_up(max(size))]
    room = budget // facts(engine).at_once - frame_bytes(width, height)
    for side in sides:
        tiling = Tiling("whole" if side >= max(size) else "fast", side, min(FAST_OVERLAP, side // 4 // GRID * GRID))
        plan = tiling.plan(height, width, engine.receptive_radius)
        batch = 1
        while batch <= plan.count:
            even = -(-plan.count // -(-plan.count // batch))  # batches of one frame as even as they can be
            needed = round(plan.area * even * engine.bytes_per_pixel * OVERHEAD)
            if even > 1 and plan.area * even > (CPU_BATCH if on_cpu else ACCELERATOR_BATCH):
                break
            if needed <= room:
                made = Tiling(tiling.mode, tiling.tile, tiling.overlap, even)
                found.setdefault((plan.window, even), Trial(made, plan.count, plan.area, needed))
            batch *= 2
    if not found:
        raise DeviceError(
            f"{budget / 2**20:.0f} MiB hold no window of {sides[0]} px of {width}x{height} for this network",
            "allow more with --memory, free some, or take a smaller model",
        )
    return sorted(found.values(), key=lambda t: (t.area * t.tiling.batch, t.area))


def measure(
    engine: Engine,
    size: tuple[int, int],
    budget: int,
    *,
    seconds: float = 60.0,
    tell: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Plan, list[Trial]]:
    """The best of ``trials`` and all of them, with their times. Nothing is kept.

    seconds: about how long to measure; what an engine does on the first call of a shape is not counted. Each trial is
    one call of the network with one batch of windows (side by side, as many as gain by it), in turns with the others,
    priced for a whole frame.
    """
    found = trials(engine, size, budget)
    inputs: dict[int, torch.Tensor] = {}
    speed: float | None = None  # seconds for a pixel, of the first calls so far
    for trial in found:
        high, wide = trial.tiling.plan(size[1], size[0], engine.receptive_radius).window
        pixels = trial.area * trial.tiling.batch
        if speed is not None and speed * pixels > seconds:
            trial.left_out = f"a call would take about {speed * pixels:.0f} s"
            continue
        tell(f"{trial.tiling.tile} px, {trial.tiling.batch} at once: first call")
        generator = torch.Generator().manual_seed(0)
        batch = torch.rand((trial.tiling.batch, 3, high, wide), generator=generator).to(engine.device)
        try:
            if trial.tiling.batch == 1 and (prepare := getattr(engine, "prepare", None)) is not None:
                prepare(high, wide)
            _call(engine, batch, clock)
            taken = _call(engine, batch, clock)
        except torch.OutOfMemoryError:
            trial.left_out = "out of memory"
            continue
        inputs[id(trial)] = batch
        speed = taken / pixels
        _book(trial, taken)
    running = [t for t in found if t.seconds]
    if not running:
        raise DeviceError(f"no tiling of {size[0]}x{size[1]} can be measured in {seconds:g} s", "take more --seconds")
    begun = clock()
    for n in range(1, _ROUNDS):
        best = _best(running)
        running = [t for t in running if _median(t) <= HOPELESS * _median(best)]
        tell(f"round {n + 1}: {len(running)} of {len(found)} are in it")
        for trial in running:
            _book(trial, _call(engine, inputs[id(trial)], clock))
        if clock() - begun > seconds:
            break
    best = _best(running)
    fine = [t for t in running if _median(t) <= TIE * _median(best)]
    chosen = min(fine, key=lambda t: (t.bytes, _median(t)))
    # Frames that do best whole don't tell which windows larger ones like.
    usual = FAST_TILE if engine.device.type == "cpu" else ACCELERATOR_TILE
    plan = Plan(
        tile=chosen.tiling.tile if chosen.tiling.mode == "fast" else max(chosen.tiling.tile, usual),
        batch_pixels=chosen.area * chosen.tiling.batch,
        in_flight=None,
        seconds=_median(chosen),
        size=size,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return plan, found


def _call(engine: Engine, batch: torch.Tensor, clock: Callable[[], float]) -> float:
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    at_once = facts(engine).at_once
    begun = clock()
    if at_once == 1:
        engine.residual(batch)
    else:
        with ThreadPoolExecutor(at_once) as threads:
            list(threads.map(engine.residual, [batch] * at_once))
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return (clock() - begun) / at_once


def _book(trial: Trial, seconds: float) -> None:
    trial.seconds.append(seconds * trial.windows / trial.tiling.batch)


def _median(trial: Trial) -> float:
    return statistics.median(trial.seconds)


def _best(found: Sequence[Trial]) -> Trial:
    return min(found, key=_median)
