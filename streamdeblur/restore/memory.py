"""How much memory a network needs, how much there is, and the tiling that fits.

On the CPU running out of memory is a kill, not an exception, so tiles are sized beforehand. On CUDA the same sizing
gives a good start and running out is caught (``restorer``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from streamdeblur import heap
from streamdeblur.errors import DeviceError, UsageError
from streamdeblur.restore.tiles import GRID, MODES, TileMode, TilePlan, grid, plan_tiles, round_up

log = logging.getLogger(__name__)

#: Largest share of the free memory that a plan may use: others live on the machine too.
SHARE = 0.5

#: What a run takes over the tensors that ``activation_bytes`` counts: reordered copies, workspaces and fragmentation.
#: Peak resident memory of MIMO-UNet on the CPU, 512x512 and 720x1280 px, over the count: 1.3 to 1.5 times in fp32,
#: 1.7 to 2.4 in bf16; up to 3.1 in a process that had run other sizes before.
OVERHEAD = 3.2

#: Bytes per input pixel and byte of the data type, where a network can't be traced: more than MIMO-UNet needs.
FALLBACK_BYTES_PER_PIXEL = 250.0

#: Assumed where the system does not say what is free.
FALLBACK_FREE = 2 << 30

#: What ``fast`` tiling aims at, and the least that it is squeezed to (pixels).
FAST_TILE = 512
FAST_OVERLAP = 64
LEAST_FAST_TILE = 64

#: Tile of ``fast`` on an accelerator, where a larger one costs little and overlaps less.
ACCELERATOR_TILE = 1024

#: Most pixels of one batch on a CPU, where a larger one only leaves the caches.
CPU_BATCH_PIXELS = 256**2

#: Most pixels of one batch on an accelerator: enough to fill it, and bounded latency and memory.
ACCELERATOR_BATCH_PIXELS = 4 << 20


@dataclass(frozen=True, slots=True)
class Tiling:
    """How frames are cut. Pickles; a driver plans once for a frame size and every worker follows.

    mode: "exact", "fast" or "whole". tile: largest side of a window in pixels; not used by "whole".
    overlap: pixels that neighbours share at least; used by "fast" only ("exact" derives its own from the receptive
    radius). batch: windows in one call of the network.
    """

    mode: TileMode
    tile: int = FAST_TILE
    overlap: int = FAST_OVERLAP
    batch: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"tiling {self.mode!r} is not known", f"choose from {', '.join(MODES)}")
        if self.tile < GRID or self.overlap < 0 or self.batch < 1:
            raise UsageError(
                f"tile {self.tile}, overlap {self.overlap}, batch {self.batch} make no tiling",
                f"give a tile of {GRID} or more, an overlap of 0 or more and a batch of 1 or more",
            )

    def plan(self, height: int, width: int, receptive_radius: int) -> TilePlan:
        """The windows of a frame; raises UsageError where they can't overlap as asked."""
        return plan_tiles(
            height, width, self.tile, receptive_radius if self.mode == "exact" else self.overlap, self.mode
        )


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive after each operation, but for views of ``weights``."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._weights = {w.untyped_storage()._cdata for w in weights}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # PyTorch would load its compiler to keep it out of here: more than a second of every start.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._live = {key: item for key, item in self._live.items() if not item[0].expired()}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata in self._weights:
                    continue
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def activation_bytes(module: nn.Module, dtype: torch.dtype) -> float:
    """Peak bytes of tensors per input pixel while ``module.residual`` runs in inference mode with that data type.

    Runs the module once as it is on a small picture, and scales to ``dtype``: tens of milliseconds, half a second and
    more for self-ensembles. The meta device would do without arithmetic, but its operations load PyTorch's compiler,
    more than a second of every start.
    Weights are not in it. Linear in batch and area for any convolutional network.
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    run: Any = module
    weights = [*module.parameters(), *module.buffers()]
    for side in (32, 128):
        try:
            with torch.inference_mode(), _LiveBytes(weights) as count:
                run.residual(torch.zeros((1, 3, side, side), device=like.device, dtype=like.dtype))
        except Exception as e:  # too small a picture for it, or a device that lacks an operation
            log.debug("a network can't be counted on %dx%d pixels: %s", side, side, e)
        else:
            return float(count.peak) / side**2 * dtype.itemsize / like.element_size()
    return FALLBACK_BYTES_PER_PIXEL * dtype.itemsize


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _cgroups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """(folder, limit file, usage file) of every control group that may bound this process, up to the top."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    # Inside a container the path is often the host's and not visible; its own group is then the mount's top.
    for line in [*lines, "0::/", "0:memory:/"]:
        _, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if controllers == "":
            base, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        relative = Path(name.strip("/"))
        for part in (relative, *relative.parents):
            yield base / part, limit, usage


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: the least of what the system has and each control group (v1, v2) leaves.

    root: where proc and sys are mounted. Memory that the kernel can drop at once (page cache) counts as free.
    Falls back to half of the physical memory, then to a constant, where the system does not say.
    """
    candidates = []
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        candidates += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    if not candidates:
        try:
            candidates.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
        except (AttributeError, OSError, ValueError):
            candidates.append(FALLBACK_FREE)
    for folder, limit_file, usage_file in _cgroups(root):
        limit, usage = _number(folder / limit_file), _number(folder / usage_file)
        if limit is None or usage is None:
            continue
        cache = 0
        try:
            for line in (folder / "memory.stat").read_text().splitlines():
                if line.startswith(("inactive_file ", "total_inactive_file ")):
                    cache = max(cache, int(line.split()[1]))
        except (OSError, ValueError, IndexError):
            pass
        candidates.append(max(0, limit - max(0, usage - cache)))
    return min(candidates)


def own_memory(device: torch.device) -> int:
    """Bytes that this process has taken of a device's memory: resident, or allocated on CUDA; 0 where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    heap.give_back()  # what earlier work left with this process is not taken
    return heap.resident()


