"""Does restoration help the detector? The same detector on the frame before and after, over a sliding time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from streamdeblur.detect.detector import Detections

#: Seconds of the source that are looked back on, and the comparisons that are kept however old they are.
WINDOW, LEAST = 10.0, 12
#: Share by which the sum of scores must grow for restoration to pay, and below which it pays no more. Between the two
#: the verdict stays.
PAYS, PAYS_NOT = 0.05, 0.01
#: Seconds of the source that a verdict stays at least.
HOLD = 5.0


@dataclass(frozen=True, slots=True)
class Gain:
    """Of the comparisons in the window: their number, detections a frame and mean score of a detection before and
    after, and the share by which the sum of scores grew (None where nothing was found before and after).

    pays: whether restoration is worth it; None as long as that is not known.
    """

    comparisons: int
    detections_before: float
    detections_after: float
    score_before: float | None
    score_after: float | None
    growth: float | None
    pays: bool | None


@dataclass(frozen=True, slots=True)
class _Sample:
    time: float
    counts: tuple[int, int]
    scores: tuple[float, float]


class Meter:
    """Collects comparisons; one thread.

    The verdict is on the sum of scores: it grows with objects that are found and with the certainty of each. It needs
    ``LEAST`` comparisons, changes with hysteresis (``PAYS``, ``PAYS_NOT``) and at most every ``hold`` seconds.
    """

    def __init__(self, *, window: float = WINDOW, hold: float = HOLD) -> None:
        self._window, self._hold = window, hold
        self._samples: deque[_Sample] = deque()
        self._pays: bool | None = None
        self._since = 0.0

    def add(self, time: float, before: Detections, after: Detections) -> None:
        """A comparison at ``time``, seconds of the source; a time that jumps back starts over, the verdict stays."""
        if self._samples and time < self._samples[-1].time:
            self._samples.clear()
            self._since = time
        sums = (float(before.scores.sum()), float(after.scores.sum()))
        self._samples.append(_Sample(time, (len(before), len(after)), sums))
        while len(self._samples) > LEAST and self._samples[0].time < time - self._window:
            self._samples.popleft()
        self._judge(time)

    def _judge(self, time: float) -> None:
        if len(self._samples) < LEAST:
            return
        growth = self._growth()
        if growth is None or (self._pays is not None and time - self._since < self._hold):
            return
        verdict = True if growth >= PAYS else False if growth <= PAYS_NOT else self._pays
        if verdict is not self._pays:
            self._pays, self._since = verdict, time

    def _growth(self) -> float | None:
        before, after = (sum(s.scores[k] for s in self._samples) for k in (0, 1))
        if before == after == 0:
            return None
        # As if one sure object more had been found on both sides: with next to nothing found, no share is certain.
        return (after + 1) / (before + 1) - 1

    def gain(self) -> Gain:
        """What is in the window now."""
        n = len(self._samples)
        counts = [sum(s.counts[k] for s in self._samples) for k in (0, 1)]
        sums = [sum(s.scores[k] for s in self._samples) for k in (0, 1)]
        means = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        return Gain(
            n,
            counts[0] / n if n else 0.0,
            counts[1] / n if n else 0.0,
            means[0],
            means[1],
            self._growth() if n else None,
            self._pays,
        )
