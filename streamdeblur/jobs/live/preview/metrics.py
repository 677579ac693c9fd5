"""``/metrics``: the status in Prometheus' text format (exposition format 0.0.4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from streamdeblur.jobs.live.preview.status import OUTPUT_STATES, STATES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "streamdeblur_live_"
_Labels = tuple[tuple[str, str], ...]

#: (key of a source's status, name of the metric, help).
_SOURCE_COUNTERS = (
    ("frames", "arrived_frames_total", "Frames that arrived."),
    ("late", "late_frames_total", "Frames that could not be restored in time."),
    ("behind", "encoding_behind_frames_total", "Frames dropped because encoding could not keep up."),
    ("failed", "failed_frames_total", "Frames that could not be restored because of an error."),
    ("undecodable", "undecodable_total", "Packets and frames that a decoder refused."),
    ("reconnects", "reconnects_total", "Times the source was opened again."),
    ("restarts", "source_restarts_total", "Times the reading process was killed and started again."),
)
_SOURCE_GAUGES = (
    ("latency_ms", "source_latency_limit_seconds", 1e-3, "The deadline of a frame of this source."),
    ("waiting", "waiting_frames", 1.0, "Frames that wait to be restored."),
    ("step_index", "ladder_step", 1.0, "Step of the ladder, 0 is the best."),
    ("restore_ms", "restore_seconds", 1e-3, "Device time for a frame on this step."),
    ("reused", "reused_tiles_ratio", 1.0, "Share of tiles whose correction was reused."),
)
_OUTPUT_COUNTERS = (
    ("packets", "output_packets_total", "Packets that the output took."),
    ("dropped", "output_dropped_packets_total", "Packets left out because the output was away or behind."),
    ("segments", "output_segments_total", "Files that the output completed."),
    ("restarts", "output_restarts_total", "Times the output was opened again."),
    ("stalls", "output_stalls_total", "Times the output's process was killed because it took nothing."),
)
_SINK_COUNTERS = (
    ("sent", "sink_records_total", "Records that arrived at the sink."),
    ("dropped", "sink_lost_records_total", "Records that did not and never will."),
    ("errors", "sink_errors_total", "Deliveries that failed."),
)
_DETECTOR = (
    ("looked", "looked"),
    ("skipped", "skipped"),
    ("dropped", "dropped"),
    ("errors", "failed"),
)


class Exposition:
    """Turns status documents into text. One thread at a time.

    Counters never go down: what a part of the job lost when it was started anew is added.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._headed: set[str] = set()
        self._told: set[tuple[str, _Labels]] = set()
        self._counters: dict[tuple[str, _Labels], tuple[float, float]] = {}

    def render(self, status: Mapping[str, Any]) -> str:
        self._lines, self._headed, self._told = [], set(), set()
        self._job(status)
        sources = status.get("sources") or []
        self._sources(sources)
        self._outputs(sources)
        self._detection(sources)
        self._sinks(sources)
        self._ledgers(sources)
        self._preview(status.get("preview") or {})
        return "".join(line + "\n" for line in self._lines)

    # --- parts ------------------------------------------------------------------------------------------------------

    def _job(self, s: Mapping[str, Any]) -> None:
        labels = {k: str(s.get(k, "")) for k in ("version", "device", "model")}
        self._gauge("info", "What runs.", 1, labels)
        self._gauge("ready", "Whether every source that should deliver does.", s.get("ready"))
        self._gauge("uptime_seconds", "Since the start of the job.", s.get("seconds"))
        self._gauge("device_load_ratio", "Share of the device's time that the sources need.", s.get("load"))
        self._gauge("latency_limit_seconds", "The deadline of a frame.", s.get("latency_ms"), factor=1e-3)
        self._gauge("memory_bytes", "Resident memory of the process.", s.get("memory_mb"), factor=1e6)
        self._gauge("gpu_memory_bytes", "Memory that PyTorch holds on the GPU.", s.get("gpu_mb"), factor=1e6)

    def _sources(self, sources: Iterable[Mapping[str, Any]]) -> None:
        named = [(s, {"source": str(s.get("name", ""))}) for s in sources]
        for s, labels in named:
            self._gauge("source_up", "Whether the source delivers.", s.get("state") == "live", labels)
        for s, labels in named:
            for state in STATES:
                given = {**labels, "state": state}
                self._gauge("source_state", "1 for the state that the source is in.", s.get("state") == state, given)
        for s, labels in named:
            for fate in ("restored", "bypassed", "dropped"):
                given = {**labels, "fate": fate}
                self._counter("frames_total", "Frames by what became of them.", s.get(fate), given)
        for key, name, words in _SOURCE_COUNTERS:
            for s, labels in named:
                self._counter(name, words, s.get(key), labels)
        for s, labels in named:
            for way in ("in", "out"):
                given = {**labels, "direction": way}
                self._gauge("frames_per_second", "Rate over the last seconds.", s.get(f"fps_{way}"), given)
        for s, labels in named:
            for quantile, key in (("0.5", "latency_p50_ms"), ("0.95", "latency_p95_ms")):
                words = "From arrival to output, over the last seconds."
                self._gauge("latency_seconds", words, s.get(key), {**labels, "quantile": quantile}, factor=1e-3)
        for key, name, factor, words in _SOURCE_GAUGES:
            for s, labels in named:
                self._gauge(name, words, s.get(key), labels, factor=factor)

    def _outputs(self, sources: Iterable[Mapping[str, Any]]) -> None:
        named = [
            (o, {"source": str(s.get("name", "")), "output": str(o.get("target", ""))})
            for s in sources
            for o in s.get("outputs") or ()
        ]
        for o, labels in named:
            self._gauge("output_up", "Whether the output takes packets.", o.get("state") == "live", labels)
        for o, labels in named:
            for state in OUTPUT_STATES:
                given = {**labels, "state": state}
                self._gauge("output_state", "1 for the state that the output is in.", o.get("state") == state, given)
        for key, name, words in _OUTPUT_COUNTERS:
            for o, labels in named:
                self._counter(name, words, o.get(key), labels)

    def _detection(self, sources: Iterable[Mapping[str, Any]]) -> None:
        named = [(s["detection"], {"source": str(s.get("name", ""))}) for s in sources if s.get("detection")]
        for d, labels in named:
            stuck = d.get("stuck")
            words = "Whether the detector answers."
            self._gauge("detector_up", words, None if stuck is None else not stuck, labels)
        for d, labels in named:
            for key, result in _DETECTOR:
                given = {**labels, "result": result}
                self._counter("detector_frames_total", "Frames by what the detector did.", d.get(key), given)
        for d, labels in named:
            for quantile, key in (("0.5", "p50_ms"), ("0.95", "p95_ms")):
                given = {**labels, "quantile": quantile}
                self._gauge("detector_seconds", "The detector on one frame.", d.get(key), given, factor=1e-3)
        for d, labels in named:
            self._gauge("objects", "Found on the last frame that was looked at.", d.get("objects"), labels)
        gains = [(d["gain"], labels) for d, labels in named if d.get("gain")]
        for g, labels in gains:
            for which in ("before", "after"):
                given = {**labels, "frames": which}
                words = "Detections a frame, before and after restoration."
                self._gauge("detections_per_frame", words, g.get(f"detections_{which}"), given)
        for g, labels in gains:
            words = "Share by which restoration makes the sum of scores grow."
            self._gauge("detection_gain_ratio", words, g.get("growth"), labels)

    def _sinks(self, sources: Iterable[Mapping[str, Any]]) -> None:
        named = [
            (k, {"source": str(s.get("name", "")), "sink": str(k.get("name", ""))})
            for s in sources
            for k in (s.get("detection") or {}).get("sinks") or ()
        ]
        for k, labels in named:
            self._gauge("sink_up", "Whether the last delivery arrived.", not k.get("down"), labels)
        for key, name, words in _SINK_COUNTERS:
            for k, labels in named:
                self._counter(name, words, k.get(key), labels)

    def _ledgers(self, sources: Iterable[Mapping[str, Any]]) -> None:
        named = [(s["ledger"], {"source": str(s.get("name", ""))}) for s in sources if s.get("ledger")]
        for one, labels in named:
            self._counter("ledger_lines_total", "Frames written to the ledger.", one.get("lines"), labels)
        for one, labels in named:
            words = "Frames without a line of their own in the ledger."
            self._counter("ledger_lost_lines_total", words, one.get("lost"), labels)

    def _preview(self, p: Mapping[str, Any]) -> None:
        self._gauge("preview_readers", "Who looks at pictures.", p.get("readers"))
        self._counter("preview_pictures_total", "Pictures made for the page.", p.get("pictures"), {})
        self._counter("preview_refused_total", "Readers turned away because there were too many.", p.get("refused"), {})

    # --- lines ------------------------------------------------------------------------------------------------------

    def _gauge(
        self, name: str, words: str, value: Any, labels: Mapping[str, str] | None = None, *, factor: float = 1.0
    ) -> None:
        if isinstance(value, int | float) and math.isfinite(value):
            self._line(_PREFIX + name, "gauge", words, tuple((labels or {}).items()), float(value) * factor)

    def _counter(self, name: str, words: str, value: Any, labels: Mapping[str, str]) -> None:
        full, given = _PREFIX + name, tuple(labels.items())
        if isinstance(value, bool) or not isinstance(value, int | float) or (full, given) in self._told:
            return
        last, lost = self._counters.get((full, given), (0.0, 0.0))
        if value < last:
            lost += last
        self._counters[full, given] = (float(value), lost)
        self._line(full, "counter", words, given, value + lost)

    def _line(self, name: str, kind: str, words: str, labels: _Labels, value: float) -> None:
        if (name, labels) in self._told:
            return  # two URLs that differ in their password only: a series twice makes the whole page invalid
        self._told.add((name, labels))
        if name not in self._headed:
            self._headed.add(name)
            self._lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
        inside = ",".join(f'{k}="{escape(v)}"' for k, v in labels)
        self._lines.append(f"{name}{{{inside}}} {number(value)}" if inside else f"{name} {number(value)}")


def escape(text: str) -> str:
    """A label's value: backslash, quote and line feed escaped."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def number(value: float) -> str:
    """Whole numbers without a point, others to nine digits."""
    return str(int(value)) if value == int(value) else f"{value:.9g}"
