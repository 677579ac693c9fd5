"""Sound of live sources: heard wherever the format takes it, with the pictures of its time, and never at their cost."""

from __future__ import annotations

import itertools
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamdeblur.jobs.live import chain
from streamdeblur.video.live.sounding import has_adts, look_ahead
from streamdeblur.video.packets import without_adts
from tests.clips import numbered_picture, read_number, read_packets, write_numbered_clip
from tests.integration.test_live import numbers_in, running, wait_for
from tests.rtsp_relay import Relay

pytestmark = pytest.mark.integration

SIZE, RATE = (160, 64), 12


@pytest.fixture(autouse=True)
def every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame is left out on a machine that stands still for a second while outputs start."""
    monkeypatch.setattr(chain, "_QUEUE", 512)


def write_clip(path: Path, codec: str, rate: int, seconds: int = 3, begin: Fraction = Fraction(0)) -> Path:
    """Numbered pictures with a tone in ``codec`` that begins after ``begin`` seconds."""
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=RATE, options={"tune": "zerolatency", "g": "6"})
        video.width, video.height = SIZE
        video.pix_fmt = "yuv420p"
        sound: Any = out.add_stream(codec, rate=rate, layout="mono")
        if codec == "g726":
            sound.codec_context.bit_rate = 32000
        for n in range(seconds * RATE):
            frame = av.VideoFrame.from_ndarray(numbered_picture(n, SIZE), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, RATE)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        resampler = av.AudioResampler(format=sound.codec_context.format, layout="mono", rate=rate)
        wave = (0.3 * np.sin(np.arange(seconds * rate) * (2 * np.pi * 440 / rate))).astype(np.float32)[None]
        size = sound.codec_context.frame_size or rate // 50
        for at in range(0, wave.shape[1] - size, size):
            chunk = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, at : at + size]), "fltp", "mono")
            chunk.sample_rate, chunk.time_base = rate, Fraction(1, rate)
            chunk.pts = at + int(begin * rate)
            for ready in resampler.resample(chunk):
                out.mux(sound.encode(ready))
        out.mux(sound.encode(None))
    return path


def loudness(path: Path | str, **options: Any) -> float:
    """Root mean square of the sound that is decoded; 0 where there is none."""
    with av.open(str(path), **options) as container:
        if not container.streams.audio:
            return 0.0
        resampler = av.AudioResampler(format="fltp", layout="mono")
        parts = [r.to_ndarray() for f in container.decode(audio=0) for r in resampler.resample(f)]
    return float(np.sqrt(np.mean(np.concatenate(parts, axis=1) ** 2))) if parts else 0.0


def lag(path: Path, source: Path) -> list[float]:
    """For each packet of sound, by how many seconds it is later than in ``source`` with respect to the pictures."""
    with av.open(str(path)) as c:
        picture = next(c.decode(video=0))
        assert picture.pts is not None
        assert picture.time_base is not None
        number = read_number(picture.to_ndarray(format="gray"))
        moved = picture.pts * picture.time_base - Fraction(number, RATE)
    times = {without_adts(data): t for t, data in read_packets(source, 1) if t is not None}
    found = [(t, without_adts(data)) for t, data in read_packets(path, 1) if t is not None]
    return [float(t - times[data] - moved) for t, data in found]


@pytest.mark.parametrize("begin", [Fraction(0), Fraction(5, 2)])
def test_sound_is_in_time_wherever_it_begins(tmp_path: Path, begin: Fraction) -> None:
    """After the first segment of HLS, or a little behind the first picture of a file."""
    clip = write_clip(tmp_path / "in.mp4", "aac", 48000, seconds=4, begin=begin)
    outputs = (f"hls:{tmp_path}/hls", *(f"{tmp_path}/whole-{e}/a.{e}" for e in ("mp4", "mov", "mkv", "ts")))
    for e in ("mp4", "mov", "mkv", "ts"):
        (tmp_path / f"whole-{e}").mkdir()
    options = {"keyframe_seconds": 0.5, "hls_seconds": 1, "hls_window": 20, "segment_seconds": 1.4}
    with running(str(clip), to=outputs, **options) as (job, _):
        wait_for(lambda: job.status().sources[0].state == "ended", "the end")
    heard = len([t for t, _ in read_packets(clip, 1) if t is not None and 0 <= t < 4])
    assert heard > 60
    groups = {e: sorted(tmp_path.glob(f"whole-{e}/*.{e}")) for e in ("mp4", "mov", "mkv", "ts")}
    assert all(len(files) >= 3 for files in groups.values())
    for name, files in {**groups, "hls": [tmp_path / "hls" / "index.m3u8"]}.items():
        late = [x for f in files for x in lag(f, clip)]
        assert late == pytest.approx([0] * heard, abs=0.0025), name  # ticks of Matroska are 1 ms


def test_sound_that_has_its_format_in_every_packet_is_heard_in_every_output(tmp_path: Path) -> None:
    # AAC in MPEG-TS: its stream says nothing of its format, and MP4 and RTSP want that said once, at the beginning.
    clip = write_numbered_clip(tmp_path / "in.ts", 3 * RATE, SIZE, rate=RATE, audio=True)
    heard: list[Any] = []
    with Relay() as relay:
        outputs = (relay.url("out"), f"hls:{tmp_path}/hls", *(f"{tmp_path}/a.{e}" for e in ("mp4", "mov", "mkv", "ts")))
        with running(str(clip), to=outputs, segment_seconds=0, loop=True, hls_window=50) as (job, seen):
            wait_for(lambda: [o.state for o in job.status().sources[0].outputs] == ["live"] * 6, "all outputs")

            def listen() -> None:
                options = {"rtsp_transport": "tcp", "timeout": "9000000"}
                with av.open(relay.url("out"), options=options) as c:
                    for frame in c.decode(audio=0):
                        heard.append(frame.to_ndarray())
                        if len(heard) == 40:
                            return

            listener = threading.Thread(target=listen)
            listener.start()
            listener.join(90)
            wait_for(lambda: len(seen.frames) >= 5 * RATE, "frames")
    assert np.sqrt(np.mean(np.concatenate(heard[4:], axis=1) ** 2)) > 0.1
    for name in ("hls/index.m3u8", "a.mp4", "a.mov", "a.mkv", "a.ts"):
        assert loudness(tmp_path / name) > 0.1, name
        assert len(numbers_in(tmp_path / name)) >= 4 * RATE, name
    assert [o.restarts for o in job.status().sources[0].outputs] == [0] * 6


@pytest.mark.parametrize(
    ("codec", "name", "rate", "without"),
    [
        ("pcm_alaw", "in.mov", 8000, {"mkv", "mp4", "ts", "hls"}),
        ("pcm_mulaw", "in.mov", 8000, {"mkv", "mp4", "ts", "hls"}),
        ("g722", "in.avi", 16000, {"mkv", "mp4", "ts", "hls"}),
        ("g726", "in.avi", 8000, {"mkv", "mp4", "ts", "hls", "rtsp"}),
        ("ac3", "in.ts", 48000, {"rtsp"}),
        ("libmp3lame", "in.ts", 48000, set()),
    ],
)
def test_sound_that_an_output_does_not_take_costs_it_no_picture(
    tmp_path: Path, caplog: Any, codec: str, name: str, rate: int, without: set[str]
) -> None:
    clip = write_clip(tmp_path / name, codec, rate)
    with Relay() as relay:
        files = {e: f"{tmp_path}/a.{e}" for e in ("mkv", "mp4", "ts")}
        outputs = {**files, "hls": f"hls:{tmp_path}/hls", "rtsp": relay.url("out")}
        with running(str(clip), to=tuple(outputs.values()), segment_seconds=0) as (job, seen):
            wait_for(lambda: job.status().sources[0].state == "ended", "the end")
            wait_for(lambda: len(seen.frames) == 3 * RATE, "all frames")
    notes = [r.getMessage() for r in caplog.records if "sound is left out" in r.getMessage()]
    assert {k for k, v in outputs.items() if any(f"output {v} of" in n for n in notes)} == without
    assert len(notes) == len(without)  # each once
    for kind in ("mkv", "mp4", "ts", "hls"):
        path = tmp_path / ("hls/index.m3u8" if kind == "hls" else f"a.{kind}")
        assert numbers_in(path) == seen.numbers, kind
        assert (loudness(path) > 0.1) == (kind not in without), kind
    assert [o.restarts for o in job.status().sources[0].outputs] == [0] * 5
    assert not any("is there again" in r.getMessage() for r in caplog.records)


def test_looking_ahead_for_sound_loses_no_packet_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    clip = write_numbered_clip(tmp_path / "in.ts", 3 * RATE, SIZE, rate=RATE, audio=True)
    with av.open(str(clip)) as c:
        sound = c.streams.audio[0]
        assert has_adts(sound)
        everything = list(c.demux())
        extradata, again = look_ahead(iter(everything), sound, lambda: False)
        assert extradata == bytes([0x11, 0x88])  # AAC LC, 48 kHz, mono: ISO/IEC 14496-3, 1.6.2.1
        assert list(again) == everything
        silent = [p for p in everything if p.stream.type == "video"]
        extradata, again = look_ahead(iter(silent), sound, lambda: False)
        assert (extradata, list(again)) == (b"", silent)
        endless = itertools.cycle(silent)
        extradata, again = look_ahead(endless, sound, lambda: False)
        assert extradata == b""
        assert list(itertools.islice(again, len(silent))) == silent
    with av.open(str(write_clip(tmp_path / "in.mp4", "aac", 48000))) as c:
        assert not has_adts(c.streams.audio[0])
