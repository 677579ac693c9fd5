"""Detectors in ONNX files, run by onnxruntime; the layout is recognised from the shapes, not from the file's name.

YOLOX (Ge et al. 2021, arXiv:2107.08430; program of the authors, Megvii-BaseDetection/YOLOX, ``demo/ONNXRuntime``)
    in   (1, 3, H, W) B'G'R' 0..255, the picture scaled by one factor to fit, top left, the rest 114
    out  (1, N, 5 + C), N = the cells of strides 8, 16, 32 (and 64): offset of the centre from its cell and
         log of the size, both in strides; objectness; a score for each class. Score: objectness x class

FastestDet (Ma 2022; program of the author, dog-qiuqiu/FastestDet, ``example/onnx-runtime``)
    in   (1, 3, H, W) B'G'R' 0..1, the picture stretched to fit
    out  (1, 5 + C, rows, columns): objectness, tanh⁻¹ of the centre's offset in cells, logit of the size as a
         part of the picture, a probability of each class. Score: objectness^0.6 x class^0.4
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur.detect.detector import NMS, THRESHOLD, Boxes, Detections, Picture, no_detections
from streamdeblur.detect.names import class_names
from streamdeblur.errors import DeviceError, UsageError, WeightsError

Floats = npt.NDArray[np.float32]

#: Level of the border that YOLOX is trained with.
_PAD = 114
#: Strides of YOLOX, P5 and P6.
_STRIDES = ((8, 16, 32), (8, 16, 32, 64))
#: Side taken where a file leaves the size of its input open (YOLOX's own for its larger networks).
_OPEN_SIZE = 640
#: The best this many go into the suppression, and at most this many come out.
_MOST_BEFORE, _MOST = 1000, 300
_LARGEST_LOG = 12.0  # e^12 strides is larger than any picture; a network gone wrong must not overflow


@dataclass(frozen=True, slots=True)
class Raw:
    """Boxes in pixels of the network's input, (N, 4) x1, y1, x2, y2; (N,) scores and class numbers."""

    boxes: Boxes
    scores: Floats
    class_ids: npt.NDArray[np.int64]


class Layout(ABC):
    """How pictures go into a network and boxes come out. Stateless; any thread."""

    name: str
    classes: int
    #: (height, width) of the network's input
    size: tuple[int, int]

    @abstractmethod
    def prepare(self, rgb: Picture) -> tuple[Floats, tuple[float, float]]:
        """((1, 3, H, W) float32 C-contiguous, pixels of the input for one of the picture: (across, down))."""

    @abstractmethod
    def decode(self, output: Floats, threshold: float) -> Raw:
        """What scores ``threshold`` or more."""


class YoloxLayout(Layout):
    """See the module. size: (height, width) of the input."""

    name = "YOLOX"

    def __init__(self, size: tuple[int, int], classes: int, strides: tuple[int, ...]) -> None:
        self.classes = classes
        self.size = size
        cells, scale = [], []
        for stride in strides:
            rows, columns = size[0] // stride, size[1] // stride
            y, x = np.mgrid[:rows, :columns]
            cells.append(np.stack((x, y), axis=-1).reshape(-1, 2))
            scale.append(np.full((rows * columns, 1), stride))
        self._cells = np.concatenate(cells).astype(np.float32)
        self._strides = np.concatenate(scale).astype(np.float32)

    def prepare(self, rgb: Picture) -> tuple[Floats, tuple[float, float]]:
        height, width = self.size
        factor = min(height / rgb.shape[0], width / rgb.shape[1])
        wide, high = max(1, int(rgb.shape[1] * factor)), max(1, int(rgb.shape[0] * factor))
        canvas = np.full((height, width, 3), _PAD, np.uint8)
        canvas[:high, :wide] = cv2.resize(rgb, (wide, high), interpolation=cv2.INTER_LINEAR)
        return _chw(canvas, 1.0), (factor, factor)

    def decode(self, output: Floats, threshold: float) -> Raw:
        values = output[0]
        # A class score is at most 1: objectness alone rules most cells out before anything is multiplied.
        kept = np.flatnonzero(values[:, 4] >= threshold)
        values = values[kept]
        class_ids = values[:, 5:].argmax(1) if len(kept) else np.zeros(0, np.int64)
        scores = values[:, 4] * values[np.arange(len(kept)), 5 + class_ids]
        sure = scores >= threshold
        kept, values, class_ids, scores = kept[sure], values[sure], class_ids[sure], scores[sure]
        centres = (values[:, :2] + self._cells[kept]) * self._strides[kept]
        sizes = np.exp(np.minimum(values[:, 2:4], _LARGEST_LOG)) * self._strides[kept]
        return Raw(_corners(centres, sizes), scores, class_ids)


