"""Ladder, line and scheduler together, in a time of the tests' own: a device whose frames take as long as is said."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pytest

from streamdeblur.frames import ColorSpec, Frame, FrameSpec, Gap
from streamdeblur.jobs.live.engines import LiveFrame
from streamdeblur.jobs.live.ladder import LadderSettings
from streamdeblur.jobs.live.line import Entry
from streamdeblur.jobs.live.scheduler import Lane, Scheduler
from streamdeblur.jobs.live.treatment import WholeFrames
from streamdeblur.runtime.pool import Result
from streamdeblur.video.live.source import Arrived

STEPS = ("model", "small", "half", "bypass")
#: Frames leave at the moment they are due, but for rounding.
TICK = 0.001


def arrived(index: int, now: float, size: tuple[int, int] = (16, 8)) -> Arrived:
    spec = FrameSpec(*size, ColorSpec("gray"))
    frame = Frame(index, round(now * 90000), Fraction(1, 90000), (np.zeros((size[1], size[0]), np.uint8),), spec)
    return Arrived(frame, now, now, None, Fraction(25), None)  # type: ignore[arg-type]


class Device:
    """A pool in virtual time: ``workers`` frames at once, each for as long as ``cost(step, now)`` says."""

    def __init__(self, cost: Callable[[int, float], float], workers: int = 1) -> None:
        self._cost = cost
        self.running: list[tuple[float, LiveFrame, float]] = []
        self.capacity = workers
        self.now = 0.0
        self.order: list[str] = []
        self.broken = False

    @property
    def in_flight(self) -> int:
        return len(self.running)

    def submit(self, frame: LiveFrame, regions: object = None) -> None:
        assert len(self.running) < self.capacity
        seconds = self._cost(frame.step, self.now)
        self.running.append((self.now + seconds, frame, seconds))

    def finished(self, now: float) -> list[Result | Gap]:
        self.now = now
        done = [r for r in self.running if r[0] <= now]
        self.running = [r for r in self.running if r[0] > now]
        if self.broken:
            return [Gap(f.index, "it broke") for _, f, _ in done]
        return [Result(f.index, (), "device", s) for _, f, s in done]


@dataclass
class World:
    """Sources of ``fps`` frames a second, a device and a clock."""

    cost: Callable[[int, float], float]
    fps: dict[str, float]
    latency: float = 0.5
    bound: int = 16
    late: str = "passed"
    workers: int = 1
    steps: tuple[str, ...] = STEPS
    settings: LadderSettings = field(default_factory=LadderSettings)
    alive: dict[str, bool] = field(default_factory=dict)
    #: Whether encoding has no time for a frame of a source that stands on a step.
    behind: Callable[[str, int], bool] = lambda name, step: False

    def __post_init__(self) -> None:
        self.device = Device(self.cost, self.workers)
        self.scheduler = Scheduler(self.steps, self.device, settings=self.settings, workers=self.workers)  # type: ignore[arg-type]
        self.now = 0.0
        self.left: dict[str, list[tuple[float, Entry]]] = {n: [] for n in self.fps}
        self.lanes: dict[str, Lane] = {}
        self.next: dict[str, float] = {}
        self.index: dict[str, int] = dict.fromkeys(self.fps, 0)
        self.history: list[tuple[float, str, int]] = []
        for n, (name, fps) in enumerate(self.fps.items()):

            def emit(entry: Entry, name: str = name) -> bool:
                self.left[name].append((self.now, entry))
                return not self.behind(name, self.step(name))

            self.lanes[name] = self.scheduler.add(name, self.latency, self.bound, self.late, WholeFrames(), emit)  # type: ignore[arg-type]
            self.next[name] = n * 0.37 / fps
            self.alive[name] = True

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            for name, fps in self.fps.items():
                if self.now >= self.next[name]:
                    if self.alive[name]:
                        self.scheduler.arrived(self.lanes[name], arrived(self.index[name], self.now), self.now)
                        self.index[name] += 1
                    self.next[name] += 1 / fps
            for result in self.device.finished(self.now):
                self.scheduler.done(result, self.now)
            due = self.scheduler.turn(self.now)
            for name in self.fps:
                step = self.step(name)
                if not self.history or next((h[2] for h in reversed(self.history) if h[1] == name), None) != step:
                    self.history.append((self.now, name, step))
            events = [*self.next.values(), *(r[0] for r in self.device.running), self.now + 0.05, end]
            events += [due] if due is not None else []
            self.now = max(min(events), self.now + 1e-6)

    def step(self, name: str) -> int:
        return self.scheduler.ladder.step_of(name)

    def fates(self, name: str, since: float = 0.0) -> Counter[str]:
        return Counter(e.fate for t, e in self.left[name] if e.arrived.arrival >= since)

    def latencies(self, name: str, since: float = 0.0) -> list[float]:
        return [t - e.arrived.arrival for t, e in self.left[name] if e.arrived.arrival >= since]

    def moves(self, name: str) -> int:
        return sum(n == name for _, n, _ in self.history) - 1


def costs(*seconds: float) -> Callable[[int, float], float]:
    return lambda step, now: seconds[step]


@pytest.mark.parametrize(
    ("seconds", "step"),
    [
        ((0.010, 0.005, 0.002), 0),  # everything fits 25 fps (0.040 s a frame)
        ((0.100, 0.020, 0.008), 1),
        ((0.400, 0.100, 0.020), 2),
        ((2.000, 0.500, 0.200), 3),
    ],
)
def test_a_source_settles_on_the_best_step_that_fits(seconds: tuple[float, ...], step: int) -> None:
    world = World(costs(*seconds), {"a": 25.0})
    world.run(30)
    assert world.step("a") == step
    # Once settled it stays: at most the climb itself, and nothing in the last twenty seconds.
    assert not [h for h in world.history if h[0] > 10]
    if step < 3:
        assert world.fates("a", since=10)["restored"] > 0.95 * world.fates("a", since=10).total()


@pytest.mark.parametrize("seconds", [(0.010, 0.005, 0.002), (0.100, 0.020, 0.008), (2.000, 0.500, 0.200)])
def test_every_frame_leaves_once_in_order_and_in_time_however_slow_the_device(seconds: tuple[float, ...]) -> None:
    world = World(costs(*seconds), {"a": 25.0, "b": 12.5})
    world.run(20)
    world.alive = dict.fromkeys(world.alive, False)
    world.run(1)
    for name in world.fps:
        assert [e.arrived.frame.index for _, e in world.left[name]] == list(range(world.index[name]))
        assert max(world.latencies(name)) <= world.latency + 2 * TICK


def test_without_a_ladder_a_device_at_a_third_of_the_rate_restores_a_third_and_is_never_late() -> None:
    # Two steps, where the only one that restores is kept: what can't be done in time passes, in time.
    world = World(costs(0.12), {"a": 25.0}, steps=("model", "bypass"))
    world.scheduler.ladder.pin("a", 0)
    world.run(30)
    fates = world.fates("a")
    assert 0.25 < fates["restored"] / fates.total() < 0.36
    assert fates["passed"] + fates["restored"] == fates.total()
    assert max(world.latencies("a")) <= world.latency + 2 * TICK


def test_late_frames_are_left_out_where_that_was_asked_for() -> None:
    world = World(costs(0.12), {"a": 25.0}, steps=("model", "bypass"), late="dropped")
    world.scheduler.ladder.pin("a", 0)
    world.run(10)
    fates = world.fates("a", since=1)
    assert fates["dropped"] > 0.6 * fates.total()
    assert not fates["passed"]


def test_a_full_queue_lets_the_oldest_frame_go() -> None:
    world = World(costs(0.4), {"a": 25.0}, steps=("model", "bypass"), bound=3, latency=2.0)
    world.scheduler.ladder.pin("a", 0)
    world.run(5)
    reasons = Counter(e.reason for _, e in world.left["a"])
    assert reasons["queue full"] > 60
    assert reasons["late"] == 0
    assert world.lanes["a"].line.waiting <= 3


def test_it_steps_down_when_the_device_gets_slower_and_up_when_it_recovers() -> None:
    def cost(step: int, now: float) -> float:
        return (0.020, 0.010, 0.005)[step] * (4.0 if 20 <= now < 40 else 1.0)

    world = World(cost, {"a": 25.0})
    world.run(20)
    assert world.step("a") == 0
    world.run(5)
    assert world.step("a") >= 1
    assert world.fates("a", since=23)["restored"] > 0.9 * world.fates("a", since=23).total()
    world.run(15)
    world.run(40)
    assert world.step("a") == 0


def test_a_load_at_the_limit_does_not_flap() -> None:
    # 0.036 s at 25 fps: a load of 0.9, above what a step up may take, below what forces one down.
    world = World(costs(0.036, 0.015, 0.005), {"a": 25.0})
    world.run(120)
    assert world.step("a") == 1
    assert world.moves("a") == 2  # bypass to half, half to small


def test_noise_about_the_limit_moves_it_ever_less_often() -> None:
    rng = np.random.default_rng(1)
    noise = rng.uniform(0.2, 1.9, 100_000)
    count = iter(range(100_000))
    world = World(lambda step, now: (0.030, 0.004, 0.002)[step] * noise[next(count)], {"a": 25.0})
    world.run(300)
    assert world.moves("a") < 20
    assert world.fates("a", since=10)["restored"] > 0.9 * world.fates("a", since=10).total()


def test_probing_what_does_not_fit_is_rare() -> None:
    world = World(costs(0.3, 0.2, 0.010), {"a": 25.0})
    world.run(300)
    assert world.step("a") == 2
    probes = [e.arrived.arrival for _, e in world.left["a"] if e.probe and e.step == 1]
    assert len([p for p in probes if p > 30]) < 20
    # Nor does it cost the step on which the source stands.
    assert not [h for h in world.history if h[0] > 10]
    assert world.fates("a", since=30)["restored"] > 0.95 * world.fates("a", since=30).total()


def test_a_device_that_stumbles_now_and_then_is_not_judged_by_that() -> None:
    # One frame in fifty takes a third of a second (a kernel is compiled), the others 0.01 s.
    count = iter(range(100_000))
    world = World(lambda step, now: 0.33 if next(count) % 50 == 49 else 0.010, {"a": 25.0}, latency=1.0)
    world.run(60)
    assert world.step("a") == 0
    assert world.fates("a", since=5)["restored"] > 0.95 * world.fates("a", since=5).total()


def test_sources_share_the_device_fairly() -> None:
    world = World(costs(0.018, 0.008, 0.004), {"a": 25.0, "b": 25.0, "c": 25.0, "d": 25.0})
    world.run(60)
    total = sum((0.018, 0.008, 0.004, 0.0)[world.step(n)] * 25 for n in world.fps)
    assert total <= 1.0
    shares = [world.fates(n, since=20)["restored"] / world.fates(n, since=20).total() for n in world.fps]
    assert min(shares) > 0.9
    # Nobody has to bypass while another has the large model.
    assert max(world.step(n) for n in world.fps) - min(world.step(n) for n in world.fps) <= 1


def test_a_dead_source_leaves_its_share_to_the_others() -> None:
    world = World(costs(0.030, 0.012, 0.004), {"a": 25.0, "b": 25.0})
    world.run(30)
    assert world.step("a") + world.step("b") > 0
    world.alive["b"] = False
    world.run(90)
    assert world.step("a") == 0
    assert world.fates("a", since=110)["restored"] == world.fates("a", since=110).total()


def test_a_source_that_does_not_fit_does_not_take_others_along() -> None:
    # b at 120 fps can't be restored at all; a at 5 fps can, with the large model.
    world = World(costs(0.060, 0.050, 0.040), {"a": 5.0, "b": 120.0})
    world.run(90)
    assert world.step("b") == 3
    assert world.step("a") == 0


def test_workers_divide_the_load() -> None:
    one = World(costs(0.100, 0.060, 0.030), {"a": 25.0})
    four = World(costs(0.100, 0.060, 0.030), {"a": 25.0}, workers=4)
    one.run(30)
    four.run(30)
    assert one.step("a") == 2
    assert four.step("a") == 0
    assert [e.arrived.frame.index for _, e in four.left["a"]] == sorted(
        e.arrived.frame.index for _, e in four.left["a"]
    )


def test_frames_of_a_failing_device_pass_as_they_are() -> None:
    world = World(costs(0.010, 0.005, 0.002), {"a": 25.0})
    world.run(10)
    world.device.broken = True
    world.run(5)
    assert world.lanes["a"].failures > 0
    assert world.lanes["a"].error == "it broke"
    assert set(world.fates("a", since=10.2)) == {"passed"}
    assert world.step("a") > 0
    world.device.broken = False
    world.run(200)
    assert world.fates("a", since=200)["restored"] > 0


def test_other_pictures_are_measured_anew() -> None:
    world = World(costs(0.010, 0.005, 0.002), {"a": 25.0})
    world.run(10)
    assert world.step("a") == 0
    world.scheduler.arrived(world.lanes["a"], arrived(world.index["a"], world.now, (32, 8)), world.now)
    assert world.step("a") == 3


def test_a_pinned_source_stays_and_is_not_probed() -> None:
    world = World(costs(0.010, 0.005, 0.002), {"a": 25.0})
    world.scheduler.ladder.pin("a", 3)
    world.run(10)
    assert set(world.fates("a")) == {"passed"}
    world.scheduler.ladder.pin("a", None)
    world.run(10)
    assert world.step("a") == 0


def test_the_climb_takes_less_than_a_second() -> None:
    world = World(costs(0.010, 0.005, 0.002), {"a": 25.0})
    world.run(1.5)
    assert world.step("a") == 0


def test_frames_that_come_in_a_burst_after_a_pause_are_restored_too() -> None:
    world = World(costs(0.005, 0.003, 0.001), {"a": 25.0})
    world.run(5)
    seen = deque(maxlen=1)
    for n in range(5):  # arrived a second ago, decoded now
        seen.append(arrived(world.index["a"] + n, world.now - 1 + n / 25))
        world.scheduler.arrived(world.lanes["a"], seen[-1], world.now)
    world.index["a"] += 5
    world.run(0.5)
    burst = [e for _, e in world.left["a"] if e.arrived.arrival < world.now - 1.3 and e.arrived.frame.index >= 125]
    assert [e.fate for e in burst][:5].count("restored") >= 3


@pytest.mark.parametrize("rest", [30.0, 5.0])
def test_what_piled_up_in_a_pause_moves_nothing(rest: float) -> None:
    # a camera or its network stands still for three seconds, again and again, and then sends all of it at once
    world = World(costs(0.030, 0.010, 0.0), {"gate": 25.0}, steps=("model", "small", "bypass"))
    world.run(5)
    moves = world.moves("gate")
    for _ in range(4):
        world.alive["gate"] = False
        world.run(3)
        world.alive["gate"] = True
        back = world.now
        for n in range(75):
            world.scheduler.arrived(world.lanes["gate"], arrived(world.index["gate"], world.now), world.now)
            world.index["gate"] += 1
            if n % 10 == 9:
                world.run(0.005)
        world.run(rest)
        assert world.fates("gate", back + 1.0)["restored"] > 25 * (rest - 2)
    assert (world.step("gate"), world.moves("gate")) == (0, moves)


def one_in(n: int, when: Callable[[str, int], bool]) -> Callable[[str, int], bool]:
    """Encoding has no time for one frame in n where that is so."""
    count = itertools.count(1)
    return lambda name, step: when(name, step) and next(count) % n == 0


def test_a_source_whose_frames_can_not_be_encoded_gives_room() -> None:
    # restoring leaves the cores too little time on the first two steps; the device itself has plenty
    world = World(costs(0.010, 0.008, 0.004, 0.0), {"gate": 25.0}, behind=one_in(4, lambda _, step: step < 2))
    world.run(60)
    assert world.step("gate") == 2
    assert world.moves("gate") < 16  # it tries the step above ever less often


def test_a_neighbour_gives_room_to_a_source_on_bypass() -> None:
    world = World(costs(0.010, 0.0), {"gate": 25.0, "yard": 25.0}, steps=("model", "bypass"))
    world.scheduler.ladder.pin("yard", 1)
    world.run(5)
    assert world.step("gate") == 0
    world.behind = one_in(4, lambda name, _: name == "yard" and world.step("gate") == 0)
    world.run(5)
    assert world.step("gate") == 1


def test_a_frame_that_can_not_be_encoded_now_and_then_moves_nothing() -> None:
    world = World(costs(0.010, 0.0), {"gate": 25.0}, steps=("model", "bypass"))
    world.run(5)
    world.behind = one_in(40, lambda _, step: step == 0)
    world.run(60)
    assert (world.step("gate"), world.moves("gate")) == (0, 1)


def test_a_burst_that_can_not_be_encoded_moves_nothing() -> None:
    world = World(costs(0.010, 0.0), {"gate": 25.0}, steps=("model", "bypass"))
    world.behind = lambda name, step: world.now < 0.8  # at the start, and once more when it has come back
    world.run(5)
    world.behind = lambda name, step: world.now < 5.8
    world.run(10)
    assert (world.step("gate"), world.moves("gate")) == (0, 1)
