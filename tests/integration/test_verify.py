"""verify: silent about a faithful output, and by name about each thing that is not."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from streamdeblur import process_video
from streamdeblur.errors import UnreadableInput
from streamdeblur.jobs.verify import verify
from tests.clips import write_numbered_clip
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
