"""Engines of optional libraries: OpenVINO, ONNX Runtime, torch.compile; exported files; jobs that use them."""

from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamdeblur.config import ProcessOptions, parse
from streamdeblur.errors import OutputError, UsageError
from streamdeblur.evaluation.restorers import load_candidates
from streamdeblur.frames import ColorSpec, Frame, FrameSpec
from streamdeblur.jobs import export as export_job
from streamdeblur.jobs.export import export_network
from streamdeblur.jobs.workforce import Workforce
from streamdeblur.models import MIMOUNet, registry
from streamdeblur.models.folding import can_fold
from streamdeblur.models.trial import TOLERANCES, fingerprint, picture, pictures
from streamdeblur.restore import Restorer, Tiling
from streamdeblur.restore.engines import build_engine, cache, facts, kernels, share
from streamdeblur.restore.engines.devices import cpu_flags
from streamdeblur.restore.engines.openvino import Compiled, OpenVINOEngine
from streamdeblur.restore.memory import own_memory
from streamdeblur.runtime import Result
from tests.commands import run

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
MODEL, WEIGHTS = "mimo-unet-small", "random:4"


@pytest.fixture(scope="module", autouse=True)
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the module: exporting is most of the time here. Workers of Ray get it by the environment."""
    folder = tmp_path_factory.mktemp("cache")
    before, threads = os.environ.get("STREAMDEBLUR_CACHE"), torch.get_num_threads()
    os.environ["STREAMDEBLUR_CACHE"] = str(folder)
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)
    os.environ.pop("STREAMDEBLUR_CACHE")
    if before is not None:
        os.environ["STREAMDEBLUR_CACHE"] = before


def network() -> MIMOUNet:
    net = registry.build(MODEL, WEIGHTS)
    assert isinstance(net, MIMOUNet)
    return net.eval()


def reference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return network().residual(x)


@pytest.fixture(scope="module")
def openvino_graph(module_cache: Path) -> Path:
    """The folder with the exported graph of the network in it."""
    pytest.importorskip("openvino")
    build_engine(network(), engine="openvino", device=CPU, precision="fp32")
    return module_cache / "openvino"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_computes_the_correction_and_changes_no_bit_with_threads(openvino_graph: Path, precision: str) -> None:
    x, small = pictures(64, 96), picture(32, 40)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        engine = build_engine(network(), engine="openvino", device=CPU, precision=precision)
        assert (facts(engine).name, facts(engine).precision) == ("openvino", precision)
        before = facts(engine).prepare_seconds
        first = engine.residual(x)
        kept = first.clone()
        assert torch.equal(engine.residual(small), engine.residual(small))
        assert torch.equal(engine.residual(x), kept)
        assert torch.equal(first, kept)  # a later call does not write to an earlier result
        assert facts(engine).prepare_seconds > before  # two new shapes
        results.append(kept)
    torch.set_num_threads(1)
    want = reference(x)
    tolerance = TOLERANCES[precision]
    assert tolerance.error(results[0], want) < tolerance.allowed(want)
    if precision == "bf16":
        assert torch.equal(results[0], results[1])
    else:
        assert (results[0] - results[1]).abs().max() < 1e-5


WINOGRAD_BF16 = pytest.param(
    "winograd",
    "bf16",
    marks=pytest.mark.skipif("avx512_bf16" not in cpu_flags(), reason="this CPU has no AVX512-BF16"),
)


@pytest.mark.parametrize(
    ("word", "precision"),
    [
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("fused", "fp32"),
        ("fused", "bf16"),
        ("winograd", "fp32"),
        WINOGRAD_BF16,
    ],
)
def test_engines_side_by_side_compute_the_same(openvino_graph: Path, word: str, precision: str) -> None:
    if word == "fused" and not can_fold(network(), torch.float32 if precision == "fp32" else torch.bfloat16):
        pytest.skip(f"oneDNN has no fused {precision} on this CPU")
    alone = build_engine(network(), engine=word, device=CPU, precision=precision)  # with one thread
    torch.set_num_threads(2)
    try:
        engine = build_engine(network(), engine=word, device=CPU, precision=precision)
        assert (facts(engine).name, facts(engine).at_once) == (word, 1)
        assert share(engine) == 2 == facts(engine).at_once
        inputs = [picture(side, 40 + 8 * (side % 3)) for side in (32, 48, 64) * 4]
        # Each with its share of the threads, as a restorer calls it.
        with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            results = list(threads.map(engine.residual, inputs))
    finally:
        torch.set_num_threads(1)
    for x, found in zip(inputs, results, strict=True):
        assert torch.equal(found, alone.residual(x))


@pytest.mark.parametrize(("word", "precision"), [("openvino", "bf16"), ("fused", "fp32"), ("winograd", "fp32")])
def test_a_job_of_its_own_works_on_frames_side_by_side(openvino_graph: Path, word: str, precision: str) -> None:
    torch.set_num_threads(2)
    try:
        given = {"model": MODEL, "weights": WEIGHTS, "device": "cpu", "precision": precision, "engine": word}
        workforce = Workforce(parse(ProcessOptions, given), (96, 64), 10)
        found = {}
        with workforce.pool as pool:
            assert pool.capacity == 3
            for index in range(3):
                pool.submit(gray(index))
            while len(found) < 3:
                found |= {r.index: r for r in pool.collect(20)}
    finally:
        torch.set_num_threads(1)
    alone = Restorer(MODEL, weights=WEIGHTS, device="cpu", precision=precision, engine=word, tiling=workforce.tiling)
    for index, result in found.items():
        assert isinstance(result, Result)
        assert np.array_equal(result.corrections[0], alone.correction(gray(index))[0])


def test_a_graph_is_made_once_and_others_go_on_meanwhile(openvino_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVINOEngine(network(), "fp32")
    engine.share()
    engine.prepare(264, 256)  # such sizes are too large for the graph that takes any small window
    compile_, begun, go_on, shapes = engine._compile, threading.Event(), threading.Event(), []

    def compiled(shape: tuple[int, ...]) -> Compiled:
        shapes.append(shape)
        begun.set()
        assert go_on.wait(60)
        return compile_(shape)

    monkeypatch.setattr(engine, "_compile", compiled)
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(engine.residual, picture(260, 256)) for _ in range(3)]
        assert begun.wait(60)
        engine.residual(picture(264, 256))  # would wait for ever, did it wait for the other graph
        assert not any(call.done() for call in waiting)
        go_on.set()
        first, *others = [call.result(60) for call in waiting]
    assert shapes == [(1, 3, 260, 256)]
    assert all(torch.equal(first, other) for other in others)


def test_two_first_calls_at_once_come_back(openvino_graph: Path) -> None:
    """In a process of its own, with graph and verdict known: nothing has called the library before the two."""
    code = f"""
