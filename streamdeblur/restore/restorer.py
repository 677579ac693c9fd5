"""From a frame or an image tensor to its correction, whatever its size, field order or colour."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from streamdeblur.color import planes_to_rgb, rgb_correction_to_planes
from streamdeblur.errors import DeviceError, UsageError, WeightsError
from streamdeblur.frames import Array, ColorSpec, Frame, correction_dtype
from streamdeblur.models import registry
from streamdeblur.models.analysis import flop_per_pixel
from streamdeblur.restore.blend import Canvas, pad_frame
from streamdeblur.restore.composer import plane_part
from streamdeblur.restore.cover import Box
from streamdeblur.restore.engines import Engine, build_engine, facts, resolve_device, share
from streamdeblur.restore.engines.streams import give_back_memory, own_stream
from streamdeblur.restore.memory import FAST_TILE, Tiling, choose_tiling, device_budget, job_bytes, own_memory, shrink
from streamdeblur.restore.planner import Region
from streamdeblur.restore.tiles import MODES, TilePlan
from streamdeblur.restore.tuning import known_plan

log = logging.getLogger(__name__)


class Restorer:
    """Deblurs images and frames of any size.

    model: a name of ``models.registry``; None takes the checkpoint's own variant, or without ``weights`` what ships.
    weights: a checkpoint file or "random:SEED". device: "auto", "cpu", "cuda", "cuda:N", "mps".
    precision: "auto", "fp32", "bf16", "fp16", "int8": data type of weights and activations; the image stays float32.
    tiling: "auto", "exact" (equals the whole frame to float rounding), "fast" (less overlap, blended), "whole", or a
    ``Tiling``, which is followed as it is. The words are turned into sizes for each frame size, from what memory is
    free at its first frame; a driver with several workers calls ``plan`` once and hands its result to all of them.
    engine: "auto" (the fastest that is there) or a word of ``engines.ENGINES``; or an ``Engine`` of the caller's, and
    then model, weights, device and precision are its own business.
    pixels: input pixels that it will be given in all, if known: "auto" prepares an engine for long where that pays.
    memory: bytes that it may take on its device, or on the CPU this process with it; None for half of what is free.
    Tiles and batches are sized for it. All workers alike share it (``plan``).

    Raises UsageError for unknown words, WeightsError for anything about weights, DeviceError where device or memory are
    not there. Calls from several threads are safe; what they gain, ``share`` tells.

    Results depend on the tiling, the device and the precision, not on how many workers there are or which of them ran.
    On the CPU in fp32 they depend on PyTorch's number of threads as well: for some sizes oneDNN then sums in another
    order (differences near 1e-5 of a code value, so a rounding may rarely fall the other way). Workers that must agree
    to the bit get one ``Tiling`` and one number of threads.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        weights: str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: str = "auto",
        tiling: str | Tiling = "auto",
        engine: str | Engine = "auto",
        pixels: int | None = None,
        memory: int | None = None,
    ) -> None:
        if not isinstance(model, str | None):
            raise UsageError(f"model {model!r} is no name", "choose one of `streamdeblur models`")
        if not isinstance(memory, int | None):
            raise UsageError(f"memory {memory!r} is no number of bytes", "give a whole number")
        if not isinstance(tiling, str | Tiling):
            raise UsageError(f"tiling {tiling!r} is not known", f"choose from auto, {', '.join(MODES)}, or a Tiling")
        if isinstance(tiling, str) and tiling != "auto" and tiling not in MODES:
            raise UsageError(f"tiling {tiling!r} is not known", f"choose from auto, {', '.join(MODES)}")
        if not isinstance(engine, str) and (model is not None or weights is not None):
            raise UsageError("an engine brings its own model and weights", "give either of the two")
        if isinstance(engine, str):
            place = resolve_device(device)
            network = registry.build(model, weights)
            flop = None if pixels is None else pixels * flop_per_pixel(network)
            engine = build_engine(network, engine=engine, device=place, precision=precision, flop=flop)
        self._engine = engine
        self._tiling = tiling
        self._memory = memory
        # Now, before any frame: later on this would count what earlier sizes have left with the allocator.
        self._own = own_memory(engine.device)
        if memory is not None and isinstance(tiling, str):
            device_budget(engine.device, 1, memory, self._own)  # too little for any frame: better said now
        self._chosen: dict[tuple[int, int], Tiling] = {}
        self._lock = threading.Lock()
        self._said = False
        self._callers = 1
        self._each: int | None = None  # PyTorch's threads for each of several callers

    @property
    def engine(self) -> Engine:
        return self._engine

    def share(self) -> int:
        """Tell that several threads will call at once; how many calls at a time are faster than one after the other.

        To be called before the first frame; every call then takes its share of the CPU threads. Results stay
        the same in bf16 and int8; in fp32 they are those of a restorer with that many threads.
        """
        callers = self._callers = share(self._engine)
        if callers > 1:
            self._each = max(1, torch.get_num_threads() // callers)
        return callers

    def __call__(self, x: Tensor) -> Tensor:
        """The restored images: float32, the shape and device of ``x``, unclamped.

        x: (N, 3, H, W), any float type, R'G'B' nominally in [0, 1], any H and W from 1. Each image of a batch is
        restored apart; NaN and infinities spread as far as the receptive field. Raises ValueError on anything else.
        """
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != 3 or 0 in x.shape:
            shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"expected images of (N, 3, H, W), got {shape}")
        if not x.is_floating_point():
            raise ValueError(f"expected float RGB in [0, 1], got {x.dtype}: divide by its largest value first")
        # not inference_mode: the result is the caller's, who may train with it
        with self._own_threads(), torch.no_grad():
            image = x.to(self._engine.device, torch.float32)
            return (image + self._correction(image)).to(x.device)

    def correction(self, frame: Frame, regions: Sequence[Region] | None = None) -> tuple[Array, ...]:
        """What to add to the colour planes of a frame (``frames.apply_correction``): integers, one array a plane.

        regions: compute only these (``planner``); then the kept part of each, one array a plane, region after region.
        Fields of an interlaced frame are pictures of different moments: each is restored by itself.
        Raises DeviceError where the precision overflowed, WeightsError where the weights make no numbers.
        """
        with self._own_threads(), own_stream(self._engine.device):
            return self._restored(frame, regions)

    def _restored(self, frame: Frame, regions: Sequence[Region] | None) -> tuple[Array, ...]:
        color = frame.spec.color
        planes = frame.planes[: color.color_planes]
        if regions is not None:
            return tuple(part for region in regions for part in self._region(planes, color, region))
        if frame.spec.field_order == "progressive":
            return self._picture(planes, color)
        result = tuple(np.zeros(p.shape, correction_dtype(color.depth)) for p in planes)
        for parity in (0, 1):
            field = tuple(p[parity::2] for p in planes)
            if field[0].shape[0]:
                for whole, part in zip(result, self._picture(_complete(field, color), color), strict=True):
                    target = whole[parity::2]
                    target[...] = part[: target.shape[0]]
        return result

    def prepare(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Get ready for windows of these sizes (height, width; multiples of 4), where the engine can: it compiles
        something for each, which the first frame that has one would wait for.
        """
        ready = getattr(self._engine, "prepare", None)
        if ready is None:
            return
        try:
            for height, width in sizes:
                ready(height, width)
        except torch.OutOfMemoryError:  # frames find smaller tiles
            log.debug("no memory to get ready for windows", exc_info=True)
            give_back_memory(self._engine.device)

    @contextlib.contextmanager
    def _own_threads(self) -> Iterator[None]:
        """Each of several callers on its share of PyTorch's threads: more would only wait for each other."""
        before = torch.get_num_threads()  # of this thread
        if self._each is None or before == self._each:
            yield
            return
        torch.set_num_threads(self._each)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _region(self, planes: tuple[Array, ...], color: ColorSpec, region: Region) -> list[Array]:
        if region.parity is not None:
            planes = _complete(tuple(p[region.parity :: 2] for p in planes), color)
        w, k = region.window, region.kept
        window = tuple(p[plane_part(w, color, n, p.shape)] for n, p in enumerate(planes))
        inside = Box(k.top - w.top, k.left - w.left, k.bottom - w.top, k.right - w.left)
        parts = self._picture(window, color)
        return [np.ascontiguousarray(c[plane_part(inside, color, n, c.shape)]) for n, c in enumerate(parts)]

    def plan(self, height: int, width: int, *, workers: int = 1) -> Tiling:
        """The tiling of frames (or fields) of this size with what memory is free now, and within ``memory``.

        "auto" follows what was measured for such an engine on this machine, if anything was (``tuning``).
        workers: how many restorers alike share the device's memory. After ``share`` each of the callers has a frame.
        Raises DeviceError where there is too little.
        """
        if isinstance(self._tiling, Tiling):
            return self._tiling
        device = self._engine.device
        tuned = known_plan(self._engine) if self._tiling == "auto" else None
        wished = tuned.tile if tuned is not None else facts(self._engine).tile
        taken = self._own + (job_bytes(width, height) if device.type == "cpu" else 0)
        chosen = choose_tiling(
            height,
            width,
            mode=self._tiling,
            radius=self._engine.receptive_radius,
            bytes_per_pixel=self._engine.bytes_per_pixel,
            budget=device_budget(device, workers, self._memory, taken) // self._callers,
            accelerator=device.type != "cpu",
            tile=wished,
            batch_pixels=None if tuned is None else tuned.batch_pixels,
        )
        if tuned is not None:
            log.debug("%dx%d is tiled as tuned on %s: %s", width, height, tuned.measured, chosen)
        small = chosen.mode == "fast" and chosen.tile < min(FAST_TILE, wished or FAST_TILE)
        if self._memory is None and (small or (self._tiling == "whole" and chosen.mode != "whole")):
            self._say(
                f"little free memory on {device}: {width}x{height} goes in {chosen.mode} tiles of {chosen.tile} px"
            )
        return chosen

    def _say(self, text: str) -> None:
        with self._lock:
            first, self._said = not self._said, True
        log.log(logging.WARNING if first else logging.DEBUG, text)

    def _picture(self, planes: tuple[Array, ...], color: ColorSpec) -> tuple[Array, ...]:
        with torch.inference_mode():
            delta = self._correction(planes_to_rgb(planes, color, self._engine.device))
            if not math.isfinite(float(delta.sum())):
                if facts(self._engine).precision == "fp16":
                    raise DeviceError("the network overflowed in fp16", "take --precision bf16 or fp32")
                raise WeightsError("the network's correction is not finite", "check the weights")
            return rgb_correction_to_planes(delta, color, [p.shape for p in planes])

    def _correction(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 on the engine's device → its correction, likewise."""
        height, width = image.shape[-2:]
        with self._lock:
            tiling = self._chosen.get((height, width))
        if tiling is None:
            tiling = self.plan(height, width)
        first = tiling
        while True:
            result = self._attempt(image, tiling)
            if result is not None:
                break
            keep_exact = (self._tiling.mode if isinstance(self._tiling, Tiling) else self._tiling) in ("exact", "whole")
            smaller = shrink(tiling, height, width, radius=self._engine.receptive_radius, keep_exact=keep_exact)
            if smaller is None:
                raise DeviceError(
                    f"{self._engine.device} has no memory for {width}x{height}, not even with {tiling}",
                    "take --tiling fast, a smaller model, or free memory on it",
                )
            tiling = smaller
        if tiling != first:
            self._say(f"out of memory on {self._engine.device} with {first}: goes on with {tiling}")
        with self._lock:
            self._chosen[height, width] = tiling
        return result

    def _attempt(self, image: Tensor, tiling: Tiling) -> Tensor | None:
        """The correction, or None where the device ran out of memory."""
        plan = tiling.plan(image.shape[-2], image.shape[-1], self._engine.receptive_radius)
        try:
            return self._run(image, plan, tiling.batch)
        except torch.OutOfMemoryError:
            pass
        # Out of the handler: while it runs, the traceback holds the tensors of the attempt.
        give_back_memory(self._engine.device)
        return None

    def _run(self, image: Tensor, plan: TilePlan, batch: int) -> Tensor:
        padded = pad_frame(image, plan.padded)
        high, wide = plan.window
        canvas = Canvas(plan, image.shape[0], image.device)
        jobs = [(n, row, column) for n in range(image.shape[0]) for row, column in plan.windows]
        for start in range(0, len(jobs), batch):
            part = jobs[start : start + batch]
            windows = [padded[n, :, r.origin : r.origin + high, c.origin : c.origin + wide] for n, r, c in part]
            residual = self._engine.residual(torch.stack(windows) if len(windows) > 1 else windows[0][None])
            for (n, row, column), one in zip(part, residual, strict=True):
                canvas.add(n, row, column, one)
        return canvas.correction


def _complete(field: tuple[Array, ...], color: ColorSpec) -> tuple[Array, ...]:
    """A field's planes with the rows that a picture of its height has: its last chroma row repeated where it lacks one.

    In 4:2:0 with 6 rows, say, the lower field gets 3 rows of luma and 1 of chroma. A field without any chroma is gray.
    """
    height, width = field[0].shape
    planes = []
    for plane, (rows, columns) in zip(field, color.plane_shapes(width, height), strict=False):
        missing = rows - plane.shape[0]
        if missing > 0:
            last = plane[-1:] if plane.shape[0] else np.full((1, columns), 1 << (color.depth - 1), plane.dtype)
            plane = np.concatenate((plane, np.repeat(last, missing, axis=0)))
        planes.append(plane)
    return tuple(planes)


@dataclass(frozen=True, slots=True)
class RestorerSpec:
    """How to build a restorer in another process: plain values that pickle. See ``Restorer`` for their meaning.

    threads: CPU threads of PyTorch, set for the whole process that builds; None leaves them as they are. Workers with
    the same number agree to the bit.
    """

    model: str | None = None
    weights: str | None = None
    device: str = "auto"
    precision: str = "auto"
    tiling: str | Tiling = "auto"
    threads: int | None = None
    engine: str = "auto"
    pixels: int | None = None
    memory: int | None = None

    def build(self) -> Restorer:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return Restorer(
            self.model,
            weights=self.weights,
            device=self.device,
            precision=self.precision,
            tiling=self.tiling,
            engine=self.engine,
            pixels=self.pixels,
            memory=self.memory,
        )
