"""A detector and the page in a live job: found, told, drawn, compared, and restoring only where that pays."""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from streamdeblur.config import parse
from streamdeblur.detect import Hook, hook
from streamdeblur.errors import StreamdeblurError, UsageError
from streamdeblur.frames import Frame
from streamdeblur.jobs.live import LiveJob, LiveOptions
from tests.clips import write_numbered_clip
from tests.integration.test_live import RATE, SIZE, engine, running, wait_for
from tests.rtsp_relay import free_port

pytestmark = pytest.mark.integration

#: ``always`` finds one thing on every frame; ``bright`` is surer of what was restored.
FACTORY = """
import numpy as np
from streamdeblur.detect import Detections

built = []

def found(score):
    return Detections(
        np.array([[8, 8, 60, 40]], np.float32), np.array([score], np.float32), np.zeros(1, np.int64), ("thing",)
    )

def always():
    built.append(1)
    assert len(built) == 1, "one network serves all sources"
    return lambda rgb: found(0.9)

def rude():
    def detect(rgb):
        raise SystemExit("enough")

    return detect

def hangs():
    import pathlib, time

    def detect(rgb):
        while not pathlib.Path(__file__).with_name("go").exists():
            time.sleep(0.05)
        return found(0.9)

    return detect

def bright():
    return lambda rgb: found(0.8 if rgb[2:14, 60:90].mean() > 4 else 0.4)  # black in the clips, until it is restored
"""


@pytest.fixture
def finder(tmp_path: Path) -> Path:
    path = tmp_path / "finder.py"
    path.write_text(FACTORY)
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_numbered_clip(tmp_path / "camera.mp4", 60, SIZE, rate=RATE)


def test_what_is_found_is_told_and_drawn_and_does_not_pay(clip: Path, finder: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.jsonl"
    other = write_numbered_clip(tmp_path / "other.mp4", 60, SIZE, rate=RATE)
    word = f"{finder}:always"
    with running(
        str(clip), str(other), loop=True, detect=word, detections=str(found), annotate=True, auto=True, to="none"
    ) as (job, seen):
        wait_for(lambda: [m for *_, m in seen.frames if m.reason == "does not pay"], "a frame that was spared")
        status = wait_for(
            lambda: next((s for s in job.status().sources if s.detection and s.detection["gain"]), None), "a gain"
        )
        spared = len([m for *_, m in seen.frames if m.reason == "does not pay"])
        # One frame in twelve is restored all the same, so that it is seen when it pays again.
        wait_for(
            lambda: [m for *_, m in seen.frames[spared:] if m.status == "restored" and m.step == "model"], "a probe"
        )
    assert status.detection["errors"] == 0
    assert status.detection["gain"]["growth"] == pytest.approx(0.0)
    records = [json.loads(line) for line in found.read_text().splitlines()]
    assert {r["source"] for r in records} == {"camera", "other"}
    for name in ("camera", "other"):
        indices = [r["index"] for r in records if r["source"] == name]
        assert indices == sorted(set(indices))
    assert all(r["objects"][0]["name"] == "thing" for r in records if r["objects"])
    assert {r["restored"] for r in records} == {True, False}


def test_where_it_pays_everything_is_restored(clip: Path, finder: Path) -> None:
    with running(str(clip), loop=True, detect=f"{finder}:bright", auto=True, to="none") as (job, seen):
        pays = wait_for(
            lambda: next(
                (s.detection["gain"] for s in job.status().sources if s.detection and s.detection["gain"]
                 and s.detection["gain"]["pays"] is not None), None
            ),
            "a verdict",
        )  # fmt: skip
    assert pays["pays"] is True
    assert pays["score_after"] > pays["score_before"]
    assert not [m for *_, m in seen.frames if m.reason == "does not pay"]


def test_the_page_shows_the_job_and_asks_for_its_token(clip: Path) -> None:
    pytest.importorskip("aiohttp")
    port = free_port()
    with running(str(clip), loop=True, to="none", preview=f":{port}", preview_token="not-to-be-guessed") as (job, seen):
        wait_for(lambda: len(seen.frames) > 3, "frames")
        assert job.page == f"http://127.0.0.1:{port}/"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{job.page}api/status", timeout=20)
        assert refused.value.code == 401
        request = urllib.request.Request(f"{job.page}api/status", headers={"Authorization": "Bearer not-to-be-guessed"})
        told = json.load(urllib.request.urlopen(request, timeout=20))
        assert told["sources"][0]["name"] == "camera"
        assert told["sources"][0]["frames"] > 0
        second = LiveOptions(preview=f":{port}")
        with pytest.raises(UsageError, match=str(port)):
            LiveJob([str(clip)], options=second, engine=engine())
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5)