import threading, torch
torch.set_num_threads(2)
from streamdeblur.models import registry
from streamdeblur.models.trial import picture
from streamdeblur.restore.engines import build_engine, facts, share
net = registry.build({MODEL!r}, {WEIGHTS!r}).eval()
engine = build_engine(net, engine="openvino", device=torch.device("cpu"), precision="bf16")
assert share(engine) == 2
engine.prepare(32, 48)
together = threading.Barrier(2)
def call():
    together.wait()
    engine.residual(picture(32, 48))
threads = [threading.Thread(target=call, daemon=True) for _ in range(2)]
[t.start() for t in threads]
[t.join(60) for t in threads]
print([t.is_alive() for t in threads])
"""
    build_engine(network(), engine="openvino", device=CPU, precision="bf16")  # the verdict is known from here on
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.strip() == "[False, False]", done.stderr


def gray(index: int) -> Frame:
    plane = np.random.default_rng(index).integers(0, 256, (64, 96), np.uint8)
    return Frame(index, index, Fraction(1, 25), (plane,), FrameSpec(96, 64, ColorSpec("gray", full_range=True)))


def test_windows_that_were_prepared_make_no_frame_wait(openvino_graph: Path) -> None:
    restorer = Restorer(MODEL, weights=WEIGHTS, device="cpu", precision="bf16", engine="openvino")
    before = facts(restorer.engine).prepare_seconds
    restorer.prepare([(32, 48), (48, 32)])
    ready = facts(restorer.engine).prepare_seconds
    assert ready > before
    for high, wide in ((32, 48), (48, 32)):
        restorer(picture(high, wide))
    assert facts(restorer.engine).prepare_seconds == ready
    restorer(picture(260, 256))  # too large for the graph that takes any small window
    assert facts(restorer.engine).prepare_seconds > ready
    Restorer("identity", device="cpu").prepare([(32, 48)])  # nothing to get ready


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_small_windows_share_a_graph_until_one_of_their_own_is_worth_it(
    openvino_graph: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamdeblur.restore.engines.openvino import OpenVINOEngine

    compiled: list[tuple[int, ...]] = []
    compile_ = OpenVINOEngine._compile

    def counted(engine: OpenVINOEngine, shape: tuple[int, ...]) -> Any:
        compiled.append(shape)
        return compile_(engine, shape)

    monkeypatch.setattr(OpenVINOEngine, "_compile", counted)
    engine = build_engine(network(), engine="openvino", device=CPU, precision=precision)
    compiled.clear()  # those of a trial
    sides = [(64, 64), (64, 128), (96, 64), (128, 192)]
    shared = [engine.residual(picture(*side)) for side in sides]
    assert compiled == [(1, 3, -1, -1)] or compiled == []  # the trial may have used it
    engine.residual(picture(260, 256))
    assert compiled[-1] == (1, 3, 260, 256)  # too large to share

    compiled.clear()
    monkeypatch.setattr("streamdeblur.restore.engines.openvino._WORTH", 1e-9)
    monkeypatch.setattr(engine, "_seconds", {})
    for _ in range(3):  # in the shared graph, and in the own one
        for side, common in zip(sides, shared, strict=True):
            assert torch.equal(engine.residual(picture(*side)), common)
    assert compiled == [(1, 3, *side) for side in sides]

    compiled.clear()
    monkeypatch.setattr(engine, "precision", "int8")  # which rounds otherwise in the shared graph
    engine.residual(picture(60, 64))
    assert compiled == [(1, 3, 60, 64)]


def test_many_shapes_are_served_with_few_kept(openvino_graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamdeblur.restore.engines import openvino

    monkeypatch.setattr(openvino, "_SHAPES", 3)
    monkeypatch.setattr(openvino, "_SMALL", 0)  # all of them get a graph of their own
    engine = build_engine(network(), engine="openvino", device=CPU, precision="fp32")
    for side in (*range(16, 48, 4), 16):
        x = picture(side, 16)
        assert (engine.residual(x) - reference(x)).abs().max() < 1e-4


def test_the_graph_is_exported_once_and_auto_takes_it_when_it_is_there(
    openvino_graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "find_compiler", lambda: None)  # winograd, which auto would take before it
    before = {f: f.stat().st_mtime_ns for f in openvino_graph.iterdir()}
    assert sorted(f.suffix for f in before) == [".bin", ".seal", ".xml"]
    engine = build_engine(network(), device=CPU, precision="fp32")
    assert facts(engine).name == "openvino"
    assert {f: f.stat().st_mtime_ns for f in openvino_graph.iterdir()} == before


@pytest.mark.parametrize("ending", [".xml", ".bin"])
def test_a_damaged_graph_is_made_anew(
    openvino_graph: Path, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(openvino_graph, tmp_path / "openvino")
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path))
    (file,) = (tmp_path / "openvino").glob(f"*{ending}")
    damage(file)
    assert not cache.intact(file.with_suffix(".xml"), file.with_suffix(".bin"))
    engine = build_engine(network(), engine="openvino", device=CPU, precision="fp32")
    assert facts(engine).name == "openvino"
    x = picture(32, 40)
    assert (engine.residual(x) - reference(x)).abs().max() < 1e-4
    assert cache.intact(file.with_suffix(".xml"), file.with_suffix(".bin"))
    assert not [r for r in caplog.records if r.name.startswith("streamdeblur") and r.levelname == "WARNING"]


def damage(file: Path) -> None:
    """Of the same size, and an engine would take it: only some of its bytes are others."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    file.write_bytes(data)


