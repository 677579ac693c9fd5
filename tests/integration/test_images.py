"""Pictures and folders of pictures, in and out."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from streamdeblur import process_video
from streamdeblur.config import ProcessOptions
from streamdeblur.errors import BrokenStream, InputError, OutputError, UsageError
from streamdeblur.jobs.images import is_image_job, process_images
from tests.clips import numbered_picture, read_clip, read_number, write_numbered_clip

pytestmark = pytest.mark.integration

IDENTITY = ProcessOptions(model="identity")
SIZE = (97, 65)
EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6
ICC = b"ICC_PROFILE\0\x01\x01" + bytes(range(200))


def noise(dtype: type, channels: int = 3, seed: int = 0) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (65, 97, channels), dtype=dtype, endpoint=True)


def load(path: Path) -> np.ndarray:
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    assert picture is not None, path
    return picture


KINDS = [(np.uint8, 3), (np.uint8, 4), (np.uint16, 3), (np.uint8, 1)]
HOLDS = {"png": KINDS, "tif": KINDS, "bmp": KINDS[:1], "webp": KINDS[:2]}


@pytest.mark.parametrize(("ending", "dtype", "channels"), [(e, d, c) for e, kinds in HOLDS.items() for d, c in kinds])
def test_identity_keeps_every_pixel(tmp_path: Path, ending: str, dtype: type, channels: int) -> None:
    source = tmp_path / f"a.{ending}"
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if ending == "webp" else []
    cv2.imwrite(str(source), noise(dtype, channels), options)
    summary = process_images(str(source), options=IDENTITY)
    assert summary.output == str(tmp_path / f"a.deblurred.{ending}")
    assert (summary.frames, summary.width, summary.height) == (1, 97, 65)
    after = load(tmp_path / f"a.deblurred.{ending}")
    assert after.dtype == dtype
    np.testing.assert_array_equal(after, load(source))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_step_on_a_picture(tmp_path: Path, dtype: type) -> None:
    source = tmp_path / "a.png"
    cv2.imwrite(str(source), noise(dtype))
    process_images(str(source), str(tmp_path / "b.png"), options=ProcessOptions(model="offset:0.1003,-0.2002,0.3001"))
    top = int(np.iinfo(dtype).max)
    step = np.floor(np.array([0.3001, -0.2002, 0.1003]) * top + 0.5).astype(int)  # OpenCV's order: B, G, R
    np.testing.assert_array_equal(load(tmp_path / "b.png"), np.clip(load(source).astype(int) + step, 0, top))


def segment(kind: int, data: bytes) -> bytes:
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(data) + 2) + data


def test_jpeg_keeps_exif_and_profile(tmp_path: Path) -> None:
    ok, coded = cv2.imencode(".jpg", numbered_picture(5, (96, 64)), [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert ok
    data = coded.tobytes()
    source = tmp_path / "a.jpg"
    extra = segment(0xE1, EXIF) + segment(0xE2, ICC) + segment(0xFE, b"a comment")
    source.write_bytes(data[:2] + extra + data[2:])
    process_images(str(source), options=IDENTITY)
    output = (tmp_path / "a.deblurred.jpg").read_bytes()
    for part in (segment(0xE1, EXIF), segment(0xE2, ICC), segment(0xFE, b"a comment")):
        assert output.count(part) == 1
    before, after = load(source).astype(int), load(tmp_path / "a.deblurred.jpg").astype(int)
    assert before.shape == after.shape
    assert np.abs(before - after).mean() < 2


def test_png_keeps_profile_and_text(tmp_path: Path) -> None:
    ok, coded = cv2.imencode(".png", noise(np.uint8))
    assert ok
    data = coded.tobytes()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    extra = [chunk(b"iCCP", b"mine\0\0" + zlib.compress(bytes(200))), chunk(b"tEXt", b"Author\0me"),
             chunk(b"pHYs", struct.pack(">IIB", 300, 300, 1))]  # fmt: skip
    (tmp_path / "a.png").write_bytes(data[:33] + b"".join(extra) + data[33:])
    process_images(str(tmp_path / "a.png"), options=IDENTITY)
    output = (tmp_path / "a.deblurred.png").read_bytes()
    assert all(output.count(e) == 1 for e in extra)
    np.testing.assert_array_equal(load(tmp_path / "a.deblurred.png"), load(tmp_path / "a.png"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    for i in range(5):
        cv2.imwrite(str(path / f"{i:03d}.png"), numbered_picture(i, (96, 64))[..., ::-1])
    return path


def test_folder_to_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    cv2.imwrite(str(folder / "004b.jpg"), numbered_picture(9, (64, 80))[..., ::-1])  # another kind and size
    summary = process_images(str(folder), str(tmp_path / "out"), options=IDENTITY)
    assert summary.frames == summary.restored == 6
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["000.png", "001.png", "002.png", "003.png", "004.png", "004b.jpg"]
    for name in names[:5]:
        np.testing.assert_array_equal(load(tmp_path / "out" / name), load(folder / name))
    with pytest.raises(OutputError, match=r"000\.png exists"):
        process_images(str(folder), str(tmp_path / "out"), options=IDENTITY)
    with pytest.raises(UsageError, match="is the source itself"):
        process_images(str(folder), str(folder), options=ProcessOptions(model="identity", overwrite=True))


def test_folder_to_video(folder: Path, tmp_path: Path) -> None:
    assert not is_image_job(str(folder), str(tmp_path / "out.mp4"))
    summary = process_video(folder, tmp_path / "out.mp4", model="identity", lossless=True, rate=10)
    assert summary.frames == 5
    pictures = read_clip(tmp_path / "out.mp4")
    assert [float(p.time or 0) for p in pictures] == [0, 0.1, 0.2, 0.3, 0.4]
    for i, picture in enumerate(pictures):
        rgb = np.stack([picture.parts[c] for c in "RGB"], axis=-1)
        np.testing.assert_array_equal(rgb, numbered_picture(i, (96, 64)))


def test_a_part_of_a_folder_to_video(folder: Path, tmp_path: Path) -> None:
    summary = process_video(folder, tmp_path / "out.mkv", model="identity", lossless=True, rate=10, start=0.2)
    assert summary.frames == 3
    for i, picture in enumerate(read_clip(tmp_path / "out.mkv"), start=2):
        assert read_number(picture.parts["G"]) == i


def test_video_to_folder(tmp_path: Path) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 5, (96, 64))
    assert is_image_job(str(source), f"{tmp_path}/frames/")
    summary = process_images(str(source), f"{tmp_path}/frames/", options=IDENTITY)
    assert summary.frames == 5
    names = sorted(p.name for p in (tmp_path / "frames").iterdir())
    assert names == [f"a_{i:06d}.png" for i in range(5)]
    for i, name in enumerate(names):
        assert read_number(load(tmp_path / "frames" / name)[..., 1]) == i
    with pytest.raises(UsageError, match="is one picture"):
        process_images(str(source), str(tmp_path / "one.png"), options=IDENTITY)


def test_a_corrupt_picture_is_named_or_left_out(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "002.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"garbage" * 20)
    with pytest.raises(InputError, match=r"002\.png"):
        process_images(str(folder), str(tmp_path / "out"), options=IDENTITY)
    assert not list((tmp_path / "out").glob("*.partial"))
    caplog.set_level(logging.WARNING)
    options = ProcessOptions(model="identity", on_error="bypass", overwrite=True)
    summary = process_images(str(folder), str(tmp_path / "out"), options=options)
    assert summary.frames == 4
    assert sorted(p.stem for p in (tmp_path / "out").iterdir()) == ["000", "001", "003", "004"]
    assert sum("002.png" in r.getMessage() for r in caplog.records) == 1


def test_a_cut_picture_is_never_passed_off_as_whole(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), noise(np.uint8))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"a\.png"):
        process_images(str(tmp_path / "a.png"), options=IDENTITY)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("end", [0.5, 0.9])
def test_a_cut_jpeg_is_an_error_or_a_warning(tmp_path: Path, end: float, caplog: pytest.LogCaptureFixture) -> None:
    """FFmpeg's decoder would fill the rest with gray and say nothing."""
    cv2.imwrite(str(tmp_path / "a.jpg"), noise(np.uint8))
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: int(end * len(data))])
    with pytest.raises(BrokenStream, match=r"a\.jpg breaks .*--on-error bypass"):
        process_images(str(tmp_path / "a.jpg"), options=IDENTITY)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg"]
    caplog.set_level(logging.WARNING)
    process_images(str(tmp_path / "a.jpg"), options=ProcessOptions(model="identity", on_error="bypass"))
    assert load(tmp_path / "a.deblurred.jpg").shape == (65, 97, 3)
    assert sum("a.jpg breaks" in r.getMessage() for r in caplog.records) == 1


