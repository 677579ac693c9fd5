"""Where engines keep what is dear to make: one folder a user, safe to delete, its files replaced as a whole.

``STREAMDEBLUR_CACHE`` names the folder; else it is ``streamdeblur/engines`` in ``XDG_CACHE_HOME`` or ``~/.cache``.
Names of files are digests of everything that their contents depend on, so nothing in it is ever out of date. Some are
programs (compiled kernels, Inductor's code), and seals tell damage, not malice: whoever may write there runs code as
those who read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The folder; it may not exist yet."""
    own = os.environ.get("STREAMDEBLUR_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "streamdeblur" / "engines"


def key(*parts: object) -> str:
    """A file name for all of ``parts``."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=12).hexdigest()


@cache
def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor and what it can do: its model and flags where the system tells, and what oneDNN may use of them."""
    found = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "flags", "Features"):
                found.append(value.strip())
            if not line.strip():
                break
    found += [os.environ.get(n, "") for n in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
    return " ".join(found)


def machine(device: torch.device) -> str:
    """What results on a device depend on, beside the program: hardware, libraries."""
    parts = [str(torch.__version__)]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        parts += [properties.name, f"{properties.major}.{properties.minor}", str(torch.version.cuda)]
        parts += [str(torch.backends.cudnn.version())]
    else:
        parts.append(cpu_name())
    return " ".join(parts)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def put_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file as a whole. Raises OSError."""
    with replacing(path) as temporary:
        _write(temporary, value)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """``put_json``. A cache that can't be written costs time, not the job: it is told to the log."""
    try:
        put_json(path, value)
    except OSError as e:
        log.debug("%s can't be written: %s", path, e)


def keep_first(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Write a file that is not there yet; what all processes follow from then on: ``value``, or what another one had
    written before. As ``write_json`` where nothing can be written."""
    try:
        with _beside(path) as temporary:
            _write(temporary, value)
            os.link(temporary, path)
        return value
    except FileExistsError:
        if (found := read_json(path)) is not None:
            return found
    except OSError as e:  # links, perhaps, where there are none
        log.debug("%s can't be written at once: %s", path, e)
    write_json(path, value)
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def seal(*paths: Path) -> None:
    """Record what is in files that belong together; ``intact`` tells whether it still is. Raises OSError."""
    write_json(_seal_of(paths[0]), {p.name: _digest(p) for p in paths})


def intact(*paths: Path) -> bool:
    """Whether the files are those that ``seal`` saw, byte for byte: a disk may have been full, a copy cut short."""
    return contents(*paths) is not None


def contents(*paths: Path) -> str | None:
    """A name for what is in the files, the same for the same bytes; None unless they are those that ``seal`` saw."""
    known = read_json(_seal_of(paths[0]))
    try:
        digests = [_digest(p) for p in paths]
    except OSError:
        return None
    return key(*digests) if known is not None and digests == [known.get(p.name) for p in paths] else None


def _seal_of(path: Path) -> Path:
    return path.with_name(path.name + ".seal")


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, which takes its place when the block ends well. Raises OSError."""
    with _beside(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name in the folder of ``path``, gone when the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
