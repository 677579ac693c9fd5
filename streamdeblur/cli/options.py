"""Command-line options made from the fields of a config model, so that no default is written twice."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click

from streamdeblur.config import StrictModel, load_yaml, merge, parse
from streamdeblur.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=StrictModel)

_SHORT = {"model": "-m", "weights": "-w"}
#: Options whose value may be left out, and what they mean then.
_BARE = {"ray": "local"}


def common(function: Any) -> Any:
    """Options that every command has."""
    function = click.option("--debug", is_flag=True, help="Show tracebacks and debug messages.")(function)
    text = "No progress and no summary; what is lost or changed is still told, as warnings on stderr."
    return click.option("-q", "--quiet", is_flag=True, help=text)(function)


def model_options(model: type[StrictModel]) -> Callable[[F], F]:
    """A decorator that adds an option for every field; what is not given stays None and out of the values."""

    def decorate(function: F) -> F:
        for name, info in reversed(model.model_fields.items()):
            flag = f"--{name.replace('_', '-')}"
            help_text = info.description or ""
            if info.default is not None and not isinstance(info.default, bool) and "efault" not in help_text:
                help_text = f"{help_text} [default: {_plain(info.default)}]"
            kind = _bare(info.annotation)
            if kind is bool:
                option = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=help_text)
            elif name in _BARE:
                option = click.option(
                    flag, name, default=None, is_flag=False, flag_value=_BARE[name], metavar="[ADDRESS]", help=help_text
                )
            else:
                names = [n for n in (_SHORT.get(name), flag) if n]
                option = click.option(*names, name, default=None, type=_type(kind), help=help_text)
            function = option(function)
        return function

    return decorate


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bare(annotation: Any) -> Any:
    """The type without ``| None``."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        return rest[0]
    return annotation


def _type(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return click.Choice([str(a) for a in get_args(kind)])
    if kind in (int, float):
        return kind
    if kind is Path:
        return click.Path(path_type=str)
    return str


def gather(model: type[M], config: str | None, given: Mapping[str, Any]) -> M:
    """The model from a YAML file (if any) and the command line's own values, which win."""
    fields = typing.cast(Mapping[str, Any], model.model_fields)
    mine = {k: v for k, v in given.items() if v is not None and k in fields}
    if config is None:
        return parse(model, mine)
    return merge(model, load_yaml(config), mine, config)


def spare_stdout(as_json: bool, detections: Iterable[str | None]) -> None:
    """Refuse ``--json`` beside detections that go to stdout too (``-``). detections: of the job, and of each source."""
    if as_json and "-" in detections:
        raise UsageError("--json and --detections - both write to stdout", "write the detections to a file")
