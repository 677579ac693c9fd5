"""Timestamps of decoded frames: FFmpeg's own where it has any, the best that can be known where it has none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av

from streamdeblur.video.timeline import frame_rate

#: Seconds from zero that no timestamp means: more than a hundred years.
_ABSURD = 1 << 32
#: Frames that may wait for the first timestamp of a stream.
_LEADING = 16


class FrameStamps:
    """Completes the timestamps of a stream's frames as they are decoded.

    time_base: of the stream. rate: frames a second, None if unknown. timed: the stream has times to wait for (raw ones
    have none). decoding_times: go by the decoding times, see ``uses_decoding_times``. For one thread.
    """

    def __init__(self, time_base: Fraction | None, rate: Fraction | None, *, timed: bool, decoding_times: bool) -> None:
        self._time_base = time_base
        self._rate = rate
        self._by_dts = decoding_times
        self._lead: int | None = None
        self._step = 1
        self._last: int | None = None  # pts of the frame before, where decoding times are gone by
        self._waiting: list[av.VideoFrame] | None = [] if timed else None

    def follow(self, frames: Iterable[av.VideoFrame], *, flush: bool) -> Iterator[av.VideoFrame]:
        """The frames, once their times are known; ``flush`` with the last ones of the stream."""
        for native in frames:
            if self._by_dts and native.dts is not None:
                if self._lead is None:
                    self._lead = native.dts - native.pts if native.pts is not None else 0
                native.pts = native.dts - self._lead
                if self._last is not None:
                    self._step = max(1, native.pts - self._last)
                self._last = native.pts
            elif self._by_dts and self._last is not None:
                # Those that the decoder holds at the end have no decoding time: they go on in its order.
                self._last = native.pts = self._last + self._step
            if native.time_base is None and self._time_base is not None:
                native.time_base = self._time_base  # PyAV leaves it out of frames that come at the end
            if native.pts is not None and native.time_base and abs(native.pts * native.time_base) > _ABSURD:
                native.pts = None
            if self._waiting is None:
                yield native
                continue
            self._waiting.append(native)
            if native.pts is not None or len(self._waiting) >= _LEADING:
                yield from self._release()
        if flush:
            yield from self._release()

    def _release(self) -> list[av.VideoFrame]:
        """Frames that came before the first timestamp: counted back from it, or fitted in before it."""
        waiting, self._waiting = self._waiting or [], None
        ahead = len(waiting) - 1
        if ahead > 0 and (known := waiting[-1].pts) is not None and known > 0:
            tick = waiting[-1].time_base or self._time_base or Fraction(1, 1000)
            step = min(1 / frame_rate(self._rate) / tick, Fraction(known, ahead))
            for i, native in enumerate(waiting[:-1]):
                native.pts = int(known - (ahead - i) * step)
        return waiting


def uses_decoding_times(container: str, stream: av.VideoStream) -> bool:
    """AVI stores no presentation times: FFmpeg hands them out in decoding order, one frame late, while the decoding
    times of its frames, in order of display, run evenly."""
    context = stream.codec_context
    return container == "avi" and bool(context.has_b_frames) and context.name in ("h264", "hevc")
