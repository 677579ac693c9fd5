"""The record: it fits its schema, the schema refuses what does not, and the copy in docs is the same."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from streamdeblur.detect import JSON_SCHEMA, SCHEMA, Detections, Look
from streamdeblur.detect.detector import no_detections
from streamdeblur.detect.schema import wall_time

DOCS = Path(__file__).parents[2] / "docs"


def look(**changes: Any) -> Look:
    objects = Detections(
        np.array([[1.26, 2, 30.04, 40], [5, 6, 70, 80]], np.float32),
        np.array([0.41239, 0.9], np.float32),
        np.array([2, 0]),
        ("person", "bicycle", "car"),
    )
    values: dict[str, Any] = {
        "source": "gate",
        "time": datetime(2026, 3, 4, 5, 6, 7, 891234, UTC),
        "index": 7,
        "pts": 9009,
        "time_base": Fraction(1, 90000),
        "width": 640,
        "height": 352,
        "restored": True,
        "blur": 0.812345,
        "latency": 0.1234567,
        "detector": 0.0201,
        "objects": objects,
        "tracks": (None, 4),
        "unrestored": None,
    }
    return Look(**{**values, **changes})


def test_values_of_a_record() -> None:
    record = look().as_dict()
    jsonschema.validate(record, JSON_SCHEMA, cls=jsonschema.Draft202012Validator)
    assert record["schema"] == SCHEMA == "streamdeblur.detections/1"
    assert record["time"] == "2026-03-04T05:06:07.891Z"
    assert (record["pts"], record["time_base"], record["seconds"]) == (9009, "1/90000", 0.1001)
    assert (record["latency_ms"], record["detector_ms"], record["blur"]) == (123.46, 20.1, 0.8123)
    assert record["objects"] == [
        {"box": [5.0, 6.0, 70.0, 80.0], "score": 0.9, "class": 0, "name": "person", "track": 4},
        {"box": [1.3, 2.0, 30.0, 40.0], "score": 0.4124, "class": 2, "name": "car", "track": None},
    ]
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize(
    "changes",
    [
        {"pts": None},
        {"blur": None, "restored": False},
        {"objects": no_detections(), "tracks": ()},
        {"unrestored": no_detections()},
        {"unrestored": look().objects},
        {"pts": -3003},
    ],
)
def test_every_kind_of_record_fits(changes: dict[str, Any]) -> None:
    record = look(**changes).as_dict()
    jsonschema.validate(record, JSON_SCHEMA, cls=jsonschema.Draft202012Validator)


def test_the_unrestored_frame_is_told_apart() -> None:
    before = look(unrestored=look().objects).as_dict()["unrestored"]
    assert before["count"] == 2
    assert before["mean_score"] == pytest.approx((0.41239 + 0.9) / 2, abs=1e-4)
    assert [o["track"] for o in before["objects"]] == [None, None]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "streamdeblur.detections/2"),
        ("time", "2026-03-04 05:06:07"),
        ("index", -1),
        ("blur", 1.5),
        ("objects", [{"box": [1, 2, 3]}]),
        ("time_base", 0.1),
    ],
)
def test_the_schema_refuses_what_does_not_fit(key: str, value: Any) -> None:
    record = {**look().as_dict(), key: value}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, JSON_SCHEMA, cls=jsonschema.Draft202012Validator)
    del record[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, JSON_SCHEMA, cls=jsonschema.Draft202012Validator)


def test_wall_time_is_utc() -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    assert wall_time(datetime(2026, 1, 1, 2, 0, 0, tzinfo=east)) == "2025-12-31T20:30:00.000Z"


def test_the_copy_in_docs_is_the_schema() -> None:
    # what a reader in another language takes; python -c "..." in docs/detection.md writes it again
    assert json.loads((DOCS / "detections.schema.json").read_text(encoding="utf-8")) == JSON_SCHEMA
