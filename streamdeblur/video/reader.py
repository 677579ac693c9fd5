"""Packets to frames: open a video file, decode one of its streams, hand on the packets of the others.

``VideoReader`` decodes one frame before it says anything about the stream, because the truth (pixel format, colour,
rotation, HDR metadata) is in the frames and not in the header. Frames come as component planes at the source's own
depth and chroma grid, without a scaler in between; formats that have no such planes are converted once, and said so.

Threading: a reader belongs to one thread at a time. FFmpeg's own decoding threads work inside it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import av.error
from av.dictionary import Dictionary
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

from streamdeblur.errors import BrokenStream, UnreadableInput, UsageError
from streamdeblur.frames import FieldOrder, Frame, FrameSpec, StreamInfo
from streamdeblur.video.deinterlace import Deinterlacer
from streamdeblur.video.hdr import ContentLight, MasteringDisplay, parse_content_light, parse_mastering_display
from streamdeblur.video.pixfmt import LAYOUTS, Layout, nearest, read_components
from streamdeblur.video.timeline import frame_rate
from streamdeblur.video.truncation import truncation

log = logging.getLogger(__name__)

OnError = Literal["fail", "bypass"]
Interlaced = Literal["auto", "progressive", "tff", "bff"]

# ITU-T H.273 MatrixCoefficients, as FFmpeg numbers them (AVColorSpace).
_MATRIX_BY_CODE = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_UNSPECIFIED = 2
#: Endings that are pictures, for a folder of them.
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm")
# AVFieldOrder: 2 TT, 3 BB, 4 TB (stored top first, shown bottom first), 5 BT.
_FIELD_ORDER: dict[int, FieldOrder] = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
#: Demuxers that flag packets corrupt for a lost TS packet: ordinary in captures, and the decoder copes.
_LOSSY_TRANSPORTS = {"mpegts", "rtp", "rtsp", "sdp", "mpegtsraw"}
#: Formats whose clock may start anew in mid-file (recordings put end to end), FFmpeg's AVFMT_TS_DISCONT.
_RESTARTING = {"mpegts", "mpeg", "mpegvideo", "flv", "mpegtsraw"}
#: A decoding time this much (seconds) before the one before it is a new clock and no disorder.
_JUMP = Fraction(1, 2)
#: Seconds from zero that no timestamp means: more than a hundred years.
_ABSURD = 1 << 32
#: Frames that may wait for the first timestamp of a stream.
_LEADING = 16


@dataclass(frozen=True, slots=True)
class DecodedFrame(Frame):
    """A frame and the AVFrame that it came from, which carries side data on to the encoder. Does not pickle."""

    native: av.VideoFrame = field(repr=False, compare=False)

    def plain(self) -> Frame:
        """The same planes without the AVFrame, for another process."""
        return Frame(self.index, self.pts, self.time_base, self.planes, self.spec)


@dataclass(frozen=True, slots=True)
class CopyPacket:
    """A packet of a stream that is copied, in the order of the file."""

    packet: av.Packet[Any]


@dataclass(frozen=True, slots=True)
class SourceTags:
    """What the encoder and the muxer must be told about the picture; codes as in ITU-T H.273 (2 is unspecified)."""

    pix_fmt: str
    layout: Layout
    matrix: int
    primaries: int
    transfer: int
    color_range: int
    display_matrix: tuple[int, ...] | None
    mastering: MasteringDisplay | None
    light: ContentLight | None
    lost: tuple[str, ...]


def open_container(path: str | os.PathLike[str], **options: Any) -> av.container.InputContainer:
    """``av.open`` for reading, with every failure as one line (UnreadableInput)."""
    name = os.fspath(path)
    if "://" not in name:
        file = Path(name)
        if not file.exists():
            raise UnreadableInput(f"{name} does not exist", "check the path")
        if file.is_dir():
            raise UnreadableInput(f"{name} is a folder", "name a file, or a folder of images")
        if file.is_file() and file.stat().st_size == 0:
            raise UnreadableInput(f"{name} is empty (0 bytes)")
        if not os.access(file, os.R_OK):
            raise UnreadableInput(f"{name} can't be read: permission denied")
        if "%" in file.name or ":" in file.name.split("/")[0]:
            name = f"file:{name}"
    try:
        container: av.container.InputContainer = av.open(name, "r", metadata_errors="replace", **options)
        return container
    except (av.error.FFmpegError, OSError, ValueError, UnicodeError) as e:
        raise UnreadableInput(f"{os.fspath(path)} can't be opened as video: {reason(e)}") from e


def reason(e: BaseException) -> str:
    """FFmpeg's own words for an error, on one line and without the file name and the errno."""
    text = getattr(e, "strerror", None) or str(e) or type(e).__name__
    logged = getattr(e, "log", None)
    if logged and len(logged) > 2 and logged[2]:
        text = f"{text} ({str(logged[2]).strip()})"
    return " ".join(str(text).split())


