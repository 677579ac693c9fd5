"""Plans of an engine: how they are chosen (with a clock of our own), kept and followed; and the limit of memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamdeblur.config import ProcessOptions, RestoreOptions, memory_bytes, parse
from streamdeblur.errors import ConfigError, DeviceError, UsageError
from streamdeblur.evaluation.benchmark.options import TuneOptions
from streamdeblur.evaluation.benchmark.tune import best_in_flight, in_flight_rates, show_tune, tune
from streamdeblur.jobs.workforce import Workforce, frames_in_flight, restorer_spec
from streamdeblur.restore import Restorer, Tiling, memory, tuning
from streamdeblur.restore import restorer as restorer_module
from streamdeblur.restore.memory import OVERHEAD, device_budget, frame_bytes, job_bytes
from streamdeblur.restore.tuning import (
    Plan,
    forget_plan,
    keep_plan,
    known_plan,
    measure,
    plan_path,
    require_place,
    trials,
)

CPU = torch.device("cpu")
GB = 10**9
#: Bytes for a pixel, and the size of frames, that make the numbers below round.
NEED = 100.0
SIZE = (1280, 720)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Engine:
    """Takes ``cost(pixels)`` seconds of its own clock for a call; doubles as the clock."""

    device = CPU
    receptive_radius = 10
    bytes_per_pixel = NEED
    name = "made-up"
    precision = "fp32"

    def __init__(self, cost: Any = lambda pixels: pixels / 1e6) -> None:
        self.cost = cost
        self.now = 0.0
        self.shapes: list[tuple[int, ...]] = []

    def residual(self, batch: Tensor) -> Tensor:
        self.shapes.append(tuple(batch.shape))
        self.now += self.cost(batch.shape[0] * batch.shape[2] * batch.shape[3])
        return torch.zeros_like(batch)

    def clock(self) -> float:
        return self.now


def plan(tile: int = 256, batch_pixels: int = 1 << 17, in_flight: int | None = 3) -> Plan:
    return Plan(tile, batch_pixels, in_flight, 0.5, SIZE, "2026-01-01T00:00:00+00:00")


def test_candidates_fit_the_budget_and_grow() -> None:
    budget = int(300_000 * NEED * OVERHEAD) + frame_bytes(*SIZE)
    found = trials(Engine(), SIZE, budget)
    areas = [t.area * t.tiling.batch for t in found]
    assert areas == sorted(areas)
    assert max(areas) <= 300_000
    assert {t.tiling.tile for t in found} >= {256, 384, 512}
    assert {t.tiling.mode for t in found} == {"fast"}
    assert {t.tiling.overlap for t in found} == {64}  # what fast promises is not tuned away
    assert len({(t.area, t.tiling.batch) for t in found}) == len(found)
    for t in found:
        assert -(-t.windows // t.tiling.batch) * t.tiling.batch - t.windows < t.tiling.batch
    whole = trials(Engine(), SIZE, 100 * GB)
    assert [t.windows for t in whole if t.tiling.mode == "whole"] == [1]


def test_a_budget_that_holds_no_window_is_one_line() -> None:
    with pytest.raises(DeviceError, match="hold no window of 256 px"):
        trials(Engine(), SIZE, frame_bytes(*SIZE) + 1000)


def test_the_fastest_for_a_whole_frame_is_chosen() -> None:
    engine = Engine(lambda pixels: 0.01 + pixels / 1e6 if pixels <= 250_000 else pixels / 2e5)
    chosen, found = measure(engine, SIZE, 100 * GB, clock=engine.clock)

    def price(t: tuning.Trial) -> float:
        return float(engine.cost(t.area * t.tiling.batch)) * t.windows / t.tiling.batch

    best = min(found, key=price)
    assert (chosen.tile, chosen.batch_pixels) == (best.tiling.tile, best.area * best.tiling.batch)
    assert chosen.seconds == pytest.approx(price(best))
    for t in found:  # each was called, and what is hopeless not again and again
        assert t.median == pytest.approx(price(t))
    assert max(len(t.seconds) for t in found) > min(len(t.seconds) for t in found)


@pytest.mark.parametrize("size", [(2, 2), (64, 48), (160, 96), (400, 300)])
def test_small_frames_that_do_best_whole_don_t_rule_larger_ones(size: tuple[int, int]) -> None:
    engine: Any = Engine()
    before = Restorer(engine=engine).plan(720, 1280)
    chosen, found = measure(engine, size, 100 * GB, clock=engine.clock)
    assert {t.tiling.mode for t in found if t.tiling.tile < 256} <= {"whole"}
    assert chosen.tile >= 256
    keep_plan(engine, chosen)
    tuned = Restorer(engine=engine).plan(720, 1280)
    assert (tuned.mode, tuned.tile, tuned.overlap) == (before.mode, before.tile, before.overlap)


def test_a_plan_that_can_not_be_kept_is_told_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / "file"))
    for keep in (lambda: require_place(Engine()), lambda: keep_plan(Engine(), plan())):
        with pytest.raises(DeviceError, match=r"the plan can't be kept in .*; set STREAMDEBLUR_CACHE to a folder"):
            keep()
    monkeypatch.setenv("STREAMDEBLUR_CACHE", str(tmp_path / "cache"))
    require_place(Engine())
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_of_equals_the_one_that_takes_least_memory() -> None:
    engine = Engine(lambda pixels: pixels / 1e6)
    chosen, found = measure(engine, (1024, 1024), 100 * GB, clock=engine.clock)
    prices = {id(t): t.median or 0 for t in found}
    fine = [t for t in found if prices[id(t)] <= tuning.TIE * min(prices.values())]
    assert chosen.batch_pixels == min(t.bytes for t in fine) / NEED / OVERHEAD


def test_what_would_take_too_long_or_does_not_fit_is_left_out() -> None:
    slow = Engine(lambda pixels: pixels / 1e5)
    chosen, found = measure(slow, SIZE, 100 * GB, seconds=2.0, clock=slow.clock)
    late = [t for t in found if t.left_out]
    assert late
    assert all("would take about" in (t.left_out or "") and not t.seconds for t in late)
    assert max(n * h * w for n, _, h, w in slow.shapes) <= 2.0 * 1e5 * 1.01

    def greedy(pixels: int) -> float:
        if pixels > 200_000:
            raise torch.OutOfMemoryError("no")
        return pixels / 1e6

    full = Engine(greedy)
    chosen, found = measure(full, SIZE, 100 * GB, clock=full.clock)
    assert chosen.batch_pixels <= 200_000
    assert {t.left_out for t in found if t.area * t.tiling.batch > 200_000} == {"out of memory"}


def test_a_plan_is_kept_for_engines_alike_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    assert known_plan(engine) is None
    path = keep_plan(engine, plan())
    assert path == plan_path(engine)
    assert known_plan(Engine()) == plan()
    for name, value in {
        "name": "other", "precision": "bf16", "receptive_radius": 11, "bytes_per_pixel": 101.0,
    }.items():  # fmt: skip
        other = Engine()
        setattr(other, name, value)
        assert known_plan(other) is None, name
    with monkeypatch.context() as m:
        m.setattr(tuning, "__version__", "9.9")
        assert known_plan(engine) is None
    with monkeypatch.context() as m:
        m.setattr(tuning.torch, "get_num_threads", lambda: 77)
        assert known_plan(engine) is None
    assert forget_plan(engine)
    assert not forget_plan(engine)
    assert known_plan(engine) is None


def test_a_plan_of_winograd_is_of_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    engine.name = "winograd"
    monkeypatch.setattr(tuning.kernels, "loaded_version", lambda: "first")
    keep_plan(engine, plan())
    assert known_plan(engine) == plan()
    monkeypatch.setattr(tuning.kernels, "loaded_version", lambda: "second")
    assert known_plan(engine) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"tile": 256', '"tile": 0'),
        lambda text: text.replace('"tile": 256', '"tile": 252'),  # shares less than fast promises
        lambda text: text.replace('"in_flight": 3', '"in_flight": 0'),
        lambda text: text.replace('"batch_pixels"', '"pixels"'),
        lambda text: text.replace('"made-up"', '"another"'),
    ],
)
def test_a_plan_that_is_damaged_is_none(spoil: Any) -> None:
    engine = Engine()
    path = keep_plan(engine, plan())
    text = path.read_text()
    assert spoil(text) != text
    path.write_text(spoil(text))
    assert known_plan(engine) is None


def test_auto_follows_the_plan_and_the_other_words_do_not(caplog: pytest.LogCaptureFixture) -> None:
    engine: Any = Engine()
    before = {word: Restorer(engine=engine, tiling=word).plan(720, 1280) for word in ("auto", "fast", "exact")}
    keep_plan(engine, plan(tile=256, batch_pixels=130_000))
    with caplog.at_level(logging.DEBUG, "streamdeblur.restore.restorer"):
        tuned = Restorer(engine=engine).plan(720, 1280)
    assert (tuned.mode, tuned.tile, tuned.overlap) == ("fast", 256, 64)
    assert tuned != before["auto"]
    windows = tuned.plan(720, 1280, engine.receptive_radius)
    assert windows.area * tuned.batch <= 130_000
    assert [r.levelname for r in caplog.records] == ["DEBUG"]
    assert "as tuned" in caplog.text
    for word in ("fast", "exact"):
        assert Restorer(engine=engine, tiling=word).plan(720, 1280) == before[word]
    mine = Tiling("fast", 512, 64)
    assert Restorer(engine=engine, tiling=mine).plan(720, 1280) == mine
    # frames no larger than a window go whole; where memory is short tiles are smaller all the same
    assert Restorer(engine=engine).plan(200, 256).mode == "whole"


def test_a_plan_is_a_wish_where_memory_is_short() -> None:
    engine: Any = Engine()
    keep_plan(engine, plan(tile=1536, batch_pixels=10**7))
    own = memory.own_memory(CPU) + job_bytes(*SIZE) + frame_bytes(*SIZE)
    short = Restorer(engine=engine, memory=own + int(100_000 * NEED * OVERHEAD))
    tiling = short.plan(720, 1280)
    area = tiling.plan(720, 1280, engine.receptive_radius).area
    assert area * tiling.batch <= 150_000  # the process may have grown a little meanwhile
    assert tiling.tile < 512


def test_memory_is_parsed_strictly() -> None:
    assert memory_bytes("4GB") == 4 * GB
    assert memory_bytes("1.5 GiB") == 3 << 29
    assert memory_bytes("800mb") == 800_000_000
    assert memory_bytes("512MiB") == 1 << 29
    for word in ("4", "4G", "-4GB", "4KB", "1e3MB", "GB", "", "4GBs", "4,5GB", "0GB", "0.1MB", "9999999GB"):
        with pytest.raises(ConfigError, match="memory"):
            parse(RestoreOptions, {"memory": word})
    options = parse(ProcessOptions, {"memory": "2GiB"})
    assert options.memory_limit == 2 << 30
    assert restorer_spec(options).memory == 2 << 30
    assert parse(ProcessOptions, {}).memory_limit is None


def test_the_budget_is_what_the_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 20 * GB)
    assert device_budget(CPU) == 10 * GB
    assert device_budget(CPU, 4) == 10 * GB // 4
    assert device_budget(CPU, 1, 4 * GB) == 4 * GB
    assert device_budget(CPU, 1, 4 * GB, GB // 2) == 7 * GB // 2
    assert device_budget(CPU, 2, 4 * GB, GB) == GB  # every worker is a process with libraries of its own
    assert device_budget(CPU, 1, 40 * GB) == 20 * GB  # no more than there is
    with pytest.raises(DeviceError, match=r"1,000 MB are taken without the network.*--memory"):
        device_budget(CPU, 1, GB, GB)
    with pytest.raises(DeviceError, match="for 4 workers"):
        device_budget(CPU, 4, 4 * GB, GB)


def test_a_limit_that_is_taken_already_is_told_before_any_frame() -> None:
    with pytest.raises(DeviceError, match=r"2 MB of memory, and .* are taken without the network; allow more"):
        Restorer("mimo-unet-small", weights="random:0", device="cpu", engine="eager", memory=2_000_000)
    given = Tiling("fast", 256, 64)  # by a driver, which has looked
    Restorer("mimo-unet-small", weights="random:0", device="cpu", engine="eager", memory=2_000_000, tiling=given)


def test_sizes_that_come_later_have_the_same_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the allocator keeps of earlier frames is not counted twice."""
    engine: Any = Engine()
    resident = [GB // 2, 3 * GB, 3 * GB]
    monkeypatch.setattr(restorer_module, "own_memory", lambda device: resident.pop(0))
    restorer = Restorer(engine=engine, tiling="fast", memory=2 * GB)
    assert restorer.plan(2160, 3840) == restorer.plan(2160, 3840)
    assert restorer.plan(720, 1280).mode == "fast"


def test_a_limit_makes_tiles_smaller_and_never_larger() -> None:
    engine: Any = Engine()
    sizes = []
    own = memory.own_memory(CPU) + job_bytes(3840, 2160) + frame_bytes(3840, 2160)
    for pixels in (2_000_000, 300_000, 100_000, 40_000):
        restorer = Restorer(engine=engine, tiling="fast", memory=own + int(pixels * NEED * OVERHEAD))
        tiling = restorer.plan(2160, 3840)
        sizes.append(tiling.plan(2160, 3840, engine.receptive_radius).area * tiling.batch)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    assert sizes[-1] <= 40_000


def test_the_driver_plans_once_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restorer_module, "own_memory", lambda device: GB // 2)
    given = {"model": "mimo-unet-small", "weights": "random:0", "device": "cpu", "engine": "eager", "precision": "fp32"}
    tiles = []
    for limit in ("20GB", "700MB"):
        workforce = Workforce(parse(ProcessOptions, {**given, "memory": limit, "tiling": "fast"}), (1280, 720))
        workforce.pool.close()
        assert workforce.tiling is not None
        tiles.append(workforce.tiling.tile)
    assert tiles[0] > tiles[1]
    with pytest.raises(DeviceError, match="--memory"):
        Workforce(parse(ProcessOptions, {**given, "memory": "500MB"}), (1280, 720))


def test_callers_share_the_memory_and_what_is_taken_anyhow_once() -> None:
    engine: Any = Engine()
    own = memory.own_memory(CPU) + job_bytes(3840, 2160)
    limit = own + 2 * (frame_bytes(3840, 2160) + int(120_000 * NEED * OVERHEAD))
    restorer = Restorer(engine=engine, tiling="fast", memory=limit)
    one = restorer.plan(2160, 3840)
    engine.share = lambda: 2
    assert restorer.share() == 2
    two = restorer.plan(2160, 3840)
    areas = [t.plan(2160, 3840, engine.receptive_radius).area * t.batch for t in (one, two)]
    assert areas[0] > areas[1] > 40_000


def test_frames_in_flight_are_tuned_unless_they_are_given() -> None:
    engine: Any = Engine()
    plain = parse(ProcessOptions, {})
    assert frames_in_flight(plain, engine) == 2
    keep_plan(engine, plan(in_flight=4))
    assert frames_in_flight(plain, engine) == 4
    assert frames_in_flight(parse(ProcessOptions, {"in_flight": 2}), engine) == 2
    assert frames_in_flight(parse(ProcessOptions, {"tiling": "fast"}), engine) == 2
    keep_plan(engine, plan(in_flight=None))
    assert frames_in_flight(plain, engine) == 2


def test_no_more_frames_in_flight_than_pay() -> None:
    assert best_in_flight({}) == 2
    assert best_in_flight({}, at_once=4) == 5
    assert best_in_flight({1: 10, 2: 15, 3: 15.1, 4: 15.2}) == 2
    assert best_in_flight({1: 10, 2: 10.1, 3: 10, 4: 9}) == 1
    assert best_in_flight({1: 1, 2: 2, 3: 3, 4: 4}) == 4
    rates = in_flight_rates(Restorer("identity", device="cpu"), (16, 16), 0.01)
    assert list(rates) == [1, 2, 3, 4, 6]
    assert min(rates.values()) > 0


def test_frames_smaller_than_any_footage_are_not_measured() -> None:
    with pytest.raises(UsageError, match="frames of 2x2 say nothing about tiles"):
        tune(parse(TuneOptions, {"model": "identity", "size": "2x2"}))


def test_tuning_keeps_a_plan_that_jobs_follow() -> None:
    given = {
        "model": "mimo-unet-small", "weights": "random:0", "device": "cpu", "precision": "fp32", "engine": "eager",
        "size": "72x48", "seconds": 0.01, "memory": "20GB",
    }  # fmt: skip
    result = tune(parse(TuneOptions, given))
    assert result.plan is not None
    assert result.plan.size == (72, 48)
    assert result.plan.in_flight in (1, 2, 3, 4, 6)
    restorer = Restorer("mimo-unet-small", weights="random:5", device="cpu", precision="fp32", engine="eager")
    assert known_plan(restorer.engine) == result.plan  # other weights, the same network
    assert json.loads(json.dumps(result.as_dict()))["plan"]["tile"] == result.plan.tile
    text = show_tune(result)
    assert f"tiles up to {result.plan.tile} px" in text
    assert "eager fp32 on cpu" in text
    image = torch.rand(1, 3, 50, 70)
    plain = Restorer(engine=restorer.engine, tiling="whole")(image)
    assert (restorer(image) - plain).abs().max() < 1e-4
    again = tune(parse(TuneOptions, {**given, "forget": True}))
    assert again.forgot
    assert "forgot" in show_tune(again)
    assert known_plan(restorer.engine) is None
    assert "there is no plan" in show_tune(tune(parse(TuneOptions, {**given, "forget": True})))
    with pytest.raises(UsageError, match="engine 'turbo'"):
        tune(parse(TuneOptions, {**given, "engine": "turbo"}))
