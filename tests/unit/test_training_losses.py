"""Every loss term against its definition, written out in float64 with numpy and OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from streamdeblur.training.losses import DeblurLoss, content_loss, frequency_loss, targets

SIZES = [(8, 8), (8, 7), (7, 8), (5, 9), (64, 48), (6, 1), (1, 6), (3, 2)]


def two(size: tuple[int, int], seed: int = 0, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sharp = rng.random((count, 3, *size))
    return sharp + rng.normal(0, 0.05, sharp.shape), sharp


def released(a: np.ndarray, b: np.ndarray) -> float:
    """F.l1_loss over the stacked real and imaginary parts of both full transforms, as the authors' program does."""
    x, y = np.fft.fft2(a), np.fft.fft2(b)
    return float(np.abs(np.stack((x.real, x.imag)) - np.stack((y.real, y.imag))).mean())


def paper(a: np.ndarray, b: np.ndarray) -> float:
    """Eq. 8: 1/t_k times the sum of the moduli."""
    return float(np.abs(np.fft.fft2(a) - np.fft.fft2(b)).sum() / a.size)


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "definition"), [("released", released), ("paper", paper)])
def test_frequency_term(name, definition, dtype, size) -> None:
    a, b = two(size)
    a, b = (torch.from_numpy(x).to(dtype) for x in (a, b))
    # the expectation sees what the function sees: the rounding of the inputs to float32 is not its error
    expected = definition(a.double().numpy(), b.double().numpy())
    assert frequency_loss(a, b, name).item() == pytest.approx(expected, rel=1e-6)


def test_the_two_definitions_differ_and_others_are_refused() -> None:
    a, b = (torch.from_numpy(x) for x in two((16, 16)))
    assert frequency_loss(a, b, "paper").item() > 1.2 * frequency_loss(a, b, "released").item()
    with pytest.raises(ValueError, match="'abs' is not one of released, paper"):
        frequency_loss(a, b, "abs")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'abs' is not one of"):
        DeblurLoss(msfr="abs")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype) -> None:
    a, b = (torch.from_numpy(x).to(dtype) for x in two((32, 32)))
    x, y = a.double().numpy(), b.double().numpy()
    assert content_loss(a, b).dtype == torch.float32
    assert content_loss(a, b).item() == pytest.approx(np.abs(x - y).mean(), rel=1e-6)
    for epsilon in (1e-3, 0.02, 0.5):
        expected = (np.sqrt((x - y) ** 2 + epsilon**2) - epsilon).mean()
        assert content_loss(a, b, epsilon).item() == pytest.approx(expected, rel=2e-6)
    # a half-precision network against a float32 truth, as in training
    assert frequency_loss(a, b.float()).item() == pytest.approx(released(x, y), rel=1e-6)


def test_content_term() -> None:
    a, b = two((31, 17))
    got = content_loss(torch.from_numpy(a).float(), torch.from_numpy(b).float()).item()
    assert got == pytest.approx(float(np.abs(a - b).mean()), rel=1e-6)


def test_targets_are_bilinear_with_half_pixel_centres() -> None:
    sharp = two((16, 24))[1].astype(np.float32)
    quarter, half, full = targets(torch.from_numpy(sharp), 3)
    assert (quarter.shape, half.shape) == ((2, 3, 4, 6), (2, 3, 8, 12))
    np.testing.assert_array_equal(full.numpy(), sharp)
    # By hand: an output pixel's centre lies between two input pixels at 1/2, between the middle two of four at 1/4.
    by_hand = sharp.reshape(2, 3, 8, 2, 12, 2).mean((3, 5))
    np.testing.assert_allclose(half.numpy(), by_hand, atol=1e-6)
    by_hand = sharp.reshape(2, 3, 4, 4, 6, 4)[:, :, :, 1:3, :, 1:3].mean((3, 5))
    np.testing.assert_allclose(quarter.numpy(), by_hand, atol=1e-6)
    for image, small in ((half, (12, 8)), (quarter, (6, 4))):
        for n in range(2):
            expected = cv2.resize(sharp[n].transpose(1, 2, 0), small, interpolation=cv2.INTER_LINEAR)
            np.testing.assert_allclose(image[n].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_targets_of_fewer_scales_end_with_the_full_one() -> None:
    sharp = torch.rand(1, 3, 8, 8)
    assert [tuple(t.shape[-2:]) for t in targets(sharp, 2)] == [(4, 4), (8, 8)]
    assert targets(sharp, 1)[0] is sharp
    with pytest.raises(ValueError, match="0 scales"):
        targets(sharp, 0)


def by_numpy(outputs: list[np.ndarray], sharp: np.ndarray, weight: float, definition) -> tuple[float, float, float]:
    """Eq. 9 over the scales that there are; targets by hand, as above."""
    n, c, h, w = sharp.shape
    half = sharp.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
    quarter = sharp.reshape(n, c, h // 4, 4, w // 4, 4)[:, :, :, 1:3, :, 1:3].mean((3, 5))
    truths = [quarter, half, sharp][-len(outputs) :]
    content = sum(np.abs(a - b).mean() for a, b in zip(outputs, truths, strict=True))
    frequency = sum(definition(a, b) for a, b in zip(outputs, truths, strict=True))
    return content + weight * frequency, content, frequency


@pytest.mark.parametrize("scales", [1, 3])
@pytest.mark.parametrize(("name", "definition"), [("released", released), ("paper", paper)])
def test_total(name, definition, scales) -> None:
    rng = np.random.default_rng(3)
    sharp = rng.random((2, 3, 32, 40)).astype(np.float32)
    outputs = [rng.random((2, 3, 32 // k, 40 // k)).astype(np.float32) for k in (4, 2, 1)][-scales:]
    total, parts = DeblurLoss(0.1, name)([torch.from_numpy(o) for o in outputs], torch.from_numpy(sharp))
    wide = [o.astype(np.float64) for o in outputs]
    expected, content, frequency = by_numpy(wide, sharp.astype(np.float64), 0.1, definition)
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert parts["content"].item() == pytest.approx(content, rel=1e-6)
    assert parts["msfr"].item() == pytest.approx(frequency, rel=1e-6)


def test_without_a_weight_the_frequency_term_is_left_out() -> None:
    image = torch.rand(1, 3, 8, 8)
    total, parts = DeblurLoss(0.0)([image], torch.zeros_like(image))
    smooth, _ = DeblurLoss(0.0, epsilon=0.1)([image], torch.zeros_like(image))
    assert smooth == content_loss(image, torch.zeros_like(image), 0.1) < total
    assert set(parts) == {"content"}
    assert total.item() == pytest.approx(image.mean().item(), rel=1e-6)


def test_gradient_is_that_of_the_full_transform() -> None:
    a, b = (torch.from_numpy(x) for x in two((6, 5)))
    a.requires_grad_(True)
    frequency_loss(a, b).backward()
    mine = a.grad
    other = a.detach().clone().requires_grad_(True)
    spectrum = torch.view_as_real(torch.fft.fft2(other)) - torch.view_as_real(torch.fft.fft2(b))
    spectrum.abs().mean().backward()
    torch.testing.assert_close(mine, other.grad, rtol=1e-9, atol=1e-12)


def test_outputs_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\) for targets of \(1, 3, 8, 12\)"):
        DeblurLoss()([torch.zeros(1, 3, 8, 8)], torch.zeros(1, 3, 8, 12))
