"""PSNR and SSIM against their definitions in float64 NumPy, and against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from streamdeblur.evaluation.metrics import Window, psnr, quantize, ssim

Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Three images with edges, texture and different errors."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:37, 0:45]
    base = 0.5 + 0.3 * np.sin(x / 4)[None] * np.cos(y / 6)[None] + (x[None] > 20) * 0.15
    sharp = np.stack([np.clip(base + shift, 0, 1).repeat(3, 0) for shift in (0, 0.1, -0.2)])
    sharp[:, 1] *= 0.8
    noisy = np.clip(sharp + rng.normal(0, 1, sharp.shape) * np.array([0.01, 0.05, 0.2])[:, None, None, None], 0, 1)
    return torch.from_numpy(noisy).float(), torch.from_numpy(sharp).float()


def ssim_by_definition(a: Array, b: Array, weights: Array, unbiased: float) -> float:
    """One channel, Wang et al. 2004, eq. 13, with every window written out."""
    size = len(weights)
    x, y = (sliding_window_view(p, (size, size)).reshape(-1, size * size) for p in (a, b))
    w = weights.ravel()
    mx, my = x @ w, y @ w
    vx = unbiased * (((x - mx[:, None]) ** 2) @ w)
    vy = unbiased * (((y - my[:, None]) ** 2) @ w)
    vxy = unbiased * (((x - mx[:, None]) * (y - my[:, None])) @ w)
    c1, c2 = 0.01**2, 0.03**2
    return float(np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


def window(name: Window) -> tuple[Array, float]:
    if name == "uniform":
        return np.full((7, 7), 1 / 49), 49 / 48
    y, x = np.mgrid[-5:6, -5:6]
    g = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    return g / g.sum(), 1.0


def test_psnr_is_the_definition_for_each_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    a, b = (p.numpy().astype(np.float64) for p in pair)
    expected = [10 * math.log10(1 / np.mean((a[i] - b[i]) ** 2)) for i in range(3)]
    got = psnr(*pair)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(expected, rel=1e-12)
    scaled = psnr(pair[0] * 255, pair[1] * 255, 255.0)
    assert scaled.tolist() == pytest.approx(expected, rel=1e-6)


def test_psnr_of_equal_images_is_infinite_and_of_nan_nan() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert psnr(x, x).tolist() == [math.inf, math.inf]
    broken = x.clone()
    broken[1, 0, 0, 0] = math.nan
    result = psnr(broken, x)
    assert result[0] == math.inf
    assert result[1].isnan()


def test_psnr_sums_in_float64() -> None:
    """A float32 mean over a large image loses digits; a half precision one is far off."""
    torch.manual_seed(1)
    a = torch.rand(1, 3, 512, 512)
    b = (a + 1e-3).half()
    expected = -10 * math.log10(np.mean((a.numpy().astype(np.float64) - b.numpy().astype(np.float64)) ** 2))
    assert float(psnr(a, b)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "uniform"])
def test_ssim_is_the_definition_for_each_image(pair: tuple[torch.Tensor, torch.Tensor], name: Window) -> None:
    weights, unbiased = window(name)
    a, b = (p.numpy().astype(np.float64) for p in pair)
    expected = [np.mean([ssim_by_definition(a[i, c], b[i, c], weights, unbiased) for c in range(3)]) for i in range(3)]
    got = ssim(*pair, window=name)
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(expected, rel=1e-9)
    assert ssim(pair[1], pair[1], window=name).tolist() == pytest.approx([1, 1, 1], abs=1e-12)
    assert ssim(pair[0] * 255, pair[1] * 255, 255.0, window=name).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["gaussian", "uniform"])
def test_metrics_agree_with_scikit_image(pair: tuple[torch.Tensor, torch.Tensor], name: Window) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="needs scikit-image: pip install 'streamdeblur[dev]'")
    extra = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if name == "gaussian" else {}
    for i in range(3):
        a, b = (p[i].permute(1, 2, 0).numpy() for p in pair)
        theirs = metrics.structural_similarity(b, a, channel_axis=2, data_range=1.0, **extra)
        mine = float(ssim(pair[0][i : i + 1], pair[1][i : i + 1], window=name))
        assert mine == pytest.approx(theirs, abs=1e-4)
        assert float(psnr(pair[0][i : i + 1], pair[1][i : i + 1])) == pytest.approx(
            metrics.peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-4
        )


def test_mask_counts_only_what_is_in_it(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """RealBlur's way: errors summed and divided by the mask; SSIM's map averaged over the mask without the border."""
    a, b = (p[1:2] for p in pair)
    mask = torch.zeros(1, 1, 37, 45)
    mask[..., 4:30, 10:40] = 1
    inside = (slice(None), slice(None), slice(4, 30), slice(10, 40))
    assert float(psnr(a, b, mask=mask)) == pytest.approx(float(psnr(a[inside], b[inside])), rel=1e-12)
    assert float(psnr(a, b, mask=mask.expand(1, 3, 37, 45))) == pytest.approx(float(psnr(a, b, mask=mask)), rel=1e-12)
    weights, unbiased = window("gaussian")
    x, y = (p[0].numpy().astype(np.float64) for p in (a, b))
    # centres 5..29 by 10..39: windows from 0 to 34 by 5 to 44
    part = [ssim_by_definition(x[c, 0:35, 5:45], y[c, 0:35, 5:45], weights, unbiased) for c in range(3)]
    assert float(ssim(a, b, mask=mask)) == pytest.approx(np.mean(part), rel=1e-9)
    everything = torch.ones(1, 3, 37, 45)
    assert float(ssim(a, b, mask=everything)) == pytest.approx(float(ssim(a, b)), rel=1e-12)


def test_quantize_is_what_a_png_would_hold() -> None:
    x = torch.tensor([-0.3, 0.0, 0.4999 / 255, 0.5001 / 255, 0.5, 254.6 / 255, 1.0, 7.0])
    assert (quantize(x) * 255).round(decimals=3).tolist() == [0, 0, 0, 1, 128, 255, 255, 255]


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17), "(1, 3, 16, 17)"),
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 16), "(N, 3, H, W)"),
        (torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16), "(1, 1, 16, 16)"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 16, 16), "uint8"),
    ],
)
def test_other_shapes_and_types_are_refused(a: torch.Tensor, b: torch.Tensor, word: str) -> None:
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=word.replace("(", r"\(").replace(")", r"\)")):
            metric(a, b)


def test_ssim_refuses_images_smaller_than_its_window_and_unknown_windows() -> None:
    small = torch.zeros(1, 3, 10, 30)
    with pytest.raises(ValueError, match="smaller than the 11 px window"):
        ssim(small, small)
    assert float(ssim(small, small, window="uniform")) == 1
    with pytest.raises(ValueError, match="box"):
        ssim(small, small, window="box")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask"):
        psnr(small, small, mask=torch.ones(1, 2, 10, 30))
