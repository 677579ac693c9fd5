"""Real Ray actors: same results as in-process, deaths, poison, errors, and nothing left behind."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from streamdeblur.errors import DeviceError, UsageError, WeightsError, WorkerError
from streamdeblur.frames import ColorSpec, Frame, FrameSpec, Gap
from streamdeblur.runtime import Factory, InProcessPool, Pool, Result

ray = pytest.importorskip("ray")
from streamdeblur.runtime import ray_session  # noqa: E402
from streamdeblur.runtime.ray_pool import RayPool  # noqa: E402
from tests.one_ray import all_there, one_ray  # noqa: E402

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SPEC = FrameSpec(96, 64, ColorSpec("yuv", depth=10, chroma_shift=(1, 1)))


def frame(index: int) -> Frame:
    rng = np.random.default_rng(index)
    planes = tuple(rng.integers(0, 1024, shape, dtype=np.uint16) for shape in SPEC.color.plane_shapes(96, 64))
    return Frame(index, index, Fraction(1, 30), planes, SPEC)


def recipe(act: Callable[[int], None] = lambda index: None, setup: Callable[[], None] = lambda: None) -> Factory:
    """A factory of NumPy work, made here so that it travels by value; `act` runs before each frame."""

    def factory() -> Any:
        setup()

        def work(frame: Frame) -> Any:
            act(frame.index)
            return tuple(np.roll(plane, 1, axis=1).astype(np.int16) - plane.astype(np.int16) for plane in frame.planes)

        return work

    return factory


def run(pool: Pool, count: int, during: Callable[[int], None] = lambda taken: None) -> dict[int, Result | Gap]:
    """Pump frames 0..count-1 through the pool; every index comes back once."""
    results: dict[int, Result | Gap] = {}
    submitted = 0
    until = time.monotonic() + 100
    while len(results) < count:
        assert time.monotonic() < until, f"only {sorted(results)} came back"
        while submitted < count and pool.in_flight < pool.capacity:
            pool.submit(frame(submitted))
            submitted += 1
        for item in pool.collect(1.0):
            assert item.index not in results
            results[item.index] = item
        during(len(results))
    assert sorted(results) == list(range(count))
    assert pool.in_flight == 0
    assert pool.collect(0) == []
    return results


def expect_all(results: dict[int, Result | Gap], *, but: tuple[int, ...] = ()) -> None:
    for index, item in results.items():
        if index in but:
            assert isinstance(item, Gap)
            continue
        assert isinstance(item, Result), item
        for plane, correction in zip(frame(index).planes, item.corrections, strict=True):
            wide = plane.astype(np.int64)
            expected = np.concatenate([wide[:, -1:], wide[:, :-1]], axis=1) - wide
            np.testing.assert_array_equal(correction, expected)


def gone(pids: list[int]) -> bool:
    until = time.monotonic() + 15
    while time.monotonic() < until:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[str]:
    """One Ray for the module, which the pools find running and leave running; also somebody's cluster to join."""
    with one_ray(4) as address:
        yield address