def test_onnx_runtime_computes_the_correction(module_cache: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x = pictures(64, 96)
    for _ in range(2):
        engine = build_engine(network(), engine="onnx", device=CPU)
        assert (facts(engine).name, facts(engine).precision) == ("onnx", "fp32")
        assert (engine.residual(x) - reference(x)).abs().max() < 1e-4
    (file,) = (module_cache / "onnx").glob("*.onnx")
    damage(file)
    engine = build_engine(network(), engine="onnx", device=CPU)
    assert facts(engine).name == "onnx"
    assert (engine.residual(x) - reference(x)).abs().max() < 1e-4


@pytest.mark.slow
def test_compiled_computes_the_correction(module_cache: Path) -> None:
    from torch._inductor.codecache import sha256_hash

    engine = build_engine(network(), engine="compile", device=CPU, precision="fp32")
    assert facts(engine).name == "compile"
    for x in (pictures(64, 96), picture(32, 40)):
        assert (engine.residual(x) - reference(x)).abs().max() < 1e-4
    # Else each start would take sound files for damaged ones.
    graphs = list((module_cache / "inductor").glob("fxgraph/*/*/*"))
    assert all(sha256_hash(f.read_bytes()) == f.name for f in graphs)


def test_damaged_files_of_compiled_code_are_removed_or_told_to_those_who_debug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.codecache import FxGraphCache, sha256_hash

    from streamdeblur.restore.engines.compiled import CompiledEngine

    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.delenv("TORCH_LOGS", raising=False)
    folder = Path(FxGraphCache._get_tmp_dir_for_key("fkey"))
    folder.mkdir(parents=True)
    sound, cut = pickle.dumps("sound"), pickle.dumps("a graph that was cut short")
    (folder / sha256_hash(sound)).write_bytes(sound)

    def damage_another() -> None:
        (folder / sha256_hash(cut)).write_bytes(cut[:-5])

    damage_another()
    engine = CompiledEngine(network(), CPU, torch.float32)
    assert [f.name for f in folder.iterdir()] == [sha256_hash(sound)]

    damage_another()  # as in a folder of the user's, in which nothing is removed
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / "other"))
    CompiledEngine(network(), CPU, torch.float32)
    assert len(list(folder.iterdir())) == 2

    def compiled(x: Tensor) -> Tensor:
        """Looks for compiled graphs as Inductor does."""
        assert len(list(FxGraphCache.iterate_over_candidates(True, None, "fkey"))) == 1
        return x

    monkeypatch.setattr(engine, "_compiled", compiled)
    told = io.StringIO()
    # As torch's own handler, in the place of which pytest has another.
    monkeypatch.setattr(logging.getLogger("torch._inductor"), "handlers", [logging.StreamHandler(told)])
    own = logging.getLogger("streamdeblur")
    before = own.level
    try:
        for level in (logging.WARNING, logging.DEBUG):
            own.setLevel(level)
            engine.residual(picture(32, 40))
            assert ("UnpicklingError" in told.getvalue()) == (level == logging.DEBUG)
    finally:
        own.setLevel(before)


