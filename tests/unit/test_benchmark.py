"""The benchmark's parts that need no clip: timing, meters, ceilings, words, tables, the page. No time is asserted."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamdeblur.config import parse
from streamdeblur.errors import ConfigError, StreamdeblurError, UsageError
from streamdeblur.evaluation.benchmark import bare, ceiling, network, reference, timing, ways
from streamdeblur.evaluation.benchmark.energy import Rapl, find_meter
from streamdeblur.evaluation.benchmark.machine import busy, cores, machine, peak_memory
from streamdeblur.evaluation.benchmark.network import NetworkResult, NetworkRow
from streamdeblur.evaluation.benchmark.options import BenchmarkOptions
from streamdeblur.evaluation.benchmark.pictures import picture, psnr_between
from streamdeblur.evaluation.benchmark.quality import quality
from streamdeblur.evaluation.benchmark.report import html_report
from streamdeblur.evaluation.benchmark.results import show_network, show_quality, table
from streamdeblur.evaluation.benchmark.run import Report
from streamdeblur.evaluation.benchmark.timing import Timing
from streamdeblur.evaluation.benchmark.variation import tilings
from streamdeblur.evaluation.benchmark.ways import Model, Way
from streamdeblur.models import registry
from streamdeblur.models.mimo_unet import AFF, FAM, ResidualBlock
from streamdeblur.restore import Restorer, Tiling

pytestmark = pytest.mark.usefixtures("small_products")

CPU = torch.device("cpu")
SMALL = Model("mimo-unet-small", "random:1")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path_factory.getbasetemp() / "benchmark-cache"))


class Clock:
    """Stands in for the wall clock: time passes only when a way says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing.time, "process_time", lambda: 2 * self.now)

    def way(self, name: str, *durations: float) -> Any:
        rest = list(durations)

        def call() -> None:
            self.calls.append(name)
            self.now += rest.pop(0) if len(rest) > 1 else rest[0]

        return call


def test_ways_take_turns_after_a_first_call_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = timing.alternate({"a": clock.way("a", 9, 1, 4, 2), "b": clock.way("b", 5, 3)}, CPU, 3)
    assert clock.calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert found["a"] == Timing(2, 1, 4, 3, first=9, cpu=4, each=(1, 4, 2))
    assert found["b"] == Timing(3, 3, 3, 3, first=5, cpu=6, each=(3, 3, 3))
    ratio = timing.faster(found["b"], found["a"])
    assert (ratio.median, ratio.low, ratio.high) == (1.5, 0.75, 3)


def test_a_way_that_was_called_already_is_not_warmed_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = timing.alternate({"a": clock.way("a", 1)}, CPU, 2, first={"a": 7.5})
    assert clock.calls == ["a", "a"]
    assert found["a"].first == 7.5


def test_short_ways_get_more_rounds_and_slow_ones_sit_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = timing.alternate({"slow": clock.way("slow", 50), "quick": clock.way("quick", 1)}, CPU, 4, limit=60)
    assert (found["slow"].rounds, found["quick"].rounds) == (2, 4)
    found = timing.alternate({"quick": clock.way("quick", 1)}, CPU, 2, budget=5)
    assert found["quick"].rounds == 5
    found = timing.alternate({"quick": clock.way("quick", 1)}, CPU, 2, budget=1e9)
    assert found["quick"].rounds == 20


def test_energy_is_the_mean_of_a_call_and_never_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    class Meter:
        name = "three watts"
        broken = False

        def joules(self) -> float | None:
            return None if self.broken else 3 * clock.now

    meter = Meter()
    assert timing.alternate({"a": clock.way("a", 9, 1, 3)}, CPU, 2, meter=meter)["a"].joules == 6
    meter.broken = True
    assert timing.alternate({"a": clock.way("a", 1)}, CPU, 2, meter=meter)["a"].joules is None


