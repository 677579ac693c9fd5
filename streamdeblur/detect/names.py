"""Names of classes: the 80 of COCO, which detectors are trained on, and those that a file brings."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from streamdeblur.errors import UsageError

#: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014: the 80 classes of its detection task, in order.
COCO: tuple[str, ...] = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
    "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
    "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def class_names(count: int, metadata: Mapping[str, str], path: Path | None = None) -> tuple[str, ...]:
    """Names of ``count`` classes: those of the file ``path``, else of the model's metadata, else COCO's, else numbers.

    metadata: of the model; a key "names" or "classes" may hold a JSON list or object, a Python dict (as Ultralytics
    writes it) or a comma-separated list. Raises UsageError for a file that can't be read or of another length.
    """
    if path is not None:
        names = _from_file(path)
        if len(names) != count:
            raise UsageError(f"{path} has {len(names)} names, and the detector {count} classes", "one name a line")
        return names
    for key in ("names", "classes"):
        found = _parse(metadata.get(key, ""))
        if len(found) == count:
            return found
    return COCO if count == len(COCO) else tuple(f"class {i}" for i in range(count))


def _from_file(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        cause = getattr(e, "strerror", None) or "it is not a text file"
        raise UsageError(f"names of classes {path} can't be read: {cause}", "one name a line, in UTF-8") from e
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _parse(text: str) -> tuple[str, ...]:
    text = text.strip()
    if not text:
        return ()
    value: object = None
    if text[0] in "[{(":
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(text)
                break
            except (ValueError, SyntaxError):
                continue
        if isinstance(value, Mapping):
            try:
                return tuple(str(value[k]) for k in sorted(value, key=int))
            except (TypeError, ValueError):
                return ()
        return tuple(str(v) for v in value) if isinstance(value, Sequence) else ()
    return tuple(part.strip() for part in re.split(r"[,\n]", text) if part.strip())
