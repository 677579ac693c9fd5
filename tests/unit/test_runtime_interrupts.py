"""What a signal handler raises inside an extension module arrives as itself."""

from __future__ import annotations

import pytest

from streamdeblur.cli import exits
from streamdeblur.runtime.interrupts import interruptible


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


def test_a_signal_that_nobody_unwrapped_ends_the_program_as_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as found:
        exits.run_and_exit(lambda: _as_cython_does(exits.Stopped(15)))
    assert found.value.code == 143
    assert capsys.readouterr().err == "error: terminated: no unfinished file is left under its final name\n"
