"""Which box of this frame is which of the last: numbers that stay with an object.

The association of ByteTrack (Zhang et al., ECCV 2022, Algorithm 1): sure detections are matched with the predicted
boxes of all tracks first; then the unsure ones, which blur and occlusion make, with the tracks left over. Tracks that
nothing matches are kept a while, moving on by themselves. Motion is a Kalman filter of constant velocity with the
noises of the same paper (from DeepSORT), as the four coordinates are independent in it, in closed form for each.

The assignment is exact (shortest augmenting paths), and our own: SciPy would be a dependency for this one function, and
a greedy one swaps identities just where objects cross.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamdeblur.detect.detector import Boxes, Detections
from streamdeblur.detect.onnx_model import iou

Floats = npt.NDArray[np.float64]

#: From this score on a detection is sure: it may begin a track.
HIGH = 0.5
#: From this score on a detection may continue one.
LOW = 0.1
#: Least overlap (IoU times score) of a sure detection with a track; least IoU of an unsure one; and of a sure one
#: with a track that has been seen once only. ByteTrack's values.
_SURE, _UNSURE, _NEW = 0.2, 0.5, 0.3
#: Frames that a track is kept without being seen.
KEEP = 30
#: An overlap between different classes counts this much: detectors take a car for a truck now and then, and the track
#: should survive that, but a person in front of a car should not become the car.
_OTHER_CLASS = 0.7
#: Standard deviations of position and velocity for one frame, in parts of the box's height.
_POSITION, _VELOCITY = 1 / 20, 1 / 160


@dataclass(slots=True)
class _Track:
    """mean: (2, 4) of cx, cy, w, h and their change a frame. variance: (3, 4) of position, both, and velocity."""

    number: int
    mean: Floats
    variance: Floats
    class_id: int
    hits: int = 1
    missed: int = 0


class Tracker:
    """Gives each detection the number of its track. One stream, one thread.

    high: score from which on a detection may begin a track; low: from which on it may continue one. keep: frames that
    a track may go unseen. Numbers count from 1 and are never used again.
    """

    def __init__(self, *, high: float = HIGH, low: float = LOW, keep: int = KEEP) -> None:
        self._high, self._low, self._keep = max(high, low), low, keep
        self._tracks: list[_Track] = []
        self._next = 1
        self._begun = False

    def update(self, found: Detections, steps: int = 1) -> list[int | None]:
        """The number of each detection's track, None for one that belongs to none.

        steps: frames since the last call, so that frames left out in between do not slow the objects down; zero or
        less (a stream that began again) counts as one. A track is told from its second sighting on, those of the first
        frame at once: what flickers up in a single frame is no object.
        """
        steps = max(1, steps)
        for track in self._tracks:
            _predict(track, steps)
            track.missed += steps
        result: list[int | None] = [None] * len(found)
        scores = found.scores.astype(np.float64)
        sure = [int(i) for i in np.flatnonzero(scores >= self._high)]
        unsure = [int(i) for i in np.flatnonzero((scores >= self._low) & (scores < self._high))]
        seen = [t for t in self._tracks if t.hits > 1]
        fresh = [t for t in self._tracks if t.hits == 1]

        sure, seen = self._match(found, sure, seen, result, _SURE, fused=True)
        current = [t for t in seen if t.missed <= steps]  # those lost before are too uncertain for unsure boxes
        self._match(found, unsure, current, result, _UNSURE)
        sure, fresh = self._match(found, sure, fresh, result, _NEW, fused=True)
        dropped = {id(t) for t in fresh}  # a track of one sighting that is not seen again was none
        self._tracks = [t for t in self._tracks if id(t) not in dropped and t.missed <= self._keep]
        for i in sure:
            self._begin(found, i, result)
        self._begun = self._begun or bool(len(found))
        return result

    def _begin(self, found: Detections, i: int, result: list[int | None]) -> None:
        box = _centre(found.boxes[i])
        height = max(float(box[3]), 1.0)
        deviation = np.array([2 * _POSITION * height, 0.0, 10 * _VELOCITY * height])
        variance = np.repeat(deviation[:, None] ** 2, 4, axis=1)
        track = _Track(self._next, np.stack((box, np.zeros(4))), variance, int(found.class_ids[i]))
        self._next += 1
        if not self._begun:
            track.hits = 2
            result[i] = track.number
        self._tracks.append(track)

    def _match(
        self,
        found: Detections,
        which: list[int],
        tracks: list[_Track],
        result: list[int | None],
        least: float,
        fused: bool = False,
    ) -> tuple[list[int], list[_Track]]:
        """Assign detections ``which`` to tracks; returns the detections and the tracks that are left."""
        if not which or not tracks:
            return which, tracks
        boxes = found.boxes[which]
        value = iou(_corners(tracks), boxes).astype(np.float64)
        other = np.array([t.class_id for t in tracks])[:, None] != found.class_ids[which][None, :]
        value *= np.where(other, _OTHER_CLASS, 1.0)
        if fused:
            value *= found.scores[which][None, :]
        pairs = [(r, c) for r, c in assign(1.0 - value) if value[r, c] >= least]
        for r, c in pairs:
            i, track = which[c], tracks[r]
            _correct(track, _centre(found.boxes[i]))
            track.hits += 1
            track.missed = 0
            track.class_id = int(found.class_ids[i])
            result[i] = track.number
        rows, columns = {r for r, _ in pairs}, {c for _, c in pairs}
        return (
            [i for c, i in enumerate(which) if c not in columns],
            [t for r, t in enumerate(tracks) if r not in rows],
        )


def assign(cost: Floats) -> list[tuple[int, int]]:
    """The assignment of rows to columns with the least sum of costs: min(rows, columns) pairs, by row.

    Shortest augmenting paths with potentials (Kuhn 1955; Jonker & Volgenant 1987), O(rows² columns). Costs are finite.
    """
    rows, columns = cost.shape
    if rows > columns:
        return sorted((r, c) for c, r in assign(cost.T))
    row_price = np.zeros(rows + 1)
    column_price = np.zeros(columns + 1)
    owner = np.zeros(columns + 1, np.int64)  # 1-based row of each 1-based column; 0: free
    for row in range(1, rows + 1):
        owner[0] = row
        column = 0
        distance = np.full(columns + 1, np.inf)
        came = np.zeros(columns + 1, np.int64)
        used = np.zeros(columns + 1, np.bool_)
        while True:
            used[column] = True
            at = owner[column]
            slack = cost[at - 1] - row_price[at] - column_price[1:]
            better = ~used[1:] & (slack < distance[1:])
            distance[1:][better] = slack[better]
            came[1:][better] = column
            nearest = int(np.where(used[1:], np.inf, distance[1:]).argmin()) + 1
            step = distance[nearest]
            row_price[owner[used]] += step
            column_price[used] -= step
            distance[~used] -= step
            column = nearest
            if owner[column] == 0:
                break
        while column:
            before = came[column]
            owner[column] = owner[before]
            column = int(before)
    return sorted((int(owner[c]) - 1, c - 1) for c in range(1, columns + 1) if owner[c])


def _predict(track: _Track, steps: int) -> None:
    height = max(float(track.mean[0, 3]), 1.0)
    noise = np.array([(_POSITION * height) ** 2, (_VELOCITY * height) ** 2])
    for _ in range(min(steps, KEEP)):
        track.mean[0] += track.mean[1]
        place, both, speed = track.variance
        track.variance = np.stack((place + 2 * both + speed + noise[0], both + speed, speed + noise[1]))
    track.mean[0, 2:] = np.maximum(track.mean[0, 2:], 1.0)


def _correct(track: _Track, box: Floats) -> None:
    place, both, speed = track.variance
    noise = (_POSITION * max(float(track.mean[0, 3]), 1.0)) ** 2
    total = place + noise
    error = box - track.mean[0]
    track.mean[0] += place / total * error
    track.mean[1] += both / total * error
    track.variance = np.stack((place * noise / total, both * noise / total, speed - both**2 / total))


def _centre(box: npt.NDArray[np.float32]) -> Floats:
    x1, y1, x2, y2 = (float(v) for v in box)
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])


def _corners(tracks: list[_Track]) -> Boxes:
    c = np.stack([t.mean[0] for t in tracks])
    return np.concatenate((c[:, :2] - c[:, 2:] / 2, c[:, :2] + c[:, 2:] / 2), axis=1).astype(np.float32)
