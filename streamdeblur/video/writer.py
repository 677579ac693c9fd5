"""Frames to packets to a file: encode the restored stream, mux it with the untouched others, keep every timestamp.

The file grows beside its target under ``NAME.partial`` and gets its name only when it is complete and on disk, so a
kill at any moment leaves no broken file under the final name.

Threading: a writer belongs to one thread.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error

from streamdeblur import interrupts
from streamdeblur.errors import DiskFull, EncoderError, InputError, OutputError, UsageError
from streamdeblur.frames import Frame
from streamdeblur.video import matroska
from streamdeblur.video.chapters import chapters_of
from streamdeblur.video.dts import LeadingDts
from streamdeblur.video.encoders import EncoderChoice, EncoderRequest, choose, configure
from streamdeblur.video.losses import losses
from streamdeblur.video.opening import file_name, reason
from streamdeblur.video.packets import avc_parameter_sets, is_hidden
from streamdeblur.video.pixfmt import component_views, write_components
from streamdeblur.video.reader import CopyPacket, DecodedFrame, VideoReader
from streamdeblur.video.scheduling import kept_scheduling
from streamdeblur.video.streams import (
    BEFORE_ZERO,
    StreamPlan,
    container_tags,
    copy_stream_tags,
    fit_range,
    has_styles,
    mov_text_to_subrip,
    needs_metadata_tags,
    plan_streams,
    subrip_to_mov_text,
)
from streamdeblur.video.timeline import Timeline, frame_rate, lift

log = logging.getLogger(__name__)

#: FFmpeg's muxer for a file name; its own guess takes .m4v for a raw MPEG-4 stream.
_MUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".avi": "avi",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".nut": "nut",
    ".3gp": "3gp",
}
_MATROSKA = {"matroska", "webm"}
_TIMECODE = re.compile(r"\d\d:\d\d:\d\d[:;.]\d\d")
#: Free space below which a job stops while it still can do so in good order.
_RESERVE = 1 << 20


def muxer_for(path: str | os.PathLike[str]) -> str:
    """FFmpeg's muxer name for an output path. Raises UsageError for an ending that it does not write."""
    ending = Path(path).suffix.lower()
    if ending not in _MUXERS:
        raise UsageError(
            f"output {os.fspath(path)} ends in {ending or 'nothing'}, which no video container here does",
            f"use one of {', '.join(_MUXERS)}",
        )
    return _MUXERS[ending]


def partial_path(path: Path) -> Path:
    """Where a file grows before it is complete."""
    return path.with_name(path.name + ".partial")