def frame_bytes(width: int, height: int) -> int:
    """What a frame takes beside the network's tensors: itself, padded, its correction and a temporary of each, fp32."""
    return round_up(height) * round_up(width) * 3 * 4 * 4


def job_bytes(width: int, height: int) -> int:
    """What a job holds of frames of this size outside of the restorer, generously: what is in flight between its
    threads (a dozen frames), and what decoder and encoder look back and ahead (x264 at preset medium: 50 frames).
    """
    return 120 * height * width


def device_budget(device: torch.device, workers: int = 1, limit: int | None = None, taken: int = 0) -> int:
    """Bytes that one of ``workers`` alike on a device may plan with.

    limit: that all of them together may take, None for a share of what is free. taken: what each of them takes of it
    anyhow (libraries, weights, its decoder and encoder). Raises DeviceError where nothing is left.
    """
    workers = max(1, workers)
    if limit is None:
        return int(_free(device) * SHARE) // workers
    left = min(limit // workers - taken, _free(device) // workers)
    if left <= 0:
        given = f"{limit / 1e6:,.0f} MB of memory" + (f" for {workers} workers" if workers > 1 else "")
        raise DeviceError(
            f"{given}, and {taken / 1e6:,.0f} MB are taken without the network" + (" by each" if workers > 1 else ""),
            "allow more with --memory",
        )
    return left


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the caching allocator holds and does not use is as good as free.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    heap.give_back()  # what earlier frames left with this process is free, too
    return free_memory()


def _window(size: tuple[int, int], tile: int, shared: int) -> tuple[int, int] | None:
    """(pixels of one window, windows), or None where no plan has such windows."""
    try:
        (rows, high), (columns, wide) = (grid(length, tile, shared) for length in size)
    except UsageError:
        return None
    return high * wide, rows * columns


def _exact_tile(size: tuple[int, int], radius: int, room: float) -> int | None:
    """The tile that costs least among those that fit."""
    shared = 2 * round_up(radius)
    best: tuple[int, int] | None = None
    for tile in range(round_up(max(size)), shared, -GRID):
        window = _window(size, tile, shared)
        if window is not None and window[0] <= room and (best is None or window[0] * window[1] <= best[0]):
            best = window[0] * window[1], tile
    return None if best is None else best[1]


def choose_tiling(
    height: int,
    width: int,
    *,
    mode: str,
    radius: int,
    bytes_per_pixel: float,
    budget: int,
    accelerator: bool,
    tile: int | None = None,
    batch_pixels: int | None = None,
) -> Tiling:
    """The tiling of a frame for the memory there is.

    mode: "auto", "exact", "fast" or "whole". "auto" takes the frame whole where it is small enough to gain nothing from
    tiles, else "fast". "whole" becomes "exact" (the same result) where the frame does not fit.
    radius: the network's receptive radius, pixels. bytes_per_pixel: of activations (``activation_bytes``).
    budget: bytes that may be used (``device_budget``). accelerator: batches and tiles for a GPU, not for a CPU.
    tile: largest side of a window that the engine likes, pixels; None takes that of the kind of device.
    batch_pixels: most pixels of one call that were found to be best (``tuning``); None takes what such devices like.
    Raises DeviceError where even the smallest tile does not fit, UsageError for an unknown mode.
    """
    if mode != "auto" and mode not in MODES:
        raise UsageError(f"tiling {mode!r} is not known", f"choose from auto, {', '.join(MODES)}")
    size, pixels = (height, width), round_up(height) * round_up(width)
    room = (budget - frame_bytes(width, height)) / max(1.0, bytes_per_pixel * OVERHEAD)
    wished = tile or (ACCELERATOR_TILE if accelerator else FAST_TILE)
    if mode in ("auto", "whole"):
        small = ACCELERATOR_BATCH_PIXELS if accelerator and batch_pixels is None else wished**2
        limit = room if mode == "whole" else min(room, small)
        if pixels <= limit:
            return Tiling("whole", tile=round_up(max(size)), overlap=0)
        mode = "exact" if mode == "whole" else "fast"
    most = batch_pixels or (ACCELERATOR_BATCH_PIXELS if accelerator else CPU_BATCH_PIXELS)
    if mode == "exact":
        best = _exact_tile(size, radius, room)
        if best is None:
            raise DeviceError(
                f"{budget / 2**20:.0f} MiB hold no window of {width}x{height} that an exact result needs "
                f"(receptive radius {radius} px)",
                "take --tiling fast, a smaller model or less work beside it",
            )
        return _with_batch(Tiling("exact", best, 0), size, radius, room, most)
    side = wished
    while True:
        overlap = min(FAST_OVERLAP, side // 4 // GRID * GRID)
        window = _window(size, side, overlap)
        if window is not None and window[0] <= room:
            return _with_batch(Tiling("fast", side, overlap), size, radius, room, most)
        if side <= LEAST_FAST_TILE:
            raise DeviceError(
                f"{budget / 2**20:.0f} MiB hold not even a tile of {side} px of {width}x{height}",
                "allow or free some memory, or take a smaller model",
            )
        side = max(LEAST_FAST_TILE, side * 3 // 4 // GRID * GRID)


def _with_batch(tiling: Tiling, size: tuple[int, int], radius: int, room: float, most: int) -> Tiling:
    """The tiling with as many windows in a batch as fill the device, evenly over the batches of one frame."""
    window = _window(size, tiling.tile, 2 * round_up(radius) if tiling.mode == "exact" else tiling.overlap)
    assert window is not None
    area, count = window
    batch = max(1, min(count, int(min(most, room) // area)))
    return replace(tiling, batch=-(-count // -(-count // batch)))


def shrink(tiling: Tiling, height: int, width: int, *, radius: int, keep_exact: bool) -> Tiling | None:
    """What to try after running out of memory: half the batch, then half the tile; None when nothing smaller is left.

    keep_exact: a result equal to the whole frame's was asked for, so "whole" may only become "exact".
    """
    if tiling.batch > 1:
        return replace(tiling, batch=tiling.batch // 2)
    plan = tiling.plan(height, width, radius)
    if tiling.mode == "exact" or (tiling.mode == "whole" and keep_exact):
        for share in (0.5, 0.75):  # half the area need not exist: windows are larger than what they share
            tile = _exact_tile((height, width), radius, plan.area * share)
            if tile is not None:
                return Tiling("exact", tile, 0)
        return None
    half = max(plan.window) // 2 // GRID * GRID
    if half < GRID:
        return None
    return Tiling("fast", half, min(tiling.overlap or FAST_OVERLAP, half // 4 // GRID * GRID))
