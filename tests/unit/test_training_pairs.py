"""Pairs on disk: every layout, and what is wrong with a set, said in one line; RealBlur's alignment."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from streamdeblur.errors import InputError, StreamdeblurError, UnreadableInput, UsageError
from streamdeblur.training.alignment import align
from streamdeblur.training.pairs import Pair, find_pairs, header_size, read_pair

Picture = npt.NDArray[np.uint8]


def put(path: Path, value: int = 0, size: tuple[int, int] = (12, 8)) -> Path:
    """A picture of one colour: red ``value``, green 1, blue 2; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.empty((size[1], size[0], 3), np.uint8)
    picture[:] = (2, 1, value)  # OpenCV writes blue first
    assert cv2.imwrite(str(path), picture)
    return path


def both(base: Path, name: str, value: int = 10, *, blur: str = "blur", sharp: str = "sharp") -> None:
    put(base / blur / name, value)
    put(base / sharp / name, value + 100)


def names(pairs: list[Pair]) -> list[str]:
    return [p.name for p in pairs]


def reds(pair: Pair) -> tuple[int, int]:
    blur, sharp = read_pair(pair)
    return int(blur[0, 0, 0]), int(sharp[0, 0, 0])


def test_plain_folders_serve_both_splits(tmp_path: Path) -> None:
    for i in (2, 1):
        both(tmp_path, f"{i}.png", i)
    for split in ("train", "test"):
        found = find_pairs(tmp_path, split=split)
        assert names(found) == ["1", "2"]
        assert [reds(p) for p in found] == [(1, 101), (2, 102)]


def test_pictures_in_folders_inside_the_sides_are_pairs_too(tmp_path: Path) -> None:
    both(tmp_path, "b.png", 1)
    for scene, value in (("close-ups", 2), ("long/shot", 3)):
        both(tmp_path, f"{scene}/b.png", value)
    put(tmp_path / "blur" / ".thumbnails" / "b.png")
    put(tmp_path / "sharp" / "@eaDir" / "b.png")
    for layout in ("auto", "hide"):
        found = find_pairs(tmp_path, layout=layout, split="test")
        assert names(found) == ["b", "close-ups/b", "long/shot/b"]
        assert [reds(p) for p in found] == [(1, 101), (2, 102), (3, 103)]
    put(tmp_path / "sharp" / "long" / "c.png")
    with pytest.raises(InputError, match=r"sharp.long.c\.png has no partner in .*blur;"):
        find_pairs(tmp_path)


def test_a_split_inside_a_side_is_refused(tmp_path: Path) -> None:
    both(tmp_path, "a.png")
    both(tmp_path, "test/b.png")
    with pytest.raises(InputError, match=r"blur.test is a split inside one side; put blur/ and sharp/ into"):
        find_pairs(tmp_path)


def test_suffixes_of_the_two_sides_may_differ(tmp_path: Path) -> None:
    put(tmp_path / "blur" / "a.png", 5)
    put(tmp_path / "sharp" / "a.bmp", 6)
    assert reds(find_pairs(tmp_path)[0]) == (5, 6)


def test_flattened_gopro_keeps_the_splits_apart(tmp_path: Path) -> None:
    both(tmp_path / "train", "a.png")
    both(tmp_path / "test", "b.png")
    assert names(find_pairs(tmp_path)) == ["a"]
    assert names(find_pairs(tmp_path, split="test")) == ["b"]


def test_nested_gopro_with_and_without_gamma(tmp_path: Path) -> None:
    for sequence in ("GOPR0372_07_00", "GOPR0374_11_01"):
        both(tmp_path / "train" / sequence, "000047.png", 20)
        put(tmp_path / "train" / sequence / "blur_gamma" / "000047.png", 30)
    expected = ["GOPR0372_07_00/000047", "GOPR0374_11_01/000047"]
    assert names(find_pairs(tmp_path)) == expected
    assert reds(find_pairs(tmp_path)[0]) == (20, 120)
    gamma = find_pairs(tmp_path, layout="gopro_gamma")
    assert names(gamma) == expected
    assert reds(gamma[1]) == (30, 120)


