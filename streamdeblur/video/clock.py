"""One clock for a file whose own jumps back: recordings put end to end."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av

#: Formats whose clock may start anew in mid-file, FFmpeg's AVFMT_TS_DISCONT.
_RESTARTING = {"mpegts", "mpeg", "mpegvideo", "flv", "mpegtsraw"}
#: A decoding time this much (seconds) before the one before it is a new clock and no disorder.
_JUMP = Fraction(1, 2)


class JoinedClock:
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
