"""The demonstration from end to end, and the RGB clips it stands on."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.errors import DiskFull, EncoderError, OutputError, UnreadableInput, UsageError
from streamdeblur.jobs.demo import NO_WEIGHTS, DemoOptions, _replace, psnr, run_demo
from streamdeblur.models.registry import default_variant
from streamdeblur.video.simple import read_rgb, write_clip
from tests.commands import run

pytestmark = pytest.mark.integration

#: ITU-R BT.709-6 item 3: R'G'B' to Y', Cb, Cr
BT709 = np.array(
    [
        [0.2126, 0.7152, 0.0722],
        [-0.2126 / 1.8556, -0.7152 / 1.8556, 0.5],
        [0.5, -0.7152 / 1.5748, -0.0722 / 1.5748],
    ]
)


def flat(color: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> npt.NDArray[np.uint8]:
    return np.full((size[1], size[0], 3), color, np.uint8)


def test_colours_are_bt709_limited_and_tagged_so(tmp_path: Path) -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40), (17, 99, 180)]
    path = tmp_path / "flat.mp4"
    assert write_clip(path, (flat(c) for c in colors), Fraction(25), codec="ffv1") == len(colors)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.color_range, context.colorspace, context.color_primaries, context.color_trc)
        assert tuple(int(t) for t in tags) == (1, 1, 1, 1)  # H.273: limited, BT.709 three times
        for frame, color in zip(container.decode(video=0), colors, strict=True):
            y, cb, cr = BT709 @ (np.array(color) / 255)
            expected = (16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr)
            for plane, value in zip(frame.planes, expected, strict=True):
                codes = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
                assert np.abs(codes - value).max() <= 0.51
    for picture, color in zip(read_rgb(path), colors, strict=True):
        assert np.abs(picture.astype(int) - color).max() <= 3


def test_sound_and_pictures_keep_step_and_length(tmp_path: Path) -> None:
    t = np.arange(48000 * 2) / 48000
    tone = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    path = tmp_path / "tone.mp4"
    write_clip(path, [flat((90, 90, 90))] * 60, Fraction(30), audio=(tone, 48000))
    with av.open(str(path)) as container:
        times = [f.pts * f.time_base for f in container.decode(video=0)]
        assert times == [Fraction(i, 30) for i in range(60)]
    with av.open(str(path)) as container:
        heard = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert len(heard) == pytest.approx(96000, abs=2048)
    spectrum = np.abs(np.fft.rfft(heard[4800:-4800]))
    assert np.argmax(spectrum) / (len(heard) - 9600) * 48000 == pytest.approx(440, abs=2)


def test_a_failed_clip_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no frames"):
        write_clip(tmp_path / "none.mp4", [], Fraction(30))
    with pytest.raises(EncoderError, match="picture 1"):
        write_clip(tmp_path / "two.mp4", [flat((1, 2, 3)), flat((1, 2, 3), (32, 32))], Fraction(30))
    with pytest.raises(EncoderError, match="nonesuch"):
        write_clip(tmp_path / "codec.mp4", [flat((1, 2, 3))], Fraction(30), codec="nonesuch")
    assert list(tmp_path.iterdir()) == []


def test_reading_what_is_no_video_is_one_clear_error(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    with pytest.raises(UnreadableInput, match=r"text\.mp4"):
        next(read_rgb(text))


def test_psnr_of_known_differences() -> None:
    a = flat((100, 100, 100))
    assert psnr(a, a) == math.inf
    assert psnr(a, flat((110, 110, 110))) == pytest.approx(20 * math.log10(25.5), abs=1e-9)
    assert psnr(a, flat((130, 100, 100))) == pytest.approx(10 * math.log10(255**2 / 300), abs=1e-9)


def test_odd_sizes_and_empty_clips_are_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="321x180"):
        run_demo(DemoOptions(tmp_path / "out", size=(321, 180)))
    with pytest.raises(UsageError, match="no length"):
        run_demo(DemoOptions(tmp_path / "out", seconds=0.0))
    with pytest.raises(UsageError, match="no frame"):
        run_demo(DemoOptions(tmp_path / "out", seconds=0.01))
    assert not (tmp_path / "out").exists()


def test_demo_from_end_to_end(tmp_path: Path) -> None:
    stages: list[str] = []
    options = DemoOptions(tmp_path / "demo", size=(256, 144), seconds=0.4, samples=5, model="identity")
    report = run_demo(options, lambda stage, done, total: stages.append(stage))

    assert sorted(p.name for p in options.output.iterdir()) == [
        "demo.json",
        "demo.png",
        "demo_blurry.mp4",
        "demo_restored.mp4",
        "demo_sharp.mp4",
    ]
    assert list(dict.fromkeys(stages)) == ["render", "restore", "compare"]
    assert (report.model, report.frames, report.note) == ("identity", 12, None)

    blurry, restored, sharp = (list(read_rgb(p)) for p in (report.blurry, report.restored, report.sharp))
    assert len(blurry) == len(restored) == len(sharp) == 12

    def mean_psnr(pictures: list[npt.NDArray[np.uint8]]) -> float:
        errors = [((a / 255.0 - b / 255.0) ** 2).mean() for a, b in zip(pictures, sharp, strict=True)]
        return float(np.mean([-10 * math.log10(e) for e in errors]))

    assert report.psnr_blurry == pytest.approx(mean_psnr(blurry), abs=1e-3)
    assert report.psnr_restored == pytest.approx(mean_psnr(restored), abs=1e-3)
    assert report.psnr_blurry < 32  # the blur is there
    assert -1.5 < report.gain < 0.2  # identity restores nothing; encoding it again costs a little

    with av.open(str(report.restored)) as container:
        assert len(container.streams.audio) == 1
    picture = cv2.imread(str(report.picture))
    assert picture is not None
    assert picture.shape[1] > 3 * 256
    values = json.loads(report.summary.read_text())
    assert values["psnr_blurry"] == pytest.approx(report.psnr_blurry)
    assert values["restored"] == "demo_restored.mp4"


def test_without_a_model_named_the_demo_takes_what_ships_and_says_if_nothing_does(tmp_path: Path) -> None:
    variant = default_variant()
    report = run_demo(DemoOptions(tmp_path, size=(128, 72), seconds=0.1, samples=3))
    assert report.model == (variant.name if variant else "identity")
    assert report.note == (None if variant else NO_WEIGHTS)


def test_a_full_disk_and_one_that_takes_nothing_are_told(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 16384))
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    with pytest.raises(DiskFull, match=r"no space left for .*a\.mp4"):
        write_clip(small_disk / "a.mp4", [noise] * 9, Fraction(30), codec="ffv1")
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]
    with pytest.raises(DiskFull, match=r"x can't be written: No space left"):
        _replace(small_disk / "x", bytes(100_000))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match=r"a\.mp4 can't be written: Read-only file system"):
        write_clip(small_disk / "a.mp4", [noise], Fraction(30))


def test_a_size_that_is_none_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a scene of 16x16 can't be rendered"):
        run_demo(DemoOptions(tmp_path / "demo", size=(16, 16)))
    assert not (tmp_path / "demo").exists()
    done = run("demo", "--size", "²x²", cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["error: size '²x²' is not WIDTHxHEIGHT; for example 640x360"],
    )
