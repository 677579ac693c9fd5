"""Frames as pictures for a page: small JPEG for looking, full PNG for keeping.

Planes are brought to the small size first and converted then, by one 3x4 matrix, which costs a tenth of converting a
whole frame. OpenCV alone: PyTorch's threads are the restorer's.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur.color import luma_weights, scales
from streamdeblur.errors import StreamdeblurError
from streamdeblur.frames import ColorSpec, Frame

_QUALITY = 80
Bgr = npt.NDArray[np.uint8]


def small_size(width: int, height: int, limit: int) -> tuple[int, int]:
    """(width, height) of the picture of a frame: ``limit`` wide at most, never enlarged, shape kept."""
    if width <= limit:
        return width, height
    return limit, max(1, round(height * limit / width))


def small_bgr(frame: Frame, limit: int) -> Bgr:
    """(H, W, 3) uint8 B'G'R' of the frame, ``limit`` pixels wide at most; what leaves [0, 255] is clamped."""
    color = frame.spec.color
    size = small_size(frame.spec.width, frame.spec.height, limit)
    planes = [_fitted(p, size) for p in frame.planes[: color.color_planes]]
    matrix = bgr_matrix(color)
    stacked = np.stack(planes * 3, axis=-1) if len(planes) == 1 else cv2.merge(planes)
    result = cv2.transform(stacked, matrix)  # rounds and saturates to the type of its input
    if result.dtype != np.uint8:
        result = np.minimum(result, 255).astype(np.uint8)
    return np.asarray(result)


def bgr_matrix(color: ColorSpec) -> npt.NDArray[np.float64]:
    """(3, 4) that takes code values of the three planes (gray: the same one thrice) and 1 to B'G'R' in 0..255."""
    scale, chroma = scales(color)
    black = 0.0 if color.full_range else float(16 << (color.depth - 8))
    matrix = np.zeros((3, 4))
    if color.model == "yuv":
        kr, kg, kb = luma_weights(color)
        red, blue = 2 * (1 - kr), 2 * (1 - kb)
        matrix[:, 0] = 1 / scale
        matrix[:, 1] = np.array([blue, -kb * blue / kg, 0.0]) / chroma
        matrix[:, 2] = np.array([0.0, -kr * red / kg, red]) / chroma
        middle = float(1 << (color.depth - 1))
        matrix[:, 3] = -black / scale - middle * (matrix[:, 1] + matrix[:, 2])
    else:
        matrix[[0, 1, 2], [2, 1, 0]] = 1 / scale  # planes are R, G, B
        matrix[:, 3] = -black / scale
    return matrix * 255


def _fitted(plane: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    if (plane.shape[1], plane.shape[0]) == size:
        return np.ascontiguousarray(plane)
    shrinks = plane.shape[1] > size[0]
    fitted = cv2.resize(
        np.ascontiguousarray(plane), size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    return np.asarray(fitted)


def jpeg(bgr: Bgr) -> bytes:
    """Baseline JPEG, 4:2:0."""
    return _encode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])


def png(frame: Frame) -> bytes:
    """The whole frame in its own size, 8 bit R'G'B'."""
    return _encode(".png", small_bgr(frame, frame.spec.width), [cv2.IMWRITE_PNG_COMPRESSION, 3])


def _encode(kind: str, bgr: npt.NDArray[np.uint8], settings: list[int]) -> bytes:
    done, data = cv2.imencode(kind, np.ascontiguousarray(bgr), settings)
    if not done:
        raise StreamdeblurError(f"a picture of {bgr.shape[1]}x{bgr.shape[0]} can't be encoded as {kind[1:]}")
    return bytes(data)
