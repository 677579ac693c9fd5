"""What a finished file does not say any more of what its source said, found out by reading it again.

Containers differ in what they hold, and FFmpeg's muxers say nothing of what they leave out: AVI has no rotation and no
chapters, MPEG-TS no tags, MOV no German. No table of that can be complete, so the file itself is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from av.stream import Disposition

from streamdeblur.video.chapters import chapters_of
from streamdeblur.video.reader import VideoReader
from streamdeblur.video.streams import BEFORE_ZERO, container_tags
from streamdeblur.video.tags import SourceTags, same_turn

_NAMES = {
    "mp4": "MP4",
    "mov": "MOV",
    "3gp": "3GP",
    "matroska": "Matroska",
    "webm": "WebM",
    "avi": "AVI",
    "mpegts": "MPEG-TS",
    "nut": "NUT",
}
_ENDINGS = {"mp4": ".mp4", "mov": ".mov", "matroska": ".mkv"}
_UNKNOWN = {0, 2, 3}
_MARKS = [m for m in Disposition if m and m not in (Disposition.default, Disposition.attached_pic)]
#: Matroska's tick, which everybody knows of who writes it.
_KNOWN_TICK = {"matroska": Fraction(1, 2000), "webm": Fraction(1, 2000)}


#: What describes the old file and not what is in it: who wrote it, and counts that mkvmerge and FFmpeg leave behind.
OF_THE_FILE = re.compile(
    r"^(_statistics|bps|duration|number_of_(frames|bytes)|encoder|vendor_id|language|major_brand|minor_version"
    r"|compatible_brands|filename|mimetype)",
    re.IGNORECASE,
)
#: What FFmpeg writes into MP4 where nothing is known.
HANDLERS = {"VideoHandler", "SoundHandler", "SubtitleHandler", "DataHandler", "TimeCodeHandler"}
#: Kept when they are anywhere in the output: containers differ in whether the file or a stream has them.
ANYWHERE = {"creation_time", "timecode"}
#: Containers that mark no stream as the default one.
UNMARKED = {"avi", "mpegts"}


def players_choice(streams: Iterable[Any]) -> set[int]:
    """Indices of the streams that players take where none of a kind is marked as the default one.

    The first of its kind, if no other of that kind is marked instead. Cover pictures do not count.
    """
    real = [s for s in streams if not (s.type == "video" and s.disposition & Disposition.attached_pic)]
    marked = {s.type for s in real if s.disposition & Disposition.default}
    heads = {s.type: s for s in reversed(real)}
    return {s.index for s in heads.values() if s.type not in marked or s.disposition & Disposition.default}


def losses(
    source: VideoReader,
    output: VideoReader,
    container: str,
    tracks: Sequence[Any],
    *,
    moved: Fraction,
    rounded: Fraction,
    told: Iterable[str] = (),
) -> Iterator[str]:
    """A line for each thing that ``output`` has lost, with the containers that would keep it.

    container: FFmpeg's name of the output's. tracks: the streams of the source in the order of the output's.
    moved, rounded: seconds by which timestamps moved as a whole, and one by one at the most. told: keys of tags whose
    loss has been told already.
    """

    def lost(what: str, *kept: str) -> str:
        elsewhere = [_ENDINGS[k] for k in kept if k != container]
        hint = f"; {', '.join(elsewhere)} would keep it" if elsewhere else ""
        return f"lost, because {_NAMES.get(container, container)} does not hold it: {what}{hint}"

    a, b = source.info, output.info
    if not same_turn(source.tags.display_matrix, output.tags.display_matrix):
        turned = f"the rotation or flip of the picture ({a.rotation} degrees became {b.rotation})"
        yield lost(turned, "mp4", "mov", "matroska")
    if not same_ratio(a.sample_aspect_ratio, b.sample_aspect_ratio, container):
        yield lost(f"the sample aspect ratio {a.sample_aspect_ratio}", "mp4", "mov", "matroska")
    changed = changed_colour(source.tags, output.tags)
    colour = [name for name, code, _ in changed if name == "colour range" or code not in _UNKNOWN]
    if colour:
        yield lost(f"the {', '.join(colour)} of the picture", "mp4", "matroska")
    if b.field_order != a.field_order and b.field_order != "progressive":
        yield lost(f"the field order {a.field_order}", "mp4", "matroska")
    count = len(chapters_of(source))
    if count > len(list(output.container.chapters())):
        yield lost(f"{count} chapter{'s' if count > 1 else ''}", "mp4", "mov", "matroska")
    keys = _lost_tags(source.container, output.container, told)
    if keys:
        yield lost(f"the tags {', '.join(keys)}", "mp4", "matroska")
    yield from (
        lost(what, "matroska") for what in _lost_of_tracks(tracks, source.container, output.container, container)
    )
    if moved:
        yield lost(f"the time at which it begins (frames are moved by {float(moved):.3f} s)", "mp4", "mov", "matroska")
    if rounded > _KNOWN_TICK.get(container, 0):
        text = f"{float(rounded) * 1000:.3f} ms" if rounded >= Fraction(1, 2000000) else "less than 0.001 ms"
        yield lost(f"the exact times of frames (rounded by up to {text})", "mp4", "mov")


def same_ratio(x: Fraction | None, y: Fraction | None, container: str) -> bool:
    """Equal pixel shapes; Matroska stores them by whole display sizes, which FFmpeg reduces to terms up to 255."""
    a, b = x or Fraction(1), y or Fraction(1)
    return a == b or (container in _KNOWN_TICK and abs(a / b - 1) < Fraction(1, 200))


def changed_colour(a: SourceTags, b: SourceTags) -> Iterator[tuple[str, int, int]]:
    """Names and both codes (H.273; of the range AVColorRange) of the colour tags that differ; 0, 2 and 3 mean nothing.

    The matrix of RGB is left out, and so is its range.
    """
    rgb = a.layout.model == "rgb"
    for name, x, y in (
        ("colour matrix", a.matrix, b.matrix),
        ("colour primaries", a.primaries, b.primaries),
        ("transfer characteristic", a.transfer, b.transfer),
    ):
        if x != y and not {x, y} <= _UNKNOWN and not (rgb and name == "colour matrix"):
            yield name, x, y
    if not rgb and (a.color_range == 2) != (b.color_range == 2):
        yield "colour range", a.color_range, b.color_range


def _lost_tags(source: Any, output: Any, told: Iterable[str]) -> list[str]:
    def plain(key: str) -> str:
        return key.lower().replace("_", " ")

    kept = {plain(k) for part in (output, *output.streams) for k, v in part.metadata.items() if v}
    skipped = {plain(k) for k in told}
    tags = container_tags(source)
    # "title-eng" is how FFmpeg tells the language of a "title" beside it.
    mine = [k for k, v in tags.items() if v and not (k.rpartition("-")[0] in tags and len(k.rpartition("-")[2]) == 3)]
    return sorted(k for k in mine if plain(k) not in kept | skipped)


def _lost_of_tracks(tracks: Sequence[Any], source: Any, output: Any, container: str) -> Iterator[str]:
    found = [s for s in output.streams if s.type != "attachment" and not s.disposition & Disposition.attached_pic]
    anywhere = {k.lower() for part in (output, *output.streams) for k in part.metadata} & ANYWHERE
    first = players_choice(source.streams)
    languages, titles, marks, tags = [], [], [], []
    for a, b in zip(tracks, found, strict=False):
        if a.type != b.type:
            continue
        label = f"stream {a.index} ({a.type})"
        if (a.language or "und") != "und" and (b.language or "und") == "und":
            languages.append(f"{a.language} of {label}")
        title = a.metadata.get("title") or a.metadata.get("name")
        if title and title not in b.metadata.values():
            titles.append(f"{title!r} of {label}")
        gone = [str(m.name) for m in _MARKS if a.disposition & m and not b.disposition & m]
        gone += _default_mark(a, b, container, first=a.index in first)
        if gone:
            marks.append(f"{', '.join(gone)} of {label}")
        keys = sorted(_lost_keys(a.metadata, b.metadata, anywhere))
        if keys:
            tags.append(f"{', '.join(keys)} of {label}")
    lists = (("the language ", languages), ("the title ", titles), ("the mark ", marks), ("the tags ", tags))
    for what, items in lists:
        if items:
            yield what + "; ".join(items)


def _default_mark(a: Any, b: Any, container: str, *, first: bool) -> list[str]:
    """The change of the mark as default stream, but where players do the same without it."""
    was, now = bool(a.disposition & Disposition.default), bool(b.disposition & Disposition.default)
    if was == now or (first and container in (BEFORE_ZERO if now else UNMARKED)):
        return []
    return ["not default" if now else "default"]


def _lost_keys(was: Mapping[str, str], now: Mapping[str, str], anywhere: set[str]) -> Iterator[str]:
    """Keys of a stream's tags, but titles and languages, that have no place in the output."""
    kept = {k.lower() for k in now}
    for key, value in was.items():
        plain = key.lower()
        told = plain in ("title", "name") or OF_THE_FILE.match(plain) or (plain == "handler_name" and value in HANDLERS)
        if value.strip() and not told and plain not in kept | anywhere:
            yield key
