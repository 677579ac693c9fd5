"""Real clips, a wrong file among them, in one job by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from streamdeblur.jobs.verify import verify
from tests.batching import decoded
from tests.commands import environment

pytest.importorskip("ray")

pytestmark = pytest.mark.integration

CLIPS = (
    "ass_subtitles.mkv", "bt2020_10bit.mp4", "bt709_full_range_720p.mp4", "chapters.mkv", "driving_720p.mp4",
    "driving_highway_audio.mp4", "edit_list_rotated_hlg.mp4", "no_initial_keyframe.ts", "odd_size_444_10bit.mp4",
    "rotated.mp4", "two_video_two_audio_subs.mp4", "vfr_cursed.mp4",
)  # fmt: skip
WRONG = "malformed_box.mp4"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twelve_clips_and_a_wrong_file(clips: Path, tmp_path: Path) -> None:
    folder, dest = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in (*CLIPS, WRONG):
        (folder / name).symlink_to(clips / name)
    command = [
        sys.executable, "-m", "streamdeblur", "batch", folder, "-o", dest, "--model=identity", "--workers=2",
        "--segment-seconds=2", "--json", "--on-error=bypass",
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 1, done.stderr
    summary = json.loads(done.stdout)
    assert {k: v for k, v in summary["files"].items() if v} == {"done": 12, "quarantined": 1}
    assert (summary["deaths"], summary["retries"], summary["actors"]) == (0, 0, 2)
    report = json.loads((dest / "report.json").read_text())
    rows = {Path(r["source"]).name: r for r in report["results"]}
    assert rows[WRONG]["status"] == "quarantined"
    assert "can't be opened as video" in rows[WRONG]["error"]
    assert f"quarantined: {folder / WRONG}" in done.stderr
    for name in CLIPS:
        assert (rows[name]["status"], rows[name]["verified"], rows[name]["differences"]) == ("done", True, [])
        result = dest / rows[name]["output"]
        assert verify(folder / name, result).differences == []
        assert len(decoded(result)) == rows[name]["frames"]
    assert {n for n in CLIPS if rows[n]["segments"]} == {
        "driving_highway_audio.mp4",
        "two_video_two_audio_subs.mp4",
        "vfr_cursed.mp4",
    }
    page = (dest / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 24
