"""The command line in a process of its own, without paying seconds of imports for each run.

A server process imports the package once and forks for every run; the child is what ``python -m streamdeblur`` would
be from there on: its own arguments, streams, folder, signals and exit code. Progress, which depends on the load of the
machine, is not printed.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]

_SERVER = """
import json, os, sys, threading
import streamdeblur.jobs.images, streamdeblur.jobs.process, streamdeblur.jobs.verify
import streamdeblur.cli.console
from streamdeblur.cli.main import main

streamdeblur.cli.console._EVERY = float("inf")

def wait(number, pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(1, (json.dumps([number, code]) + "\\n").encode())

for line in sys.stdin:
    number, arguments, folder, base = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(folder)
        for fd, ending in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{base}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv[1:] = arguments
        main()
    wait(number, pid)
"""


def environment() -> dict[str, str]:
    """For a process that runs this checkout, with plain output; and without a GPU, whose results no test knows to the
    bit, and of which two processes may want one."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    return os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "80",
        "CUDA_VISIBLE_DEVICES": "",
    }


class _Server:
    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", _SERVER], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._count = 0
        self._lock = threading.Lock()
        atexit.register(self._child.kill)

    def run(self, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with self._lock, tempfile.TemporaryDirectory() as scratch:
            self._count += 1
            base = Path(scratch) / "run"
            self._child.stdin.write(json.dumps([self._count, arguments, str(folder), str(base)]) + "\n")
            self._child.stdin.flush()
            number, code = json.loads(self._child.stdout.readline())
            assert number == self._count
            out, err = (base.with_suffix(f".{e}").read_text() for e in ("out", "err"))
        return subprocess.CompletedProcess(arguments, code, out, err)


@functools.cache
def _server() -> _Server:
    return _Server()


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``streamdeblur ARGUMENTS`` in the folder ``cwd``."""
    return _server().run([str(a) for a in arguments], cwd)


def command(*arguments: str | Path) -> list[str]:
    """Words for subprocess, where the whole process is the test's concern."""
    return [sys.executable, "-m", "streamdeblur", *map(str, arguments)]
