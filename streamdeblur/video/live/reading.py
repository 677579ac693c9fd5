"""Inside a source's child: open, demux, decode, and send what comes.

How FFmpeg behaves decides most of this (measured with PyAV 18): ``timeout`` (µs) is the only option that ends a silent
RTSP server; a server that is killed ends the iteration without an exception, so a clean end of a network source is a
disconnect; after a reconnect timestamps begin anew and the first packets may belong to pictures that can't be decoded.
"""

from __future__ import annotations

import io
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from streamdeblur.errors import UnreadableInput
from streamdeblur.frames import FrameSpec
from streamdeblur.video.live.link import SoundStream
from streamdeblur.video.live.sounding import has_adts, look_ahead, without_adts
from streamdeblur.video.live.urls import is_url, scheme_of
from streamdeblur.video.live.wire import (
    Decoded,
    NewClock,
    Opened,
    OpenSource,
    Over,
    Picture,
    Sound,
    Undecodable,
)
from streamdeblur.video.opening import open_container, reason
from streamdeblur.video.packets import begins_picture
from streamdeblur.video.pixfmt import LAYOUTS, Layout, read_components
from streamdeblur.video.tags import Look, field_order, learn

log = logging.getLogger(__name__)

Send = Callable[..., None]

#: Why reading ended, and what it means to the reader of a message.
KINDS = {
    "refused": "connection refused",
    "not found": "not found (404): check the path",
    "unauthorized": "not authorised (401): check user and password",
    "forbidden": "forbidden (403)",
    "timeout": "no answer",
    "no video": "no video stream in it",
    "ended": "the stream ended",
    "broken": "can't be read",
    "failed": "the reader failed",
}
#: Packets before the first keyframe that are left out; streams with periodic intra refresh have no keyframe at all.
_WITHOUT_KEYFRAME = 300
#: Frames between reports of undecodable packets.
_TELL = 25
_RTSP = ("rtsp", "rtsps")
#: What can be joined in the middle of a picture.
_RTP = (*_RTSP, "rtp")


class Stop(Exception):
    """The parent wants no more."""


def network_options(request: OpenSource) -> dict[str, str]:
    """FFmpeg options by scheme. Opening takes 0.3 s with these limits on analysis, and 1.2 to 2 without."""
    micro = str(int(request.timeout * 1e6))
    scheme = scheme_of(request.url)
    quick = {"analyzeduration": "100000", "fpsprobesize": "0"}
    if scheme in _RTSP:
        return {"rtsp_transport": request.transport, "timeout": micro, **quick}
    if scheme in ("udp", "rtp", "srt", "tcp"):
        return {"timeout": micro, "analyzeduration": "1000000", "fpsprobesize": "0"}
    if scheme in ("http", "https"):
        return {"timeout": micro, "rw_timeout": micro, "reconnect": "0"}
    return {}


def explain(e: BaseException, timeout: float) -> tuple[str, str]:
    """(kind, words) of what FFmpeg raised."""
    cause = e.__cause__ if isinstance(e, UnreadableInput) and e.__cause__ is not None else e
    kind = "broken"
    if isinstance(cause, ConnectionRefusedError):
        kind = "refused"
    elif isinstance(cause, av.error.HTTPNotFoundError):
        kind = "not found"
    elif isinstance(cause, av.error.HTTPUnauthorizedError):
        kind = "unauthorized"
    elif isinstance(cause, av.error.HTTPForbiddenError):
        kind = "forbidden"
    elif isinstance(cause, (TimeoutError, av.error.ExitError)):
        return "timeout", f"no answer within {timeout:g} s"
    if kind != "broken":
        return kind, KINDS[kind]
    if isinstance(e, UnreadableInput):
        return kind, f"can't be opened as video ({reason(cause)})" if cause is not e else e.what
    return kind, f"{KINDS[kind]} ({reason(e)})"


def _timed_out(e: BaseException, request: OpenSource, seconds: float) -> bool:
    """An RTSP server that accepts and says nothing is "invalid data" to FFmpeg, once its timeout is over."""
    cause = e.__cause__ or e
    silent = isinstance(cause, av.error.InvalidDataError) and scheme_of(request.url) in _RTSP
    return silent and seconds >= 0.9 * request.timeout


