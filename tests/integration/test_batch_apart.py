"""Restored by workers, encoded by helpers: the same results as in one place, whatever goes wrong in between."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamdeblur import process_video
from streamdeblur.config import ProcessOptions, parse
from streamdeblur.errors import ConfigError, InputError
from streamdeblur.frames import Gap
from streamdeblur.jobs import process
from streamdeblur.jobs.batch import corrections_file
from streamdeblur.jobs.batch.apart import EncodeFile, RestoreFile, Unmatched
from streamdeblur.jobs.batch.job import STATE
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.queue import WorkQueue
from streamdeblur.jobs.batch.restorers import Restorers
from streamdeblur.jobs.batch.scheduler import Scheduler
from streamdeblur.jobs.verify import verify
from streamdeblur.runtime.ledger import FrameRecord, read_ledger
from streamdeblur.runtime.pool import Result
from tests.batching import clip, decoded, expect_undisturbed, gated, lines, run_job, workers
from tests.clips import write_noise_clip, write_numbered_clip
from tests.one_ray import one_ray

ray = pytest.importorskip("ray")
pytest.importorskip("zstandard")

pytestmark = pytest.mark.integration

APART: dict[str, Any] = {"workers": 1, "helpers": 1, "encode_on": "helpers", "address": "auto"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the module, which the jobs find running and leave running."""
    with one_ray():
        yield


def records(ledger: Path) -> list[tuple[Any, ...]]:
    """What ledgers of two runs have in common."""
    found = [r for r in read_ledger(ledger) if isinstance(r, FrameRecord)]
    return [(r.index, r.pts_in, r.pts_out, r.time_base, r.status, r.tiles, r.reason) for r in found]


def in_halves(source: Path, target: Path, ledger: Path, **options: Any) -> Path:
    """A file restored and then encoded; the corrections in between."""
    corrections = target.with_suffix(".corrections")
    chosen = parse(ProcessOptions, {**options, "overwrite": True})
    first = RestoreFile(corrections, str(source), target, chosen, Restorers(), None)
    facts = first.run().as_dict()
    assert not target.exists()
    second = EncodeFile(str(source), target, chosen.model_copy(update={"ledger": ledger}), Restorers(), None)
    second.replay(corrections, facts, first.preset)
    summary = second.run()
    assert (summary.frames, summary.model) == (facts["frames"], facts["model"])
    return corrections


@pytest.mark.parametrize(
    ("pix_fmt", "options"),
    [
        ("yuv420p", {"model": "offset"}),
        ("yuv422p10le", {"model": "offset"}),
        ("yuva444p", {"model": "offset"}),
        ("gray", {"model": "offset"}),
        ("gbrp10le", {"model": "offset"}),
        ("gray16le", {"model": "offset"}),
        ("yuv420p", {"model": "mimo-unet-small", "weights": "random:3", "precision": "fp32"}),
        ("yuv420p", {"model": "offset", "interlaced": "tff"}),
        ("yuv420p", {"model": "offset", "reuse": True}),
        ("yuv420p", {"model": "offset", "start": 0.04, "duration": 0.08}),
    ],
)
def test_halves_make_the_whole(tmp_path: Path, pix_fmt: str, options: dict[str, Any]) -> None:
    source = write_noise_clip(tmp_path / "a.mkv", pix_fmt, frames=4)
    asked = {"lossless": True, **options}
    process_video(source, tmp_path / "whole.mkv", ledger=tmp_path / "whole.jsonl", **asked)
    in_halves(source, tmp_path / "b.mkv", tmp_path / "b.jsonl", **asked)
    assert decoded(tmp_path / "b.mkv") == decoded(tmp_path / "whole.mkv")
    assert records(tmp_path / "b.jsonl") == records(tmp_path / "whole.jsonl")
    assert json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])["settings"].get("reuse") is bool(
        options.get("reuse")
    )


