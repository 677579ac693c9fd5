"""Engines: folding is exact, choice by words and by what is there, verdicts, caches, refusals."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamdeblur.errors import DeviceError, UsageError
from streamdeblur.models import Identity, MIMOUNet, MIMOUNetConfig, ResidualModel, SelfEnsemble, registry
from streamdeblur.models.analysis import flop_per_pixel
from streamdeblur.models.folding import can_fold, fold
from streamdeblur.models.random_weights import random_state
from streamdeblur.models.trial import TOLERANCES, fingerprint, leaves, noise, picture, pictures
from streamdeblur.restore import Restorer, RestorerSpec
from streamdeblur.restore.engines import TorchEngine, build_engine, cache, choose, facts
from streamdeblur.restore.engines.choose import EnsembleEngine
from streamdeblur.restore.engines.fused import FusedEngine, cpu_callers

CPU = torch.device("cpu")
#: A network of our own kind without shipped weights: small, every layer in it.
TINY = MIMOUNetConfig(width=8, blocks=1)

pytestmark = pytest.mark.usefixtures("own_cache")

needs_onednn = pytest.mark.skipif(
    not can_fold(MIMOUNet(TINY), torch.float32), reason="this PyTorch has no oneDNN operations"
)
needs_onednn_bf16 = pytest.mark.skipif(
    not can_fold(MIMOUNet(TINY), torch.bfloat16), reason="oneDNN has no bf16 on this CPU"
)


def network(config: MIMOUNetConfig = TINY, seed: int = 0) -> MIMOUNet:
    net = MIMOUNet(config)
    net.load_state_dict(random_state(config, seed))
    return net.eval().requires_grad_(False)


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize(
    ("engine", "precision", "words"),
    [
        ("onnx", "auto", "engine onnx"),
        ("auto", "int8", "int8"),
        ("fused", "int8", "engine fused and int8"),
        ("eager", "int8", "int8"),  # eager is what runs
    ],
)
def test_what_a_model_without_weights_ignores_is_told(
    engine: str, precision: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    Restorer("identity", device="cpu", engine=engine, precision=precision)
    (record,) = caplog.records
    assert record.getMessage() == f"a model without weights runs in eager fp32: {words} has no effect"


@needs_onednn
@pytest.mark.parametrize(
    "config",
    [
        TINY,
        MIMOUNetConfig(width=8, blocks=2, mise=False, mosd=False),
        MIMOUNetConfig(width=8, blocks=1, aff=False),
        MIMOUNetConfig(width=8, blocks=1, fusion="concat"),
        MIMOUNetConfig(width=8, blocks=1, fusion="sum"),
        MIMOUNetConfig(width=6, blocks=1, mise=False, aff=False),
    ],
    ids=lambda c: f"{c.width}-{c.blocks}-{c.mise}-{c.aff}-{c.fusion}",
)
def test_folding_is_exact(config: MIMOUNetConfig) -> None:
    net = network(config)
    folded = fold(net, torch.float32)
    for size in ((64, 48), (4, 4), (4, 100), (36, 8)):
        x = noise(*size)
        before = x.clone()
        with torch.inference_mode():
            want = net.residual(x)
            got = folded.residual(x.contiguous(memory_format=torch.channels_last))
            again = folded.residual(x)
        assert (got - want).abs().max() < 1e-6
        assert torch.equal(got, again)
        assert torch.equal(x, before)  # what is written over is never the caller's
        assert rms(want) > 1e-3


@needs_onednn_bf16
def test_folded_in_bf16_is_as_near_as_eager_mode_in_bf16() -> None:
    net = network(MIMOUNetConfig(width=16, blocks=2))
    x = pictures(64, 96)
    with torch.inference_mode():
        want = net.residual(x)
        folded = FusedEngine(net, torch.bfloat16).residual(x).float()
        eager = TorchEngine(net, CPU, torch.bfloat16).residual(x).float()
    assert 0 < rms(folded - want) < 2 * rms(eager - want)
    assert TOLERANCES["bf16"].error(folded, want) < TOLERANCES["bf16"].allowed(want)


@needs_onednn
def test_folded_ensemble_is_the_ensemble() -> None:
    net = SelfEnsemble(network(), 8)
    x = noise(32, 48)
    with torch.inference_mode():
        assert (fold(net, torch.float32).residual(x) - net.residual(x)).abs().max() < 1e-6


@needs_onednn
def test_folding_leaves_the_network_alone() -> None:
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    FusedEngine(net, torch.float32).residual(noise(16, 16))
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


@needs_onednn_bf16
def test_threads_change_no_bit_of_bf16() -> None:
    engine = FusedEngine(network(MIMOUNetConfig(width=16, blocks=2)), torch.bfloat16)
    x = noise(96, 128)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(engine.residual(x).clone())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_what_can_be_folded() -> None:
    assert not can_fold(Identity(), torch.float32)
    assert not can_fold(network(), torch.float16)
    with pytest.raises(ValueError, match="fused"):
        fold(Identity(), torch.float32)


# --- choice


@pytest.mark.parametrize("model", ["identity", "offset"])
def test_models_without_weights_stay_on_eager_mode(model: str, own_cache: Path) -> None:
    engine = Restorer(model, device="cpu").engine
    assert (facts(engine).name, facts(engine).precision) == ("eager", "fp32")
    assert not own_cache.exists()


@needs_onednn
@pytest.mark.parametrize("compiler", [False, True])
def test_auto_on_a_cpu_starts_at_once_and_takes_openvino_only_where_it_pays(
    compiler: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def refuse(way: choose._Way, *rest: object) -> str:
        tried.append(way.name)
        return "refused"

    monkeypatch.setattr(choose, "_try", refuse)
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(choose.kernels, "find_compiler", lambda: "c++" if compiler else None)
    monkeypatch.setattr(choose.kernels, "_compiler_version", lambda name: name)
    import streamdeblur.restore.engines.openvino as ov

    monkeypatch.setattr(ov, "version", lambda: "1")
    ready = False
    monkeypatch.setattr(ov, "is_ready", lambda print_: ready)
    for known, flop, expected in (
        (False, None, ["fused"]),
        (False, choose.PAYS_FLOP / 2, ["fused"]),
        (False, choose.PAYS_FLOP * 2, ["openvino", "fused"]),
        (True, None, ["openvino", "fused"]),
    ):
        ready = known
        tried.clear()
        assert facts(build_engine(network(), device=CPU, precision="fp32", flop=flop)).name == "eager"
        assert tried == ["winograd"] * compiler + expected


@needs_onednn
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_onednn_bf16)])
def test_the_engine_asked_for_is_taken(precision: str) -> None:
    for word in ("eager", "fused"):
        found = facts(build_engine(network(), engine=word, device=CPU, precision=precision))
        assert (found.name, found.precision) == (word, precision)
        assert found.prepare_seconds >= 0
    assert found.tile is not None


def test_fp16_on_a_cpu_is_eager_mode() -> None:
    assert facts(build_engine(network(), device=CPU, precision="fp16")).name == "eager"


@needs_onednn
def test_an_ensemble_runs_its_network_through_the_engine() -> None:
    net = SelfEnsemble(network(), 8)
    x = noise(32, 48)
    with torch.inference_mode():
        want = net.residual(x)
    engine = build_engine(net, engine="fused", device=CPU, precision="fp32")
    assert isinstance(engine, EnsembleEngine)
    assert (engine.residual(x) - want).abs().max() < 1e-6
    found = facts(engine)
    assert (found.name, found.precision) == ("fused", "fp32")
    assert found.prepare_seconds > 0
    assert engine.bytes_per_pixel > engine.inner.bytes_per_pixel
    assert engine.receptive_radius == net.receptive_radius


@pytest.mark.parametrize(
    ("engine", "precision", "words"),
    [
        ("tpu", "auto", "engine 'tpu' is not known; choose from auto, eager, fused"),
        ("cuda-graphs", "auto", "cuda-graphs does not run on cpu"),
        ("fused", "fp16", "fused does not run this network in fp16"),
        ("openvino", "fp16", "openvino does not run fp16"),
        ("onnx", "bf16", "onnx runs in fp32, not bf16"),
        ("fused", "int8", "int8 needs engine openvino"),
        ("fused", "fp8", "precision 'fp8' is not known"),
    ],
)
def test_impossible_words_are_refused_in_one_line(engine: str, precision: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        build_engine(network(), engine=engine, device=CPU, precision=precision)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("engine", "precision", "module", "extra"),
    [
        ("openvino", "auto", "openvino", "openvino"),
        ("auto", "int8", "openvino", "openvino"),
        ("onnx", "auto", "onnxruntime", "onnx"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    engine: str, precision: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)  # import raises ImportError
    with pytest.raises(UsageError, match=rf"{module} is not installed; pip install 'streamdeblur\[{extra}\]'"):
        build_engine(network(), engine=engine, device=CPU, precision=precision)


def test_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(DeviceError, match="needs a C\\+\\+ compiler"):
        build_engine(network(), engine="compile", device=CPU)


def test_flop_per_pixel_counts_every_pass() -> None:
    # MIMO-UNet: 1792 GFLOP for 1280x720 without the small heads.
    plain = registry.build("mimo-unet", "random:0")
    assert flop_per_pixel(plain) == pytest.approx(1792e9 / (1280 * 720), rel=0.01)
    assert flop_per_pixel(SelfEnsemble(plain, 4)) == pytest.approx(4 * flop_per_pixel(plain))
    assert flop_per_pixel(Identity()) == 0


def test_the_recipe_carries_the_engine() -> None:
    spec = RestorerSpec("mimo-unet-small", "random:0", "cpu", "fp32", engine="eager")
    assert facts(spec.build().engine).name == "eager"


# --- verdicts


class Off(ResidualModel):
    """A network with weights that adds ``step`` to its own correction where it is not eager mode's reference."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.step = step

    @property
    def receptive_radius(self) -> int:
        return 0

    def residual(self, x: Tensor) -> Tensor:
        return x * 0.1 * self.weight


