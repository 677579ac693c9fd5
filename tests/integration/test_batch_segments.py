"""A file in segments, joined, is the file restored whole; and what can't be cut safely is not."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from streamdeblur import process_video
from streamdeblur.config import ProcessOptions
from streamdeblur.errors import InputError
from streamdeblur.jobs.batch.joining import join_segments
from streamdeblur.jobs.batch.packet_file import read_header, read_packets
from streamdeblur.jobs.batch.plan import Plan, edit_segments, make_plan, open_segment_reader
from streamdeblur.jobs.batch.restorers import Restorers
from streamdeblur.jobs.batch.segments import SegmentWork, Uncuttable
from streamdeblur.jobs.verify import verify
from streamdeblur.runtime.ledger import FrameRecord, read_ledger
from streamdeblur.video.reader import VideoReader
from tests.batching import decoded
from tests.clips import read_clip, write_numbered_clip
from tests.clips import read_packets as packets_of

pytestmark = pytest.mark.integration

SIZE = (96, 64)
CLOSED = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=2:open-gop=0:log-level=none"}
OPEN = {"x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=2:b-adapt=0:open-gop=1:log-level=none"}


def clip(path: Path, frames: int = 34, *, options: Any = None, **more: Any) -> Path:
    return write_numbered_clip(path, frames, SIZE, rate=10, options=options or CLOSED, **more)


def vfr(frames: int) -> list[int]:
    stamps = [0]
    for i in range(frames - 1):
        stamps.append(stamps[-1] + (9009, 4500, 12012)[i % 3])
    return stamps


def in_segments(source: Path, target: Path, plan: Plan, **keywords: Any) -> dict[str, int]:
    """Do every segment, last first, as workers may; join them; the ledger's counts."""
    options = ProcessOptions(**keywords, overwrite=True)
    preset = keywords.get("preset", "veryfast")  # what auto comes to without a network
    restorers = Restorers()
    folder = target.parent / "parts"
    folder.mkdir()
    packets = [folder / f"{s.number}.seg" for s in plan.segments]
    ledgers = [folder / f"{s.number}.jsonl" for s in plan.segments]
    for s in reversed(plan.segments):
        work = SegmentWork(
            s, plan, packets[s.number], str(source), folder / target.name,
            options.model_copy(update={"ledger": ledgers[s.number]}), restorers, None,
        )  # fmt: skip
        assert work.run().frames == s.frames
    assert restorers.loads == 1
    assert sorted(folder.iterdir()) == sorted([*packets, *ledgers])
    whole = options.model_copy(update={"ledger": target.with_suffix(".jsonl")})
    ledger, *_ = join_segments(str(source), target, whole, preset, packets, ledgers)
    return {k: v for k, v in ledger.counts.items() if v}


def expect_equal(source: Path, tmp_path: Path, ending: str, plan: Plan, **keywords: Any) -> None:
    whole, joined = tmp_path / f"whole{ending}", tmp_path / f"joined{ending}"
    process_video(source, whole, ledger=tmp_path / "whole.jsonl", **keywords)
    counts = in_segments(source, joined, plan, **keywords)
    a, b = read_clip(whole), read_clip(joined)
    assert [p.time for p in a] == [p.time for p in b]
    assert all(p.same(q) for p, q in zip(a, b, strict=True))
    assert counts == {"restored": len(a)}
    assert verify(source, joined).differences == []
    mine, theirs = (
        [(r.index, r.pts_in, r.pts_out, r.status) for r in read_ledger(p) if isinstance(r, FrameRecord)]
        for p in (joined.with_suffix(".jsonl"), tmp_path / "whole.jsonl")
    )
    assert mine == theirs
    assert [r[0] for r in mine] == list(range(len(a)))
    with av.open(str(joined)) as c:
        others = [s.index for s in c.streams if s.type != "video"]
    for index in others:
        assert packets_of(joined, index) == packets_of(whole, index)


