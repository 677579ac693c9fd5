"""Strict options: unknown keys, wrong values, files, environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from streamdeblur.config import ProcessOptions, StrictModel, load_yaml, merge, parse
from streamdeblur.errors import ConfigError


def test_defaults() -> None:
    options = ProcessOptions()
    assert (options.model, options.encoder, options.crf, options.on_error) == (None, "auto", None, "fail")
    assert (options.overwrite, options.lossless, options.deinterlace) == (False, False, False)
    assert options.in_flight == 2


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"lossles": True}, "unknown option 'lossles' in x.yaml; did you mean lossless?"),
        ({"over_write": True}, "did you mean overwrite?"),
        ({"zzz": 1}, "known are "),
        ({"crf": 64}, "crf 64 in x.yaml"),
        ({"crf": "high"}, "crf 'high' in x.yaml"),
        ({"workers": 0}, "workers 0"),
        ({"workers": 1.5}, "workers 1.5"),
        ({"stream": -1}, "stream -1"),
        ({"start": -0.1}, "start -0.1"),
        ({"duration": 0}, "duration 0 selects nothing"),
        ({"on_error": "ignore"}, "on_error 'ignore'"),
        ({"tiling": "tiny"}, "tiling 'tiny'"),
        ({"rate": 0}, "rate 0"),
        ({"lossless": True, "crf": 18}, "lossless and crf exclude each other"),
        ({"encoder": "ffv1", "crf": 18}, "ffv1 is always lossless, so crf 18 has no meaning"),
        ({"encoder": "ffv1", "preset": "slow"}, "ffv1 has no presets, so preset slow has no meaning"),
        ({"encoder": "x264", "crf": 52}, "crf 52 is more than x264 takes: give 0 to 51"),
        ({"encoder": "hevc_nvenc", "crf": 51.5}, "crf 51.5 is more than hevc_nvenc takes"),
        ({"encoder": "av1", "lossless": True}, "av1 has no lossless mode here"),
        ({"deinterlace": True, "interlaced": "progressive"}, "deinterlace needs an interlaced source"),
        ({"start": float("nan")}, "start nan"),
        ({"duration": float("nan")}, "duration nan"),
    ],
)
def test_faults_are_one_line_with_key_value_and_origin(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as e:
        parse(ProcessOptions, values, "x.yaml")
    assert says in str(e.value)
    assert "x.yaml" in str(e.value)
    assert "\n" not in str(e.value)
    assert e.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"reuse_halo": -4}, "--reuse-halo -4: must be greater than or equal to 0"),
        ({"reuse_halo": 3}, "--reuse-halo 3: must be a multiple of 4"),
        ({"in_flight": 0}, "--in-flight 0: must be greater than or equal to 1"),
        ({"workers": 1.5}, "--workers 1.5: must be a whole number"),
        ({"crf": "high"}, "--crf 'high': must be a number"),
        ({"tiling": "tiny"}, "--tiling 'tiny': must be 'auto', 'exact', 'fast' or 'whole'"),
        ({"memory": "1KB"}, "--memory '1KB': no amount of memory: give a number with MB, GB, MiB or GiB, as 4GB"),
        ({"memory": "100TB"}, "--memory '100TB': no amount of memory: give a number with MB, GB, MiB or GiB"),
        ({"memory": "1MB"}, "--memory '1MB': less than 1 MiB: give 1MiB or more"),
        ({"memory": "9999999GiB"}, "--memory '9999999GiB': more than any machine has: give less than 1048576GiB"),
    ],
)
def test_faults_of_the_command_line_name_the_option(values: dict[str, Any], says: str) -> None:
    for made in (lambda: parse(ProcessOptions, values), lambda: merge(ProcessOptions, {"start": 1}, values, "c.yaml")):
        with pytest.raises(ConfigError) as e:
            made()
        assert str(e.value).startswith(says)
    key, option = next(iter(values)), says.split()[0]
    with pytest.raises(ConfigError) as e:
        merge(ProcessOptions, values, {"start": 1.0}, "c.yaml")
    assert str(e.value).startswith(says.replace(option, key).replace(":", " in c.yaml:", 1))


def test_what_is_missing_is_named_without_a_value() -> None:
    class One(StrictModel):
        some_data: str

    for origin, says in (("", "--some-data: required: give it"), ("x.yaml", "some_data in x.yaml: required: give it")):
        with pytest.raises(ConfigError) as e:
            parse(One, {}, origin)
        assert str(e.value) == says


def test_lists_are_shown_as_they_are_typed() -> None:
    class Lists(StrictModel):
        many: tuple[int, ...] = ()
        words: tuple[str, ...] = Field((), max_length=2)

    for values, says in (
        ({"words": ("a", "b", "c")}, "words a, b, c in x.yaml: must have at most 2 items"),
        ({"many": (1, "two")}, "many.1 'two' in x.yaml: must be a whole number"),
    ):
        with pytest.raises(ConfigError) as e:
            parse(Lists, values, "x.yaml")
        assert says in str(e.value)
    with pytest.raises(ConfigError, match=r"^--many 'two': must be a whole number"):
        parse(Lists, {"many": (1, "two")})


def test_options_are_frozen() -> None:
    with pytest.raises(ValidationError):
        ProcessOptions().model = "identity"  # type: ignore[misc]


def test_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.yaml"
    monkeypatch.setenv("PLACE", "/data")
    path.write_text("weights: ${PLACE}/w.safetensors\non-error: bypass\ncrf: 20\n")
    assert load_yaml(path) == {"weights": "/data/w.safetensors", "on_error": "bypass", "crf": 20}
    options = parse(ProcessOptions, load_yaml(path))
    assert (options.weights, options.on_error, options.crf) == ("/data/w.safetensors", "bypass", 20.0)
    path.write_text("# nothing\n")
    assert load_yaml(path) == {}
    monkeypatch.delenv("PLACE")
    for text, says in (
        ("weights: ${PLACE}/w\n", "environment variable that is not set"),
        ("- a\n- b\n", "must be a mapping"),
        ("1: 2\n", "must be a mapping"),
        ("a: [1\n", "is not valid YAML at line"),
        ("a: !!python/object:os.system x\n", "is not valid YAML"),
        ("start: 2024-13-45\n", "is not valid YAML: month"),
        ("a: &x [*x]\n", "holds an alias of itself"),
        ("a: " + "[" * 3000, "is nested too deeply"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=says):
            load_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't be read"):
        load_yaml(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("file", "given", "expected"),
    [
        ({"lossless": True}, {"crf": 20.0}, {"crf": 20.0}),
        ({"crf": 20}, {"lossless": True}, {"lossless": True}),
        ({"crf": 20, "encoder": "x265"}, {"lossless": True}, {"lossless": True, "encoder": "x265"}),
        ({"encoder": "ffv1"}, {"crf": 20.0}, {"crf": 20.0}),
        ({"crf": 60, "encoder": "av1"}, {"encoder": "x264"}, {"encoder": "x264"}),
        ({"crf": 20, "preset": "slow"}, {"encoder": "ffv1"}, {"encoder": "ffv1"}),
        ({"interlaced": "progressive"}, {"deinterlace": True}, {"deinterlace": True}),
        ({"lossless": True}, {"lossless": False, "crf": 20.0}, {"crf": 20.0}),
        ({"lossless": True, "start": 1}, {"crf": "20", "start": "2"}, {"crf": 20.0, "start": 2.0}),
        ({"lossless": True, "encoder": "x264"}, {"encoder": "av1"}, {"encoder": "av1"}),
    ],
)
def test_what_is_given_drops_what_the_file_says_against_it(
    file: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert merge(ProcessOptions, file, given, "c.yaml") == ProcessOptions(**expected)


@pytest.mark.parametrize(
    ("file", "given", "says"),
    [
        ({"lossless": True, "crf": 20}, {}, "exclude each other: leave one out in c.yaml"),
        ({"start": 1}, {"lossless": True, "crf": 20.0}, "exclude each other: leave one out in c.yaml and the command"),
        ({}, {"lossless": True, "crf": 20.0}, "exclude each other: leave one out in the command line"),
        ({"crf": 99}, {"crf": 20.0}, "crf 99 in c.yaml:"),
        ({"lossless": True}, {"crf": 99.0}, "--crf 99.0: must be less than or equal to 63"),
    ],
)
def test_conflicts_of_one_side_stay_errors(file: dict[str, Any], given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as e:
        merge(ProcessOptions, file, given, "c.yaml")
    assert says in str(e.value)


def test_a_key_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("crf: 18\nmodel: identity\ncrf: 20\n")
    with pytest.raises(ConfigError, match="not valid YAML at line 3: crf stands there twice"):
        load_yaml(path)
    path.write_text("a: &a {x: 1}\nb:\n  <<: *a\n  x: 2\n")
    assert load_yaml(path) == {"a": {"x": 1}, "b": {"x": 2}}
