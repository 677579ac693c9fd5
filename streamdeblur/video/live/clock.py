"""One time line for a source that connects again and again: forward only, and as long as the wall clock says."""

from __future__ import annotations

from fractions import Fraction

#: Ticks of the time line: those of RTP video and MPEG-TS.
TICKS = 90_000
TIME_BASE = Fraction(1, TICKS)

#: Seconds by which a timestamp may leave the course of the arrivals before it is taken for a new clock.
_JUMP = 10.0
#: Seconds backwards that are disorder and no new clock.
_DISORDER = 0.5


class LiveClock:
    """Maps timestamps of one connection after another to seconds from the first frame of all.

    Within a connection the source's own spacing is kept to the tick. Over a gap (a new connection, a clock that jumps)
    the time line goes on by as much as has passed between the two arrivals. Sound gets the offset of the pictures it
    came with, so that the two stay together. For one thread.
    """

    def __init__(self) -> None:
        self._offset: Fraction | None = None
        self._last: Fraction | None = None
        self._arrival = 0.0
        self._sound: Fraction | None = None
        self.jumps = 0

    def new_session(self) -> None:
        """Timestamps that follow have nothing to do with those before."""
        self._offset = None

    @property
    def knows(self) -> bool:
        """Whether a picture of this connection has told where its timestamps lie."""
        return self._offset is not None

    def video(self, pts: Fraction | None, arrival: float) -> Fraction:
        """Seconds of a frame, greater than those of the one before. pts: seconds or None. arrival: monotonic seconds,
        which decide where ``pts`` can't."""
        last = self._last
        elapsed = Fraction(max(0.0, arrival - self._arrival)).limit_denominator(TICKS)
        self._arrival = arrival
        if last is None:
            self._offset = -pts if pts is not None else None
            self._last = Fraction(0)
            return self._last
        following = last + max(elapsed, TIME_BASE)
        if pts is None:
            time = following
        else:
            if self._offset is None:
                self._offset = following - pts
            time = pts + self._offset
            if time < last - Fraction(_DISORDER) or abs(float(time - following)) > _JUMP:
                self.jumps += 1
                self._offset = following - pts
                time = following
            elif time <= last:
                time = last + TIME_BASE
        self._last = time
        return time

    def sound(self, pts: Fraction) -> Fraction | None:
        """Seconds of a packet of sound; None for one that has no place: before the first picture, or out of order."""
        if self._offset is None or self._last is None:
            return None
        time = pts + self._offset
        if abs(float(time - self._last)) > _JUMP or (self._sound is not None and time <= self._sound):
            return None
        if time < 0:
            return None
        self._sound = time
        return time