class FastestDetLayout(Layout):
    """See the module. size: (height, width) of the input."""

    name = "FastestDet"

    def __init__(self, size: tuple[int, int], classes: int) -> None:
        self.classes = classes
        self.size = size

    def prepare(self, rgb: Picture) -> tuple[Floats, tuple[float, float]]:
        height, width = self.size
        picture = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
        return _chw(np.asarray(picture, np.uint8), 1 / 255), (width / rgb.shape[1], height / rgb.shape[0])

    def decode(self, output: Floats, threshold: float) -> Raw:
        rows, columns = output.shape[2:]
        values = output[0].reshape(output.shape[1], -1).T
        class_ids = values[:, 5:].argmax(1)
        best = np.take_along_axis(values[:, 5:], class_ids[:, None], 1)[:, 0]
        scores = np.clip(values[:, 0], 0, None) ** 0.6 * np.clip(best, 0, None) ** 0.4
        kept = np.flatnonzero(scores >= threshold)
        values, class_ids, scores = values[kept], class_ids[kept], scores[kept]
        height, width = self.size
        x = (kept % columns + np.tanh(values[:, 1])) * (width / columns)
        y = (kept // columns + np.tanh(values[:, 2])) * (height / rows)
        sizes = np.array([width, height], np.float32) / (1 + np.exp(-np.clip(values[:, 3:5], -60, 60)))
        centres = np.stack((x, y), axis=1)
        return Raw(_corners(centres.astype(np.float32), sizes.astype(np.float32)), scores, class_ids)


def recognise(size: tuple[int, int], shape: tuple[int, ...]) -> Layout | None:
    """The layout with this output for an input of (height, width), or None."""
    if len(shape) == 3 and shape[0] == 1 and shape[2] > 5:
        for strides in _STRIDES:
            if shape[1] == sum((size[0] // s) * (size[1] // s) for s in strides):
                return YoloxLayout(size, shape[2] - 5, strides)
    if len(shape) == 4 and shape[0] == 1 and shape[1] > 5 and 0 not in shape:
        rows, columns = shape[2:]
        if size[0] % rows == 0 and size[1] % columns == 0 and size[0] // rows == size[1] // columns > 1:
            return FastestDetLayout(size, shape[1] - 5)
    return None


class OnnxDetector:
    """A detector from an ONNX file; a ``detector.Detector``. Calls from several threads are safe.

    path: the file. threshold: the least score that is returned. nms: overlap (IoU) from which on two boxes of one class
    are one object. names: file with a name of a class on each line; default: the model's metadata, else COCO's.
    device: "auto" takes CUDA where onnxruntime has it, else "cpu", "cuda" or "cuda:N". threads: of the CPU; the
    default leaves half of the cores, and at most four, to it, since a network restores beside it.

    Raises UsageError (no onnxruntime, names), WeightsError (no such file, no detector), DeviceError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threshold: float = THRESHOLD,
        nms: float = NMS,
        names: Path | None = None,
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self._word = os.fspath(path)
        self._threshold, self._nms = threshold, nms
        self._session = _open(self._word, device, threads)
        inputs = self._session.get_inputs()
        shape = list(inputs[0].shape)
        if len(inputs) != 1 or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
            taken = ", ".join(f"{i.name} {i.shape}" for i in inputs)
            raise WeightsError(f"{self._word} takes {taken}", "a detector takes one (1, 3, H, W) picture")
        if inputs[0].type not in ("tensor(float)", "tensor(float16)"):
            raise WeightsError(f"{self._word} takes {inputs[0].type}", "a detector takes float or float16")
        self._input = inputs[0].name
        self._type = np.float16 if inputs[0].type == "tensor(float16)" else np.float32
        high, wide = (n if isinstance(n, int) and n > 0 else _OPEN_SIZE for n in shape[2:])
        # The shapes in the file may be symbolic; those of a result are not, and the first run warms up.
        outputs = self._run(np.zeros((1, 3, high, wide), np.float32))
        found = [(n, layout) for n, o in enumerate(outputs) if (layout := recognise((high, wide), o.shape)) is not None]
        if len(found) != 1:
            given = ", ".join(str(o.shape) for o in outputs)
            raise WeightsError(
                f"{self._word} returns {given} for a picture of {wide}x{high}: neither YOLOX's nor FastestDet's layout",
                "wrap it in a Python factory and give module:factory",
            )
        self._output, self.layout = found[0]
        metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self.names = class_names(self.layout.classes, metadata, names)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) that pictures are brought to."""
        return self.layout.size

    def __call__(self, rgb: Picture, /) -> Detections:
        """What is in the frame, best first. Raises ValueError for what is not (H, W, 3) uint8."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
            raise ValueError(f"expected an RGB frame (H, W, 3) of uint8, got {rgb.shape} {rgb.dtype}")
        given, (across, down) = self.layout.prepare(rgb)
        raw = self.layout.decode(self._run(given)[self._output], self._threshold)
        kept = suppress(raw.boxes, raw.scores, raw.class_ids, self._nms)
        if not len(kept):
            return no_detections(self.names)
        boxes = raw.boxes[kept] / np.array([across, down, across, down], np.float32)
        limits = np.array([rgb.shape[1], rgb.shape[0]] * 2, np.float32)
        return Detections(
            np.clip(boxes, 0, limits).astype(np.float32),
            raw.scores[kept].astype(np.float32),
            raw.class_ids[kept].astype(np.int64),
            self.names,
        )

    def _run(self, picture: Floats) -> list[Floats]:
        try:
            results = self._session.run(None, {self._input: picture.astype(self._type, copy=False)})
        except Exception as e:  # its exceptions share no base class
            cause = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise WeightsError(f"{self._word} does not run: {cause[:200]}", "try it with onnxruntime alone") from e
        return [np.asarray(r, np.float32) for r in results]


def suppress(boxes: Boxes, scores: Floats, class_ids: npt.NDArray[np.int64], overlap: float) -> npt.NDArray[np.intp]:
    """Non-maximum suppression within classes: indices of what stays, best first, at most 300.

    Greedy, as every detector's: the best box stays, and those of its class that overlap it by more than ``overlap``
    (intersection over union) go.
    """
    order = np.argsort(-scores, kind="stable")[:_MOST_BEFORE]
    kept: list[int] = []
    while len(order) and len(kept) < _MOST:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        same = class_ids[rest] == class_ids[best]
        order = rest[~(same & (iou(boxes[best : best + 1], boxes[rest])[0] > overlap))]
    return np.array(kept, np.intp)


def iou(a: Boxes, b: Boxes) -> Floats:
    """Intersection over union of each box of a (N, 4) with each of b (M, 4): (N, M)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - common
    return np.asarray(common / np.maximum(union, 1e-9), np.float32)


def _corners(centres: Floats, sizes: Floats) -> Boxes:
    return np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1)


def _chw(rgb: Picture, factor: float) -> Floats:
    """(H, W, 3) RGB → (1, 3, H, W) BGR, times a factor."""
    result = np.empty((1, 3, *rgb.shape[:2]), np.float32)
    np.multiply(rgb[..., ::-1].transpose(2, 0, 1), np.float32(factor), out=result[0], casting="unsafe")
    return result


def _open(word: str, device: str, threads: int | None) -> Any:
    if not Path(word).is_file():
        raise WeightsError(f"detector {word} does not exist", "check the path")
    try:
        import onnxruntime
    except ImportError as e:
        raise UsageError(f"detector {word} needs onnxruntime", "pip install 'streamdeblur[detect]'") from e
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"device {device!r} is not known for a detector", "choose from auto, cpu, cuda, cuda:N")
    providers: list[Any] = ["CPUExecutionProvider"]
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if kind == "cuda" and not has_cuda:
        raise DeviceError(f"onnxruntime has no CUDA for {word}", "install onnxruntime-gpu, or run the detector on cpu")
    if kind == "cuda" or (kind == "auto" and has_cuda):
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(number or 0)}))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or max(1, min(4, (os.cpu_count() or 2) // 2))
    settings.inter_op_num_threads = 1
    # Threads that wait by spinning take the time of the network that restores.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(word, settings, providers=providers)
    except Exception as e:  # its exceptions share no base class
        cause = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise WeightsError(f"{word} is not a network that onnxruntime loads: {cause[:200]}") from e
