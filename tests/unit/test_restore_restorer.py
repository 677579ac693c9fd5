"""The restorer: tilings agree, exact zeros and steps, fields, precisions, running out of memory, refusals."""

from __future__ import annotations

import itertools
import logging
import pickle
from collections.abc import Iterator
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamdeblur.errors import DeviceError, UsageError, WeightsError
from streamdeblur.frames import ColorSpec, Frame, FrameSpec, apply_correction
from streamdeblur.models import MIMOUNet, MIMOUNetConfig
from streamdeblur.restore import Restorer, RestorerSpec, Tiling, TorchEngine
from streamdeblur.restore.engines import devices, resolve_device

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Layers this small only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network() -> TorchEngine:
    """A random network of radius 53 whose corrections are of the size of the picture."""
    torch.manual_seed(5)
    model = MIMOUNet(MIMOUNetConfig(width=8, blocks=1))
    for parameter in model.parameters():
        if parameter.dim() == 4:
            torch.nn.init.kaiming_uniform_(parameter, nonlinearity="relu")
    return TorchEngine(model, CPU)


def picture(height: int, width: int, count: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def frame_of(color: ColorSpec, width: int, height: int, order: str = "progressive", seed: int = 0) -> Frame:
    rng = np.random.default_rng(seed)
    kind = np.uint8 if color.depth == 8 else np.uint16
    planes = tuple(
        rng.integers(0, color.max_code, s, endpoint=True).astype(kind) for s in color.plane_shapes(width, height)
    )
    return Frame(0, 0, Fraction(1, 25), planes, FrameSpec(width, height, color, order))  # type: ignore[arg-type]


TILINGS = [
    "auto",
    "exact",
    "fast",
    "whole",
    Tiling("fast", 32, 8, 3),
    Tiling("exact", 32, 0, 2),
    Tiling("fast", 4, 0),
    Tiling("whole"),
]


@pytest.mark.parametrize("size", [(150, 211), (1, 190), (190, 2), (7, 5), (128, 128)])
def test_exact_equals_whole(network: TorchEngine, size: tuple[int, int]) -> None:
    x = picture(*size, 2)
    whole = Restorer(engine=network, tiling="whole")(x)
    assert (whole - x).abs().mean() > 0.01
    tile = 2 * 4 * -(-network.receptive_radius // 4) + 24
    for batch in (1, 3):
        tiled = Restorer(engine=network, tiling=Tiling("exact", tile, 0, batch))
        assert (tiled(x) - whole).abs().max() < 1e-4


def test_less_than_the_receptive_radius_does_not_equal_whole(network: TorchEngine) -> None:
    # Shows that the comparison above can fail, and that the weights let distant pixels matter.
    x = picture(150, 211)
    whole = Restorer(engine=network, tiling="whole")(x)
    error = [(Restorer(engine=network, tiling=Tiling("fast", 64, o))(x) - whole).abs().mean() for o in (4, 16, 32)]
    assert error[0] > 1e-4
    assert error[0] > error[1] > error[2]


def test_images_of_a_batch_do_not_touch_each_other(network: TorchEngine) -> None:
    x = picture(40, 60, 3)
    restorer = Restorer(engine=network, tiling=Tiling("fast", 32, 8, 4))
    together = restorer(x)
    for n in range(3):
        assert torch.allclose(together[n : n + 1], restorer(x[n : n + 1]), atol=1e-6)


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_identity_is_exact(tiling: str | Tiling, precision: str) -> None:
    restorer = Restorer("identity", device="cpu", precision=precision, tiling=tiling)
    x = picture(45, 70) * 3 - 1
    assert torch.equal(restorer(x), x)
    for color in (ColorSpec("yuv", chroma_shift=(1, 1)), ColorSpec("gray", depth=10), ColorSpec("rgb", depth=16)):
        frame = frame_of(color, 70, 45, "tff")
        assert not any(c.any() for c in restorer.correction(frame))


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize(("order", "depth"), [("progressive", 8), ("bff", 8), ("progressive", 10)])
def test_offset_is_exact(tiling: str | Tiling, order: str, depth: int) -> None:
    red, green, blue = Fraction(6, 100), Fraction(-4, 100), Fraction(2, 100)
    y = Fraction(2126, 10000) * red + Fraction(7152, 10000) * green + Fraction(722, 10000) * blue
    unit = 2 ** (depth - 8)
    exact = (
        y * 219 * unit,
        (blue - y) / (2 * (1 - Fraction(722, 10000))) * 224 * unit,
        (red - y) / (2 * (1 - Fraction(2126, 10000))) * 224 * unit,
    )
    restorer = Restorer("offset:0.06,-0.04,0.02", device="cpu", tiling=tiling)
    frame = frame_of(ColorSpec("yuv", depth=depth, chroma_shift=(1, 1)), 67, 42, order)
    for got, want in zip(restorer.correction(frame), exact, strict=True):
        assert (got == floor(want + Fraction(1, 2))).all()


def test_correction_is_the_difference_that_the_tensor_call_makes(network: TorchEngine) -> None:
    color = ColorSpec("rgb", full_range=True)
    frame = frame_of(color, 50, 38)
    restorer = Restorer(engine=network, tiling="whole")
    x = torch.from_numpy(np.stack(frame.planes)).float()[None] / 255
    delta = (restorer(x) - x)[0].numpy() * 255
    for got, want in zip(restorer.correction(frame), delta, strict=True):
        assert np.abs(got - want).max() <= 0.501


def field(frame: Frame, parity: int) -> list[np.ndarray]:
    return [p[parity::2] for p in frame.planes]


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 6, 7, 8, 41, 42])
@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (1, 1), (2, 2)])
def test_fields_are_restored_apart(network: TorchEngine, height: int, shift: tuple[int, int]) -> None:
    color = ColorSpec("yuv", chroma_shift=shift, alpha=True)
    restorer = Restorer(engine=network, tiling="whole")
    frame = frame_of(color, 20, height, "tff")
    other = frame_of(color, 20, height, "tff", seed=1)
    base = restorer.correction(frame)
    assert [c.shape for c in base] == [p.shape for p in frame.planes[:3]]
    assert base[0].any()
    for changed in (0, 1):
        planes = tuple(p.copy() for p in frame.planes)
        for plane, new in zip(planes, other.planes, strict=True):
            plane[changed::2] = new[changed::2]
        mixed = restorer.correction(Frame(0, 0, Fraction(1, 25), planes, frame.spec))
        for a, b in zip(base, mixed, strict=True):
            assert np.array_equal(a[1 - changed :: 2], b[1 - changed :: 2])
        if base[0][changed::2].size:
            assert not np.array_equal(base[0][changed::2], mixed[0][changed::2])
    assert np.array_equal(apply_correction(frame, base).planes[3], frame.planes[3])


