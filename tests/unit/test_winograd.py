"""Engine winograd: its convolutions are those of the definition, at every size and beside every edge; what it does
where there is no compiler, a broken one, or no cache."""

from __future__ import annotations

import ctypes
import errno
import logging
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamdeblur.errors import DeviceError, UsageError
from streamdeblur.models import MIMOUNet, MIMOUNetConfig, SelfEnsemble
from streamdeblur.models.folding import can_fold
from streamdeblur.models.random_weights import random_state
from streamdeblur.models.trial import TOLERANCES, noise, pictures
from streamdeblur.restore.engines import build_engine, choose, devices, facts, kernels, winograd
from streamdeblur.restore.engines.devices import cpu_flags
from streamdeblur.restore.engines.direct import DirectConv, DirectUp
from streamdeblur.restore.engines.winograd import WinogradConv, WinogradEngine, gains_by_bf16, suits

CPU = torch.device("cpu")
#: Channels of whole vectors on every CPU: 16, 32, 64.
CONFIG = MIMOUNetConfig(width=16, blocks=1)
#: What rounding makes at most, where inputs and results are of the size of 1; another tap would make some 0.1.
LITTLE = 2e-4

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.skipif(
        kernels.find_compiler() is None or not can_fold(MIMOUNet(CONFIG), torch.float32),
        reason="there is no C++ compiler, or this PyTorch has no oneDNN operations",
    ),
]


