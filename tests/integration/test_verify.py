"""verify: silent about a faithful output, and by name about each thing that is not."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.codec.context
import numpy as np
import pytest
from av.stream import Disposition

from streamdeblur import process_video
from streamdeblur.errors import UnreadableInput
from streamdeblur.jobs.verify import verify
from streamdeblur.jobs.verify.lockstep import Lane, read_together
from tests.clips import numbered_picture, write_numbered_clip
from tests.commands import run

pytestmark = pytest.mark.integration

SIZE = (96, 64)
PTS = [0, 3003, 3500, 9009, 9100, 27027]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered_clip(tmp_path_factory.mktemp("verify") / "a.mp4", 6, SIZE, pts=PTS, audio=True)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("lossless", [True, False])
def test_outputs_of_the_job_pass(source: Path, tmp_path: Path, ending: str, lossless: bool) -> None:
    output = tmp_path / f"b.{ending}"
    process_video(source, output, model="offset", lossless=lossless)
    report = verify(source, output)
    assert report.differences == []
    assert (report.same, report.frames, report.streams) == (True, 6, 2)


def test_a_part_passes_when_told_so(source: Path, tmp_path: Path) -> None:
    process_video(source, tmp_path / "b.mp4", model="identity", start=0.03, duration=0.08)
    assert verify(source, tmp_path / "b.mp4", start=0.03, duration=0.08).same
    assert not verify(source, tmp_path / "b.mp4").same


def variant(path: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {"frames": 6, "size": SIZE, "pts": PTS, "audio": True, **changes}
    return write_numbered_clip(path, given.pop("frames"), given.pop("size"), **given)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"frames": 5, "pts": PTS[:5]}, "6 frames became 5"),
        ({"frames": 7, "pts": [*PTS, 40000]}, "6 frames became 7"),
        ({"pts": [*PTS[:5], 27117]}, r"timestamps differ by up to 1\.000 ms (frame 5)"),
        ({"pts": [p + 9000 for p in PTS]}, "timestamps differ by up to 100.000 ms"),
        ({"size": (112, 64)}, "size 96x64 became 112x64"),
        ({"audio": False}, "stream 1 (audio, aac) is missing"),
        ({"full_range": True}, "colour range limited became full"),
        ({"matrix": av.video.reformatter.Colorspace.ITU601}, "colour matrix 1 became 5"),
    ],
)
def test_what_differs_is_named(source: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    report = verify(source, variant(tmp_path / "b.mp4", **changes))
    assert not report.same
    assert any(says.replace("\\", "") in d for d in report.differences), report.differences


def test_a_deeper_source_a_turned_one_and_other_sound(source: Path, tmp_path: Path) -> None:
    deep = variant(tmp_path / "deep.mp4", pix_fmt="yuv420p10le")
    assert verify(source, deep).same  # more bits are no loss
    assert any("depth 10 bit became 8" in d for d in verify(deep, source).differences)
    turned = tmp_path / "turned.mp4"
    with av.open(str(source)) as a, av.open(str(turned), "w") as b:
        streams = {s.index: b.add_stream_from_template(s, opaque=True) for s in a.streams}
        streams[0].set_display_rotation(180)
        streams[1].metadata["language"] = "deu"
        for n, packet in enumerate(a.demux()):
            if packet.size and not (packet.stream.index == 1 and n % 7 == 3):
                packet.stream = streams[packet.stream.index]
                b.mux(packet)
    text = "; ".join(verify(source, turned).differences)
    assert "(0 degrees) became" in text
    assert "language" in text
    assert "stream 1 (audio, aac): its packets differ" in text


def test_the_command_exits_with_1_and_says_why(source: Path, tmp_path: Path) -> None:
    good = tmp_path / "good.mkv"
    process_video(source, good, model="identity")
    done = run("verify", source, good, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 frames, 2 streams" in done.stdout
    bad = variant(tmp_path / "bad.mp4", frames=5, pts=PTS[:5])
    done = run("verify", source, bad, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "differs: 6 frames became 5" in done.stdout.splitlines()
    done = run("verify", source, bad, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (done.returncode, report["same"], report["frames"]) == (1, False, 5)
    done = run("verify", source, good, "--interlaced", "tff", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "differs: field order: 6 frames that are top field first became progressive" in done.stdout
    done = run("verify", source, good, "--deinterlace", "--interlaced", "tff", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("verify", source, tmp_path / "none.mp4", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(UnreadableInput):
        verify(tmp_path / "none.mp4", source)


def test_a_common_shift_in_matroska_is_a_difference(tmp_path: Path) -> None:
    """1 ms off for every frame is no rounding."""
    a = write_numbered_clip(tmp_path / "a.mkv", 5, SIZE, pts=[0, 40, 80, 120, 160], time_base=Fraction(1, 1000))
    b = write_numbered_clip(tmp_path / "b.mkv", 5, SIZE, pts=[1, 41, 81, 121, 161], time_base=Fraction(1, 1000))
    assert any("timestamps differ by up to 1.000 ms" in d for d in verify(a, b).differences)


# --- a file with everything, copied with one thing changed --------------------------------------------------------

CHAPTERS: list[dict[str, Any]] = [
    {"id": 1, "start": 0, "end": 500, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}},
    {"id": 2, "start": 500, "end": 1200, "time_base": Fraction(1, 1000), "metadata": {"title": "two"}},
]


def tone(hertz: float, stamp: int, samples: int = 57600) -> av.AudioFrame:
    wave = (0.2 * np.sin(np.arange(samples) * (2 * np.pi * hertz / 48000))).astype(np.float32)[None]
    chunk = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
    chunk.sample_rate, chunk.pts, chunk.time_base = 48000, stamp, Fraction(1, 48000)
    return chunk


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames at 25 a second, two sounds, a subtitle, a font, chapters, tags."""
    path = tmp_path_factory.mktemp("rich") / "a.mkv"
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as c:
        c.metadata.update({"title": "A film", "comment": "of numbers"})
        c.set_chapters(CHAPTERS)  # type: ignore[arg-type]
        video: Any = c.add_stream("libx264", rate=25, options={"bf": "2", "g": "10"})
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        sounds: list[Any] = [c.add_stream("aac", rate=48000, layout="mono") for _ in range(2)]
        text: Any = c.add_mux_stream("subrip")
        text.time_base = Fraction(1, 1000)
        c.add_attachment("font.ttf", "font/ttf", b"a font" * 20)
        video.metadata["language"] = "eng"
        for s, tongue, title in zip(sounds, ("ger", "eng"), ("Ton", "Commentary"), strict=True):
            s.metadata.update({"language": tongue, "title": title})
        text.metadata["language"] = "fra"
        video.disposition = sounds[0].disposition = Disposition.default
        sounds[1].disposition = Disposition.comment
        text.disposition = Disposition.forced
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(numbered_picture(i, SIZE), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            c.mux(video.encode(frame))
        c.mux(video.encode(None))
        for s, hertz in zip(sounds, (440, 880), strict=True):
            c.mux(s.encode(tone(hertz, 0)))
            c.mux(s.encode(None))
        for at in (100, 700):
            packet: Any = av.Packet(f"words at {at}".encode())
            packet.stream, packet.time_base = text, Fraction(1, 1000)
            packet.pts = packet.dts = at
            packet.duration, packet.is_keyframe = 300, True
            c.mux_one(packet)
    return path


class Copy:
    """Copies a file packet by packet. A test overrides what it changes."""

    drop: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    twice: int | None = None
    attach = b"a font" * 20

    def header(self, out: Any, streams: dict[int, Any]) -> None: ...

    def packet(self, packet: Any, number: int) -> bool:
        return True

    def chapters(self, found: list[Any]) -> list[Any]:
        return found

    def tags(self, found: dict[str, str]) -> dict[str, str]:
        return found

    def run(self, source: Path, target: Path) -> Path:
        options = {"avoid_negative_ts": "disabled"} if target.suffix == ".mkv" else {}
        with av.open(str(source)) as a, av.open(str(target), "w", options=options) as b:
            b.metadata.update(self.tags(dict(a.metadata)))
            b.set_chapters(self.chapters(list(a.chapters())))
            streams: dict[int, Any] = {}
            for s in sorted(a.streams, key=lambda s: self.order.index(s.index) if self.order else s.index):
                if s.index in self.drop:
                    continue
                if s.type == "attachment":
                    b.add_attachment("font.ttf", "font/ttf", self.attach)
                    continue
                streams[s.index] = b.add_stream_from_template(s, opaque=True)
                streams[s.index].metadata.update({k: v for k, v in s.metadata.items() if k != "DURATION"})
                streams[s.index].disposition = s.disposition
            extra = b.add_stream_from_template(a.streams[self.twice], opaque=True) if self.twice is not None else None
            self.header(b, streams)
            counts: dict[int, int] = {}
            for packet in a.demux([s for s in a.streams if s.index in streams]):
                index = packet.stream.index
                if not packet.size:
                    continue
                counts[index] = counts.get(index, -1) + 1
                if not self.packet(packet, counts[index]):
                    continue
                again = None
                if extra is not None and index == self.twice:
                    again = av.Packet(bytes(packet))
                    again.pts, again.dts, again.duration = packet.pts, packet.dts, packet.duration
                    again.time_base, again.is_keyframe, again.stream = packet.time_base, packet.is_keyframe, extra
                packet.stream = streams[index]
                b.mux(packet)
                if again is not None:
                    b.mux(again)
        return target


def moved(index: int, seconds: float, since: int = 0) -> type[Copy]:
    class Moved(Copy):
        def packet(self, packet: Any, number: int) -> bool:
            if packet.stream.index == index and number >= since:
                ticks = round(seconds / packet.time_base)
                packet.pts += ticks
                packet.dts += ticks
            return True

    return Moved


class AllMoved(Copy):
    def packet(self, packet: Any, number: int) -> bool:
        packet.pts += 200
        packet.dts = None if packet.dts is None else packet.dts + 200
        return True

    def chapters(self, found: list[Any]) -> list[Any]:
        return [{**c, "start": c["start"] + 200_000_000, "end": c["end"] + 200_000_000} for c in found]


class ShorterText(Copy):
    def packet(self, packet: Any, number: int) -> bool:
        if packet.stream.index == 3:
            packet.duration = 100
        return True


class Unmarked(Copy):
    def header(self, out: Any, streams: dict[int, Any]) -> None:
        streams[1].disposition = Disposition(0)
        streams[2].disposition = Disposition.comment | Disposition.default
        streams[3].disposition = Disposition.hearing_impaired


class Unnamed(Copy):
    def header(self, out: Any, streams: dict[int, Any]) -> None:
        del streams[0].metadata["language"]
        streams[1].metadata["language"] = "fra"
        del streams[1].metadata["title"]
        streams[2].metadata["title"] = "Other"

    def tags(self, found: dict[str, str]) -> dict[str, str]:
        return {"title": "Another film"}


class NoChapters(Copy):
    def chapters(self, found: list[Any]) -> list[Any]:
        return []


class OtherChapters(Copy):
    def chapters(self, found: list[Any]) -> list[Any]:
        first = {**found[0], "end": 400_000_000, "metadata": {"title": "uno"}}
        return [first, {**found[1], "start": 600_000_000}]


class OneDropped(Copy):
    drop = (1,)


class Swapped(Copy):
    order = (0, 2, 1, 3, 4)


class Doubled(Copy):
    twice = 2


class OtherFont(Copy):
    attach = b"b font" * 20


class NoFont(Copy):
    drop = (4,)


class HoleInSound(Copy):
    def packet(self, packet: Any, number: int) -> bool:
        return packet.stream.index != 2 or number != 20


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (Copy, []),
        (moved(1, 0.1), ["stream 1 (audio, aac) begins 0.100 s later relative to the video than in the source"]),
        (moved(2, 0.021), ["stream 2 (audio, aac) begins 0.021 s later relative to the video than in the source"]),
        (
            moved(3, -0.05),
            ["stream 3 (subtitle, subrip) begins 0.050 s earlier relative to the video than in the source"],
        ),
        (
            moved(1, 0.2, since=30),
            ["stream 1 (audio, aac): its timestamps go astray by up to 0.200 s after its beginning (packet 50)"],
        ),
        (
            AllMoved,
            [
                "timestamps differ by up to 200.000 ms (a shift of every frame)",
                *(
                    f"chapter {n} {w} at {a:.3f} s and not at {b:.3f} s"
                    for n, w, a, b in (
                        (1, "begins", 0.2, 0),
                        (1, "ends", 0.7, 0.5),
                        (2, "begins", 0.7, 0.5),
                        (2, "ends", 1.4, 1.2),
                    )
                ),
            ],
        ),
        (ShorterText, ["stream 3 (subtitle, subrip): 2 of 2 texts or pictures are shown for another time"]),
        (
            Unmarked,
            [
                "stream 1 (audio, aac) is no longer marked default",
                "stream 2 (audio, aac) is now marked default",
                "stream 3 (subtitle, subrip) is no longer marked forced",
                "stream 3 (subtitle, subrip) is now marked hearing impaired",
            ],
        ),
        (
            Unnamed,
            [
                "the video: language eng became und",
                "stream 1 (audio, aac): language deu became fra",
                "stream 1 (audio, aac): its title 'Ton' is not in the output",
                "stream 2 (audio, aac): its title 'Commentary' became 'Other'",
                "the file: its comment 'of numbers' is not in the output",
                "the file: its title 'A film' became 'Another film'",
            ],
        ),
        (NoChapters, ["chapters: 2 became 0"]),
        (
            OtherChapters,
            [
                "chapter 1: its title 'one' became 'uno'",
                "chapter 1 ends at 0.400 s and not at 0.500 s",
                "chapter 2 begins at 0.600 s and not at 0.500 s",
            ],
        ),
        (OneDropped, ["stream 1 (audio, aac) is missing"]),
        (Swapped, ["the audio streams are in another order"]),
        (Doubled, ["stream 4 of the output (audio, aac) is not in the source"]),
        (OtherFont, ["stream 4 (attachment, font.ttf): its data differ"]),
        (NoFont, ["stream 4 (attachment, font.ttf) is missing"]),
        (HoleInSound, ["stream 2 (audio, aac): its packets differ (58 packets"]),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_one_thing_changed_is_one_thing_told(rich: Path, tmp_path: Path, change: type[Copy], lines: list[str]) -> None:
    report = verify(rich, change().run(rich, tmp_path / "b.mkv"))
    found = sorted(report.differences)
    assert len(found) == len(lines), found
    assert all(f.startswith(w) for f, w in zip(found, sorted(lines), strict=True)), found


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
@pytest.mark.parametrize(
    "part", [{}, {"duration": 0.7}, {"start": 0.3}, {"start": 0.55, "duration": 0.4}], ids="-".join
)
def test_outputs_of_the_job_keep_everything(rich: Path, tmp_path: Path, ending: str, part: dict[str, Any]) -> None:
    output = tmp_path / f"b.{ending}"
    process_video(rich, output, model="identity", **part)
    report = verify(rich, output, **part)
    if ending == "mkv":
        assert report.differences == []
    else:  # what it can't hold is told
        assert len(report.differences) == 1
        assert report.differences[0].startswith("stream 4 (attachment, font.ttf) is not in the output")
        assert "stream 3 (subtitle, subrip) is MP4 timed text in the output" in report.notes
    assert report.streams == (5 if ending == "mkv" else 4)


def test_packets_of_a_part_are_compared(rich: Path, tmp_path: Path) -> None:
    process_video(rich, tmp_path / "b.mkv", model="identity", start=0.3, duration=0.6)
    late = moved(1, 0.1)().run(tmp_path / "b.mkv", tmp_path / "late.mkv")
    found = verify(rich, late, start=0.3, duration=0.6).differences
    assert "stream 1 (audio, aac) begins 0.100 s later relative to the video than in the source" in found
    holed = HoleInSound().run(tmp_path / "b.mkv", tmp_path / "holed.mkv")
    found = verify(rich, holed, start=0.3, duration=0.6).differences
    assert any(d.startswith("stream 2 (audio, aac): its packets differ") for d in found)


def test_chapters_of_a_part_are_those_that_reach_into_it(rich: Path, tmp_path: Path) -> None:
    def part(chapters: list[Any]) -> list[str]:
        class Given(Copy):
            def chapters(self, found: list[Any]) -> list[Any]:
                return chapters

        process_video(rich, tmp_path / "b.mkv", model="identity", start=0.3, duration=0.6, overwrite=True)
        output = Given().run(tmp_path / "b.mkv", tmp_path / "c.mkv")
        return verify(rich, output, start=0.3, duration=0.6).differences

    assert part([{**CHAPTERS[0], "end": 200}, {**CHAPTERS[1], "start": 200, "end": 600}]) == []
    assert part([]) == ["chapters: 2 became 0"]
    assert "chapter 2 begins at 0.500 s and not at 0.200 s" in part(CHAPTERS)


# --- what the pictures are ----------------------------------------------------------------------------------------


def encoded(path: Path, codec: str = "libx264", **settings: Any) -> Path:
    """12 frames of one encoder, whose context gets ``settings``; "params" is the encoder's own string."""
    params, depth = settings.pop("params", ""), settings.pop("pix_fmt", "yuv420p")
    frames = settings.pop("frames", 12)
    with av.open(str(path), "w") as c:
        options = {f"{codec.removeprefix('lib')}-params": params, "preset": "ultrafast"}
        s: Any = c.add_stream(codec, rate=25, options=options)
        s.width, s.height, s.pix_fmt = *SIZE, depth
        for key, value in settings.items():
            if key == "flags":
                s.codec_context.flags |= value
            else:
                setattr(s.codec_context, key, value)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(i, SIZE), format="rgb24").reformat(format=depth)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            c.mux(s.encode(frame))
        c.mux(s.encode(None))
    return path


