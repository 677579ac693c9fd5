"""Options of a detector: the same words in every job, and no silence about those that have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamdeblur.config import DetectOptions, ProcessOptions, StrictModel, load_yaml, merge, parse
from streamdeblur.errors import ConfigError
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.live.options import LiveOptions

ROOT = Path(__file__).parents[2]
#: A value of each option that is not its default.
GIVEN: dict[str, Any] = {
    "detect_threshold": 0.5,
    "detect_on": "both",
    "detect_every": 3,
    "detect_names": "names.txt",
    "detect_device": "cpu",
    "detect_threads": 2,
    "track": False,
    "annotate": True,
    "detections": "found.jsonl",
    "webhook": "https://h/x",
    "mqtt": "mqtt://h/x",
}
JOBS: tuple[type[StrictModel], ...] = (ProcessOptions, BatchOptions, LiveOptions)


def test_every_option_is_tried() -> None:
    assert set(GIVEN) == set(DetectOptions.model_fields) - {"detect"}


@pytest.mark.parametrize(
    ("model", "name"),
    [(m, n) for m in JOBS for n in GIVEN if n in m.model_fields],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_without_a_detector_it_is_told(model: type[StrictModel], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} without a detector has no effect: name one with detect$"):
        parse(model, {name: GIVEN[name]})
    parse(model, {"detect": "a.onnx", name: GIVEN[name]})


def test_a_file_with_all_defaults_asks_for_nothing() -> None:
    parse(LiveOptions, load_yaml(ROOT / "configs" / "live.yaml"))


def test_a_file_may_leave_the_detector_to_the_command_line() -> None:
    file = {"detect_threshold": 0.5, "annotate": True}
    assert merge(ProcessOptions, file, {"detect": "a.onnx"}, "x.yaml").detect_threshold == 0.5
    with pytest.raises(ConfigError, match=r"in x.yaml: annotate without a detector|annotate .* in x\.yaml"):
        merge(ProcessOptions, file, {"model": "identity"}, "x.yaml")


@pytest.mark.parametrize(("name", "value"), [("preview_fps", 5), ("preview_width", 320), ("preview_readers", 3)])
def test_the_page_too(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} without a page has no effect"):
        parse(LiveOptions, {name: value})
    parse(LiveOptions, {"preview": ":8080", name: value})
