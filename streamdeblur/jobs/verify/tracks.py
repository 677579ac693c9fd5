"""The streams that are not restored: the same packets, at the same times relative to the restored stream."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from streamdeblur.jobs.verify.lockstep import Lane
from streamdeblur.jobs.verify.pairing import payload, target_codec
from streamdeblur.jobs.verify.report import VerifyReport
from streamdeblur.video.packets import StreamDigest, is_hidden
from streamdeblur.video.reader import CopyPacket
from streamdeblur.video.streams import StreamPlan, codec_name, has_styles, subrip_to_mov_text

#: Seconds that start offsets of MP4 are off by at most beside a track's own tick: its movie's tick is at least this.
_OFFSET = 1e-4


@dataclass(frozen=True, slots=True)
class _Timed:
    """A packet: seconds, None for unknown; length 0 for unknown."""

    time: float | None
    length: float


class TrackCheck:
    """One stream of the source and its counterpart, None where it has none.

    lift: seconds that the job adds to every time. alike: their first packets are equal. cut: the output is of a part,
    in a container that holds nothing before zero: pictures begin with their first keyframe there.

    Takes packets of both as they come; ``finish`` says what differs.
    """

    def __init__(
        self,
        report: VerifyReport,
        plan: StreamPlan,
        stream: Any | None,
        lift: Fraction,
        *,
        alike: bool = False,
        cut: bool = False,
    ) -> None:
        self.lane: Lane[_Timed] = Lane()
        self.plan = plan
        self._report = report
        self._lift = float(lift)
        self._alike = alike
        self._cut = cut
        self._begun: float | None = None
        self._codecs = (plan.codec, codec_name(stream) if stream is not None else "")
        self._digests = (StreamDigest(target_codec(plan)), StreamDigest(self._codecs[1]))
        tick = float(stream.time_base) if stream is not None and stream.time_base else 0.0
        self._tolerance = tick / 2 + _OFFSET
        self._jitter = 0.0
        self._first: float | None = None
        self._low = self._high = 0.0
        self._at = 0
        self._expected = float("-inf")
        self._last: tuple[_Timed, _Timed] | None = None
        self._step = 0.0
        self._lengths = 0
        self._pairs = 0
        # PCM is cut into packets at each muxer's pleasure: (first, lowest, highest) of time less what was before it.
        self._pcm = plan.codec.startswith("pcm")
        self._rate = _bytes_a_second(stream) if self._pcm and stream is not None else 0
        self._lines: list[list[float]] = [[], []]

    @property
    def packets(self) -> int:
        """Packets of the source that say something."""
        return self._digests[0].packets

    def take(self, side: int, item: CopyPacket) -> None:
        """A packet of the source (side 0) or of the output (1)."""
        packet = item.packet
        if side == 0 and self._cut and self._is_early(packet):
            return
        if side == 0 and is_hidden(packet, self.plan.kind):
            self._report.note(f"{self.plan.label}: what its edit list hides before zero is not in the output")
            return
        raw = bytes(packet)
        if side == 0 and self.plan.action == "subrip" and has_styles(raw):
            self._report.differ(f"{self.plan.label}: colours and styles of its text are not in the output")
        if side == 0 and self.plan.action == "mov_text" and subrip_to_mov_text(raw)[1]:
            self._report.differ(f"{self.plan.label}: the styling of its text is not in the output")
        data = payload(raw, self._codecs[side], self.plan if side == 0 else None)
        if not data:
            return
        digest = self._digests[side]
        before = digest.size
        digest.add(data)
        if not self._codecs[1]:
            return
        base = float(packet.time_base)
        time = None if packet.pts is None else packet.pts * base + (0.0 if side else self._lift)
        if self._pcm:
            if side == 0:
                self._jitter = base / 2  # its packets were rounded to this, while samples follow each other evenly
            if time is not None and self._rate:
                self._follow(self._lines[side], time - before / self._rate)
            return
        if side == 0 and self.plan.kind == "audio" and time is not None:
            # Times that stand still or run back are moved on by the writer: no container takes them.
            time = self._expected = max(time, self._expected)
        pair = self.lane.push(side, _Timed(time, (packet.duration or 0) * base))
        if pair is not None:
            self._compare(*pair)

    def _is_early(self, packet: Any) -> bool:
        """Whether a packet of the source lies before the part, or is a picture made from one that does."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            return False
        time = float(stamp * packet.time_base)
        if self._begun is None and time >= 0 and (self.plan.kind != "video" or packet.is_keyframe):
            self._begun = time if self.plan.kind == "video" else 0.0
        return self._begun is None or time < self._begun

    @staticmethod
    def _follow(line: list[float], value: float) -> None:
        line[:] = [value, value, value] if not line else [line[0], min(line[1], value), max(line[2], value)]

    def _compare(self, x: _Timed, y: _Timed) -> None:
        self._pairs += 1
        if x.time is None or y.time is None:
            return
        off = y.time - x.time
        if self._first is None:
            self._first = self._low = self._high = off
        if off < self._low or off > self._high:
            self._low, self._high, self._at = min(off, self._low), max(off, self._high), self._pairs - 1
        if self._last is not None and self._last[0].time is not None:
            self._step = max(self._step, x.time - self._last[0].time)
        if self.plan.kind == "subtitle" and x.length and abs(x.length - y.length) > 2 * self._tolerance:
            self._lengths += 1
        self._last = (x, y)

    def finish(self, shift: Fraction) -> None:
        """Report what the packets were seen to be. shift: seconds by which the restored stream is later."""
        report, label = self._report, self.plan.label
        m, n = self._digests
        same = m.same(n)
        if not same:
            sizes = f"({m.packets} packets of {m.size} bytes became {n.packets} of {n.size})"
            report.differ(f"{label}: its packets differ {sizes}")
        if self.lane.loose:
            report.note(f"{label}: too far from its counterpart in the file to compare the times of its packets")
        if self._pcm and all(self._lines):
            a, b = self._lines
            self._first = b[0] - a[0]
            self._low = min(self._first, b[1] - a[1], b[2] - a[2])
            self._high = max(self._first, b[1] - a[1], b[2] - a[2])
        if self._first is None or not (same or self._alike):
            return
        begin = self._first - float(shift)
        if abs(begin) > self._tolerance + self._jitter:
            word = "later" if begin > 0 else "earlier"
            report.differ(f"{label} begins {_seconds(begin)} {word} relative to the video than in the source")
        if not same:
            return
        off = max(self._high - self._first, self._first - self._low)
        if off > 2 * (self._tolerance + self._jitter):
            where = "" if self._pcm else f" (packet {self._at})"
            report.differ(f"{label}: its timestamps go astray by up to {_seconds(off)} after its beginning{where}")
        if self._lengths:
            report.differ(f"{label}: {self._lengths} of {m.packets} texts or pictures are shown for another time")
        elif self._last is not None and self.plan.kind != "subtitle":
            x, y = (p.length for p in self._last)
            if x and y and abs(x - y) > self._step + self._tolerance:
                report.differ(f"{label}: its last packet lasts {_seconds(y)} and not {_seconds(x)}")


def _seconds(value: float) -> str:
    text = f"{abs(value):.3f}"
    return f"{text} s" if float(text) else f"{abs(value) * 1e6:.0f} us"


def _bytes_a_second(stream: Any) -> float:
    context = stream.codec_context
    bits = {"u8": 8, "s16": 16, "s24": 24, "s32": 32, "f32": 32, "f64": 64, "s64": 64, "s8": 8}
    name = codec_name(stream).split("_")[-1].removesuffix("le").removesuffix("be").removesuffix("p")
    return bits.get(name, 8) / 8 * float(context.sample_rate or 0) * int(context.channels or 0)