needs_half = pytest.mark.skipif(
    "avx512_bf16" not in cpu_flags() or not can_fold(MIMOUNet(CONFIG), torch.bfloat16),
    reason="this CPU has no AVX512-BF16",
)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing of this process is remembered: kernels are looked for again, and again by the next test."""
    kernels._library.cache_clear()
    kernels._compiler_version.cache_clear()
    yield
    kernels._library.cache_clear()
    kernels._compiler_version.cache_clear()


def network(config: MIMOUNetConfig = CONFIG) -> MIMOUNet:
    net = MIMOUNet(config)
    net.load_state_dict(random_state(config, 0))
    return net.eval().requires_grad_(False)


def tensor(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made


def definition(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("width", [1, 3, 4, 6, 9, 17, 99, 214])
@pytest.mark.parametrize("inputs", [16, 32])  # as many as there are outputs are another way
def test_every_size_gives_the_convolution(height: int, width: int, inputs: int) -> None:
    weight, bias = tensor(32, inputs, 3, 3, seed=1) / 12, tensor(32, seed=2)
    layer = WinogradConv(weight, bias)
    x = tensor(2, inputs, height, width)
    want = definition(x, weight, bias)
    assert (layer(x) - want).abs().max() < LITTLE
    assert (layer(x, relu=True) - want.relu()).abs().max() < LITTLE
    other = tensor(2, 32, height, width, seed=3)
    kept = other.clone(memory_format=torch.preserve_format)
    got = layer.add_to(other, x, relu=True)
    assert got.data_ptr() == other.data_ptr()
    assert (got - (kept + want).relu()).abs().max() < LITTLE
    assert torch.equal(x, tensor(2, inputs, height, width))


@pytest.mark.parametrize(
    ("inputs", "outputs"), [(16, 16), (16, 48), (48, 16), (32, 32), (32, 64), (64, 64), (128, 128), (144, 80)]
)
def test_every_number_of_channels_gives_the_convolution(inputs: int, outputs: int) -> None:
    weight = tensor(outputs, inputs, 3, 3, seed=1) / (9 * inputs) ** 0.5
    x = tensor(1, inputs, 13, 23)
    assert (WinogradConv(weight, None)(x) - definition(x, weight, None)).abs().max() < LITTLE


def test_what_it_rounds_is_little() -> None:
    weight = tensor(64, 64, 3, 3, seed=1) / 24
    x = tensor(1, 64, 64, 64)
    want = definition(x, weight, None)
    error = (WinogradConv(weight, None)(x) - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert 0 < error < 2e-6


def test_out_is_written_over_and_given_back() -> None:
    layer = WinogradConv(tensor(16, 16, 3, 3, seed=1), None)
    x, out = tensor(1, 16, 9, 10), tensor(1, 16, 9, 10, seed=5)
    got = layer(x, out=out)
    assert got.data_ptr() == out.data_ptr()
    assert torch.equal(got, layer(x))


@pytest.mark.parametrize("dense", [False, True])
def test_other_layouts_are_taken_too(dense: bool) -> None:
    weight = tensor(16, 16, 3, 3, seed=1) / 12
    layer = WinogradConv(weight, None)
    x, other = tensor(2, 16, 7, 10), tensor(2, 16, 7, 10, seed=2)
    want = other + definition(x, weight, None)
    if dense:
        x, other = x.contiguous(), other.contiguous()
    else:
        x, other = (torch.cat((t, t), 2)[:, :, :7] for t in (x, other))
    got = layer.add_to(other, x)
    assert got.data_ptr() == other.data_ptr()
    assert (got - want).abs().max() < LITTLE


def test_what_is_not_finite_is_not_hidden() -> None:
    layer = WinogradConv(tensor(16, 16, 3, 3, seed=1), None)
    x = tensor(1, 16, 8, 8)
    x[0, 3, 4, 4] = float("nan")
    assert layer(x, relu=True)[0, :, 4, 4].isnan().all()
    x[0, 3, 4, 4] = 0.0
    assert layer(x).isfinite().all()  # nor does it stay in what a thread keeps


def test_threads_and_batches_change_no_bit() -> None:
    layer = WinogradConv(tensor(32, 32, 3, 3, seed=1), tensor(32, seed=2))
    x = tensor(3, 32, 50, 130)
    want = layer(x)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(layer(x), want)
    assert torch.equal(torch.cat([layer(one[None]) for one in x]), want)


def test_several_threads_may_call_at_once() -> None:
    layer = WinogradConv(tensor(32, 32, 3, 3, seed=1), None)
    inputs = [tensor(1, 32, 40 + n, 60, seed=n) for n in range(4)]
    want = [layer(x) for x in inputs]
    wrong: list[int] = []

    def work(n: int) -> None:
        wrong.extend(n for _ in range(20) if not torch.equal(layer(inputs[n]), want[n]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (1, 16, 0, 4), (1, 16, 4, 0)])
def test_nothing_gives_nothing(shape: tuple[int, int, int, int]) -> None:
    assert WinogradConv(tensor(32, 16, 3, 3), None)(torch.empty(shape)).shape == (shape[0], 32, *shape[2:])


def test_what_suits() -> None:
    assert suits(torch.empty(16, 32, 3, 3), 1)
    assert not suits(torch.empty(16, 32, 3, 3), 2)
    assert not suits(torch.empty(16, 32, 1, 1), 1)
    assert not suits(torch.empty(16, 3, 3, 3), 1)
    assert not suits(torch.empty(3, 16, 3, 3), 1)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        MIMOUNetConfig(width=12, blocks=2),  # some of its layers suit, some don't
        MIMOUNetConfig(width=32, blocks=1, fusion="concat"),
        MIMOUNetConfig(width=16, blocks=1, mise=False, aff=False),
    ],
)
def test_a_network_is_that_of_eager_mode(config: MIMOUNetConfig) -> None:
    net = network(config)
    engine = WinogradEngine(net)
    for x in (pictures(64, 96), noise(4, 4), noise(52, 36)):
        before = x.clone()
        with torch.inference_mode():
            want = net.residual(x)
        assert (engine.residual(x) - want).abs().max() < 1e-5
        assert torch.equal(x, before)


def test_words_that_ask_for_it() -> None:
    found = facts(build_engine(network(), engine="winograd", device=CPU, precision="fp32"))
    assert (found.name, found.precision) == ("winograd", "fp32")
    found = facts(build_engine(SelfEnsemble(network(), 8), engine="winograd", device=CPU))
    assert (found.name, found.precision) == ("winograd", "bf16" if choose._kernels_take_bf16() else "fp32")
    with pytest.raises(UsageError, match="engine winograd runs in fp32 or bf16, not fp16"):
        build_engine(network(), engine="winograd", device=CPU, precision="fp16")


def test_auto_takes_it_in_fp32() -> None:
    assert facts(build_engine(network(), device=CPU, precision="fp32")).name == "winograd"


def test_bf16_is_refused_where_the_kernels_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Without:
        def streamdeblur_half(self) -> int:
            return 0

    monkeypatch.setattr(kernels, "library", Without)
    with pytest.raises(DeviceError, match=r"has no bf16 on this CPU, or by this .* compiler; take --precision fp32"):
        WinogradEngine(network(), torch.bfloat16)


# In bfloat16: what is multiplied has 8 bits, after transforms whose sums cancel.


def rounded_as_the_kernels_do(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution by the matrices of Lavin and Gray, Sec. 4.3, in float64, but for what the kernels round."""
    b = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]]
    b += [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
    g = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6]]
    g += [[1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
    a = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    into, of_weights, back = (torch.tensor(m, dtype=torch.float64) for m in (b, g, a))
    n, _, h, w = x.shape
    down, across = -(-h // 4), -(-w // 4)
    padded = F.pad(x.double(), (1, 4 * across - w + 1, 1, 4 * down - h + 1))
    tiles = padded.unfold(2, 6, 4).unfold(3, 6, 4)
    pixels = torch.einsum("ik,nctukl,jl->nctuij", into, tiles, into).bfloat16().double()
    taps = torch.einsum("ik,ockl,jl->ocij", of_weights, weight.double(), of_weights).bfloat16().double()
    products = torch.einsum("nctuij,ocij->notuij", pixels, taps)
    y = torch.einsum("ai,notuij,bj->notaub", back, products, back)
    return y.reshape(n, weight.shape[0], 4 * down, 4 * across)[..., :h, :w]


@needs_half
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (16, 48), (32, 32), (48, 16), (32, 64), (64, 64), (144, 80)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 4), (5, 6), (6, 33), (11, 214)])
def test_in_bf16_every_size_gives_the_convolution(inputs: int, outputs: int, height: int, width: int) -> None:
    weight, bias = tensor(outputs, inputs, 3, 3, seed=1) / (9 * inputs) ** 0.5, tensor(outputs, seed=2)
    layer = WinogradConv(weight, bias, torch.bfloat16)
    x = tensor(2, inputs, height, width).bfloat16()
    got, want = layer(x), rounded_as_the_kernels_do(x, weight) + bias[:, None, None]
    assert got.dtype == torch.bfloat16
    # Rounded once more, and where a sum in float32 lies between two values of bfloat16, the other way.
    assert (got - want).abs().max() < 0.03
    exact = definition(x, weight, bias)
    assert (got - exact).norm() / exact.norm() < 0.03
    other = tensor(2, outputs, height, width, seed=3).bfloat16()
    sums = (other + want).relu()
    assert (layer.add_to(other, x, relu=True) - sums).abs().max() < 0.05


