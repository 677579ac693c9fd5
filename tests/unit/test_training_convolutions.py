"""Convolutions of training by kernels of our own: results and gradients are those of the definition."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdeblur.models import MIMOUNet, MIMOUNetConfig
from streamdeblur.restore.engines import kernels
from streamdeblur.restore.engines.devices import cpu_flags
from streamdeblur.training import convolutions
from streamdeblur.training.convolutions import quicken

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.skipif(kernels.find_compiler() is None, reason="there is no C++ compiler"),
]


needs_half = pytest.mark.skipif("avx512_bf16" not in cpu_flags(), reason="this CPU has no AVX512-BF16")


def convolution(
    inputs: int, outputs: int, bias: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """One as PyTorch has it, in float64, and the same quickened for ``dtype``, its weights in float32."""
    torch.manual_seed(0)
    quick = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = copy.deepcopy(quick).double()
    assert quicken(nn.Sequential(quick), dtype) == 1
    return plain, quick


def distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (16, 48), (64, 32)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (4, 4), (13, 9), (8, 205)])
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_are_those_of_float64(
    inputs: int, outputs: int, height: int, width: int, bias: bool
) -> None:
    plain, quick = convolution(inputs, outputs, bias)
    x = torch.randn(3, inputs, height, width, requires_grad=True)
    g = torch.randn(3, outputs, height, width)
    wanted = x.detach().double().requires_grad_()
    want, got = plain(wanted), quick(x)
    assert distance(got.detach(), want.detach()) < 1e-5
    want.backward(g.double())
    got.backward(g)
    assert x.grad is not None
    assert wanted.grad is not None
    assert distance(x.grad, wanted.grad) < 1e-5
    for name, parameter in quick.named_parameters():
        expected = plain.get_parameter(name).grad
        assert parameter.grad is not None
        assert expected is not None
        assert distance(parameter.grad, expected) < 1e-5, name


@needs_half
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (16, 48), (64, 32)])
@pytest.mark.parametrize(("height", "width"), [(3, 5), (4, 4), (13, 9), (8, 205)])
def test_under_autocast_results_and_gradients_are_those_of_bf16(
    inputs: int, outputs: int, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "bf16_pays_without_amx", lambda: True)
    plain, quick = convolution(inputs, outputs, dtype=torch.bfloat16)
    x = torch.randn(3, inputs, height, width, requires_grad=True)
    g = torch.randn(3, outputs, height, width)
    wanted = x.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = quick(x)
    assert got.dtype == torch.bfloat16
    want = plain(wanted)
    assert distance(got.detach(), want.detach()) < 0.035
    want.backward(g.double())
    got.backward(g.bfloat16())
    assert x.grad is not None
    assert wanted.grad is not None
    assert distance(x.grad, wanted.grad) < 0.035
    assert quick.weight.grad.dtype == torch.float32  # type: ignore[union-attr]
    assert distance(quick.weight.grad, plain.weight.grad) < 0.035  # type: ignore[arg-type]
    assert distance(quick.bias.grad, plain.bias.grad) < 0.005  # type: ignore[union-attr, arg-type]
    # Without autocast it is float32, as of any other layer.
    assert distance(quick(x).detach(), want.detach()) < 1e-5


@needs_half
def test_bf16_is_left_to_pytorch_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    monkeypatch.setattr(convolutions, "bf16_pays_without_amx", lambda: False)
    assert quicken(net, torch.bfloat16) == 0
    monkeypatch.setattr(convolutions, "bf16_pays_without_amx", lambda: True)
    assert quicken(net, torch.float16) == 0
    assert quicken(net, torch.bfloat16) == 1


def test_a_transposed_convolution_stays_what_it_is() -> None:
    torch.manual_seed(0)
    quick = nn.ConvTranspose2d(8, 16, 4, 2, 1)
    plain = copy.deepcopy(quick).double()
    quicken(quick, torch.float32)
    assert type(quick) is not nn.ConvTranspose2d
    x = torch.randn(2, 8, 5, 6)
    got, want = quick(x), plain(x.double())
    assert distance(got.detach(), want.detach()) < 1e-6
    got.square().sum().backward()
    want.square().sum().backward()
    for a, b in zip(quick.parameters(), plain.parameters(), strict=True):
        assert distance(a.grad, b.grad) < 1e-6  # type: ignore[arg-type]


def test_frozen_weights_get_no_gradient() -> None:
    _, quick = convolution(16, 16)
    quick.requires_grad_(False)
    x = torch.randn(1, 16, 8, 8, requires_grad=True)
    quick(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in quick.parameters())


def test_kernels_of_one_thread_do_not_replace_those_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alone:
        def streamdeblur_parallel(self) -> int:
            return 0

    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    torch.set_num_threads(2)
    monkeypatch.setattr(kernels, "library", Alone)
    assert quicken(net, torch.float32) == 0


def test_an_input_without_gradient_gets_none() -> None:
    plain, quick = convolution(16, 16)
    x = torch.randn(1, 16, 8, 8)
    quick(x).sum().backward()
    plain(x.double()).sum().backward()
    assert x.grad is None
    assert distance(quick.weight.grad, plain.weight.grad) < 1e-5  # type: ignore[arg-type]


def test_threads_change_no_bit() -> None:
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        _, quick = convolution(32, 32)
        x = torch.linspace(-1, 1, 2 * 32 * 40 * 44).reshape(2, 32, 40, 44).sin().requires_grad_()
        y = quick(x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, quick.weight.grad, quick.bias.grad])  # type: ignore[union-attr]
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))  # type: ignore[arg-type]


def test_a_network_learns_the_same_and_keeps_its_names() -> None:
    torch.manual_seed(0)
    net = MIMOUNet(MIMOUNetConfig(width=16, blocks=1)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    quick = copy.deepcopy(net)
    changed = quicken(quick, torch.float32)
    suiting = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.stride == (1, 1)]
    assert changed == sum(m.in_channels % 16 == 0 and m.out_channels % 16 == 0 for m in suiting) > 12
    assert list(quick.state_dict()) == list(net.state_dict())
    x = torch.rand(2, 3, 32, 40).contiguous(memory_format=torch.channels_last)
    for one in (net, quick):
        sum(y.square().sum() for y in one(x)).backward()  # type: ignore[union-attr]
    assert F.mse_loss(quick(x)[-1], net(x)[-1]) < 1e-10
    for (name, a), b in zip(net.named_parameters(), quick.parameters(), strict=True):
        assert distance(b.grad, a.grad) < 1e-4, name  # type: ignore[arg-type]


def test_what_does_not_suit_is_left() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 16, 1),
        nn.ConvTranspose2d(16, 16, 3, padding=1, bias=False),
    )
    before = [type(m) for m in layers]
    assert quicken(layers, torch.float32) == 0
    assert [type(m) for m in layers] == before


def test_without_a_compiler_all_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._library.cache_clear()
    try:
        monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
        assert quicken(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), torch.float32) == 0
    finally:
        kernels._library.cache_clear()
