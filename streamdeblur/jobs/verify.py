"""Does a restored file still say everything that its source said? What ``streamdeblur verify IN OUT`` answers.

Compared are the number of frames and every timestamp of the restored stream, its size, colour tags, sample aspect
ratio and rotation, the presence and the payload of every other stream, and the chapters. Pixels are not: they are meant
to differ. What the output's container can't hold, and the plan therefore dropped, is a note and no difference.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from av.stream import Disposition

from streamdeblur.video.packets import StreamDigest
from streamdeblur.video.reader import SourceTags, VideoReader, open_container
from streamdeblur.video.streams import StreamPlan, mov_text_to_subrip, plan_streams, subrip_to_mov_text
from streamdeblur.video.timeline import Timeline, lift

#: Half of Matroska's tick of 1 ms; MP4 and the like are exact.
_TICK = {"matroska": Fraction(1, 2000), "webm": Fraction(1, 2000)}


@dataclass(slots=True)
class VerifyReport:
    """differences: what is not as it was, one line each. notes: what could not be kept, or is worth knowing."""

    source: str
    output: str
    frames: int = 0
    streams: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "source": self.source,
            "output": self.output,
            "same": self.same,
            "frames": self.frames,
            "streams": self.streams,
            "differences": self.differences,
            "notes": self.notes,
        }


def verify(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    stream: int = 0,
    start: float | None = None,
    duration: float | None = None,
) -> VerifyReport:
    """Compare a file with the one that was made from it; stream, start and duration as they were given to the job.

    Raises UnreadableInput when one of the two can't be opened. Broken packets of the source count as they do in a job
    with ``on_error="bypass"``. Reads both files once more than it decodes them.
    """
    report = VerifyReport(os.fspath(source), os.fspath(output))
    with (
        VideoReader(source, stream=stream, start=start, duration=duration, on_error="bypass") as a,
        VideoReader(output, stream=stream, on_error="bypass", copy_streams=False) as b,
    ):
        container = _muxer(b.container.format.name)
        plans = plan_streams(a.container, a.stream.index, container, a.path)
        _compare_pictures(report, a, b, container)
        _compare_chapters(report, a, b)
        chosen = (a.stream.index, b.stream.index)
        if a.broken:
            report.notes.append(f"the source itself is broken: {a.broken}")
        if b.broken:
            report.differences.append(b.broken)
    _compare_streams(report, plans, chosen, a, start, duration)
    return report


def _muxer(name: str) -> str:
    for known in ("matroska", "mp4", "avi", "mpegts", "nut"):
        if known in name.split(","):
            return known
    return name.split(",")[0]


def _compare_pictures(report: VerifyReport, a: VideoReader, b: VideoReader, container: str) -> None:
    _compare_tags(report, a.tags, b.tags)
    x, y = a.info, b.info
    if (x.width, x.height) != (y.width, y.height):
        report.differences.append(f"size {x.width}x{x.height} became {y.width}x{y.height}")
    if y.color.depth < x.color.depth:
        report.differences.append(f"depth {x.color.depth} bit became {y.color.depth}")
    if not _same_ratio(x.sample_aspect_ratio, y.sample_aspect_ratio, container):
        report.differences.append(f"sample aspect ratio {x.sample_aspect_ratio} became {y.sample_aspect_ratio}")
    if not _same_turn(a.tags.display_matrix, b.tags.display_matrix):
        was, now = a.tags.display_matrix, b.tags.display_matrix
        report.differences.append(f"display matrix {was} ({x.rotation} degrees) became {now} ({y.rotation} degrees)")
    tolerance = _TICK.get(container, Fraction(0))
    # What the writer makes of the source's timestamps: moved as a whole when they begin before zero, strictly
    # increasing, made up where there are none.
    shift = lift(a.first_time)
    timeline = Timeline(x.time_base, a.rate, shift)
    worst, at, untimed = Fraction(0), -1, 0
    count_a = count_b = 0
    for f, g in itertools.zip_longest(a, b):
        count_a += f is not None
        count_b += g is not None
        stamp = timeline.stamp(f.pts) if f is not None else 0
        if f is None or g is None:
            continue
        if g.pts is None:
            untimed += 1
            continue
        off = abs(stamp * timeline.tick - g.pts * g.time_base)
        if off > worst:
            worst, at = off, f.index
    report.frames = count_b
    if count_a != count_b:
        report.differences.append(f"{count_a} frames became {count_b}")
    if worst > tolerance:
        report.differences.append(f"timestamps differ by up to {float(worst) * 1000:.3f} ms (frame {at})")
    if untimed:
        report.differences.append(f"{untimed} frames of the output have no timestamp")
    if shift:
        report.notes.append(f"the source begins {float(shift):.3f} s before zero: the output is moved by that much")
    if timeline.made:
        report.notes.append(f"{timeline.made} frames of the source have no timestamp: theirs follow the frame rate")
    if timeline.moved:
        report.notes.append(
            f"{timeline.moved} frames of the source have a timestamp not after the one before: moved on by a tick"
        )
    if a.joined:
        report.notes.append(f"the clock of the source jumps back {a.joined} times: its pieces follow each other")


def _compare_tags(report: VerifyReport, a: SourceTags, b: SourceTags) -> None:
    def known(code: int) -> int:
        return 2 if code in (0, 2, 3) else code

    rgb = a.layout.model == "rgb"
    for name, x, y in (
        ("colour matrix", a.matrix, b.matrix),
        ("colour primaries", a.primaries, b.primaries),
        ("transfer characteristic", a.transfer, b.transfer),
    ):
        if known(x) != known(y) and not (rgb and name == "colour matrix"):
            report.differences.append(f"{name} {x} became {y} (H.273 codes)")
    if not rgb and (a.color_range == 2) != (b.color_range == 2):
        report.differences.append(f"colour range {_range(a.color_range)} became {_range(b.color_range)}")
    if a.layout.alpha and not b.layout.alpha:
        report.notes.append("the alpha plane is not in the output")


def _same_ratio(x: Fraction | None, y: Fraction | None, container: str) -> bool:
    """Equal pixel shapes; Matroska stores them by whole display sizes, which FFmpeg reduces to terms up to 255."""
    a, b = x or Fraction(1), y or Fraction(1)
    return a == b or (container in _TICK and abs(a / b - 1) < Fraction(1, 200))


def _same_turn(x: tuple[int, ...] | None, y: tuple[int, ...] | None) -> bool:
    """Equal rotations and flips. The translation only brings the turned picture back to the origin."""
    still = (65536, 0, 0, 65536)

    def turn(m: tuple[int, ...] | None) -> tuple[int, ...]:
        return still if m is None else (m[0], m[1], m[3], m[4])

    return all(abs(a - b) <= 2 for a, b in zip(turn(x), turn(y), strict=True))  # Matroska keeps angles


def _range(code: int) -> str:
    return {1: "limited", 2: "full"}.get(code, "untagged")


def _compare_chapters(report: VerifyReport, a: VideoReader, b: VideoReader) -> None:
    if a.shift:
        return

    def spans(reader: VideoReader) -> list[tuple[float, str]]:
        move = lift(a.first_time) if reader is a else Fraction(0)
        return [
            (float(c["start"] * Fraction(c["time_base"] or 1) + move), str(c["metadata"].get("title", "")))
            for c in reader.container.chapters()
        ]

    x, y = spans(a), spans(b)
    if len(x) != len(y):
        report.differences.append(f"{len(x)} chapters became {len(y)}")
    elif any(abs(p[0] - q[0]) > 0.0011 or p[1] != q[1] for p, q in zip(x, y, strict=True)):
        report.differences.append("chapter times or titles differ")


def _compare_streams(
    report: VerifyReport,
    plans: list[StreamPlan],
    chosen: tuple[int, int],
    reader: VideoReader,
    start: float | None,
    duration: float | None,
) -> None:
    kept = [p for p in plans if p.action != "drop"]
    for p in plans:
        if p.action == "drop" and p.why:
            report.notes.append(f"{p.label} is not in the output: {p.why}")
    with open_container(report.source) as a, open_container(report.output) as b:
        others = [s for s in b.streams if s.index != chosen[1]]
        by_kind: dict[str, list[Any]] = {}
        for s in others:
            by_kind.setdefault(s.type, []).append(s)
        pairs: list[tuple[StreamPlan, Any, Any]] = []
        absent: list[StreamPlan] = []
        for p in kept:
            candidates = [s for s in by_kind.get(p.kind, []) if _is_cover(s) == (p.cover is not None)]
            if not candidates:
                absent.append(p)
                continue
            by_kind[p.kind].remove(candidates[0])
            pairs.append((p, a.streams[p.index], candidates[0]))
        report.streams = len(pairs) + 1
        for p, x, y in pairs:
            if p.action == "attach" and p.cover is None:
                if x.data != y.data:
                    report.differences.append(f"{p.label}: its data differ")
                continue
            if x.language != y.language and (x.language or "und") != (y.language or "und"):
                report.differences.append(f"{p.label}: language {x.language} became {y.language}")
        copied = [(p, x.index, y.index) for p, x, y in pairs if p.action != "attach" or p.cover]
        if start is not None or duration is not None:
            report.notes.append("packets of the other streams are not compared for a part of a file")
            for p in absent:
                # A stream without packets in the range may rightly be absent; sound and pictures have some everywhere.
                found = report.differences if p.kind in ("audio", "video") else report.notes
                found.append(f"{p.label} is missing")
            return
        left = _digests(a, {**{x: p for p, x, _ in copied}, **{p.index: p for p in absent}}, convert=True)
        right = _digests(b, {y: p for p, _, y in copied}, convert=False)
    for p in absent:
        if left[p.index].packets:
            report.differences.append(f"{p.label} is missing")
        else:
            report.notes.append(f"{p.label} has no packet and is not in the output")
    for p, x, y in copied:
        m, n = left[x], right[y]
        if not m.same(n):
            report.differences.append(
                f"{p.label}: its packets differ ({m.packets} packets of {m.size} bytes became {n.packets} of {n.size})"
            )


def _is_cover(stream: Any) -> bool:
    return bool(stream.type == "video" and stream.disposition & Disposition.attached_pic)


def _digests(container: Any, wanted: dict[int, StreamPlan], *, convert: bool) -> dict[int, StreamDigest]:
    """Digests of streams; conversions of the plan are applied to the source's packets."""
    out = {i: StreamDigest(p.codec if p.action in ("copy", "attach") else p.action) for i, p in wanted.items()}
    streams = [s for s in container.streams if s.index in wanted]
    if not streams:
        return out
    source = container.demux(*streams)
    while True:
        try:
            packet = next(source)
        except (StopIteration, OSError, EOFError, ValueError):
            return out
        data = bytes(packet) if packet.size else b""
        plan = wanted[packet.stream.index]
        if convert and data and plan.action == "subrip":
            data = mov_text_to_subrip(data) or b""
        elif convert and data and plan.action == "mov_text":
            data = subrip_to_mov_text(data)[0]
        elif not convert and plan.action == "mov_text" and data == b"\0\0":
            data = b""  # the muxer fills gaps with empty samples
        out[packet.stream.index].add(data)


__all__ = ["VerifyReport", "verify"]