def test_nested_gopro_of_one_split_given_itself(tmp_path: Path) -> None:
    both(tmp_path / "SEQ", "1.png")
    assert names(find_pairs(tmp_path)) == ["SEQ/1"]


@pytest.mark.parametrize("letter", ["J", "R"])
def test_realblur_lists_name_the_sharp_picture_first(tmp_path: Path, letter: str) -> None:
    base = f"RealBlur-{letter}_ECC_IMCORR_centroid_itensity_ref"
    lines = []
    for scene, number in (("scene001", 3), ("scene002", 1)):
        put(tmp_path / base / scene / "gt" / f"gt_{number}.png", 200)
        put(tmp_path / base / scene / "blur" / f"blur_{number}.png", 50)
        lines.append(f"{base}/{scene}/gt/gt_{number}.png {base}/{scene}/blur/blur_{number}.png ")
    (tmp_path / f"RealBlur_{letter}_train_list.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / f"RealBlur_{letter}_test_list.txt").write_text(lines[0] + "\n")
    train = find_pairs(tmp_path)
    assert names(train) == ["scene001/3", "scene002/1"]
    assert reds(train[0]) == (50, 200)
    assert names(find_pairs(tmp_path, layout=f"realblur_{letter.lower()}", split="test")) == ["scene001/3"]


def test_realblur_with_a_picture_missing_names_the_line(tmp_path: Path) -> None:
    put(tmp_path / "s" / "gt" / "gt_1.png")
    (tmp_path / "RealBlur_J_train_list.txt").write_text("s/gt/gt_1.png s/blur/blur_1.png\n")
    with pytest.raises(InputError, match=r"line 1 names .*blur_1\.png, which is not there"):
        find_pairs(tmp_path)


def test_realblur_lists_as_editors_and_windows_leave_them(tmp_path: Path) -> None:
    for name in ("s/gt/gt_1.png", "s/blur/blur_1.png", "my set/gt/gt 2.png", "my set/blur/blur 2.png"):
        put(tmp_path / name)
    text = (
        "s\\gt\\gt_1.png s\\blur\\blur_1.png\r\n\r\n  \n# a remark\ns/gt/gt_1.png\ts/blur/blur_1.png\n"
        "my set/gt/gt 2.png my set/blur/blur 2.png\ns/gt/gt_1.png s/blur/blur_1.png 24.5\n"
    )
    (tmp_path / "RealBlur_J_train_list.txt").write_text(text, encoding="utf-8-sig", newline="")
    assert names(find_pairs(tmp_path)) == ["blur/1", "blur/blur 2"]


@pytest.mark.parametrize("line", ["s/gt/gt_1.png", "s gt 1.png s blur 1.png"])
def test_a_realblur_line_that_is_not_understood_is_shown(tmp_path: Path, line: str) -> None:
    put(tmp_path / "s" / "gt" / "gt_1.png")
    put(tmp_path / "s" / "blur" / "blur_1.png")
    (tmp_path / "RealBlur_J_train_list.txt").write_text(f"# first\n{line}\n")
    with pytest.raises(InputError, match=f"line 2 was not understood: '{line}'; a line is two paths"):
        find_pairs(tmp_path)


def test_realblur_without_its_list(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match="RealBlur_R_test_list"):
        find_pairs(tmp_path, layout="realblur_r", split="test")


def test_hide_has_a_test_split_only(tmp_path: Path) -> None:
    both(tmp_path, "1fromGOPR1088.png")
    assert names(find_pairs(tmp_path, layout="hide", split="test")) == ["1fromGOPR1088"]
    with pytest.raises(InputError, match="test"):
        find_pairs(tmp_path, layout="hide", split="train")


def test_reds_in_clips(tmp_path: Path) -> None:
    for part, clip, value in (("train", "000", 1), ("train", "001", 2), ("val", "020", 3)):
        both(tmp_path / part, f"{clip}/00000000.png", value, blur=f"{part}_blur", sharp=f"{part}_sharp")
    assert names(find_pairs(tmp_path)) == ["000/00000000", "001/00000000"]
    assert reds(find_pairs(tmp_path, layout="reds", split="test")[0]) == (3, 103)


@pytest.mark.parametrize("layout", ["auto", "plain", "gopro", "gopro_gamma"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("there", "asked"), [("train", "test"), ("test", "train"), ("val", "train")])
def test_a_missing_split_is_never_the_other_one(
    tmp_path: Path, layout: str, nested: bool, there: str, asked: Literal["train", "test"]
) -> None:
    folder = tmp_path / there / "SEQ" if nested else tmp_path / there
    both(folder, "a.png")
    put(folder / "blur_gamma" / "a.png")
    with pytest.raises(InputError, match=f"has no {asked} split, only {there};"):
        find_pairs(tmp_path, layout=layout, split=asked)


def test_val_is_the_test_split_of_a_set_without_one(tmp_path: Path) -> None:
    both(tmp_path / "train", "a.png")
    both(tmp_path / "val", "b.png")
    assert names(find_pairs(tmp_path, split="test")) == ["b"]
    both(tmp_path / "test", "c.png")
    assert names(find_pairs(tmp_path, split="test")) == ["c"]


def test_folders_of_splits_are_no_sequences(tmp_path: Path) -> None:
    both(tmp_path / "SEQ", "1.png")
    both(tmp_path / "val", "2.png")
    assert names(find_pairs(tmp_path)) == ["SEQ/1"]
    assert names(find_pairs(tmp_path, layout="gopro")) == ["SEQ/1"]


@pytest.mark.parametrize("foreign", [".thumbnails", "@eaDir", "__MACOSX"])
def test_folders_of_file_managers_are_no_sequences(tmp_path: Path, foreign: str) -> None:
    both(tmp_path / "train" / "SEQ", "1.png")
    (tmp_path / "train" / foreign / "sharp").mkdir(parents=True)
    assert names(find_pairs(tmp_path)) == ["SEQ/1"]
    both(tmp_path / "r", "000/1.png", blur="train_blur", sharp="train_sharp")
    (tmp_path / "r" / "train_blur" / foreign).mkdir()
    assert names(find_pairs(tmp_path / "r")) == ["000/1"]


@pytest.mark.parametrize("layout", ["auto", "reds"])
def test_reds_with_its_parts_side_by_side(tmp_path: Path, layout: str) -> None:
    both(tmp_path, "000/1.png", 1, blur="train_blur", sharp="train_sharp")
    assert names(find_pairs(tmp_path, layout=layout, split="test")) == ["000/1"]  # the root is that part
    both(tmp_path, "020/1.png", 3, blur="val_blur", sharp="val_sharp")
    assert reds(find_pairs(tmp_path, layout=layout)[0]) == (1, 101)
    assert reds(find_pairs(tmp_path, layout=layout, split="test")[0]) == (3, 103)


@pytest.mark.parametrize("layout", ["auto", "reds"])
def test_reds_without_a_split(tmp_path: Path, layout: str) -> None:
    both(tmp_path / "in" / "train", "000/1.png", blur="train_blur", sharp="train_sharp")
    with pytest.raises(InputError, match="has no test split, only train;"):
        find_pairs(tmp_path / "in", layout=layout, split="test")
    both(tmp_path / "beside", "000/1.png", blur="train_blur", sharp="train_sharp")
    (tmp_path / "beside" / "test_blur").mkdir()
    with pytest.raises(InputError, match="has no test split, only train, test;"):
        find_pairs(tmp_path / "beside", layout=layout, split="test")


def test_realblur_with_the_list_of_one_split(tmp_path: Path) -> None:
    (tmp_path / "RealBlur_J_train_list.txt").write_text("a b\n")
    with pytest.raises(UnreadableInput, match="RealBlur_J_test_list"):
        find_pairs(tmp_path, split="test")


def test_a_picture_without_its_partner_is_named(tmp_path: Path) -> None:
    both(tmp_path, "1.png")
    put(tmp_path / "blur" / "2.png")
    with pytest.raises(InputError, match=r"blur.2\.png has no partner in .*sharp"):
        find_pairs(tmp_path)


def test_a_missing_side_is_named(tmp_path: Path) -> None:
    put(tmp_path / "sharp" / "1.png")
    with pytest.raises(InputError, match="blur is not there"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(
    ("made", "named", "missing"),
    [
        ("plain", "gopro", r"neither .*blur.blur nor .*blur.sharp is a folder"),
        ("plain", "gopro_gamma", r"neither .*blur.blur_gamma nor .*blur.sharp is a folder"),
        ("gopro", "plain", r"neither .*blur nor .*sharp is a folder"),
        ("gopro", "hide", r"neither .*blur nor .*sharp is a folder"),
    ],
)
def test_a_layout_that_it_is_not_is_told_with_the_one_it_looks_like(
    tmp_path: Path, made: str, named: str, missing: str
) -> None:
    both(tmp_path if made == "plain" else tmp_path / "test" / "s1", "1.png")
    with pytest.raises(InputError, match=f"^{missing}; it looks like layout {made}: name that, or none") as e:
        find_pairs(tmp_path, layout=named, split="test")
    assert type(e.value) is InputError
    assert "no partner" not in str(e.value)


def test_a_named_layout_of_nothing_gets_no_guess(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither .* is a folder; check the folder, the layout and the split"):
        find_pairs(tmp_path, layout="plain")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_sizes_that_differ_are_found_without_decoding(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / "blur" / f"1{suffix}", size=(16, 8))
    put(tmp_path / "sharp" / f"1{suffix}", size=(16, 10))
    with pytest.raises(InputError, match=r"16x8.*16x10"):
        find_pairs(tmp_path)


def test_sizes_that_differ_are_found_when_read(tmp_path: Path) -> None:
    blur, sharp = put(tmp_path / "a.bmp", size=(16, 8)), put(tmp_path / "b.bmp", size=(14, 8))
    with pytest.raises(InputError, match=r"16x8.*14x8"):
        read_pair(Pair("a", blur, sharp))


def test_header_size_agrees_with_the_decoder(tmp_path: Path) -> None:
    assert header_size(put(tmp_path / "a.png", size=(37, 21))) == (37, 21)
    assert header_size(put(tmp_path / "a.jpg", size=(37, 21))) == (37, 21)
    assert header_size(put(tmp_path / "a.bmp", size=(37, 21))) is None


def tiff(orientation: int, order: str) -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def turned(path: Path, orientation: int, *, order: str = "<", late: bool = False) -> Path:
    """The picture with an orientation in EXIF. late: behind the pixels of a PNG, after XMP in a JPEG."""
    data, exif = path.read_bytes(), tiff(orientation, order)
    if path.suffix == ".png":
        chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
        at = len(data) - 12 if late else 33
    else:
        parts = [b"http://ns.adobe.com/xap/1.0/\0<x/>"] if late else []
        parts.append(b"Exif\0\0" + exif)
        chunk = b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in parts)
        at = 2
    path.write_bytes(data[:at] + chunk + data[at:])
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_header_size_is_upright_as_the_decoder_is(tmp_path: Path, suffix: str, order: str, orientation: int) -> None:
    for late in (False, True):
        path = turned(put(tmp_path / f"a{suffix}", size=(37, 21)), orientation, order=order, late=late)
        blur = read_pair(Pair("a", path, path))[0]
        if not (late and suffix == ".png"):  # reading to the end of every file would take long
            assert header_size(path) == blur.shape[1::-1]


@pytest.mark.parametrize("exif", [b"", b"II", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_is_passed_over(tmp_path: Path, exif: bytes) -> None:
    path = put(tmp_path / "a.jpg", size=(37, 21))
    data = path.read_bytes()
    part = b"Exif\0\0" + exif
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part + data[2:])
    assert header_size(path) == (37, 21)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("late", [False, True])
def test_sides_that_decode_to_one_size_are_a_pair(tmp_path: Path, suffix: str, late: bool) -> None:
    turned(put(tmp_path / "blur" / f"1{suffix}", size=(16, 8)), 6, late=late)
    put(tmp_path / "sharp" / "1.png", size=(8, 16))
    assert read_pair(find_pairs(tmp_path)[0])[0].shape == (16, 8, 3)
    put(tmp_path / "blur" / f"1{suffix}", size=(16, 8))  # and lying, it is none
    with pytest.raises(InputError, match=r"16x8.*8x16"):
        find_pairs(tmp_path)


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    put(tmp_path / "sharp" / "1.png")
    (tmp_path / "blur").mkdir()
    (tmp_path / "blur" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(UnreadableInput, match=r"blur.1\.png can't be decoded"):
        read_pair(find_pairs(tmp_path)[0])


def test_folders_that_can_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both(tmp_path, "1.png")
    with pytest.raises(UnreadableInput, match=r"a{300} can't be read: File name too long"):
        find_pairs(tmp_path / ("a" * 300))

    def refused(self: Path) -> None:  # root may read all there is
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(UnreadableInput, match=r"blur can't be read: Permission denied"):
        find_pairs(tmp_path)


def test_an_empty_set_an_unknown_layout_and_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "blur").mkdir()
    (tmp_path / "sharp").mkdir()
    with pytest.raises(InputError, match="holds no train pairs"):
        find_pairs(tmp_path)
    with pytest.raises(UsageError, match=r"layout 'kohler' is unknown; use .*realblur_j"):
        find_pairs(tmp_path, layout="kohler")
    with pytest.raises(UnreadableInput, match="not a folder"):
        find_pairs(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="no known layout"):
        find_pairs(tmp_path / "other")


def test_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(StreamdeblurError) as caught:
        find_pairs(tmp_path)
    assert "\n" not in str(caught.value)


# -- alignment --------------------------------------------------------------------------------------------------------


def landscape(height: int = 96, width: int = 128, seed: int = 0) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.asarray(np.clip((smooth - smooth.mean()) * 4 + 0.5, 0.05, 0.95), np.float32)


def test_alignment_finds_a_shift_and_a_gain() -> None:
    big = landscape(116, 148)
    sharp = big[10:106, 10:138]
    restored = big[13:109, 6:134] * 0.8  # what is at (x, y) in sharp is at (x + 4, y - 3) here
    found = align(restored, sharp)
    at = found.homography @ np.array([60.0, 40.0, 1.0])
    assert at[:2] / at[2] == pytest.approx([64.0, 37.0], abs=0.05)
    inside = found.mask[8:-8, 8:-8]
    assert inside.all()
    # the authors match brightness before they align: a gain of sum(xz) / sum(zz) of the pictures as they were given
    gain = 0.8 * float((sharp * restored).sum(dtype=np.float64)) / float((restored**2).sum(dtype=np.float64))
    assert np.abs(found.restored - gain * found.sharp)[8:-8, 8:-8].max() < 0.01
    assert not found.mask.all()  # a strip was never seen
    assert (found.restored[~found.mask] == 0).all()
    assert (found.sharp[~found.mask] == 0).all()
    assert found.psnr() > 30


def test_psnr_counts_valid_pixels_only() -> None:
    sharp = landscape()
    noise = np.random.default_rng(1).normal(0, 0.05, sharp.shape).astype(np.float32)
    found = align(np.clip(sharp + noise, 0, 1), sharp)
    errors = [
        (float(found.restored[y, x, c]) - float(found.sharp[y, x, c])) ** 2
        for y, x in np.argwhere(found.mask)
        for c in range(3)
    ]
    assert found.psnr() == pytest.approx(-10 * math.log10(math.fsum(errors) / len(errors)), abs=1e-6)
    assert 24 < found.psnr() < 28


def test_uint8_and_float_align_alike() -> None:
    sharp = (landscape() * 255).astype(np.uint8)
    restored = np.roll(sharp, 2, axis=1)
    assert align(restored, sharp).psnr() == pytest.approx(
        align(restored.astype(np.float32) / 255, sharp.astype(np.float32) / 255).psnr(), abs=1e-3
    )


def test_flat_pictures_are_compared_in_place() -> None:
    flat: Picture = np.full((40, 40, 3), 90, np.uint8)
    found = align(flat, flat)
    assert np.array_equal(found.homography, np.eye(3))
    assert found.mask.all()


def test_other_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="can't be aligned"):
        align(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8))