@pytest.mark.slow
def test_int8_of_the_weights_that_ship_passes_its_trial(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    engine = build_engine(registry.build(MODEL), device=CPU, precision="int8")
    assert (facts(engine).name, facts(engine).precision) == ("openvino", "int8")
    assert not [r.getMessage() for r in caplog.records if "goes on with" in r.getMessage()]


@pytest.mark.slow
def test_int8_is_calibrated_once_and_near(module_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    x = picture(96, 128)
    for _ in range(2):
        engine = build_engine(network(), device=CPU, precision="int8")
        assert (facts(engine).name, facts(engine).precision) == ("openvino", "int8")
    assert sum("calibrated on rendered pictures" in r.getMessage() for r in caplog.records) == 1
    want = reference(x)
    assert 0 < TOLERANCES["int8"].error(engine.residual(x), want) < TOLERANCES["int8"].allowed(want)


# --- files


@pytest.mark.parametrize(
    ("kind", "suffix", "precision", "size"),
    [
        ("torch", ".pt2", "fp32", None),
        ("onnx", ".onnx", "fp32", None),
        ("openvino", ".xml", "fp16", (64, 48)),
    ],
)
def test_an_exported_file_gives_restored_images(
    kind: str, suffix: str, precision: str, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    if kind != "torch":
        pytest.importorskip("onnxruntime" if kind == "onnx" else "openvino")
    path = tmp_path / f"net{suffix}"
    made = export_network(path, kind, model=MODEL, weights=WEIGHTS, size=size, precision=precision)  # type: ignore[arg-type]
    assert made.model == MODEL
    assert 0 <= made.error <= made.allowed
    assert made.difference < (1e-4 if precision == "fp32" else 0.01)
    names = {f.name for f in tmp_path.iterdir()}
    assert names == ({path.name, "net.bin"} if kind == "openvino" else {path.name})
    assert made.bytes == sum(f.stat().st_size for f in tmp_path.iterdir())
    x = picture(48, 64)
    want = x + reference(x)
    if kind == "openvino":
        import openvino

        core = openvino.Core()
        got = torch.from_numpy(core.compile_model(core.read_model(path), "CPU")([x.numpy()])[0])
    else:
        (candidate,) = load_candidates([str(path)], device="cpu")  # as ``evaluate`` does
        got = candidate(x)
        # The small heads are not in it.
        lower = sum(p.numel() for name, p in network().named_parameters() if name.startswith(("head2", "head3")))
        extra = (candidate.parameters or 0) - sum(p.numel() for p in network().parameters()) + lower
        assert 0 <= extra <= 16  # ONNX writes the factors of its resizing as numbers
    assert (got - want).abs().max() < 0.01
    with pytest.raises(OutputError, match=r"exists; --overwrite replaces it"):
        export_network(path, kind, model=MODEL, weights=WEIGHTS)  # type: ignore[arg-type]


def test_a_file_that_computes_something_else_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = export_job._load_torch
    monkeypatch.setattr(export_job, "_load_torch", lambda path: lambda x: load(path)(x) + 0.01)
    path = tmp_path / "net.pt2"
    path.write_text("older")
    with pytest.raises(OutputError, match=r"would be 0\.01 from eager fp32"):
        export_network(path, "torch", model=MODEL, weights=WEIGHTS, size=(64, 48), overwrite=True)
    assert [f.name for f in tmp_path.iterdir()] == ["net.pt2"]
    assert path.read_text() == "older"


@pytest.mark.parametrize("given", [True, False], ids=["given", "rendered"])
def test_an_int8_graph_takes_the_place_of_the_one_before_once_it_is_found_good(
    given: bool, openvino_graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import streamdeblur.restore.engines.openvino as ov

    def like(graph: Any, calibration: Any) -> Any:  # NNCF takes a minute
        return graph.clone()

    def write() -> None:
        pictures_ = [picture(32, 40)] if given else None
        export_network(
            tmp_path / "net.xml",
            "openvino",
            model=MODEL,
            weights=WEIGHTS,
            precision="int8",
            calibration=pictures_,
            overwrite=True,
        )

    def kept() -> dict[str, int]:
        return {f.name: f.stat().st_mtime_ns for f in folder.glob("*-int8.*")}

    load, off, folder = export_job._load_openvino, 0.5, tmp_path / "cache" / "openvino"
    monkeypatch.setattr(ov, "quantize", like)
    monkeypatch.setattr(export_job, "_load_openvino", lambda path: lambda x: load(path)(x) + off)
    shutil.copytree(openvino_graph, folder)
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(folder.parent))
    refused = "would be 0.5 from eager fp32 .*nothing was written; calibrate on pictures like the footage"
    refused += "$" if given else " with --calibrate$"
    with pytest.raises(OutputError, match=refused):
        write()
    assert not kept()
    off = 0.0
    write()
    good = kept()
    assert {Path(name).suffix for name in good} == {".xml", ".bin", ".seal"}
    off = 0.5
    with pytest.raises(OutputError, match=refused):
        write()
    assert kept() == good


@pytest.mark.parametrize(("kind", "suffix"), [("torch", ".pt2"), ("openvino", ".xml"), ("onnx", ".onnx")])
def test_a_full_disk_is_told_and_leaves_nothing(kind: str, suffix: str, small_disk: Path, tmp_path: Path) -> None:
    """PyTorch's own writer would end the process."""
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    done = run("export", "--format", kind, "-m", MODEL, "-w", WEIGHTS, "-o", small_disk / f"x{suffix}", cwd=tmp_path)
    assert (done.returncode, done.stderr.splitlines()[-1].startswith("error: no room for")) == (1, True), done.stderr
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "a.onnx", "--format", "torch"], "does not end in .pt2"),
        (["-o", "a.onnx", "--format", "onnx", "--pictures", "3"], "--pictures is for --calibrate"),
        (["-o", "a.onnx", "--format", "onnx", "--precision", "bf16"], "has no bf16"),
        (["-o", "a.pt2", "--format", "torch", "--size", "62x48"], "62x48 is no multiple of 4"),
        (["-o", "a.pt2", "--format", "torch", "--size", "big"], "neither WIDTHxHEIGHT nor dynamic"),
        (["-o", "a.xml", "--format", "openvino", "--calibrate", "x"], "--calibrate is for --int8"),
        (["-o", "a.onnx", "--format", "onnx", "--int8"], "format onnx has no int8"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamdeblur.cli.export import export

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        export.main(["-m", MODEL, "-w", WEIGHTS, *arguments], standalone_mode=False)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from streamdeblur.cli.export import export

    path = tmp_path / "net.pt2"
    export.main(
        ["-o", str(path), "--format", "torch", "-m", MODEL, "-w", WEIGHTS, "--size", "64x48"], standalone_mode=False
    )
    assert "largest difference from eager fp32" in " ".join(capsys.readouterr().err.split())
    assert path.is_file()


# --- jobs


def test_a_restorer_tiles_through_openvino(openvino_graph: Path) -> None:
    x = picture(120, 160)
    tiling = Tiling("fast", 96, 32)
    eager = Restorer(MODEL, weights=WEIGHTS, device="cpu", precision="fp32", tiling=tiling, engine="eager")
    other = Restorer(MODEL, weights=WEIGHTS, device="cpu", precision="fp32", tiling=tiling, engine="openvino")
    assert (eager(x) - other(x)).abs().max() < 1e-4
    assert other.plan(720, 1280).mode == "fast"
    free = Restorer(MODEL, weights=WEIGHTS, device="cpu", precision="fp32", engine="openvino")
    assert free.plan(64, 96).mode == "whole"


_OTHER_PROCESS = """
import sys, numpy as np, torch
from streamdeblur.models.trial import picture
from streamdeblur.restore import RestorerSpec
engine, precision, path = sys.argv[1:]
restorer = RestorerSpec("mimo-unet-small", "random:4", "cpu", precision, "whole", 1, engine).build()
np.save(path, restorer(picture(64, 96)).numpy())
"""


@pytest.mark.parametrize(
    ("engine", "precision"),
    [("openvino", "bf16"), ("fused", "bf16"), ("fused", "fp32"), ("winograd", "fp32"), WINOGRAD_BF16],
)
def test_another_process_gets_the_same_bits(openvino_graph: Path, engine: str, precision: str, tmp_path: Path) -> None:
    if engine == "fused" and not can_fold(network(), torch.bfloat16 if precision == "bf16" else torch.float32):
        pytest.skip(f"oneDNN has no {precision} on this CPU")
    path = tmp_path / "result.npy"
    subprocess.run([sys.executable, "-c", _OTHER_PROCESS, engine, precision, str(path)], check=True, timeout=250)
    mine = Restorer(MODEL, weights=WEIGHTS, device="cpu", precision=precision, tiling="whole", engine=engine)
    assert np.array_equal(np.load(path), mine(picture(64, 96)).numpy())


def test_the_workforce_says_what_runs_and_hands_workers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    import streamdeblur.runtime.ray_pool as ray_pool

    handed = {}

    def pool(factory: object, **settings: object) -> str:
        handed.update(settings, spec=factory.spec)  # type: ignore[attr-defined]
        return "pool"

    monkeypatch.setattr(ray_pool, "RayPool", pool)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = ProcessOptions(model=MODEL, weights="random:9", device="cpu", precision="fp32", workers=2)
    workforce = Workforce(options, (96, 64), 10)
    assert workforce.prepare_seconds > 0
    fastest = "winograd" if kernels.find_compiler() else "fused"
    assert handed["spec"].engine == workforce.engine == fastest
    assert handed["spec"].precision == workforce.precision == "fp32"
    assert handed["spec"].memory is None  # the plan for the one size is made already

    # Kernels are of the machine that compiled them: on a cluster "auto" takes what is everywhere the same.
    for address, word in (("local", fastest), ("ray://host:10001", "fused")):
        workforce = Workforce(options.model_copy(update={"ray": address}), (96, 64), 10)
        assert handed["spec"].engine == workforce.engine == word
    Workforce(options.model_copy(update={"ray": "ray://host:10001", "engine": "eager"}), (96, 64), 10)
    assert handed["spec"].engine == "eager"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "ray://host:10001")
        Workforce(options, (96, 64), 10)
    assert handed["spec"].engine == "fused"

    # In one process two callers would have a thread each; so have workers, where that changes the last bits.
    for precision, threads in (("fp32", 1), ("bf16", 2)):
        Workforce(options.model_copy(update={"threads": 2, "precision": precision}), (96, 64), 10)
        assert handed["spec"].threads == handed["threads"] == threads

    monkeypatch.setattr("streamdeblur.restore.memory.free_memory", lambda: 8_000_000_000)
    shares = []
    for workers in (1, 2, 4):  # pictures of any size: each worker plans within its part
        Workforce(options.model_copy(update={"workers": workers}), None)
        shares.append(handed["spec"].memory - own_memory(CPU))
    assert shares[0] == pytest.approx(2 * shares[1], rel=0.05) == pytest.approx(4 * shares[2], rel=0.05)
    assert 1e9 < shares[0] < 8e9
    assert fingerprint(registry.build(MODEL, "random:9")) != fingerprint(network())
