"""What a batch works on: files, folders, globs, URLs and manifests, each file once, with its name in DEST.

A manifest is a text file of one source a line (``.txt``, ``.list``), CSV with a column ``source`` and one for each
option of a file, or JSON lines of objects with the same keys (``.jsonl``, ``.ndjson``). Relative names in it count
from where it lies. ``output`` names the result, from DEST on.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import logging
import os
import posixpath
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from streamdeblur.config import ProcessOptions
from streamdeblur.errors import ConfigError, UsageError
from streamdeblur.jobs.batch.options import BatchOptions, file_options
from streamdeblur.jobs.batch.place import file_system, is_url, join
from streamdeblur.video.writer import muxer_for

#: What is footage in a folder, by its ending; a file that is named is taken whatever it ends in.
ENDINGS = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob", ".wmv"),
        *(".asf", ".flv", ".f4v", ".3gp", ".3g2", ".mxf", ".nut", ".ogv", ".y4m", ".dv", ".h264", ".h265", ".hevc"),
    )
)
MANIFESTS = (".txt", ".list", ".csv", ".jsonl", ".ndjson")
#: Where a job keeps its own things in DEST.
STATE = ".streamdeblur"
#: Bytes of a file's name, less what is added to it for files beside it.
_LONGEST = 255 - len(".detections.jsonl.0123abcd.partial")
_KEPT = (".mp4", ".mov", ".mkv")
#: Pieces of a pattern: any, one, one of these, a letter.
_TOKENS = re.compile(r"\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """name: absolute path or URL. output: its name in DEST. options: of this file. id: stable over runs."""

    name: str
    output: str
    options: ProcessOptions
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return _hash(f"{self.name}\0{self.output}", 8)


def _hash(text: str, size: int) -> str:
    """Of any name that a file can have, also one that is no text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).hexdigest()


@dataclass(slots=True)
class _Named:
    name: str
    relative: str
    changes: dict[str, Any] = field(default_factory=dict)
    origin: str = ""


def gather_sources(words: Iterable[str], dest: str, options: BatchOptions) -> list[Source]:
    """Every file that the words stand for, once, in order of naming and, within a folder, of name.

    Raises UsageError for a word that stands for nothing, ConfigError for a manifest that is none, and for two files
    that want one name in DEST by their manifest.
    """
    found: list[_Named] = []
    seen: dict[str, _Named] = {}
    for word in words:
        before = len(found)
        for item in _expand(word, dest):
            known = seen.get(item.name)
            if known is not None and known.changes.get("output") == item.changes.get("output"):
                if any(known.changes.get(k, v) != v for k, v in item.changes.items()):
                    log.warning("%s is named twice, with different options: those of %s count", item.name, item.origin)
                known.changes.update(item.changes)
                known.origin = item.origin or known.origin
                continue
            seen[item.name] = item
            found.append(item)
        if len(found) == before and next(_expand(word, dest), None) is None:
            raise UsageError(f"{word} holds no footage", f"looked for {', '.join(sorted(ENDINGS))}")
    if not found:
        raise UsageError("no source is given", "name files, folders, globs or a manifest")
    return _placed(found, options)


def _placed(found: list[_Named], options: BatchOptions) -> list[Source]:
    wanted = [_output(item) for item in found]
    count: dict[str, int] = {}
    for name in wanted:
        count[name] = count.get(name, 0) + 1
    taken: dict[str, str] = {}
    folders: dict[str, str] = {}
    made = []
    for item, name in zip(found, wanted, strict=True):
        if count[name] > 1 and "output" not in item.changes:
            # a.avi and a.mkv of one folder; then equal names of several folders
            name = _output(item, whole_name=True)
            if name in taken:
                mark = _hash(item.name, 4)
                head, dot, ending = name.rpartition(".")
                name = f"{head}.{mark}{dot}{ending}"
        if name in taken:
            raise UsageError(f"{item.name} and {taken[name]} would both become {name}", "give one another output")
        taken[name] = item.name
        folders.update({str(parent): name for parent in PurePosixPath(name).parents})
        muxer_for(name)
        own = file_options(options, item.changes, item.origin) if item.changes else file_options(options, {})
        made.append(Source(item.name, name, own, item.changes))
    for name in taken.keys() & folders.keys():
        raise UsageError(f"{name} would be a result and the folder of {folders[name]}", "give one another output")
    return made


def _output(item: _Named, *, whole_name: bool = False) -> str:
    given = item.changes.get("output")
    if given is not None:
        path = PurePosixPath(str(given))
        if path.is_absolute() or ".." in path.parts or not path.parts or path.parts[0] == STATE:
            raise ConfigError(f"output {given!r} in {item.origin} leads out of DEST", "name a file from DEST on")
        _check_name(str(given), "output", item.origin)
        if any(len(os.fsencode(part)) > _LONGEST for part in path.parts):
            raise ConfigError(
                f"output {str(given)[:40]}... in {item.origin} has a name of more than {_LONGEST} bytes", "shorten it"
            )
        return str(path)
    relative = PurePosixPath(item.relative)
    ending = relative.suffix if relative.suffix.lower() in _KEPT else ".mkv"
    stem = relative.name if whole_name and ending != relative.suffix else relative.stem
    return str(relative.with_name(f"{stem}{ending}"))


