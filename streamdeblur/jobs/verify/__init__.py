"""Does a restored file still say everything that its source said? What ``streamdeblur verify IN OUT`` answers.

Compared are the restored stream (number, times, size, depth, chroma layout, field order and colour of its frames, HDR
metadata, pixel shape, rotation), every other stream (presence, order, payload, times relative to the restored one,
language, title, dispositions, tags), attachments, chapters, and the tags of the file. Pixels are not: they are meant to
differ. What the output's container can't hold is a difference as well, if another one would hold it; notes are a change
of form that loses nothing, and a loss that no encoder or container here could have spared.

    reader of IN  ── frames, packets ──►  PictureCheck, a TrackCheck each  ◄── frames, packets ── reader of OUT
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from streamdeblur.config import Interlaced
from streamdeblur.errors import UsageError
from streamdeblur.jobs.verify.lockstep import read_together
from streamdeblur.jobs.verify.pairing import Pairing, pair_streams, target_codec
from streamdeblur.jobs.verify.pictures import PictureCheck
from streamdeblur.jobs.verify.report import VerifyReport
from streamdeblur.jobs.verify.tags import (
    compare_chapters,
    compare_container_tags,
    compare_stream_tags,
    found_anywhere,
    lower,
)
from streamdeblur.jobs.verify.tracks import TrackCheck
from streamdeblur.video.losses import players_choice, same_ratio
from streamdeblur.video.reader import DecodedFrame, VideoReader
from streamdeblur.video.streams import BEFORE_ZERO, StreamPlan, codec_name, fit_range, is_chapter_track, plan_streams
from streamdeblur.video.writer import muxer_for

#: One code of MP4 stands for all layers of MPEG audio (ISO/IEC 14496-1, objectTypeIndication 0x69 and 0x6B).
_MPEG_AUDIO = {"mp1", "mp2", "mp3"}
#: The containers that FFmpeg reads as one format, by its first name for it; the likeliest first.
_FAMILIES = {"mov": ("mp4", "mov", "3gp"), "matroska": ("matroska", "webm")}


def verify(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    stream: int = 0,
    start: float | None = None,
    duration: float | None = None,
    interlaced: Interlaced = "auto",
    deinterlace: bool = False,
    progress: Callable[[], None] | None = None,
) -> VerifyReport:
    """Compare a file with the one that was made from it; the options as they were given to the job.

    progress: called for every frame that was read, on this thread.
    Raises UnreadableInput when one of the two can't be opened. Broken packets of the source count as they do in a job
    with ``on_error="bypass"``. Decodes both files, each once; memory does not grow with their length.
    """
    for name, value in (("start", start), ("duration", duration)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"--{name} {value} is no time in seconds", "give it as it was given to process")
    report = VerifyReport(os.fspath(source), os.fspath(output))
    with (
        VideoReader(
            source,
            stream=stream,
            start=start,
            duration=duration,
            on_error="bypass",
            interlaced=interlaced,
            deinterlace=deinterlace,
        ) as a,
        VideoReader(output, stream=stream, on_error="bypass") as b,
    ):
        container = muxer(b)
        plans, missing = fit_range(plan_streams(a.container, a.stream.index, container, a.path), a.keyframes, container)
        pictures = PictureCheck(report, a, b, container, part=start is not None or duration is not None)
        paired = _pair(report, plans, a, b, container)
        _compare_headers(report, paired, a, b, container)
        compare_chapters(report, a, b)
        for line in missing:
            report.differ(line)
        checks, absent = _walk(
            report, pictures, paired, a, b, cut=bool(a.shift) and container not in BEFORE_ZERO, progress=progress
        )
        pictures.finish()
        for check in checks:
            check.finish(pictures.shift)
        for check in absent:
            if check.packets:
                report.differ(f"{check.plan.label} is missing")
            else:
                report.note(f"{check.plan.label} has no packet and is not in the output")
        if a.broken:
            report.note(f"the source itself is broken: {a.broken}")
        if b.broken:
            report.differ(b.broken)
    return report


def muxer(reader: VideoReader) -> str:
    """FFmpeg's muxer for a file: by its ending where that fits its format, which may stand for several containers."""
    names = reader.container.format.name.split(",")
    family = _FAMILIES.get(names[0], tuple(names))
    try:
        by_ending = muxer_for(reader.path)
    except UsageError:
        by_ending = ""
    return by_ending if by_ending in family else family[0]