def test_rapl_adds_packages_and_survives_the_turn_of_their_counters(tmp_path: Path) -> None:
    for name, value in (("intel-rapl:0", 900), ("intel-rapl:1", 100), ("intel-rapl:0:0", 5)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "energy_uj").write_text(str(value))
        (folder / "max_energy_range_uj").write_text("1000\n")
    meter = Rapl.find(tmp_path)
    assert meter is not None
    assert meter.joules() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("50")  # 900 → 1000 → 50
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("400")
    assert meter.joules() == pytest.approx(450e-6)
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("")
    assert meter.joules() is None
    assert Rapl.find(tmp_path / "nowhere") is None
    assert find_meter(torch.device("meta")) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_ceiling_is_of_the_product_that_it_times(precision: str) -> None:
    found = ceiling.product(precision, CPU, sides=(32, 64))
    assert found is not None
    found.call()
    assert found.side in (32, 64)
    assert found.flop == 2 * found.side**3 * found.repeats
    assert ceiling.product("fp4", CPU) is None


@pytest.mark.parametrize(
    ("word", "size"),
    [("720p", (1280, 720)), ("4K", (3840, 2160)), ("33x17", (33, 17))],
)
def test_sizes(word: str, size: tuple[int, int]) -> None:
    assert ways.parse_size(word) == size


@pytest.mark.parametrize("word", ["", "720", "0x10", "10x00", "10x", "ax1", "10x10x10"])
def test_sizes_that_are_none(word: str) -> None:
    with pytest.raises(UsageError, match="is none"):
        ways.parse_size(word)


def test_tilings_by_word() -> None:
    assert ways.parse_tiling("auto") == "auto"
    assert ways.parse_tiling("exact") == "exact"
    assert ways.parse_tiling("512") == Tiling("fast", 512, 64)
    assert ways.parse_tiling("96") == Tiling("fast", 96, 24)
    assert ways.parse_tiling("256/32") == Tiling("fast", 256, 32)
    assert ways.parse_tiling("exact/372") == Tiling("exact", 372, 0)
    for word in ("512/", "fast 512", "-4", "whole/3"):
        with pytest.raises(UsageError):
            ways.parse_tiling(word)


def test_models_and_ways_by_word() -> None:
    assert ways.parse_model("identity") == Model("identity")
    assert ways.parse_model("mimo-unet=x.safetensors") == Model("mimo-unet", "x.safetensors")
    assert ways.parse_model("mimo-unet-plus=random:3").random
    with pytest.raises(UsageError):
        ways.parse_model("nothing")
    found = bare.ways_of(("eager", "auto"), ("fp32", "bf16"), ("auto", "64/16"), (1, 2), CPU)
    assert len(found) == 16
    assert Way("auto", "bf16", "64/16", 2) in found
    assert {w.engine for w in bare.ways_of((), ("auto",), ("auto",), (), CPU)} >= {"eager", "fused", "auto"}
    with pytest.raises(UsageError, match="engine 'turbo'"):
        bare.ways_of(("turbo",), ("auto",), ("auto",), (), CPU)


def test_work_is_counted_per_pass() -> None:
    plain, ensemble = Model("mimo-unet-plus", "random:0"), Model("mimo-unet-plus-plus", "random:0")
    one, four = plain.gflop(64, 64), ensemble.gflop(64, 64)
    assert one is not None
    assert four == 4 * one
    assert plain.gflop(61, 62) == one  # what is computed is padded to multiples of 4
    assert Model("identity").gflop(64, 64) is None
    assert Model("mimo-unet").gflop(720, 1280) == pytest.approx(1792, rel=0.02)


def test_the_reference_is_the_paper_s_network_and_pads_to_multiples_of_4() -> None:
    loop = reference.Reference("mimo-unet-small", "random:1", CPU)
    image = picture(30, 45)
    ours = Restorer("mimo-unet-small", weights="random:1", device="cpu", precision="fp32", engine="eager")(image)
    assert loop(image).shape == image.shape
    assert psnr_between(loop(image), ours) > 90
    # blocks and fusions as drawn in the paper, none of ours that save time or memory
    net = registry.build("mimo-unet-small", "random:1")
    plain = reference.as_published(copy.deepcopy(net))
    ours_left = {type(module) for module in plain.modules()} & {ResidualBlock, FAM, AFF}
    assert not ours_left
    features = [torch.rand(1, c, 16 >> i, 16 >> i) for i, c in enumerate((16, 32, 64))]
    resized = [F.interpolate(f, size=(16, 16)) for f in features]
    want = net.aff1.conv(F.relu(net.aff1.mix(torch.cat(resized, 1))))
    assert torch.allclose(plain.aff1(*features), want, atol=1e-6)
    x = torch.rand(1, 3, 32, 48)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain(x), net(x), strict=True))
    with pytest.raises(UsageError, match="no reference loop"):
        reference.Reference("identity", None, CPU)
    assert not reference.exists("mimo-unet-plus-plus")


