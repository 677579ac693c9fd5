"""The YAML files of the repository and the reference of the command line say what the models say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

from streamdeblur.cli.main import cli
from streamdeblur.config import ProcessOptions, load_yaml, parse

ROOT = Path(__file__).parents[2]
PROCESS = ROOT / "configs" / "process.yaml"
REFERENCE = ROOT / "docs" / "cli.md"
GENERATOR = ROOT / "docs" / "make_cli.py"


def test_process_yaml_shows_every_option_once_with_its_default() -> None:
    values = load_yaml(PROCESS)
    assert set(values) == set(ProcessOptions.model_fields)
    assert values == {name: field.default for name, field in ProcessOptions.model_fields.items()}
    # load_yaml would let a second mention of a key win in silence
    keys = re.findall(r"^(\w+):", PROCESS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(keys) == len(set(keys)) == len(values)


def test_process_yaml_means_nothing_but_the_defaults() -> None:
    assert parse(ProcessOptions, load_yaml(PROCESS), str(PROCESS)) == ProcessOptions()


def test_process_yaml_has_one_comment_for_every_option() -> None:
    for line in PROCESS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            key, comment = line.split(":", 1)[0], line.partition("#")[2].strip()
            assert len(comment) > 15, f"{key} is not explained"


def test_process_yaml_names_every_choice_of_an_option() -> None:
    """What may be set is to be read in the file: every literal of a field stands in its line, presets aside."""
    lines = {line.split(":")[0]: line for line in PROCESS.read_text(encoding="utf-8").splitlines() if ":" in line}
    for name, schema in ProcessOptions.model_json_schema()["properties"].items():
        for choice in schema.get("enum", []) if name != "preset" else ():
            assert re.search(rf"\b{choice}\b", lines[name]), f"{choice} of {name} is not mentioned"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_configs_are_plain_mappings(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_the_command_line_is_up_to_date(generator: ModuleType) -> None:
    assert REFERENCE.read_text(encoding="utf-8") == generator.reference(), "stale: run python docs/make_cli.py"


def test_the_reference_names_every_command_and_option() -> None:
    """Independent of the generator: every option string that click knows stands in the section of its command."""
    text = REFERENCE.read_text(encoding="utf-8")
    common = text[: text.index("\n## ")]  # options of every command stand before the first one
    sections = dict(re.findall(r"^## `streamdeblur (.+?)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))

    def check(command: click.Command, name: str) -> int:
        if isinstance(command, click.Group):
            return sum(check(child, f"{name} {key}".strip()) for key, child in command.commands.items())
        for parameter in command.params:
            for word in (*parameter.opts, *parameter.secondary_opts):
                written = word if word.startswith("-") else word.upper()
                pattern = rf"(`|\b[a-z]+ ){re.escape(written)}\b"
                assert re.search(pattern, sections[name]) or f"`{written}`" in common, f"{written} of {name}"
        return 1

    assert check(cli, "") == len(sections)
