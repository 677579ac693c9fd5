"""Frames of a live source to packets, once for all of its outputs: no look-ahead, no reordering, a keyframe in time."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error

from streamdeblur.errors import EncoderError
from streamdeblur.frames import Frame, FrameSpec
from streamdeblur.video.encoders import EncoderRequest, choose, configure
from streamdeblur.video.opening import reason
from streamdeblur.video.pixfmt import write_components
from streamdeblur.video.tags import SourceTags

_RATE = Fraction(25)  # for rate control alone, where the source does not say


@dataclass(frozen=True, slots=True)
class EncodedPacket:
    """pts, dts: ticks of the frames' time base."""

    pts: int
    dts: int
    key: bool
    data: bytes


class LiveEncoder:
    """H.264 by x264 (``tune=zerolatency``) or NVENC: every frame in gives its packet at once.

    spec, tags: of the frames; another spec needs another encoder. A last odd row or column is left out, because H.264
    has no odd sizes with subsampled chroma. rate: frames a second, or None. keyframes: seconds between them at most.
    For one thread. Raises EncoderError.
    """

    def __init__(
        self,
        spec: FrameSpec,
        tags: SourceTags,
        rate: Fraction | None,
        time_base: Fraction,
        *,
        encoder: str = "x264",
        crf: float | None = None,
        preset: str = "veryfast",
        keyframes: float = 2.0,
    ) -> None:
        sx, sy = spec.color.chroma_shift
        width, height = spec.width >> sx << sx, spec.height >> sy << sy
        self._color = spec.color
        self._shapes = spec.color.plane_shapes(width, height)
        self._keyframes = round(Fraction(keyframes).limit_denominator(1000) / time_base)
        self._last_key: int | None = None
        self._time_base = time_base
        request = EncoderRequest(encoder, crf, preset)
        choice = choose(request, tags, spec.color, (width, height), supported=frozenset({"h264"}))
        self.codec, self.pix_fmt = choice.codec, choice.layout.name
        self._layout = choice.layout
        self._size = (width, height)
        rate = rate or _RATE
        options = dict(choice.options)
        if choice.codec == "libx264":
            options |= {"tune": "zerolatency", "forced-idr": "1"}
        else:
            options |= {"tune": "ull", "delay": "0", "zerolatency": "1", "forced-idr": "1"}
        self._buffer: io.BytesIO | None = io.BytesIO()
        self._header = b""
        try:
            # NUT is only a way to write down what the encoder says of its stream: see ``reading.template``.
            self._container = av.open(self._buffer, "w", format="nut", options={"flush_packets": "1"})
            stream: Any = self._container.add_stream(choice.codec, rate=rate, options=options)
            configure(stream.codec_context, choice, self._size, tags, rate, time_base)
            stream.codec_context.gop_size = max(1, math.ceil(keyframes * rate * 2))  # keyframes are asked for by time
            stream.codec_context.thread_count = min(4, os.cpu_count() or 1)
            self._stream = stream
            self._container.start_encoding()
        except (av.error.FFmpegError, OSError, ValueError, RuntimeError) as e:
            raise EncoderError(f"{choice.codec} does not open for {width}x{height}: {reason(e)}") from e

    @property
    def header(self) -> bytes:
        """The stream as a ``reading.template``; known from the first packet on."""
        return self._header

    def encode(self, frame: Frame) -> list[EncodedPacket]:
        """The packets of one frame. Its pts must be greater than the one before."""
        assert frame.pts is not None
        native = av.VideoFrame(*self._size, self._layout.name)
        planes: Sequence[Any] = [
            p[:rows, :columns] for p, (rows, columns) in zip(frame.planes, self._shapes, strict=True)
        ]
        write_components(native, self._layout, planes, self._color)
        native.pts, native.time_base = frame.pts, self._time_base
        if self._last_key is None or frame.pts - self._last_key >= self._keyframes:
            self._last_key = frame.pts
            native.pict_type = av.video.frame.PictureType.I
        try:
            packets = self._stream.encode(native)
        except (av.error.FFmpegError, OSError, ValueError) as e:
            raise EncoderError(f"{self.codec} failed: {reason(e)}") from e
        return [self._plain(p) for p in packets]

    def _plain(self, packet: av.Packet[Any]) -> EncodedPacket:
        base = Fraction(packet.time_base)
        assert packet.pts is not None
        pts = round(packet.pts * base / self._time_base)
        dts = pts if packet.dts is None else round(packet.dts * base / self._time_base)
        encoded = EncodedPacket(pts, dts, bool(packet.is_keyframe), bytes(packet))
        if self._buffer is not None:
            packet.pts = packet.dts = 0
            self._container.mux_one(packet)
            self._header = self._buffer.getvalue()
            self._buffer = None
        return encoded

    def close(self) -> None:
        """Free the encoder; idempotent. It holds no frame back, so there is nothing to flush."""
        try:
            self._container.close()
        except (av.error.FFmpegError, OSError, ValueError):
            pass
