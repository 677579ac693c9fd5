"""Signals are held back where they would do harm, and what a handler raises arrives as itself."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from streamdeblur import interrupts
from streamdeblur.cli import exits
from streamdeblur.interrupts import interruptible
from streamdeblur.jobs.channel import Channel


def _as_cython_does(raised: BaseException) -> None:
    raise SystemError("wait returned a result with an exception set") from raised


def test_what_the_handler_raised_goes_on_as_itself() -> None:
    stopped = exits.Stopped(15)
    with pytest.raises(exits.Stopped) as found, interruptible():
        _as_cython_does(stopped)
    assert found.value is stopped
    with pytest.raises(KeyboardInterrupt), interruptible():
        _as_cython_does(KeyboardInterrupt())


def test_faults_of_the_extension_stay_faults() -> None:
    with pytest.raises(SystemError), interruptible():
        _as_cython_does(ValueError("a fault"))
    with pytest.raises(SystemError), interruptible():
        raise SystemError("another")
    with pytest.raises(ValueError, match="a plain one"), interruptible():
        raise ValueError("a plain one")


@pytest.fixture
def handlers_put_back() -> Iterator[None]:
    """A program sets its own for good; the process of the tests wants its own again."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers_put_back")
def test_a_signal_that_nobody_unwrapped_ends_the_program_as_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.run(lambda: _as_cython_does(exits.Stopped(15))) == 143
    assert capsys.readouterr().err == "error: terminated: no unfinished file is left under its final name\n"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    interrupts.forget()


class _Lossy:
    """Python prints what is raised in a ``__del__``, and goes on."""

    def __del__(self) -> None:
        interrupts.deliver(exits.Stopped(15))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("look", [interrupts.check, interrupts.held()(lambda: None)], ids=["check", "held"])
def test_what_was_lost_is_raised_at_the_next_look(look: Callable[[], object]) -> None:
    _Lossy()
    gc.collect()
    assert interrupts.wanted()
    with pytest.raises(exits.Stopped):
        look()
    assert not interrupts.wanted()


@pytest.mark.usefixtures("handlers_put_back")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_program_whose_signal_was_lost_ends_by_it_all_the_same() -> None:
    def action() -> None:
        _Lossy()

    assert exits.run(action) == 143


def test_nothing_is_raised_a_second_time_while_it_is_on_its_way() -> None:
    passed = []
    try:
        interrupts.deliver(exits.Stopped(15))
    except exits.Stopped:
        with interrupts.held():  # a clean-up that writes a file
            interrupts.check()
            passed.append("cleaned up")
    assert passed == ["cleaned up"]


def test_ctrl_c_of_a_caller_is_held_back_too() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    passed = []

    def work() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGINT)
            passed.append("went on")

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert passed == ["went on"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_waits_while_it_is_held_back() -> None:
    passed = []

    def work() -> None:
        with interrupts.held():
            interrupts.deliver(exits.Stopped(15))
            interrupts.deliver(exits.Stopped(2))  # the first counts
            with interrupts.held():
                passed.append("inside")
            passed.append("outside")

    with pytest.raises(exits.Stopped) as found:
        work()
    assert (found.value.number, passed) == (15, ["inside", "outside"])
    interrupts.check()  # it is raised once


def test_where_a_job_looks_it_stops() -> None:
    passed = []

    def work() -> None:
        with interrupts.held():
            interrupts.deliver(exits.Stopped(15))
            try:
                interrupts.check()
            finally:
                interrupts.deliver(exits.Stopped(15))  # while it cleans up: not in the way
                passed.append("cleaned up")

    with pytest.raises(exits.Stopped):
        work()
    assert passed == ["cleaned up"]


def test_other_threads_neither_hold_nor_look() -> None:
    seen: list[str] = []

    def elsewhere() -> None:
        with interrupts.held():
            interrupts.check()
            seen.append("went on")

    def work() -> None:
        with interrupts.held():
            interrupts.deliver(exits.Stopped(15))
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()

    with pytest.raises(exits.Stopped):
        work()
    assert seen == ["went on"]


@pytest.mark.parametrize("end", ["put", "get"])
def test_who_waits_on_a_channel_looks(end: str) -> None:
    channel: Channel[int] = Channel(1)
    if end == "put":
        channel.put(1)

    timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGUSR1,))

    def work() -> None:
        with interrupts.held():
            timer.start()
            channel.put(2) if end == "put" else channel.get()

    before = signal.signal(signal.SIGUSR1, lambda number, frame: interrupts.deliver(exits.Stopped(number)))
    try:
        with pytest.raises(exits.Stopped):
            work()
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_what_a_stop_broke_is_told_as_the_stop(capsys: pytest.CaptureFixture[str]) -> None:
    for broken in (RuntimeError("release unlocked lock"), OSError(28, "No space left on device")):
        broken.__context__ = exits.Stopped(2)
        assert exits._say(broken, debug=False) == 130
        assert capsys.readouterr().err == "error: interrupted: no unfinished file is left under its final name\n"
