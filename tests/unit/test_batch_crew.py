"""Whose fault the end of an actor was, by what Ray raises."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

exceptions = pytest.importorskip("ray.exceptions")

from streamdeblur.config import parse  # noqa: E402
from streamdeblur.errors import DeviceError, UsageError  # noqa: E402
from streamdeblur.jobs.batch import cluster, crew  # noqa: E402
from streamdeblur.jobs.batch.crew import Crew, Died, verdict  # noqa: E402
from streamdeblur.jobs.batch.options import BatchOptions  # noqa: E402
from streamdeblur.jobs.batch.units import Unit  # noqa: E402

#: As Ray 2.60 words them.
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file."
)
MEMORY = (
    "The actor is dead because its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail"
)
WITHDRAWN = "The actor is dead because its worker process has died. Worker exit type: INTENDED_SYSTEM_EXIT detail"
NODE = (
    "The actor died because its node has died. Node Id: 06d3\n\tthe actor's node was terminated unexpectedly: health "
    "check failed due to missing too many heartbeats"
)


def died(message: str) -> Any:
    return exceptions.RayActorError(None, message)


@pytest.mark.parametrize(
    ("error", "node", "expected"),
    [
        (died(KILLED), "alive", "process"),
        (died(MEMORY), "alive", "process"),
        (died("no reason at all"), "alive", "process"),
        (died(WITHDRAWN), "alive", "node"),
        (died(KILLED), "gone", "node"),
        (died(NODE), "alive", "node"),
        (died(NODE), "", "node"),  # it never told where it was
        (died(KILLED), "", "process"),
        (exceptions.OutOfMemoryError("killed"), "alive", "process"),
        (exceptions.NodeDiedError("gone"), "alive", "node"),
        (exceptions.ObjectLostError("00", None, ""), "alive", "node"),
        (exceptions.ActorUnavailableError("rpc", None), "alive", "unknown"),
        (exceptions.ActorUnavailableError("rpc", None), "", "unknown"),
        (exceptions.ActorUnavailableError("rpc", None), "gone", "node"),
    ],
)
def test_verdicts(error: BaseException, node: str, expected: str) -> None:
    assert verdict(error, node, {"alive", "other"}) == expected


def test_a_node_that_was_taken_away_is_no_fault_of_the_file() -> None:
    error = exceptions.ActorDiedError()
    error._preempted = True
    assert verdict(error, "alive", {"alive"}) == "node"


class FakeActor:
    """What the crew asks of an actor."""

    def __init__(self, name: str, now: float, *, working: bool = True, helper: bool = False) -> None:
        self.name, self.where, self.host, self.node = name, name, "host", "alive"
        self.state, self.helper, self.call, self.killed = "ready", helper, None, False
        self.moved = self.since = now
        item = SimpleNamespace(source=name)
        self.unit: Any = Unit("files", (item,)) if working else None  # type: ignore[arg-type]

    def kill(self) -> None:
        self.killed = True


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(crew, "time", made)
    return made


def made(*, fixed: bool = False, **options: Any) -> Crew:
    metrics: Any = SimpleNamespace(death=lambda: None)
    return Crew(parse(BatchOptions, {"gpus_per_worker": 0.0, **options}), None, {}, metrics, fixed)  # type: ignore[arg-type]


def test_work_that_does_not_go_on_is_taken_from_its_actor(clock: Clock) -> None:
    c = made(unit_timeout=100)
    still, moving, idle = (FakeActor(n, clock.now, working=n != "idle") for n in ("still", "moving", "idle"))
    c.actors = [still, moving, idle]  # type: ignore[list-item]
    found: list[Any] = []
    for _ in range(24):
        clock.now += 4.75
        moving.moved = clock.now
        found += c.listen(0.25)
    (died,) = found
    assert isinstance(died, Died)
    assert (died.unit, died.guilty) == (still.unit, True)
    assert "no progress for 100 s" in died.message
    assert (still.killed, moving.killed, idle.killed) == (True, False, False)
    assert (c.actors, c.deaths) == ([moving, idle], 1)


def test_a_driver_that_was_held_up_itself_blames_nobody(clock: Clock) -> None:
    c = made(unit_timeout=100)
    c.actors = [FakeActor("a", clock.now)]  # type: ignore[list-item]
    assert list(c.listen(0.25)) == []
    clock.now += 5000  # DEST hung, and the driver with it
    assert list(c.listen(0.25)) == []
    for _ in range(40):
        clock.now += 5
        if events := list(c.listen(0.25)):
            break
    assert [e.guilty for e in events] == [True]  # type: ignore[union-attr]


def test_without_a_limit_work_may_stand_still(clock: Clock) -> None:
    c = made(unit_timeout=0)
    c.actors = [FakeActor("a", clock.now)]  # type: ignore[list-item]
    for _ in range(50):
        clock.now += 5
        assert list(c.listen(0.25)) == []


def starting(c: Crew, error: Exception) -> None:
    actor: Any = FakeActor("worker", 0.0, working=False)
    actor.state, actor.host = "starting", ""
    c.actors.append(actor)
    c._remove(actor, "process", "why", cause=error)


def test_what_is_wrong_with_options_is_one_error_at_the_start(clock: Clock) -> None:
    with pytest.raises(UsageError, match="no such detector"):
        starting(made(), UsageError("no such detector"))
    c = made()
    for _ in range(3):
        starting(c, DeviceError("CUDA is not there"))  # it may be the one node
    with pytest.raises(DeviceError, match="CUDA is not there"):
        starting(c, DeviceError("CUDA is not there"))
    c = made()
    c.ever_ready = True
    c.actors.append(FakeActor("good", clock.now))  # type: ignore[arg-type]
    for _ in range(20):  # nodes that joined later, and lack a package
        starting(c, UsageError("no onnxruntime"))
    assert len(c.actors) == 1


class FakeRay:
    def __init__(self, *nodes: dict[str, float]) -> None:
        self._nodes = nodes

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": str(i), "Resources": r} for i, r in enumerate(self._nodes)]

    def cluster_resources(self) -> dict[str, float]:
        return {k: v for r in self._nodes for k, v in r.items()}


def test_cuda_asks_for_a_gpu_though_there_is_none_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ray", FakeRay({"CPU": 8}))
    assert cluster.gpus_per_worker(parse(BatchOptions, {"device": "cuda"})) == 1
    assert cluster.gpus_per_worker(parse(BatchOptions, {"device": "cuda", "gpus_per_worker": 0.25})) == 0.25
    assert cluster.gpus_per_worker(parse(BatchOptions, {})) == 0
    monkeypatch.setattr(cluster, "_ray", FakeRay({"CPU": 8, "GPU": 2}))
    assert cluster.gpus_per_worker(parse(BatchOptions, {})) == 1
    assert cluster.gpus_per_worker(parse(BatchOptions, {"device": "cpu"})) == 0


def test_no_room_is_waited_for_with_one_line_and_on_one_machine_an_error(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster, "_ray", FakeRay({"CPU": 8}))
    hired: list[float] = []

    def pending(number: int, cls: Any, spec: Any, weights: Any, options: Any, gpus: float, helper: bool) -> Any:
        hired.append(gpus)
        actor: Any = FakeActor(f"worker {number}", clock.now, working=False)
        actor.state, actor.host = "starting", ""
        return actor

    monkeypatch.setattr(crew, "Actor", pending)
    c = made(device="cuda", gpus_per_worker=None)
    with caplog.at_level(logging.WARNING, "streamdeblur"):
        for _ in range(100):
            c.man(5, queued=True)
            clock.now += 5
    assert hired == [1.0]  # one start is pending, which an autoscaler sees
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("waiting for 1 CPU and 1 GPU for an actor: no node has so much")
    monkeypatch.setattr(cluster, "_ray", FakeRay({"CPU": 8}, {"CPU": 8, "GPU": 4}))
    c.man(5, queued=True)
    c.man(5, queued=True)
    assert hired == [1.0] * 4
    monkeypatch.setattr(cluster, "_ray", FakeRay({"CPU": 8}))
    with pytest.raises(DeviceError, match="no room for an actor, which asks for 1 CPU and 1 GPU"):
        made(fixed=True, device="cuda", gpus_per_worker=None).man(5, queued=True)
