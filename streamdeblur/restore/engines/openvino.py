"""OpenVINO on the CPU: its own graph compiler, bf16 on AMX, int8 through NNCF.

The network is exported once with free batch, height and width, and kept as OpenVINO's IR in the cache folder. A graph
compiled for one shape is the fastest, and takes 0.3 s to compile: frames and large tiles get theirs when they are first
seen. Small windows, of which ``--reuse`` makes many shapes, begin with one graph for them all, with the same bits; a
shape that has kept it busy for a while gets a graph of its own then.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamdeblur.models.base import ResidualModel
from streamdeblur.models.export import export_program, quantize, require, to_openvino
from streamdeblur.models.trial import fingerprint, leaves
from streamdeblur.restore.engines import cache
from streamdeblur.restore.engines.devices import PRECISIONS, bf16_pays
from streamdeblur.restore.engines.fused import CPU_TILE, cpu_callers
from streamdeblur.restore.memory import activation_bytes

log = logging.getLogger(__name__)

#: Bytes below which a disk counts as full: what a stream holds back before it writes.
_ROOM = 1 << 20

Requests = queue.SimpleQueue[Any]  # infer requests of one compiled graph that nobody uses


class Compiled(NamedTuple):
    """Requests of a compiled graph, and the seconds that compiling took."""

    idle: Requests
    seconds: float


#: Compiled shapes kept at most: a video has one, with ``--reuse`` the window sizes of ``restore.cover`` (25) more; a
#: folder of pictures may have many.
_SHAPES = 32

#: Windows of at most so many pixels begin with the graph for any shape. It plans no buffers, so large ones would take
#: more memory than was counted for.
_SMALL = 256 * 256

#: Seconds of a shape in that graph until one of its own is worth compiling: it would have been 4 to 20 % faster.
_WORTH = 2.0

#: Shapes that the graph for any keeps something prepared for; without a limit its memory grows by 3 MiB for each.
_MET = 64

#: Its memory over ``activation_bytes``, in units of ``memory.OVERHEAD``: buffers are planned beforehand.
_FRUGALITY = 0.45

_HINTS = {"fp32": "f32", "bf16": "bf16"}


def version() -> str:
    """Of the library. Raises UsageError where it is not installed."""
    return str(require("openvino", "openvino").__version__)


def graph_path(print_: str, *, int8: bool = False) -> Path:
    """Where the graph of the model with this fingerprint is kept, or would be."""
    digest = cache.key(print_, torch.__version__, version())
    return cache.cache_folder() / "openvino" / f"{digest}{'-int8' if int8 else ''}.xml"


def is_ready(print_: str, *, int8: bool = False) -> bool:
    """Whether the graph is in the cache, so that the engine starts at once."""
    path = graph_path(print_, int8=int8)
    return path.is_file() and path.with_suffix(".bin").is_file()


def save_graph(graph: Any, path: Path, *, half: bool = False) -> None:
    """Write an ``openvino.Model`` as ``path`` (.xml) and its weights beside it (.bin). Raises OSError.

    half: weights of fp16. The weights come into place before the graph does: whoever finds the graph finds both.
    """
    openvino = require("openvino", "openvino")
    with cache.replacing(path) as xml:
        weights = xml.with_suffix(".bin")
        try:
            try:
                openvino.save_model(graph, xml, compress_to_fp16=half)
            except RuntimeError as e:  # says no more than that a stream failed
                if shutil.disk_usage(path.parent).free < _ROOM:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from e
                raise
            weights.replace(path.with_suffix(".bin"))
        finally:
            weights.unlink(missing_ok=True)


def default_calibration() -> list[Tensor]:
    """What int8 is calibrated on where nothing better is given: rendered pictures, blurred."""
    return [leaves(192, 256, seed) for seed in range(24)]


def calibrate(model: ResidualModel, calibration: Sequence[Tensor]) -> Any:
    """The int8 graph of a model. Not kept: calibrated on the wrong pictures it restores nothing."""
    return quantize(_graph(model, fingerprint(model)), calibration)


def keep_int8(model: ResidualModel, graph: Any) -> None:
    """Put what ``calibrate`` made of a model into the cache, where ``OpenVINOEngine`` of this model will find it."""
    _keep(graph, graph_path(fingerprint(model), int8=True))


def int8_contents(print_: str) -> str | None:
    """A name for the int8 graph that is kept, another one for each calibration; None where there is none or a damaged
    one. Verdicts go by it: of one set of weights there may be good and bad graphs."""
    path = graph_path(print_, int8=True)
    return cache.contents(path, path.with_suffix(".bin"))


def _graph(model: ResidualModel, print_: str) -> Any:
    path = graph_path(print_)
    graph = _kept(path)
    if graph is None:
        graph = to_openvino(export_program(model, output="correction"))
        _keep(graph, path)
    return graph


def _keep(graph: Any, path: Path) -> None:
    try:
        save_graph(graph, path)
        cache.seal(path, path.with_suffix(".bin"))
    except (OSError, RuntimeError) as e:  # of the library itself the latter, where it can't write
        log.debug("the graph %s can't be kept: %s", path, e)


def _kept(path: Path) -> Any | None:
    """The graph in the cache; None where there is none, or a damaged one, of which nobody would notice the weights."""
    if not cache.intact(path, path.with_suffix(".bin")):
        return None
    try:
        return require("openvino", "openvino").Core().read_model(path)
    except RuntimeError as e:
        log.debug("%s can't be read: %s", path, e)
        return None


class OpenVINOEngine:
    """A network on the CPU through OpenVINO, with as many threads as PyTorch has when it is built.

    precision: "fp32", "bf16" or "int8" (the int8 graph of ``calibrate``, made from rendered pictures if there is none;
    what it leaves in floating point runs in bf16 where that is faster). Copies the weights. Results are the same to the
    bit from call to call and from process to process. Calls from several threads are safe; after ``share`` they run
    side by side. Raises UsageError where the library is missing.
    """

    name = "openvino"
    device = torch.device("cpu")
    tile = CPU_TILE
    at_once = 1

    def __init__(self, model: ResidualModel, precision: str) -> None:
        began = time.perf_counter()
        openvino = require("openvino", "openvino")
        self.precision = precision
        self.receptive_radius = model.receptive_radius
        floating = precision
        if precision == "int8":
            floating = "bf16" if bf16_pays() else "fp32"
        self.bytes_per_pixel = activation_bytes(model, PRECISIONS[floating]) * _FRUGALITY
        print_ = fingerprint(model)
        self._model = self._int8(model, print_) if precision == "int8" else _graph(model, print_)
        self._core = openvino.Core()
        self._threads = torch.get_num_threads()
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[floating],
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._threads,
            # Several workers share a machine; each would pin itself to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._requests: OrderedDict[tuple[int, ...], Requests] = OrderedDict()
        self._any: Requests | None = None  # of the graph for any shape
        self._seconds: OrderedDict[tuple[int, ...], float] = OrderedDict()  # that shapes spent in it
        self._lock, self._making = threading.Lock(), threading.Lock()
        self.prepare_seconds = time.perf_counter() - began

    def share(self) -> int:
        """Several threads will call at once, each of them on its share of the CPU threads; how many gain by that.

        Side by side, windows need not wait for the slowest thread at every layer: on two cores with AMX, windows of
        192 px take 0.6 of the time, whole frames of 720p 0.7 to 0.8 of it. A single call alone takes longer then.
        """
        with self._lock:
            self.at_once = cpu_callers(self._threads)
            self._settings["NUM_STREAMS"] = self.at_once
            self._settings["INFERENCE_NUM_THREADS"] = self._threads // self.at_once * self.at_once
            self._requests.clear()
            self._any = None
            self._seconds.clear()
        return self.at_once

    @staticmethod
    def _int8(model: ResidualModel, print_: str) -> Any:
        kept = _kept(graph_path(print_, int8=True))
        if kept is not None:
            return kept
        log.warning(
            "int8 is calibrated on rendered pictures, which takes a minute; streamdeblur export --format openvino "
            "--int8 --calibrate PAIRS takes your own"
        )
        graph = calibrate(model, default_calibration())
        # Before it is tried, unlike those of ``export``: a failure is remembered with it, and not calibrated again.
        keep_int8(model, graph)
        return graph

    def _compile(self, shape: tuple[int, ...]) -> Compiled:
        """A graph for this shape, in which -1 is any size."""
        began = time.perf_counter()
        graph = self._model.clone()
        graph.reshape(list(shape))
        # Of a shape that it meets, the graph for any keeps what it prepared.
        more = {"CPU_RUNTIME_CACHE_CAPACITY": _MET} if -1 in shape else {}
        compiled = self._core.compile_model(graph, "CPU", {**self._settings, **more})
        idle: Requests = queue.SimpleQueue()
        for _ in range(self.at_once):
            idle.put(compiled.create_infer_request())
        return Compiled(idle, time.perf_counter() - began)

    def _add(self, shape: tuple[int, ...], compiled: Compiled) -> None:
        """Called under the lock."""
        while len(self._requests) >= _SHAPES:
            self._requests.popitem(last=False)
        self._requests[shape] = compiled.idle
        self.prepare_seconds += compiled.seconds

    def _own(self, shape: tuple[int, ...]) -> Requests:
        """The requests for this shape alone, compiled when they are first asked for.

        Calls make one graph at a time, so that whoever waits knows by ``prepare_seconds`` for how long; shapes that
        have theirs go on meanwhile.
        """
        with self._lock:
            found = self._met(shape)
        if found is not None:
            return found
        with self._making:
            with self._lock:
                found = self._met(shape)  # another call made it while this one waited
            if found is not None:
                return found
            compiled = self._compile(shape)
            with self._lock:
                self._add(shape, compiled)
            return compiled.idle

    def _met(self, shape: tuple[int, ...]) -> Requests | None:
        """The requests for this shape alone, if they are there. Called under the lock."""
        found = self._requests.get(shape)
        if found is not None:
            self._requests.move_to_end(shape)
        return found

    def _find(self, shape: tuple[int, ...]) -> tuple[Requests, bool]:
        """Requests that take this shape, and whether they take others, too."""
        small = shape[0] == 1 and shape[-2] * shape[-1] <= _SMALL
        # In int8 the graph for any shape rounds otherwise than those for one.
        if not small or self.precision == "int8":
            return self._own(shape), False
        with self._lock:
            found = self._met(shape)
            if found is not None:
                return found, False
            if self._any is None:
                compiled = self._compile((1, 3, -1, -1))
                self._any = compiled.idle
                self.prepare_seconds += compiled.seconds
            return self._any, True

    def _count(self, shape: tuple[int, ...], seconds: float) -> None:
        """A shape spent so long in the graph for any; compile one of its own, once that is worth it."""
        with self._lock:
            before = self._seconds.pop(shape, 0.0)
            self._seconds[shape] = before + seconds
            while len(self._seconds) > _MET:
                self._seconds.popitem(last=False)
            requests = self._any
        if before < _WORTH <= before + seconds:
            try:
                compiled = self._compile(shape)  # the other callers go on meanwhile
            except Exception:  # whose frame is done: it must not be lost over this
                log.debug("no graph for windows of %s could be compiled", shape, exc_info=True)
                return
            with self._lock:
                if self._any is requests:  # else the number of streams has changed since
                    self._add(shape, compiled)
                self._seconds.pop(shape, None)

    def prepare(self, height: int, width: int) -> None:
        """Compile for single windows of this size."""
        self._own((1, 3, height, width))

    def residual(self, batch: Tensor) -> Tensor:
        shape = tuple(batch.shape)
        idle, common = self._find(shape)
        values = batch.detach().to("cpu", torch.float32).contiguous().numpy()
        request = idle.get()
        began = time.perf_counter()
        try:
            result = _infer(request, values)
        finally:
            idle.put(request)
        if common:
            self._count(shape, time.perf_counter() - began)
        return result


#: The binding sets itself up in its first call; two threads in there at once wait for each other for ever (seen with
#: 2026.4: one holds Python's lock, the other that of a once-only initialisation).
_first_call, _ready = threading.Lock(), threading.Event()


def _infer(request: Any, values: Any) -> Tensor:
    if _ready.is_set():
        return _call(request, values)
    with _first_call:
        result = _call(request, values)
        _ready.set()
        return result


def _call(request: Any, values: Any) -> Tensor:
    return torch.from_numpy(np.array(request.infer([values], share_inputs=True, share_outputs=True)[0]))
