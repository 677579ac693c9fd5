"""Detectors behind a live job: one network for all sources, a hook, with tracks and sinks of its own, for each."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from streamdeblur.frames import Frame
from streamdeblur.jobs.live.options import LiveOptions
from streamdeblur.video.live.source import Arrived

if TYPE_CHECKING:
    from streamdeblur.detect import Detections, Detector, Look
    from streamdeblur.detect.hook import Hook


class LiveWatch:
    """What looks at the frames of one source. All methods return at once; any thread."""

    def __init__(self, hook: Hook, *, annotate: bool, auto: bool) -> None:
        self._hook = hook
        self._annotate = annotate
        self._auto = auto

    def spares(self, arrived: Arrived) -> bool:
        """Whether a frame need not be restored, because what looks at it gains nothing by that (``auto``)."""
        return self._auto and not self._hook.restore_advised(arrived.frame.index)

    def see(self, arrived: Arrived, after: Frame | None) -> Frame:
        """Offer a frame that leaves (``after`` is None where it was not restored); what is to be encoded."""
        wall = datetime.fromtimestamp(arrived.wall, UTC)
        ticket = self._hook.offer(arrived.frame, after, arrived=arrived.arrival, wall=wall)
        out = arrived.frame if after is None else after
        return self._hook.annotated(out, ticket, 0.0) if self._annotate else out

    def latest(self) -> Look | None:
        """What was found last."""
        return self._hook.latest()

    def stats(self) -> dict[str, Any]:
        """Counts, times, the gain of restored over unrestored frames, the sinks: JSON values."""
        return self._hook.stats().as_dict()

    def close(self) -> None:
        self._hook.close(5.0)


class _OneAtATime:
    """A detector that several sources share."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._lock = threading.Lock()

    def __call__(self, rgb: Any) -> Detections:
        with self._lock:
            return self._detector(rgb)


def make_watches(own: Mapping[str, LiveOptions]) -> dict[str, LiveWatch]:
    """A watch for every source with a detector. own: the options of each. Raises UsageError, WeightsError, DeviceError,
    OutputError."""
    watched = {name: o for name, o in own.items() if o.detect is not None}
    if not watched:
        return {}
    from streamdeblur.detect.detector import load_detector
    from streamdeblur.detect.hook import Hook
    from streamdeblur.detect.tracks import LOW

    first = next(iter(watched.values()))  # one network for all, which finds what any of them asks for
    threshold = min(o.detect_threshold for o in watched.values())
    assert first.detect is not None
    detector = load_detector(
        first.detect,
        threshold=min(LOW, threshold) if first.track else threshold,
        names=first.detect_names,
        device=first.detect_device,
        threads=first.detect_threads,
    )
    from streamdeblur.detect.onnx_model import OnnxDetector

    if not isinstance(detector, OnnxDetector):
        detector = _OneAtATime(detector)  # whoever wrote it counts on one thread
    watches: dict[str, LiveWatch] = {}
    try:
        for name, o in watched.items():
            asked = o.model_copy(update={"detect_on": "both"}) if o.auto else o
            hook = Hook(asked, source=name, detector=detector)
            watches[name] = LiveWatch(hook, annotate=o.annotate, auto=o.auto)
    except BaseException:
        for watch in watches.values():
            watch.close()
        raise
    return watches
