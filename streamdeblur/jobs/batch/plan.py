"""What becomes of a file: whole, or in segments that begin at keyframes and are worked on apart.

The probe decodes one frame and, where a file is long enough to be cut, reads its packets once without decoding them. Of
a file that lies elsewhere, and is too short to be cut, it reads the header alone.
A cut is made only where the bitstream proves that nothing behind refers to anything before (``keyframes``), where no
packet before is shown later or the other way round, and where a decoder that starts there gives that very frame. All
that is out of the ordinary goes whole, and says why.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error
from av.stream import Disposition

from streamdeblur.config import ProcessOptions
from streamdeblur.errors import UnreadableInput, UsageError
from streamdeblur.jobs.batch import place
from streamdeblur.jobs.batch.keyframes import is_closed
from streamdeblur.jobs.run import open_source, refuse_meaningless
from streamdeblur.video.opening import open_container
from streamdeblur.video.reader import VideoReader
from streamdeblur.video.truncation import truncation

log = logging.getLogger(__name__)

#: Demuxers that find a keyframe and give the same timestamps wherever reading begins.
_SEARCHABLE = ("mov", "matroska", "mpegts")
#: A file shorter than this many segments is not cut.
_WORTH = 1.5
#: Frames a second; beyond it a container's word is its clock (1000 in Matroska) and not a rate.
_FASTEST = 480


@dataclass(frozen=True, slots=True)
class Segment:
    """Frames with start <= pts < stop, in ticks of the stream; None at the ends of the file. frames: how many."""

    number: int
    start: int | None
    stop: int | None
    frames: int


@dataclass(frozen=True, slots=True)
class Plan:
    """seconds: length. frames: how many, as the container says or as counted; None where neither. tick: seconds of a
    timestamp's unit, as "1/90000". whole: why the file is not cut. index: of the video stream."""

    seconds: float
    frames: int | None
    width: int
    height: int
    codec: str
    size: int
    tick: str
    index: int
    whole: str | None
    segments: tuple[Segment, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Plan:
        return Plan(**{**values, "segments": tuple(Segment(**s) for s in values["segments"])})

    @property
    def print(self) -> str:  # as in fingerprint
        """Hash of the cuts: segments of another plan are of no use."""
        return hashlib.blake2b(json.dumps(self.as_dict(), sort_keys=True).encode(), digest_size=8).hexdigest()


def make_plan(
    source: str, options: ProcessOptions, segment_seconds: float, step: Callable[[], None] = lambda: None
) -> Plan:
    """Look into a file. step: called for every packet. Raises what opening it for the job would (InputError,
    UsageError)."""
    refuse_meaningless(options, "video", source)
    if os.path.exists(source) and not os.path.isfile(source):  # opening a pipe would wait for ever
        raise UnreadableInput(f"{source} is not a file", "name a file of footage")
    with open_source(options, source, copy_streams=False) as reader:
        info = reader.info
        seconds, frames = _wanted(options, info.duration, info.frames, info.average_rate)
        cuts = _Cuts(reader, source, segment_seconds, step)
        why = _not_cut(options, seconds, segment_seconds) or cuts.find()
        tick = str(Fraction(reader.stream.time_base or 1))
        return Plan(
            seconds=round(seconds, 3),
            frames=sum(s.frames for s in cuts.segments) if why is None else frames,
            width=info.width,
            height=info.height,
            codec=info.codec,
            size=os.path.getsize(source),
            tick=tick,
            index=reader.stream.index,
            whole=why,
            segments=tuple(cuts.segments) if why is None else (),
        )


def peek(url: str, options: ProcessOptions, segment_seconds: float) -> Plan | None:
    """The plan of a source that lies elsewhere and goes whole, by its header; None where more of it is needed.

    Raises UsageError. Whatever else is wrong with the source is told when all of it is here.
    """
    refuse_meaningless(options, "video", url)
    try:
        with place.opened(url) as file:
            return None if file is None else _header_plan(file, options, segment_seconds)
    except UsageError:
        raise
    except Exception:  # of FFmpeg, of the store, of what hands data from one to the other
        log.debug("the header of %s is not enough", url, exc_info=True)
        return None


def _header_plan(file: Any, options: ProcessOptions, segment_seconds: float) -> Plan | None:
    with av.open(file, "r", metadata_errors="replace") as container:
        videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        stream = videos[options.stream]
        if stream.duration is not None and stream.time_base is not None:
            length = float(stream.duration * stream.time_base)
        else:
            length = (container.duration or 0) / av.time_base
        seconds, frames = _wanted(options, length, stream.frames, stream.average_rate)
        why = _not_cut(options, seconds, segment_seconds)
        if why is None or not length or not stream.width:
            return None
        tick = str(Fraction(stream.time_base or 1))
        codec = stream.codec_context.name
        size = file.seek(0, os.SEEK_END)
        return Plan(round(seconds, 3), frames, stream.width, stream.height, codec, size, tick, stream.index, why)


def _wanted(
    options: ProcessOptions, length: float | None, frames: int | None, rate: Fraction | None
) -> tuple[float, int | None]:
    """Seconds and frames of the part that is wanted, from what a container says of the whole."""
    seconds, count = length or 0.0, frames or None
    if options.start:
        seconds = max(0.0, seconds - options.start)
    if options.duration is not None:
        seconds = min(seconds, options.duration) if seconds else options.duration
    if options.start is not None or options.duration is not None:
        count = None
    if count is None and seconds and rate and rate <= _FASTEST:
        count = max(1, round(seconds * rate))
    return seconds, count


def _not_cut(options: ProcessOptions, seconds: float, segment_seconds: float) -> str | None:
    if segment_seconds <= 0:
        return "segments are switched off"
    if options.start is not None or options.duration is not None:
        return "only a part of it is wanted"
    if options.deinterlace:
        return "deinterlacing looks at neighbours of a frame"
    if options.detect is not None:
        return "a detector follows objects through all of it"
    if seconds and seconds < segment_seconds * _WORTH:
        return "short"
    return None


class _Cuts:
    """Finds the segments of an open file."""

    def __init__(self, reader: VideoReader, path: str, seconds: float, step: Callable[[], None]) -> None:
        self._step = step
        self._reader = reader
        self._path = path
        self._seconds = seconds
        self.segments: list[Segment] = []

    def find(self) -> str | None:
        """Fill ``segments``; or why there are none."""
        reader = self._reader
        names = reader.container.format.name.split(",")
        tick = reader.stream.time_base
        if not any(n in _SEARCHABLE for n in names):
            return f"{names[0]} can't be searched"
        if tick is None:
            return "its timestamps have no unit"
        if reader.skipped or truncation(self._path) is not None:
            return "it is damaged"
        if reader.first_time is None or reader.first_time < 0:
            return "it begins before zero"
        if "mov" in names and edit_segments(self._path) > 1:
            return "it has an edit list"
        times = array("q")
        keys: list[int] = []
        why = self._scan(times, keys)
        if why is not None:
            return why
        ordered = sorted(times)
        if any(a == b for a, b in pairwise(ordered)):
            return "timestamps repeat"
        chosen = self._choose(keys, ordered, Fraction(tick))
        if not chosen:
            return "it has no closed keyframe to cut at"
        why = self._starts_at(chosen)
        if why is not None:
            return why
        edges: list[int | None] = [None, *chosen, None]
        position = 0
        for number, (start, stop) in enumerate(pairwise(edges)):
            end = len(ordered) if stop is None else bisect_left(ordered, stop)
            self.segments.append(Segment(number, start, stop, end - position))
            position = end
        return None

    def _scan(self, times: array[int], keys: list[int]) -> str | None:
        """Read all packets: timestamps of frames, and of keyframes that are closed. Or why the file can't be cut."""
        highest: int | None = None
        first = True
        with open_container(self._path) as container:
            stream = container.streams[self._reader.stream.index]
            context = stream.codec_context
            codec = str(context.name if not context.codec else context.codec.canonical_name)
            try:
                for packet in container.demux(stream):
                    self._step()
                    if not packet.size:
                        if packet.pts is None and packet.dts is None:
                            continue
                        return "it has empty packets"
                    if packet.pts is None:
                        return "some packets have no timestamp"
                    if packet.is_corrupt:
                        return "it is damaged"
                    if packet.is_discard:
                        return "it has an edit list that hides frames"
                    if first and not packet.is_keyframe:
                        return "it begins in the middle of a group of pictures"
                    while keys and packet.pts < keys[-1]:
                        keys.pop()  # shown before a keyframe that it follows: an open group
                    inside = packet.is_keyframe and highest is not None and packet.pts > highest
                    if inside and is_closed(codec, bytes(packet), bytes(context.extradata or b"")):
                        keys.append(packet.pts)
                    first = False
                    highest = packet.pts if highest is None else max(highest, packet.pts)
                    times.append(packet.pts)
            except (av.error.FFmpegError, OSError):
                return "it is damaged"
        return None

    def _choose(self, keys: list[int], ordered: list[int], tick: Fraction) -> list[int]:
        chosen: list[int] = []
        last, length = ordered[0], Fraction(str(self._seconds)) / tick
        for pts in keys:
            if pts - last >= length and bisect_left(ordered, pts) - bisect_left(ordered, last) >= 2:
                chosen.append(pts)
                last = pts
        # A last segment of a frame or so is not worth a start.
        while chosen and (ordered[-1] - chosen[-1] < length / 4 or len(ordered) - bisect_left(ordered, chosen[-1]) < 2):
            chosen.pop()
        return chosen

    def _starts_at(self, chosen: list[int]) -> str | None:
        """Start a decoder at every cut: it must give that very frame first."""
        with open_container(self._path) as container:
            stream = next(s for s in container.streams.video if s.index == self._reader.stream.index)
            for pts in chosen:
                why = f"decoding can't start at {float(pts * Fraction(stream.time_base or 1)):.3f} s"
                try:
                    first = _packet_at(container, stream, pts)
                    if first is None:
                        return why
                    frame = next(iter((*stream.decode(first), *stream.decode(None))), None)
                    stream.codec_context.flush_buffers()
                    if frame is None or frame.pts != pts or frame.is_corrupt:
                        return why
                except (av.error.FFmpegError, OSError):
                    return why
        return None


def _packet_at(container: Any, stream: Any, pts: int) -> Any:
    """The keyframe packet with that timestamp, None where seeking does not lead to it."""
    second = round(1 / Fraction(stream.time_base))
    for back in (0, 1, 2, 4, 8, 16):  # MPEG-TS is searched by time alone, and landed in behind it
        container.seek(pts - back * second, stream=stream, backward=True)
        for packet in container.demux(stream):
            if packet.size and packet.pts == pts and packet.is_keyframe:
                return packet
            if packet.size and packet.dts is not None and packet.dts > pts:
                break
        if "mov" in container.format.name:
            break
    return None


def open_segment_reader(
    path: str, start: Fraction | None, stop: Fraction | None, options: ProcessOptions
) -> VideoReader:
    """A reader of the frames with start <= time < stop, in seconds on the file's own clock.

    Its timestamps count from ``start``; ``shift`` tells how far. Exact: the reader takes fractions as they are.
    """
    with open_container(path) as container:
        begin = container.start_time
    origin = Fraction(begin, av.time_base) if begin is not None and begin > -(1 << 62) else Fraction(0)
    first: Any = None if start is None else start - origin
    length: Any = None if stop is None else stop - origin - (first or 0)
    return VideoReader(
        path,
        stream=options.stream,
        on_error=options.on_error,
        start=first,
        duration=length,
        interlaced=options.interlaced,
        hardware=None if options.hardware == "none" else options.hardware,
        copy_streams=False,
    )


# --- edit lists ------------------------------------------------------------------------------------------------------


def edit_segments(path: str) -> int:
    """The most pieces that an edit list of a track in an ISO file plays (ISO/IEC 14496-12, 8.6.6); 0 without any.

    An empty edit, which only delays a track, is not counted; a piece at another speed counts as two.
    """
    with Path(path).open("rb") as f:
        return max(_edits(f, 0, os.path.getsize(path), ()), default=0)


def _edits(f: BinaryIO, start: int, end: int, inside: tuple[bytes, ...]) -> list[int]:
    found: list[int] = []
    position = start
    while position + 8 <= end:
        f.seek(position)
        head = f.read(16)
        length, kind, body = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1 and len(head) == 16:
            length, body = int.from_bytes(head[8:16], "big"), 16
        if length == 0:
            length = end - position
        if length < body:
            break
        if kind in (b"moov", b"trak", b"edts"):
            found += _edits(f, position + body, min(position + length, end), (*inside, kind))
        elif kind == b"elst" and inside == (b"moov", b"trak", b"edts"):
            f.seek(position + body)
            found.append(_pieces(f.read(min(length - body, 1 << 20))))
        position += length
    return found


def _pieces(data: bytes) -> int:
    if len(data) < 8:
        return 0
    wide = data[0] == 1
    step, count = (20 if wide else 12), int.from_bytes(data[4:8], "big")
    pieces = 0
    for i in range(min(count, (len(data) - 8) // step)):
        entry = data[8 + i * step : 8 + (i + 1) * step]
        media = int.from_bytes(entry[8:16] if wide else entry[4:8], "big", signed=True)
        if media != -1:
            pieces += 1 if entry[-4:] == b"\0\1\0\0" else 2
    return pieces
