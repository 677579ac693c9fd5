"""Live jobs with real sockets and processes: what goes in comes out everywhere, and faults stay where they are."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest

from streamdeblur.config import parse
from streamdeblur.errors import InputError, OutputError, UnreadableInput, UsageError
from streamdeblur.frames import Frame
from streamdeblur.jobs.live import Engine, FrameMeta, LiveJob, LiveOptions, LiveStatus, chain
from streamdeblur.jobs.live.engines import LiveWork
from streamdeblur.runtime.ledger import FrameRecord, read_ledger
from streamdeblur.video.packets import without_adts
from streamdeblur.video.publish_hls import parse as parse_playlist
from tests.clips import read_number, read_packets, write_numbered_clip
from tests.commands import environment
from tests.live_feed import Feed
from tests.rtsp_relay import Relay, free_port

SIZE = (160, 64)
RATE = 12
#: Seconds that anything may take on a machine that has a lot else to do.
PATIENCE = 150.0


class Brighten:
    """A stand-in engine: adds 8 to luma, takes ``seconds``."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self) -> Callable[[Frame], tuple[Any, ...]]:
        def work(frame: Frame) -> tuple[Any, ...]:
            time.sleep(self.seconds)
            return tuple(np.full(p.shape, 8 if n == 0 else 0, np.int16) for n, p in enumerate(frame.planes))

        return work


def engine(seconds: float = 0.0) -> Engine:
    return Engine(Brighten(seconds), ("model", "bypass"), model="stand-in")


