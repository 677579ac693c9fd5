"""The status document, readiness and metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from streamdeblur.jobs.live.preview.metrics import Exposition, escape, number
from streamdeblur.jobs.live.preview.status import STATUS_SCHEMA, clean, document, problems
from tests.preview import job_status, source_status

ABOUT = {"readers": 2, "readers_limit": 256, "pictures": 77, "refused": 1, "fps": 10.0, "width": 960}
SECRET = "s3same-open"


def test_a_document_fits_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(STATUS_SCHEMA)
    validator = jsonschema.Draft202012Validator(STATUS_SCHEMA)
    lost = source_status("b", state="waiting", fps_in=None, latency_p50_ms=None, error="refused", reused=None)
    for status in (job_status(source_status("a"), lost), job_status(gpu_mb=812.5), {}):
        found = json.loads(json.dumps(document(status, ABOUT)))
        assert [e.message for e in validator.iter_errors(found)] == []
    broken = document(job_status(source_status("a", state="odd")), ABOUT)
    assert list(validator.iter_errors(broken))  # the schema can say no


def test_every_value_becomes_json_and_loses_its_credentials() -> None:
    given = {
        "a": math.nan,
        "b": math.inf,
        "c": (1, 2.5, None, True),
        "d": Path("/tmp/x"),
        "e": [{"deep": f"rtsp://admin:{SECRET}@192.0.2.1/x failed"}],
        f"http://u:{SECRET}@h/": 1,
        "f": "the-page-token in a text",
        "g": f"http://h/x?token={SECRET}&y=1",
    }
    found = clean(given, ["the-page-token"])
    text = json.dumps(found, allow_nan=False)
    assert SECRET not in text
    assert "the-page-token" not in text
    assert found["a"] is None
    assert found["b"] is None
    assert found["c"] == [1, 2.5, None, True]
    assert found["d"] == "/tmp/x"
    assert "192.0.2.1/x failed" in found["e"][0]["deep"]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ([source_status("a")], []),
        ([source_status("a"), source_status("b", state="ended", fps_out=0.0)], []),
        ([source_status("a"), source_status("b", state="waiting")], ["b: waiting"]),
        ([source_status("a", state="gave up")], ["a: gave up"]),
        ([source_status("a", state="connecting")], ["a: connecting"]),
        ([source_status("a", fps_out=0.0)], ["a: no frames leave"]),
        ([], ["no source yet"]),
    ],
)
def test_ready_is_when_every_source_that_should_deliver_does(sources: list[Any], expected: list[str]) -> None:
    assert problems(job_status(*sources)) == expected


def test_readiness_tells_no_error_text() -> None:
    found = problems(job_status(source_status("a", state="waiting", error="at rtsp://h/private")))
    assert "private" not in str(found)


def test_metrics_are_what_an_independent_reader_takes_them_for() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    nasty = 'a "quoted"\\back\nline'
    status = document(
        job_status(
            source_status("gate"),
            source_status(nasty, state="waiting", reused=None),
            gpu_mb=1024.0,
        ),
        ABOUT,
    )
    families = {f.name: f for f in parser.text_string_to_metric_families(Exposition().render(status))}
    assert all(name.startswith("streamdeblur_live_") for name in families)

    def value(family: str, sample: str | None = None, **labels: str) -> float:
        name = f"streamdeblur_live_{sample or family}"
        rows = families[f"streamdeblur_live_{family}"].samples
        return float(next(s.value for s in rows if s.name == name and labels.items() <= s.labels.items()))

    assert value("frames", "frames_total", source="gate", fate="restored") == 980
    assert value("frames", "frames_total", source="gate", fate="dropped") == 5
    assert value("encoding_behind_frames", "encoding_behind_frames_total", source="gate") == 4
    assert value("source_latency_limit_seconds", source="gate") == pytest.approx(0.5)
    assert value("reconnects", "reconnects_total", source=nasty) == 3
    assert value("latency_seconds", source="gate", quantile="0.95") == pytest.approx(0.18)
    assert value("source_up", source="gate") == 1
    assert value("source_up", source=nasty) == 0
    assert value("source_state", source=nasty, state="waiting") == 1
    assert value("output_packets", "output_packets_total", source="gate", output="hls:out") == 900
    assert value("memory_bytes") == 512e6
    assert value("gpu_memory_bytes") == 1024e6
    assert value("ready") == 0
    assert value("preview_readers") == 2
    assert families["streamdeblur_live_frames"].type == "counter"
    assert families["streamdeblur_live_device_load_ratio"].type == "gauge"
    # what is not known is not told as 0
    assert all(s.labels["source"] == "gate" for s in families["streamdeblur_live_reused_tiles_ratio"].samples)


def test_a_counter_never_goes_down() -> None:
    exposition = Exposition()
    seen = []
    for restored in (10, 25, 3, 4, 0, 9):  # started anew after 25, and after 4
        status = document(job_status(source_status("a", restored=restored)), ABOUT)
        line = next(x for x in exposition.render(status).splitlines() if 'fate="restored"' in x)
        seen.append(int(line.split()[-1]))
    assert seen == [10, 25, 28, 29, 29, 38]


def test_no_series_comes_twice() -> None:
    output = {"target": "rtsp://***@h/x", "state": "live", "packets": 1}
    status = document(job_status(source_status("a", outputs=[output, dict(output)])), ABOUT)
    series = [x.rsplit(" ", 1)[0] for x in Exposition().render(status).splitlines() if not x.startswith("#")]
    assert len(series) == len(set(series))


def test_what_a_detector_did_is_told() -> None:
    detection = {
        "looked": 40, "skipped": 2, "dropped": 3, "errors": 1, "error": None, "stuck": False,
        "p50_ms": 20.0, "p95_ms": 35.0, "objects": 4,
        "gain": {"detections_before": 2.0, "detections_after": 3.0, "growth": 0.5},
    }  # fmt: skip
    text = Exposition().render(document(job_status(source_status("a", detection=detection)), ABOUT))
    assert 'streamdeblur_live_detector_frames_total{source="a",result="looked"} 40' in text
    assert 'streamdeblur_live_detector_up{source="a"} 1' in text
    detection["stuck"] = True
    hangs = Exposition().render(document(job_status(source_status("a", detection=detection)), ABOUT))
    assert 'streamdeblur_live_detector_up{source="a"} 0' in hangs
    assert 'streamdeblur_live_detections_per_frame{source="a",frames="after"} 3' in text
    assert 'streamdeblur_live_detection_gain_ratio{source="a"} 0.5' in text


def test_labels_and_numbers_are_written_as_the_format_says() -> None:
    assert escape('a\\b"c\nd') == r"a\\b\"c\nd"
    assert number(3.0) == "3"
    assert number(0.123456789123) == "0.123456789"
    assert number(123456789012.0) == "123456789012"
