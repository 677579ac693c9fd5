"""A child process at the other end of a link, which can be killed at any moment."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from streamdeblur.video.live.link import Link, Note
from streamdeblur.video.live.urls import mask

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[3]


class Child:
    """``python -m MODULE FD`` with a link. Nothing secret is in its arguments or its environment.

    The child has a session of its own: Ctrl-C at a terminal reaches the parent alone, which then ends it in order.
    """

    def __init__(self, module: str) -> None:
        here, there = socket.socketpair()
        path = os.pathsep.join(p for p in (str(_PACKAGE), os.environ.get("PYTHONPATH")) if p)
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(there.fileno())],
                pass_fds=(there.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries write there past every filter
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": path},
            )
        self.link = Link(here)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def fate(self) -> str:
        """How it ended, in words; waits a moment for a process whose link has just closed."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its process closed the link"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with code {code}"

    @property
    def crashed(self) -> bool:
        """Whether a fault of its own ended it, and neither its code nor somebody who killed it."""
        return -(self.returncode or 0) in (signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL)

    def wait(self, timeout: float) -> bool:
        """Whether it ended within ``timeout`` seconds."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it now, whatever it is blocked in (SIGKILL ends a stopped process too); idempotent."""
        self._process.kill()
        self._process.wait()
        self.link.close()


class _LinkHandler(logging.Handler):
    """Warnings of this process, masked, to the parent's log."""

    def __init__(self, link: Link) -> None:
        super().__init__(logging.WARNING)
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._link.send(Note(record.levelno, mask(record.getMessage())))
        except OSError:
            pass  # the parent has gone, and with it whoever would read this


def run_child(run: Callable[[Link], None], orphan_grace: float = 0.0) -> None:
    """The whole life of a child: ``run`` on the link whose number is its argument; then the process ends.

    The parent's death ends it even while FFmpeg blocks. orphan_grace: seconds for closing files after that.
    """
    link = _serve(sys.argv[1], orphan_grace)
    logger = logging.getLogger("streamdeblur")
    logger.addHandler(_LinkHandler(link))
    logger.propagate = False
    try:
        run(link)
    finally:
        # FFmpeg's and Python's clean-up have nothing to save, and may block.
        os._exit(0)


def _serve(number: str, orphan_grace: float) -> Link:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        time.sleep(orphan_grace)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    # A signal to the whole group is the parent's to answer: it ends its children in order.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    return Link(socket.socket(fileno=int(number)))