def read(request: OpenSource, send: Send, stopping: Callable[[], bool]) -> Over:
    """Read a source to its end; says how it ended. stopping: asked between packets."""
    started = time.monotonic()
    try:
        while True:
            reader = _Reader(request, send, stopping)
            over = reader.run()
            if over.kind != "finished" or not request.loop:
                return over
            send(NewClock())
    except Stop:
        return Over("stopped", "")
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError, UnreadableInput) as e:
        if _timed_out(e, request, time.monotonic() - started):
            e = TimeoutError()
        return Over(*explain(e, request.timeout))


class _Reader:
    def __init__(self, request: OpenSource, send: Send, stopping: Callable[[], bool]) -> None:
        self._request = request
        self._send = send
        self._stopping = stopping
        self._look: Look | None = None
        self._sent: Picture | None = None
        self._reformatter = VideoReformatter()
        self._bad = 0
        self._since_told = 0
        self._arrivals: OrderedDict[int, float] = OrderedDict()
        self._begun: tuple[float, float] | None = None  # (monotonic, seconds of the stream) of the first frame

    def run(self) -> Over:
        r = self._request
        extra: dict[str, Any] = {}
        if is_url(r.url):
            extra = {"options": network_options(r), "timeout": (r.timeout + 5, r.timeout + 5)}
        with open_container(r.url, **extra) as container:
            video = self._pick(container)
            if video is None:
                kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
                return Over("no video", f"no video stream in it (it has: {kinds})")
            scheme = scheme_of(r.url)
            recording = not is_url(r.url) or (scheme not in _RTSP and container.duration is not None)
            # Frame threads would hold back as many frames as there are threads.
            video.thread_type = "SLICE"
            sounds = [s for s in container.streams.audio if s.codec_context is not None] if r.audio else []
            sound: Any = sounds[0] if sounds else None
            packets: Iterator[av.Packet[Any]] = container.demux(*([video] if sound is None else [video, sound]))
            adts = sound is not None and has_adts(sound)
            if adts:
                extradata, packets = look_ahead(packets, sound, self._stopping)
                header = template(sound, extradata) if extradata else b""
                if not extradata:
                    log.warning("its sound (aac) is left out: no packet of it came that tells its format")
            else:
                header = template(sound) if sound is not None else b""
            told = SoundStream(header, sound.codec_context.codec.canonical_name) if header else None
            self._send(Opened(video.codec_context.name, _sane(video.average_rate or video.guessed_rate), told))
            waiting = not recording  # for a keyframe
            skipped = 0
            for packet in packets:
                if self._stopping():
                    raise Stop
                if not packet.size:
                    if packet.stream.index == video.index and recording and packet.pts is None:
                        self._frames(video, None, recording)
                    continue
                if packet.stream.type == "audio":
                    if packet.pts is not None and told is not None:
                        data = without_adts(bytes(packet)) if adts else bytes(packet)
                        self._send(Sound(packet.pts, packet.duration or 0, packet.time_base), [data])
                    continue
                if waiting:
                    skipped += 1
                    whole = packet.is_keyframe and (
                        scheme not in _RTP or begins_picture(bytes(packet), video.codec_context.name)
                    )
                    if not whole and skipped <= _WITHOUT_KEYFRAME:
                        continue
                    waiting = False
                if packet.pts is not None:
                    self._arrivals[packet.pts] = time.monotonic()
                    if len(self._arrivals) > 64:
                        self._arrivals.popitem(last=False)
                self._frames(video, packet, recording)
        if recording:
            return Over("finished", "")
        return Over("ended", KINDS["ended"])

    @staticmethod
    def _pick(container: av.container.InputContainer) -> Any:
        found = [
            s
            for s in container.streams.video
            if s.codec_context is not None and not s.disposition & av.stream.Disposition.attached_pic
        ]
        return found[0] if found else None

    def _frames(self, video: Any, packet: av.Packet[Any] | None, recording: bool) -> None:
        try:
            natives = video.decode(packet)
        except (av.error.EOFError, EOFError):
            return
        except av.error.FFmpegError:
            self._bad += 1
            natives = []
        for native in natives:
            if native.is_corrupt:
                self._bad += 1
                continue
            self._give(native, video, recording)
        self._since_told += 1
        if self._bad and (self._since_told >= _TELL or not natives):
            self._send(Undecodable(self._bad))
            self._bad = self._since_told = 0

    def _give(self, native: av.VideoFrame, video: Any, recording: bool) -> None:
        arrival = self._arrivals.pop(native.pts, None) if native.pts is not None else None
        base = Fraction(native.time_base or video.time_base or Fraction(1, 1000))
        now = time.monotonic()
        if recording:
            arrival = self._pace(native, base, now)
        layout = self._layout(native, video)
        if native.format.name != layout.name:
            native = self._convert(native, layout)
        assert self._look is not None
        color = layout.color(self._look.matrix, self._look.full_range)
        order = field_order(native, video.codec_context.field_order)
        picture = Picture(FrameSpec(native.width, native.height, color, order), self._look.tags)
        if picture != self._sent:
            self._send(picture)
            self._sent = picture
        planes = [np.ascontiguousarray(p).data.cast("B") for p in read_components(native, layout)]
        self._send(Decoded(native.pts, base, now if arrival is None else arrival), planes)

    def _pace(self, native: av.VideoFrame, base: Fraction, now: float) -> float:
        """Wait until a frame of a recording is due; when that was."""
        if native.pts is None:
            return now
        at = float(native.pts * base)
        if self._begun is None:
            self._begun = (now, at)
            return now
        due = self._begun[0] + at - self._begun[1]
        if due - now > 60 or now - due > 2:  # the clock of the recording jumps, or this machine slept
            self._begun = (now, at)
            return now
        while (left := due - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))
            if self._stopping():
                raise Stop
        return due

    def _layout(self, native: av.VideoFrame, video: Any) -> Layout:
        """The layout of a frame; colour and tags are learnt anew where the pictures change."""
        look = self._look
        if look is None or self._sent is None or look.tags.pix_fmt != native.format.name or self._resized(native):
            # The address is no part of what is said: the parent knows the source by its name.
            look = self._look = learn(native, path="the source", codec=video.codec_context.name, metadata={})
        return look.tags.layout

    def _resized(self, native: av.VideoFrame) -> bool:
        assert self._sent is not None
        spec = self._sent.spec
        return (native.width, native.height) != (spec.width, spec.height)

    def _convert(self, native: av.VideoFrame, layout: Layout) -> av.VideoFrame:
        """A format without planes of its own, in the nearest one that has them."""
        if native.format.name in LAYOUTS:
            return native
        out = self._reformatter.reformat(native, format=layout.name, threads=1)
        out.pts = native.pts
        if native.time_base is not None:
            out.time_base = native.time_base
        return out