def guess_matrix(code: int, height: int) -> str:
    """The key of ``frames.MATRICES`` for an H.273 code; unspecified is BT.709 from 720 lines on, else BT.601."""
    if code in _MATRIX_BY_CODE:
        return _MATRIX_BY_CODE[code]
    if code == _UNSPECIFIED or code == 0:
        return "bt709" if height >= 720 else "bt601"
    return "bt709"


class _Clock:
    """Joins the pieces of a file whose clock jumps back, all streams by the same amount.

    Streams reach a jump at different moments, so each counts the pieces it has entered; the first to enter one sets its
    offset.
    """

    def __init__(self, format_name: str) -> None:
        self._on = bool(_RESTARTING & set(format_name.split(",")))
        self.offsets = [Fraction(0)]  # seconds added to each piece
        self._piece: dict[int, int] = {}
        self._last: dict[int, Fraction] = {}

    def follow(self, packet: av.Packet[Any]) -> bool:
        """Shift a packet to where its piece belongs; True when it begins a new one."""
        if not self._on or packet.dts is None or packet.stream.type not in ("video", "audio"):
            return False
        index, base = packet.stream.index, Fraction(packet.time_base)
        time = packet.dts * base
        piece = self._piece.get(index, 0)
        new = False
        last = self._last.get(index)
        if last is not None and time + self.offsets[piece] < last - _JUMP:
            length = (packet.duration or 0) * base
            piece += 1
            if piece == len(self.offsets):
                self.offsets.append(last + length - time)
                new = True
            self._piece[index] = piece
        if self.offsets[piece]:
            ticks = round(self.offsets[piece] / base)
            packet.dts += ticks
            if packet.pts is not None:
                packet.pts += ticks
        self._last[index] = packet.dts * base
        return new