def test_a_field_is_restored_as_the_picture_that_it_is(network: TorchEngine) -> None:
    restorer = Restorer(engine=network, tiling="whole")
    color = ColorSpec("yuv", chroma_shift=(1, 1))
    frame = frame_of(color, 24, 32, "bff")
    whole = restorer.correction(frame)
    for parity in (0, 1):
        alone = Frame(0, 0, Fraction(1, 50), tuple(field(frame, parity)), FrameSpec(24, 16, color))
        for a, b in zip(whole, restorer.correction(alone), strict=True):
            assert np.array_equal(a[parity::2], b)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.004)])
def test_half_precision_is_near(precision: str, tolerance: float) -> None:
    x = picture(32, 40)
    full = Restorer("mimo-unet-small", weights="random:3", device="cpu", precision="fp32")(x)
    half = Restorer("mimo-unet-small", weights="random:3", device="cpu", precision=precision)(x)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_repetition_changes_no_bit_and_threads_hardly_any(precision: str) -> None:
    restorer = Restorer("mimo-unet-small", weights="random:1", device="cpu", precision=precision)
    frame = frame_of(ColorSpec("yuv", chroma_shift=(1, 1)), 100, 60)
    results = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        results.append(restorer.correction(frame))
    one, two, again = results
    for a, b, c in zip(one, two, again, strict=True):
        assert np.array_equal(a, c)
        assert np.abs(a - b).max() <= 1
        assert np.mean(a != b) < 0.01


def test_result_can_be_trained_with(network: TorchEngine) -> None:
    x = picture(16, 16).requires_grad_()
    y = Restorer(engine=network)(x)
    assert not y.requires_grad
    (y * torch.ones(1, requires_grad=True)).sum().backward()