class Wrong:
    """An engine that is off by a constant, and counts its calls."""

    name, precision, device, receptive_radius, bytes_per_pixel, prepare_seconds = "fused", "fp32", CPU, 0, 1.0, 0.0
    calls = 0

    def __init__(self, step: float) -> None:
        self.step = step

    def residual(self, batch: Tensor) -> Tensor:
        type(self).calls += 1
        return batch * 0.1 + self.step


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> type[Wrong]:
    Wrong.calls = 0
    monkeypatch.setattr(choose, "can_fold", lambda model, dtype: True)
    monkeypatch.setitem(choose._MAKERS, "fused", lambda model, device, precision: Wrong(model.step))
    return Wrong


def test_an_engine_that_computes_something_else_gives_way_with_one_warning(
    wrong: type[Wrong], caplog: pytest.LogCaptureFixture
) -> None:
    for attempt in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            engine = build_engine(Off(0.01), engine="fused", device=CPU, precision="fp32")
        assert facts(engine).name == "eager"
        (record,) = caplog.records
        assert "fused in fp32 is 0.01 from eager fp32" in record.getMessage()
        assert record.getMessage().endswith("allowed: goes on with eager in fp32")
        assert wrong.calls == 2, f"the second start, {attempt}, knows the verdict of the first"