WOVEN: dict[str, Any] = {"flags": int(av.codec.context.Flags.interlaced_dct), "params": "tff=1"}


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_fields_stay_fields(tmp_path: Path, ending: str) -> None:
    woven, plain = encoded(tmp_path / "woven.mp4", **WOVEN), encoded(tmp_path / "plain.mp4")
    output = tmp_path / f"b.{ending}"
    process_video(woven, output, model="identity")
    assert verify(woven, output).differences == []
    line = "field order: 12 frames that are top field first became progressive (the first is frame 0)"
    assert verify(woven, plain).differences == [line]
    assert verify(plain, plain, interlaced="tff").differences == [line]
    other = encoded(tmp_path / "other.mp4", flags=WOVEN["flags"], params="bff=1")
    assert any("top field first became bottom field first" in d for d in verify(woven, other).differences)


@pytest.mark.parametrize("lossless", [True, False])
def test_options_about_fields_are_those_of_the_job(tmp_path: Path, lossless: bool) -> None:
    woven, plain = encoded(tmp_path / "woven.mp4", **WOVEN), encoded(tmp_path / "plain.mp4")
    process_video(woven, tmp_path / "b.mkv", model="identity", deinterlace=True, lossless=lossless)
    assert verify(woven, tmp_path / "b.mkv", deinterlace=True).differences == []
    assert not verify(woven, tmp_path / "b.mkv").same
    process_video(plain, tmp_path / "c.mkv", model="identity", interlaced="tff")
    assert verify(plain, tmp_path / "c.mkv", interlaced="tff").differences == []
    process_video(plain, tmp_path / "d.mkv", model="identity", interlaced="tff", lossless=True)
    report = verify(plain, tmp_path / "d.mkv", interlaced="tff")
    assert report.differences == []
    if report.notes:  # FFV1's frames say it where they were made from frames that do
        assert report.notes == ["field order: the container says top field first, its 12 frames do not"]