def _check_name(name: str, what: str, origin: str) -> None:
    """Raise ConfigError for what no file can be called."""
    try:
        valid = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        valid = False
    if not valid:
        raise ConfigError(f"{what} {name!r} in {origin} is no name that a file can have", "correct the line")


# --- words -----------------------------------------------------------------------------------------------------------


def _expand(word: str, dest: str, within: tuple[str, ...] = ()) -> Iterator[_Named]:
    """within: manifests that led here."""
    ending = PurePosixPath(word).suffix.lower()
    if ending in MANIFESTS and not glob.has_magic(word) and (is_url(word) or os.path.isfile(word)):
        yield from _manifest(word, dest, within)
    elif is_url(word):
        yield from _remote(word)
    elif ending in MANIFESTS and not glob.has_magic(word) and not os.path.exists(word):
        raise UsageError(f"manifest {word} does not exist", "check the path")
    elif os.path.isdir(word):
        yield from _folder(os.path.abspath(word), dest)
    elif os.path.exists(word) or not glob.has_magic(word):
        yield _Named(os.path.abspath(word), os.path.basename(word))  # a missing file is one that fails, in the report
    else:
        root = os.path.abspath(os.path.dirname(word[: next(i for i, c in enumerate(word) if c in "*?[")]))
        names = [n for n in _matches(word, root, dest) if not _is_ours(os.path.abspath(n), dest)]
        if not names:
            raise UsageError(f"{word} matches nothing", "check the pattern, or quote it against the shell")
        found: list[str] = []
        for full in map(os.path.abspath, names):
            found += [item.name for item in _folder(full, dest)] if os.path.isdir(full) else [full]
        for full in _once(((full, os.path.realpath(full)) for full in found), root):
            yield _Named(full, os.path.relpath(full, root))


def _folder(root: str, dest: str) -> Iterator[_Named]:
    found = ((full, real) for full, real in _walk(root, dest) if Path(full).suffix.lower() in ENDINGS)
    for full in _once(found, root):
        if os.path.isfile(full) or not os.path.exists(full):  # a link to nothing is told of, a pipe is no footage
            yield _Named(full, os.path.relpath(full, root))


def _once(found: Iterable[tuple[str, str]], root: str) -> Iterator[str]:
    """Paths of (path, real path), each real one once: by a path without links below ``root`` where there is one."""
    base = os.path.realpath(root)

    def indirect(found: tuple[str, str]) -> tuple[bool, bool]:
        straight = os.path.normpath(os.path.join(base, os.path.relpath(found[0], root)))
        return found[1] != straight, os.path.islink(found[0])

    taken: set[str] = set()
    for full, real in sorted(found, key=indirect):
        if real not in taken:
            taken.add(real)
            yield full


def _walk(root: str, dest: str, folders: bool = False) -> Iterator[tuple[str, str]]:
    """(path, real path) of files below a folder, none in hidden folders or DEST; each folder once, however many links
    lead there, and where one leads upwards.

    folders: give those as well.
    """
    seen = set() if is_url(dest) else {os.path.realpath(dest)}
    seen.discard(os.path.realpath(root))  # whoever names DEST itself is told so by the job
    waiting = deque([root])
    while waiting:  # links are followed when all is seen that is there by itself
        for folder, inner, files in os.walk(waiting.popleft(), onerror=_unread):
            real = os.path.realpath(folder)
            if real in seen:
                inner.clear()
                continue
            seen.add(real)
            inner[:] = sorted(d for d in inner if not d.startswith("."))
            for name in inner:
                full = os.path.join(folder, name)
                if folders:
                    yield full, os.path.realpath(full)
                if os.path.islink(full):
                    waiting.append(full)
            for name in sorted(files):
                full = os.path.join(folder, name)
                if not name.startswith("."):
                    yield full, os.path.realpath(full) if os.path.islink(full) else os.path.join(real, name)


def _unread(e: OSError) -> None:
    log.warning("%s is left out: %s", e.filename, e.strerror)


def _matches(word: str, root: str, dest: str) -> list[str]:
    """Files and folders that a pattern stands for, in order. ``**`` by a walk of our own: glob's follows links in
    circles."""
    parts = os.path.abspath(word).split(os.sep)
    if "**" not in parts:
        return sorted(glob.glob(word))
    pattern = ""
    for part in parts:
        if part == "**":
            pattern += r"(?:[^/.][^/]*/)*"
        else:
            pattern += ("" if part.startswith(".") else r"(?!\.)") + "".join(map(_regex, _TOKENS.findall(part))) + "/"
    wanted = re.compile(pattern)
    return sorted(full for full, _ in _walk(root, dest, folders=True) if wanted.fullmatch(f"{full}/"))


