"""Planes ↔ RGB against per-pixel arithmetic written from the standards, in exact fractions or float64."""

from __future__ import annotations

import itertools
from fractions import Fraction as Fr
from math import floor
from typing import Any

import numpy as np
import pytest
import torch

from streamdeblur.color import planes_to_rgb, rgb_correction_to_planes
from streamdeblur.frames import ColorSpec

KR_KB = {
    "bt601": (Fr(299, 1000), Fr(114, 1000)),
    "bt709": (Fr(2126, 10000), Fr(722, 10000)),
    "bt2020": (Fr(2627, 10000), Fr(593, 10000)),
    "smpte240m": (Fr(212, 1000), Fr(87, 1000)),
    "fcc": (Fr(30, 100), Fr(11, 100)),
}
LAYOUTS = {"444": (0, 0), "422": (1, 0), "420": (1, 1), "411": (2, 0), "410": (2, 2), "440": (0, 1)}
STEP = (Fr(60, 1000), Fr(-40, 1000), Fr(20, 1000))


def random_planes(color: ColorSpec, width: int, height: int, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    kind = np.uint8 if color.depth == 8 else np.uint16
    return [rng.integers(0, color.max_code, s, endpoint=True).astype(kind) for s in color.plane_shapes(width, height)]


def code_scales(full: bool, depth: int) -> tuple[int, int, int]:
    """(luma scale, chroma scale, black) in code values."""
    if full:
        return 2**depth - 1, 2**depth - 1, 0
    return 219 * 2 ** (depth - 8), 224 * 2 ** (depth - 8), 16 * 2 ** (depth - 8)


def yuv_of(rgb: tuple[Any, Any, Any], matrix: str) -> tuple[Any, Any, Any]:
    kr, kb = KR_KB[matrix]
    y = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
    return y, (rgb[2] - y) / (2 * (1 - kb)), (rgb[0] - y) / (2 * (1 - kr))


@pytest.mark.parametrize(
    ("matrix", "full", "depth", "layout"), list(itertools.product(KR_KB, (False, True), (8, 10, 12, 16), LAYOUTS))
)
def test_step_changes_planes_as_the_standard_says(matrix: str, full: bool, depth: int, layout: str) -> None:
    color = ColorSpec("yuv", matrix, full, depth, LAYOUTS[layout])
    luma, chroma, _ = code_scales(full, depth)
    expected = [floor(v * s + Fr(1, 2)) for v, s in zip(yuv_of(STEP, matrix), (luma, chroma, chroma), strict=True)]
    delta = torch.tensor([float(v) for v in STEP]).view(3, 1, 1).expand(3, 7, 11)
    got = rgb_correction_to_planes(delta, color, color.plane_shapes(11, 7))
    for plane, value, shape in zip(got, expected, color.plane_shapes(11, 7), strict=True):
        assert plane.shape == shape
        assert plane.dtype == (np.int32 if depth > 14 else np.int16)
        assert (plane == value).all()


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("depth", [8, 10, 12, 16])
def test_step_on_rgb_and_gray(full: bool, depth: int) -> None:
    luma, _, _ = code_scales(full, depth)
    delta = torch.tensor([float(v) for v in STEP]).view(1, 3, 1, 1).expand(1, 3, 3, 5)
    for plane, value in zip(
        rgb_correction_to_planes(delta, ColorSpec("rgb", full_range=full, depth=depth, alpha=True)), STEP, strict=True
    ):
        assert (plane == floor(value * luma + Fr(1, 2))).all()
    equal = torch.full((3, 3, 5), 0.1)
    (gray,) = rgb_correction_to_planes(equal, ColorSpec("gray", "bt601", full, depth))
    assert (gray == floor(Fr(1, 10) * luma + Fr(1, 2))).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 8), (9, 7), (16, 12)])
def test_varying_correction_is_averaged_over_the_samples_that_exist(layout: str, size: tuple[int, int]) -> None:
    height, width = size
    sx, sy = LAYOUTS[layout]
    color = ColorSpec("yuv", "bt709", False, 10, (sx, sy))
    delta = np.random.default_rng(3).normal(0, 0.1, (3, height, width)).astype(np.float32)
    y, cb, cr = yuv_of(tuple(delta.astype(np.float64)), "bt709")
    exact = [y.astype(np.float64) * 876]
    for c in (cb, cr):
        plane = np.empty(color.plane_shapes(width, height)[1])
        for i, j in np.ndindex(*plane.shape):
            plane[i, j] = np.mean(c[i << sy : (i + 1) << sy, j << sx : (j + 1) << sx].astype(np.float64)) * 896
        exact.append(plane)
    for got, want in zip(rgb_correction_to_planes(torch.from_numpy(delta), color), exact, strict=True):
        assert np.abs(got - want).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(("matrix", "full"), list(itertools.product(KR_KB, (False, True))))
@pytest.mark.parametrize("depth", [8, 10, 12, 16])
@pytest.mark.parametrize("layout", ["444", "420", "411", "410"])
def test_rgb_of_planes_inverts_the_standard(matrix: str, full: bool, depth: int, layout: str) -> None:
    color = ColorSpec("yuv", matrix, full, depth, LAYOUTS[layout])
    planes = random_planes(color, 9, 7)
    rgb = planes_to_rgb(planes, color)
    assert rgb.shape == (1, 3, 7, 9)
    assert rgb.dtype == torch.float32
    y, cb, cr = yuv_of(tuple(rgb[0].double().numpy()), matrix)
    luma, chroma, black = code_scales(full, depth)
    sx, sy = LAYOUTS[layout]
    tolerance = 2e-6 * 2**depth
    assert np.abs(y.astype(float) * luma + black - planes[0]).max() < tolerance
    for got, plane in ((cb, planes[1]), (cr, planes[2])):
        spread = np.array([[plane[i >> sy, j >> sx] for j in range(9)] for i in range(7)], dtype=float)
        assert np.abs(got.astype(float) * chroma + 2 ** (depth - 1) - spread).max() < tolerance


