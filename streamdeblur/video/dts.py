"""Decoding times that a demuxer left out at the beginning of a stream.

Matroska stores when pictures are shown, not when they are decoded. FFmpeg works the latter out, but of a stream whose
pictures are reordered it does not know it for the first packets, whose time is only clear from those that follow.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av

#: Packets that may wait for one with a decoding time. H.264 and HEVC reorder at most 16 pictures (H.264 A.3.1).
_WAITING = 32


class LeadingDts:
    """Completes the decoding times of one stream; those of presentation stay as they are. For one thread.

    Packets are held back until one has a decoding time, at most ``_WAITING`` of them. ``flush`` gives what is held at
    the end of the stream.
    """

    def __init__(self) -> None:
        self._held: list[av.Packet[Any]] = []
        self._last: int | None = None

    def push(self, packet: av.Packet[Any]) -> list[av.Packet[Any]]:
        """The packets that can go on, in their order."""
        if self._last is None:
            self._held.append(packet)
            return self.flush() if packet.dts is not None or len(self._held) >= _WAITING else []
        if packet.dts is None and packet.pts is not None:
            packet.dts = max(self._last + 1, min(packet.pts, self._last + (packet.duration or 1)))
        self._last = packet.dts if packet.dts is not None else self._last
        return [packet]

    def flush(self) -> list[av.Packet[Any]]:
        """What is held: counted back from the known time, or the times of presentation in order, early enough."""
        held, self._held = self._held, []
        stamps = [p.pts for p in held if p.pts is not None]
        if not held or len(stamps) < len(held):
            self._last = next((p.dts for p in reversed(held) if p.dts is not None), self._last)
            return held
        if (known := held[-1].dts) is not None:
            step = self._step(held, stamps)
            for i, packet in enumerate(held):
                back = known - round(step * (len(held) - 1 - i))
                packet.dts = min(back, *stamps[i:])
        else:
            ordered = sorted(stamps)
            late = max(mine - shown for mine, shown in zip(ordered, stamps, strict=True))
            for packet, stamp in zip(held, ordered, strict=True):
                packet.dts = stamp - late
        for i in range(len(held) - 2, -1, -1):  # strictly rising, from the end that is known
            here, after = held[i].dts, held[i + 1].dts
            if here is not None and after is not None and here >= after:
                held[i].dts = after - 1
        self._last = held[-1].dts
        return held

    @staticmethod
    def _step(held: list[av.Packet[Any]], stamps: list[int]) -> Fraction:
        """Ticks from one packet to the next."""
        lengths = [p.duration for p in held if p.duration]
        if lengths:
            return Fraction(sum(lengths), len(lengths))
        return Fraction(max(1, (max(stamps) - min(stamps)) // max(1, len(stamps) - 1)))
