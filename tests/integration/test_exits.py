"""How a process of this package ends, whatever its threads are doing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.commands import ROOT, command, environment

# A thread that nobody joins is in the network, or leaves it, while the process ends, as one does whose job was stopped.
_IN_THE_NETWORK = """
import threading, time
import torch
from streamdeblur.cli.exits import run_and_exit

net, picture, leave = torch.nn.Conv2d(32, 32, 3, padding=1), torch.randn(1, 32, 64, 64), threading.Event()

def work():
    with torch.inference_mode():
        while not leave.is_set():
            net(picture)

def action():
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.2)
    if {leaves}:
        leave.set()
    return 3

run_and_exit(action)
"""

_ORDER = """
import atexit, concurrent.futures, threading, time
from streamdeblur.cli.exits import run_and_exit

done = []

def later(what):
    time.sleep(0.5)
    done.append(what)

def action():
    atexit.register(lambda: print(sorted(done), end=""))
    concurrent.futures.ThreadPoolExecutor().submit(later, "a task")
    threading.Thread(target=later, args=("a thread",)).start()
    raise SystemExit(4)

run_and_exit(action)
"""

_STUCK = """
import time
from streamdeblur import interrupts
from streamdeblur.cli.exits import run_and_exit

def action():
    with interrupts.held():
        try:
            print("at work", flush=True)
            while True:
                time.sleep(0.01)
                interrupts.check()
        finally:
            print("cleaning up", flush=True)
            time.sleep(600)

run_and_exit(action)
"""


@contextmanager
def _running(code: str, first: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has printed its ``first`` line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{first}\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def _run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment() | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_files_that_the_system_refuses_are_told_by_name(tmp_path: Path) -> None:
    code = "from streamdeblur.cli.exits import run_and_exit; run_and_exit(lambda: open('a' * 300))"
    done = _run(code, tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {'a' * 300}: File name too long; check the path (--debug shows where)\n"


@pytest.mark.parametrize("leaves", [False, True])
def test_a_thread_in_the_network_does_not_abort_the_process(tmp_path: Path, leaves: bool) -> None:
    for _ in range(3 if leaves else 1):  # leaving is a race, and aborted two times in three
        done = _run(_IN_THE_NETWORK.format(leaves=leaves), tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_threads_are_waited_for_and_handlers_of_the_end_run(tmp_path: Path) -> None:
    done = _run(_ORDER, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (4, "['a task', 'a thread']", "")


#: A signal comes when the action is over, and what runs at the end is at work.
_LATE = """
import atexit, os, signal, threading, time
from streamdeblur.cli.exits import run_and_exit

def late():
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)

def action():
    {how}
    return 5

run_and_exit(action)
"""


@pytest.mark.parametrize("how", ["threading.Thread(target=late).start()", "atexit.register(late)"])
def test_a_wish_that_comes_after_the_end_changes_nothing(tmp_path: Path, how: str) -> None:
    done = _run(_LATE.format(how=how), tmp_path)
    assert (done.returncode, done.stderr) == (5, "")


@pytest.mark.parametrize("closed", ["1", "2", "1,2", "0,1,2"])
def test_closed_streams_are_no_failure(tmp_path: Path, closed: str) -> None:
    code = f"import os; [os.close(n) for n in ({closed},)]; os.execv({sys.executable!r}, {command('models')!r})"
    done = _run(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("mimo-unet" in done.stdout) == ("1" not in closed)


@pytest.mark.parametrize(("words", "code"), [(("models", "--nonsense"), 2), (("weights", "show", "none"), 1)])
def test_the_code_tells_where_stderr_is_gone(tmp_path: Path, words: tuple[str, ...], code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command(*words), cwd=tmp_path, env=environment(), stderr=writing, check=False, timeout=60)
    finally:
        os.close(writing)
    assert done.returncode == code


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_while_it_is_loaded_a_command_ends_at_once(tmp_path: Path, number: signal.Signals, word: str) -> None:
    code = f"import signal, streamdeblur.interrupts as i; i.end_at_once(); signal.raise_signal({int(number)})"
    done = _run(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"error: {word}\n")


@pytest.mark.parametrize("script", ["batch", "live"])
def test_a_script_whose_reader_has_gone(tmp_path: Path, script: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, str(ROOT / "pipelines" / f"{script}.py"), "--help"]
    try:
        done = subprocess.run(
            words, cwd=tmp_path, env=environment(), stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


#: Waits in C, where no handler of Python's runs.
_IN_C = """
import ctypes, threading
from streamdeblur.cli.exits import run_and_exit

def action():
    timer = threading.Timer(1.0, print, ("at work",), {"flush": True})
    timer.daemon = True
    timer.start()
    lock = (ctypes.c_long * 8)()
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)  # a second time, for ever; signals don't end it

run_and_exit(action)
"""


def test_a_second_wish_counts_where_the_main_thread_never_comes_back() -> None:
    with _running(_IN_C, "at work") as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_a_second_wish_is_the_same_at_first_and_then_ends_the_process() -> None:
    with _running(_STUCK, "at work") as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stderr is not None
        assert process.stderr.read().startswith("error: stopped at once; unfinished files (NAME.partial) may be left")
