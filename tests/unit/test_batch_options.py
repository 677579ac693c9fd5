"""Options of a batch job: the YAML shows them all, a file's own are checked, and what shapes a result is known."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from streamdeblur.config import ProcessOptions, load_yaml, parse
from streamdeblur.errors import ConfigError
from streamdeblur.jobs.batch.fingerprint import settings_print
from streamdeblur.jobs.batch.options import PER_FILE, BatchOptions, file_options

CONFIG = Path(__file__).parents[2] / "configs" / "batch.yaml"
PLAIN = parse(BatchOptions, {"model": "identity"})


def test_batch_yaml_shows_every_option_once_with_its_default_and_a_comment() -> None:
    values = load_yaml(CONFIG)
    assert values == {name: field.default for name, field in BatchOptions.model_fields.items()}
    lines = [line for line in CONFIG.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(values)
    assert all(len(line.partition("#")[2].strip()) > 15 for line in lines)
    by_name = {line.split(":")[0]: line for line in lines}
    for name, schema in BatchOptions.model_json_schema()["properties"].items():
        for choice in schema.get("enum", []) if name != "preset" else ():
            assert re.search(rf"\b{choice}\b", by_name[name]), f"{choice} of {name}"


def test_what_is_shared_with_the_main_job_has_its_default_there() -> None:
    shared = set(BatchOptions.model_fields) & set(ProcessOptions.model_fields) - {"workers", "gpus_per_worker"}
    assert len(shared) > 15
    for name in shared:
        assert BatchOptions.model_fields[name].default == ProcessOptions.model_fields[name].default, name


def test_options_of_a_file_go_over_those_of_the_job() -> None:
    job = parse(BatchOptions, {"model": "identity", "crf": 20, "on_error": "bypass"})
    own = file_options(job, {"crf": "30", "lossless": "false", "output": "x.mkv"}, "line 3")
    assert (own.model, own.crf, own.lossless, own.on_error) == ("identity", 30.0, False, "bypass")
    assert file_options(job, {}).crf == 20
    with pytest.raises(ConfigError, match="unknown option 'crff' in line 3"):
        file_options(job, {"crff": 30}, "line 3")
    with pytest.raises(ConfigError, match="unknown option 'workers'"):
        file_options(job, {"workers": 3}, "line 3")
    with pytest.raises(ConfigError, match=r"crf .*in line 3"):
        file_options(job, {"crf": 99}, "line 3")
    with pytest.raises(ConfigError, match="lossless and crf exclude"):
        parse(BatchOptions, {"lossless": True, "crf": 3})


def test_only_what_shapes_a_result_changes_its_print() -> None:
    base = settings_print(file_options(PLAIN, {}))
    for name, value in (("workers", 3), ("threads", 2), ("segment_seconds", 5), ("attempts", 9), ("verify", False)):
        assert settings_print(file_options(PLAIN.model_copy(update={name: value}), {})) == base, name
    seen = {base}
    for name, value in (("crf", 30.0), ("lossless", True), ("start", 1.0), ("tiling", "fast"), ("model", "offset")):
        assert name in PER_FILE
        seen.add(settings_print(file_options(PLAIN.model_copy(update={name: value}), {})))
    assert len(seen) == 6


def test_the_weights_are_known_by_their_content(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors"))
    a.write_bytes(b"one")
    b.write_bytes(b"one")
    c.write_bytes(b"two")
    prints = [
        settings_print(file_options(PLAIN.model_copy(update={"model": None, "weights": str(p)}), {})) for p in (a, b, c)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_detector_of_ones_own_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own_detector.py"
    monkeypatch.chdir(tmp_path)
    for word in (f"{path}:make", "own_detector:make"):
        path.write_text("def make(): ...\n")
        os.utime(path, (1, 1))
        options = parse(ProcessOptions, {"model": "identity", "detect": word})
        before = settings_print(options)
        assert settings_print(options) == before
        path.write_text("def make(): return 1\n")
        assert settings_print(options) != before
