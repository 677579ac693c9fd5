"""Packets to frames: open a video file, decode one of its streams, hand on the packets of the others.

``VideoReader`` decodes one frame before it says anything about the stream, because the truth (pixel format, colour,
rotation, HDR metadata) is in the frames and not in the header. Frames come as component planes at the source's own
depth and chroma grid, without a scaler in between; formats that have no such planes are converted once, and said so.

Threading: a reader belongs to one thread at a time. FFmpeg's own decoding threads work inside it.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import TracebackType
from typing import Any, Literal

import av
import av.error
from av.video.reformatter import VideoReformatter

from streamdeblur.errors import BrokenStream, UnreadableInput, UsageError
from streamdeblur.frames import FieldOrder, Frame, FrameSpec, StreamInfo
from streamdeblur.video.clock import JoinedClock
from streamdeblur.video.conform import Conformer
from streamdeblur.video.deinterlace import Deinterlacer
from streamdeblur.video.opening import open_folder, open_with_hardware, reason
from streamdeblur.video.pixfmt import read_components
from streamdeblur.video.ranges import CopyRange, Keyframes, keyframes_around
from streamdeblur.video.stamps import FrameStamps, uses_decoding_times
from streamdeblur.video.tags import Look, SourceTags, field_order, learn
from streamdeblur.video.truncation import truncation

log = logging.getLogger(__name__)

OnError = Literal["fail", "bypass"]
Interlaced = Literal["auto", "progressive", "tff", "bff"]

#: Demuxers that flag packets corrupt for a lost TS packet: ordinary in captures, and the decoder copes.
_LOSSY_TRANSPORTS = {"mpegts", "rtp", "rtsp", "sdp", "mpegtsraw"}
#: Demuxers that find a keyframe of every stream by an index; and seconds that streams may lie apart in other files.
_INDEXED = {"mov", "matroska"}
_SKEW = 1
#: Matroska's statistics of a track, as FFmpeg and mkvmerge write them.
_DURATION_TAG = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


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


class VideoReader:
    """Frames of one video stream of a file, and the packets of its other streams.

    path: a file, or anything FFmpeg opens.
    stream: which video stream, counted among the video streams that are not cover art.
    on_error: "fail" raises BrokenStream at the first packet that can't be decoded or read, "bypass" keeps what decodes.
    start, duration: seconds from the start of the container, exact where they are fractions; frames with
        start <= time < start + duration are given, with timestamps that count from ``start``.
    interlaced: overrides what the stream says of itself. deinterlace: weave fields into progressive frames.
    hardware: "cuda" decodes with NVDEC where that opens, else in software with one line.
    threads: decoder threads, 0 for FFmpeg's choice. copy_streams: hand on the packets of the other streams.
    image_rate: frames a second; ``path`` is then a folder whose images (all of one kind) are the frames.

    Iterating gives Frames; ``items()`` gives DecodedFrame and CopyPacket in the order of the file. Either can be done
    once, before ``close``: RuntimeError afterwards. Errors: UnreadableInput and BrokenStream (both InputError),
    UsageError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        stream: int = 0,
        on_error: OnError = "fail",
        start: float | Fraction | None = None,
        duration: float | Fraction | None = None,
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
        self._seen_interlaced = False
        self._copy_streams = copy_streams
        self._started = False
        self._closed = False
        self._last: Fraction | None = None  # time of the last frame, for messages
        self._index = 0  # of the next frame
        self._first: DecodedFrame | None = None
        self._look: Look | None = None
        self._early: list[tuple[Fraction | None, bool]] = []  # packets before the first keyframe: when; refused?
        self._keyed = False  # a keyframe was seen
        self._key: int | None = None  # when the first one is shown
        self._early_break: tuple[str, Fraction | None] | None = None  # before the first picture
        self._conform: Conformer | None = None
        if start is not None and start < 0:
            raise UsageError(f"--start {start} is negative", "give seconds from the beginning of the file")
        if duration is not None and duration <= 0:
            raise UsageError(f"--duration {duration} selects nothing", "give a number of seconds above 0")
        if image_rate is not None:
            self.container = open_folder(self.path, image_rate)
        else:
            self.container = open_with_hardware(self.path, hardware)
        try:
            self.stream = self._pick(stream)
            # FFmpeg's frame threads conceal the errors of a damaged file in another way at every run; slice threads,
            # which PyAV sets, do not.
            if threads:
                self.stream.thread_count = threads
            # FFmpeg fills what is missing of a JPEG with gray, and says nothing unless it is told to.
            self._strict = self._is_picture() and self.stream.codec_context.name == "mjpeg"
            if self._strict:
                self.stream.codec_context.options = {"err_detect": "explode"}
            self._is_transport = bool(_LOSSY_TRANSPORTS & set(self.container.format.name.split(",")))
            self._truncated = truncation(self.path) if "://" not in self.path else None
            self._clock = JoinedClock(self.container.format.name)
            self._stamps = FrameStamps(
                self.stream.time_base,
                self.rate,
                timed=self.stream.start_time is not None,
                decoding_times=uses_decoding_times(self.container.format.name, self.stream),
            )
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

    def _is_picture(self) -> bool:
        """True for a picture or a folder of them, which are read as videos."""
        names = self.container.format.name.split(",")
        return "image2" in names or any(n.endswith("_pipe") for n in names)

    def _set_range(self, start: float | Fraction | None, duration: float | Fraction | None) -> None:
        begin = self.container.start_time
        origin = Fraction(begin, av.time_base) if begin is not None and begin > -(1 << 62) else Fraction(0)
        self._from: Fraction | None = None
        self._until: Fraction | None = None
        self._copy_range: CopyRange | None = None
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
        if self._copy_streams:
            others = [s for s in self.container.streams if s.index != self.stream.index]
            self._copy_range = CopyRange(
                self.path, others, start=first if start else None, until=self._until, shift=self.shift
            )
        if start:
            self._seek(first)

    def _seek(self, first: Fraction) -> None:
        """Begin to read where all that is wanted from ``first`` on can be decoded."""
        formats = set(self.container.format.name.split(","))
        mine = keyframes_around(self.path, self.stream.index, first, ahead=False)
        around = [k for k in (mine, *self.keyframes.values()) if k is not None]
        needed = min((k.needed for k in around if k.needed is not None), default=Fraction(0))
        if "mov" in formats and not self.keyframes and mine is not None and mine.presented is not None:
            # Searched by the time of presentation: that of decoding would lead one group of pictures further back.
            needed = mine.presented
        needed += first
        if not _INDEXED & formats:
            needed -= _SKEW  # searched by the times of one stream, while others lie around it
        try:
            if self.stream.time_base and not self.keyframes and _INDEXED & formats:
                self.container.seek(
                    math.floor(max(needed, Fraction(0)) / self.stream.time_base), stream=self.stream, backward=True
                )
            else:
                self.container.seek(math.floor(max(needed, Fraction(0)) * av.time_base), backward=True)
        except av.error.FFmpegError as e:  # not seekable: decode up to there
            log.info("%s can't be searched (%s): decoding from its beginning", self.path, reason(e))

    def _read_first(self) -> None:
        """Decode up to the first frame; packets that come before it wait in ``_pending``."""
        for item in self._source:
            self._pending.append(item)
            if isinstance(item, DecodedFrame):
                if self._early_break is not None:
                    self._break(*self._early_break)
                self._tell_early(item)
                return
        if self._from is not None:
            raise UnreadableInput(f"{self.path} has no frame in the range asked for", "check --start and --duration")
        raise UnreadableInput(f"{self.path} has no frame that can be decoded")

    def _tell_early(self, first: DecodedFrame) -> None:
        """Say how many packets no picture can be made of, because the file begins between two keyframes."""
        begin = None if first.native.pts is None else first.native.pts * first.time_base
        lost = sum(failed or (begin is not None and time is not None and time < begin) for time, failed in self._early)
        self._early.clear()
        if lost and not self.shift:
            packets = f"{lost} packets, of which no picture can be made, are" if lost > 1 else "a packet is"
            log.warning("%s does not begin with a keyframe: %s left out", self.path, packets)

    def _begun(self) -> tuple[DecodedFrame, Look]:
        self._assert_open()
        assert self._first is not None
        assert self._look is not None
        return self._first, self._look

    def _assert_open(self) -> None:
        # FFmpeg's structures are gone with the container, and PyAV would read them nevertheless.
        if self._closed:
            raise RuntimeError(f"the reader of {self.path} is closed; open the file again")

    @property
    def rate(self) -> Fraction | None:
        """Frames a second as the container says, else as FFmpeg guesses; None when neither is plausible."""
        self._assert_open()
        for rate in (self.stream.average_rate, self.stream.guessed_rate):
            if rate and 0 < rate <= 1000:
                return Fraction(rate)
        return None

    @property
    def first_time(self) -> Fraction | None:
        """Seconds at which the first frame is shown, None where it has no timestamp."""
        first, _ = self._begun()
        return None if first.pts is None else first.pts * first.time_base

    @property
    def until(self) -> Fraction | None:
        """Seconds at which the part that is read ends, by the clock of its frames; None where no end was given."""
        return None if self._until is None else self._until - self.shift

    @property
    def end(self) -> Fraction | None:
        """Seconds at which the stream ends by its container's word, None where that says nothing of single streams."""
        self._assert_open()
        s = self.stream
        if s.duration and s.time_base:
            return ((s.start_time or 0) + s.duration) * s.time_base - self.shift
        for key, value in s.metadata.items():
            found = _DURATION_TAG.fullmatch(value) if key.upper().startswith("DURATION") else None
            if found:
                hours, minutes, seconds = found.groups()
                return (int(hours) * 60 + int(minutes)) * 60 + Fraction(seconds) - self.shift
        return None

    @property
    def joined(self) -> int:
        """How often the clock of the file has jumped back so far, and what followed was moved."""
        return len(self._clock.offsets) - 1

    @property
    def tags(self) -> SourceTags:
        """What must be passed on to the encoder and the muxer, from the first frame."""
        return self._begun()[1].tags

    @property
    def keyframes(self) -> Mapping[int, Keyframes]:
        """Where the other picture streams can begin, by index, for a part of a file that does not begin at its own."""
        return {} if self._copy_range is None else self._copy_range.keyframes

    @property
    def info(self) -> StreamInfo:
        """Size, rate, colour and so on of the stream, as its first frame shows them."""
        first, look = self._begun()
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
            pix_fmt=look.tags.pix_fmt,
            color=first.spec.color,
            sample_aspect_ratio=s.sample_aspect_ratio or None,
            rotation=first.native.rotation,
            field_order=first.spec.field_order,
            metadata=dict(self.container.metadata),
        )

    # --- reading -----------------------------------------------------------------------------------------------------

    def items(self) -> Iterator[DecodedFrame | CopyPacket]:
        """Frames of the stream and packets of the others, in the order of the file. Once only."""
        self._assert_open()
        if self._started:
            raise RuntimeError("a VideoReader can be read once; open the file again")
        self._started = True
        pending, self._pending = self._pending, []
        yield from pending
        del pending
        while True:
            self._assert_open()
            item = next(self._source, None)
            if item is None:
                return
            yield item
            del item  # a frame is big: the caller's is the only reference while the next one is made

    def __iter__(self) -> Iterator[DecodedFrame]:
        for item in self.items():
            if isinstance(item, DecodedFrame):
                yield item

    def _decode(self) -> Iterator[DecodedFrame | CopyPacket]:
        last_time: Fraction | None = None
        video_done = False
        corrupt = False
        packets = self._demux()
        for packet in packets:
            if packet.stream is not self.stream and packet.stream.index != self.stream.index:
                if self._copy_streams and packet.size:
                    taken = (packet,) if self._copy_range is None else self._copy_range.take(packet)
                    for part in taken:
                        yield CopyPacket(part)
                continue
            if packet.is_corrupt and not self._is_transport:
                corrupt = True
            if video_done:
                continue
            for native in self._stamps.follow(self._progressive(packet, last_time), flush=_ends(packet)):
                if native.pts is not None and native.time_base:
                    last_time = native.pts * Fraction(native.time_base)
                    if self._from is not None and last_time < self._from:
                        self._early_break = None  # it was before the part that is read
                        continue
                    if self._until is not None and last_time >= self._until:
                        video_done = True
                        break
                frame = self._make(native)
                self.frames_read += 1
                yield frame
            if video_done and (not self._copy_streams or not self._others()):
                break
        if self._deinterlace and self._interlaced == "auto" and not self._seen_interlaced:
            log.warning(
                "%s: --deinterlace has no effect: no frame says that it is interlaced; --interlaced tff or bff says so",
                self.path,
            )
        if video_done:
            return
        if corrupt:
            self._break("a packet is cut short", last_time)
        elif self._is_truncated():
            assert self._truncated is not None
            missing = f"{self._truncated.missing:,} bytes are missing at its end"
            if self._is_transport:  # which only shows what its last packet lacks
                missing = f"its last packet lacks {self._truncated.missing} bytes, and what followed is not there"
            self._break(f"the file is truncated: {missing}", last_time)

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

    def _progressive(self, packet: av.Packet[Any], last: Fraction | None) -> Iterator[av.VideoFrame]:
        """Decoded frames, woven where that was asked for."""
        frames = self._decode_packet(packet, last)
        if not self._deinterlace:
            yield from frames
            return
        for native in frames:
            self._seen_interlaced |= bool(native.interlaced_frame)
            if self._deinterlacer is None:
                order = self._field_order(native)
                forced = self._interlaced != "auto"
                self._deinterlacer = Deinterlacer("tff" if order == "progressive" else order, forced=forced)
            yield from self._deinterlacer.push(native)
        if _ends(packet) and self._deinterlacer is not None:
            yield from self._deinterlacer.flush()

    def _decode_packet(self, packet: av.Packet[Any], last: Fraction | None) -> list[av.VideoFrame]:
        self._last = last
        if not packet.size and not _ends(packet):
            return []  # "the picture before, once more" in Theora and AVI; to the decoder it would mean the end
        early = self._is_early(packet)
        try:
            try:
                frames = self.stream.decode(packet if packet.size else None)
            except (av.error.EOFError, EOFError):
                if not packet.size:
                    return []
                self.stream.codec_context.flush_buffers()  # the decoder took something before for the end
                frames = self.stream.decode(packet)
        except (av.error.EOFError, EOFError):
            return []
        except av.error.FFmpegError as e:
            self.skipped += 1
            at = Fraction(packet.dts) * packet.time_base if packet.dts is not None else last
            part = "a picture can't be decoded whole" if self._strict else "a packet can't be decoded"
            what = f"{part} ({reason(e)})"
            if self._first is not None:
                self._break(what, at)
            elif early:
                # A capture that starts in mid-GOP: no frame is lost that anybody could see.
                self._early.append((None, True))
            else:
                # Where no picture follows, the file is no broken one but none at all.
                self._early_break = self._early_break or (what, at)
            return self._conceal(packet) if self._strict else []
        if early:
            self._early.append((packet.pts * packet.time_base if packet.pts is not None else None, False))
        return frames

    def _is_early(self, packet: av.Packet[Any]) -> bool:
        """True for a packet that hangs on a keyframe before the beginning of the file."""
        if self._first is not None or not packet.size or packet.is_discard:
            return False
        if not self._keyed and self._is_keyframe(packet):
            self._keyed, self._key = True, packet.pts
        leading = packet.pts is not None and self._key is not None and packet.pts < self._key
        return not self._keyed or leading

    def _is_keyframe(self, packet: av.Packet[Any]) -> bool:
        """By the packet, or the index of MP4: FFmpeg takes the mark off a picture that is too damaged to be one."""
        if packet.is_keyframe or "mov" not in self.container.format.name or packet.pos is None:
            return packet.is_keyframe
        return next((e.is_keyframe for e in self.stream.index_entries if e.pos == packet.pos), False)

    def _conceal(self, packet: av.Packet[Any]) -> list[av.VideoFrame]:
        """What can be seen of a damaged JPEG."""
        try:
            context: Any = av.CodecContext.create("mjpeg", "r")
            frames: list[av.VideoFrame] = context.decode(packet)
        except av.error.FFmpegError as e:
            log.debug("nothing of a packet of %s can be decoded: %s", self.path, reason(e))
            return []
        for frame in frames:
            frame.time_base = packet.time_base
        return frames

    def _break(self, what: str, at: Fraction | None) -> None:
        when = f"at {float(at):.3f} s" if at is not None else "before its first frame"
        text = f"{self.path} breaks {when}: {what}"
        if self.on_error == "fail":
            raise BrokenStream(text, "--on-error bypass keeps what decodes")
        # One break makes many packets undecodable, and the end of a cut file is found more than once.
        level = logging.WARNING if self.broken is None else logging.DEBUG
        log.log(level, "%s; going on with what decodes", text)
        self.broken = self.broken or text

    # --- frames ------------------------------------------------------------------------------------------------------

    def _make(self, native: av.VideoFrame) -> DecodedFrame:
        if native.sw_format is not None:
            # A hardware surface: bring it to memory in its own software format (NV12 or P010).
            native = self._reformatter.reformat(native, format=native.sw_format.name)
        if self._look is None or self._conform is None:
            name, metadata = self.stream.name, self.stream.metadata
            self._look = learn(native, path=self.path, codec=str(name), metadata=metadata)
            self._conform = Conformer(native, self._look, path=self.path, scale=self.on_error == "bypass")
        native = self._conform(native)
        look = self._look
        layout = look.tags.layout
        spec = FrameSpec(
            native.width, native.height, layout.color(look.matrix, look.full_range), self._field_order(native)
        )
        pts = native.pts
        time_base = native.time_base or self.stream.time_base or Fraction(1, 1000)
        if pts is not None and self.shift:
            pts -= round(self.shift / time_base)
        frame = DecodedFrame(self._index, pts, time_base, read_components(native, layout), spec, native)
        self._index += 1
        if self._first is None:
            self._first = frame
        return frame

    def _field_order(self, native: av.VideoFrame) -> FieldOrder:
        if self._deinterlacer is not None:
            return "progressive"
        if self._interlaced != "auto":
            return self._interlaced
        return field_order(native, self.stream.codec_context.field_order)

    # --- closing -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Idempotent. An unclosed container leaks some 16 MB."""
        self._closed = True
        self._first = None
        self._pending = []
        self.container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _ends(packet: av.Packet[Any]) -> bool:
    """True for the empty packet that PyAV sends after the last one of a stream."""
    return not packet.size and packet.pts is None and packet.dts is None


def open_video(path: str | os.PathLike[str], **options: Any) -> VideoReader:
    """Open a video file for reading: ``with open_video("a.mp4") as video: for frame in video: ...``.

    Options are those of VideoReader. Errors: UnreadableInput, BrokenStream, UsageError.
    """
    return VideoReader(path, **options)
