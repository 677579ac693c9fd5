"""Results on disk: each file written beside its target and renamed, never a broken one under the final name."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from streamdeblur import interrupts
from streamdeblur.errors import DiskFull, OutputError

FILES = ("results.json", "results.csv", "report.html")


def require_room(folder: Path, *, overwrite: bool) -> None:
    """Make the folder and see that results can be written there, before hours of work. Raises OutputError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output {folder} is a file", "name a folder with -o")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"folder {folder} can't be made: {e.strerror}", "write elsewhere with -o") from e
    if not os.access(folder, os.W_OK):
        raise OutputError(f"folder {folder} can't be written to: permission denied", "write elsewhere with -o")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not overwrite:
        raise OutputError(f"{folder / there[0]} exists", "--overwrite replaces it")


@interrupts.held()
def save(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files, all of them complete before the first gets its name. Raises OutputError or DiskFull."""
    partial = {folder / f"{name}.partial": folder / name for name in files}
    try:
        for path, text in zip(partial, files.values(), strict=True):
            # names are legible by now; should one have slipped through, it is not worth the results
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
        for path, target in partial.items():
            path.replace(target)
    except BaseException as e:
        for path in partial:
            path.unlink(missing_ok=True)
        if not isinstance(e, OSError):
            raise
        if e.errno == errno.ENOSPC:
            raise DiskFull(f"no space left for the results in {folder}", "free some, or write elsewhere with -o") from e
        raise OutputError(f"results can't be written to {folder}: {e.strerror}", "write elsewhere with -o") from e