def _sane(rate: Fraction | None) -> Fraction | None:
    """Frames a second, where it can be that: FFmpeg takes the clock of RTP (90000) for one."""
    return rate if rate is not None and 0 < rate <= 240 else None


def template(stream: Any, extradata: bytes = b"") -> bytes:
    """A stream's codec parameters as a NUT file: NUT keeps them as they are, and reads in 1 ms. Equal for equal
    parameters. (It has to hold a packet, which is an empty one here.)

    extradata: where the stream itself has none. Empty for a codec that NUT has no name for.
    """
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="nut", options={"flush_packets": "1"}) as out:
            target = out.add_stream_from_template(stream, opaque=True)
            if extradata:
                target.codec_context.extradata = extradata
            copy: av.Packet[Any] = av.Packet(b"\0")
            copy.pts = copy.dts = 0
            copy.time_base = stream.time_base
            copy.is_keyframe = True
            copy.stream = target
            out.mux_one(copy)
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError) as e:
        log.warning("its sound (%s) can't be passed on: %s", stream.codec_context.name, reason(e))
        return b""
    return buffer.getvalue()


def sound_of(header: bytes) -> tuple[av.container.InputContainer, Any]:
    """The stream of a ``template``, and the container that has to be kept as long as it is used."""
    container: av.container.InputContainer = av.open(io.BytesIO(header), "r", format="nut")
    return container, container.streams[0]


__all__: Sequence[str] = ("KINDS", "Stop", "explain", "network_options", "read", "sound_of", "template")
