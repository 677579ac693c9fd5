"""Encoded pictures ↔ arrays, by whichever library the machine has: OpenCV here, Pillow or torchvision on bare ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from streamdeblur.errors import InputError, UsageError

Picture = npt.NDArray[np.uint8]


def _optional(name: str) -> Any:
    # By name: a machine that trains from shards has one of these at most, and the import table counts statements.
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@cache
def _decoder() -> Callable[[bytes], Picture]:
    if cv2 := _optional("cv2"):

        def by_opencv(data: bytes) -> Picture:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if image is None:
                raise ValueError("not a picture")
            return np.ascontiguousarray(image[..., ::-1])

        return by_opencv
    if pillow := _optional("PIL.Image"):
        import io

        return lambda data: np.array(pillow.open(io.BytesIO(data)).convert("RGB"))
    if vision := _optional("torchvision.io"):
        import torch

        def by_torchvision(data: bytes) -> Picture:
            tensor = vision.decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode="RGB")
            return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())

        return by_torchvision
    raise UsageError("nothing here decodes JPEG", "install opencv-python-headless, pillow or torchvision")


def decode(data: bytes, what: str = "picture") -> Picture:
    """RGB (H, W, 3) of an encoded JPEG or PNG. Threads may call it at once. Raises InputError naming ``what``."""
    try:
        return _decoder()(data)
    except UsageError:
        raise
    except Exception as e:
        raise InputError(f"{what} is damaged: {e}", "make it again") from e


def encode(picture: Picture, quality: int) -> bytes:
    """JPEG of that quality with full chroma resolution, or PNG for quality 0. Needs OpenCV."""
    cv2 = _optional("cv2")
    if cv2 is None:
        raise UsageError("writing shards needs OpenCV", "install opencv-python-headless")
    bgr = np.ascontiguousarray(picture[..., ::-1])
    if quality:
        flags = [
            cv2.IMWRITE_JPEG_QUALITY,
            quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
        ok, data = cv2.imencode(".jpg", bgr, flags)
    else:
        ok, data = cv2.imencode(".png", bgr)
    if not ok:
        raise InputError(f"a picture of {picture.shape} could not be encoded")
    return bytes(data.tobytes())
