"""Kernels of our own for what Winograd does not suit: each is the convolution of the definition, at every size,
beside every edge, in float32 and in bfloat16."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamdeblur.models import MIMOUNet, MIMOUNetConfig
from streamdeblur.models.folding import OneDNN, can_fold, fold
from streamdeblur.models.random_weights import random_state
from streamdeblur.models.trial import pictures
from streamdeblur.restore.engines import kernels
from streamdeblur.restore.engines.devices import cpu_flags
from streamdeblur.restore.engines.direct import DirectConv, DirectUp, suits_direct, suits_up
from streamdeblur.restore.engines.winograd import WinogradEngine

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.skipif(kernels.find_compiler() is None, reason="there is no C++ compiler"),
]

HALF = pytest.param(
    torch.bfloat16,
    marks=pytest.mark.skipif("avx512_bf16" not in cpu_flags(), reason="this CPU has no AVX512-BF16"),
)
#: What rounding makes at most, of 1 and the result: sums in float32, and a result in bfloat16.
LITTLE = {torch.float32: 2e-5, torch.bfloat16: 2**-8}

SIZES = [(1, 1), (2, 3), (6, 12), (12, 24), (13, 25), (24, 40), (4, 206)]
KINDS = [(3, 16, 3, 1), (16, 16, 1, 1), (16, 32, 3, 2), (29, 32, 1, 1), (16, 32, 1, 2), (3, 32, 1, 1), (48, 80, 3, 1)]


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made


def weights(outputs: int, inputs: int, side: int, dtype: torch.dtype) -> Tensor:
    return (tensor(outputs, inputs, side, side, seed=1) / (inputs * side * side) ** 0.5).to(dtype).float()


def off(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float(((got - want).abs() / (1 + want.abs())).max())


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("inputs", "outputs", "side", "stride"), KINDS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_size_gives_the_convolution(
    inputs: int, outputs: int, side: int, stride: int, height: int, width: int, dtype: torch.dtype
) -> None:
    weight, bias = weights(outputs, inputs, side, dtype), tensor(outputs, seed=2)
    assert suits_direct(weight, stride)
    layer = DirectConv(weight, bias, stride, dtype)
    x = tensor(2, inputs, height, width, dtype=dtype)
    kept = x.clone()
    want = F.conv2d(x.double(), weight.double(), bias.double(), stride, side // 2)
    assert off(layer(x), want) < LITTLE[dtype]
    out = tensor(*want.shape, seed=5, dtype=dtype)
    got = layer(x, relu=True, out=out)
    assert got.data_ptr() == out.data_ptr()
    assert off(got, want.relu()) < LITTLE[dtype]
    other = tensor(*want.shape, seed=3, dtype=dtype)
    sums = (other.double() + want).relu()
    got = layer.add_to(other, x, relu=True)
    assert got.data_ptr() == other.data_ptr()
    assert off(got, sums) < LITTLE[dtype]
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 26), (12, 24), (14, 8)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_smaller_picture_is_added_each_pixel_four_times(
    height: int, width: int, stride: int, dtype: torch.dtype
) -> None:
    weight = weights(32, 16, 1, dtype)
    layer = DirectConv(weight, None, stride, dtype)
    x, small = (
        tensor(2, 16, stride * height, stride * width, dtype=dtype),
        tensor(2, 32, height // 2, width // 2, dtype=dtype),
    )
    want = F.conv2d(x.double(), weight.double(), None, stride) + F.interpolate(small.double(), scale_factor=2)
    assert off(layer.add_enlarged(small, x), want) < LITTLE[dtype]
    assert off(layer.add_enlarged(small, x, relu=True), want.relu()) < LITTLE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 16), (16, 48), (64, 32)])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_transposed_convolutions(inputs: int, outputs: int, height: int, width: int, dtype: torch.dtype) -> None:
    weight, bias = weights(inputs, outputs, 4, dtype), tensor(outputs, seed=2)
    assert suits_up(weight)
    x = tensor(2, inputs, height, width, dtype=dtype)
    want = F.conv_transpose2d(x.double(), weight.double(), bias.double(), 2, 1).relu()
    assert off(DirectUp(weight, bias, dtype)(x), want) < LITTLE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_what_lies_outside_of_a_picture_does_not_matter(dtype: torch.dtype) -> None:
    """The memory around is full of numbers that are none: pixels are read together with what follows them."""
    for inputs, side, stride in ((3, 3, 1), (16, 3, 2), (29, 1, 1), (3, 1, 1)):
        layer = DirectConv(weights(16, inputs, side, dtype), None, stride, dtype)
        values = 2 * 7 * 13 * inputs
        memory = torch.full((values + 256,), float("nan"), dtype=dtype)
        x = memory[128 : 128 + values].view(2, 7, 13, inputs).permute(0, 3, 1, 2)
        x.copy_(tensor(2, inputs, 7, 13, dtype=dtype))
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(layer(x), layer(x.clone(memory_format=torch.preserve_format)))
        assert layer(x).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_a_pixel_that_is_no_number_spoils_itself_only(dtype: torch.dtype) -> None:
    for inputs in (3, 16):
        layer = DirectConv(weights(16, inputs, 1, dtype), None, 1, dtype)
        x = tensor(1, inputs, 5, 13, dtype=dtype)
        x[0, 0, 2, 6] = float("nan")
        bad = layer(x).isnan().any(1)[0].nonzero().tolist()
        assert bad == [[2, 6]]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_several_threads_may_call_it(dtype: torch.dtype) -> None:
    layer, up = DirectConv(weights(32, 3, 3, dtype), None, 2, dtype), DirectUp(weights(16, 32, 4, dtype), None, dtype)
    given = [(tensor(1, 3, 40, 30 + i, seed=i, dtype=dtype), tensor(1, 16, 20, 9 + i, dtype=dtype)) for i in range(8)]
    want = [(layer(x), up(y)) for x, y in given]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = list(pool.map(lambda pair: (layer(pair[0]), up(pair[1])), given))
            assert all(
                torch.equal(a, b) for one, two in zip(got, want, strict=True) for a, b in zip(one, two, strict=True)
            )


def test_results_of_another_size_are_refused() -> None:
    layer = DirectConv(weights(16, 16, 1, torch.float32), None, 1, torch.float32)
    with pytest.raises(AssertionError):
        layer.add_to(tensor(1, 16, 4, 4), tensor(1, 16, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    layer, up = DirectConv(weights(32, 16, 3, dtype), None, 2, dtype), DirectUp(weights(16, 32, 4, dtype), None, dtype)
    x = tensor(2, 16, 41, 43, dtype=dtype)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append((layer(x), up(x)))
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_layouts_that_are_not_dense_are_taken_too() -> None:
    layer = DirectConv(weights(16, 16, 3, torch.float32), None, 1, torch.float32)
    x = tensor(2, 16, 14, 10)[:, :, ::2]
    want = layer(x.contiguous())
    assert torch.equal(layer(x), want)
    other = torch.zeros(2, 16, 7, 10)  # its channels are apart
    assert layer.add_to(other, x) is other
    assert torch.equal(other, want)


def test_what_does_not_suit() -> None:
    assert not suits_direct(torch.empty(3, 16, 3, 3), 1)
    assert not suits_direct(torch.empty(16, 16, 5, 5), 1)
    assert not suits_direct(torch.empty(16, 16, 3, 3), 3)
    assert not suits_up(torch.empty(16, 12, 4, 4))
    assert not suits_up(torch.empty(16, 16, 2, 2))


@pytest.mark.skipif(not can_fold(MIMOUNet(MIMOUNetConfig(width=16)), torch.float32), reason="no oneDNN operations")
def test_a_network_of_whole_vectors_leaves_oneDNN_the_last_layer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []

    def remember(self: OneDNN, weight: Tensor, bias: Tensor | None, stride: int) -> DirectConv:
        left.append(tuple(weight.shape))
        return theirs(self, weight, bias, stride)  # type: ignore[return-value]

    theirs = OneDNN.convolution
    monkeypatch.setattr(OneDNN, "convolution", remember)
    monkeypatch.setattr(OneDNN, "up", None)
    net = MIMOUNet(MIMOUNetConfig(width=16, blocks=1))
    WinogradEngine(net)
    assert left == [(3, 16, 3, 3)]


@pytest.mark.skipif(not can_fold(MIMOUNet(MIMOUNetConfig(width=16)), torch.float32), reason="no oneDNN operations")
def test_channels_rounded_up_change_nothing() -> None:
    class Wider(OneDNN):
        channels = 16

    config = MIMOUNetConfig(width=12, blocks=1)
    net = MIMOUNet(config)
    net.load_state_dict(random_state(config, 0))
    x = pictures(32, 48)
    with torch.inference_mode():
        want = net.eval().residual(x)
        got = fold(net, torch.float32, Wider(torch.float32)).residual(x)
    assert (got - want).abs().max() < 1e-5