@pytest.mark.parametrize("seconds", [1.0, 2.0])
@pytest.mark.parametrize(("source", "result"), [(".mp4", ".mp4"), (".mkv", ".mkv"), (".ts", ".mkv")])
def test_segmented_is_whole(tmp_path: Path, seconds: float, source: str, result: str) -> None:
    path = clip(tmp_path / f"a{source}", audio=source == ".mp4", metadata={"title": "night"})
    plan = make_plan(str(path), ProcessOptions(), seconds)
    expected = {1.0: [10, 10, 10, 4], 2.0: [20, 14]}[seconds]
    assert [s.frames for s in plan.segments] == expected, plan.whole
    # `offset` changes every plane; its result is lossless here, so that a frame done twice or swapped would show
    expect_equal(path, tmp_path, result, plan, model="offset", lossless=True)


#: Real footage: how many segments with lengths of 1, 2 and 10 seconds, or why it goes whole.
FOOTAGE: dict[str, tuple[int | str, int | str, int | str]] = {
    "ass_subtitles.mkv": ("short", "short", "short"),
    "bt2020_10bit.mp4": ("no closed keyframe", "short", "short"),
    "bt709_full_range_720p.mp4": ("short", "short", "short"),
    "chapters.mkv": ("no closed keyframe", "no closed keyframe", "short"),
    "driving_720p.mp4": (2, "short", "short"),
    "driving_highway_audio.mp4": (8, 4, "short"),
    "edit_list_rotated_hlg.mp4": ("edit list that hides", "short", "short"),
    "fixed_camera_cars.mp4": (7, 7, 2),
    "fixed_camera_pedestrians.avi": ("can't be searched", "can't be searched", "can't be searched"),
    "fixed_camera_traffic.mp4": (19, 10, 3),
    "handheld_dog_720p_audio.mp4": (2, 2, "short"),
    "hdr10_1080p.mp4": ("short", "short", "short"),
    "long_1080p_6min.mp4": (3, 3, 2),  # of its first 20 s, in groups of 250 frames
    "no_initial_keyframe.ts": ("middle of a group", "short", "short"),
    "odd_size_444_10bit.mp4": ("short", "short", "short"),
    "odd_size_vp9.mp4": ("short", "short", "short"),
    "rotated.mp4": ("short", "short", "short"),
    "sar_2x1.mp4": ("no closed keyframe", "no closed keyframe", "short"),
    "two_video_two_audio_subs.mp4": (2, 2, "short"),
    "vfr_cursed.mp4": (3, 3, "short"),
}


