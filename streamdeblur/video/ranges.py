"""Which packets of the copied streams belong to a part of a file.

Sound and text are cut at packets. A picture stream can only begin at a keyframe and can only end where nothing is left
that refers to what comes later, so it begins with the last keyframe at or before the start, at a negative time: MP4
hides what lies before zero by its edit list, and for other containers the writer takes the next keyframe instead.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import av.error
from av.stream import Disposition

from streamdeblur.errors import UnreadableInput
from streamdeblur.video.opening import open_container

log = logging.getLogger(__name__)

#: Packets that may wait for one that is shown before them; more than any codec reorders.
_HELD = 64


@dataclass(frozen=True, slots=True)
class Keyframes:
    """Where a picture stream can begin, in seconds from the start of the range: None where there is no such keyframe.

    before: the last one at or before the start, zero or negative, which is decoded at ``needed``. after: the first one
    at or after the start, in the range. shown: when the picture that is on show at the start began to be; it is given
    the time of the start, and so is ``before`` where it is that one.
    """

    before: Fraction | None
    after: Fraction | None
    needed: Fraction | None
    shown: Fraction | None

    @property
    def presented(self) -> Fraction | None:
        """When ``before`` is shown by its own timestamp."""
        return self.shown if self.before == 0 else self.before


class CopyRange:
    """Picks the packets of start <= time < until and moves them to count from ``start``.

    path: the file, which is opened a second time to find the keyframes. streams: those that are copied. start: seconds
    on the file's clock, None from its beginning; until: None to its end. shift: seconds to subtract.
    For one thread.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        streams: Iterable[Any],
        *,
        start: Fraction | None,
        until: Fraction | None,
        shift: Fraction,
    ) -> None:
        self._start = start
        self._until = until
        self._shift = shift
        self._begun: dict[int, Fraction] = {}  # time of the keyframe that each picture stream began with
        self._held: dict[int, list[av.Packet[Any]]] = {}
        pictures = [s.index for s in streams if _is_picture(s)]
        #: By index of the stream; a stream that is missing here was not searched.
        self.keyframes: dict[int, Keyframes] = {}
        if start is not None:
            found = {i: keyframes_around(path, i, start, until) for i in pictures}
            self.keyframes = {i: around for i, around in found.items() if around is not None}

    def take(self, packet: av.Packet[Any]) -> Iterator[av.Packet[Any]]:
        """The packets that follow in the output once ``packet`` was read: none, itself, or some that waited for it."""
        if packet.stream.disposition & Disposition.attached_pic:
            yield packet  # at no time
            return
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            return
        time = stamp * Fraction(packet.time_base)
        if packet.stream.type == "video":
            yield from map(self._move, self._picture(packet, time))
        elif self._in_range(packet, time):
            yield self._move(packet)

    def _in_range(self, packet: av.Packet[Any], time: Fraction) -> bool:
        if self._until is not None and time >= self._until:
            return False
        if self._start is None or time >= self._start:
            return True
        # The packet that sounds at the start begins before it.
        return packet.stream.type == "audio" and time + (packet.duration or 0) * packet.time_base > self._start

    def _picture(self, packet: av.Packet[Any], time: Fraction) -> list[av.Packet[Any]]:
        index = packet.stream.index
        known = self.keyframes.get(index)
        shown = None if known is None or known.shown is None or self._start is None else self._start + known.shown
        if time == shown and self._start is not None and packet.pts is not None:
            # Where it began before the start, FFmpeg's demuxer would begin with the next one, and move the whole track.
            time = self._start
            packet.pts = round(time / Fraction(packet.time_base))
        if index not in self._begun:
            earliest = self._start
            if earliest is not None and known is not None and known.before is not None:
                earliest += known.before
            late = self._until is not None and time >= self._until
            if not packet.is_keyframe or late or (earliest is not None and time < earliest):
                return []
            self._begun[index] = time
        if time < self._begun[index]:
            return []  # shown before the keyframe, made from pictures before it
        held = self._held.setdefault(index, [])
        if self._until is not None and time >= self._until:
            # Behind the end, but a picture within may be made from it.
            decoded = packet.dts if packet.dts is not None else packet.pts
            early = decoded is not None and decoded * Fraction(packet.time_base) < self._until
            if early and len(held) < _HELD:
                held.append(packet)
            return []
        self._held[index] = []
        return [*held, packet]

    def _move(self, packet: av.Packet[Any]) -> av.Packet[Any]:
        if self._shift:
            ticks = round(self._shift / Fraction(packet.time_base))
            packet.pts = None if packet.pts is None else packet.pts - ticks
            packet.dts = None if packet.dts is None else packet.dts - ticks
        return packet


def _is_picture(stream: Any) -> bool:
    return stream.type == "video" and not stream.disposition & Disposition.attached_pic


def keyframes_around(
    path: str | os.PathLike[str], index: int, start: Fraction, until: Fraction | None = None, *, ahead: bool = True
) -> Keyframes | None:
    """The keyframes of stream ``index`` around ``start``; None where the file can't be opened again and searched.

    start, until: seconds on the file's clock. ahead: look for the one behind the start as well.
    """
    name = os.fspath(path)
    if "://" in name:
        return None
    try:
        with open_container(name) as container:
            stream = container.streams[index]
            if stream.time_base is None:
                return None
            back = Fraction(0)
            while True:
                # Some demuxers (MPEG-TS) search by time alone and land between keyframes: then from further back.
                container.seek(math.floor((start - back) / stream.time_base), stream=stream, backward=True)
                found, began = _scan(container, stream, start, until, ahead)
                if found.before is not None or began is None or began >= start - back:
                    return found
                back = back * 2 or Fraction(1)
    except (UnreadableInput, av.error.FFmpegError, OSError, ValueError) as e:
        log.debug("no keyframes of stream %d of %s: %s", index, name, e)
        return None


def _scan(
    container: Any, stream: Any, start: Fraction, until: Fraction | None, ahead: bool
) -> tuple[Keyframes, Fraction | None]:
    """Read on to the first keyframe behind ``start``; and the time of the first packet, None where there is none."""
    before = after = needed = shown = began = None
    for packet in container.demux(stream):
        stamp = packet.pts if packet.pts is not None else packet.dts
        if not packet.size or stamp is None:
            continue
        time = stamp * Fraction(packet.time_base) - start
        decoded = time if packet.dts is None else packet.dts * Fraction(packet.time_base) - start
        began = decoded + start if began is None else began
        if packet.is_keyframe and time <= 0:
            before, needed, shown = time, decoded, time
        elif shown is not None and shown < time <= 0:
            shown = time
        ended = until is not None and decoded >= until - start
        if packet.is_keyframe and time >= 0 and after is None:
            after = time
        if decoded >= 0 and (ended or not ahead or after is not None):
            break
    if after is not None and until is not None and after >= until - start:
        after = None
    return Keyframes(Fraction(0) if before is not None and before == shown else before, after, needed, shown), began