class VideoWriter:
    """Writes one restored stream and everything else of its source.

    path: the final name; reader: the open source, whose tags, streams, chapters and metadata are kept.
    request: encoder, quality and so on. What can't be kept is logged as warnings, a line each.

    ``write`` takes frames in order, ``copy`` packets of other streams as they come; ``finish`` flushes, syncs and
    renames; ``abort`` removes what there is. Errors: OutputError, EncoderError, DiskFull.
    """

    def __init__(self, path: str | os.PathLike[str], reader: VideoReader, request: EncoderRequest) -> None:
        self.path = Path(path)
        self.partial = partial_path(self.path)
        self.container_name = muxer_for(self.path)
        self.frames_written = 0
        self._reader = reader
        self._open: av.container.OutputContainer | None = None
        self._held: int | None = None  # keeps other runs off the unfinished file
        self._finished = False
        self._header = False
        self._last_dts: dict[int, int] = {}
        self._copy: dict[int, tuple[StreamPlan, Any]] = {}
        self._warned: set[str] = set()
        check_writable(self.path)
        info = reader.info
        self._size = (info.width, info.height)
        self._lift = lift(reader.first_time)
        if self._lift:
            log.warning(
                "%s begins %.3f s before zero, which no player shows: everything is moved by that much",
                reader.path,
                self._lift,
            )
        self.timeline = Timeline(info.time_base, reader.rate, self._lift)
        self._time_base = self.timeline.tick
        self._booked: dict[str, matroska.Rewrite] = {}
        self._last_duration: dict[int, int] = {}
        self._first_stamps: list[int] = []
        self._end = reader.end if "mov" in reader.container.format.name else None
        self._rounded = Fraction(0)  # seconds that the container's clock moved a frame by at the most
        self._told: list[str] = []  # tags whose loss was told
        self._timed: set[int] = set()  # copied streams of which some timestamp was seen
        self._leading: dict[int, LeadingDts] = {}  # of copied videos, by index in the source
        plans = plan_streams(reader.container, reader.stream.index, self.container_name, reader.path)
        self.plans, late = fit_range(plans, reader.keyframes, self.container_name)
        for text in late:
            log.warning("%s", text)
        # What comes before zero, of a part that begins there: other pictures await their first keyframe.
        self._cuts = bool(reader.shift) and self.container_name not in BEFORE_ZERO
        self._begun: dict[int, int] = {}  # timestamps of those
        with self._guard("can't be created"):
            self._held = _hold(self.partial)
            self._open = av.open(
                file_name(self.partial), "w", format=self.container_name, options=self._container_options(reader)
            )
        out = self._container
        try:
            self.choice: EncoderChoice = choose(
                request,
                reader.tags,
                info.color,
                self._size,
                field_order=info.field_order,
                supported=_takes(self.container_name, out),
                container=self.container_name,
            )
            for note in self.choice.notes:
                log.warning("%s", note)
            self._add_streams(request)
        except BaseException:
            self.abort()
            raise

    # --- header ------------------------------------------------------------------------------------------------------

    @property
    def _container(self) -> av.container.OutputContainer:
        if self._open is None:
            raise RuntimeError("the writer is closed")
        return self._open

    def _container_options(self, reader: VideoReader) -> dict[str, str]:
        options: dict[str, str] = {}
        if self.container_name in BEFORE_ZERO:
            # Start offsets are stored in ticks of the movie; the default of 1/1000 would round every pts.
            options["movie_timescale"] = str(_movie_timescale(self._time_base, reader))
            flags = []
            tags = reader.tags
            if tags.color_range or any(c not in (0, 2, 3) for c in (tags.matrix, tags.primaries, tags.transfer)):
                # Without it the muxer writes a colour box only when all of them are known; with it always, and a box
                # of unknowns still says "limited range".
                flags.append("write_colr")
            keys = container_tags(reader.container)
            if needs_metadata_tags(keys):
                if self.container_name != "mov" and any(p.action == "copy" and p.cover for p in self.plans):
                    # The two kinds of metadata exclude each other in the muxer, and only iTunes' has pictures.
                    self._told = [k for k in keys if needs_metadata_tags({k: ""})]
                    lost = ", ".join(self._told)
                    log.warning("MP4 holds no cover picture together with the tags %s, which are left out", lost)
                else:
                    flags.append("use_metadata_tags")
            if flags:
                options["movflags"] = "+" + "+".join(flags)
            options["strict"] = "experimental"
        if self.container_name in _MATROSKA:
            # The muxer would shift everything by the AAC priming that comes before zero.
            options["avoid_negative_ts"] = "disabled"
        return options

    def _add_streams(self, request: EncoderRequest) -> None:
        reader, out = self._reader, self._container
        rate = frame_rate(reader.rate)
        first_choice = reader.stream.index
        planned = {p.index: p for p in self.plans}
        # Streams keep their order; players take the first of a kind.
        for source in reader.container.streams:
            if source.index == first_choice:
                self._video = self._add_video(rate, request)
                continue
            plan = planned[source.index]
            if plan.action == "drop":
                if plan.why:
                    hint = f"; {plan.keeper} would keep it" if plan.keeper else ""
                    log.warning("%s is left out: %s%s", plan.label, plan.why, hint)
                continue
            with self._guard(f"can't take {plan.label}"):
                if plan.action == "attach":
                    attachment: Any = source
                    if plan.cover:
                        name, mime, data = plan.cover.name, plan.cover.mime, plan.cover.data
                    else:
                        name = str(source.metadata.get("filename", f"attachment{source.index}"))
                        mime, data = attachment.mimetype or "application/octet-stream", attachment.data
                    added = out.add_attachment(name, mime, data)
                    added.metadata.update({k: v for k, v in source.metadata.items() if k.lower() == "title"})
                    continue
                if plan.action == "copy":
                    target = out.add_stream_from_template(source, opaque=True)
                elif plan.action == "acm":
                    sound: Any = source
                    target = out.add_mux_stream(matroska.STAND_IN, rate=sound.codec_context.sample_rate)
                else:
                    target = out.add_mux_stream(plan.action)
                    target.time_base = Fraction(1, 1000)
                copy_stream_tags(source, target)
                if plan.action in ("copy", "acm") and source.time_base:
                    target.time_base = source.time_base
                if plan.wave is not None:
                    self._book(target, wave=plan.wave)
                if plan.kind == "video" and plan.action == "copy":
                    picture: Any = source
                    size = (picture.codec_context.width, picture.codec_context.height)
                    self._book_display(target, size, picture.sample_aspect_ratio)
            self._copy[source.index] = (plan, target)
        out.metadata.update(container_tags(reader.container))
        if self.container_name in BEFORE_ZERO:
            # The muxer makes a track of it, and fails at the end of the job over one that it can't read.
            for tags in (out.metadata, *(s.metadata for s in out.streams)):
                code = tags.get("timecode")
                if code is not None and (not _TIMECODE.fullmatch(code) or rate > 240):
                    log.warning("timecode %r at %.3f frames a second is left out: MP4 can't hold it", code, rate)
                    del tags["timecode"]
        chapters: Any = chapters_of(reader)
        if chapters:
            out.set_chapters(chapters)

    def _add_video(self, rate: Fraction, request: EncoderRequest) -> Any:
        reader = self._reader
        with self._guard(f"can't take {self.choice.codec}", EncoderError):
            stream: Any = self._container.add_stream(self.choice.codec, rate=rate, options=dict(self.choice.options))
            context = stream.codec_context
            configure(context, self.choice, self._size, reader.tags, rate, self._time_base)
            stream.time_base = self._time_base
            if request.threads:
                context.thread_count = request.threads
            elif self.choice.codec == "ffv1":
                context.thread_count = os.cpu_count() or 1
            sar = reader.stream.sample_aspect_ratio
            if sar:
                context.sample_aspect_ratio = sar
            order = reader.info.field_order
            if order != "progressive":
                context.field_order = 2 if order == "tff" else 3
                if self.choice.codec == "libx264":
                    context.flags |= int(av.codec.context.Flags.interlaced_dct)
            context.flags |= int(av.codec.context.Flags.frame_duration)
            if reader.tags.display_matrix is not None:
                stream.set_display_matrix(list(reader.tags.display_matrix))
            copy_stream_tags(reader.stream, stream, encoded=True)
            self._book_display(stream, self._size, sar)
        return stream

    def _book_display(self, target: Any, size: tuple[int, int], ratio: Fraction | None) -> None:
        """Book room in a Matroska header for the display size of a track whose pixels are not square."""
        if self.container_name not in _MATROSKA or not ratio or ratio == 1 or not all(size):
            return
        self._book(target, size=matroska.display_size(*size, Fraction(ratio)))

    def _book(self, target: Any, *, size: tuple[int, int] | None = None, wave: bytes | None = None) -> None:
        title = target.metadata.get("title", "")
        name = matroska.booked_name(title, len(self._booked), wave)
        target.metadata["title"] = name
        self._booked[name] = matroska.Rewrite(title, size, wave)

    # --- frames ------------------------------------------------------------------------------------------------------

    def write(self, frame: Frame, like: DecodedFrame | None = None) -> int:
        """Encode a frame; ``like`` is the decoded frame that it was made from, whose side data goes along.

        Returns the pts written, in the source's time base. Frames must come in order of index.
        """
        out = self._native(frame, like)
        stamp = self._timestamp(frame)
        if len(self._first_stamps) < 2:
            self._first_stamps.append(stamp)
        out.pts, out.time_base = stamp, self._time_base
        out.duration = 0 if like is None else round(self._duration(frame, like) / self._time_base)
        out.pict_type = 0
        tags = self._reader.tags
        out.colorspace, out.color_primaries, out.color_trc = tags.matrix, tags.primaries, tags.transfer
        out.color_range = tags.color_range
        opening = nullcontext() if self.frames_written else kept_scheduling()  # the encoder opens with its first frame
        with opening, self._guard(f"frame {frame.index} can't be encoded with {self.choice.codec}", EncoderError):
            packets = self._video.encode(out)
        self._start()
        for packet in packets:
            self._mux(packet)
        self.frames_written += 1
        return self.timeline.in_source_ticks(stamp)

    def _duration(self, frame: Frame, like: DecodedFrame) -> Fraction:
        """Seconds that a frame is shown, which counts for the last one: nothing else ends it.

        Its decoder does not know of an edit list that ends earlier, or a little later.
        """
        length = like.native.duration * like.time_base or 1 / frame_rate(self._reader.rate)
        if self._end is not None and frame.pts is not None:
            left = self._end - frame.pts * frame.time_base
            if length < left < 2 * length and not self._reader.stream.start_time:
                return left  # where a track begins later, its length may count from zero
            if left > 0:  # no tick at all would be stored as unknown
                return min(
                    length, max(left, Fraction(1, 1000) if self.container_name in _MATROSKA else self._time_base)
                )
        return length

    def _native(self, frame: Frame, like: DecodedFrame | None) -> av.VideoFrame:
        layout = self.choice.layout
        native = like.native if like is not None else None
        if (
            native is not None
            and native.format.name == layout.name
            and layout.same_components(self._reader.tags.layout)
        ):
            if frame is like:
                return native
            # Writing into the decoded frame keeps what hangs on it: captions, field flags, duration. The planes given
            # are arrays of their own but for alpha, which would be overwritten by itself.
            count = frame.spec.color.color_planes
            native.make_writable()
            views = component_views(native, layout)
            for component, view, plane in zip(layout.components[:count], views, frame.planes, strict=False):
                view[...] = plane << component.shift if component.shift else plane
            return native
        fresh = av.VideoFrame(frame.spec.width, frame.spec.height, layout.name)
        write_components(fresh, layout, frame.planes, frame.spec.color)
        return fresh

    def _timestamp(self, frame: Frame) -> int:
        """The frame's timestamp in the output's ticks; says once where it is not the source's own."""
        moved, made = self.timeline.moved, self.timeline.made
        stamp = self.timeline.stamp(frame.pts)
        if self.timeline.made > made:
            self._once("some frames have no timestamp: theirs follow the frame rate")
        elif self.timeline.moved > moved and frame.pts is not None:
            at = float(frame.pts * frame.time_base)
            text = f"frame {frame.index} has a timestamp ({at:.3f} s) not after the one before it"
            self._once(f"{text}: it and others like it are moved on by a tick", key="moved")
        return stamp

    def copy(self, item: CopyPacket) -> None:
        """Mux a packet of another stream as it is, or converted as planned."""
        packet = item.packet
        entry = self._copy.get(packet.stream.index)
        if entry is None:
            return
        plan, target = entry
        if is_hidden(packet, plan.kind):
            self._once(f"{plan.label}: what its edit list hides before zero is left out")
            return
        if self._cuts:
            begun = len(self._begun)
            if self._is_early(packet, plan):
                return
            if len(self._begun) > begun and self.container_name == "mpegts" and plan.codec == "h264":
                # FFmpeg repeats them in front of IDR pictures only, and not every keyframe is one.
                context = self._reader.container.streams[plan.index].codec_context
                sets = avc_parameter_sets((context.extradata if context else None) or b"")
                packet = _with_payload(packet, sets + bytes(packet))
        if plan.action in ("subrip", "mov_text"):
            converted = self._convert(packet, plan)
            if converted is None:
                return
            packet = converted
        if self._lift:
            ticks = round(self._lift / Fraction(packet.time_base))
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        self._start()
        packets = [packet]
        if plan.kind == "video" and not plan.cover:
            packets = self._leading.setdefault(plan.index, LeadingDts()).push(packet)
        for ready in packets:
            ready.stream = target
            self._mux(ready, plan)

    def _is_early(self, packet: av.Packet[Any], plan: StreamPlan) -> bool:
        """Whether a packet lies before the part that is written, or hangs on one that does."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        if plan.cover or stamp is None:
            return False
        if plan.kind == "video" and stamp >= 0 and packet.is_keyframe:
            self._begun.setdefault(plan.index, stamp)
        first = self._begun.get(plan.index) if plan.kind == "video" else 0
        return first is None or stamp < first

    def _convert(self, packet: av.Packet[Any], plan: StreamPlan) -> av.Packet[Any] | None:
        data = bytes(packet)
        if plan.action == "subrip":
            text = mov_text_to_subrip(data)
            if text is None:
                return None
            if has_styles(data):
                self._once(f"{plan.label}: colours and styles of its text have no place in SubRip")
            payload = text
        else:
            payload, styled = subrip_to_mov_text(data)
            if styled:
                self._once(f"{plan.label}: the styling of its text is left out")
        fresh = _with_payload(packet, payload)
        fresh.dts, fresh.is_keyframe = fresh.pts, True
        return fresh

    # --- muxing ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if not self._header:
            # Where a packet of another stream comes before the first frame, the encoder opens here.
            with kept_scheduling(), self._guard("its header can't be written"):
                self._container.start_encoding()
            self._header = True

    def _mux(self, packet: av.Packet[Any], plan: StreamPlan | None = None) -> None:
        target = packet.stream
        exact = None if plan is not None or packet.pts is None else packet.pts * Fraction(packet.time_base)
        _rescale(packet, target.time_base)
        if exact is not None and packet.pts is not None:
            self._rounded = max(self._rounded, abs(packet.pts * Fraction(packet.time_base) - exact))
        if plan is not None:
            if plan.cover and packet.pts is None and packet.dts is None:
                packet.pts = packet.dts = 0  # a cover picture is at no time
            if packet.dts is None or (plan.kind == "audio" and packet.pts is not None):
                packet.dts = packet.pts  # audio is never reordered, but Ogg's first dts is 0 wherever it begins
            if packet.pts is None and target.type != "video":
                packet.pts = packet.dts
            if packet.dts is None:
                # Neither: right behind the packet before; at the very beginning as early as can be, to leave the
                # times of those that have one.
                before = self._last_dts.get(target.index)
                step = self._last_duration.get(target.index, 0) if target.index in self._timed else 0
                packet.dts = packet.pts = 0 if before is None else before + max(1, step)
                self._once(f"{plan.label}: packets without any timestamp follow those before them")
            else:
                self._timed.add(target.index)
            if plan.kind == "audio":
                # MP4 takes a track's end from its last packet; one without a length would be cut off by the edit list.
                known = self._last_dts.get(target.index)
                if not packet.duration and packet.dts is not None and known is not None:
                    packet.duration = max(0, packet.dts - known)
                if packet.duration:
                    self._last_duration[target.index] = packet.duration
            last = self._last_dts.get(target.index)
            if last is not None and packet.dts <= last and target.type != "subtitle":
                if packet.dts < last:
                    self._once(f"{plan.label}: its timestamps run backwards in places; they are moved on")
                packet.dts = last + (self.container_name not in _MATROSKA)
            if packet.pts is not None and packet.pts < packet.dts:
                packet.pts = packet.dts
            self._last_dts[target.index] = packet.dts
        label = plan.label if plan else "a video packet"
        with self._guard(f"can't take {label}"):
            self._container.mux_one(packet)

    def finish(self) -> None:
        """Flush the encoder, write the trailer, sync and rename. The writer is closed afterwards."""
        with self._guard(f"{self.choice.codec} failed at its end", EncoderError):
            packets = self._video.encode(None)
        self._start()
        for packet in packets:
            self._mux(packet)
        for index, leading in self._leading.items():
            plan, target = self._copy[index]
            for packet in leading.flush():
                packet.stream = target
                self._mux(packet, plan)
        tracks = self._tracks()
        with self._guard("can't be completed"):
            self._container.close()
            self._open = None
            # FFmpeg tells nobody about a write that failed while it closed the file.
            if self._booked:
                matroska.rewrite_tracks(self.partial, self._booked)
            with open(self.partial, "rb+") as f:
                os.fsync(f.fileno())
            if shutil.disk_usage(self.partial.parent).free < 4096:
                raise OSError(errno.ENOSPC, "No space left on device")
            self._tell_losses(tracks)
            os.replace(self.partial, self.path)
        self._finished = True
        self._let_go()

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def _tracks(self) -> list[Any]:
        """The streams of the source in the order of the output's."""
        source = self._reader.container.streams
        targets = {target.index: source[plan.index] for plan, target in self._copy.values() if not plan.cover}
        return [stream for _, stream in sorted({**targets, self._video.index: self._reader.stream}.items())]

    def _tell_losses(self, tracks: list[Any]) -> None:
        """Warn of what the finished file does not hold. One that can't be read back is no result."""
        number = sum(s.type == "video" for s in tracks[: tracks.index(self._reader.stream)])
        try:
            with VideoReader(self.partial, stream=number, copy_streams=False) as output:
                moved = Fraction(0)
                for stamp, frame in zip(self._first_stamps, output, strict=False):
                    if frame.pts is not None:  # AVI moves all frames but the first
                        moved = frame.pts * frame.time_base - stamp * self._time_base
                lost = losses(
                    self._reader,
                    output,
                    self.container_name,
                    tracks,
                    moved=moved if abs(moved) > Fraction(1, 1000) else Fraction(0),
                    rounded=self._rounded,
                    told=self._told,
                )
                for text in lost:
                    log.warning("%s", text)
        except InputError as e:
            raise OutputError(f"{self.path}: what was written can't be read again: {e.what}") from e

    def abort(self) -> None:
        """Close and remove the unfinished file. Idempotent, never raises."""
        if self._finished:
            return
        self._finished = True
        self._let_go()
        container, self._open = self._open, None
        try:
            if container is not None:
                container.close()
        except Exception as e:  # closing an unfinished file may fail in any way; it is removed anyhow
            log.debug("closing %s: %s", self.partial, e)
        self.partial.unlink(missing_ok=True)

    def _once(self, text: str, key: str | None = None) -> None:
        key = key or text.split(":")[0]
        if key not in self._warned:
            self._warned.add(key)
            log.warning("%s", text)

    @contextmanager
    def _guard(self, what: str, kind: type[OutputError] = OutputError) -> Iterator[None]:
        """FFmpeg's and the system's errors as one line; a full disk by its own name."""
        try:
            yield
        except (av.error.FFmpegError, OSError, ValueError, RuntimeError) as e:
            if getattr(e, "errno", None) == errno.ENOSPC or self._disk_is_full():
                raise DiskFull(f"no space left for {self.path}", "free some, or write elsewhere with -o") from e
            raise kind(f"{self.path}: {what}: {reason(e)}") from e

    def _disk_is_full(self) -> bool:
        try:
            return shutil.disk_usage(self.path.parent).free < 65536
        except OSError:
            return False

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self.abort()


