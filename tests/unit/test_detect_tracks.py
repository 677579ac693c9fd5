"""Tracking: objects of known motion keep their number; the assignment is the best there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from streamdeblur.detect.detector import Detections
from streamdeblur.detect.tracks import Tracker, assign


def found(*objects: tuple[float, float, float], size: float = 40, classes: tuple[int, ...] | None = None) -> Detections:
    """Objects of (x, y of the centre, score)."""
    boxes = np.array([[x - size / 2, y - size / 2, x + size / 2, y + size / 2] for x, y, _ in objects], np.float32)
    ids = np.array(classes if classes is not None else [0] * len(objects), np.int64)
    return Detections(boxes.reshape(-1, 4), np.array([s for *_, s in objects], np.float32), ids, ("car", "truck"))


def test_assignment_equals_the_best_of_all_permutations() -> None:
    rng = np.random.default_rng(0)
    for rows, columns in itertools.product(range(1, 6), range(1, 6)):
        cost = rng.random((rows, columns))
        pairs = assign(cost)
        assert len(pairs) == min(rows, columns)
        assert len({r for r, _ in pairs}) == len({c for _, c in pairs}) == len(pairs)
        wide = cost if rows <= columns else cost.T
        best = min(
            sum(wide[i, p[i]] for i in range(wide.shape[0])) for p in itertools.permutations(range(wide.shape[1]))
        )
        assert sum(cost[r, c] for r, c in pairs) == pytest.approx(best)


def test_assignment_is_not_greedy() -> None:
    assert assign(np.array([[0.1, 0.2], [0.15, 0.9]])) == [(0, 1), (1, 0)]


def test_objects_that_pass_each_other_keep_their_numbers() -> None:
    tracker = Tracker()
    seen = []
    for t in range(40):
        left_to_right, right_to_left = 50 + 8 * t, 370 - 8 * t
        objects = [(left_to_right, 100, 0.9), (right_to_left, 130, 0.9)]
        # the detector's order changes; the objects' does not
        order = [0, 1] if t % 2 else [1, 0]
        tracks = tracker.update(found(*(objects[i] for i in order)))
        seen.append(tuple(tracks[order.index(i)] for i in range(2)))
    assert set(seen) == {seen[0]}
    assert None not in seen[0]


def test_a_weak_detection_goes_on_with_a_track_but_begins_none() -> None:
    tracker = Tracker()
    first = tracker.update(found((100, 100, 0.9)))
    assert first == [1]
    for t in range(1, 6):  # blurred: the score falls
        assert tracker.update(found((100 + 3 * t, 100, 0.2), (300, 300, 0.2))) == [1, None]
    assert tracker.update(found((118, 100, 0.9))) == [1]


def test_an_object_hidden_for_a_while_comes_back_with_its_number() -> None:
    tracker = Tracker(keep=20)
    for t in range(10):
        assert tracker.update(found((100 + 6 * t, 100, 0.9))) == [1]
    for _ in range(8):
        assert tracker.update(found()) == []
    assert tracker.update(found((100 + 6 * 18, 100, 0.9))) == [1]  # where its motion has brought it
    for _ in range(21):
        tracker.update(found())
    assert tracker.update(found((100 + 6 * 40, 100, 0.9))) == [None]  # forgotten: a new one
    assert tracker.update(found((100 + 6 * 41, 100, 0.9))) == [2]


def test_frames_left_out_do_not_lose_a_fast_object() -> None:
    every, thinned = Tracker(), Tracker()
    for t in range(12):
        every.update(found((100 + 10 * t, 100, 0.9)))
        thinned.update(found((100 + 10 * t, 100, 0.9)))
    # four frames on, it has moved by its own width: only who knows the steps finds it
    assert thinned.update(found((100 + 10 * 15, 100, 0.9)), steps=4) == [1]
    assert every.update(found((100 + 10 * 15, 100, 0.9)), steps=1) != [1]


def test_a_flicker_is_no_object() -> None:
    tracker = Tracker()
    tracker.update(found((100, 100, 0.9)))
    assert tracker.update(found((100, 100, 0.9), (300, 300, 0.9))) == [1, None]
    assert tracker.update(found((100, 100, 0.9))) == [1]
    assert tracker.update(found((100, 100, 0.9), (300, 300, 0.9))) == [1, None]
    assert tracker.update(found((100, 100, 0.9), (300, 300, 0.9))) == [1, 3]


def test_a_change_of_class_keeps_the_number_but_the_same_class_comes_first() -> None:
    tracker = Tracker()
    assert tracker.update(found((100, 100, 0.9), (112, 100, 0.9), classes=(0, 1))) == [1, 2]
    assert tracker.update(found((112, 100, 0.9), (100, 100, 0.9), classes=(1, 0))) == [2, 1]
    assert tracker.update(found((100, 100, 0.9), classes=(1,))) in ([1], [2])


def test_a_stream_that_begins_again_is_taken() -> None:
    tracker = Tracker()
    tracker.update(found((100, 100, 0.9)))
    assert tracker.update(found((101, 100, 0.9)), steps=-500) == [1]
