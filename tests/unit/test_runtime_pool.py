"""The pool inside this process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from streamdeblur.errors import WeightsError, WorkerError
from streamdeblur.frames import ColorSpec, Frame, FrameSpec, Gap
from streamdeblur.runtime import Corrections, InProcessPool, Pool, Result, one_line

GRAY = FrameSpec(6, 4, ColorSpec("gray"))


def frame(index: int) -> Frame:
    return Frame(index, None, Fraction(1, 25), (np.full((4, 6), index, np.uint8),), GRAY)


def negate(frame: Frame) -> Corrections:
    return tuple(-plane.astype(np.int16) for plane in frame.planes)


def collect(pool: Pool, count: int) -> list[Result | Gap]:
    items: list[Result | Gap] = []
    while len(items) < count:
        got = pool.collect(20)
        assert got
        items += got
    return items


def test_results_in_order_with_credits() -> None:
    with InProcessPool(lambda: negate, capacity=3) as pool:
        assert (pool.capacity, pool.in_flight) == (3, 0)
        assert pool.collect() == []  # nothing in flight: nothing to wait for
        for start in (0, 3):
            for index in range(start, start + 3):
                pool.submit(frame(index))
            assert pool.in_flight == 3
            with pytest.raises(RuntimeError, match="all 3 credits"):
                pool.submit(frame(99))
            items = collect(pool, 3)
            assert pool.in_flight == 0
            for index, item in zip(range(start, start + 3), items, strict=True):
                assert isinstance(item, Result)
                assert (item.index, item.worker, len(item.corrections)) == (index, "local:0", 1)
                assert item.seconds >= 0
                assert item.corrections[0].tolist() == [[-index] * 6] * 4


def test_several_threads_call_the_work_at_once() -> None:
    together = threading.Barrier(3)
    built = []

    def factory() -> Callable[[Frame], Corrections]:
        built.append(threading.get_ident())
        return meet

    def meet(frame: Frame) -> Corrections:
        together.wait(20)  # passes only when three are in here
        return negate(frame)

    with InProcessPool(factory, capacity=6, threads=3) as pool:
        for index in range(6):
            pool.submit(frame(index))
        items = collect(pool, 6)
    assert len(built) == 1
    assert sorted(item.index for item in items) == [0, 1, 2, 3, 4, 5]
    assert all(isinstance(item, Result) and item.corrections[0][0, 0] == -item.index for item in items)


def test_close_waits_for_every_thread() -> None:
    begun, may = threading.Semaphore(0), threading.Event()
    ended = []

    def work(frame: Frame) -> Corrections:
        begun.release()
        may.wait(20)
        ended.append(frame.index)
        return negate(frame)

    pool = InProcessPool(lambda: work, capacity=2, threads=2)
    for index in range(2):
        pool.submit(frame(index))
        assert begun.acquire(timeout=20)
    threading.Timer(0.1, may.set).start()
    pool.close()
    assert sorted(ended) == [0, 1]


def test_work_done_but_not_collected_holds_its_credit() -> None:
    done = threading.Event()

    def work(frame: Frame) -> Corrections:
        done.set()
        return negate(frame)

    with InProcessPool(lambda: work, capacity=1) as pool:
        pool.submit(frame(0))
        assert done.wait(20)
        with pytest.raises(RuntimeError, match="credits"):
            pool.submit(frame(1))
        collect(pool, 1)
        pool.submit(frame(1))


def test_timeout_gives_nothing() -> None:
    go = threading.Event()

    def work(frame: Frame) -> Corrections:
        go.wait(20)
        return negate(frame)

    with InProcessPool(lambda: work) as pool:
        pool.submit(frame(0))
        assert pool.collect(0) == []
        assert pool.collect(0.05) == []
        assert pool.in_flight == 1
        go.set()
        assert [item.index for item in collect(pool, 1)] == [0]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (MemoryError(), "MemoryError"),
        (WorkerError("it broke", "mend it"), "it broke; mend it"),
    ],
)
def test_exception_of_one_frame_is_its_gap(error: Exception, reason: str) -> None:
    def work(frame: Frame) -> Corrections:
        if frame.index == 1:
            raise error
        return negate(frame)

    with InProcessPool(lambda: work, capacity=3) as pool:
        for index in range(3):
            pool.submit(frame(index))
        first, second, third = collect(pool, 3)
    assert second == Gap(1, reason)
    assert isinstance(first, Result)
    assert isinstance(third, Result)


def test_work_that_returns_something_else_is_a_gap() -> None:
    wrong: Any = lambda frame: [frame.planes[0]]  # noqa: E731
    with InProcessPool(lambda: wrong) as pool:
        pool.submit(frame(4))
        assert collect(pool, 1) == [Gap(4, "TypeError: the work returned list, not a tuple of arrays")]


def test_failing_factory_reaches_the_caller_as_itself() -> None:
    error = WeightsError("no such file x.safetensors", "name another")
    go = threading.Event()

    def factory() -> Callable[[Frame], Corrections]:
        go.wait(20)
        raise error

    with InProcessPool(factory) as pool:
        pool.submit(frame(0))  # the factory is still running: nothing is known yet
        go.set()
        for _ in range(2):
            with pytest.raises(WeightsError) as caught:
                pool.collect(20)
            assert caught.value is error
        with pytest.raises(WeightsError):
            pool.submit(frame(1))


def test_factory_and_work_run_in_one_thread_that_is_not_the_callers() -> None:
    threads: list[threading.Thread] = []

    def factory() -> Callable[[Frame], Corrections]:
        threads.append(threading.current_thread())

        def work(frame: Frame) -> Corrections:
            threads.append(threading.current_thread())
            return negate(frame)

        return work

    with InProcessPool(factory) as pool:
        pool.submit(frame(0))
        pool.submit(frame(1))
        collect(pool, 2)
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    assert threads[0].daemon
    assert not threads[0].is_alive()


def test_close_waits_for_the_work_and_abort_does_not() -> None:
    started, go, finished = threading.Event(), threading.Event(), threading.Event()

    def work(frame: Frame) -> Corrections:
        started.set()
        go.wait(20)
        finished.set()
        return negate(frame)

    pool = InProcessPool(lambda: work)
    pool.submit(frame(0))
    pool.submit(frame(1))
    assert started.wait(20)
    pool.close(abort=True)
    assert not finished.is_set()
    assert pool.in_flight == 0
    assert pool.collect() == []
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(frame(2))
    pool.close(abort=True)
    go.set()

    other = InProcessPool(lambda: work)
    finished.clear()
    other.submit(frame(0))
    other.close()
    assert finished.is_set()
    other.close()


def test_abort_wakes_a_waiting_collect() -> None:
    go = threading.Event()

    def work(frame: Frame) -> Corrections:
        go.wait(20)
        return negate(frame)

    pool = InProcessPool(lambda: work)
    pool.submit(frame(0))
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(pool.collect()))
    waiter.start()
    pool.close(abort=True)
    waiter.join(20)
    go.set()
    assert got == [[]]


def test_an_error_in_the_block_aborts() -> None:
    go = threading.Event()

    def work(frame: Frame) -> Corrections:
        go.wait(20)
        return negate(frame)

    def block() -> None:
        with InProcessPool(lambda: work) as pool:
            pool.submit(frame(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()  # would wait for the work, which waits for this thread
    assert not go.is_set()
    go.set()


def test_one_line() -> None:
    assert one_line(KeyError("a")) == "KeyError: 'a'"
    assert one_line(OSError()) == "OSError"
    assert one_line(WeightsError("a\nb", "c")) == "a b; c"


def test_capacity_is_positive() -> None:
    with pytest.raises(ValueError, match="capacity 0"):
        InProcessPool(lambda: negate, capacity=0)


def test_the_room_does_not_load_ray() -> None:
    heavy = "{'ray', 'torch', 'av'}"
    code = f"import sys, streamdeblur.runtime; sys.exit(any(name.split('.')[0] in {heavy} for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
