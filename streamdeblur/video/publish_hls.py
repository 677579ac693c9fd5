"""The playlist of HLS, as players see it: FFmpeg's, made to go on when the output begins anew or the disk is full.

FFmpeg writes a playlist of its own (``HIDDEN``), which begins anew with it, whose target duration shrinks again, and
which is empty on a full disk. ``index.m3u8`` follows it: segments of before stay as long as the window says, and behind
them stands EXT-X-DISCONTINUITY; the target duration only grows; a segment is listed once it is whole.
See RFC 8216, 4.3.3 and 6.2.2.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

#: FFmpeg's own playlist, in the same folder.
HIDDEN = ".index.m3u8"
SHOWN = "index.m3u8"
#: Seconds after which segments of an earlier beginning are of no use to a player.
_STALE = 60.0
#: Segments that have left the playlist and may still be asked for.
_ASKED = 2

_DURATION = re.compile(r"#EXTINF:([0-9.]+)")
_MAP = re.compile(r'#EXT-X-MAP:URI="([^"]+)"')
_NUMBER = re.compile(r"#EXT-X-(TARGETDURATION|MEDIA-SEQUENCE|DISCONTINUITY-SEQUENCE):(\d+)")


class NotWhole(Exception):
    """FFmpeg lists a segment that is not whole: the disk was full, whatever it is now."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One segment. head: the name of its initialisation. tags: its lines. breaks: nothing goes on to it."""

    name: str
    head: str
    seconds: float
    tags: tuple[str, ...]
    breaks: bool = False