def test_other_float_types_come_back_as_float32(network: TorchEngine) -> None:
    restorer = Restorer(engine=network)
    for kind in (torch.float64, torch.float16):
        assert restorer(picture(8, 8).to(kind)).dtype == torch.float32


class Greedy:
    """Runs out of memory above a number of input pixels, as CUDA does; halves every value otherwise."""

    device = CPU
    receptive_radius = 8
    bytes_per_pixel = 1.0

    def __init__(self, most: int) -> None:
        self.most, self.sizes = most, list[int]()

    def residual(self, batch: Tensor) -> Tensor:
        size = batch.shape[0] * batch.shape[2] * batch.shape[3]
        self.sizes.append(size)
        if size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch * -0.5


@pytest.mark.parametrize("tiling", ["whole", "fast", "auto", "exact", Tiling("fast", 64, 16, 8)])
def test_out_of_memory_makes_do_with_less_and_says_so_once(
    tiling: str | Tiling, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Greedy(48 * 48)
    restorer = Restorer(engine=engine, tiling=tiling)
    x = picture(100, 120)
    with caplog.at_level(logging.WARNING):
        assert torch.allclose(restorer(x), x / 2, atol=1e-6)
        failed = sum(s > engine.most for s in engine.sizes)
        assert failed > 0
        assert torch.allclose(restorer(x), x / 2, atol=1e-6)
    assert sum(s > engine.most for s in engine.sizes) == failed  # the second frame starts where the first ended
    assert len(caplog.records) == 1
    assert "out of memory" in caplog.text


@pytest.mark.parametrize("tiling", ["auto", "exact", "fast", "whole", Tiling("fast", 64, 16, 8)])
def test_no_memory_at_all_is_an_error(tiling: str | Tiling) -> None:
    with pytest.raises(DeviceError, match="has no memory"):
        Restorer(engine=Greedy(0), tiling=tiling)(picture(100, 120))


def test_exact_stays_exact_when_memory_runs_out(network: TorchEngine) -> None:
    class Small:
        device, bytes_per_pixel = CPU, 1.0
        receptive_radius = network.receptive_radius

        def residual(self, batch: Tensor) -> Tensor:
            if batch.shape[2] * batch.shape[3] > 40000:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return network.residual(batch)

    x = picture(180, 260)
    want = Restorer(engine=network, tiling="whole")(x)
    for tiling in ("exact", "whole"):
        assert (Restorer(engine=Small(), tiling=tiling)(x) - want).abs().max() < 1e-4


class Broken:
    device, receptive_radius, bytes_per_pixel = CPU, 0, 1.0

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def residual(self, batch: Tensor) -> Tensor:
        return torch.full_like(batch, torch.inf) - torch.inf


def test_numbers_that_are_none_are_not_written() -> None:
    frame = frame_of(ColorSpec("yuv"), 8, 8)
    with pytest.raises(DeviceError, match="overflowed in fp16"):
        Restorer(engine=Broken(torch.float16)).correction(frame)
    with pytest.raises(WeightsError, match="not finite"):
        Restorer(engine=Broken(torch.float32)).correction(frame)


@pytest.mark.parametrize(
    "bad",
    [
        torch.rand(3, 8, 8),
        torch.rand(1, 1, 8, 8),
        torch.rand(1, 3, 0, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        np.zeros((1, 3, 8, 8), np.float32),
    ],
)
def test_wrong_tensors_are_refused(network: TorchEngine, bad: Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        Restorer(engine=network)(bad)


def test_unknown_words_are_refused_with_the_choices(network: TorchEngine) -> None:
    for name, value in (("device", "tpu"), ("precision", "fp8"), ("tiling", "best"), ("device", "meta")):
        with pytest.raises(UsageError, match=f"{value}.*choose from auto, "):
            Restorer("identity", **{name: value})
    with pytest.raises(UsageError, match="engine"):
        Restorer("identity", engine=network)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_device_that_is_not_there() -> None:
    assert resolve_device("auto") == CPU
    for name in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="cuda"):
            resolve_device(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor: 0\nflags\t\t: fpu avx512f amx_bf16 amx_tile\n", {"amx_bf16"}),
        ("flags : fpu avx512_bf16\n", {"avx512_bf16"}),
        ("Features : fp asimd bf16 i8mm\n", {"bf16"}),
        ("flags : fpu avx512f avx512_bf16x\n", set()),
        ("", set()),
    ],
)
def test_cpu_flags(tmp_path: Path, text: str, expected: set[str]) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert devices.cpu_flags(file) == expected


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN")
def test_bf16_is_chosen_where_it_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    measured: list[tuple[float, float]] = []

    def product() -> tuple[float, float]:
        return measured[-1]

    flags: set[str] = set()
    monkeypatch.setattr(devices, "_product_seconds", product)
    monkeypatch.setattr(devices, "cpu_flags", lambda: flags)
    # What the processor names decides alone where that is certain: a measurement would raise IndexError here.
    assert not devices.bf16_pays()
    flags = {"amx_bf16", "avx512_bf16"}
    assert devices.bf16_pays()
    flags = {"avx512_bf16"}
    for number, (fp32, bf16, expected) in enumerate(((1.0, 0.5, True), (1.0, 2.0, False), (1.0, 0.97, False))):
        monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / str(number)))
        measured.append((fp32, bf16))
        assert devices.bf16_pays() is expected
        measured.append((bf16, fp32))
        assert devices.bf16_pays() is expected, "measured once on a machine"
        devices._decided.clear()  # another process
        assert devices.bf16_pays() is expected, "kept for other processes"
    # An AMX that oneDNN may not use is worth nothing.
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / "other"))
    flags = {"amx_bf16", "avx512_bf16"}
    measured.append((1.0, 2.0))
    assert not devices.bf16_pays()