def test_psnr_between_against_a_known_error() -> None:
    a = torch.zeros(1, 3, 4, 4)
    assert psnr_between(a, a + 0.1) == pytest.approx(20)
    assert psnr_between(a, a) == math.inf
    assert math.isnan(psnr_between(a, a * math.nan))


def test_the_machine_is_told_and_busy_ones_are_warned_of() -> None:
    facts = machine(CPU)
    assert facts["device"] == "cpu"
    assert facts["torch"] == torch.__version__
    assert facts["cores"] == cores() >= 1
    assert busy(None) is None
    assert busy(0.1 * cores()) is None
    assert str(cores()) in (busy(cores() + 0.6) or "")
    assert peak_memory(CPU) > 10 << 20


@pytest.fixture(scope="module")
def measured(small_products: None) -> NetworkResult:
    asked = [Way("eager", "fp32", "whole"), Way("eager", "bf16"), Way("eager", "fp32", "48/16", 2), Way("cuda-graphs")]
    return network.network([SMALL], [(72, 56)], asked, CPU, 1, budget=0, memory=False)


def test_every_way_stands_beside_the_reference(measured: NetworkResult) -> None:
    rows = {(r.engine, r.precision, r.tiling): r for r in measured.rows}
    assert list(rows) == [
        ("reference", "fp32", "whole"),
        ("eager", "fp32", "whole"),
        ("eager", "bf16", "whole"),
        ("eager", "fp32", "fast 48/16"),
        ("cuda-graphs", "auto", "auto"),
    ]
    loop, whole, half, tiled, failed = rows.values()
    assert loop.faster is None
    assert loop.psnr_fp32 is None
    assert whole.psnr_fp32 is not None
    assert half.psnr_fp32 is not None
    assert tiled.psnr_fp32 is not None
    assert whole.psnr_fp32 > half.psnr_fp32 > 30
    assert whole.psnr_fp32 > tiled.psnr_fp32 > 30
    assert (whole.windows, whole.computed) == (1, 1.0)
    assert (tiled.windows, tiled.batch) == (4, 2)
    assert tiled.computed > 1
    assert failed.time is None
    assert "cuda" in (failed.failed or "")
    for row in (loop, whole, half, tiled):
        assert row.time is not None
        assert row.time.first is not None
        work = SMALL.gflop(56, 72)
        assert work is not None
        assert row.tflops == pytest.approx(work / row.time.median / 1000)
        assert row.ceiling_tflops is not None
        assert row.share == pytest.approx((row.tflops or 0) / row.ceiling_tflops)
        assert row.peak_bytes is None
    assert whole.faster is not None
    assert loop.time is not None
    assert whole.time is not None
    assert whole.faster.median == pytest.approx(loop.time.each[0] / whole.time.each[0])


def test_the_table_and_json_have_blanks_not_zeros(measured: NetworkResult) -> None:
    text = show_network(measured)
    assert "cuda-graphs auto: not measured" in text
    assert "random:1" in text
    values = json.loads(json.dumps(measured.as_dict()))
    assert values["rows"][0]["psnr_fp32"] is None
    assert values["rows"][0]["peak_bytes"] is None
    assert values["rows"][4]["time"] is None
    assert values["rows"][1]["size"] == "72x56"
    if values["energy_of"] is None:
        assert {r["time"]["joules"] for r in values["rows"] if r["time"]} == {None}


def test_what_is_asked_for_twice_is_measured_once() -> None:
    asked = [Way("eager", "fp32"), Way("eager", "fp32", "whole"), Way("auto", "fp32", "whole")]
    found = network.network([Model("identity")], [(16, 16)], asked, CPU, 1, budget=0, memory=False)
    assert [(r.engine, r.tiling) for r in found.rows] == [("eager", "whole")]
    assert found.rows[0].tflops is None


def test_a_whole_frame_that_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "free_memory", lambda: 1 << 20)
    found = network.network([SMALL], [(64, 64)], [Way("eager", "fp32")], CPU, 1, budget=0, memory=False)
    assert "a whole frame needs" in (found.rows[0].failed or "")
    assert found.rows[1].time is not None
    assert found.rows[1].faster is None


