"""YAML → recipe: strict, every fault one line with the key, the value and the nearest known name."""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from streamdeblur.config import in_words, load_yaml
from streamdeblur.errors import ConfigError
from streamdeblur.training import recipe

T = TypeVar("T", recipe.Recipe, recipe.Preparation)

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


def load(kind: type[T], path: str | os.PathLike[str], changes: typing.Sequence[str] = ()) -> T:
    """The recipe in a YAML file, with ``key.key=value`` changes over it. Raises ConfigError."""
    values = load_yaml(path)
    apply_changes(values, changes)
    where = f"{os.fspath(path)}{' and the command line' if changes else ''}"
    return parse(kind, values, where)


def apply_changes(values: dict[str, Any], changes: typing.Sequence[str]) -> None:
    """Put ``key.key=value`` changes over plain values. Raises ConfigError for one that is none."""
    for change in changes:
        _apply(values, change)


def parse(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A recipe from plain values. Raises ConfigError, one line."""
    _known_keys(kind, values, where, "")
    try:
        return _adapter(kind).validate_python(dict(values))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        name = ".".join(str(p) for p in first["loc"])
        text = in_words(first["type"], first["msg"])
        given = "" if isinstance(first["input"], Mapping) else f" {first['input']!r}"
        raise ConfigError(f"{name}{given} in {where}: {text}" if name else f"{text} in {where}") from e


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    # The dataclasses know no pydantic; its settings are hung on them here.
    for value in vars(recipe).values():
        if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__module__ == recipe.__name__:
            value.__pydantic_config__ = _STRICT  # type: ignore[attr-defined]
    return TypeAdapter(kind)


def _known_keys(kind: Any, values: Any, where: str, prefix: str) -> None:
    """Unknown keys, named with their nearest known one before pydantic gets to see them."""
    if not isinstance(values, Mapping):
        return
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown key {prefix + str(key)!r} in {where}", hint)
        inner = hints[key]
        if dataclasses.is_dataclass(inner):
            _known_keys(inner, value, where, f"{prefix}{key}.")
        elif typing.get_origin(inner) is tuple and dataclasses.is_dataclass(typing.get_args(inner)[0]):
            for number, item in enumerate(value if isinstance(value, list) else ()):
                _known_keys(typing.get_args(inner)[0], item, where, f"{prefix}{key}.{number}.")


def _apply(values: dict[str, Any], change: str) -> None:
    path, sign, text = change.partition("=")
    if not sign or not path:
        raise ConfigError(f"{change!r} is not KEY=VALUE", "for example optimizer.lr=2e-4")
    *parents, last = path.replace("-", "_").split(".")
    here = values
    for key in parents:
        inner = here.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{change!r}: {key} holds no keys")
        here = inner
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"{change!r} is not valid YAML after the sign") from e
    # YAML 1.1 reads 1e-4 as a string.
    if isinstance(value, str):
        with_float = _as_float(value)
        value = value if with_float is None else with_float
    here[last] = value


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