class VideoReader:
    """Frames of one video stream of a file, and the packets of its other streams.

    path: a file, or anything FFmpeg opens.
    stream: which video stream, counted among the video streams that are not cover art.
    on_error: "fail" raises BrokenStream at the first packet that can't be decoded or read, "bypass" keeps what decodes.
    start, duration: seconds from the start of the container; frames with start <= time < start + duration are given,
        with timestamps that count from ``start``.
    interlaced: overrides what the stream says of itself. deinterlace: weave fields into progressive frames.
    hardware: "cuda" decodes with NVDEC where that opens, else in software with one line.
    threads: decoder threads, 0 for FFmpeg's choice. copy_streams: hand on the packets of the other streams.
    image_rate: frames a second; ``path`` is then a folder whose images (all of one kind) are the frames.

    Iterating gives Frames; ``items()`` gives DecodedFrame and CopyPacket in the order of the file. Either can be done
    once. Errors: UnreadableInput, BrokenStream (both InputError), UsageError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        stream: int = 0,
        on_error: OnError = "fail",
        start: float | None = None,
        duration: float | None = None,
        interlaced: Interlaced = "auto",
        deinterlace: bool = False,
        hardware: str | None = None,
        threads: int = 0,
        copy_streams: bool = True,
        image_rate: float | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.on_error = on_error
        self.skipped = 0  # packets that could not be decoded
        self.broken: str | None = None  # why reading ended early, in bypass mode
        self.frames_read = 0
        self._interlaced = interlaced
        self._deinterlace = deinterlace
        self._deinterlacer: Deinterlacer | None = None
        self._reformatter = VideoReformatter()
        self._warned: set[str] = set()
        self._copy_streams = copy_streams
        self._started = False
        self._waiting: list[av.VideoFrame] | None = None
        self._dts_lead: int | None = None
        if start is not None and start < 0:
            raise UsageError(f"--start {start} is negative", "give seconds from the beginning of the file")
        if duration is not None and duration <= 0:
            raise UsageError(f"--duration {duration} selects nothing", "give a number of seconds above 0")
        if image_rate is not None:
            self.container = _open_folder(self.path, image_rate)
        else:
            self.container = _open_with_hardware(self.path, hardware)
        try:
            self.stream = self._pick(stream)
            # FFmpeg's frame threads conceal the errors of a damaged file in another way at every run; slice threads,
            # which PyAV sets, do not.
            if threads:
                self.stream.thread_count = threads
            self._is_transport = bool(_LOSSY_TRANSPORTS & set(self.container.format.name.split(",")))
            self._truncated = truncation(self.path) if "://" not in self.path else None
            self._clock = _Clock(self.container.format.name)
            if self.stream.start_time is not None:  # raw streams have no times to wait for
                self._waiting = []
            self._set_range(start, duration)
            self._pending: list[DecodedFrame | CopyPacket] = []
            self._source = self._decode()
            self._read_first()
        except BaseException:
            self.container.close()
            raise

    # --- opening -----------------------------------------------------------------------------------------------------

    def _pick(self, number: int) -> av.VideoStream:
        videos = [s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        videos = [s for s in videos if s.codec_context is not None]
        if not videos:
            kinds = ", ".join(sorted({s.type for s in self.container.streams})) or "no stream at all"
            raise UnreadableInput(f"{self.path} has no video stream that can be decoded (it has: {kinds})")
        if number == 0:
            # A thumbnail track or a second angle may come first: prefer what the file calls its default.
            defaults = [s for s in videos if s.disposition & av.stream.Disposition.default]
            return (defaults or videos)[0]
        if not 0 <= number < len(videos):
            raise UsageError(f"video stream {number} of {self.path} does not exist", f"it has {len(videos)}")
        return videos[number]

    def _set_range(self, start: float | None, duration: float | None) -> None:
        begin = self.container.start_time
        origin = Fraction(begin, av.time_base) if begin is not None and begin > -(1 << 62) else Fraction(0)
        self._from: Fraction | None = None
        self._until: Fraction | None = None
        self.shift = Fraction(0)  # subtracted from every timestamp
        if start is None and duration is None:
            return
        first = origin + Fraction(str(start or 0))
        known = self.container.duration
        if start and known and Fraction(str(start)) >= Fraction(known, av.time_base):
            raise UsageError(
                f"--start {start} is behind the end of {self.path}", f"it is {known / av.time_base:.3f} s long"
            )
        self._from = first
        if duration is not None:
            self._until = first + Fraction(str(duration))
        if start:
            self.shift = first
            try:
                self.container.seek(int(first * av.time_base), backward=True)
            except av.error.FFmpegError as e:  # not seekable: decode up to there
                log.info("%s can't be searched (%s): decoding from its beginning", self.path, reason(e))

    def _read_first(self) -> None:
        """Decode up to the first frame; packets that come before it wait in ``_pending``."""
        first: DecodedFrame | None = None
        for item in self._source:
            self._pending.append(item)
            if isinstance(item, DecodedFrame):
                first = item
                break
        if first is None:
            if self._from is not None:
                raise UnreadableInput(
                    f"{self.path} has no frame in the range asked for", "check --start and --duration"
                )
            raise UnreadableInput(f"{self.path} has no frame that can be decoded")

    @property
    def rate(self) -> Fraction | None:
        """Frames a second as the container says, else as FFmpeg guesses; None when neither is plausible."""
        for rate in (self.stream.average_rate, self.stream.guessed_rate):
            if rate and 0 < rate <= 1000:
                return Fraction(rate)
        return None

    @property
    def first_time(self) -> Fraction | None:
        """Seconds at which the first frame is shown, None where it has no timestamp."""
        first = next(i for i in self._first_items if isinstance(i, DecodedFrame))
        return None if first.pts is None else first.pts * first.time_base

    @property
    def joined(self) -> int:
        """How often the clock of the file has jumped back so far, and what followed was moved."""
        return len(self._clock.offsets) - 1

    @property
    def tags(self) -> SourceTags:
        """What must be passed on to the encoder and the muxer, from the first frame."""
        return self._tags

    @property
    def info(self) -> StreamInfo:
        """Size, rate, colour and so on of the stream, as its first frame shows them."""
        first = next(i for i in self._first_items if isinstance(i, DecodedFrame))
        s = self.stream
        length = float(s.duration * s.time_base) if s.duration and s.time_base else None
        if length is None and self.container.duration:
            length = self.container.duration / av.time_base
        return StreamInfo(
            width=first.spec.width,
            height=first.spec.height,
            time_base=first.time_base,
            average_rate=s.average_rate or None,
            frames=s.frames,
            duration=length,
            codec=s.codec_context.name,
            pix_fmt=self._tags.pix_fmt,
            color=first.spec.color,
            sample_aspect_ratio=s.sample_aspect_ratio or None,
            rotation=first.native.rotation,
            field_order=first.spec.field_order,
            metadata=dict(self.container.metadata),
        )

    # --- reading -----------------------------------------------------------------------------------------------------

    def items(self) -> Iterator[DecodedFrame | CopyPacket]:
        """Frames of the stream and packets of the others, in the order of the file. Once only."""
        if self._started:
            raise RuntimeError("a VideoReader can be read once; open the file again")
        self._started = True
        pending, self._pending = self._pending, []
        yield from pending
        del pending
        yield from self._source

    def __iter__(self) -> Iterator[DecodedFrame]:
        for item in self.items():
            if isinstance(item, DecodedFrame):
                yield item

    def _decode(self) -> Iterator[DecodedFrame | CopyPacket]:
        self._first_items: list[DecodedFrame | CopyPacket] = []
        last_time: Fraction | None = None
        video_done = False
        corrupt = False
        packets = self._demux()
        for packet in packets:
            if packet.stream is not self.stream and packet.stream.index != self.stream.index:
                if self._copy_streams and packet.size and self._packet_in_range(packet):
                    yield CopyPacket(packet)
                continue
            if packet.is_corrupt and not self._is_transport:
                corrupt = True
            if video_done:
                continue
            for native in self._timed(self._progressive(packet, last_time), flush=_ends(packet)):
                if native.pts is not None and native.time_base:
                    last_time = native.pts * Fraction(native.time_base)
                    if self._from is not None and last_time < self._from:
                        continue
                    if self._until is not None and last_time >= self._until:
                        video_done = True
                        break
                frame = self._make(native)
                self.frames_read += 1
                yield frame
            if video_done and (not self._copy_streams or not self._others()):
                return
        if video_done:
            return
        if corrupt:
            self._break("a packet is cut short", last_time)
        elif self._is_truncated():
            assert self._truncated is not None
            self._break(f"the file is truncated: {self._truncated.missing:,} bytes are missing at its end", last_time)

    def _is_truncated(self) -> bool:
        """Payload is missing, not only a promise: a wrong box length or a lost index at the end costs no frame."""
        if self._truncated is None:
            return False
        if self._truncated.payload_only and "mov" in self.container.format.name:
            size = os.path.getsize(self.path)
            entries = [(e.pos, e.size) for s in self.container.streams for e in s.index_entries]
            return not entries or any(position + length > size for position, length in entries)
        return True

    def _others(self) -> bool:
        return len(self.container.streams) > 1

    def _demux(self) -> Iterator[av.Packet[Any]]:
        streams = list(self.container.streams) if self._copy_streams else [self.stream]
        streams = [s for s in streams if s.type != "attachment"]
        source = self.container.demux(*streams)
        while True:
            try:
                packet = next(source)
                if packet.size and self._clock.follow(packet):
                    jump = float(self._clock.offsets[-1])
                    log.warning("%s: its clock jumps back; what follows is moved by %.3f s", self.path, jump)
                yield packet
            except StopIteration:
                return
            except (av.error.EOFError, EOFError):
                return
            except (av.error.FFmpegError, OSError) as e:
                self._break(f"it can't be read on ({reason(e)})", self._last)
                # What is inside the decoder is still good.
                flush: av.Packet[Any] = av.Packet()
                flush.stream = self.stream
                yield flush
                return

    _last: Fraction | None = None

    def _timed(self, frames: Iterator[av.VideoFrame], *, flush: bool) -> Iterator[av.VideoFrame]:
        """Frames whose timestamps are the best that can be known: FFmpeg's own where it has any."""
        for native in frames:
            if self._uses_dts(native) and native.dts is not None:
                # AVI stores no presentation times. FFmpeg hands them out in decoding order, one frame late, while the
                # decoding times, in order of display, run evenly.
                if self._dts_lead is None:
                    self._dts_lead = native.dts - native.pts if native.pts is not None else 0
                native.pts = native.dts - self._dts_lead
            if native.time_base is None and self.stream.time_base is not None:
                native.time_base = self.stream.time_base  # PyAV leaves it out of frames that come at the end
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

    def _uses_dts(self, native: av.VideoFrame) -> bool:
        context = self.stream.codec_context
        return self.container.format.name == "avi" and bool(context.has_b_frames) and context.name in ("h264", "hevc")

    def _release(self) -> list[av.VideoFrame]:
        """Frames that came before the first timestamp: counted back from it, or fitted in before it."""
        waiting, self._waiting = self._waiting or [], None
        ahead = len(waiting) - 1
        if ahead > 0 and (known := waiting[-1].pts) is not None and known > 0:
            tick = waiting[-1].time_base or self.stream.time_base or Fraction(1, 1000)
            step = min(1 / frame_rate(self.rate) / tick, Fraction(known, ahead))
            for i, native in enumerate(waiting[:-1]):
                native.pts = int(known - (ahead - i) * step)
        return waiting

    def _progressive(self, packet: av.Packet[Any], last: Fraction | None) -> Iterator[av.VideoFrame]:
        """Decoded frames, woven where that was asked for."""
        frames = self._decode_packet(packet, last)
        if not self._deinterlace:
            yield from frames
            return
        for native in frames:
            if self._deinterlacer is None:
                order = self._field_order(native)
                self._deinterlacer = Deinterlacer("tff" if order == "progressive" else order)
            yield from self._deinterlacer.push(native)
        if _ends(packet) and self._deinterlacer is not None:
            yield from self._deinterlacer.flush()

    def _decode_packet(self, packet: av.Packet[Any], last: Fraction | None) -> list[av.VideoFrame]:
        self._last = last
        if not packet.size and not _ends(packet):
            return []  # "the picture before, once more" in Theora and AVI; to the decoder it would mean the end
        try:
            try:
                return self.stream.decode(packet if packet.size else None)
            except (av.error.EOFError, EOFError):
                if not packet.size:
                    return []
                self.stream.codec_context.flush_buffers()  # the decoder took something before for the end
                return self.stream.decode(packet)
        except (av.error.EOFError, EOFError):
            return []
        except av.error.FFmpegError as e:
            self.skipped += 1
            if self.frames_read == 0 and self._first_index == 0:
                # Before the first picture: a capture that starts in mid-GOP. No frame is lost that anybody could see.
                return []
            at = Fraction(packet.dts) * packet.time_base if packet.dts is not None else last
            self._break(f"a packet can't be decoded ({reason(e)})", at)
            return []

    _first_index = 0

    def _break(self, what: str, at: Fraction | None) -> None:
        when = f"at {float(at):.3f} s" if at is not None else "before its first frame"
        text = f"{self.path} breaks {when}: {what}"
        if self.on_error == "fail":
            raise BrokenStream(text, "--on-error bypass keeps what decodes")
        # One break makes many packets undecodable, and the end of a cut file is found more than once.
        level = logging.WARNING if self.broken is None else logging.DEBUG
        log.log(level, "%s; going on with what decodes", text)
        self.broken = self.broken or text

    def _packet_in_range(self, packet: av.Packet[Any]) -> bool:
        if self._from is None:
            return True
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            return False
        time = stamp * packet.time_base
        if time < self._from or (self._until is not None and time >= self._until):
            return False
        if self.shift:
            ticks = round(self.shift / packet.time_base)
            if packet.pts is not None:
                packet.pts -= ticks
            if packet.dts is not None:
                packet.dts -= ticks
        return True

    # --- frames ------------------------------------------------------------------------------------------------------

    def _make(self, native: av.VideoFrame) -> DecodedFrame:
        if native.sw_format is not None:
            # A hardware surface: bring it to memory in its own software format (NV12 or P010).
            native = self._reformatter.reformat(native, format=native.sw_format.name)
        index = self._first_index
        if index == 0:
            self._learn(native)
        native = self._conform(native)
        self._first_index = index + 1
        layout = self._tags.layout
        spec = FrameSpec(
            native.width,
            native.height,
            layout.color(self._matrix, self._full_range),
            self._field_order(native),
        )
        pts = native.pts
        time_base = native.time_base or self.stream.time_base or Fraction(1, 1000)
        if pts is not None and self.shift:
            pts -= round(self.shift / time_base)
        frame = DecodedFrame(index, pts, time_base, read_components(native, layout), spec, native)
        if index == 0:
            self._first_items = [frame]
        return frame

    _matrix = "bt709"
    _full_range = False

    def _learn(self, native: av.VideoFrame) -> None:
        """Fix format, colour and tags from the first frame."""
        name = native.format.name
        layout = LAYOUTS.get(name)
        if layout is None:
            f = native.format
            bits = max(c.bits for c in f.components)
            layout = LAYOUTS[nearest(name, is_rgb=f.is_rgb, bits=bits, components=len(f.components))]
            log.warning("%s: pixel format %s is converted to %s", self.path, name, layout.name)
        if not layout.alpha and any(k.lower() == "alpha_mode" and v == "1" for k, v in self.stream.metadata.items()):
            log.warning("%s: its alpha plane is left out: FFmpeg's %s decoder reads none", self.path, self.stream.name)
        code = native.colorspace
        if layout.model == "yuv" and code not in _MATRIX_BY_CODE and code not in (0, _UNSPECIFIED):
            log.warning("%s: colour matrix %d (H.273) is unknown here; corrections use BT.709", self.path, code)
        self._matrix = guess_matrix(code, native.height)
        tagged = native.color_range
        if layout.full_range is not None:
            full = layout.full_range
        elif tagged in (1, 2):
            full = tagged == 2
        else:
            full = layout.model == "gray"  # untagged gray is full range to FFmpeg's own scaler as well
        self._full_range = full
        side = _side_data(native)
        lost = [
            text
            for key, text in {
                "DYNAMIC_HDR_PLUS": "HDR10+ dynamic metadata",
                "DOVI_RPU_BUFFER": "Dolby Vision metadata",
                "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
                "AMBIENT_VIEWING_ENVIRONMENT": "ambient viewing environment",
            }.items()
            if key in side
        ]
        display = side.get("DISPLAYMATRIX")
        matrix: tuple[int, ...] | None = None
        if display is not None and len(display) >= 36:
            matrix = struct.unpack_from("=9i", display)
        mastering = side.get("MASTERING_DISPLAY_METADATA")
        light = side.get("CONTENT_LIGHT_LEVEL")
        self._tags = SourceTags(
            pix_fmt=name,
            layout=layout,
            matrix=code,
            primaries=native.color_primaries,
            transfer=native.color_trc,
            color_range=2 if full and layout.full_range and layout.model != "rgb" else tagged,
            display_matrix=matrix,
            mastering=parse_mastering_display(mastering) if mastering is not None else None,
            light=parse_content_light(light) if light is not None else None,
            lost=tuple(lost),
        )
        self._shape = (native.width, native.height, name)

    def _conform(self, native: av.VideoFrame) -> av.VideoFrame:
        """The frame in the stream's layout; a change of size or format in mid-stream fails, or is scaled away."""
        shape = (native.width, native.height, native.format.name)
        if shape != self._shape and not self._same_planes(native):
            was = f"{self._shape[0]}x{self._shape[1]} {self._shape[2]}"
            now = f"{shape[0]}x{shape[1]} {shape[2]}"
            at = "an unknown time"
            if native.pts is not None and native.time_base is not None:
                at = f"{float(native.pts * native.time_base):.3f} s"
            if self.on_error == "fail":
                raise BrokenStream(
                    f"{self.path} changes from {was} to {now} at {at}",
                    "--on-error bypass scales the rest to the first size",
                )
            if now not in self._warned:
                self._warned.add(now)
                log.warning("%s changes from %s to %s at %s; scaled to the first", self.path, was, now, at)
            return self._reformat(native, self._shape[0], self._shape[1])
        if native.format.name != self._tags.layout.name and native.format.name not in LAYOUTS:
            return self._reformat(native, native.width, native.height)
        return native

    def _same_planes(self, native: av.VideoFrame) -> bool:
        """yuvj420p after yuv420p: the same planes under another name."""
        layout = LAYOUTS.get(native.format.name)
        return (
            (native.width, native.height) == self._shape[:2]
            and layout is not None
            and layout.same_components(self._tags.layout)
            and layout.components == self._tags.layout.components
        )

    def _reformat(self, native: av.VideoFrame, width: int, height: int) -> av.VideoFrame:
        code = native.colorspace
        space = code if code in (1, 4, 5, 6, 7, 9) else (1 if native.height >= 720 else 5)
        out = self._reformatter.reformat(
            native,
            width=width,
            height=height,
            format=self._tags.layout.name,
            src_colorspace=space,
            dst_colorspace=space,
            src_color_range=native.color_range or None,
            dst_color_range=(2 if self._full_range else 1) if self._tags.layout.model != "rgb" else None,
            interpolation="BICUBIC",
            threads=1,
        )
        out.pts = native.pts
        if native.time_base is not None:
            out.time_base = native.time_base
        return out

    def _field_order(self, native: av.VideoFrame) -> FieldOrder:
        if self._deinterlacer is not None:
            return "progressive"
        if self._interlaced != "auto":
            return self._interlaced
        if not native.interlaced_frame:
            return "progressive"
        known = _FIELD_ORDER.get(self.stream.codec_context.field_order)
        # Unknown order: 525-line DV is bottom first by its standard, everything else is top first in practice.
        return known or ("bff" if native.height == 480 else "tff")

    # --- closing -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Idempotent. An unclosed container leaks some 16 MB."""
        self._first_items = []
        self._pending = []
        self.container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _ends(packet: av.Packet[Any]) -> bool:
    """True for the empty packet that PyAV sends after the last one of a stream."""
    return not packet.size and packet.pts is None and packet.dts is None