def test_same_as_in_process_and_nothing_left() -> None:
    with InProcessPool(recipe()) as local:
        here = run(local, 30)
    pool = RayPool(recipe(), workers=2, num_cpus=0.5)
    all_there(pool)
    there = run(pool, 30)
    pids = pool.worker_pids()
    assert len(set(pids)) == 2
    pool.close()
    pool.close()
    assert gone(pids)
    assert ray.is_initialized()  # not ours to end
    expect_all(there)
    for index, item in here.items():
        other = there[index]
        assert isinstance(item, Result)
        assert isinstance(other, Result)
        for a, b in zip(item.corrections, other.corrections, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    workers = {item.worker for item in there.values() if isinstance(item, Result)}
    assert workers == {"ray:0", "ray:1"}
    with pytest.raises(RuntimeError):
        pool.submit(frame(30))


def test_credits() -> None:
    with RayPool(recipe(), workers=1, num_cpus=0.5, in_flight_per_worker=2) as pool:
        assert (pool.capacity, pool.in_flight) == (2, 0)
        pool.submit(frame(0))
        pool.submit(frame(1))
        assert pool.in_flight == 2
        with pytest.raises(RuntimeError, match="credits"):
            pool.submit(frame(2))
        done = []
        while len(done) < 2:
            done += pool.collect(5)
        pool.submit(frame(2))
        assert pool.in_flight == 1


@pytest.mark.parametrize("victims", [1, 2], ids=["one", "all"])
def test_killed_in_mid_run(victims: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    killed: list[int] = []

    with RayPool(recipe(act=lambda index: time.sleep(0.03)), workers=2, num_cpus=0.5) as pool:

        def kill(taken: int) -> None:
            if taken >= 10 and not killed:
                killed.extend(pool.worker_pids()[:victims])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

        all_there(pool)
        results = run(pool, 30, kill)
        assert not set(killed) & set(pool.worker_pids())
    assert len(killed) == victims
    expect_all(results)
    for pid in killed:
        assert sum(f"(pid {pid}) died" in record.getMessage() for record in caplog.records) == 1
    assert not any("\n" in record.getMessage() for record in caplog.records)


def test_killed_while_idle_is_no_frames_fault() -> None:
    with RayPool(recipe(), workers=2, num_cpus=0.5, max_kills=2) as pool:
        first = run(pool, 8)
        for pid in pool.worker_pids():
            os.kill(pid, signal.SIGKILL)
        expect_all(first)
        expect_all(run(pool, 8))


def test_poison_frame_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    def poison(index: int) -> None:
        time.sleep(0.01)
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    with RayPool(recipe(act=poison), workers=2, num_cpus=0.5) as pool:
        results = run(pool, 16)
    expect_all(results, but=(5,))
    gap = results[5]
    assert isinstance(gap, Gap)
    assert gap.reason.startswith("killed 3 workers: ray:")
    assert "\n" not in gap.reason
    assert any("frame 5 is given up" in record.getMessage() for record in caplog.records)


def test_two_poison_frames_and_one_worker() -> None:
    def poison(index: int) -> None:
        if index in (2, 3):
            os._exit(7)

    with RayPool(recipe(act=poison), workers=1, num_cpus=0.5, max_kills=2, in_flight_per_worker=3) as pool:
        expect_all(run(pool, 8), but=(2, 3))


def test_an_exception_is_a_gap_and_kills_nobody() -> None:
    def act(index: int) -> None:
        if index == 3:
            raise ValueError("frame is\ncursed")
        if index == 4:
            raise MemoryError
        if index == 5:
            raise WeightsError("layer gone", "load another")

    with RayPool(recipe(act=act), workers=1, num_cpus=0.5) as pool:
        results = run(pool, 8)
    expect_all(results, but=(3, 4, 5))
    assert results[3] == Gap(3, "ValueError: frame is cursed")
    assert results[4] == Gap(4, "MemoryError")
    assert results[5] == Gap(5, "layer gone; load another")


def test_factory_error_reaches_the_caller() -> None:
    def setup() -> None:
        raise WeightsError("x.safetensors is not there", "name another file")

    with RayPool(recipe(setup=setup), workers=2, num_cpus=0.5) as pool:
        with pytest.raises(WeightsError, match=r"x.safetensors is not there; name another file"):
            run(pool, 4)
        with pytest.raises(WeightsError):
            pool.submit(frame(9))


def test_factory_error_that_does_not_pickle() -> None:
    def setup() -> None:
        class Strange(Exception):
            def __reduce__(self) -> Any:
                raise TypeError("no")

        raise Strange("odd")

    with (
        RayPool(recipe(setup=setup), workers=1, num_cpus=0.5) as pool,
        pytest.raises(WorkerError, match="Strange: odd"),
    ):
        run(pool, 1)


def test_factory_that_dies_ends_in_an_error() -> None:
    with (
        RayPool(recipe(setup=lambda: os._exit(1)), workers=2, num_cpus=0.5) as pool,
        pytest.raises(WorkerError, match="while starting"),
    ):
        run(pool, 4)


def test_no_room_is_an_error_and_too_little_is_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with (
        RayPool(recipe(), workers=1, num_cpus=0.5, num_gpus=1, placement_timeout=1) as pool,
        pytest.raises(DeviceError, match="no room for a worker"),
    ):
        run(pool, 1)
    with RayPool(recipe(), workers=2, num_cpus=3) as pool:  # four CPUs: one of them stays out
        expect_all(run(pool, 8))
        pool._placement_timeout = 0.0
        expect_all(run(pool, 8))
    # Whichever Ray placed first.
    assert any("no room for worker ray:" in record.getMessage() for record in caplog.records)


def test_close_from_another_thread_ends_collect() -> None:
    pool = RayPool(recipe(act=lambda index: time.sleep(60)), workers=1, num_cpus=0.5)
    pool.submit(frame(0))
    while not pool.worker_pids():
        assert pool.collect(0.2) == []
    pids = pool.worker_pids()
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(pool.collect()), daemon=True)
    thread.start()
    time.sleep(0.3)
    pool.close(abort=True)
    thread.join(20)
    assert got == [[]]
    assert pool.in_flight == 0
    assert gone(pids)


def test_threads_and_contiguous_planes() -> None:
    """Strided planes arrive packed; the thread count is set before anything is built."""

    def factory() -> Any:
        import torch  # travels with the recipe as it does in the restorer's

        threads = torch.get_num_threads()

        def work(frame: Frame) -> Any:
            return (np.array([threads, *(plane.flags.c_contiguous for plane in frame.planes)]), frame.planes[0])

        return work

    whole = frame(0)
    strided = Frame(0, 0, whole.time_base, (whole.planes[0][:, ::-1], *whole.planes[1:]), SPEC)
    with RayPool(factory, workers=1, num_cpus=0.5, threads=2) as pool:
        pool.submit(strided)
        (item,) = pool.collect(60)
    assert isinstance(item, Result), item
    assert item.corrections[0].tolist() == [2, 1, 1, 1]
    np.testing.assert_array_equal(item.corrections[1], whole.planes[0][:, ::-1])


# Programs of their own: Ray is not running in them yet.

PROGRAM = """
    import os, signal, sys, time
    sys.path.insert(0, {root!r})
    from fractions import Fraction
    import numpy as np
    from streamdeblur.frames import ColorSpec, Frame, FrameSpec
    from streamdeblur.errors import StreamdeblurError
    from streamdeblur.runtime.ray_pool import RayPool

    def frame(index):
        plane = np.full((4, 6), index, np.uint8)
        return Frame(index, index, Fraction(1, 30), (plane,), FrameSpec(6, 4, ColorSpec("gray")))

    def factory():
        return lambda frame: (frame.planes[0].astype(np.int16) * 2,)

    def slow():
        return lambda frame: time.sleep(60)
"""


def program(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    # A test run that a shell put into the background hands SIGINT on as ignored.
    handler = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    text = handler + textwrap.dedent(PROGRAM).format(root=str(ROOT)) + textwrap.dedent(body)
    path = tmp_path / "program.py"
    path.write_text(text)
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    return subprocess.Popen(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def ended(child: subprocess.Popen[str]) -> str:
    """Its standard output; it ended well and printed nothing else."""
    out, err = child.communicate(timeout=90)
    assert child.returncode == 0, err
    return out


def test_starts_and_ends_its_own_ray_from_a_checkout(tmp_path: Path) -> None:
    """Only the program's sys.path knows the package; handlers are kept; Ctrl-C in the terminal ends all in seconds."""
    body = """
        marks = []
        signal.signal(signal.SIGTERM, lambda *_: marks.append("term"))
        try:
            with RayPool(factory, workers=1, num_cpus=1) as pool:
                pool.submit(frame(21))
                (item,) = pool.collect(60)
                print(item.index, item.worker, int(item.corrections[0][3, 5]), flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(pool.worker_pids()[0], signal.SIGKILL)  # Ray's report of it goes nowhere
                pool.submit(frame(22))
                while not (items := pool.collect(60)): pass
                print(items[0].index, marks, flush=True)
            import ray
            assert not ray.is_initialized()
            os.kill(os.getpid(), signal.SIGTERM)  # Ray's core put the default back, which would kill
            print(marks, flush=True)
            with RayPool(slow, workers=1, num_cpus=1) as pool:
                pool.submit(frame(0))
                while not pool.worker_pids(): pool.collect(0.1)
                print("pid", pool.worker_pids()[0], flush=True)
                pool.collect()
        except KeyboardInterrupt:
            print("interrupted", ray.is_initialized(), flush=True)
    """
    child = program(tmp_path, body)
    assert child.stdout is not None
    assert child.stdout.readline() == "21 ray:0 42\n"
    assert child.stdout.readline() == "22 ['term']\n"
    assert child.stdout.readline() == "['term', 'term']\n"
    pid = int(child.stdout.readline().split()[1])
    inside = [process.pid for process in psutil.Process(child.pid).children(recursive=True)]
    assert pid in inside
    os.killpg(child.pid, signal.SIGINT)
    assert ended(child) == "interrupted False\n"
    assert gone(inside)


def test_a_signal_while_ray_starts_is_the_programs_own(tmp_path: Path) -> None:
    """ray.init installs a handler of its own first of all, which would exit with 15."""
    body = """
        import ray
        from streamdeblur.cli.exits import run_and_exit

        def init(**options):
            ray._private.utils.set_sigterm_handler(lambda number, frame: sys.exit(number))
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

        source = open(ray._private.worker.__file__).read()
        assert source.count("ray._private.utils.set_sigterm_handler(sigterm_handler)") >= 1
        ray.init = init
        run_and_exit(lambda: RayPool(factory, workers=1, num_cpus=1))
    """
    out, err = program(tmp_path, body).communicate(timeout=90)
    assert (out, err) == ("", "error: terminated: no unfinished file is left under its final name\n")


def test_killed_driver_leaves_no_processes(tmp_path: Path) -> None:
    child = program(
        tmp_path,
        """
        pool = RayPool(slow, workers=1, num_cpus=1)
        pool.submit(frame(0))
        while not pool.worker_pids(): pool.collect(0.1)
        print("up", flush=True)
        pool.collect()
        """,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    # Ray's own agents notice within two minutes; everything with frames in it must go at once.
    inside = [
        process.pid
        for process in psutil.Process(child.pid).children(recursive=True)
        if "agent" not in " ".join(process.cmdline()).lower()
    ]
    assert len(inside) >= 3
    child.kill()
    child.communicate()
    assert gone(inside)


def test_joins_and_leaves_a_running_cluster(tmp_path: Path, cluster: str) -> None:
    body = f"""
        with RayPool(factory, workers=1, num_cpus=1, address={cluster!r}) as pool:
            pool.submit(frame(5))
            (item,) = pool.collect(60)
            print(item.index, item.worker, int(item.corrections[0][0, 0]))
            print(pool.worker_pids()[0])
    """
    first, second = ended(program(tmp_path, body)).splitlines()
    assert first == "5 ray:0 10"
    assert gone([int(second)])
    assert ray.get(ray.remote(num_cpus=0)(lambda: 7).remote()) == 7


def test_unreachable_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_session, "_SERVICE_TIMEOUT", 6.0)
    ended: list[bool] = []
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        with pytest.raises(DeviceError, match=r"no Ray cluster answers at .*efused") as caught:
            RayPool(recipe(), workers=1, address=address)
        assert "\n" not in str(caught.value)
    with socket.socket() as mute:  # something that listens, and never says a word
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(DeviceError, match="no answer within 6 s"):
            RayPool(recipe(), workers=1, address=f"127.0.0.1:{mute.getsockname()[1]}")
    for address in ("nonsense", "http://host:1", "host:port"):
        with pytest.raises(UsageError, match="not the address"):
            RayPool(recipe(), workers=1, address=address)
    assert not ended  # whoever joined a Ray meanwhile keeps it