@needs_half
def test_in_bf16_a_network_is_within_what_bf16_may_be_off() -> None:
    net = network()
    engine = WinogradEngine(net, torch.bfloat16)
    assert (engine.name, engine.precision, engine.dtype) == ("winograd", "bf16", torch.bfloat16)
    batch = pictures(128, 128)
    with torch.inference_mode():
        want = net.residual(batch)
    got = engine.residual(batch).float()
    error, allowed = TOLERANCES["bf16"].judge(list(got), list(want))
    assert 0 < error < allowed


@needs_half
def test_in_bf16_threads_change_no_bit() -> None:
    layer, x = WinogradConv(tensor(32, 32, 3, 3, seed=1), None, torch.bfloat16), tensor(2, 32, 41, 43).bfloat16()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(layer(x))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_half
@pytest.mark.parametrize("pays", [True, False])
def test_auto_takes_it_in_bf16_where_that_gains(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "_kernels_gain_by_bf16", lambda: pays)
    monkeypatch.setattr(choose, "_kernels_take_bf16", lambda: pays)
    found = facts(build_engine(network(), device=CPU, precision="bf16"))
    assert (found.name == "winograd") == pays
    assert found.precision == "bf16"
    found = facts(build_engine(network(), engine="winograd", device=CPU))
    assert (found.name, found.precision) == ("winograd", "bf16" if pays else "fp32")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels with AMX as a program, so that what is for AMX runs on every CPU that has the rest."""
    made = tmp_path_factory.mktemp("tiles") / "kernels.so"
    flags = [*kernels._FLAGS, "-DSTREAMDEBLUR_EMULATED_TILES", "-shared"]
    subprocess.run([kernels._required(), *flags, str(kernels._source()), "-o", str(made)], check=True)
    library = kernels._open(made)
    assert library.streamdeblur_tiles()
    return library


@needs_half
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(16, 16), (16, 48), (32, 32), (48, 16), (64, 96), (96, 64), (128, 128), (144, 80)]
)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 6), (11, 214)])
def test_products_by_amx_are_those_without(
    inputs: int, outputs: int, height: int, width: int, tiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    bias, weight = tensor(outputs, seed=2), tensor(outputs, inputs, 3, 3, seed=1) / (9 * inputs) ** 0.5
    up = tensor(inputs, outputs, 4, 4, seed=4) / (4 * inputs) ** 0.5

    def results() -> list[Tensor]:
        layers: list[Callable[[Tensor], Tensor]] = [
            WinogradConv(weight, bias, torch.bfloat16),
            DirectConv(weight, bias, 2, torch.bfloat16),
            DirectConv(weight[:, :, 1:2, 1:2] * 3, bias, 1, torch.bfloat16),
            DirectUp(up, bias, torch.bfloat16),
        ]
        return [layer(x) for layer in layers]

    x = tensor(2, inputs, height, width).bfloat16()
    want = results()
    asked = []

    def library() -> ctypes.CDLL:
        asked.append(1)
        return tiled

    monkeypatch.setattr(kernels, "library", library)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        got = results()
        for one, other in zip(got, want, strict=True):
            # Summed in another order, so some results are rounded the other way.
            assert (one - other).abs().max() < 0.04
        if threads == 1:
            alone = got
    assert all(map(torch.equal, got, alone))
    assert len(asked) >= 2 * len(got)


@pytest.mark.parametrize(
    ("flags", "half", "tiles", "pays", "gains"),
    [
        ({"avx512_bf16"}, 1, 0, True, True),
        ({"avx512_bf16"}, 1, 0, False, False),
        ({"avx512_bf16"}, 0, 0, True, False),
        ({"avx512_bf16", "amx_bf16"}, 1, 0, True, False),
        ({"avx512_bf16", "amx_bf16"}, 1, 1, False, False),
        ({"avx512_bf16", "amx_bf16"}, 1, 1, True, True),
    ],
)
def test_bf16_gains_by_avx512_where_that_pays_and_by_amx_where_it_is_faster(
    flags: set[str], half: int, tiles: int, pays: bool, gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SimpleNamespace(streamdeblur_half=lambda: half, streamdeblur_tiles=lambda: tiles)
    monkeypatch.setattr(kernels, "library", lambda: library)
    monkeypatch.setattr(winograd, "cpu_flags", lambda: flags)
    monkeypatch.setattr(winograd, "bf16_pays_without_amx", lambda: pays)
    monkeypatch.setattr(winograd, "_measure", lambda: {"pays": pays})
    monkeypatch.setattr(devices, "_decided", {})
    monkeypatch.setenv("STREAMDEBLUR_CACHE", "/dev/null/nowhere")
    assert gains_by_bf16() == gains


@needs_half
def test_a_layer_is_measured_against_onednn() -> None:
    found = winograd._measure()
    assert 0 < min(found["own_s"], found["onednn_s"]) < 1
    assert found["pays"] == (found["own_s"] < 0.9 * found["onednn_s"])


def compiler_that(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler of that behaviour is the one that is found."""
    script = folder / "compiler"
    script.write_text(f'#!/bin/sh\ncase "$*" in *--version*) echo made for this test;; *) {does};; esac\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_auto_goes_on_and_the_word_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert facts(build_engine(network(), device=CPU, precision="fp32")).name != "winograd"
    assert not caplog.records
    with pytest.raises(DeviceError, match=r"engine winograd needs a C\+\+ compiler; install g\+\+"):
        build_engine(network(), engine="winograd", device=CPU)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("echo 'x.cpp:1: error: no such machine' >&2; exit 1", r"ends with 1 \(x.cpp:1: error: no such machine\)"),
        ("printf 'error: \\351' >&2; exit 1", "ends with 1 .error: \ufffd."),
        ("exit 3", r"ends with 3 \(it does not say why\)"),
        ("kill -9 $$", "ends by signal 9"),
        ("true", "writes nothing"),
        ('for last; do :; done; echo rubbish > "$last"', "can't be loaded"),
    ],
)
def test_a_compiler_that_fails(
    does: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler_that(does, tmp_path, monkeypatch)
    with pytest.raises(DeviceError, match=told):
        build_engine(network(), engine="winograd", device=CPU)
    assert facts(build_engine(network(), device=CPU, precision="fp32")).name != "winograd"
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.usefixtures("fresh")
def test_a_compiler_of_another_tongue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "compiler"
    real = kernels.find_compiler()
    script.write_text(f"#!/bin/sh\nprintf '\\351\\n'\nexec {real} \"$@\"\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert facts(build_engine(network(), device=CPU, precision="fp32")).name == "winograd"


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("begins", ["", "setsid "])
def test_a_compiler_that_never_ends_is_stopped_and_not_tried_again(
    begins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    does = f"echo again >> {tmp_path}/tries; {begins}sleep 60 & echo $! > {tmp_path}/child; sleep 60"
    compiler_that(does, tmp_path, monkeypatch)
    kernels._compiler_version(str(tmp_path / "compiler"))
    monkeypatch.setattr(kernels, "_PATIENCE", 0.5)
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"takes longer than 0\.5 s"):
            kernels.library()
    assert (tmp_path / "tries").read_text() == "again\n"
    number = int((tmp_path / "child").read_text())
    if begins:  # it left the session, and holds the output: nobody waits for it
        psutil.Process(number).kill()  # raises where it is gone
    else:
        deadline = time.monotonic() + 20
        with suppress(psutil.NoSuchProcess):
            while psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, "it lives on"
                time.sleep(0.02)


@pytest.mark.usefixtures("fresh")
def test_without_openmp_results_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Clang, whose OpenMP is not that of PyTorch's wheels."""
    layer, x = WinogradConv(tensor(16, 16, 3, 3, seed=1), None), tensor(1, 16, 20, 30)
    want = layer(x)
    script = tmp_path / "compiler"
    real = kernels.find_compiler()
    script.write_text(f'#!/bin/sh\ncase "$*" in *-fopenmp*) exit 1;; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    kernels._library.cache_clear()
    assert torch.equal(WinogradConv(tensor(16, 16, 3, 3, seed=1), None)(x), want)


@pytest.mark.usefixtures("fresh")
def test_kernels_are_kept_and_a_file_cut_short_is_made_again(own_cache: Path) -> None:
    kernels.library()
    (path,) = (own_cache / "kernels").glob("*.so")
    made = path.stat().st_mtime_ns
    kernels._library.cache_clear()
    kernels.library()
    assert path.stat().st_mtime_ns == made
    # A new file: what is loaded of the old one must not change under the process.
    size = path.stat().st_size
    start = path.read_bytes()[:1000]
    path.unlink()
    path.write_bytes(start)
    kernels._library.cache_clear()
    assert kernels.library().streamdeblur_width() in (4, 8, 16)
    assert path.stat().st_size == size


@pytest.mark.usefixtures("fresh")
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / "file"))
    assert facts(build_engine(network(), engine="winograd", device=CPU)).name == "winograd"


@pytest.mark.usefixtures("fresh")
def test_a_full_cache_costs_time_only(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*names: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(kernels.shutil, "copyfile", full)
    assert facts(build_engine(network(), engine="winograd", device=CPU)).name == "winograd"
    assert not list((own_cache / "kernels").iterdir())


@pytest.mark.usefixtures("fresh")
def test_a_cache_from_which_nothing_may_be_run_costs_time_only(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.library()
    opened = kernels._open

    def refuse(path: Path) -> object:
        if own_cache in path.parents:
            raise DeviceError("failed to map segment from shared object", "")
        return opened(path)

    monkeypatch.setattr(kernels, "_open", refuse)
    kernels._library.cache_clear()
    assert kernels.library().streamdeblur_width() in (4, 8, 16)


@pytest.mark.usefixtures("fresh")
def test_a_temporary_folder_from_which_nothing_may_be_run_is_no_hindrance(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = kernels._open

    def refuse(path: Path) -> object:
        if own_cache not in path.parents:
            raise DeviceError("failed to map segment from shared object", "")
        return opened(path)

    monkeypatch.setattr(kernels, "_open", refuse)
    assert kernels.library().streamdeblur_parallel() in (0, 1)


@pytest.mark.usefixtures("fresh")
def test_no_temporary_folder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(DeviceError, match=r"no folder to compile kernels in .*; set TMPDIR"):
        kernels.library()
