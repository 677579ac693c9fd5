"""What a detector is, and how one is found by its name.

A detector is named by one word:

    FILE.onnx                 a network for onnxruntime, YOLOX's or FastestDet's layout of outputs (``onnx_model``)
    package.module:factory    a Python factory: called without arguments, it returns a ``Detector``
    FILE.py:factory           the same from a file

Python factories run code of their author's: name only what you trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from streamdeblur.detect.factories import factory_word
from streamdeblur.errors import StreamdeblurError, UsageError

Picture = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float32]

_HINT = "give a FILE.onnx, module:factory or FILE.py:factory"
#: Default score from which on a detection counts.
THRESHOLD = 0.3
#: Boxes of one class that overlap more than this are one object (YOLOX's and FastestDet's own value).
NMS = 0.45


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was found in one frame, N objects.

    boxes: (N, 4) float32, x1, y1, x2, y2 in pixels of the frame, of the outline: a box over the whole frame is
    0, 0, W, H. scores: (N,) float32 in [0, 1]. class_ids: (N,) int64, indices into ``names``.
    """

    boxes: Boxes
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def name(self, i: int) -> str:
        """The name of object i's class."""
        number = int(self.class_ids[i])
        return self.names[number] if 0 <= number < len(self.names) else f"class {number}"

    def at_least(self, score: float) -> Detections:
        """Those with this score or more."""
        return self.pick(self.scores >= score)

    def pick(self, which: Any) -> Detections:
        """Those that an index array or a mask selects."""
        return Detections(self.boxes[which], self.scores[which], self.class_ids[which], self.names)


def no_detections(names: Sequence[str] = ()) -> Detections:
    """Nothing found."""
    return Detections(
        np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), tuple(str(n) for n in names)
    )


class Detector(Protocol):
    """Anything that finds objects: an R'G'B' frame, (H, W, 3) uint8, C-contiguous → ``Detections``.

    One thread at a time calls it, of any size of frame, and sizes may change between calls. It must not write to the
    frame or keep it. It should return low scores too, from 0.1 on where it can: tracking uses them, and the threshold
    is applied later. What it raises is counted and told once; the job goes on.
    """

    def __call__(self, rgb: Picture, /) -> Detections:
        """What is in the frame."""


def checked(result: Any, height: int, width: int) -> Detections:
    """A detector's result as it must be: right shapes and types, finite, boxes cut to the frame, empty ones left out.

    Anything with the attributes of ``Detections`` is taken. Raises StreamdeblurError for what is not that.
    """
    try:
        boxes = np.asarray(result.boxes, np.float32).reshape(-1, 4)
        scores = np.asarray(result.scores, np.float32).reshape(-1)
        class_ids = np.asarray(result.class_ids).reshape(-1)
        names = tuple(str(n) for n in result.names)
    except (AttributeError, TypeError, ValueError) as e:
        raise StreamdeblurError(
            f"the detector returned a {type(result).__name__} ({e})", "return streamdeblur.detect.Detections"
        ) from e
    if not len(boxes) == len(scores) == len(class_ids):
        raise StreamdeblurError(
            f"the detector returned {len(boxes)} boxes, {len(scores)} scores and {len(class_ids)} classes",
            "one of each for every object",
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise StreamdeblurError("the detector returned numbers that are not finite", "check its input and its weights")
    if class_ids.dtype.kind == "f":
        class_ids = np.round(class_ids)
    limits = np.array([width, height, width, height], np.float32)
    boxes = np.clip(boxes, 0, limits)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    whole = class_ids.astype(np.int64)
    return Detections(boxes[kept], np.clip(scores[kept], 0, 1), whole[kept], names)


def load_detector(
    word: str,
    *,
    threshold: float = THRESHOLD,
    nms: float = NMS,
    names: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> Detector:
    """The detector that the word names (see the module).

    threshold, nms, names, device, threads: for ONNX files; see ``onnx_model.OnnxDetector``. A factory's detector is
    its own master; ``names`` with a factory is refused.
    Raises UsageError for a word that names nothing or a factory that fails, WeightsError for a file that is no
    detector, DeviceError for a device that isn't there.
    """
    if Path(word).suffix.lower() == ".onnx":
        from streamdeblur.detect.onnx_model import OnnxDetector

        return OnnxDetector(word, threshold=threshold, nms=nms, names=names, device=device, threads=threads)
    factory = factory_word(word)
    if factory is None:
        raise UsageError(f"detector {word!r} is not known", _HINT)
    if names is not None:
        raise UsageError(f"detector {word} names its classes itself", "leave the file of names out")
    return cast(Detector, factory.build("detector"))