def test_memory_is_that_of_a_process_of_its_own() -> None:
    told = network.in_child("network", ["identity", None, [64, 48], {"engine": "eager"}, "cpu"])
    assert 10 << 20 < told["start_bytes"] <= told["peak_bytes"]
    with pytest.raises(StreamdeblurError, match="nothing"):
        network.in_child("network", ["nothing", None, [64, 48], {"engine": "eager"}, "cpu"])


def test_memory_is_measured_of_the_row_s_tiling_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def child(what: str, arguments: list[Any], **_: object) -> dict[str, int]:
        asked.append(arguments)
        return {"start_bytes": 1, "peak_bytes": 3}

    monkeypatch.setattr(network, "in_child", child)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        way_asked = [Way("eager", "fp32", "fast", 2)]
        found = network.network([SMALL], [(72, 56)], way_asked, CPU, 1, compare=False, budget=0, limit=4 << 30)
    finally:
        torch.set_num_threads(threads)
    (row,) = found.rows
    (name, weights, size, way, device, given), *_ = asked
    assert (name, weights, tuple(size), device, given) == (SMALL.name, SMALL.weights, (72, 56), "cpu", 1)
    assert (ways.asked_tiling(way["tiling"]), way["batch"]) == (row.tiling, 2)
    assert (row.peak_bytes, row.above_bytes) == (3, 2)


