"""One frame is one frame everywhere: in the records, by RTSP, in HLS and in files, through a real relay."""

from __future__ import annotations

import json
import threading
from fractions import Fraction
from pathlib import Path

import av
import pytest

from streamdeblur.runtime.ledger import FrameRecord, read_ledger
from tests.clips import read_number, write_numbered_clip
from tests.integration.test_live import running, wait_for
from tests.live_feed import Feed
from tests.rtsp_relay import Relay

pytestmark = pytest.mark.integration

#: Finds the number that is drawn into the picture, and tells it as the class of what it found.
FACTORY = """
import numpy as np
from streamdeblur.detect import Detections
from tests.clips import read_number, write_numbered_clip

def build():
    def detect(rgb):
        number = read_number(rgb[..., 1].astype(int))
        box = np.array([[0, 0, 256, 16]], np.float32)
        return Detections(box, np.ones(1, np.float32), np.array([number]), ())
    return detect
"""
SIZE, RATE = (640, 352), 24


def stamped(container: av.container.InputContainer, most: int | None = None) -> list[tuple[int, Fraction]]:
    """(number in the picture, seconds) of the frames, ``most`` at most."""
    found: list[tuple[int, Fraction]] = []
    for frame in container.decode(video=0):
        if frame.pts is None and not found:  # over RTSP the first packets may have none
            continue
        assert frame.pts is not None
        assert frame.time_base is not None
        found.append((read_number(frame.to_ndarray(format="gray")), frame.pts * frame.time_base))
        if len(found) == most:
            break
    return found


def test_records_rtsp_hls_and_files_agree_on_every_frame(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "finder.py").write_text(FACTORY)
    by_rtsp: list[tuple[int, Fraction]] = []
    with (
        Relay() as relay,
        Feed(relay.url("camera"), SIZE, RATE, file=str(clips / "fixed_camera_traffic.mp4"), numbered=True),
        running(
            relay.url("camera"),
            to=(relay.url("restored"), f"hls:{tmp_path}/hls", f"{tmp_path}/out.mp4"),
            detect=f"{tmp_path / 'finder.py'}:build",
            detections=str(tmp_path / "found.jsonl"),
            ledger=tmp_path / "ledger.jsonl",
            segment_seconds=2,
            hls_seconds=1,
            hls_window=100,
        ) as (job, seen),
    ):
        wait_for(lambda: [o.state for o in job.status().sources[0].outputs] == ["live"] * 3, "all outputs")

        def read() -> None:
            with av.open(relay.url("restored"), options={"rtsp_transport": "tcp", "timeout": "9000000"}) as c:
                by_rtsp.extend(stamped(c, 2 * RATE))

        reader = threading.Thread(target=read)
        reader.start()
        reader.join(90)
        wait_for(lambda: job.status().sources[0].outputs[2].segments >= 2, "two complete files")
        # A detector on a busy machine does not see every frame.
        wait_for(lambda: len((tmp_path / "found.jsonl").read_text().splitlines()) > RATE, "records")
    assert len(by_rtsp) == 2 * RATE

    # Which number was burned into which frame: from the records of the detector, which saw the restored pictures.
    records = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert len(records) > RATE
    assert {r["source"] for r in records} == {"camera"}
    assert {r["time_base"] for r in records} == {"1/90000"}
    written = {r.index: r for r in read_ledger(tmp_path / "ledger.jsonl") if isinstance(r, FrameRecord)}
    times = {n: Fraction(meta.time).limit_denominator(90_000) for _, n, meta in seen.frames}
    left = {index: n for index, n, _ in seen.frames}
    for r in records:
        ledger = written[r["index"]]
        assert r["objects"][0]["class"] == left[r["index"]], "the record tells of the frame that left under its index"
        assert r["pts"] == ledger.pts_in == ledger.pts_out
        assert r["restored"] == (ledger.status == "restored")
        assert times[left[r["index"]]] == Fraction(r["pts"], 90_000)
    assert any(r["restored"] for r in records)

    # Every output shows the same pictures at the same times (from its own beginning), in order, none twice.
    with av.open(str(tmp_path / "hls" / "index.m3u8")) as c:
        outputs = {"RTSP": by_rtsp, "HLS": stamped(c)}
    for n, path in enumerate(sorted(tmp_path.glob("out-*.mp4"))):
        with av.open(str(path)) as c:
            outputs[f"file {n}"] = stamped(c)
    assert len(outputs) >= 4
    for name, frames in outputs.items():
        numbers = [n for n, _ in frames]
        assert numbers == sorted(set(numbers)), name
        assert set(numbers) <= set(times), name
        first, begun = frames[0]
        for number, at in frames:
            # Files of MP4 and HLS have a tick of their own.
            assert abs((at - begun) - (times[number] - times[first])) < Fraction(1, 5000), (name, number)
    together = [n for name, frames in outputs.items() if name.startswith("file") for n, _ in frames]
    assert together == [n for n in seen.numbers if n >= together[0]]
    known = {r["objects"][0]["class"] for r in records}
    assert all(known & {n for n, _ in frames} for frames in outputs.values())


def test_a_pause_of_the_source_is_as_long_in_every_output(tmp_path: Path) -> None:
    """Also where a fragment or segment ends before it: what follows must not come early."""
    # Ten frames, and ten after a pause of 1.5 s; the first behind it begins a segment.
    pts = [n * 9000 for n in range(10)] + [225_000 + n * 9000 for n in range(10)]
    clip = write_numbered_clip(tmp_path / "in.mkv", 20, (160, 64), rate=10, pts=pts)
    outputs = (f"hls:{tmp_path}/hls", f"{tmp_path}/a.mp4", f"{tmp_path}/b.ts", f"{tmp_path}/c.mkv")
    with running(str(clip), to=outputs, segment_seconds=0, keyframe_seconds=0.5, hls_seconds=1) as (job, _):
        wait_for(lambda: job.status().sources[0].state == "ended", "the end")
        wait_for(lambda: job.status().sources[0].outputs[0].packets == 20, "all packets")
    for path in ("hls/index.m3u8", "a.mp4", "b.ts", "c.mkv"):
        with av.open(str(tmp_path / path)) as c:
            frames = stamped(c)
        assert [n for n, _ in frames] == list(range(20)), path
        assert [float(at - frames[0][1]) for _, at in frames] == pytest.approx([p / 90_000 for p in pts], abs=0.002), (
            path
        )
