"""Picture files: whole ones are read upright and as they are, damaged ones refused before anything learns from them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from streamdeblur.errors import UnreadableInput
from streamdeblur.training.pictures import found_damage, read_picture

RGB = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


def encoded(suffix: str, *flags: int) -> bytes:
    done, data = cv2.imencode(suffix, RGB[..., ::-1], list(flags))
    assert done
    return bytes(data.tobytes())


def thumbnailed(picture: bytes) -> bytes:
    """A JPEG with another whole one inside an APP1 segment, as cameras write them."""
    inner = encoded(".jpg", cv2.IMWRITE_JPEG_QUALITY, 5)
    segment = b"\xff\xe1" + (len(inner) + 2).to_bytes(2, "big") + inner
    return picture[:2] + segment + picture[2:]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
def test_a_lossless_picture_is_read_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(suffix))
    assert np.array_equal(read_picture(path), RGB)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm"])
def test_16_bits_are_rounded(tmp_path: Path, suffix: str) -> None:
    codes = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    done, data = cv2.imencode(suffix, np.dstack([codes, codes[::-1], codes.T]))
    assert done
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data.tobytes())
    assert np.array_equal(read_picture(path), np.rint(np.dstack([codes.T, codes[::-1], codes]) / 257))


@pytest.mark.parametrize("flags", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)])
def test_whole_jpegs_pass_and_cut_ones_do_not(tmp_path: Path, flags: tuple[int, ...]) -> None:
    for whole in (encoded(".jpg", *flags), thumbnailed(encoded(".jpg", *flags)), encoded(".jpg", *flags) + b"\0" * 9):
        assert found_damage(whole) == ""
        path = tmp_path / "a.jpg"
        path.write_bytes(whole)
        assert read_picture(path).shape == RGB.shape
    for whole in (encoded(".jpg", *flags), thumbnailed(encoded(".jpg", *flags))):
        for share in (0.1, 0.5, 0.9, 0.999):
            assert found_damage(whole[: int(len(whole) * share)]) == "is cut short"


def test_a_png_is_checked_chunk_by_chunk() -> None:
    whole = encoded(".png")
    assert found_damage(whole) == ""
    assert found_damage(whole + b"trailing") == ""
    for length in (9, 20, len(whole) // 2, len(whole) - 1):
        assert found_damage(whole[:length]) == "is cut short"
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 1
    assert "is damaged (IDAT" in found_damage(bytes(spoiled))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is not there"), (b"", "is empty"), (b"no picture", "can't be decoded"), (b"\xff\xd8\xff", "cut short")],
)
def test_what_is_no_picture_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableInput, match=words) as caught:
        read_picture(path, "do this")
    assert str(path) in str(caught.value)
    assert caught.value.hint == "do this"