def _takes(container: str, out: av.container.OutputContainer) -> frozenset[str] | None:
    """Codecs that a container takes, None for any. FFmpeg's own list for MPEG-TS stops at MPEG-2."""
    if container == "matroska":
        return None
    return frozenset(("h264", "hevc")) if container == "mpegts" else frozenset(out.supported_codecs)


def check_writable(path: Path, need: int = _RESERVE) -> None:
    """The folder exists, takes files and has ``need`` bytes. Raises OutputError or DiskFull before any work is done."""
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"folder {folder} of the output does not exist", "create it, or write elsewhere with -o")
    if path.is_dir():
        raise OutputError(f"output {path} is a folder", "name a file")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"folder {folder} can't be written to: permission denied", "write elsewhere with -o")
    if _is_held(partial_path(path)):
        raise OutputError(f"another run is writing {path}", "wait for it, or write elsewhere with -o")
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        with interrupts.held():
            with open(probe, "wb") as f:
                f.write(b"\0")
            probe.unlink()
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise DiskFull(f"no space left for {path}", "free some, or write elsewhere with -o") from e
        raise OutputError(f"{path} can't be written: {e.strerror}", "write elsewhere with -o") from e
    free = shutil.disk_usage(folder).free
    if free < need:
        raise DiskFull(
            f"{free / 1e6:.1f} MB free for {path}, and at least {need / 1e6:.1f} MB are needed",
            "free some, or write elsewhere with -o",
        )


