"""Fields woven into progressive frames, by FFmpeg's bwdif, one frame out for one frame in."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
import av.error
import av.filter

from streamdeblur.errors import InputError
from streamdeblur.frames import FieldOrder


class Deinterlacer:
    """Feeds AVFrames through bwdif. ``push`` gives what is ready, ``flush`` the rest; timestamps stay as they were.

    order: "tff" or "bff". Works in the frame's own pixel format; raises InputError where bwdif does not know it.
    forced: weave every frame; without it frames that the stream itself calls progressive are left alone.
    For one thread.
    """

    def __init__(self, order: FieldOrder, *, forced: bool = False) -> None:
        self._parity = "tff" if order == "tff" else "bff"
        self._which = "all" if forced else "interlaced"
        self._graph: av.filter.Graph | None = None
        self._time_base = Fraction(1)

    def push(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        if self._graph is None:
            self._build(frame)
        assert self._graph is not None
        self._graph.push(frame)
        yield from self._pull()

    def flush(self) -> Iterator[av.VideoFrame]:
        if self._graph is not None:
            self._graph.push(None)
            yield from self._pull()

    def _build(self, frame: av.VideoFrame) -> None:
        name = frame.format.name
        self._time_base = Fraction(frame.time_base or Fraction(1, 1000))
        try:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=self._time_base
            )
            weave = graph.add("bwdif", f"mode=send_frame:parity={self._parity}:deint={self._which}")
            # bwdif would otherwise be given another pixel format by an inserted scaler.
            keep = graph.add("format", f"pix_fmts={name}")
            sink = graph.add("buffersink")
            source.link_to(weave)
            weave.link_to(keep)
            keep.link_to(sink)
            graph.configure()
        except (av.error.FFmpegError, ValueError) as e:
            raise InputError(f"{name} can't be deinterlaced: {e}", "leave --deinterlace out") from e
        self._graph = graph

    def _pull(self) -> Iterator[av.VideoFrame]:
        assert self._graph is not None
        while True:
            try:
                out = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError, EOFError, BlockingIOError):
                return
            if not isinstance(out, av.VideoFrame):
                return
            if out.pts is not None and out.time_base:
                # bwdif halves the tick to have room for the second field of send_field.
                factor = Fraction(out.time_base) / self._time_base
                out.pts, out.duration = round(out.pts * factor), round(out.duration * factor)
                out.time_base = self._time_base
            yield out