def _open_folder(path: str, rate: float) -> av.container.InputContainer:
    """A folder of images as a video, through FFmpeg's image2 demuxer, in order of their names."""
    files = [p for p in Path(path).iterdir() if p.is_file() and not p.name.startswith(".")]
    endings = sorted({p.suffix for p in files if p.suffix.lower() in IMAGE_ENDINGS})
    if len(endings) != 1:
        found = f"images of several kinds ({', '.join(endings)})" if endings else "no image"
        raise UnreadableInput(f"folder {path} holds {found}", "one kind is needed to make a video of them")
    escaped = "".join(f"\\{c}" if c in "*?[]\\%" else c for c in path.rstrip("/"))
    try:
        return av.open(
            f"{escaped}/*{endings[0]}",
            "r",
            format="image2",
            options={"pattern_type": "glob", "framerate": str(Fraction(rate).limit_denominator(1001))},
        )
    except (av.error.FFmpegError, OSError, ValueError) as e:
        raise UnreadableInput(f"images of {path} can't be opened: {reason(e)}") from e


def _side_data(native: av.VideoFrame) -> dict[str, bytes]:
    """Side data of a frame by the name of its type."""
    blocks: Any = native.side_data  # PyAV's own types have it as a mapping of str
    found: dict[str, bytes] = {}
    for block in blocks:
        for owned in gc.get_referents(block):
            if isinstance(owned, Dictionary) and len(owned):
                # PyAV 18 frees the name of an ICC profile twice, with this wrapper and with the frame, and the process
                # crashes later. A wrapper that is never freed costs a few bytes a file.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(owned))
        found[block.type.name] = bytes(block)
    return found