def test_a_limit_does_not_count_what_other_engines_took(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 100 << 20
    monkeypatch.setattr(ways, "own_memory", lambda _: taken)
    builder = ways.Builder(SMALL, "cpu", 4 << 30, before=60 << 20)
    alone = builder.planner(Way("eager", "fp32"))
    taken += 300 << 20  # another engine has been built and called
    later = builder.planner(Way("eager", "fp32"))
    assert (alone._memory, later._memory) == ((4 << 30) + (40 << 20), (4 << 30) + (340 << 20))
    assert ways.Builder(SMALL, "cpu").planner(Way("eager", "fp32"))._memory is None


def test_checkpoints_of_one_variant_are_told_apart(measured: NetworkResult) -> None:
    def pairs() -> Any:
        yield "one", picture(24, 24), picture(24, 24) * 0.9

    models = [Model(SMALL.name, "random:1"), Model(SMALL.name, "random:2")]
    way = Way("eager", "fp32", "whole")
    report = _report(network.network(models, [(24, 24)], [way], CPU, 1, compare=False, budget=0, memory=False))
    report.quality = quality(models, [way], {"made": pairs}, CPU)
    one, two = report.quality.rows
    assert (one.weights, two.weights) == ("random:1", "random:2")
    assert one.psnr != two.psnr
    page = html_report(report)
    assert sorted(map(float, re.findall(r'data-psnr="([^"]*)"', page))) == sorted([one.psnr, two.psnr])
    assert page.count("mimo-unet-small (random:2) eager fp32") >= 1


def test_what_a_way_loses_on_pairs() -> None:
    sharp = picture(40, 52)
    blurry = F.avg_pool2d(F.pad(sharp, (2, 2, 0, 0), mode="replicate"), (1, 5), 1)

    def pairs() -> Any:
        yield "one", blurry, sharp
        yield "two", blurry.flip(3), sharp.flip(3)

    asked = [Way("eager", "fp32", "whole"), Way("eager", "bf16"), Way("cuda-graphs")]
    result = quality([SMALL], asked, {"made": pairs}, CPU)
    exact, half = result.rows
    assert (exact.pairs, exact.random) == (2, True)
    assert exact.lost == pytest.approx(0, abs=1e-4)
    assert half.lost == pytest.approx(half.psnr_fp32 - half.psnr)
    assert half.lost_most >= half.lost
    error = float((blurry - sharp).square().mean())
    assert exact.psnr_blurry == pytest.approx(-10 * math.log10(error), abs=1e-3)
    assert [name for name, _ in result.failed] == ["cuda-graphs auto on made"]
    assert "random weights" in show_quality(result)


def test_all_ways_to_tile_a_frame_cut_it() -> None:
    found = tilings((480, 272), 129)
    assert found[0] == Tiling("whole")
    assert found[1].mode == "exact"
    for tiling in found[1:]:
        assert tiling.plan(272, 480, 129).count > 1
    assert {t.mode for t in tilings((64, 64), 129)} == {"whole"}


def _report(result: NetworkResult) -> Report:
    return Report("2026-01-01", "streamdeblur benchmark", {"cpu": "a <fast> one"}, 0.5, None, {}, network=result)


def test_the_page_is_one_file_with_every_figure(measured: NetworkResult) -> None:
    report = _report(measured)
    report.texts = {"network": "not twice", "job": "whole <job>"}
    page = html_report(report)
    assert "a &lt;fast&gt; one" in page
    assert "whole &lt;job&gt;" in page
    assert "not twice" not in page
    assert page.count("<circle") == 3  # those with a PSNR; the reference is what they are compared with
    for row in measured.rows:
        assert (f'data-seconds="{row.time.median!r}"' in page) if row.time else "not measured" in page
    for outside in ("http://", "https://", "<script", "src="):
        assert outside not in page


def test_the_plot_on_pairs_shows_models_by_their_scores(measured: NetworkResult) -> None:
    def pairs() -> Any:
        yield "one", picture(72, 56), picture(72, 56) * 0.9

    report = _report(measured)
    report.quality = quality(
        [SMALL], [Way("eager", "fp32", "whole"), Way("eager", "fp32", "48/16")], {"made": pairs}, CPU
    )
    page = html_report(report)
    assert "PSNR on made" in page
    # the reference, eager fp32 as a whole and in tiles; bf16 in what is planned was not measured on pairs
    points = re.findall(r'<circle[^>]*data-psnr="([^"]*)"', page)
    exact, tiled = report.quality.rows
    assert sorted(map(float, points)) == sorted([exact.psnr_fp32, exact.psnr, tiled.psnr])
    assert exact.psnr != tiled.psnr
    assert "whole" in page
    assert "fast 48/16" in page


def test_json_of_a_report_has_no_infinity() -> None:
    row = NetworkRow(
        "m",
        "w",
        (4, 4),
        "eager",
        "eager",
        "fp32",
        "whole",
        "auto",
        1,
        1,
        1,
        1.0,
        0.1,
        Timing(1, 1, 1, 1),
        psnr_fp32=math.inf,
    )
    report = _report(NetworkResult([row]))
    report.values["network"] = NetworkResult([row]).as_dict()
    values = json.loads(report.as_json())
    assert values["network"]["rows"][0]["psnr_fp32"] is None
    assert "inf" in show_network(NetworkResult([row]))


def test_tables_line_up() -> None:
    lines = table(("a", "bb"), [("xxx", "1"), ("y", "22222")]).splitlines()
    assert lines == ["a       bb", "xxx      1", "y    22222"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"what": ("speed",)}, "nothing called 'speed' is measured"),
        ({"what": ()}, "nothing is to be measured"),
        ({"sizes": ()}, "give one at least"),
        ({"precisions": ("fp8",)}, "precision 'fp8'"),
        ({"batch": (0,)}, "1 window or more"),
        ({"rounds": 0}, "rounds 0"),
        ({"memory": "lots"}, "no amount of memory"),
    ],
)
def test_options_that_make_no_sense(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(BenchmarkOptions, values)


def test_all_is_everything() -> None:
    assert set(parse(BenchmarkOptions, {"what": ("all",)}).what) == {
        "network", "stages", "job", "tiling", "pools", "growth",
    }  # fmt: skip


def test_bare_machines_measure_the_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--models", "identity", "--engines", "eager", "--sizes", "16x16", "--rounds", "1", "--no-memory"]
    assert bare.main([*words, "--json", str(tmp_path / "x.json")]) == 0
    assert "identity" in capsys.readouterr().out
    assert json.loads((tmp_path / "x.json").read_text())["network"]["rows"][0]["engine"] == "eager"
    assert bare.main(["--what", "job"]) == 2
    assert bare.main(["--engines", "turbo"]) == 2
    assert bare.main(["--batch", "two"]) == 2


def test_pictures_are_the_same_every_time() -> None:
    one: Tensor = picture(20, 30)
    assert torch.equal(one, picture(20, 30))
    assert one.shape == (1, 3, 20, 30)
    assert 0 <= float(one.min()) < float(one.max()) <= 1
