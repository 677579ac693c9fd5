"""What is written about a file and its streams: metadata, languages, dispositions, chapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from av.stream import Disposition

from streamdeblur.jobs.verify.report import VerifyReport
from streamdeblur.video.losses import ANYWHERE, HANDLERS, OF_THE_FILE, UNMARKED
from streamdeblur.video.reader import VideoReader
from streamdeblur.video.streams import BEFORE_ZERO, container_tags
from streamdeblur.video.timeline import lift

#: ISO 639-2: bibliographic codes and the terminological ones for the same language; Matroska is written with the first.
_TERMINOLOGICAL = {
    "alb": "sqi", "arm": "hye", "baq": "eus", "bur": "mya", "chi": "zho", "cze": "ces", "dut": "nld", "fre": "fra",
    "geo": "kat", "ger": "deu", "gre": "ell", "ice": "isl", "mac": "mkd", "mao": "mri", "may": "msa", "per": "fas",
    "rum": "ron", "slo": "slk", "tib": "bod", "wel": "cym",
}  # fmt: skip
#: Dispositions that say how a stream is stored; the pairing of streams looks at them.
_STORAGE = int(Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image)
#: Seconds between two times of a chapter that are the same: containers keep them in milliseconds.
_CHAPTER_TICK = 0.0011


def lower(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags by lower-case key: Matroska writes its own in capitals."""
    return {k.lower(): str(v).strip() for k, v in tags.items()}


def language(stream: Any) -> str:
    """ISO 639-2/T code of a stream's language, "und" where it says none."""
    code = lower(stream.metadata).get("language", "").lower() or "und"
    return _TERMINOLOGICAL.get(code, code)


def _plain(key: str, value: str) -> str:
    """A value in a form that does not depend on the container: creation times are written in two ways."""
    return re.sub(r"\D", "", value)[:14] if key == "creation_time" else value


def found_anywhere(container: Any, key: str) -> set[str]:
    """The values of a tag that the file or any of its streams has."""
    owners = (container, *container.streams)
    return {_plain(key, tags[key]) for tags in (lower(o.metadata) for o in owners) if key in tags}


def _titled(stream: Any) -> dict[str, str]:
    """Tags of a stream, of which FFmpeg calls the title of a track "name" in MP4."""
    tags = lower(stream.metadata)
    if "name" in tags and "matroska" not in stream.container.format.name:
        tags.setdefault("title", tags.pop("name"))
    return tags


def _compare(report: VerifyReport, what: str, a: Mapping[str, str], b: Mapping[str, str], output: Any) -> None:
    for key, value in a.items():
        if not value or OF_THE_FILE.match(key) or (key == "handler_name" and value in HANDLERS):
            continue
        if key in ANYWHERE and _plain(key, value) in found_anywhere(output, key):
            continue
        now = b.get(key)
        if now is None:
            report.differ(f"{what}: its {key} {value!r} is not in the output")
        elif _plain(key, now) != _plain(key, value):
            report.differ(f"{what}: its {key} {value!r} became {now!r}")


def compare_container_tags(report: VerifyReport, source: Any, output: Any) -> None:
    """Title, dates and all else that the container says of the whole file; what the output says besides is its own."""
    _compare(report, "the file", lower(container_tags(source)), lower(output.metadata), output)


def compare_stream_tags(report: VerifyReport, what: str, x: Any, y: Any, container: str, *, first: bool) -> None:
    """Language, title, other tags and dispositions of a stream and its counterpart.

    first: the stream is what players take where none of its kind is marked as the default one.
    """
    if language(x) != language(y):
        report.differ(f"{what}: language {language(x)} became {language(y)}")
    _compare(report, what, _titled(x), _titled(y), y.container)
    was, now = int(x.disposition) & ~_STORAGE, int(y.disposition) & ~_STORAGE
    lost, gained = was & ~now, now & ~was
    if first and container in BEFORE_ZERO:
        gained &= ~int(Disposition.default)  # it needs an enabled track of each kind
    if first and container in UNMARKED:
        lost &= ~int(Disposition.default)
    for text, bits in (("is no longer", lost), ("is now", gained)):
        names = " and ".join(str(d.name).replace("_", " ") for d in Disposition if bits & int(d))
        if names:
            report.differ(f"{what} {text} marked {names}")


_Span = tuple[float, float, str]


def compare_chapters(report: VerifyReport, a: VideoReader, b: VideoReader) -> None:
    """Number, times and titles. For a part of a file: those that reach into it, moved with it and cut where it ends."""
    move = lift(a.first_time) - a.shift
    wanted = _chapters(a.container, move)
    found = _chapters(b.container, Fraction(0))
    if a.shift or a.until is not None:
        begin = 0.0 if a.shift else float("-inf")
        end = float("inf") if a.until is None else float(a.until)
        wanted = [(max(begin, s), min(end, e), t) for s, e, t in wanted if e > begin and s < end]
    if _same_chapters(wanted, found):
        return
    if len(wanted) != len(found):
        report.differ(f"chapters: {len(wanted)} became {len(found)}")
        return
    for n, (p, q) in enumerate(zip(wanted, found, strict=True), start=1):
        if p[2] != q[2]:
            report.differ(f"chapter {n}: its title {p[2]!r} became {q[2]!r}")
        for word, was, now in (("begins", p[0], q[0]), ("ends", p[1], q[1])):
            if abs(was - now) > _CHAPTER_TICK:
                report.differ(f"chapter {n} {word} at {now:.3f} s and not at {was:.3f} s")


def _chapters(container: Any, move: Fraction) -> list[_Span]:
    spans = []
    for c in container.chapters():
        tick = Fraction(c["time_base"] or 1)
        title = lower(c["metadata"]).get("title", "")
        spans.append((float(c["start"] * tick + move), float(c["end"] * tick + move), title))
    return spans


def _same_chapters(a: list[_Span], b: list[_Span]) -> bool:
    return len(a) == len(b) and all(
        abs(p[0] - q[0]) <= _CHAPTER_TICK and abs(p[1] - q[1]) <= _CHAPTER_TICK and p[2] == q[2]
        for p, q in zip(a, b, strict=True)
    )
