"""Where files come from and go to: a folder that every node sees, or anything that fsspec opens.

A local path is used where it lies. A URL is fetched to a node's scratch folder before work, and a result is sent when
it is complete. Object stores (s3, gs) show an object only once it is whole; other remote file systems get it under
``NAME.partial`` and a rename.
"""

from __future__ import annotations

import errno
import importlib
import os
import posixpath
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamdeblur.errors import DiskFull, OutputError, UnreadableInput, UsageError

#: Protocols whose objects appear whole or not at all.
_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory"}
#: What stores call that which changes with the content, the surest first.
_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "mtime", "LastModified", "Last-Modified", "created")
#: Bytes that are got at a time where parts of a file are asked for.
_BLOCK = 1 << 20
_NEEDS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


def is_url(name: str) -> bool:
    """True for what fsspec opens, False for a path."""
    return "://" in name


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL and the path in it. Raises UsageError where fsspec or its driver is missing."""
    protocol = url.split("://", 1)[0]
    try:
        fsspec: Any = importlib.import_module("fsspec")
        found = fsspec.core.url_to_fs(url)
    except ImportError as e:
        package = _NEEDS.get(protocol, "fsspec")
        raise UsageError(f"{url} needs {package}: {e}", f"pip install {package}, on every node") from e
    except ValueError as e:
        raise UsageError(f"{url} can't be opened: {e}", "use s3://, gs://, http(s):// or a path") from e
    return found[0], str(found[1])


@dataclass(frozen=True, slots=True)
class Stat:
    """Size in bytes, and what changes with the content: time of the last change in ns, or a store's own tag."""

    size: int
    tag: str


def stat(name: str) -> Stat | None:
    """Size and tag of a file, None where there is none. Raises OutputError for a store that does not answer."""
    if not is_url(name):
        try:
            found = os.stat(name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise OutputError(f"{name} can't be looked at: {e.strerror}") from e
        return Stat(found.st_size, str(found.st_mtime_ns))
    fs, path = file_system(name)
    try:
        fs.invalidate_cache(posixpath.dirname(path))  # others write there too
        info: dict[str, Any] = fs.info(path)
    except FileNotFoundError as e:
        cause = e.__cause__  # of a web server: fsspec takes every failure for absence
        if cause is None or getattr(cause, "status", 404) in (404, 410):
            return None
        raise OutputError(f"{name} can't be looked at: {_line(cause)}") from e
    except Exception as e:  # every driver has errors of its own
        raise OutputError(f"{name} can't be looked at: {_line(e)}") from e
    if info.get("type") == "other":
        raise OutputError(f"{name} is not a file")
    tag = next((str(info[k]) for k in _TAGS if info.get(k)), "")
    return Stat(int(info.get("size") or 0), tag)


def read_range(name: str, offset: int, length: int) -> bytes:
    """Part of a file. Raises UnreadableInput."""
    try:
        if not is_url(name):
            with open(name, "rb") as f:
                f.seek(offset)
                return f.read(length)
        fs, path = file_system(name)
        with fs.open(path, "rb") as g:
            g.seek(offset)
            return bytes(g.read(length))
    except OSError as e:
        raise UnreadableInput(f"{name} can't be read: {e.strerror or _line(e)}") from e
    except Exception as e:
        if isinstance(e, UsageError):
            raise
        raise UnreadableInput(f"{name} can't be read: {_line(e)}") from e


def read_whole(name: str) -> bytes | None:
    """All of a file, None where there is none. Raises UnreadableInput where that can't be told."""
    try:
        if not is_url(name):
            return Path(name).read_bytes()
        fs, path = file_system(name)
        return bytes(fs.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UsageError:
        raise
    except Exception as e:
        raise UnreadableInput(f"{name} can't be read: {getattr(e, 'strerror', None) or _line(e)}") from e


def write_local(name: str, data: bytes) -> None:
    """Write a small local file, whole or not at all. Raises DiskFull, OutputError."""
    partial = Path(f"{name}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, name)
    except OSError as e:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (DiskFull if full else OutputError)(f"{name} can't be written: {e.strerror}") from e


@contextmanager
def opened(url: str) -> Iterator[Any]:
    """A file object that gets parts of a URL as they are asked for; None, or an exception, where that can't be had."""
    fs, path = file_system(url)
    with fs.open(path, "rb", block_size=_BLOCK, cache_type="blockcache") as file:
        if not file.seekable():
            yield None
            return
        # A web server that knows no parts gives the beginning all the same, and sends all the rest with it.
        file.seek(-1, os.SEEK_END)
        file.read(1)
        file.seek(0)
        yield file


def fetch(url: str, target: Path, moved: Callable[[], None] | None = None) -> Path:
    """Copy a URL to a local file, whole or not at all. moved: called as data come. Raises UnreadableInput, DiskFull."""
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    fs, path = file_system(url)
    try:
        fs.get_file(path, str(partial), **_callback(moved))
        os.replace(partial, target)
    except Exception as e:
        partial.unlink(missing_ok=True)
        if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left for {target}", "free some, or name another folder with --scratch") from e
        raise UnreadableInput(f"{url} can't be fetched: {_line(e)}") from e
    return target


def send(local: Path, url: str, moved: Callable[[], None] | None = None) -> None:
    """Copy a local file to a URL, where it appears whole. moved: called as data go. Raises OutputError, DiskFull."""
    fs, path = file_system(url)
    protocol = url.split("://", 1)[0]
    try:
        parent = posixpath.dirname(path)
        if parent and protocol not in ("s3", "s3a", "gs", "gcs"):
            fs.makedirs(parent, exist_ok=True)
        if protocol in _WHOLE:
            fs.put_file(str(local), path, **_callback(moved))
            return
        partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
        try:
            fs.put_file(str(local), partial, **_callback(moved))
            try:
                fs.mv(partial, path)
            except FileExistsError:  # not every file system renames over a file
                fs.rm(path)
                fs.mv(partial, path)
        except BaseException:
            with suppress(Exception):
                fs.rm(partial)
            raise
    except Exception as e:
        if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left for {url}") from e
        raise OutputError(f"{url} can't be written: {_line(e)}") from e


def _callback(moved: Callable[[], None] | None) -> dict[str, Any]:
    """For fsspec's transfers."""
    if moved is None:
        return {}
    callbacks: Any = importlib.import_module("fsspec.callbacks")
    return {"callback": callbacks.Callback(hooks={"moved": lambda *_, **__: moved()})}


def remove(name: str) -> None:
    """Remove a file or a folder with all in it; nothing where there is none."""
    if not is_url(name):
        if os.path.isdir(name):
            shutil.rmtree(name, ignore_errors=True)
        else:
            Path(name).unlink(missing_ok=True)
        return
    fs, path = file_system(name)
    try:
        fs.rm(path, recursive=True)
    except FileNotFoundError:
        pass
    except Exception as e:
        raise OutputError(f"{name} can't be removed: {_line(e)}") from e


def join(base: str, *parts: str) -> str:
    """A path or URL below another."""
    return posixpath.join(base.rstrip("/") or "/", *parts) if is_url(base) else os.path.join(base, *parts)


def free_bytes(name: str) -> int | None:
    """Bytes free where a local folder lies, None for a URL."""
    if is_url(name):
        return None
    path = Path(name)
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _line(e: BaseException) -> str:
    return " ".join((str(e) or type(e).__name__).split())[:200]
