"""Writes docs/cli.md, the reference of the command line, from the commands themselves: python docs/make_cli.py.

From click's parameters and not from its help text, whose layout differs from one release of click to the next.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from streamdeblur.cli.main import cli

TARGET = Path(__file__).with_name("cli.md")

HEAD = """# Command line

Made from the commands by `python docs/make_cli.py`; a test fails when this page is stale. `streamdeblur COMMAND --help`
says the same.

Results go to stdout, all that is said about them to stderr. An error is one line. Exit codes: 0 done, 1 failed (for
`verify` also: they differ), 2 wrong usage, 130 Ctrl-C, 141 the reader of the output has gone, 143 SIGTERM. A second
signal, two seconds after the first or later, ends a command at once; `train` and `live` have rules of their own, told
on their pages. Every command also takes:

"""

#: Options that every command has are shown once.
COMMON = ("quiet", "debug")


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """(full name, command) of all that can be run, in the order of ``--help``."""
    if isinstance(command, click.Group):
        for key in command.list_commands(click.Context(command)):
            child = command.commands[key]
            yield from commands(child, f"{name} {key}")
    else:
        yield name, command


def spelling(option: click.Option) -> str:
    """The words of an option and what it takes, as ``-m``, ``--model TEXT``."""
    if option.secondary_opts:
        return ", ".join(f"`{word}`" for word in (*option.opts, *option.secondary_opts))
    words = [f"`{word}`" for word in sorted(option.opts, key=len)]
    if not option.is_flag:
        words[-1] = f"{words[-1][:-1]} {takes(option.type)}`"
    return ", ".join(words)


def takes(kind: Any) -> str:
    """What an option of this click type is given."""
    if isinstance(kind, click.Choice):
        return "|".join(str(choice) for choice in kind.choices)
    return {"integer": "N", "float": "NUMBER", "path": "FILE"}.get(kind.name, "TEXT")


def meaning(option: click.Option) -> str:
    text = option.help or ""
    if option.required:
        text += " Required."
    elif option.show_default and not option.is_flag and option.default is not None:
        default = f"{option.default:g}" if isinstance(option.default, float) else str(option.default)
        text += f" [default: {default}]"
    return text.strip()


def rows(options: list[click.Option]) -> str:
    lines = ["| option | meaning |", "|---|---|"]
    for option in options:
        cells = (text.replace("|", r"\|") for text in (spelling(option), meaning(option)))  # a bar would end the cell
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def reference() -> str:
    """The whole page."""
    found = list(commands(cli, "streamdeblur"))
    shared = [p for p in dict(found)["streamdeblur process"].params if p.name in COMMON and isinstance(p, click.Option)]
    parts = [HEAD + rows(shared)]
    for name, command in found:
        arguments = [p.name.upper() for p in command.params if isinstance(p, click.Argument) and p.name]
        options = [p for p in command.params if isinstance(p, click.Option) and p.name not in COMMON]
        usage = " ".join([name, *arguments, *(["[OPTIONS]"] if options else [])])
        text = inspect.cleandoc(command.help or "")
        part = f"## `{name}`\n\n{text}\n\n```\n{usage}\n```\n"
        parts.append(part + (f"\n{rows(options)}" if options else ""))
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