def test_a_good_verdict_is_remembered_by_weights(wrong: type[Wrong], own_cache: Path) -> None:
    for _ in range(2):
        assert isinstance(build_engine(Off(0.0), engine="fused", device=CPU, precision="fp32"), Wrong)
        assert wrong.calls == 2
    changed = Off(0.0)
    with torch.no_grad():
        changed.weight += 1e-6
    build_engine(changed, engine="fused", device=CPU, precision="fp32")
    assert wrong.calls == 4
    files = sorted(own_cache.rglob("*"))
    assert [f.suffix for f in files if f.is_file()] == [".json", ".json"]
    assert all(json.loads(f.read_text())["passed"] for f in files if f.is_file())


def test_a_damaged_verdict_is_tried_again(wrong: type[Wrong], own_cache: Path) -> None:
    build_engine(Off(0.0), engine="fused", device=CPU, precision="fp32")
    odd = '{"passed": "false", "error": 0, "allowed": 1}'
    for text in ("", "[1]", '{"passed": true}', '{"passed": false, "error": null, "allowed": null}', odd):
        (file,) = own_cache.rglob("*.json")
        file.write_text(text)
        before = wrong.calls
        build_engine(Off(0.0), engine="fused", device=CPU, precision="fp32")
        assert wrong.calls == before + 2


def test_numbers_that_are_none_fail_the_trial(wrong: type[Wrong], own_cache: Path) -> None:
    engine = build_engine(Off(float("nan")), engine="fused", device=CPU, precision="fp32")
    assert facts(engine).name == "eager"
    (file,) = own_cache.rglob("*.json")
    assert json.loads(file.read_text())["passed"] is False