class Seen:
    """A tap that keeps what left: (index, number in the picture, meta)."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, int, FrameMeta]] = []

    def __call__(self, source: str, before: Frame, after: Frame, meta: FrameMeta) -> None:
        self.frames.append((meta.index, read_number(after.planes[0]), meta))

    @property
    def numbers(self) -> list[int]:
        return [n for _, n, _ in self.frames]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE:.0f} s for {what}")


@contextmanager
def running(*sources: str, **options: Any) -> Iterator[tuple[LiveJob, Seen]]:
    """A job on a thread of its own, and what it lets leave."""
    made = options.pop("engine", engine())
    values = {"latency_ms": 2000, "keyframe_seconds": 1, "stall": 3, "reserve_mb": 0, "preset": "ultrafast"} | options
    seen = Seen()
    job = LiveJob(sources, options=parse(LiveOptions, values), engine=made)
    job.add_tap(seen, depth=64)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            job.run()
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield job, seen
    finally:
        job.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def numbers_in(path: Path | str, **options: Any) -> list[int]:
    with av.open(str(path), **options) as container:
        return [read_number(f.to_ndarray(format="gray")) for f in container.decode(video=0)]


def more(job: LiveJob, seen: Seen, count: int = 4) -> None:
    """Wait until some frames more have left."""
    have = len(seen.frames)
    wait_for(lambda: len(seen.frames) >= have + count, f"{count} frames more; {job.status()}")


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as r:
        yield r


def test_every_output_has_the_frames_that_came(relay: Relay, tmp_path: Path) -> None:
    outputs = (relay.url("restored"), f"hls:{tmp_path}/hls", f"{tmp_path}/a.mp4", f"{tmp_path}/b.ts")
    received: list[int] = []
    with (
        Feed(relay.url("camera"), SIZE, RATE, sound=True),
        running(
            relay.url("camera"),
            to=outputs,
            segment_seconds=2,
            hls_seconds=1,
            hls_window=20,
            ledger=tmp_path / "l.jsonl",
        ) as (job, seen),
    ):
        wait_for(lambda: [o.state for o in job.status().sources[0].outputs] == ["live"] * 4, "all outputs")

        def read() -> None:
            with av.open(relay.url("restored"), options={"rtsp_transport": "tcp", "timeout": "9000000"}) as c:
                for f in c.decode(video=0):
                    received.append(read_number(f.to_ndarray(format="gray")))
                    if len(received) == 20:
                        return

        reader = threading.Thread(target=read)
        reader.start()
        wait_for(lambda: len(received) >= 20, "frames by RTSP")
        reader.join()
        wait_for(lambda: job.status().sources[0].outputs[2].segments >= 2, "two complete files")
    left = dict(zip(seen.numbers, (m for _, _, m in seen.frames), strict=True))
    assert sorted(left) == seen.numbers  # in order, none twice
    assert set(received) <= set(left)
    assert received == sorted(set(received))
    # The playlist's segments, and files with no frame lost or doubled between them.
    assert set(numbers_in(tmp_path / "hls" / "index.m3u8")) <= set(left)
    for ending in ("mp4", "ts"):
        files = sorted(tmp_path.glob(f"*.{ending}"))
        assert len(files) >= 3
        found = [n for f in files for n in numbers_in(f)]
        first = seen.numbers.index(found[0])
        assert found == seen.numbers[first:]
    assert not list(tmp_path.glob("*.partial"))
    records = [r for r in read_ledger(tmp_path / "l.jsonl") if isinstance(r, FrameRecord)]
    status = job.status().sources[0]
    assert len(records) == status.frames == status.restored + status.bypassed
    assert sum(r.status == "restored" for r in records) == status.restored > 0


def test_restored_frames_are_what_the_engine_made_of_them(tmp_path: Path) -> None:
    clip = write_numbered_clip(tmp_path / "in.mp4", 20, SIZE, rate=RATE, options={"crf": "1"})
    with running(str(clip), engine=engine(), duration=PATIENCE) as (job, seen):
        pairs: list[tuple[str, int]] = []

        def look(source: str, before: Frame, after: Frame, meta: FrameMeta) -> None:
            dark = before.planes[0] < 200
            step = np.unique(after.planes[0][dark].astype(int) - before.planes[0][dark])
            pairs.append((meta.status, int(step[0]) if len(step) == 1 else -1))

        job.add_tap(look, depth=64)
        wait_for(lambda: job.status().sources[0].state == "ended" and len(pairs) == 20, "the end of the clip")
    assert set(pairs) == {("restored", 8), ("bypassed", 0)}
    assert seen.numbers == list(range(20))


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "ts"])
def test_sound_is_copied_and_stays_with_the_pictures(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it from the first picture to the end of the last, at its times, and nothing is called lost."""
    monkeypatch.setattr(chain, "_QUEUE", 64)  # a busy machine leaves no frame out
    clip = write_numbered_clip(tmp_path / "in.mp4", 3 * RATE, SIZE, rate=RATE, audio=True)
    with running(str(clip), to=f"{tmp_path}/out.{ending}", segment_seconds=0) as (job, seen):
        wait_for(lambda: job.status().sources[0].state == "ended", "the end")
    assert len(seen.frames) == 3 * RATE
    source, result = (
        [(t, without_adts(data)) for t, data in read_packets(p, 1) if t is not None]
        for p in (clip, tmp_path / f"out.{ending}")
    )
    belongs = [(float(t), data) for t, data in source if 0 <= t < 3]
    (begun, _), *_ = read_packets(tmp_path / f"out.{ending}", 0)
    assert begun is not None
    assert [data for _, data in result] == [data for _, data in belongs]
    assert [float(t - begun) for t, _ in result] == pytest.approx([t for t, _ in belongs], abs=0.002)
    output = job.status().sources[0].outputs[0]
    assert (output.packets, output.dropped) == (3 * RATE + len(belongs), 0)


