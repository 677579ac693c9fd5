"""Timestamps that an encoder and a container take, made from those that a source has.

Both want every frame strictly after the one before it, and neither takes a time before zero; sources keep neither rule.
The same small class serves the writer and ``jobs.verify``, so that what is written is what is expected.
"""

from __future__ import annotations

from fractions import Fraction

#: Ticks a second that an output has at least: what FFmpeg's MP4 muxer asks of a track, and fine enough to move a
#: repeated timestamp on without anybody seeing it.
_TICKS = 10_000


def frame_rate(rate: Fraction | None) -> Fraction:
    """A frame rate an encoder takes for its rate control; timing comes from it only where a source has none."""
    if rate is None or rate <= 0:
        return Fraction(25)
    return min(max(Fraction(rate), Fraction(1, 3600)), Fraction(1000)).limit_denominator(1001) or Fraction(1, 1000)


def lift(first: Fraction | None) -> Fraction:
    """Seconds to add to a whole file whose restored stream begins at ``first`` seconds: enough to begin at zero.

    MP4 cuts what lies before zero off by its edit list, Matroska stores it as having no time at all.
    """
    return -first if first is not None and first < 0 else Fraction(0)


class Timeline:
    """Strictly increasing timestamps in ``tick``, a whole fraction of the source's own, equal to them where possible.

    source_tick: seconds a unit of the source's timestamps. rate: frames a second, where timestamps are missing.
    shift: seconds added to all, in whole source ticks. ``moved`` and ``made`` count the frames whose timestamp was not
    after the one before it, or not there.
    """

    def __init__(self, source_tick: Fraction, rate: Fraction | None, shift: Fraction = Fraction(0)) -> None:
        finer = 1
        while Fraction(source_tick) / finer > Fraction(1, _TICKS):
            finer *= 2
        self._finer = finer
        self.tick = Fraction(source_tick) / finer
        self._step = max(1, round(1 / frame_rate(rate) / self.tick))
        self._shift = round(shift / self.tick)
        self._last: int | None = None
        self.moved = 0
        self.made = 0

    def stamp(self, pts: int | None) -> int:
        """The timestamp, in ``tick``, of the next frame, whose own is ``pts`` source ticks (None: it has none)."""
        if pts is None:
            self.made += 1
            stamp = 0 if self._last is None else self._last + self._step
        else:
            stamp = pts * self._finer + self._shift
            if self._last is not None and stamp <= self._last:
                self.moved += 1
                stamp = self._last + 1
        self._last = stamp
        return stamp

    def in_source_ticks(self, stamp: int) -> int:
        """A stamp in the source's own ticks and origin, rounded down."""
        return (stamp - self._shift) // self._finer
