"""The restored stream: what its frames are, and when each of them is shown. Pixels are meant to differ."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from streamdeblur.frames import StreamInfo
from streamdeblur.jobs.verify.lockstep import Lane
from streamdeblur.jobs.verify.report import VerifyReport
from streamdeblur.video.losses import changed_colour, same_ratio
from streamdeblur.video.reader import DecodedFrame, VideoReader
from streamdeblur.video.tags import SourceTags, same_turn
from streamdeblur.video.timeline import Timeline, lift

#: Half of Matroska's tick of 1 ms; MP4 and the like are exact.
_TICK = {"matroska": Fraction(1, 2000), "webm": Fraction(1, 2000)}
#: AVFieldOrder of streams that say which field is shown first: TT, BB, TB, BT.
_ORDER = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
#: Containers whose muxer moves everything as a whole, so that no packet has a time before zero.
_SHIFTING = {"mpegts", "nut"}
_FIELDS = {"progressive": "progressive", "tff": "top field first", "bff": "bottom field first"}


@dataclass(frozen=True, slots=True)
class _Shown:
    """When and how a frame is shown. Seconds; None is unknown."""

    index: int
    time: Fraction | None
    fields: str


class PictureCheck:
    """Takes the frames of both files as they come; ``finish`` says what differs.

    ``shift`` (after ``finish``): seconds by which every frame of the output is later than in the source, 0 where they
    are not all moved alike. The other streams are compared relative to it. part: the output was made of a part.
    """

    def __init__(self, report: VerifyReport, a: VideoReader, b: VideoReader, container: str, *, part: bool) -> None:
        self.lane: Lane[_Shown] = Lane()
        self.shift = Fraction(0)
        self._report, self._a, self._b, self._part = report, a, b, part
        self._container = container
        self._tolerance = _TICK.get(container, Fraction(0))
        # What the writer makes of the source's timestamps: moved as a whole when they begin before zero, strictly
        # increasing, made up where there are none.
        self.lift = lift(a.first_time)
        self._timeline = Timeline(a.info.time_base, a.rate, self.lift)
        self._first: Fraction | None = None
        self._worst, self._at = Fraction(0), -1
        self._spread = Fraction(0)
        self._untimed = 0
        self._last: tuple[_Shown, _Shown] | None = None
        self._step = Fraction(0)
        self._unwoven: dict[tuple[str, str], list[int]] = {}
        self._order = _ORDER.get(b.stream.codec_context.field_order)  # as the container says
        compare_tags(report, a.tags, b.tags)
        compare_format(report, a, b, container)

    def take(self, side: int, frame: DecodedFrame) -> None:
        """A frame of the source (side 0) or of the output (1)."""
        if side == 0:
            stamp = self._timeline.stamp(frame.pts)
            time: Fraction | None = stamp * self._timeline.tick
        else:
            time = None if frame.pts is None else frame.pts * frame.time_base
        pair = self.lane.push(side, _Shown(frame.index, time, frame.spec.field_order))
        if pair is not None:
            self._compare(*pair)

    def _compare(self, x: _Shown, y: _Shown) -> None:
        if x.fields != y.fields and (self._order is not None or "progressive" in (x.fields, y.fields)):
            found = self._unwoven.setdefault((x.fields, y.fields), [0, x.index])
            found[0] += 1
        if x.time is None or y.time is None:
            self._untimed += 1
            return
        if self._last is not None and self._last[0].time is not None:
            self._step = x.time - self._last[0].time
        self._last = (x, y)
        off = y.time - x.time
        if self._first is None:
            self._first = off
        self._spread = max(self._spread, abs(off - self._first))
        if abs(off) > self._worst:
            self._worst, self._at = abs(off), x.index

    def finish(self) -> None:
        """Report what the frames were seen to be."""
        report, timeline = self._report, self._timeline
        was, now = self.lane.counts
        report.frames = now
        if was != now:
            report.differ(f"{was} frames became {now}")
        if self._worst > self._tolerance:
            alike = was == now and self._spread <= 2 * self._tolerance
            if alike and self._first is not None:
                self.shift = self._first
            where = "a shift of every frame" if alike and now > 1 else f"frame {self._at}"
            line = f"timestamps differ by up to {float(self._worst) * 1000:.3f} ms ({where})"
            (report.note if self.shift and self._container in _SHIFTING else report.differ)(line)
        elif self._worst:
            report.note(
                f"timestamps are rounded to the container's tick, by {float(self._worst) * 1000:.3f} ms at most"
            )
        if self._untimed:
            report.differ(f"{self._untimed} frames of the output have no timestamp")
        self._compare_end(was == now)
        for (x, y), (count, first) in self._unwoven.items():
            if y == "progressive" and x == self._order:
                report.note(f"field order: the container says {_FIELDS[x]}, its {count} frames do not")
                continue
            line = f"field order: {count} frames that are {_FIELDS[x]} became {_FIELDS[y]} (the first is frame {first})"
            report.differ(line)
        if self.lift:
            report.note(f"the source begins {float(self.lift):.3f} s before zero: the output is moved by that much")
        if timeline.made:
            report.note(f"{timeline.made} frames of the source have no timestamp: theirs follow the frame rate")
        if timeline.moved:
            report.note(
                f"{timeline.moved} frames of the source have a timestamp not after the one before: moved on by a tick"
            )
        if self._a.joined:
            report.note(f"the clock of the source jumps back {self._a.joined} times: its pieces follow each other")

    def _compare_end(self, complete: bool) -> None:
        """The last frame has nothing after it that ends it: only the length of the track does."""
        odd = self._timeline.made or self._timeline.moved
        if not complete or odd or self._part or self._a.broken or self._a.joined or self._last is None:
            return
        x, y = self._a.end, self._b.end
        if x is None or y is None:
            return
        last = self._last[0].time or Fraction(0)
        was, now = x + self.lift - last, y - self.shift - last
        slack = max(self._step / 2, 4 * self._tolerance, Fraction(1, 1000))
        # A file without an edit list may count its length from zero, wherever its first frame is.
        begin = max(Fraction(0), (self._a.stream.start_time or 0) * (self._a.stream.time_base or Fraction(0)))
        if was > 0 and not -slack <= was - now <= slack + begin:
            self._report.differ(f"the last frame is shown for {float(now):.3f} s and not for {float(was):.3f} s")


def compare_tags(report: VerifyReport, a: SourceTags, b: SourceTags) -> None:
    """Colour, alpha and HDR metadata."""

    for name, x, y in changed_colour(a, b):
        if name == "colour range":
            report.differ(f"colour range {_range(x)} became {_range(y)}")
        else:
            report.differ(f"{name} {x} became {y} (H.273 codes)")
    if a.layout.alpha and not b.layout.alpha:
        report.differ("the alpha plane is not in the output")
    if a.mastering is not None and b.mastering is None:
        report.differ("the mastering display metadata (SMPTE ST 2086) is not in the output")
    elif a.mastering is not None and a.mastering != b.mastering:
        report.differ(f"mastering display {a.mastering.x265()} became {b.mastering and b.mastering.x265()}")
    if a.light is not None and b.light is None:
        report.differ(f"the content light level ({a.light.x265()} cd/m2) is not in the output")
    elif a.light is not None and b.light is not None and a.light != b.light:
        report.differ(f"content light level {a.light.x265()} became {b.light.x265()} (cd/m2)")
    for name in a.lost:
        if name not in b.lost:
            report.note(f"{name} is not in the output: no encoder here carries it")


def _range(code: int) -> str:
    return {1: "limited", 2: "full"}.get(code, "untagged")


def compare_format(report: VerifyReport, a: VideoReader, b: VideoReader, container: str) -> None:
    """Size, depth, chroma layout, shape of the pixels, rotation."""
    x, y = a.info, b.info
    if (x.width, x.height) != (y.width, y.height):
        report.differ(f"size {x.width}x{x.height} became {y.width}x{y.height}")
    if y.color.depth < x.color.depth:
        report.differ(f"depth {x.color.depth} bit became {y.color.depth}")
    elif y.color.depth > x.color.depth:
        report.note(f"depth {x.color.depth} bit became {y.color.depth}, which holds every value of it")
    was, now = _chroma(x), _chroma(y)
    if x.color.model != y.color.model:
        report.differ(f"colour model {was} became {now}")
    elif any(p < q for p, q in zip(x.color.chroma_shift, y.color.chroma_shift, strict=True)):
        report.differ(f"chroma layout {was} became {now}")
    elif was != now:
        report.note(f"chroma layout {was} became {now}, which holds every value of it")
    if not same_ratio(x.sample_aspect_ratio, y.sample_aspect_ratio, container):
        ratios = (x.sample_aspect_ratio or 1, y.sample_aspect_ratio or 1)
        report.differ(f"sample aspect ratio {ratios[0]} became {ratios[1]}")
    if not same_turn(a.tags.display_matrix, b.tags.display_matrix):
        m, n = a.tags.display_matrix, b.tags.display_matrix
        report.differ(f"display matrix {m} ({x.rotation} degrees) became {n} ({y.rotation} degrees)")


def _chroma(info: StreamInfo) -> str:
    if info.color.model != "yuv":
        return {"rgb": "RGB", "gray": "gray"}[info.color.model]
    names = {(1, 1): "4:2:0", (1, 0): "4:2:2", (0, 0): "4:4:4", (0, 1): "4:4:0", (2, 0): "4:1:1", (2, 2): "4:1:0"}
    return names.get(info.color.chroma_shift, str(info.color.chroma_shift))