def test_hdr_metadata_is_compared(tmp_path: Path) -> None:
    display = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    tags = {"pix_fmt": "yuv420p10le", "color_primaries": 9, "color_trc": 16, "colorspace": 9, "color_range": 1}
    hdr = encoded(tmp_path / "a.mp4", "libx265", params=f"{display}:max-cll=1000,400:log-level=error", **tags)
    process_video(hdr, tmp_path / "b.mkv", model="identity")
    assert verify(hdr, tmp_path / "b.mkv").differences == []
    none = encoded(tmp_path / "c.mp4", "libx265", params="log-level=error", **tags)
    assert verify(hdr, none).differences == [
        "the mastering display metadata (SMPTE ST 2086) is not in the output",
        "the content light level (1000,400 cd/m2) is not in the output",
    ]
    other = display.replace("L(10000000,1)", "L(40000000,50)")
    dim = encoded(tmp_path / "d.mp4", "libx265", params=f"{other}:max-cll=900,400:log-level=error", **tags)
    found = verify(hdr, dim).differences
    assert any(d.startswith("mastering display G(13250,34500)") and "L(40000000,50)" in d for d in found)
    assert "content light level 1000,400 became 900,400 (cd/m2)" in found


def test_chroma_and_pixel_shape(tmp_path: Path) -> None:
    fine = encoded(tmp_path / "fine.mp4", pix_fmt="yuv444p", sample_aspect_ratio=Fraction(4, 3))
    coarse = encoded(tmp_path / "coarse.mp4")
    assert verify(fine, coarse).differences == [
        "chroma layout 4:4:4 became 4:2:0", "sample aspect ratio 4/3 became 1",
    ]  # fmt: skip
    finer = verify(coarse, encoded(tmp_path / "finer.mp4", pix_fmt="yuv444p"))
    assert finer.differences == []
    assert "chroma layout 4:2:0 became 4:4:4, which holds every value of it" in finer.notes


def test_a_lane_forgets_what_is_too_far_apart() -> None:
    lane: Lane[int] = Lane()
    for i in range(100_000):
        assert lane.push(0, i) is None
    assert (lane.loose, lane.waiting(0), lane.counts) == (True, 0, [100_000, 0])


def test_the_file_that_is_behind_is_read_first() -> None:
    """However the two are interleaved, what waits is what they interleave differently."""
    lanes: list[Lane[int]] = [Lane(), Lane()]
    pairs: list[tuple[int, int]] = []
    most = 0

    def take(side: int, item: tuple[int, int]) -> None:
        nonlocal most
        found = lanes[item[0]].push(side, item[1])
        if found is not None:
            pairs.append(found)
        most = max(most, *(lane.waiting(s) for lane in lanes for s in (0, 1)))

    even = ((lane, i) for i in range(5000) for lane in (0, 1))
    blocks = ((lane, i) for n in range(0, 5000, 50) for lane in (0, 1) for i in range(n, n + 50))
    read_together((even, blocks), take, list(lanes))
    assert len(pairs) == 10_000
    assert all(a == b for a, b in pairs)
    assert most <= 100
