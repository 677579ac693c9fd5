"""The hook: what is looked at, what is dropped, what fails; and the A/B meter. Detectors are stand-ins."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.config import parse
from streamdeblur.detect import Detections, DetectOptions, Hook
from streamdeblur.detect import hook as module
from streamdeblur.detect.detector import no_detections
from streamdeblur.detect.hook import PROBE, turn_back
from streamdeblur.detect.meter import LEAST, Meter
from streamdeblur.detect.sinks import Sink
from streamdeblur.errors import ConfigError, UsageError
from streamdeblur.frames import ColorSpec, Frame, FrameSpec

WAIT = 30.0
SPEC = FrameSpec(64, 48, ColorSpec("rgb", full_range=True))


class Kept(Sink):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__("kept")
        self.records: list[dict[str, Any]] = []
        self.start()

    def _deliver(self, records: list[dict[str, Any]]) -> None:
        self.records += records


def frame(index: int, level: int = 100, pts: int | None = -1, blurred: bool = True) -> Frame:
    """A picture whose red corner pixel is ``level``; a ramp is as blurred as can be, noise not at all."""
    ramp = (np.arange(48)[:, None] * 2 + np.arange(64)[None, :]).astype(np.uint8)
    noise = np.random.default_rng(index).integers(0, 255, (48, 64), np.uint8)
    red = (ramp if blurred else noise).copy()
    red[0, 0] = level
    return Frame(index, index if pts == -1 else pts, Fraction(1, 25), (red, ramp, ramp), SPEC)


def one(rgb: npt.NDArray[np.uint8], score: float = 0.9) -> Detections:
    """An object whose x1 is the level of the corner pixel / 10."""
    x = float(rgb[0, 0, 0]) / 10
    boxes = np.array([[x, 10, x + 20, 30]], np.float32)
    return Detections(boxes, np.array([score], np.float32), np.array([0]), ("thing",))


def options(**values: Any) -> DetectOptions:
    return parse(DetectOptions, {"detect": "given:here", **values})


def hook(
    detector: Callable[[npt.NDArray[np.uint8]], Any], *, lossless: bool = True, **values: Any
) -> tuple[Hook, Kept]:
    kept = Kept()
    made = Hook(options(**values), source="gate", lossless=lossless, detector=detector, sinks=[kept])
    return made, kept


def test_every_frame_of_a_file_is_looked_at_restored() -> None:
    h, kept = hook(one)
    with h:
        tickets = [h.offer(frame(i, 100), frame(i, 50)) for i in range(20)]
        assert [t.result(WAIT).index for t in tickets] == list(range(20))  # type: ignore[union-attr]
    assert [r["index"] for r in kept.records] == list(range(20))
    assert {r["objects"][0]["box"][0] for r in kept.records} == {5.0}  # the restored frame's
    assert {r["objects"][0]["track"] for r in kept.records} == {1}
    assert all(r["restored"] and r["unrestored"] is None and r["blur"] > 0.5 for r in kept.records)
    stats = h.stats()
    assert (stats.looked, stats.dropped, stats.skipped, stats.errors, stats.objects) == (20, 0, 0, 0, 1)
    assert stats.p50_ms is not None
    assert stats.sinks[0].sent == 20
    assert h.offer(frame(99), None).result(WAIT) is None  # closed


def test_without_restoration_the_frame_itself_is_looked_at() -> None:
    h, kept = hook(one, detect_on="both")
    with h:
        h.offer(frame(0, 100), None).result(WAIT)
    assert kept.records[0]["objects"][0]["box"][0] == 10.0
    assert not kept.records[0]["restored"]
    assert kept.records[0]["unrestored"] is None


def test_both_compares_with_the_unrestored_frame() -> None:
    h, kept = hook(lambda rgb: one(rgb, 0.9 if rgb[0, 0, 0] == 50 else 0.4), detect_on="both")
    with h:
        for i in range(LEAST):
            h.offer(frame(i, 100), frame(i, 50)).result(WAIT)
        gain = h.stats().gain
    before = kept.records[-1]["unrestored"]
    assert (before["count"], before["mean_score"], before["objects"][0]["box"][0]) == (1, 0.4, 10.0)
    assert gain is not None
    assert (gain.comparisons, gain.detections_before, gain.detections_after) == (LEAST, 1, 1)
    assert (gain.score_before, gain.score_after) == pytest.approx((0.4, 0.9))
    assert gain.growth == pytest.approx((0.9 * LEAST + 1) / (0.4 * LEAST + 1) - 1)
    assert gain.pays is True
    assert h.restore_advised(1)


def test_where_restoring_does_not_pay_a_few_frames_keep_the_comparison_alive() -> None:
    h, _ = hook(lambda rgb: one(rgb, 0.3 if rgb[0, 0, 0] == 50 else 0.9), detect_on="both")
    with h:
        assert all(h.restore_advised(i) for i in range(30))  # not known yet
        for i in range(LEAST):
            h.offer(frame(i, 100), frame(i, 50)).result(WAIT)
        assert [i for i in range(3 * PROBE) if h.restore_advised(i)] == [0, PROBE, 2 * PROBE]


def test_only_blurred_frames() -> None:
    h, kept = hook(one, detect_on="blurry:0.5")
    with h:
        tickets = [h.offer(frame(i, blurred=bool(i % 2)), frame(i)) for i in range(6)]
        assert [t.result(WAIT) is None for t in tickets] == [True, False] * 3
    assert [r["index"] for r in kept.records] == [1, 3, 5]
    assert h.stats().skipped == 3


def test_every_nth() -> None:
    h, kept = hook(one, detect_every=3)
    with h:
        for i in range(7):
            h.offer(frame(i), frame(i))
    assert [r["index"] for r in kept.records] == [0, 3, 6]
    assert h.stats().skipped == 4


def test_live_never_waits_and_takes_the_newest() -> None:
    started, free = threading.Event(), threading.Event()

    def slow(rgb: npt.NDArray[np.uint8]) -> Detections:
        started.set()
        assert free.wait(WAIT)
        return one(rgb)

    h, kept = hook(slow, lossless=False)
    first = h.offer(frame(0), frame(0))
    assert started.wait(WAIT)
    tickets = [h.offer(frame(i), frame(i)) for i in range(1, 100)]  # returns, though the detector does not
    assert [t.settled for t in tickets] == [True] * 98 + [False]
    assert h.annotated(frame(50), tickets[49], 0).planes[0].tobytes() == frame(50).planes[0].tobytes()
    free.set()
    assert first.result(WAIT) is not None
    assert tickets[-1].result(WAIT) is not None
    h.close(WAIT)
    assert [r["index"] for r in kept.records] == [0, 99]
    assert (h.stats().looked, h.stats().dropped) == (2, 98)


def test_a_detector_that_raises_is_counted_and_told_once_a_kind(caplog: pytest.LogCaptureFixture) -> None:
    def bad(rgb: npt.NDArray[np.uint8]) -> Any:
        if rgb[0, 0, 0] == 1:
            raise RuntimeError("out of\nmemory")
        if rgb[0, 0, 0] == 2:
            return "nothing"
        return one(rgb)

    h, kept = hook(bad)
    with caplog.at_level(logging.WARNING, "streamdeblur"), h:
        for i, level in enumerate([1, 1, 2, 1, 2, 100]):
            h.offer(frame(i), frame(i, level)).result(WAIT)
    assert [r["index"] for r in kept.records] == [5]
    assert (h.stats().errors, h.stats().looked) == (5, 1)
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 2
    assert "RuntimeError: out of memory" in told[0]
    assert "returned a str" in told[1]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("lossless", [True, False])
def test_a_detector_that_ends_its_thread_is_an_error_like_any(
    error: type[BaseException], lossless: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def leaves(rgb: npt.NDArray[np.uint8]) -> Detections:
        if rgb[0, 0, 0] == 1:
            raise error("enough")
        return one(rgb)

    h, kept = hook(leaves, lossless=lossless)
    with caplog.at_level(logging.WARNING, "streamdeblur"), h:
        for i, level in enumerate([1, 1, 100]):
            h.offer(frame(i), frame(i, level)).result(WAIT)
    assert [r["index"] for r in kept.records] == [2]
    assert (h.stats().errors, h.stats().error) == (2, f"{error.__name__}: enough")
    assert [r.getMessage() for r in caplog.records] == [
        f"the detector of gate failed: {error.__name__}: enough; the job goes on without"
    ]


def test_a_live_detector_that_hangs_is_told_once_and_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_SILENCE", 0.05)
    reached, free = threading.Event(), threading.Event()

    def hangs(rgb: npt.NDArray[np.uint8]) -> Detections:
        if rgb[0, 0, 0] == 1:
            reached.set()
            assert free.wait(WAIT)
        return one(rgb)

    h, kept = hook(hangs, lossless=False)
    with caplog.at_level(logging.WARNING, "streamdeblur"), h:
        first = h.offer(frame(0), frame(0, 1))
        assert reached.wait(WAIT)
        for i in itertools.count(1):
            h.offer(frame(i), frame(i))
            if h.stats().stuck:
                break
        error = h.stats().error
        h.offer(frame(i + 1), frame(i + 1))
        free.set()
        assert first.result(WAIT) is not None
        h.offer(frame(i + 2), frame(i + 2)).result(WAIT)
    assert error is not None
    assert error.startswith("no answer for ")
    assert (h.stats().stuck, h.stats().error, h.stats().errors) == (False, None, 0)
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("the detector of gate has given no answer for ")
    assert told[1].startswith("the detector of gate is back after ")
    assert kept.records[-1]["index"] == i + 2


def test_a_live_detector_that_hangs_is_told_where_no_frame_comes_any_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_SILENCE", 0.05)
    free = threading.Event()
    h, _ = hook(lambda rgb: free.wait(WAIT) and one(rgb), lossless=False)
    with caplog.at_level(logging.WARNING, "streamdeblur"):
        h.offer(frame(0), frame(0))
        while not h.stats().stuck:
            free.wait(0.01)
        free.set()
        h.close(WAIT)
    assert "has given no answer" in caplog.records[0].getMessage()


class Pace:
    """A live detector that takes one frame after the other; meanwhile as many come as is said."""

    def __init__(self) -> None:
        self._busy, self._step = threading.Semaphore(0), threading.Semaphore(0)
        self._index = 0
        self.hook, _ = hook(self._look, lossless=False)
        self._offer()

    def _look(self, rgb: npt.NDArray[np.uint8]) -> Detections:
        self._busy.release()
        assert self._step.acquire(timeout=WAIT)
        return one(rgb)

    def _offer(self) -> None:
        self.hook.offer(frame(self._index), None)
        self._index += 1

    def answer(self, frames: int) -> None:
        """One answer, while so many frames come: one of them waits, the others are dropped."""
        assert self._busy.acquire(timeout=WAIT)
        for _ in range(frames):
            self._offer()
        self._step.release()

    def end(self) -> None:
        assert self._busy.acquire(timeout=WAIT)
        self._step.release()
        self.hook.close(WAIT)


def test_a_live_detector_that_is_too_slow_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_STRETCH", 0.0)  # three answers are one
    with caplog.at_level(logging.WARNING, "streamdeblur"):
        pace = Pace()
        for _ in range(30):
            pace.answer(2)
        pace.end()
    (told,) = [r.getMessage() for r in caplog.records]
    assert told.startswith("the detector of gate is too slow for the stream, ")
    assert told.endswith(" ms a frame: 3 of the last 6 frames were not looked at; --detect-every asks for fewer")
    assert (pace.hook.stats().looked, pace.hook.stats().dropped) == (31, 30)


def test_a_burst_of_frames_makes_no_detector_too_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_STRETCH", 0.0)
    with caplog.at_level(logging.WARNING, "streamdeblur"):
        pace = Pace()
        pace.answer(50)
        for _ in range(29):
            pace.answer(1)
        pace.end()
    assert not caplog.records
    assert pace.hook.stats().dropped == 49


def test_a_live_detector_that_keeps_up_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    h, _ = hook(one, lossless=False)
    with caplog.at_level(logging.WARNING, "streamdeblur"), h:
        for i in range(60):
            h.offer(frame(i), None).result(WAIT)
    assert not caplog.records


def test_a_detector_that_never_comes_back_stops_a_file_job_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    started, free = threading.Event(), threading.Event()

    def hangs(rgb: npt.NDArray[np.uint8]) -> Detections:
        started.set()
        assert free.wait(WAIT)
        return no_detections()

    h, _ = hook(hangs)
    tickets = [h.offer(frame(0), frame(0))]
    assert started.wait(WAIT)
    tickets += [h.offer(frame(i), frame(i)) for i in range(1, 50)]
    assert sum(t.settled for t in tickets) == 50 - 4 - 1  # four wait, one is being looked at
    assert h.stats().stuck
    free.set()
    h.close(WAIT)
    assert (h.stats().stuck, h.stats().error) == (False, None)
    assert h.stats().looked == 5


def test_closing_settles_what_is_left() -> None:
    free = threading.Event()
    h, _ = hook(lambda rgb: free.wait(WAIT) and one(rgb))
    tickets = [h.offer(frame(i), frame(i)) for i in range(3)]
    h.close(0.05)
    assert [t.result(0) for t in tickets[1:]] == [None, None]
    assert h.stats().dropped >= 1
    free.set()


def test_annotated_frames_carry_their_own_boxes_else_recent_ones() -> None:
    h, _ = hook(one, detect_every=2)
    with h:
        for i in range(3):
            ticket = h.offer(frame(i), frame(i, 50))
            drawn = h.annotated(frame(i, 50), ticket, WAIT)
            assert (drawn.planes[0] != frame(i, 50).planes[0]).any()
        far = frame(40)
        assert h.annotated(far, h.offer(frame(41), None), WAIT) is far  # 41 is left out, 2 is long ago


def test_low_scores_count_only_on_a_track() -> None:
    scores = iter([0.9, 0.9, 0.2, 0.2])
    h, kept = hook(lambda rgb: one(rgb, next(scores)), detect_threshold=0.5)
    with h:
        for i in range(4):
            h.offer(frame(i), frame(i))
    assert [len(r["objects"]) for r in kept.records] == [1, 1, 1, 1]
    scores = iter([0.2, 0.9])
    h, kept = hook(lambda rgb: one(rgb, next(scores)), detect_threshold=0.5, track=False)
    with h:
        for i in range(2):
            h.offer(frame(i), frame(i))
    assert [[o["track"] for o in r["objects"]] for r in kept.records] == [[], [None]]


def test_a_turned_picture_is_seen_upright_and_its_boxes_are_turned_back() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 200, (48, 64, 3), np.uint8)
    picture[10:20, 30:50] = 255  # the object
    planes = tuple(np.ascontiguousarray(picture[..., k]) for k in range(3))
    source = Frame(0, 0, Fraction(1, 25), planes, SPEC)

    def white(rgb: npt.NDArray[np.uint8]) -> Detections:
        rows, columns = np.nonzero((rgb == 255).all(axis=2))
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return Detections(np.array([box], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), (str(rgb.shape),))

    for rotation, shape in ((0, (48, 64, 3)), (90, (64, 48, 3)), (180, (48, 64, 3)), (-90, (64, 48, 3))):
        kept = Kept()
        with Hook(options(), source="x", lossless=True, detector=white, sinks=[kept], rotation=rotation) as h:
            h.offer(source, None).result(WAIT)
        found = kept.records[0]["objects"][0]
        assert found["name"] == str(shape)
        assert found["box"] == [30, 10, 50, 20]
    with pytest.raises(UsageError, match="rotation 45"):
        Hook(options(), source="x", detector=white, sinks=[], rotation=45)


def test_turning_back_nothing() -> None:
    assert turn_back(np.zeros((0, 4), np.float32), 1, 48, 64).shape == (0, 4)


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"detections": "a.jsonl"}, "detections without a detector"),
        ({"mqtt": "mqtt://user:secret@host/t"}, "mqtt without a detector"),
        ({"annotate": True}, "annotate without a detector"),
        ({"detect": "x.onnx", "detect_on": "sharp"}, "blurry:THRESHOLD"),
        ({"detect": "x.onnx", "detect_on": "blurry:1.5"}, "between 0 and 1"),
        ({"detect": "x.onnx", "detect_threshold": 2}, "--detect-threshold 2: must be less"),
    ],
)
def test_options_that_make_no_sense(values: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        parse(DetectOptions, values)
    assert "secret" not in str(caught.value)


def test_credentials_do_not_show_in_options() -> None:
    made = options(mqtt="mqtt://user:secret@host/t", webhook="https://user:secret@host/hook/secret")
    assert "secret" not in f"{made} {made!r} {made.model_dump()} {made.model_dump_json()}"


def test_a_url_as_a_name_loses_its_credentials() -> None:
    kept = Kept()
    with Hook(options(), source="rtsp://us:s3cret@host:554/a@b", detector=one, sinks=[kept]) as h:
        h.offer(frame(0), None).result(WAIT)
    assert kept.records[0]["source"] == "rtsp://host:554/a@b"


def test_without_a_detector_there_is_no_hook() -> None:
    with pytest.raises(UsageError, match="--detect"):
        Hook(DetectOptions(), source="x")


# -- the meter ---------------------------------------------------------------------------------------------------------


def scores(*values: float) -> Detections:
    n = len(values)
    return Detections(np.zeros((n, 4), np.float32), np.array(values, np.float32), np.zeros(n, np.int64), ("a",))


def test_the_verdict_has_hysteresis_and_holds() -> None:
    meter = Meter(window=10, hold=5)
    verdicts = []
    t = 0.0

    def run(seconds: float, before: float, after: float) -> None:
        nonlocal t
        for _ in range(int(seconds * 10)):
            meter.add(t, scores(before, before), scores(after, after))
            verdicts.append(meter.gain().pays)
            t += 0.1

    run(1, 0.5, 0.6)
    assert verdicts[LEAST - 1 :] == []
    assert verdicts == [None] * 10
    run(10, 0.5, 0.6)
    assert verdicts[-1] is True
    run(12, 0.5, 0.515)  # 3 %: neither
    assert verdicts[-1] is True
    run(12, 0.5, 0.5)
    assert verdicts[-1] is False
    run(12, 0.5, 0.515)
    assert verdicts[-1] is False
    run(12, 0.5, 0.6)
    assert verdicts[-1] is True
    changes = [i for i in range(1, len(verdicts)) if verdicts[i] is not verdicts[i - 1]]
    assert len(changes) == 3
    assert min(b - a for a, b in itertools.pairwise(changes)) >= 50


def test_nothing_found_says_nothing() -> None:
    meter = Meter()
    for i in range(50):
        meter.add(i * 0.1, scores(), scores())
    gain = meter.gain()
    assert (gain.pays, gain.growth, gain.score_before) == (None, None, None)


def test_old_comparisons_leave_and_a_clock_that_jumps_starts_over() -> None:
    meter = Meter(window=2)
    for i in range(100):
        meter.add(i * 0.1, scores(0.5), scores(0.5, 0.5))
    assert meter.gain().comparisons == 21
    meter.add(0.0, scores(0.5), scores(0.5))
    assert meter.gain().comparisons == 1
    assert meter.gain().pays is True  # the verdict stays
