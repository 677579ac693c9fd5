"""The chapters that an output has: those of its source, moved with it, and of a part those that reach into it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from streamdeblur.video.reader import VideoReader
from streamdeblur.video.timeline import lift

#: Ticks a second that chapters are moved and clipped in; Matroska's own, and FFmpeg's muxer of MP4 rounds to 1 ms.
_TICKS = 1_000_000_000


def chapters_of(reader: VideoReader) -> list[dict[str, Any]]:
    """As PyAV's ``set_chapters`` takes them, on the clock of the output."""
    found: list[Any] = list(reader.container.chapters())
    move = lift(reader.first_time) - reader.shift
    end = reader.until
    if not move and end is None:
        return found
    kept: list[dict[str, Any]] = []
    for c in found:
        tick = Fraction(c["time_base"] or 1)
        begins, ends = c["start"] * tick + move, c["end"] * tick + move
        if reader.shift:
            if ends <= 0:
                continue
            begins = max(begins, Fraction(0))
        if end is not None:
            if begins >= end:
                continue
            ends = min(ends, end)
        span = {"start": round(begins * _TICKS), "end": round(ends * _TICKS), "time_base": Fraction(1, _TICKS)}
        kept.append({**c, **span})
    return kept
