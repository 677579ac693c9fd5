"""`--detect` in the main job: every frame looked at once, in order, told, drawn; and what can't work is said before."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from streamdeblur import process_video
from streamdeblur.config import ProcessOptions
from streamdeblur.errors import OutputError, StreamdeblurError, UsageError
from streamdeblur.jobs.images import process_images
from tests.clips import read_clip, write_numbered_clip
from tests.commands import command, environment

pytestmark = pytest.mark.integration

FACTORY = """
import numpy as np
from streamdeblur.detect import Detections

def build():
    def detect(rgb):
        assert rgb.dtype == np.uint8 and rgb.shape == (64, 96, 3)
        box = np.array([[10, 12, 50, 40]], np.float32)
        return Detections(box, np.array([0.9], np.float32), np.zeros(1, np.int64), ("thing",))
    return detect

def wrong():
    def detect(rgb):
        raise RuntimeError("no such luck")
    return detect
"""


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (tmp_path / "finder.py").write_text(FACTORY)
    return write_numbered_clip(tmp_path / "in.mp4", 12, (96, 64), rate=10)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_frame_is_looked_at_told_and_drawn(clip: Path, tmp_path: Path) -> None:
    found, out = tmp_path / "found.jsonl", tmp_path / "out.mkv"
    word = f"{tmp_path / 'finder.py'}:build"
    summary = process_video(
        clip, out, model="identity", lossless=True, detect=word, detections=str(found), annotate=True
    )
    records = lines(found)
    assert [r["index"] for r in records] == list(range(12))
    assert [r["seconds"] for r in records] == pytest.approx([i / 10 for i in range(12)])
    assert {r["source"] for r in records} == {str(clip)}
    assert all(r["restored"] is True for r in records)
    (thing,) = records[5]["objects"]  # type: ignore[misc]
    assert (thing["name"], thing["box"], thing["track"]) == ("thing", [10, 12, 50, 40], 1)
    assert summary.detection is not None
    assert (summary.detection["looked"], summary.detection["dropped"], summary.detection["errors"]) == (12, 0, 0)

    plain = tmp_path / "plain.mkv"
    process_video(clip, plain, model="identity", lossless=True)
    for drawn, bare in zip(read_clip(out), read_clip(plain), strict=True):
        assert drawn.time == bare.time
        changed = np.nonzero(drawn.parts["Y"] != bare.parts["Y"])
        assert len(changed[0]) > 100  # four sides and a name
        assert 8 <= changed[1].min() <= 12
        assert changed[0].max() <= 42


def test_both_frames_are_as_they_were_decoded_and_restored(clip: Path, tmp_path: Path) -> None:
    """The writer reuses the decoder's memory; what a slow detector sees must not change under it."""
    (tmp_path / "mean.py").write_text(
        "import time\nimport numpy as np\nfrom streamdeblur.detect import Detections\n"
        "def build():\n"
        "    def detect(rgb):\n"
        "        time.sleep(0.05)\n"
        "        score = float(rgb[2:14, 60:90].mean()) / 255\n"
        "        box = np.array([[8, 8, 60, 40]], np.float32)\n"
        "        return Detections(box, np.array([score], np.float32), np.zeros(1, np.int64), ('mean',))\n"
        "    return detect\n"
    )
    found = tmp_path / "found.jsonl"
    process_video(
        clip, tmp_path / "out.mkv", model="offset:0.2,0.2,0.2", detect=f"{tmp_path / 'mean.py'}:build",
        detect_on="both", detect_threshold=0.0, detections=str(found), track=False,
    )  # fmt: skip
    for line in lines(found):
        (after,) = line["objects"]  # type: ignore[misc]
        (before,) = line["unrestored"]["objects"]  # type: ignore[index]
        assert after["score"] - before["score"] == pytest.approx(0.2, abs=0.02)


def test_a_detector_that_fails_costs_no_frame(clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out.mkv"
    summary = process_video(clip, out, model="identity", detect=f"{tmp_path / 'finder.py'}:wrong")
    assert summary.frames == 12
    assert summary.detection is not None
    assert summary.detection["errors"] == 12
    assert "no such luck" in caplog.text
    assert "12 frames were not looked at" in caplog.text


def test_a_stop_does_not_wait_for_the_detector(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "stuck.py").write_text(
        "import time\n"
        "def build():\n"
        "    def detect(rgb):\n"
        "        open('asked', 'w').close()\n"
        "        time.sleep(600)\n"
        "    return detect\n"
    )
    word = f"{tmp_path / 'stuck.py'}:build"
    process = subprocess.Popen(
        command("process", clip, "-o", tmp_path / "out.mkv", "-m", "identity", "--detect", word, "--annotate"),
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "asked").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=40)  # the detector alone would be given 60 s
    finally:
        process.kill()
    assert (process.returncode, out) == (143, "")
    assert err.splitlines()[-1].startswith("error: terminated")
    assert not (tmp_path / "out.mkv").exists()
    assert not (tmp_path / "out.mkv.partial").exists()


def test_what_cannot_work_is_said_before_anything_is_written(clip: Path, tmp_path: Path) -> None:
    out, found = tmp_path / "out.mkv", tmp_path / "found.jsonl"
    word = f"{tmp_path / 'finder.py'}:build"
    with pytest.raises(StreamdeblurError, match=r"gone\.onnx"):
        process_video(clip, out, model="identity", detect="gone.onnx")
    found.write_text("kept\n")
    with pytest.raises(OutputError, match=r"found\.jsonl exists"):
        process_video(clip, out, model="identity", detect=word, detections=str(found))
    with pytest.raises(UsageError, match="is the source itself"):
        process_video(clip, out, model="identity", detect=word, detections=str(clip), overwrite=True)
    assert found.read_text() == "kept\n"
    assert not out.exists()
    process_video(clip, out, model="identity", detect=word, detections=str(found), overwrite=True)
    assert len(lines(found)) == 12


def test_pictures_too(clip: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.jsonl"
    word = f"{tmp_path / 'finder.py'}:build"
    options = ProcessOptions(model="identity", detect=word, detections=str(found))
    summary = process_images(clip, tmp_path / "frames", options=options)
    assert summary.frames == len(lines(found)) == 12