def test_a_cut_jpeg_in_a_folder_that_becomes_a_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.jpg"), noise(np.uint8, seed=i))
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:4000])
    with pytest.raises(BrokenStream, match="a picture can't be decoded whole"):
        process_video(folder, tmp_path / "b.mkv", model="identity")
    caplog.set_level(logging.WARNING)
    assert process_video(folder, tmp_path / "b.mkv", model="identity", on_error="bypass").frames == 3
    assert sum("breaks at" in r.getMessage() for r in caplog.records) == 1


def test_an_intact_jpeg_without_its_end_mark_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cv2.imwrite(str(tmp_path / "a.jpg"), noise(np.uint8))
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-2])
    process_images(str(tmp_path / "a.jpg"), options=IDENTITY)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def write_several(path: Path, count: int) -> Path:
    """A file of ``count`` pictures of one size."""
    pictures = [noise(np.uint8, seed=i) for i in range(count)]
    if path.suffix == ".tif":
        assert cv2.imwritemulti(str(path), pictures)
        return path
    with av.open(str(path), "w", format="apng") as container:
        stream: Any = container.add_stream("apng", rate=5)
        stream.width, stream.height, stream.pix_fmt = 97, 65, "rgb24"
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_further_pictures_of_a_file_are_not_left_out_in_silence(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_several(tmp_path / name, 4)
    process_images(str(source), options=IDENTITY)
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == [f"{source} holds 4 pictures: only the first is read, 3 are left out"]


@pytest.mark.parametrize(
    ("ending", "target", "dtype", "channels", "says"),
    [
        ("png", "jpg", np.uint16, 3, ["16 bits a component become 8 in .jpg"]),
        ("png", "webp", np.uint16, 3, ["16 bits a component become 8 in .webp"]),
        ("png", "jpg", np.uint8, 4, ["its alpha plane is left out of .jpg"]),
        ("png", "jpg", np.uint8, 1, ["gray becomes three components in .jpg"]),
        ("jpg", "jpg", np.uint8, 1, ["gray becomes three components in .jpg"]),
        ("jpg", "png", np.uint8, 3, []),
        ("png", "jpg", np.uint8, 3, []),
        ("png", "tif", np.uint16, 3, []),
        ("png", "webp", np.uint8, 4, []),
        ("png", "png", np.uint8, 1, []),
    ],
)
def test_what_a_type_of_picture_cannot_hold_is_told_once(
    tmp_path: Path, ending: str, target: str, dtype: type, channels: int, says: list[str], caplog: Any
) -> None:
    source = tmp_path / f"a.{ending}"
    cv2.imwrite(str(source), noise(dtype, channels))
    process_images(str(source), str(tmp_path / f"b.{target}"), options=IDENTITY)
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == len(says)
    assert all(f"{source}: {text}" in line for text, line in zip(says, said, strict=True))


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"crf": 20}, "--crf 20"),
        ({"encoder": "x265"}, "--encoder x265"),
        ({"preset": "slow"}, "--preset slow"),
        ({"lossless": True}, "--lossless"),
        ({"stream": 1}, "--stream 1"),
        ({"start": 0.5}, "--start 0.5"),
        ({"duration": 2}, "--duration 2"),
        ({"interlaced": "tff"}, "--interlaced tff"),
        ({"deinterlace": True}, "--deinterlace"),
        ({"hardware": "cuda"}, "--hardware cuda"),
        ({"rate": 30}, "--rate 30"),
    ],
)
def test_options_of_videos_are_refused_for_pictures(
    folder: Path, tmp_path: Path, options: dict[str, Any], flag: str
) -> None:
    chosen = ProcessOptions(model="identity", **options)
    picture = min(folder.iterdir())
    for source in (folder, picture):
        with pytest.raises(UsageError, match=f"^{flag} is for videos, and the source is images") as e:
            process_images(str(source), str(tmp_path / "out"), options=chosen)
        assert str(source) in str(e.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "refused"),
    [({"crf": 20}, True), ({"lossless": True}, True), ({"rate": 30}, True), ({"start": 0.04, "duration": 0.1}, False)],
)
def test_options_of_encoding_are_refused_where_pictures_come_out(
    tmp_path: Path, options: dict[str, Any], refused: bool
) -> None:
    source = write_numbered_clip(tmp_path / "a.mp4", 6, (96, 64), rate=25)
    chosen = ProcessOptions(model="identity", **options)
    if refused:
        with pytest.raises(UsageError, match="images come out"):
            process_images(str(source), f"{tmp_path}/frames/", options=chosen)
    else:
        assert process_images(str(source), f"{tmp_path}/frames/", options=chosen).frames == 3


def test_options_of_a_file_are_refused_for_a_folder(folder: Path, tmp_path: Path) -> None:
    for options, flag in (({"stream": 1}, "--stream 1"), ({"hardware": "cuda"}, "--hardware cuda")):
        with pytest.raises(UsageError, match=f"^{flag} is for a video as the source"):
            process_video(folder, tmp_path / "b.mkv", model="identity", **options)
