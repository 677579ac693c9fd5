"""Small pictures of a file before and after, for the report."""

from __future__ import annotations

import logging

import cv2

from streamdeblur.config import ProcessOptions
from streamdeblur.errors import StreamdeblurError
from streamdeblur.video.reader import DecodedFrame, VideoReader

log = logging.getLogger(__name__)

_WIDTH = 320
_QUALITY = 82


def thumbnail_pair(source: str, output: str, options: ProcessOptions) -> dict[str, bytes]:
    """JPEG files of one frame, some way into the result, by "before" and "after"; empty where that fails."""
    for at in (_third(output, options), 0.0):  # what a container says of its length need not be so
        try:
            after = _picture(output, at, options)
            return {"before": _picture(source, at + (options.start or 0.0), options), "after": after}
        except (StreamdeblurError, ValueError, cv2.error) as e:
            log.debug("no thumbnails of %s at %g s: %s", output, at, e)
    return {}


def _third(path: str, options: ProcessOptions) -> float:
    """Seconds, some way into a file."""
    try:
        with VideoReader(path, stream=options.stream, copy_streams=False, on_error="bypass") as reader:
            return round(min((reader.info.duration or 0.0) / 3, 5.0), 3)
    except StreamdeblurError:
        return 0.0


def _picture(path: str, at: float, options: ProcessOptions) -> bytes:
    with VideoReader(path, stream=options.stream, start=at or None, copy_streams=False, on_error="bypass") as reader:
        frame: DecodedFrame = next(iter(reader))
        native = frame.native
        width = min(_WIDTH, native.width)
        height = max(1, round(native.height * width / native.width))
        array = native.to_ndarray(format="bgr24", width=width, height=height)
    done, data = cv2.imencode(".jpg", array, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError("JPEG")
    return data.tobytes()
