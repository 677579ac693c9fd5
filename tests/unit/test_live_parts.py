"""The small parts of a live job: time line, back-off, masking, targets, options, messages, half scale, pool."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamdeblur.config import load_yaml, parse
from streamdeblur.errors import ConfigError, OutputError, StreamdeblurError, UsageError
from streamdeblur.frames import ColorSpec, Frame, FrameSpec, Gap
from streamdeblur.jobs.live import engines as live_engines
from streamdeblur.jobs.live.engines import BatchingPool, LiveFrame, LiveWork, half_scale_correction, recipe_of, ticketed
from streamdeblur.jobs.live.options import LiveOptions, SourceOptions, named_sources, options_of
from streamdeblur.jobs.live.status import Meter
from streamdeblur.jobs.live.treatment import Tiles, WholeFrames, treatment_of
from streamdeblur.models import registry
from streamdeblur.models.checkpoint import Metadata, save_checkpoint
from streamdeblur.models.random_weights import random_state
from streamdeblur.models.registry import resolve
from streamdeblur.restore import Restorer
from streamdeblur.restore.planner import SpendOptions
from streamdeblur.runtime.pool import Item, Result
from streamdeblur.video.live.backoff import Backoff
from streamdeblur.video.live.clock import LiveClock
from streamdeblur.video.live.link import Link, SoundStream
from streamdeblur.video.live.source import LiveSource, SoundPacket, SourceSettings
from streamdeblur.video.live.urls import MaskFilter, mask, remember, with_credentials
from streamdeblur.video.live.wire import Decoded, Opened, Over, Picture, Sound, planes_of
from streamdeblur.video.publish_targets import parse_target, segment_path
from streamdeblur.video.tags import SourceTags

ROOT = Path(__file__).parents[2]
T = Fraction(1, 25)

# --- time line --------------------------------------------------------------------------------------------------------


def test_the_spacing_of_a_source_is_kept_whatever_the_arrivals_do() -> None:
    clock = LiveClock()
    times = [clock.video(100 + n * T, 7.0 + n * 0.04 + (0.03 if n % 3 else 0)) for n in range(10)]
    assert times == [n * T for n in range(10)]


def test_a_new_connection_goes_on_by_as_much_as_has_passed() -> None:
    clock = LiveClock()
    clock.video(Fraction(100), 50.0)
    clock.video(100 + T, 50.04)
    clock.new_session()
    assert float(clock.video(Fraction(0), 55.04)) == pytest.approx(5.04, abs=1e-4)
    assert float(clock.video(T, 55.2)) == pytest.approx(5.08, abs=1e-4)


@pytest.mark.parametrize("jump", [-3, 4000])
def test_a_clock_that_jumps_is_joined(jump: int) -> None:
    clock = LiveClock()
    for n in range(5):
        last = clock.video(1000 + n * T, n * 0.04)
    after = clock.video(Fraction(1000 + jump), 0.2)
    assert 0 < after - last < Fraction(1, 10)
    assert clock.jumps == 1
    assert clock.video(1000 + jump + T, 0.24) - after == T


def test_frames_without_or_out_of_time_still_go_forward() -> None:
    clock = LiveClock()
    stamps = [None, Fraction(5), None, 5 + 2 * T, 5 + 2 * T, 5 + T, 5 + 4 * T]
    times = [clock.video(s, n * 0.04) for n, s in enumerate(stamps)]
    assert times == sorted(set(times))
    assert float(times[-1]) == pytest.approx(0.2, abs=0.05)


def test_sound_moves_with_the_pictures_it_came_with() -> None:
    clock = LiveClock()
    assert clock.sound(Fraction(10)) is None  # nothing to be heard with yet
    clock.video(Fraction(10), 1.0)
    assert clock.sound(Fraction(10)) == 0
    assert clock.sound(Fraction(10)) is None  # twice
    assert clock.sound(Fraction(9)) is None  # before the first picture
    clock.new_session()
    assert clock.sound(Fraction(0)) is None
    start = clock.video(Fraction(0), 4.0)
    assert clock.sound(T) == start + T
    assert clock.sound(Fraction(500)) is None  # its own clock has nothing to do with that of the pictures


def test_waits_double_to_a_limit_with_jitter() -> None:
    backoff = Backoff(0.25, limit=2.0, random_state=random.Random(3))
    waits = [backoff.wait() for _ in range(8)]
    for wait, base in zip(waits, [0.25, 0.5, 1, 2, 2, 2, 2, 2], strict=True):
        assert 0.75 * base <= wait <= 1.25 * base
    assert len(set(waits[3:])) == 5
    assert backoff.wait(floor=30) > 20
    backoff.reset()
    assert backoff.wait() < 0.32


# --- credentials ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://user:pa:ss@host:554/a", "rtsp://***@host:554/a"),
        ("at rtsps://user@10.0.0.1/x and http://a:b@c/", "at rtsps://***@10.0.0.1/x and http://***@c/"),
        ("https://x/s.m3u8?id=3&token=abc.def&x=1", "https://x/s.m3u8?id=3&token=***&x=1"),
        ("srt://x:1?passphrase=aaaaaaaaaa", "srt://x:1?passphrase=***"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: ***"),
        ("rtsp://host/a", "rtsp://host/a"),
        ("rtsp://host:554/hd@2", "rtsp://host:554/hd@2"),
        ("rtsp://user:bare/slash@host/a b", "rtsp://***@host/a b"),
        ("rtsp://user:pw@[::1/a", "rtsp://***@[::1/a"),
        ("a@b.example wrote /path/x@2.mp4", "a@b.example wrote /path/x@2.mp4"),
    ],
)
def test_credentials_are_masked_by_their_form(text: str, shown: str) -> None:
    assert mask(text) == shown


def test_a_password_is_masked_wherever_it_turns_up() -> None:
    remember("rtsp://u:s%2Fcr%40t77@h/")
    assert mask("server says: s/cr@t77 is no password (s%2Fcr%40t77)") == "server says: *** is no password (***)"


def test_credentials_of_the_environment_are_for_rtsp_urls_without_any() -> None:
    world = {"STREAMDEBLUR_RTSP_USER": "me", "STREAMDEBLUR_RTSP_PASSWORD": "p/w@1234"}
    assert with_credentials("rtsp://h/a", world) == "rtsp://me:p%2Fw%401234@h/a"
    assert with_credentials("rtsp://x:y@h/a", world) == "rtsp://x:y@h/a"
    assert with_credentials("http://h/a", world) == "http://h/a"
    assert with_credentials("rtsp://h/a", {}) == "rtsp://h/a"


def test_a_log_record_loses_its_credentials(caplog: pytest.LogCaptureFixture) -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "can't open %s", ("rtsp://a:b@c/d",), None)
    assert MaskFilter().filter(record)
    assert record.getMessage() == "can't open rtsp://***@c/d"


# --- targets and options ----------------------------------------------------------------------------------------------


def test_targets_are_read_by_their_form(tmp_path: Path) -> None:
    kinds = {
        "none": ("none", ""),
        "rtsp://u:pw@h/x": ("rtsp", "rtsp"),
        f"hls:{tmp_path}/new": ("hls", "hls"),
        "udp://239.0.0.1:1234": ("stream", "mpegts"),
        "tcp://h:9": ("stream", "mpegts"),
        f"{tmp_path}/a.mp4": ("file", "mp4"),
        f"{tmp_path}/a.mkv": ("file", "matroska"),
        f"{tmp_path}/a.ts": ("file", "mpegts"),
    }
    for text, (kind, form) in kinds.items():
        target = parse_target(text)
        assert (target.kind, target.format) == (kind, form), text
        assert "pw" not in target.shown


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("rtps://h/x", UsageError, "did you mean rtsp"),
        ("hls:", UsageError, "names no folder"),
        ("a.avi", UsageError, "no container for a live recording"),
        ("a.xyz", UsageError, "no video container"),
        ("/nowhere/at/all/a.mp4", OutputError, "does not exist"),
        ("rtsp:///x", UsageError, "names no host"),
        ("tcp://h:port", UsageError, "no port from 0 to 65535"),
        ("rtsp://[::1/x", UsageError, "is no URL; an IPv6 address stands in brackets"),
    ],
)
def test_other_targets_are_refused_in_a_line(text: str, kind: type[StreamdeblurError], words: str) -> None:
    with pytest.raises(kind, match=words):
        parse_target(text)


def test_segments_are_named_by_time_and_sort_by_it(tmp_path: Path) -> None:
    base = tmp_path / "cam.mp4"
    paths = []
    for stamp in ("20260101T000000Z", "20260101T000000Z", "20260101T000000Z", "20260101T000001Z"):
        path = segment_path(base, stamp)
        path.touch()
        paths.append(path)
    assert len(set(paths)) == 4
    assert sorted(paths) == paths


def test_the_yaml_shows_every_option_with_its_default() -> None:
    path = ROOT / "configs" / "live.yaml"
    values = load_yaml(path)
    assert set(values) == set(LiveOptions.model_fields)
    assert parse(LiveOptions, values, str(path)) == parse(LiveOptions, {})
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert len(line.partition("#")[2].strip()) > 10, line


def test_sources_get_names_outputs_and_the_options_of_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GATE_PASSWORD", "xyz")
    file = tmp_path / "c.yaml"
    file.write_text(
        "to: ['hls:{name}']\ntransport: udp\nsources:\n"
        "  - url: rtsp://u:${GATE_PASSWORD}@h/main\n    name: gate\n    to: none\n"
        "  - rtsp://h/Stream%201\n"
    )
    options = parse(LiveOptions, load_yaml(file))
    found = named_sources(options, ("rtsp://h/yard/", "rtsp://k/yard"))
    assert [s.name for s in found] == ["gate", "stream-201", "yard", "yard-2"]
    assert [s.to for s in found] == [("none",), ("hls:stream-201",), ("hls:yard",), ("hls:yard-2",)]
    assert found[0].url == "rtsp://u:xyz@h/main"
    assert {s.transport for s in found} == {"udp"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "no source is given"),
        ({"sources": [{"url": "a", "name": "x"}, {"url": "b", "name": "x"}]}, "two sources are called 'x'"),
        ({"sources": ["rtsp://h/a", "rtsp://h/b"], "to": ["rtsp://u:secret@o/x"]}, r"both write to rtsp://\*\*\*@o/x"),
        ({"sources": [{"url": "a", "name": "a/b"}]}, "can't be part of a file name"),
    ],
)
def test_sources_that_can_not_be_told_apart_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        named_sources(parse(LiveOptions, values))


def test_a_source_has_options_of_its_own() -> None:
    values = {
        "detect": "a.onnx",
        "detections": "found/{name}.jsonl",
        "latency_ms": 300,
        "sources": [
            {
                "url": "rtsp://h/gate",
                "latency_ms": 900,
                "late": "drop",
                "webhook": "http://u:secret@h/x",
                "annotate": True,
            },
            {"url": "rtsp://h/yard", "detections": "-", "skip_sharp": False},
            {"url": "rtsp://h/roof", "detect": False},
        ],
    }
    job = parse(LiveOptions, values)
    gate, yard, roof = (options_of(job, s) for s in named_sources(job))
    assert (gate.latency_ms, gate.late, gate.annotate, gate.detections) == (900, "drop", True, "found/gate.jsonl")
    assert gate.webhook is not None
    assert gate.webhook.get_secret_value() == "http://u:secret@h/x"
    assert (yard.latency_ms, yard.late, yard.detections, yard.skip_sharp) == (300, "pass", "-", False)
    assert yard.webhook is None
    assert (roof.detect, roof.detections, roof.latency_ms) == (None, None, 300)
    # Checked as those of the job are, and blamed on the source.
    for wrong, words in (
        ({"latency_ms": 1}, "latency_ms 1.* in source gate"),
        ({"detect_on": "always"}, "detect_on 'always' in source gate: give restored"),
        ({"webhook": "http://u:secret@h/x"}, "webhook without a detector .* in source gate"),
    ):
        lone = parse(LiveOptions, {"sources": [{"url": "rtsp://h/gate", "name": "gate", **wrong}]})
        with pytest.raises(ConfigError, match=words) as refused:
            options_of(lone, named_sources(lone)[0])
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("rtsp://[::1/stream", r"source rtsp://\[::1/stream is no URL"),
        ("rtsp://someone:topsecret@[::1/stream", r"source rtsp://\*\*\*@\[::1/stream is no URL"),
        ("rtsp://[zz]/stream", "is no URL"),
        ("rtsp://h:99999/x", "no port from 0 to 65535"),
        ("rtsp://someone:top/secret@h/x", r"source rtsp://\*\*\*@h/x has no port .*%2F"),
        ("rtsp:///x", "names no host"),
        ("http:///x", "names no host"),
    ],
)
def test_a_source_that_is_no_url_is_told_in_a_line(url: str, words: str) -> None:
    for values in ({"sources": [url]}, {"sources": ["rtsp://h/a", {"url": url, "name": "gate"}]}):
        with pytest.raises(UsageError, match=words) as refused:
            named_sources(parse(LiveOptions, values))
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value)


def test_urls_without_a_host_may_listen() -> None:
    assert named_sources(parse(LiveOptions, {"sources": ["udp://:5000", "srt://:9000?mode=listener"]}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"latency": 100}, "latency_ms"),
        ({"sources": [{"url": "a", "nmae": "b"}]}, "nmae"),
        ({"keyframe_seconds": 5, "to": ["hls:x"]}, "a segment begins at a keyframe"),
        ({"late": "keep"}, "late"),
    ],
)
def test_the_yaml_is_strict(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(LiveOptions, values)


# --- messages ---------------------------------------------------------------------------------------------------------


def test_a_frame_crosses_a_link() -> None:
    here, there = (Link(s) for s in socket.socketpair())
    color = ColorSpec("yuv", depth=10, chroma_shift=(1, 1))
    spec = FrameSpec(7, 5, color)
    rng = np.random.default_rng(0)
    planes = [rng.integers(0, 1024, s).astype(np.uint16) for s in color.plane_shapes(7, 5)]
    here.send(Decoded(3, T, 1.5), [p.data.cast("B") for p in planes])
    message, payload = there.receive(5)
    assert message == Decoded(3, T, 1.5)
    for a, b in zip(planes_of(payload, spec), planes, strict=True):
        assert np.array_equal(a, b)
    assert not there.ready(0)
    here.close()
    assert there.ready(1)
    with pytest.raises(EOFError):
        there.receive(1)


def test_a_link_whose_reader_sleeps_does_not_block_for_ever() -> None:
    here, _there = (Link(s) for s in socket.socketpair())
    with pytest.raises(TimeoutError):
        here.send("x", [bytes(100 << 20)], timeout=0.2)


# --- what restores ----------------------------------------------------------------------------------------------------


def frame(size: tuple[int, int] = (32, 16), order: str = "progressive", seed: int = 0) -> Frame:
    color = ColorSpec("yuv", chroma_shift=(1, 1))
    rng = np.random.default_rng(seed)
    planes = tuple(rng.integers(16, 200, s).astype(np.uint8) for s in color.plane_shapes(*size))
    return Frame(0, 0, T, planes, FrameSpec(*size, color, order))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(32, 16), (33, 17)])
@pytest.mark.parametrize("order", ["progressive", "tff"])
def test_half_scale_finds_the_correction_of_the_whole_scale_where_it_is_flat(size: tuple[int, int], order: str) -> None:
    # `offset` adds one RGB step everywhere: at half the size and enlarged again it is the same step.
    restorer = Restorer("offset", device="cpu")
    f = frame(size, order)
    for a, b in zip(half_scale_correction(restorer, f), restorer.correction(f), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


def test_half_scale_of_regions_is_the_same_for_each() -> None:
    restorer = Restorer("offset", device="cpu")
    f = frame((320, 240))
    request = Tiles(SpendOptions(reuse=True))
    request.plan(f, 0)
    changed = Frame(1, 1, T, (f.planes[0].copy(), *f.planes[1:]), f.spec)
    changed.planes[0][:8, :8] = 255 - changed.planes[0][:8, :8] // 2
    plan = request.plan(changed, 0)
    assert plan.regions
    whole = restorer.correction(changed, plan.regions)
    half = half_scale_correction(restorer, changed, plan.regions)
    assert [h.shape for h in half] == [w.shape for w in whole]
    assert all(np.array_equal(h, w) for h, w in zip(half, whole, strict=True))


def test_identity_has_no_ladder_and_a_network_has_one() -> None:
    assert recipe_of(parse(LiveOptions, {"model": "identity"})).names == ("identity", "bypass")
    values = {"model": "mimo-unet", "weights": "random:1", "small_model": "none"}
    assert recipe_of(parse(LiveOptions, values)).names == ("mimo-unet", "half scale", "bypass")
    assert recipe_of(parse(LiveOptions, values | {"half_scale": False})).names == ("mimo-unet", "bypass")
    with pytest.raises(UsageError, match="unknown model"):
        recipe_of(parse(LiveOptions, values | {"small_model": "tiny"}))


@pytest.mark.parametrize(("device", "name"), [("cpu", "mimo-unet-small"), ("cuda", "mimo-unet")])
def test_a_cpu_takes_the_cheapest_network_that_ships_and_a_gpu_the_best(
    device: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for score, variant in ((24.0, "mimo-unet-small"), (25.0, "mimo-unet")):
        config = resolve(variant).config
        assert config is not None
        about = Metadata(variant, config, score=score)
        save_checkpoint(tmp_path / f"{variant}.safetensors", random_state(config, 0), about)
    monkeypatch.setattr(registry, "weights_folder", lambda: tmp_path)
    monkeypatch.setattr(live_engines, "resolve_device", lambda word: torch.device(device))
    recipe = recipe_of(parse(LiveOptions, {}))
    assert recipe.names[0] == name
    assert recipe.steps[0].restorer.model == name
    given = recipe_of(parse(LiveOptions, {"weights": str(tmp_path / "mimo-unet.safetensors")}))
    assert given.names[0] == "mimo-unet"


def test_the_limit_of_memory_is_shared_by_the_workers() -> None:
    values = {"model": "mimo-unet", "weights": "random:1", "small_model": "none", "memory": "800MB"}
    assert {s.restorer.memory for s in recipe_of(parse(LiveOptions, values)).steps} == {800_000_000}
    assert {s.restorer.memory for s in recipe_of(parse(LiveOptions, values | {"workers": 4})).steps} == {200_000_000}
    with pytest.raises(ConfigError, match="no amount of memory"):
        parse(LiveOptions, {"memory": "lots"})


def test_tiles_that_were_missed_are_planned_again() -> None:
    tiles = treatment_of(parse(LiveOptions, {"skip_sharp": False}))
    assert isinstance(tiles, Tiles)
    f = frame((64, 48))
    restorer = Restorer("offset", device="cpu")
    first = tiles.plan(f, 0)
    assert first.regions is None
    expected, counts = tiles.compose(f, restorer.correction(f, first.regions), first)
    assert counts is not None
    second = tiles.plan(f, 0)
    assert second.regions == ()
    again, counts = tiles.compose(f, (), second)
    assert counts is not None
    assert counts.reused > 0
    assert all(np.array_equal(a, b) for a, b in zip(again.planes, expected.planes, strict=True))
    # Another step of the ladder has nothing to reuse yet, and a frame that left without its correction is done anew.
    assert tiles.plan(f, 1).regions is None
    tiles.missed(second)
    assert tiles.plan(f, 0).regions is None
    nothing = treatment_of(parse(LiveOptions, {"skip_sharp": False, "reuse": False}))
    assert isinstance(nothing, WholeFrames)


class Batches:
    """A work that tells which frames came together."""

    def __init__(self, go: threading.Event) -> None:
        self.go = go
        self.calls: list[list[int]] = []

    def __call__(self, one: Frame, regions: Any = None) -> tuple[Any, ...]:
        self.go.wait(20)
        self.calls.append([one.index])
        if one.planes[0][0, 0] == 255:
            raise ValueError("a poison frame")
        return (np.full((1, 1), one.index),)

    def many(self, items: Sequence[Item]) -> list[tuple[Any, ...]]:
        frames = [f for f, _ in items]
        self.go.wait(20)
        if any(f.planes[0][0, 0] == 255 for f in frames):
            raise ValueError("a poison frame")
        self.calls.append([f.index for f in frames])
        return [(np.full((1, 1), f.index),) for f in frames]


def collect(pool: BatchingPool, count: int) -> dict[int, Result | Gap]:
    done: dict[int, Result | Gap] = {}
    limit = time.monotonic() + 30
    while len(done) < count and time.monotonic() < limit:
        done |= {r.index: r for r in pool.collect(0.2)}
    return done


def submitted(work: Callable[..., Any], frames: Sequence[LiveFrame], batch: int) -> dict[int, Result | Gap]:
    with BatchingPool(lambda: work, batch) as pool:
        for f in frames:
            pool.submit(f)
        work.go.set()  # type: ignore[attr-defined]
        return collect(pool, len(frames))


def test_frames_on_one_step_share_a_batch() -> None:
    work = Batches(threading.Event())
    small, large = frame(), frame((64, 32))
    frames = [ticketed(f, n, step) for n, (f, step) in enumerate([(large, 0), (small, 0), (large, 0), (large, 1)])]
    done = submitted(work, frames, 3)
    assert [int(done[n].corrections[0][0, 0]) for n in range(4)] == [0, 1, 2, 3]  # type: ignore[union-attr]
    together = [sorted(c) for c in work.calls if len(c) > 1]
    assert together in ([[0, 1, 2]], [[1, 2]])  # the first may have left alone before the others came
    assert [3] in work.calls


def test_a_pool_calls_a_work_that_gains_by_it_from_several_threads() -> None:
    together = threading.Barrier(2)
    work = LiveWork([(Restorer("identity", device="cpu"), False)], at_once=2)
    whole = LiveWork.__call__

    class Meeting(LiveWork):
        def __call__(self, *arguments: Any) -> Any:
            together.wait(20)  # passes only when two are in here
            return whole(work, *arguments)

    with BatchingPool(lambda: Meeting(work._steps, at_once=2), 1) as pool:
        wait_until = time.monotonic() + 20
        while pool.capacity < 2 and time.monotonic() < wait_until:
            time.sleep(0.01)
        assert pool.capacity == 2
        for n in range(2):
            pool.submit(ticketed(frame(), n, 0))
        assert sorted(collect(pool, 2)) == [0, 1]


def test_a_live_recipe_gets_ready_for_the_windows_of_reuse() -> None:
    given = {"model": "mimo-unet-small", "weights": "random:0", "device": "cpu"}
    recipe = recipe_of(parse(LiveOptions, given))
    assert (64, 256) in recipe.windows
    assert all(side > 32 for size in recipe.windows for side in size)  # more than two halos of 16
    assert recipe.share
    assert recipe_of(parse(LiveOptions, {**given, "reuse": False})).windows == ()
    assert not recipe_of(parse(LiveOptions, {**given, "workers": 2})).share


def test_a_poison_frame_spoils_no_batch() -> None:
    work = Batches(threading.Event())
    bad = frame(seed=1)
    bad.planes[0][0, 0] = 255
    frames = [ticketed(f, n, 0) for n, f in enumerate([frame(), frame(), bad, frame()])]
    done = submitted(work, frames, 4)
    assert [type(done[n]) for n in range(4)] == [Result, Result, Gap, Result]
    assert "a poison frame" in done[2].reason  # type: ignore[union-attr]


def test_a_pool_that_can_not_start_says_so() -> None:
    def factory() -> Any:
        raise UsageError("no such model")

    def use(pool: BatchingPool) -> None:
        pool.submit(ticketed(frame(), 0, 0))
        pool.collect(20)

    with BatchingPool(factory, 1) as pool, pytest.raises(UsageError, match="no such model"):
        use(pool)


def test_a_meter_looks_back_a_while() -> None:
    meter = Meter(window=10)
    for n in range(200):
        meter.add(n * 0.1, n)
    assert meter.rate(19.9) == pytest.approx(10, rel=0.02)
    p50, p95 = meter.percentiles(19.9, (0.5, 0.95))
    assert (p50, p95) == (pytest.approx(149, abs=1), pytest.approx(194, abs=1))
    assert meter.percentiles(100, (0.5,)) == (None,)
    assert meter.rate(100) == 0


def test_a_source_may_be_a_url_alone() -> None:
    options = parse(LiveOptions, {"sources": ["rtsp://h/a"], "to": "none"})
    assert options.sources == (parse(SourceOptions, {"url": "rtsp://h/a"}),)
    assert options.to == ("none",)


class _Script:
    """In place of a reading process: says what it was told to say."""

    returncode: int | None = None

    def __init__(self, *messages: tuple[Any, bytes]) -> None:
        self.link = self
        self._left = list(messages)

    def send(self, *_: Any, **__: Any) -> None:
        pass

    def ready(self, _: float) -> bool:
        return bool(self._left)

    def receive(self, _: float) -> tuple[Any, bytearray]:
        message, payload = self._left.pop(0)
        return message, bytearray(payload)

    def kill(self) -> None:
        self.returncode = -9


def test_sound_waits_for_a_picture_that_knows_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # RTSP may begin with pictures whose timestamps are not known yet.
    spec = FrameSpec(4, 2, ColorSpec("yuv", chroma_shift=(1, 1)))
    tags = SourceTags("yuv420p", "yuv", 2, 2, 2, 0, None, None, None, ())
    planes = bytes(12)
    millisecond = Fraction(1, 1000)
    script = _Script(
        (Opened("h264", Fraction(25), SoundStream(b"", "aac")), b""),
        (Sound(980, 20, millisecond), b"too early"),
        (Sound(1040, 20, millisecond), b"one"),
        (Picture(spec, tags), b""),
        (Decoded(None, millisecond, 100.0), planes),
        (Sound(1060, 20, millisecond), b"two"),
        (Decoded(None, millisecond, 100.04), planes),
        (Decoded(1080, millisecond, 100.08), planes),
        (Sound(1080, 20, millisecond), b"three"),
        (Over("finished", ""), b""),
    )
    monkeypatch.setattr("streamdeblur.video.live.source.Child", lambda _: script)
    frames: list[float] = []
    heard: list[SoundPacket] = []
    ended = threading.Event()
    source = LiveSource(
        "camera",
        "rtsp://camera/1",
        SourceSettings(),
        on_frame=lambda arrived: frames.append(round(float(arrived.time), 2)),
        on_sound=heard.append,
        on_end=lambda _: ended.set(),
    )
    source.start()
    assert ended.wait(10), f"it stands at frame {len(frames)}"
    assert frames == [0.0, 0.04, 0.08]
    assert [(p.data, round(float(p.time), 2)) for p in heard] == [(b"one", 0.04), (b"two", 0.06), (b"three", 0.08)]