def test_known_colours() -> None:
    # 75 % red bar of BT.709 in 8-bit limited range, and BT.601 full-range (JPEG) blue.
    bar = planes_to_rgb([np.array([[51]], np.uint8), np.array([[109]], np.uint8), np.array([[212]], np.uint8)],
                        ColorSpec("yuv", "bt709"))  # fmt: skip
    assert torch.allclose(bar.flatten(), torch.tensor([0.75, 0.0, 0.0]), atol=0.006)
    blue = planes_to_rgb([np.array([[29]], np.uint8), np.array([[255]], np.uint8), np.array([[107]], np.uint8)],
                         ColorSpec("yuv", "bt601", True))  # fmt: skip
    assert torch.allclose(blue.flatten(), torch.tensor([0.0, 0.0, 1.0]), atol=0.006)


def test_nothing_is_clamped() -> None:
    planes = [np.full((2, 2), v, np.uint8) for v in (255, 255, 0)]
    assert float(planes_to_rgb(planes, ColorSpec("yuv")).max()) > 1.5
    dark = planes_to_rgb([np.zeros((2, 2), np.uint8)], ColorSpec("gray"))
    assert torch.allclose(dark, torch.tensor(-16 / 219))


def test_gray_and_rgb_planes() -> None:
    gray = random_planes(ColorSpec("gray", depth=12), 5, 3)
    rgb = planes_to_rgb(gray, ColorSpec("gray", depth=12))
    assert np.allclose(rgb.numpy(), np.broadcast_to((gray[0] - 256.0) / (219 * 16), (1, 3, 3, 5)), atol=1e-6)
    spec = ColorSpec("rgb", full_range=True, alpha=True)
    planes = random_planes(spec, 5, 3)
    assert np.allclose(planes_to_rgb(planes, spec)[0].numpy(), np.stack(planes[:3]) / 255.0, atol=1e-6)


@pytest.mark.parametrize("depth", [8, 10, 16])
def test_strided_and_read_only_planes(depth: int) -> None:
    color = ColorSpec("yuv", "bt601", False, depth, (1, 1))
    y, cb, cr = random_planes(color, 10, 6)
    together = np.stack((cb, cr), axis=-1)  # NV12, P010
    padded = np.zeros((6, 32), y.dtype)
    padded[:, :10] = y
    for a in (together, padded):
        a.setflags(write=False)
    views = [padded[:, :10], together[..., 0], together[..., 1]]
    flipped = [v[::-1] for v in views]
    assert torch.equal(planes_to_rgb(views, color), planes_to_rgb([y, cb, cr], color))
    assert torch.equal(planes_to_rgb(flipped, color), planes_to_rgb([p[::-1].copy() for p in (y, cb, cr)], color))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("depth", [8, 10, 12, 16])
def test_zero_is_exactly_zero(layout: str, depth: int) -> None:
    color = ColorSpec("yuv", "bt2020", False, depth, LAYOUTS[layout])
    for zero in (torch.zeros(3, 5, 7), -torch.zeros(1, 3, 5, 7, dtype=torch.bfloat16)):
        assert not any(p.any() for p in rgb_correction_to_planes(zero, color))


def test_difference_of_two_pictures_leads_from_one_to_the_other() -> None:
    # In 4:4:4 nothing is lost: planes + correction(RGB difference) must be the other planes, code by code.
    for matrix, full, depth in itertools.product(KR_KB, (False, True), (8, 10, 12)):
        color = ColorSpec("yuv", matrix, full, depth)
        a, b = random_planes(color, 17, 9, 1), random_planes(color, 17, 9, 2)
        delta = planes_to_rgb(b, color) - planes_to_rgb(a, color)
        for p, q, c in zip(a, b, rgb_correction_to_planes(delta, color), strict=True):
            assert np.array_equal(p.astype(int) + c, q)


def test_halves_round_up_and_extremes_saturate() -> None:
    color = ColorSpec("rgb", full_range=True)
    values = [-1.5, -0.5, 0.5, 1.5, 2.4, -2.4, 1e9, -1e9]
    delta = (torch.tensor(values, dtype=torch.float64) / 255).float().view(1, 1, -1).expand(3, 1, -1)
    # Whether v / 255 * 255 is a half again is float32's business: round what it really gives.
    product = (delta * 255.0)[0, 0, :4]
    expected = [floor(float(p) + 0.5) for p in product] + [2, -2, 32767, -32768]
    assert rgb_correction_to_planes(delta, color)[0].tolist() == [expected]
    deep = rgb_correction_to_planes(torch.full((3, 1, 1), 1e9), ColorSpec("rgb", depth=16))[0]
    assert deep.dtype == np.int32
    assert deep[0, 0] > 2_000_000_000


def test_input_is_left_alone() -> None:
    delta = torch.randn(1, 3, 6, 8)
    before = delta.clone()
    for color in (ColorSpec("yuv", chroma_shift=(1, 1)), ColorSpec("gray"), ColorSpec("rgb")):
        rgb_correction_to_planes(delta, color)
    assert torch.equal(delta, before)


def test_shapes_that_disagree() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        rgb_correction_to_planes(torch.zeros(3, 4, 4), ColorSpec("yuv"), [(4, 4), (2, 2), (2, 2)])
    for bad in (torch.zeros(2, 3, 4, 4), torch.zeros(4, 4), torch.zeros(3, 4, 4, dtype=torch.int32)):
        with pytest.raises(ValueError, match="expected"):
            rgb_correction_to_planes(bad, ColorSpec("yuv"))
