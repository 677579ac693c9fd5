"""Where results go: seen to be writable before hours of measuring, and replaced whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from streamdeblur import interrupts
from streamdeblur.errors import DiskFull, OutputError, StreamdeblurError, UsageError

_HINT = "name another file"


def check_targets(targets: Mapping[str, Path | None]) -> None:
    """See that every file can be written, leaving nothing behind. targets: options and their files, None without one.

    Raises UsageError for two options that name one file, OutputError for a file that can't be written.
    """
    given = {option: path for option, path in targets.items() if path is not None}
    seen: dict[str, str] = {}
    for option, path in given.items():
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise UsageError(f"{other} and {option} both name {path}", "give each a file of its own")
    for option, path in given.items():
        try:
            _check(option, path)
        except OSError as e:
            raise OutputError(f"{option} {path} can't be written: {e.strerror}", _HINT) from e


def write_all(texts: Mapping[Path, str]) -> None:
    """Write every file, in UTF-8, those after one that fails too. Raises OutputError or DiskFull, of the first."""
    first: StreamdeblurError | None = None
    for path, text in texts.items():
        try:
            _write(path, text)
        except OSError as e:
            kind = DiskFull if e.errno == errno.ENOSPC else OutputError
            error = kind(f"{path} can't be written: {e.strerror}", _HINT)
            error.__cause__ = e
            first = first or error
    if first is not None:
        raise first


def _check(option: str, path: Path) -> None:
    if path.is_dir():
        raise OutputError(f"{option} {path} is a folder", "name a file in it")
    if not path.parent.is_dir():
        raise OutputError(f"{option} {path} can't be written: there is no folder {path.parent}", f"make it, or {_HINT}")
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"{option} {path} can't be written: permission denied", _HINT)
    if _in_place(path):
        return
    # Asking for permission would not do: root has it where nothing can be made, as in /proc.
    partial = _partial(path)
    with partial.open("x"):
        partial.unlink()


def _write(path: Path, text: str) -> None:
    # What may be in a file name and in no text is not worth the results.
    if _in_place(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    else:
        _replace(path, text)


@interrupts.held()
def _replace(path: Path, text: str) -> None:
    partial = _partial(path)
    try:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(os.path.realpath(path))
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _in_place(path: Path) -> bool:
    """Whether it is something like /dev/null or a pipe, which a file must not take the place of."""
    return path.exists() and not path.is_file()


def _partial(path: Path) -> Path:
    """A name beside the file, or beside what a link leads to, so that it can be renamed and the link stays."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{secrets.token_hex(6)}.partial")