def test_the_product_of_both_precisions_is_timed() -> None:
    fp32, bf16 = devices._product_seconds()
    assert 0 < fp32 < 60
    assert 0 < bf16 < 600


def test_recipe_travels_and_builds_the_same() -> None:
    tiling = Restorer("mimo-unet-small", weights="random:2", device="cpu").plan(60, 90)
    spec = RestorerSpec("mimo-unet-small", "random:2", "cpu", "fp32", tiling, threads=torch.get_num_threads())
    frame = frame_of(ColorSpec("yuv", chroma_shift=(1, 0)), 90, 60)
    one, two = spec.build(), pickle.loads(pickle.dumps(spec)).build()
    for a, b in zip(one.correction(frame), two.correction(frame), strict=True):
        assert np.array_equal(a, b)
    assert one.plan(60, 90) == tiling


@pytest.mark.parametrize(("order", "shift"), list(itertools.product(("progressive", "tff"), ((0, 0), (1, 1)))))
def test_tiny_frames(order: str, shift: tuple[int, int], network: TorchEngine) -> None:
    restorer = Restorer(engine=network)
    for width, height in itertools.product((1, 2, 3, 5), repeat=2):
        frame = frame_of(ColorSpec("yuv", chroma_shift=shift), width, height, order)
        assert apply_correction(frame, restorer.correction(frame)).spec == frame.spec


class _Shared:
    """An engine that two threads may call at once, and that tells with how many threads of PyTorch it was."""

    device, receptive_radius, bytes_per_pixel, at_once = torch.device("cpu"), 0, 10.0, 1

    def __init__(self) -> None:
        self.threads: list[int] = []

    def share(self) -> int:
        self.at_once = 2
        return 2

    def residual(self, batch: Tensor) -> Tensor:
        self.threads.append(torch.get_num_threads())
        return torch.zeros_like(batch)


def test_callers_that_share_have_their_part_of_the_threads_and_leave_the_others_alone() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        engine = _Shared()
        restorer = Restorer(engine=engine)
        restorer(torch.zeros(1, 3, 16, 16))
        assert restorer.share() == 2
        restorer(torch.zeros(1, 3, 16, 16))
        assert engine.threads == [4, 2]
        assert torch.get_num_threads() == 4
        assert Restorer("identity", device="cpu").share() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"model": 5}, "model 5 is no name"),
        ({"model": "identity", "memory": "300MB"}, "memory '300MB' is no number of bytes"),
        ({"model": "identity", "tiling": 64}, "tiling 64 is not known"),
    ],
)
def test_arguments_of_wrong_types_are_told(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Restorer(**arguments)
