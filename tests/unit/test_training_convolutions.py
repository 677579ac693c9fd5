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


class _WithAMX:
    """Kernels of a machine whose bf16 they multiply, whatever this one is."""

    def __init__(self) -> None:
        self.streamdeblur_width = kernels.library().streamdeblur_width

    def streamdeblur_half(self) -> int:
        return 1

    def streamdeblur_parallel(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("quicker", "changed"), [([], set()), ([32], {32, 40}), ([16, 64], {16, 64}), ([128], {96, 256})]
)
def test_with_amx_those_layers_are_quickened_that_gain(
    quicker: list[int], changed: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure() -> dict[str, object]:
        asked.append(1)
        return {"quicker": quicker}

    machine = _WithAMX()
    monkeypatch.setattr(kernels, "library", lambda: machine)
    monkeypatch.setattr(convolutions, "cpu_flags", lambda: {"amx_bf16", "avx512_bf16"})
    monkeypatch.setattr(convolutions, "_measure", measure)
    monkeypatch.setattr(convolutions, "suits", lambda weight, stride: True)
    for _ in range(2):
        up = nn.ConvTranspose2d(16, 8, 4, 2, 1)
        net = nn.Sequential(*(nn.Conv2d(c, c, 3, padding=1) for c in (16, 32, 40, 64, 96, 256)), up)
        assert quicken(net, torch.bfloat16) == len(changed)
        assert {m.in_channels for m in list(net)[:-1] if type(m) is not nn.Conv2d} == changed  # type: ignore[union-attr]
        assert type(up) is nn.ConvTranspose2d
    assert len(asked) == 1
    net = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1))
    assert quicken(net, torch.float32) == 1  # float32 has nothing to do with it
    assert len(asked) == 1


@pytest.mark.parametrize("seconds", [0.5, 0.95])
def test_a_layer_is_quicker_where_it_takes_clearly_less(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_LAYERS", ((16, 8), (32, 8)))
    monkeypatch.setattr(convolutions, "_by_own", convolutions._by_onednn)
    monkeypatch.setattr(convolutions, "in_turns", lambda *ways: (1.0, seconds))
    state = torch.get_rng_state()
    assert convolutions._measure()["quicker"] == ([16, 32] if seconds == 0.5 else [])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("factor", [1.2, float("nan")])
def test_a_layer_with_other_results_is_never_quicker(
    which: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t * factor if i == which else t for i, t in enumerate(convolutions._by_onednn(*tensors)))

    monkeypatch.setattr(convolutions, "_LAYERS", ((16, 8),))
    monkeypatch.setattr(convolutions, "_by_own", wrong)
    monkeypatch.setattr(convolutions, "in_turns", lambda *ways: (1.0, 0.1))
    assert convolutions._measure()["quicker"] == []


def test_layers_that_can_not_be_compared_are_not_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(*tensors: Tensor) -> tuple[Tensor, ...]:
        raise MemoryError

    monkeypatch.setattr(convolutions, "_LAYERS", ((16, 8),))
    monkeypatch.setattr(convolutions, "_by_own", without_memory)
    assert convolutions._measure()["quicker"] == []


@needs_half
def test_layers_are_measured_against_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_LAYERS", ((16, 32), (32, 16)))
    layers = convolutions._measure()["layers"]
    assert list(layers) == ["16", "32"]
    for found in layers.values():
        assert found["onednn_s"] > 0 < found["own_s"]
        assert all(off < convolutions._OFF for off in found["off"])
        assert found["off"][0] > 0


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