def _regex(token: str) -> str:
    """For a piece of a pattern's component."""
    if token in ("*", "?"):
        return "[^/]*" if token == "*" else "[^/]"
    if token[0] != "[" or len(token) == 1:
        return re.escape(token)
    negated = token[1] == "!"
    body = re.sub(r"([^\w-])", r"\\\1", token[1 + negated : -1])
    return f"[{'^' if negated else ''}{body}]"


def _is_ours(path: str, dest: str) -> bool:
    if is_url(dest):
        return False
    mine = os.path.abspath(dest)
    return path == mine or path.startswith(mine + os.sep)


def _remote(url: str) -> Iterator[_Named]:
    if url.startswith(("http://", "https://")) and not glob.has_magic(url.split("?", 1)[0]):
        yield _Named(url, posixpath.basename(url.split("?", 1)[0]) or "video.mp4")
        return
    fs, path = file_system(url)
    protocol = url.split("://", 1)[0]
    try:
        if glob.has_magic(path):
            names, root = sorted(fs.glob(path)), path[: next(i for i, c in enumerate(path) if c in "*?[")]
            root = root.rpartition("/")[0]
        elif fs.isdir(path):
            names = sorted(n for n in fs.find(path) if PurePosixPath(n).suffix.lower() in ENDINGS)
            root = path.rstrip("/")
        else:
            names, root = [path], posixpath.dirname(path)
    except Exception as e:
        raise UsageError(
            f"{url} can't be listed: {' '.join(str(e).split())[:200]}", "check the URL and its access"
        ) from e
    for name in names:
        if f"/{STATE}/" not in name:
            full = url if name == path else f"{protocol}://{name}"
            yield _Named(full, posixpath.relpath(name, root) if root else name)


# --- manifests -------------------------------------------------------------------------------------------------------


def _manifest(word: str, dest: str, within: tuple[str, ...]) -> Iterator[_Named]:
    here = word if is_url(word) else os.path.realpath(word)
    if here in within:
        raise ConfigError(f"manifest {word} leads back to itself", "name footage in it")
    ending = PurePosixPath(word).suffix.lower()
    try:
        if is_url(word):
            fs, path = file_system(word)
            text = fs.cat_file(path).decode("utf-8-sig")
        else:
            text = Path(word).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"manifest {word} is not UTF-8 text") from e
    except OSError as e:
        raise ConfigError(f"manifest {word} can't be read: {e.strerror}") from e
    rows = _csv(word, text) if ending == ".csv" else _text(text) if ending in (".txt", ".list") else _json(word, text)
    base = posixpath.dirname(word) if is_url(word) else os.path.dirname(os.path.abspath(word))
    for number, row in rows:
        origin = f"line {number} of {word}"
        source = row.pop("source", None)
        if not isinstance(source, str) or not source.strip():
            raise ConfigError(f"{origin} names no source", 'each line needs one, as {"source": "a.mp4"}')
        source = source.strip()
        _check_name(source, "source", origin)
        full = source
        if not is_url(source) and not os.path.isabs(source):
            full = join(base, source)
        changes = {k.strip().replace("-", "_"): v for k, v in row.items() if v is not None and v != ""}
        found = list(_expand(full, dest, (*within, here)))
        if "output" in changes and len(found) != 1:
            raise ConfigError(f"output in {origin} fits one file, and {source} is {len(found)}", "leave it out")
        for item in found:
            relative = item.relative
            if not is_url(full) and not os.path.isdir(full) and not os.path.isabs(source):
                relative = os.path.normpath(source) if ".." not in Path(source).parts else relative
            if glob.has_magic(source):
                relative = item.relative
            yield _Named(item.name, relative, dict(changes), origin)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines as editors count them: what else Unicode takes for the end of one may be part of a name."""
    return enumerate(io.StringIO(text, newline=None), 1)


def _text(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(text):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, {"source": line.strip()}


def _csv(word: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if not reader.fieldnames or "source" not in [str(n).strip() for n in reader.fieldnames]:
        raise ConfigError(f"{word} has no column source", "its first line names the columns: source,output,crf,...")
    reader.fieldnames = [str(n).strip() for n in reader.fieldnames]
    for row in reader:
        if None in row:
            raise ConfigError(f"line {reader.line_num} of {word} has more values than there are columns")
        yield reader.line_num, {k: v for k, v in row.items() if v is not None and v != ""}


def _json(word: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(text):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise ConfigError(f"line {number} of {word} is not JSON: {e.msg}") from e
        if not isinstance(row, dict):
            raise ConfigError(f"line {number} of {word} is not an object", 'write {"source": "a.mp4"}')
        yield number, row


__all__ = ["ENDINGS", "MANIFESTS", "STATE", "Source", "gather_sources"]