def _walk(
    report: VerifyReport,
    pictures: PictureCheck,
    paired: Pairing,
    a: VideoReader,
    b: VideoReader,
    *,
    cut: bool,
    progress: Callable[[], None] | None = None,
) -> tuple[list[TrackCheck], list[TrackCheck]]:
    """Read both files to their ends. Returns the checks of streams with and without a counterpart."""
    by_source: dict[int, TrackCheck] = {}
    by_output: dict[int, TrackCheck] = {}
    for p, index in paired.pairs:
        if p.cover is None and p.kind != "attachment":
            alike = p.index in paired.alike
            check = TrackCheck(report, p, b.container.streams[index], pictures.lift, alike=alike, cut=cut)
            by_source[p.index] = by_output[index] = check
    absent = [
        TrackCheck(report, p, None, pictures.lift, cut=cut)
        for p in paired.absent
        if p.cover is None and p.kind != "attachment"
    ]
    checks = list(by_source.values())
    by_source.update({check.plan.index: check for check in absent})
    tables = (by_source, by_output)

    def take(side: int, item: Any) -> None:
        if isinstance(item, DecodedFrame):
            pictures.take(side, item)
            if progress is not None:
                progress()
            return
        found = tables[side].get(item.packet.stream.index)
        if found is not None:
            found.take(side, item)

    read_together((a.items(), b.items()), take, [pictures.lane, *(check.lane for check in checks)])
    return checks, absent


def _pair(report: VerifyReport, plans: list[StreamPlan], a: VideoReader, b: VideoReader, container: str) -> Pairing:
    """Find the counterparts; report what has none and what is converted."""
    for p in plans:
        if p.action == "drop" and p.why:
            code = lower(a.container.streams[p.index].metadata).get("timecode") if p.kind == "data" else None
            if code is not None and code in found_anywhere(b.container, "timecode"):
                report.note(f"{p.label} is not in the output: {p.why}")
            elif p.kind == "data" and not p.keeper:
                report.note(f"{p.label} is not in the output: {p.why}, and no other container here does")
            else:
                report.differ(f"{p.label} is not in the output: {p.why}")
        if p.action in ("subrip", "mov_text"):
            name = {"subrip": "SubRip", "mov_text": "MP4 timed text"}[p.action]
            report.note(f"{p.label} is {name} in the output")
    kept = [p for p in plans if p.action != "drop"]
    others = [s for s in b.container.streams if s.index != b.stream.index]
    paired = pair_streams(kept, a.path, b.path, others, a.shift or None)
    for index in paired.extra:
        s = b.container.streams[index]
        if is_chapter_track(s) and a.container.chapters():
            continue
        if s.type == "data" and lower(s.metadata).get("timecode") in found_anywhere(a.container, "timecode"):
            continue  # MP4 keeps a timecode tag as a track
        report.differ(f"stream {index} of the output ({s.type}, {codec_name(s)}) is not in the source")
    for p in paired.absent:
        if p.cover is not None or p.kind == "attachment":
            report.differ(f"{p.label} is missing")
    for kind in paired.shuffled:
        report.differ(f"the {kind} streams are in another order")
    report.streams = len(paired.pairs) + 1
    return paired


def _compare_headers(report: VerifyReport, paired: Pairing, a: VideoReader, b: VideoReader, container: str) -> None:
    """What is said of the file and its streams, and what has no packets."""
    compare_container_tags(report, a.container, b.container)
    streams = a.container.streams
    first = players_choice(streams)
    chosen = a.stream.index
    compare_stream_tags(report, "the video", a.stream, b.stream, container, first=chosen in first)
    for p, index in paired.pairs:
        x: Any = streams[p.index]
        y: Any = b.container.streams[index]
        if p.kind == "attachment":
            if bytes(x.data or b"") != bytes(y.data or b""):
                report.differ(f"{p.label}: its data differ")
            was, now = (lower(s.metadata).get("filename", "") for s in (x, y))
            if was and was != now:
                report.differ(f"{p.label}: its name {was!r} became {now!r}")
            continue
        if p.cover is not None:
            if p.index not in paired.alike:
                report.differ(f"{p.label}: its picture differs")
            continue
        compare_stream_tags(report, p.label, x, y, container, first=p.index in first)
        was, now = target_codec(p), codec_name(y)
        if now not in (was, "unknown"):
            if {was, now} <= _MPEG_AUDIO and container in BEFORE_ZERO:
                report.note(f"{p.label}: {container} has one name for {was} and {now}; decoders see which it is")
            else:
                report.differ(f"{p.label}: its codec {was} became {now}")
        if p.kind == "video" and not same_ratio(x.sample_aspect_ratio, y.sample_aspect_ratio, container):
            ratios = (x.sample_aspect_ratio or Fraction(1), y.sample_aspect_ratio or Fraction(1))
            report.differ(f"{p.label}: sample aspect ratio {ratios[0]} became {ratios[1]}")


__all__ = ["VerifyReport", "verify"]