def test_a_frame_that_fails_is_passed_through_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_noise_clip(tmp_path / "a.mkv", "yuv420p", frames=4)
    settle = process.settle

    def failing(frame: Any, done: Any, *rest: Any) -> Any:
        if isinstance(done.result, Result) and done.result.index == 2 and np.any(done.result.corrections[0]):
            done = type(done)(done.item, Gap(2, "the device has gone"), done.request)
        return settle(frame, done, *rest)

    monkeypatch.setattr(process, "settle", failing)
    in_halves(source, tmp_path / "b.mkv", tmp_path / "b.jsonl", model="offset", lossless=True, on_error="bypass")
    assert [r[4] for r in records(tmp_path / "b.jsonl")] == ["restored", "restored", "bypassed", "restored"]
    assert records(tmp_path / "b.jsonl")[2][6] == "the device has gone"
    before, after = decoded(source), decoded(tmp_path / "b.mkv")
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True, False]


def test_what_was_decoded_otherwise_or_is_damaged_is_not_encoded(tmp_path: Path) -> None:
    source = write_noise_clip(tmp_path / "a.mkv", "yuv420p", frames=3)
    other = write_noise_clip(tmp_path / "other.mkv", "yuv420p", frames=3, seed=1)
    longer = write_noise_clip(tmp_path / "longer.mkv", "yuv420p", frames=4)
    corrections = in_halves(source, tmp_path / "b.mkv", tmp_path / "b.jsonl", model="offset", lossless=True)
    data = corrections.read_bytes()
    facts = {"model": "offset", "device": "cpu", "engine": "eager", "precision": "fp32", "workers": 1}

    def encode(path: Path) -> None:
        job = EncodeFile(str(path), tmp_path / "c.mkv", ProcessOptions(lossless=True), Restorers(), None)
        job.replay(corrections, facts, "ultrafast")
        job.run()

    with pytest.raises(Unmatched, match="frame 0 is not what was restored"):
        encode(other)
    with pytest.raises(Unmatched, match="frame 3 is not what was restored"):
        encode(longer)
    short = write_noise_clip(tmp_path / "short.mkv", "yuv420p", frames=2)
    with pytest.raises(Unmatched, match="more frames"):
        encode(short)
    for broken in (data[:-1], data[: len(data) // 2], data[:-60] + b"x" + data[-59:]):
        corrections.write_bytes(broken)
        with pytest.raises(Unmatched, match=r"can't be read|not what was restored"):
            encode(source)
    with pytest.raises(InputError, match="no corrections"):
        list(corrections_file.read_frames(source))
    assert not list(tmp_path.glob("c.mkv*"))


def test_corrections_of_any_size_survive(tmp_path: Path) -> None:
    path = tmp_path / "c"
    rng = np.random.default_rng(0)
    sent = [
        (np.zeros((3, 5), np.int32), np.full((2, 2), -128), np.full((2, 2), 127)),
        (rng.integers(-129, 129, (3, 5)), np.full((2, 2), 40_000), np.full((2, 2), -(1 << 16))),
    ]
    out = corrections_file.CorrectionsFile(path)
    for n, planes in enumerate(sent):
        out.add_frame(corrections_file.Kept(n, n, "restored", None, "w", 0.5, None, planes))
    out.finish()
    found = list(corrections_file.read_frames(path))
    assert [k.index for k in found] == [0, 1]
    for k, planes in zip(found, sent, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(k.corrections, planes, strict=True))


def test_helpers_encode_what_workers_restore(cluster: None, tmp_path: Path) -> None:
    source = tmp_path / "in"
    clip(source / "long.mkv", 90, audio=True)
    clip(source / "short.mkv", 8)
    # The film's own packets of sound, and a format that goes whole.
    write_numbered_clip(source / "old.avi", 12, (96, 64), rate=10, codec="mpeg4")
    dest = tmp_path / "out"
    summary = run_job(source, dest, **APART, verify=True)
    assert (summary.exit_code, summary.deaths, summary.retries) == (0, 0, 0)
    assert sorted((line["number"]) for line in lines(dest, "restored")) == [-1, -1, 0, 1, 2]
    assert {r["output"]: r["segments"] for r in summary.rows} == {"long.mkv": 3, "short.mkv": 0, "old.mkv": 0}
    assert sum(summary.nodes.values()) == 110  # each frame is restored once
    for name, frames in (("long.mkv", 90), ("short.mkv", 8), ("old.mkv", 12)):
        original = source / name if name != "old.mkv" else source / "old.avi"
        assert verify(original, dest / name).differences == []
        process_video(original, tmp_path / "whole.mkv", model="offset", lossless=True, overwrite=True)
        assert decoded(dest / name) == decoded(tmp_path / "whole.mkv")
        ledger = dest / STATE / "ledgers" / f"{name}.jsonl"
        assert [r[0] for r in records(ledger)] == list(range(frames))
    assert not (dest / STATE / "segments").exists()
    assert run_job(source, dest, **APART, verify=True).resumed == 3


def test_corrections_that_get_damaged_cost_a_second_try_in_one_place(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = clip(tmp_path / "a.mkv", 60), tmp_path / "out"
    booked = Scheduler._restored

    def damaging(self: Scheduler, state: Any, outcome: Any) -> None:
        for path in (dest / STATE / "segments").rglob("*.corrections"):
            path.write_bytes(path.read_bytes()[:-5])
        booked(self, state, outcome)

    monkeypatch.setattr(Scheduler, "_restored", damaging)
    summary = run_job(source, dest, **APART)
    assert summary.exit_code == 0
    assert any("restored and encoded in one place" in text for text in summary.rows[0]["warnings"])
    expect_undisturbed(source, dest / "a.mkv", 60)


def test_what_was_restored_is_encoded_by_the_next_driver(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, dest = tmp_path / "in", tmp_path / "out"
    clip(source / "a.mkv", 60)
    clip(source / "b.mkv", 8)

    def stop(snapshot: Any) -> None:
        if len(lines(dest, "restored")) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WorkQueue, "encode", lambda self, state, number: None)  # no helper ever comes to it
        with pytest.raises(KeyboardInterrupt):
            run_job(source, dest, progress=stop, **APART)
    never = tmp_path / "never"
    summary = run_job(source, dest, build=gated(never), **APART)  # whatever were restored again would wait for ever
    assert summary.exit_code == 0
    assert len(lines(dest, "restored")) == 3
    for name, frames in (("a.mkv", 60), ("b.mkv", 8)):
        process_video(source / name, tmp_path / "whole.mkv", model="offset", lossless=True, overwrite=True)
        assert decoded(dest / name) == decoded(tmp_path / "whole.mkv")
        assert [r[0] for r in records(dest / STATE / "ledgers" / f"{name}.jsonl")] == list(range(frames))


def test_killed_actors_cost_nothing(cluster: None, tmp_path: Path) -> None:
    source, dest = clip(tmp_path / "a.mkv", 120), tmp_path / "out"
    killed: list[int] = []

    def kill(snapshot: Any) -> None:
        if not killed and lines(dest, "restored"):
            for process_ in workers():
                killed.append(process_.pid)
                os.kill(process_.pid, signal.SIGKILL)

    gate = tmp_path / "gate"
    summary = run_job(
        source,
        dest,
        progress=lambda s: (kill(s), gate.touch() if killed else None),
        build=gated(tmp_path, gate, every=40),  # the first segment passes, the second waits for the kill
        **APART,
        attempts=5,
    )
    assert killed
    assert summary.exit_code == 0
    expect_undisturbed(source, dest / "a.mkv", 120)


def test_helpers_that_nobody_asked_for() -> None:
    with pytest.raises(ConfigError, match="encode_on helpers needs some"):
        parse(BatchOptions, {"encode_on": "helpers"})
