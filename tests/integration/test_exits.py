"""How a process of this package ends, whatever its threads are doing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import environment

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


@pytest.mark.parametrize("leaves", [False, True])
def test_a_thread_in_the_network_does_not_abort_the_process(tmp_path: Path, leaves: bool) -> None:
    for _ in range(3 if leaves else 1):  # leaving is a race, and aborted two times in three
        done = _run(_IN_THE_NETWORK.format(leaves=leaves), tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_threads_are_waited_for_and_handlers_of_the_end_run(tmp_path: Path) -> None:
    done = _run(_ORDER, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (4, "['a task', 'a thread']", "")


def test_a_second_wish_is_the_same_at_first_and_then_ends_the_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _STUCK], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
        assert process.stderr is not None
        assert process.stderr.read().startswith("error: stopped at once; unfinished files (NAME.partial) may be left")
    finally:
        process.kill()
        process.communicate()