class Playlist:
    """``index.m3u8`` of a folder, going on from what is there. window: segments that are listed. seconds: a segment."""

    def __init__(self, folder: Path, window: int, seconds: float) -> None:
        self._folder = folder
        self._window = max(1, window)
        self._stamp: tuple[int, ...] | None = None
        self._listed: deque[Listed] = deque()
        self._known: set[str] = set()  # segments of this beginning that were listed
        self._gone: deque[Listed] = deque()  # of earlier ones, that are still there
        self._sequence: int | None = None
        self._breaks = 0
        self._target = max(1, _rounded(seconds))
        self._again = False
        self._take_over()
        (folder / HIDDEN).unlink(missing_ok=True)

    @property
    def files(self) -> set[str]:
        """What is listed now, initialisations among them."""
        return {name for s in self._listed for name in (s.name, s.head)}

    def follow(self) -> None:
        """Bring what FFmpeg has written since to the players. Raises NotWhole, and OSError when it can't be written."""
        hidden = self._folder / HIDDEN
        try:
            at = hidden.stat()
            stamp = (at.st_ino, at.st_mtime_ns, at.st_size)
            if stamp == self._stamp:
                return
            numbers, found, _ = parse(hidden.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        self._stamp = stamp
        fresh = [s for s in found if s.name not in self._known]
        whole = 0
        while whole < len(fresh) and all(is_whole(self._folder / n) for n in (fresh[whole].head, fresh[whole].name)):
            whole += 1
        if self._sequence is None and found:
            self._sequence = numbers.get("MEDIA-SEQUENCE", 0)
        for segment in fresh[:whole]:
            breaks = segment.breaks or (self._again and not self._known)
            self._known.add(segment.name)
            self._listed.append(replace(segment, breaks=breaks))
            self._target = max(self._target, _rounded(segment.seconds))
        self._known &= {s.name for s in found}
        if whole:
            self._shorten()
            self._write()
        if whole < len(fresh):
            broken = fresh[whole].name
            (self._folder / broken).unlink(missing_ok=True)
            raise NotWhole(f"{broken} is not whole")

    def end(self) -> None:
        """Nothing follows, and players may know."""
        if self._listed:
            self._write("#EXT-X-ENDLIST\n")
        (self._folder / HIDDEN).unlink(missing_ok=True)

    def _take_over(self) -> None:
        """Go on from the playlist that is there: its numbers, and its segments where it was not ended and is recent."""
        shown = self._folder / SHOWN
        try:
            age = time.time() - shown.stat().st_mtime
            numbers, found, ended = parse(shown.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if not found:
            return
        self._sequence = numbers.get("MEDIA-SEQUENCE", 0)
        self._breaks = numbers.get("DISCONTINUITY-SEQUENCE", 0)
        self._again = True
        self._listed.extend(found)
        if ended or age > _STALE:
            while self._listed:
                self._forget()
            self._gone.clear()
        else:
            self._target = max(self._target, numbers.get("TARGETDURATION", 0))

    def _forget(self) -> Listed:
        assert self._sequence is not None
        oldest = self._listed.popleft()
        self._sequence += 1
        self._breaks += oldest.breaks
        return oldest

    def _shorten(self) -> None:
        """Keep to the window. FFmpeg deletes what it has written itself; what was there before is deleted here."""
        while len(self._listed) > self._window:
            oldest = self._forget()
            if oldest.name not in self._known:
                self._gone.append(oldest)
        while len(self._gone) > _ASKED:
            old = self._gone.popleft()
            (self._folder / old.name).unlink(missing_ok=True)
            if old.head not in {s.head for s in (*self._listed, *self._gone)}:
                (self._folder / old.head).unlink(missing_ok=True)

    def _write(self, last: str = "") -> None:
        lines = [
            "#EXTM3U",
            "#EXT-X-VERSION:7",
            f"#EXT-X-TARGETDURATION:{self._target}",
            f"#EXT-X-MEDIA-SEQUENCE:{self._sequence}",
            *([f"#EXT-X-DISCONTINUITY-SEQUENCE:{self._breaks}"] if self._breaks else []),
            "#EXT-X-INDEPENDENT-SEGMENTS",
        ]
        head = None
        for s in self._listed:
            if s.breaks:
                lines.append("#EXT-X-DISCONTINUITY")
            if s.head != head:
                head = s.head
                lines.append(f'#EXT-X-MAP:URI="{head}"')
            lines += [*s.tags, s.name]
        fresh = self._folder / f"{SHOWN}.tmp"
        try:
            fresh.write_text("\n".join(lines) + "\n" + last, encoding="utf-8")
            os.replace(fresh, self._folder / SHOWN)
        except OSError:
            fresh.unlink(missing_ok=True)  # the one before is still there, and good
            raise


def _rounded(seconds: float) -> int:
    return int(seconds + 0.5)


def parse(text: str) -> tuple[dict[str, int], list[Listed], bool]:
    """(numbers by the names of their tags, segments, whether it has ended) of a playlist."""
    numbers: dict[str, int] = {}
    found: list[Listed] = []
    head, seconds, breaks, tags, ended = "", 0.0, False, list[str](), False
    for line in text.splitlines():
        if m := _NUMBER.fullmatch(line):
            numbers[m.group(1)] = int(m.group(2))
        elif m := _MAP.match(line):
            head = m.group(1)
        elif line == "#EXT-X-DISCONTINUITY":
            breaks = True
        elif line == "#EXT-X-ENDLIST":
            ended = True
        elif line.startswith(("#EXTINF:", "#EXT-X-PROGRAM-DATE-TIME:")):
            tags.append(line)
            if m := _DURATION.match(line):
                seconds = float(m.group(1))
        elif line and not line.startswith("#"):
            found.append(Listed(line, head, seconds, tuple(tags), breaks))
            breaks, tags = False, []
    return numbers, found, ended


def is_whole(path: Path) -> bool:
    """Whether the boxes of an MP4 (ISO/IEC 14496-12, 4.2) fill the file to its end."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            at = 0
            while at < size:
                f.seek(at)
                head = f.read(16)
                length = int.from_bytes(head[:4], "big")
                if length == 1:
                    length = int.from_bytes(head[8:16], "big")
                if length < 8:
                    return False
                at += length
    except OSError:
        return False
    return size > 0 and at == size