def first_seconds(source: Path, target: Path, seconds: int) -> Path:
    """The pictures of the beginning, packet by packet."""
    with av.open(str(source)) as a, av.open(str(target), "w") as b:
        stream = a.streams.video[0]
        copied = b.add_stream_from_template(stream, opaque=True)
        for packet in a.demux(stream):
            if packet.dts is None or packet.dts * packet.time_base >= seconds:
                break
            packet.stream = copied
            b.mux(packet)
    return target


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FOOTAGE)
def test_real_footage_in_segments_is_whole(clips: Path, tmp_path: Path, name: str) -> None:
    source = clips / name
    if name.startswith("long_"):
        source = first_seconds(source, tmp_path / name, 20)
    plans: dict[Any, Plan] = {}
    for seconds, expected in zip((1.0, 2.0, 10.0), FOOTAGE[name], strict=True):
        plan = make_plan(str(source), ProcessOptions(), seconds)
        if isinstance(expected, str):
            assert expected in (plan.whole or "")
            assert not plan.segments
        else:
            assert len(plan.segments) == expected, plan.whole
            plans[plan.segments] = plan
    if not plans:
        return
    whole = tmp_path / "whole.mkv"
    process_video(source, whole, model="identity", lossless=True)
    pictures = decoded(whole)
    assert [p for _, p in pictures] == [p for _, p in decoded(source)]  # Matroska rounds the times
    for number, plan in enumerate(plans.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        joined = folder / "joined.mkv"
        assert in_segments(source, joined, plan, model="identity", lossless=True) == {"restored": len(pictures)}
        assert decoded(joined) == pictures
        assert verify(source, joined).differences == []
        with av.open(str(joined)) as c:
            others = [s.index for s in c.streams if s.type != "video"]
        for index in others:
            assert packets_of(joined, index) == packets_of(whole, index)


def test_a_segment_is_decoded_from_its_own_keyframe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where pictures are reordered, and the decoding time of a keyframe lies before its presentation."""
    fed = 0
    decode = VideoReader._decode_packet

    def counted(reader: VideoReader, *arguments: Any) -> Any:
        nonlocal fed
        fed += 1
        return decode(reader, *arguments)

    monkeypatch.setattr(VideoReader, "_decode_packet", counted)
    for ending in (".mp4", ".mkv"):
        source = clip(tmp_path / f"a{ending}", 34)
        plan = make_plan(str(source), ProcessOptions(), 1.0)
        tick = Fraction(plan.tick)
        assert [s.frames for s in plan.segments] == [10, 10, 10, 4]
        for segment in plan.segments[1:]:
            assert segment.start is not None
            fed = 0
            with open_segment_reader(str(source), segment.start * tick, None, ProcessOptions()) as reader:
                first = next(iter(reader))
            assert first.pts == 0
            assert fed <= 4  # what the decoder holds back to put pictures in order; a group has ten


def test_segmented_is_whole_at_a_variable_rate_with_b_frames(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 31, pts=vfr(31), audio=True)
    plan = make_plan(str(path), ProcessOptions(), 0.8)
    assert len(plan.segments) == 3, plan.whole
    expect_equal(path, tmp_path, ".mp4", plan, model="identity", encoder="x264", lossless=True)


def test_a_lossy_result_keeps_times_and_numbers(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 31, pts=vfr(31))
    plan = make_plan(str(path), ProcessOptions(), 1.0)
    in_segments(path, tmp_path / "b.mp4", plan, model="identity", preset="medium", crf=30)
    assert verify(path, tmp_path / "b.mp4").differences == []
    with av.open(str(tmp_path / "b.mp4")) as c:
        packets = [p for p in c.demux(video=0) if p.size]
    assert all(a.dts < b.dts for a, b in pairwise(packets))
    assert all(p.dts <= p.pts for p in packets)
    assert any(p.dts < p.pts for p in packets)  # there are B-frames


def mid_gop(path: Path) -> Path:
    """A capture that begins between keyframes."""
    source = clip(path.with_name("all.ts"))
    with av.open(str(source)) as a, av.open(str(path), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0], opaque=True)
        for n, packet in enumerate(p for p in a.demux(video=0) if p.size):
            if n >= 4:
                packet.stream = stream
                b.mux(packet)
    return path


def trimmed(path: Path) -> Path:
    """An MP4 whose edit list hides its first frames."""
    source = clip(path.with_name("all.mp4"))
    with av.open(str(source)) as a, av.open(str(path), "w") as b:
        stream = b.add_stream_from_template(a.streams.video[0], opaque=True)
        for packet in a.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = packet.pts - 4096 * 1, packet.dts - 4096 * 1
                packet.stream = stream
                b.mux(packet)
    return path


def cut_short(path: Path) -> Path:
    source = clip(path.with_name("all.mkv"))
    path.write_bytes(source.read_bytes()[:-900])
    return path


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: clip(p / "a.mp4", options=OPEN), "no closed keyframe"),
        (lambda p: clip(p / "a.mp4", options={"x264-params": "keyint=infinite:scenecut=0"}), "no closed keyframe"),
        (lambda p: clip(p / "a.avi", codec="mpeg4", options={"g": "10"}), "can't be searched"),
        (lambda p: clip(p / "a.mkv", codec="mpeg4", options={"g": "10"}), "no closed keyframe"),
        (lambda p: mid_gop(p / "a.ts"), "middle of a group"),
        (lambda p: trimmed(p / "a.mp4"), "edit list"),
        (lambda p: cut_short(p / "a.mkv"), "damaged"),
    ],
    ids=["open", "one GOP", "AVI", "unproven codec", "mid-GOP TS", "edit list", "cut short"],
)
def test_what_is_not_safe_goes_whole(tmp_path: Path, make: Any, why: str) -> None:
    plan = make_plan(str(make(tmp_path)), ProcessOptions(on_error="bypass"), 1.0)
    assert plan.whole is not None
    assert why in plan.whole
    assert plan.segments == ()


@pytest.mark.parametrize(
    ("options", "seconds", "why"),
    [({}, 0, "off"), ({}, 3.0, "short"), ({"duration": 2.0}, 1.0, "part"), ({"deinterlace": True}, 1.0, "neighbours")],
)
def test_what_need_not_or_must_not_be_cut_goes_whole(tmp_path: Path, options: Any, seconds: float, why: str) -> None:
    plan = make_plan(str(clip(tmp_path / "a.mp4")), ProcessOptions(**options), seconds)
    assert why in (plan.whole or "")


def test_a_plan_travels(tmp_path: Path) -> None:
    import json

    plan = make_plan(str(clip(tmp_path / "a.mp4")), ProcessOptions(), 1.0)
    again = Plan.from_dict(json.loads(json.dumps(plan.as_dict())))
    assert again == plan
    assert again.print == plan.print
    assert Fraction(plan.tick) > 0
    assert make_plan(str(tmp_path / "a.mp4"), ProcessOptions(), 2.0).print != plan.print


def boxes(*entries: tuple[int, int, int, int]) -> bytes:
    body = b"\0\0\0\0" + len(entries).to_bytes(4, "big")
    for length, media, whole, fraction in entries:
        body += length.to_bytes(4, "big") + media.to_bytes(4, "big", signed=True)
        body += whole.to_bytes(2, "big") + fraction.to_bytes(2, "big")
    data = body
    for name in (b"elst", b"edts", b"trak", b"moov"):
        data = (len(data) + 8).to_bytes(4, "big") + name + data
    return data


@pytest.mark.parametrize(
    ("entries", "pieces"),
    [([], 0), ([(9, 0, 1, 0)], 1), ([(3, -1, 1, 0), (9, 0, 1, 0)], 1), ([(9, 0, 1, 0)] * 3, 3), ([(9, 0, 2, 0)], 2)],
)
def test_edit_lists_are_read(tmp_path: Path, entries: Sequence[tuple[int, int, int, int]], pieces: int) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes((16).to_bytes(4, "big") + b"ftypisom\0\0\0\0" + boxes(*entries))
    assert edit_segments(str(path)) == pieces


def test_damaged_and_foreign_segments_are_found(tmp_path: Path) -> None:
    source = clip(tmp_path / "a.mp4")
    plan = make_plan(str(source), ProcessOptions(), 1.0)
    in_segments(source, tmp_path / "b.mkv", plan, model="identity", preset="ultrafast")
    parts = tmp_path / "parts"
    packets = [parts / f"{s.number}.seg" for s in plan.segments]
    ledgers = [parts / f"{s.number}.jsonl" for s in plan.segments]
    assert len(list(read_packets(packets[0]))) == 10
    data = packets[1].read_bytes()
    options = ProcessOptions(model="identity", overwrite=True, ledger=tmp_path / "b.jsonl")
    for broken in (data[:-1], data[:-300], data[:-40] + b"x" + data[-39:]):
        packets[1].write_bytes(broken)
        with pytest.raises(InputError, match="damaged"):
            join_segments(str(source), tmp_path / "c.mkv", options, "ultrafast", packets, ledgers)
    packets[1].write_bytes(data)
    with pytest.raises(InputError, match="no segment"):
        read_header(source)
    with pytest.raises(Uncuttable, match="encoded"):
        join_segments(str(source), tmp_path / "c.mkv", options, "medium", packets, ledgers)
    with pytest.raises(Uncuttable, match="overlap"):
        join_segments(str(source), tmp_path / "c.mkv", options, "ultrafast", packets[::-1], ledgers)
    assert not (tmp_path / "c.mkv").exists()
    assert not list(tmp_path.glob("*.partial"))