def test_players_turn_the_pictures_as_they_did(tmp_path: Path, caplog: Any) -> None:
    plain, clip = write_numbered_clip(tmp_path / "plain.mp4", 2 * RATE, SIZE, rate=RATE), tmp_path / "in.mp4"
    with av.open(str(plain)) as source, av.open(str(clip), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
        stream.set_display_rotation(90)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    files = [f"{tmp_path}/out.{e}" for e in ("mp4", "mov", "mkv", "ts")]
    # Files begin anew within the clip: what a format does not hold is told once all the same.
    with running(str(clip), to=(f"hls:{tmp_path}/hls", *files), segment_seconds=1, keyframe_seconds=0.5) as (job, _):
        wait_for(lambda: job.status().sources[0].state == "ended", "the end")

    def rotation(path: Path) -> int:
        with av.open(str(path)) as c:
            return next(c.decode(video=0)).rotation

    assert rotation(clip) == 90
    for ending, angle in (("mp4", 90), ("mov", 90), ("mkv", 90), ("ts", 0)):
        found = sorted(tmp_path.glob(f"out-*.{ending}"))
        assert len(found) >= 2
        assert [rotation(path) for path in found] == [angle] * len(found), ending
    assert rotation(tmp_path / "hls" / "index.m3u8") == 90
    notes = [r.getMessage() for r in caplog.records if "rotation" in r.getMessage()]
    assert len(notes) == 1
    assert "out.ts" in notes[0]


def test_sound_of_a_camera_is_passed_on(relay: Relay, tmp_path: Path) -> None:
    with (
        Feed(relay.url(), SIZE, RATE, sound=True),
        running(relay.url(), to=f"{tmp_path}/a.mp4", segment_seconds=0) as (job, _),
    ):
        wait_for(lambda: job.status().sources[0].outputs[0].packets > 150, "packets")
    ends = []
    for n in (0, 1):
        times = [t for t, _ in read_packets(tmp_path / "a.mp4", n) if t is not None]
        assert times == sorted(times)
        ends.append(times[-1])
    assert abs(ends[0] - ends[1]) < 1


def test_a_source_is_found_again_whatever_happens_to_it(relay: Relay, tmp_path: Path, caplog: Any) -> None:
    with (
        Feed(relay.url(), SIZE, RATE),
        running(relay.url(), to=f"{tmp_path}/a.mkv", segment_seconds=0) as (job, seen),
    ):
        more(job, seen)
        relay.kill()
        wait_for(lambda: job.status().sources[0].state == "waiting", "the loss of the server")
        relay.start()
        more(job, seen)
        relay.stop()
        wait_for(lambda: job.status().sources[0].state != "live", "the loss of a server that does nothing")
        relay.go_on()
        more(job, seen)
        before = job.status().sources[0].reconnects
        relay.obey("cut")
        wait_for(lambda: job.status().sources[0].reconnects > before, "the loss of the connection")
        more(job, seen)
        relay.obey("garbage")
        more(job, seen, 2 * RATE)
        os.kill(job.source(job.status().sources[0].name).pid or 0, signal.SIGKILL)
        more(job, seen)
        times = [m.time for _, _, m in seen.frames]
        walls = [m.wall for _, _, m in seen.frames]
    assert times == sorted(set(times))
    # Over all the gaps the time line went as fast as the clock on the wall.
    assert abs((times[-1] - times[0]) - (walls[-1] - walls[0])) < 1.0
    assert seen.numbers == sorted(set(seen.numbers))
    found = numbers_in(tmp_path / "a.mkv")
    assert found == seen.numbers[seen.numbers.index(found[0]) :]
    assert any("trying again" in r.getMessage() for r in caplog.records)


def test_who_joins_in_the_middle_of_a_keyframe_waits_for_the_next(relay: Relay, tmp_path: Path) -> None:
    """A camera that sends from where it is: the rest of a keyframe decodes to a picture that is black above, and so do
    all that refer to it."""
    relay.obey("middle")
    with (
        Feed(relay.url(), (640, 352), RATE),
        running(relay.url(), to=f"{tmp_path}/a.mp4", segment_seconds=0) as (job, seen),
    ):
        more(job, seen, 3 * RATE)
        came = job.status().sources[0].frames
    assert came - len(seen.frames) <= RATE, "but for the last ones, whoever looked saw a number in each"
    assert seen.frames[0][0] == 0
    found = numbers_in(tmp_path / "a.mp4")
    assert found[: len(seen.frames)] == seen.numbers


def test_pictures_may_change_their_size(relay: Relay, tmp_path: Path, caplog: Any) -> None:
    with running(relay.url(), to=(f"{tmp_path}/a.mp4", f"hls:{tmp_path}/hls")) as (job, seen):
        with Feed(relay.url(), SIZE, RATE):
            more(job, seen)
            wait_for(lambda: job.status().sources[0].outputs[0].packets > 5, "a file")
        with Feed(relay.url(), (320, 96), RATE):
            more(job, seen)
            wait_for(lambda: job.status().sources[0].width == 320, "the other size")
            more(job, seen, RATE)
    assert any("change from 160x64 to 320x96" in r.getMessage() for r in caplog.records)
    sizes = []
    for path in sorted(tmp_path.glob("*.mp4")):
        with av.open(str(path)) as c:
            sizes.append((c.streams.video[0].width, c.streams.video[0].height))
        assert numbers_in(path)
    assert sizes == [SIZE, (320, 96)]
    # A player of HLS is told where the other pictures begin, and still gets those before.
    _, listed, ended = parse_playlist((tmp_path / "hls" / "index.m3u8").read_text())
    heads = [s.head for s in listed]
    assert len(set(heads)) == 2
    assert [s.breaks for s in listed] == [n > 0 and heads[n] != heads[n - 1] for n in range(len(heads))]
    assert all((tmp_path / "hls" / name).stat().st_size for s in listed for name in (s.name, s.head))
    assert len({s.name for s in listed}) == len(listed)
    assert ended


def test_a_file_changes_its_size_in_mid_stream(tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # One MPEG-TS, two sequence headers: no reconnect in between. Every frame is asked for, so the queue before the
    # encoder holds them all: a machine that stands still for a second may otherwise leave one out, as documented.
    monkeypatch.setattr(chain, "_QUEUE", 64)
    parts = [
        write_numbered_clip(tmp_path / f"{n}.ts", range(12 * n, 12 * n + 12), size, rate=RATE)
        for n, size in enumerate((SIZE, (192, 64)))
    ]
    joined = tmp_path / "both.ts"
    joined.write_bytes(b"".join(p.read_bytes() for p in parts))
    with running(str(joined), to=f"{tmp_path}/out.mp4") as (job, seen):
        wait_for(lambda: job.status().sources[0].state == "ended", "the end")
        wait_for(lambda: len(seen.frames) >= 23, "the frames")
    outputs = sorted(tmp_path.glob("out*.mp4"))
    assert len(outputs) == 2
    found = [n for path in outputs for n in numbers_in(path)]
    assert found == seen.numbers
    assert set(found) >= set(range(23))


def test_a_peer_that_stalls_holds_up_nobody_else(relay: Relay, tmp_path: Path) -> None:
    with Relay() as deaf, Feed(relay.url(), (640, 352), RATE):
        deaf_outputs = (deaf.url("out"), f"{tmp_path}/a.mkv")
        with running(relay.url(), to=deaf_outputs, output_stall=1, segment_seconds=0, crf=0) as (job, seen):
            wait_for(lambda: all(o.state == "live" for o in job.status().sources[0].outputs), "the outputs")
            deaf.stop()  # its socket fills up, and nobody says anything
            wait_for(lambda: job.status().sources[0].outputs[0].stalls >= 1, f"a stall; {job.status()}")
            deaf.go_on()
            wait_for(lambda: job.status().sources[0].outputs[0].state == "live", "the peer's return")
            more(job, seen)
    found = numbers_in(tmp_path / "a.mkv")
    assert found == seen.numbers[seen.numbers.index(found[0]) :]
    assert job.status().sources[0].dropped == 0


def test_a_dead_source_is_alone_in_that(relay: Relay) -> None:
    dead = f"rtsp://127.0.0.1:{free_port()}/dead"
    with (
        Feed(relay.url(), SIZE, RATE),
        running(relay.url(), dead, f"rtsp://127.0.0.1:{free_port()}/two") as (job, seen),
    ):
        more(job, seen, 2 * RATE)
        states = {s.name: s for s in job.status().sources}
        assert states["camera"].state == "live"
        wait_for(lambda: {s.name: s for s in job.status().sources}["dead"].error == "connection refused", "its error")
    assert {m.source for _, _, m in seen.frames} == {"camera"}


def test_a_full_disk_pauses_the_file_and_nothing_else(relay: Relay, tmp_path: Path, caplog: Any) -> None:
    # The reserve is set above what is free, and then room is made by deleting a large (unwritten) file.
    block = tmp_path / "block"
    size = 2_000_000_000
    if shutil.disk_usage(tmp_path).free < 3 * size:
        pytest.skip("needs some GB of disk")
    try:
        with block.open("wb") as f:
            os.posix_fallocate(f.fileno(), 0, size)
        reserve = (shutil.disk_usage(tmp_path).free + size / 2) / 1e6
        with (
            Feed(relay.url(), SIZE, RATE),
            running(relay.url(), to=f"{tmp_path}/a.mp4", reserve_mb=reserve) as (job, seen),
        ):
            wait_for(lambda: job.status().sources[0].outputs[0].state == "disk full", "the full disk")
            more(job, seen)
            assert job.status().sources[0].outputs[0].disk_full == 1
            block.unlink()
            wait_for(lambda: job.status().sources[0].outputs[0].packets > RATE, "its going on")
    finally:
        block.unlink(missing_ok=True)
    (path,) = tmp_path.glob("*.mp4")
    assert set(numbers_in(path)) <= set(seen.numbers)
    assert sum("disk full" in r.getMessage() for r in caplog.records) == 1


def test_mpeg_ts_by_tcp(tmp_path: Path) -> None:
    clip = write_numbered_clip(tmp_path / "in.mp4", 3 * RATE, SIZE, rate=RATE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        got = bytearray()

        def receive() -> None:
            peer, _ = server.accept()
            with peer:
                while data := peer.recv(65536):
                    got.extend(data)

        thread = threading.Thread(target=receive)
        thread.start()
        with running(str(clip), to=f"tcp://127.0.0.1:{server.getsockname()[1]}", loop=True) as (_, seen):
            wait_for(lambda: len(seen.frames) > 4 * RATE, "more than the clip holds")
        thread.join(PATIENCE)
    stream = tmp_path / "got.ts"
    stream.write_bytes(got)
    found = numbers_in(stream)
    assert found == seen.numbers[seen.numbers.index(found[0]) :][: len(found)]
    assert len(found) > 2 * RATE
    # The loop begins anew without a break in the time line.
    times = [m.time for _, _, m in seen.frames]
    assert times == sorted(set(times))
    assert seen.numbers[:4] == [0, 1, 2, 3]
    assert seen.numbers.count(0) >= 2


def test_a_file_ends_the_job_and_every_frame_is_accounted_for(tmp_path: Path) -> None:
    clip = write_numbered_clip(tmp_path / "in.mp4", 2 * RATE, SIZE, rate=RATE, audio=True)
    options = {"to": [f"{tmp_path}/out.mp4"], "segment_seconds": 0, "ledger": tmp_path / "l.jsonl", "latency_ms": 300}
    job = LiveJob([str(clip)], options=parse(LiveOptions, options), engine=engine(0.2))
    summary = job.run()
    source = summary.status.sources[0]
    records = [r for r in read_ledger(tmp_path / "l.jsonl") if isinstance(r, FrameRecord)]
    assert [r.index for r in records] == list(range(2 * RATE))
    assert source.frames == 2 * RATE == source.restored + source.bypassed + source.dropped
    if not source.dropped:
        assert numbers_in(tmp_path / "out.mp4") == list(range(2 * RATE))
    assert json.loads(json.dumps(summary.as_dict()))["sources"][0]["frames"] == 2 * RATE


class SideBySide(LiveWork):
    """Gains by three threads that call it at once."""

    def __call__(self, frame: Frame, regions: Any = None) -> tuple[Any, ...]:
        return tuple(np.zeros(p.shape, np.int16) for p in frame.planes)


def test_threads_that_work_side_by_side_share_the_load(tmp_path: Path) -> None:
    clip = write_numbered_clip(tmp_path / "in.mp4", RATE, SIZE, rate=RATE)
    side_by_side = Engine(lambda: SideBySide([], at_once=3), ("model", "bypass"))
    with running(str(clip), engine=side_by_side, loop=True) as (job, _):
        wait_for(lambda: job.ladder.workers == 3, "three workers on the ladder")
        wait_for(lambda: job.status().sources[0].restored > 3, "restored frames")


def test_a_tap_that_blocks_or_fails_stops_nothing(tmp_path: Path, caplog: Any) -> None:
    clip = write_numbered_clip(tmp_path / "in.mp4", 2 * RATE, SIZE, rate=RATE)
    let_go = threading.Event()
    with running(str(clip)) as (job, seen):
        blocked = job.add_tap(lambda *_: let_go.wait(PATIENCE))

        def fail(*_: Any) -> None:
            raise ValueError("no such picture")

        failing = job.add_tap(fail, depth=100)
        wait_for(lambda: job.status().sources[0].state == "ended" and len(seen.frames) == 2 * RATE, "the end")
        assert blocked.dropped > 0
        let_go.set()
    assert failing.errors > 1
    assert sum("no such picture" in r.getMessage() for r in caplog.records) == 1


_GSTREAMER = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true ! video/x-raw,width=160,height=64,framerate=12/1 ! "
    "x264enc tune=zerolatency key-int-max=12 ! rtph264pay name=pay0 pt=96 )"
)
server.get_mount_points().add_factory("/camera", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_server_of_others_is_read_by_tcp_and_udp(transport: str) -> None:
    python = "/usr/bin/python3"
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if not Path(python).exists() or subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode:
        pytest.skip("needs the RTSP server of GStreamer: apt install gir1.2-gst-rtsp-server-1.0 and its plugins")
    server = subprocess.Popen([python, "-c", _GSTREAMER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"rtsp://127.0.0.1:{int(server.stdout.readline())}/camera"
        job = LiveJob([url], options=parse(LiveOptions, {"transport": transport}), engine=engine())
        thread = threading.Thread(target=job.run)
        thread.start()
        wait_for(lambda: job.status().sources[0].restored > RATE, "restored frames")
        job.stop()
        thread.join(PATIENCE)
    finally:
        server.kill()
        server.wait()


# --- what is refused, and how it is said ------------------------------------------------------------------------------


def test_bad_addresses_are_told_in_a_line(relay: Relay, tmp_path: Path, caplog: Any) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    with av.open(str(tmp_path / "sound.ts"), "w") as c:
        stream = c.add_stream("aac", rate=48000, layout="mono")
        chunk = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
        chunk.sample_rate = 48000
        c.mux(stream.encode(chunk))
        c.mux(stream.encode(None))
    with silent, Relay("viewer:open sesame") as guarded:
        cases = {
            f"rtsp://127.0.0.1:{free_port()}/x": "connection refused",
            relay.url("nothing"): "not found (404)",
            guarded.url("camera", "viewer:wrong-secret"): "not authorised (401)",
            f"rtsp://127.0.0.1:{silent.getsockname()[1]}/x": "no answer within 1 s",
            str(tmp_path / "sound.ts"): "no video stream in it",
        }
        options = {"give_up": 4, "stall": 1, "sources": [{"url": u, "name": f"s{n}"} for n, u in enumerate(cases)]}
        job = LiveJob(options=parse(LiveOptions, options), engine=engine())
        with pytest.raises(InputError, match=r"source s\d .* was given up: "):
            job.run()
        for source, words in zip(job.status().sources, cases.values(), strict=True):
            assert source.state == "gave up"
            assert words in (source.error or "")
    shown = caplog.text + str(job.status())
    assert "wrong-secret" not in shown
    assert "rtsp://***@127.0.0.1" in shown


def test_credentials_reach_the_server_and_no_argument_list(caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("STREAMDEBLUR_RTSP_USER", "viewer")
    monkeypatch.setenv("STREAMDEBLUR_RTSP_PASSWORD", "open/sesame")
    with (
        Relay("viewer:open/sesame") as guarded,
        Feed(guarded.url("camera", "viewer:open%2Fsesame"), SIZE, RATE),
        running(guarded.url("camera"), to=guarded.url("out"), ledger=None) as (job, seen),
    ):
        more(job, seen)
        wait_for(lambda: job.status().sources[0].outputs[0].packets > 2, "packets to the guarded server")
        pids = [job.source("camera").pid]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "streamdeblur.video" in words:
                assert "sesame" not in words
                pids.append(int(path.parent.name))
        assert len(pids) >= 3
        status = job.status()
    assert "sesame" not in caplog.text + str(status)


def test_what_can_not_be_is_refused_before_anything_is_opened(tmp_path: Path) -> None:
    def refused(kind: type[Exception], words: str, *sources: str, **options: Any) -> None:
        with pytest.raises(kind, match=words):
            LiveJob(sources, options=parse(LiveOptions, options), engine=engine())

    refused(UsageError, "no source is given")
    refused(UnreadableInput, "does not exist", f"{tmp_path}/none.mp4")
    refused(UnreadableInput, f"{tmp_path} is a folder, and live takes streams and video files", str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    refused(UnreadableInput, "is a named pipe", f"{tmp_path}/pipe")
    refused(UnreadableInput, "is a device", "/dev/null")
    refused(UnreadableInput, "can't be looked at: File name too long", "x" * 5000)
    refused(UsageError, "scheme that is not published", "rtsp://x/a", to="rtmp://x/a")
    refused(UsageError, "would both write to", "rtsp://x/a", "rtsp://x/b", to=f"{tmp_path}/a.mp4")
    refused(UsageError, "is a folder", "rtsp://x/a", to=str(tmp_path))
    (tmp_path / "notdir").touch()
    refused(
        OutputError,
        "can't make folder .*notdir/x of the output: Not a dir",
        "rtsp://x/a",
        to=f"hls:{tmp_path}/notdir/x",
    )
    refused(OutputError, "can't make folder /proc/x of the output: No such", "rtsp://x/a", to="hls:/proc/x")
    refused(OutputError, "nothing can be written into folder /proc of", "rtsp://x/a", to="/proc/a.mp4")


# --- the command ------------------------------------------------------------------------------------------------------

_COMMAND = """
import sys
from streamdeblur.cli.exits import run_and_exit
from streamdeblur.cli.live import live
run_and_exit(lambda: live.main(sys.argv[1:], prog_name="streamdeblur live", standalone_mode=False))
"""


def command(*words: str) -> list[str]:
    return [sys.executable, "-c", _COMMAND, *words]


def test_sigterm_closes_the_last_file(relay: Relay, tmp_path: Path) -> None:
    with Feed(relay.url(), SIZE, RATE):
        words = command(
            relay.url(), "--to", f"{tmp_path}/a.mp4", "--to", f"hls:{tmp_path}/hls", "--model", "identity", "--json"
        )
        job = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: list(tmp_path.glob("hls/*.m4s")), "a segment")
            job.send_signal(signal.SIGTERM)
            out, err = job.communicate(timeout=PATIENCE)
        finally:
            job.kill()
    assert job.returncode == 143, err
    (path,) = tmp_path.glob("*.mp4")
    assert numbers_in(path)
    assert not list(tmp_path.glob("*.partial"))
    assert json.loads(out)["sources"][0]["outputs"][0]["segments"] == 1
    assert "camera: " in err


def test_the_command_gives_up_with_one_line(tmp_path: Path) -> None:
    url = f"rtsp://someone:topsecret@127.0.0.1:{free_port()}/gate"
    words = command(url, "--to", "none", "--give-up", "1", "--model", "identity")
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "error: source gate (rtsp://***@127.0.0.1" in done.stderr
    assert "connection refused" in done.stderr
    assert "topsecret" not in done.stdout + done.stderr


def test_a_job_whose_outputs_took_nothing_has_failed(tmp_path: Path) -> None:
    clip = write_numbered_clip(tmp_path / "in.mp4", RATE, SIZE, rate=RATE)
    nowhere = f"rtsp://127.0.0.1:{free_port()}/out"

    def run(*outputs: str) -> subprocess.CompletedProcess[str]:
        to = [w for o in outputs for w in ("--to", o)]
        words = command(str(clip), *to, "--model", "identity")
        return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False)

    done = run(nowhere)
    assert done.returncode == 1
    assert f"error: output {nowhere} took nothing: connection refused" in done.stderr
    assert run(nowhere, f"{tmp_path}/out.mp4").returncode == 0  # one that is away is no failure of all
    assert run("none").returncode == 0


@pytest.mark.slow
def test_a_job_whose_parent_is_killed_leaves_no_process_and_a_file_that_plays(relay: Relay, tmp_path: Path) -> None:
    with Feed(relay.url(), SIZE, RATE):
        words = command(relay.url(), "--to", f"{tmp_path}/a.mp4", "--model", "identity", "--keyframe-seconds", "0.5")
        job = subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: any(p.stat().st_size > 4_000 for p in tmp_path.glob("*.partial")), "a file that grows")
            children = _children(job.pid)
            assert len(children) >= 2
        finally:
            job.kill()
            job.wait()
        wait_for(lambda: not any(Path(f"/proc/{p}/cmdline").exists() for p in children), "the end of its processes")
    (path,) = tmp_path.glob("*.mp4")
    assert numbers_in(path)


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
        int(p)
        for t in Path(f"/proc/{pid}/task").iterdir()
        if t.name != str(pid)
        for p in (t / "children").read_text().split()
    ]


def test_a_status_is_plain_values(tmp_path: Path) -> None:
    clip = write_numbered_clip(tmp_path / "in.mp4", RATE, SIZE, rate=RATE)
    statuses: list[LiveStatus] = []
    options = parse(LiveOptions, {"to": "none", "latency_ms": 300})
    LiveJob([str(clip)], options=options, engine=engine()).run(statuses.append, every=0.1)
    assert statuses
    loaded = json.loads(json.dumps(statuses[-1].as_dict()))
    assert loaded["steps"] == ["model", "bypass"]
    assert {"fps_in", "latency_p95_ms", "step", "reconnects", "outputs", "error"} <= set(loaded["sources"][0])