def _hold(path: Path) -> int | None:
    """A descriptor that locks a file (made if need be) while it is open; None where there are no locks."""
    held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def _is_held(path: Path) -> bool:
    try:
        found = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(found)
    return False


def _with_payload(packet: av.Packet[Any], data: bytes) -> av.Packet[Any]:
    fresh: av.Packet[Any] = av.Packet(data)
    fresh.pts, fresh.dts, fresh.duration = packet.pts, packet.dts, packet.duration
    fresh.time_base = packet.time_base
    fresh.is_keyframe = packet.is_keyframe
    return fresh


def _rescale(packet: av.Packet[Any], to: Fraction) -> None:
    """``av_packet_rescale_ts``: to the nearest tick, halves away from zero, as FFmpeg itself rounds."""
    if packet.time_base == to:
        return
    factor = Fraction(packet.time_base) / Fraction(to)

    def nearest(ticks: int) -> int:
        n, d = abs(ticks) * factor.numerator, factor.denominator
        return (2 * n + d) // (2 * d) * (1 if ticks >= 0 else -1)

    pts, dts, duration = packet.pts, packet.dts, packet.duration
    packet.time_base = to
    packet.pts = None if pts is None else nearest(pts)
    packet.dts = None if dts is None else nearest(dts)
    if duration:
        packet.duration = nearest(duration)


def _movie_timescale(time_base: Fraction, reader: VideoReader) -> int:
    """A movie tick in which start offsets of the video, and where it fits of the other streams, are exact."""
    scale = time_base.denominator
    while scale < 10000:  # what the muxer does to the track's own
        scale *= 2
    for stream in reader.container.streams:
        if stream.type == "audio" and stream.time_base:
            both = math.lcm(scale, stream.time_base.denominator)
            if both <= 10_000_000:
                scale = both
    return min(scale, 2**31 - 1)
