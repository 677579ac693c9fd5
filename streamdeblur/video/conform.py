"""Every frame of a stream in the size and layout of its first."""

from __future__ import annotations

import logging

import av
from av.video.reformatter import VideoReformatter

from streamdeblur.errors import BrokenStream
from streamdeblur.video.pixfmt import LAYOUTS
from streamdeblur.video.tags import Look

log = logging.getLogger(__name__)


class Conformer:
    """Converts formats that have no planes of their own; a change of size or format in mid-stream fails or is scaled.

    first: the stream's first frame as it was decoded, look: what it says. path: the file, for messages.
    scale: scale what changes to the first size, saying so once for each, instead of raising BrokenStream.
    For one thread.
    """

    def __init__(self, first: av.VideoFrame, look: Look, *, path: str, scale: bool) -> None:
        self._size = (first.width, first.height)
        self._format = first.format.name
        self._look = look
        self._path = path
        self._scale = scale
        self._said: set[str] = set()
        self._reformatter = VideoReformatter()

    def __call__(self, native: av.VideoFrame) -> av.VideoFrame:
        name = native.format.name
        same = (native.width, native.height) == self._size and name == self._format
        if not same and not self._same_planes(native):
            was = f"{self._size[0]}x{self._size[1]} {self._format}"
            now = f"{native.width}x{native.height} {name}"
            at = "an unknown time"
            if native.pts is not None and native.time_base is not None:
                at = f"{float(native.pts * native.time_base):.3f} s"
            if not self._scale:
                raise BrokenStream(
                    f"{self._path} changes from {was} to {now} at {at}",
                    "--on-error bypass scales the rest to the first size",
                )
            if now not in self._said:
                self._said.add(now)
                log.warning("%s changes from %s to %s at %s; scaled to the first", self._path, was, now, at)
            return self._reformat(native, *self._size)
        if name != self._look.tags.layout.name and name not in LAYOUTS:
            return self._reformat(native, native.width, native.height)
        return native

    def _same_planes(self, native: av.VideoFrame) -> bool:
        """yuvj420p after yuv420p: the same planes under another name."""
        layout, mine = LAYOUTS.get(native.format.name), self._look.tags.layout
        return (
            (native.width, native.height) == self._size
            and layout is not None
            and layout.same_components(mine)
            and layout.components == mine.components
        )

    def _reformat(self, native: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        code = native.colorspace
        space = code if code in (1, 4, 5, 6, 7, 9) else (1 if native.height >= 720 else 5)
        layout = self._look.tags.layout
        out = self._reformatter.reformat(
            native,
            width=width,
            height=height,
            format=layout.name,
            src_colorspace=space,
            dst_colorspace=space,
            src_color_range=native.color_range or None,
            dst_color_range=(2 if self._look.full_range else 1) if layout.model != "rgb" else None,
            interpolation="BICUBIC",
            threads=1,
        )
        out.pts = native.pts
        if native.time_base is not None:
            out.time_base = native.time_base
        return out