def test_a_verdict_on_int8_belongs_to_the_graph(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import streamdeblur.restore.engines.openvino as ov

    class Graph(Wrong):
        """Computes what the graph in the cache says; makes a good one where there is none."""

        name, precision = "openvino", "int8"

        def __init__(self, model: ResidualModel) -> None:
            path = ov.graph_path(fingerprint(model), int8=True)
            if not ov.is_ready(fingerprint(model), int8=True):
                keep(0.0)
            super().__init__(float(path.read_text()))

    def keep(step: float) -> None:
        path = ov.graph_path(fingerprint(Off(0.0)), int8=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(step))
        path.with_suffix(".bin").touch()
        cache.seal(path, path.with_suffix(".bin"))

    def engine() -> str:
        caplog.clear()
        found = facts(build_engine(Off(0.0), device=CPU, precision="int8"))
        assert len(caplog.records) == (found.precision != "int8")
        return f"{found.name} in {found.precision}"

    monkeypatch.setattr(ov, "version", lambda: "1")
    monkeypatch.setitem(
        choose._MAKERS, "openvino", lambda model, device, kind: Graph(model) if kind == "int8" else Wrong(0.0)
    )
    Wrong.calls = Graph.calls = 0
    assert engine() == "openvino in int8"
    assert engine() == "openvino in int8"
    assert Graph.calls == 2, "the second start, with the graph of the first, knows its verdict"
    keep(0.5)
    for _ in range(2):
        assert engine() == "fused in fp32"  # what stands for openvino in floating point
        assert "int8 is 0.5 from eager fp32" in caplog.records[0].getMessage()
        assert "goes on with openvino in " in caplog.records[0].getMessage()
        assert Graph.calls == 4, "a graph that failed is not tried again"
    keep(0.0)
    assert engine() == "openvino in int8"


def test_a_verdict_on_what_is_not_kept_is_not_kept_either(own_cache: Path) -> None:
    from streamdeblur.restore.engines.verdicts import Trials

    trials = Trials("unkept", lambda batch: 0.1 * batch)
    assert trials.judge(Wrong(0.0), "openvino", "int8", None).passed
    assert not trials.judge(Wrong(0.5), "openvino", "int8", None).passed
    assert not own_cache.exists()


def test_an_engine_that_raises_gives_way(
    wrong: type[Wrong], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Wrong:
        raise RuntimeError("no such kernel\nstack")

    monkeypatch.setitem(choose._MAKERS, "fused", fail)
    with caplog.at_level(logging.WARNING):
        assert facts(build_engine(Off(0.0), engine="fused", device=CPU, precision="fp32")).name == "eager"
    (record,) = caplog.records
    assert record.getMessage() == "engine fused fails here (no such kernel): goes on with eager in fp32"


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    wrong: type[Wrong], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert isinstance(build_engine(Off(0.0), engine="fused", device=CPU, precision="fp32"), Wrong)
    assert not caplog.records


# --- cache and test pictures


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("STREAMDEBLUR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.cache_folder() == Path("/x/streamdeblur/engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache.cache_folder() == Path("/home/me/.cache/streamdeblur/engines")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    cache.write_json(target, {"a": 1})
    cache.write_json(target / "b.json", {"b": 1})  # below a file: told to the log alone
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        cache.put_json(target / "b.json", {"b": 1})
    with pytest.raises(FileNotFoundError), cache.replacing(target) as temporary:
        temporary.write_text("half") and (tmp_path / "missing").read_text()
    assert cache.read_json(target) == {"a": 1}
    assert os.listdir(target.parent) == ["a.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask


def test_of_processes_that_measure_at_once_all_follow_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "deep" / "a.json"
    assert cache.keep_first(target, {"a": 1}) == {"a": 1}
    assert cache.keep_first(target, {"a": 2}) == {"a": 1} == cache.read_json(target)
    assert os.listdir(target.parent) == ["a.json"]
    target.write_text("half of somethi", encoding="utf-8")
    assert cache.keep_first(target, {"a": 3}) == {"a": 3} == cache.read_json(target)

    def no_links(*paths: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    assert cache.keep_first(tmp_path / "b.json", {"a": 4}) == {"a": 4} == cache.read_json(tmp_path / "b.json")
    target.with_name("c").write_text("no folder", encoding="utf-8")
    assert cache.keep_first(target.with_name("c") / "c.json", {"a": 5}) == {"a": 5}
    assert sorted(os.listdir(target.parent)) == ["a.json", "c"]


def test_a_seal_tells_damaged_files(tmp_path: Path) -> None:
    a, b = tmp_path / "a.xml", tmp_path / "a.bin"
    a.write_bytes(b"graph")
    b.write_bytes(bytes(3_000_000))
    assert not cache.intact(a, b)
    assert cache.contents(a, b) is None
    cache.seal(a, b)
    assert cache.intact(a, b)
    first = cache.contents(a, b)
    assert first is not None
    b.write_bytes(bytes(2_999_999) + b"1")
    assert not cache.intact(a, b)
    cache.seal(a, b)
    assert cache.intact(a, b)
    assert cache.contents(a, b) not in (None, first)
    b.unlink()
    assert not cache.intact(a, b)


def test_the_processor_is_named_by_what_it_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("model name : Xeon\nflags : avx2 amx_bf16\ncpu MHz : 1000\n\nmodel name : Xeon\n")
    two.write_text("model name : Xeon\nflags : avx2\ncpu MHz : 2000\n\n")
    assert "Xeon avx2 amx_bf16" in cache.cpu_name(one)
    assert "1000" not in cache.cpu_name(one)
    assert cache.cpu_name(one) != cache.cpu_name(two)


def test_fingerprints_tell_networks_apart() -> None:
    prints = {
        fingerprint(network()),
        fingerprint(network(seed=1)),
        fingerprint(network(MIMOUNetConfig(width=8, blocks=1, fusion="sum"))),
        fingerprint(network().to(torch.bfloat16)),
    }
    assert len(prints) == 4
    assert fingerprint(network()) in prints


def test_test_pictures_are_pictures() -> None:
    for maker in (noise, picture):
        x = maker(60, 92)
        assert x.shape == (1, 3, 60, 92)
        assert x.dtype == torch.float32
        assert 0 <= float(x.min()) < float(x.max()) <= 1
        assert rms(x - x.mean()) > 0.1
    # Blurred: neighbours along a row are more alike than in the noise, by far.
    steps = [rms(maker(60, 92).diff(dim=-1)) for maker in (noise, picture)]
    assert steps[1] < steps[0] / 5
    assert pictures(8, 12).shape == (2, 3, 8, 12)


def test_tolerances_measure_root_mean_squares() -> None:
    reference = torch.full((4,), 0.1)
    tolerance = TOLERANCES["bf16"]
    assert tolerance.allowed(reference) == pytest.approx(max(tolerance.absolute, 0.1 * tolerance.relative))
    assert tolerance.error(reference + torch.tensor([0.0, 0.0, 0.0, 0.02]), reference) == pytest.approx(0.01)
    assert tolerance.error(reference[:2], reference) == float("inf")
    assert tolerance.error(reference / 0, reference) == float("inf")
    assert tolerance.allowed(torch.zeros(4)) == tolerance.absolute


def test_the_worse_picture_judges_and_noise_by_its_own_measure() -> None:
    wanted = [torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.1)]
    for precision, off, worst in (("bf16", 0.02, 1), ("int8", 0.02, 1), ("fp32", 0.02, 1)):
        found = [w + off for w in wanted]  # the same error is more of the smaller correction
        error, allowed = TOLERANCES[precision].judge(found, wanted)
        assert error == pytest.approx(off, rel=1e-4)
        assert allowed == TOLERANCES[precision].allowed(wanted[worst])
    cut = [wanted[0] * 0.4, wanted[1]]  # noise, cut off at the range of pictures
    error, allowed = TOLERANCES["int8"].judge(cut, wanted)
    assert error <= allowed
    error, allowed = TOLERANCES["int8"].judge(cut[::-1], wanted[::-1])  # the same in a picture
    assert error > allowed
    assert TOLERANCES["bf16"].judge(cut, wanted)[0] > TOLERANCES["bf16"].judge(cut, wanted)[1]
    assert TOLERANCES["bf16"].judge(cut[:1], wanted[:1])[0] == pytest.approx(0.3)


def test_leaves_are_pictures_of_their_own() -> None:
    one, other = leaves(60, 92, 0), leaves(60, 92, 1)
    assert one.shape == (1, 3, 60, 92)
    assert 0 <= float(one.min()) < float(one.max()) <= 1
    assert rms(one - one.mean()) > 0.1
    assert rms(one - other) > 0.1
    assert torch.equal(leaves.__wrapped__(60, 92, 0), one)


def test_what_is_made_for_one_size_is_tried_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from streamdeblur.restore.engines.verdicts import Trials

    class Two:
        """Right for any size, wrong once it was made ready for one."""

        device, receptive_radius, bytes_per_pixel, off = torch.device("cpu"), 1, 1.0, 0.0

        def prepare(self, height: int, width: int) -> None:
            self.off = 0.5

        def residual(self, batch: Tensor) -> Tensor:
            return 0.1 * batch + self.off

    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path))
    verdict = Trials("two", lambda batch: 0.1 * batch).judge(Two(), "two", "bf16", "1")
    assert not verdict.passed
    assert verdict.error == pytest.approx(0.5, rel=0.01)


def test_calls_side_by_side_use_the_threads() -> None:
    assert [cpu_callers(n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 16)] == [1, 2, 3, 4, 4, 3, 3, 4, 4]
    for n in range(1, 130):
        callers = cpu_callers(n)
        assert n // callers * callers >= 0.8 * n