def test_what_cannot_work_is_said_at_once(clip: Path, finder: Path) -> None:
    with pytest.raises(StreamdeblurError, match="auto without a detector"):
        parse(LiveOptions, {"auto": True})
    with pytest.raises(StreamdeblurError, match="auto looks at both"):
        parse(LiveOptions, {"auto": True, "detect": "a.onnx", "detect_on": "blurry:0.5"})
    with pytest.raises(StreamdeblurError, match=r"gone\.onnx"):
        LiveJob([str(clip)], options=LiveOptions(detect="gone.onnx"), engine=engine())


def test_boxes_are_in_the_encoded_video(clip: Path, finder: Path, tmp_path: Path) -> None:
    import av

    out = tmp_path / "out.mp4"
    with running(str(clip), detect=f"{finder}:always", annotate=True, to=str(out), segment_seconds=0, crf=1) as (
        job,
        seen,
    ):
        wait_for(lambda: all(s.state == "ended" for s in job.status().sources), "the end")
        wait_for(lambda: len(seen.frames) >= 60, "all frames")
    (written,) = tmp_path.glob("out*.mp4")
    with av.open(str(written)) as container:
        pictures = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
    with av.open(str(clip)) as container:
        bare = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
    rows = slice(28, 39)  # below the label
    differs = np.abs(pictures[-1][rows].astype(int) - bare[-1][rows]) > 40
    assert differs[:, 4:12].any()  # the left side of the box
    assert not differs[:, 70:].any()


def test_a_source_whose_frames_can_not_be_encoded_in_time_gives_room_and_says_so(
    clip: Path, finder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def slow(hook: Hook, frame: Frame, *_: object) -> Frame:
        time.sleep(4 / RATE)
        return frame

    monkeypatch.setattr(Hook, "annotated", slow)
    ledger = tmp_path / "ledger.jsonl"
    with (
        caplog.at_level(logging.INFO, "streamdeblur"),
        running(
            str(clip), loop=True, detect=f"{finder}:always", annotate=True, ledger=ledger, latency_ms=900, to="none"
        ) as (job, _),
    ):
        wait_for(lambda: "camera: model to bypass (encoding behind)" in caplog.text, "room to be given")
        (status,) = job.status().sources
    assert 0 < status.behind <= status.dropped
    assert status.latency_ms == 900
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert "encoding behind" in {line.get("reason") for line in lines if line.get("status") == "dropped"}


def test_a_detector_that_hangs_is_told_and_the_video_goes_on(
    clip: Path, finder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hook, "_SILENCE", 0.5)
    with running(str(clip), loop=True, detect=f"{finder}:hangs", annotate=True, to="none") as (job, seen):
        stuck = wait_for(lambda: next((s for s in job.status().sources if s.detection["stuck"]), None), "a silence")
        assert stuck.detection["error"].startswith("no answer for ")
        assert "the detector of camera has given no answer for " in caplog.text
        left = len(seen.frames)
        wait_for(lambda: len(seen.frames) > left + 5, "frames that leave all the same")
        (finder.with_name("go")).touch()
        wait_for(lambda: "the detector of camera is back after " in caplog.text, "word that it is back")
        wait_for(lambda: job.status().sources[0].detection["looked"], "findings")
        assert job.status().sources[0].detection["error"] is None


def test_a_detector_that_ends_its_thread_is_tried_again(
    clip: Path, finder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(str(clip), detect=f"{finder}:rude", to="none") as (job, _):
        wait_for(lambda: job.status().sources[0].detection["errors"] > 3, "several errors")
    assert job.status().sources[0].detection["error"] == "SystemExit: enough"
    assert caplog.text.count("the detector of camera failed: SystemExit: enough") == 1