def _unknown_side_data(kind: type[Enum], value: object) -> Enum:
    """A member for a type of side data that PyAV has no name for (31, the EXIF data of a camera's picture)."""
    member = object.__new__(kind)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


# Without it PyAV raises while it collects the blocks, and the rotation among them is lost.
SideDataType._missing_ = classmethod(_unknown_side_data)  # type: ignore[assignment, method-assign]


def _open_with_hardware(path: str, name: str | None) -> av.container.InputContainer:
    """With a hardware decoder where that opens, else in software with one line."""
    if name is not None:
        from av.codec.hwaccel import HWAccel

        try:
            return open_container(path, hwaccel=HWAccel(device_type=name, allow_software_fallback=True))
        except (UnreadableInput, av.error.FFmpegError, OSError, ValueError, RuntimeError) as e:
            why: BaseException = (e.__cause__ or e) if isinstance(e, UnreadableInput) else e
            software = open_container(path)  # what is wrong with the file itself is said here
            log.warning("no hardware decoding with %s here (%s): decoding in software", name, reason(why))
            return software
    return open_container(path)


def open_video(path: str | os.PathLike[str], **options: Any) -> VideoReader:
    """Open a video file for reading: ``with open_video("a.mp4") as video: for frame in video: ...``.

    Options are those of VideoReader. Errors: UnreadableInput, BrokenStream, UsageError.
    """
    return VideoReader(path, **options)
