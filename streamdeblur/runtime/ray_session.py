"""This process and Ray: joining a cluster or starting one on this machine, leaving it, and what Ray must not do to a
program meanwhile: replace its signal handlers, write to its standard output, wait for minutes for an address.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import ray
import ray.exceptions

from streamdeblur.errors import DeviceError, UsageError
from streamdeblur.runtime.pool import one_line

logger = logging.getLogger(__name__)

#: The address of a Ray of this machine's own.
LOCAL = "local"

#: Seconds until a cluster must have answered: the port, then the service behind it.
_PORT_TIMEOUT = 5.0
_SERVICE_TIMEOUT = 30.0


def start(address: str | None, **local: Any) -> bool:
    """Connect this process, which is in no Ray yet; `shut_down` ends it. True where a Ray was started here.

    address: of a cluster, "local", or None for what RAY_ADDRESS says, which is "local" where it says nothing. local:
    arguments of `ray.init` for a Ray that is started on this machine. Raises UsageError for an address that is none,
    DeviceError where no cluster answers or Ray does not start.
    """
    address = chosen_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        options |= {"include_dashboard": False, **local}
    else:
        _check_address(address)
    with _signal_handlers_kept():
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except BaseException as error:
            ray.shutdown()  # what was begun; an interrupt may come half-way, too
            if not isinstance(error, Exception):
                raise
            where = "on this machine" if address == LOCAL else f"at {address}"
            raise DeviceError(f"Ray can't be used {where}: {one_line(error)}") from error
    _messages_to_log(True)
    return address == LOCAL


def chosen_address(address: str | None) -> str:
    """What ``start`` makes of an address."""
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def shut_down() -> None:
    """`ray.shutdown`, after which handlers are the program's again: Ray's core puts SIGTERM's default back."""
    with _signal_handlers_kept():
        ray.shutdown()
    _messages_to_log(False)


def brief(error: BaseException) -> str:
    """Ray's own messages run over many lines: the class, and how the process ended where that is told."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "killed by Ray's memory monitor: the machine ran out of memory"
    found = re.search(r"Worker exit type: (\w+)", str(error))
    if found:
        return f"{type(error).__name__}, {found[1]}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(lines[0].split())[:100]}" if lines else type(error).__name__


def _check_address(address: str) -> None:
    """Find out in bounded time whether a cluster answers; `ray.init` would try for minutes, and ignore signals."""
    if address == "auto":
        _check_service(address)
        return
    client = address.startswith("ray://")
    try:
        parts = urlsplit(address if client else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or (port is None and not client) or (not client and "://" in address):
        raise UsageError(f"{address!r} is not the address of a Ray cluster", "give auto, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host, port or 10001), timeout=_PORT_TIMEOUT).close()
    except OSError as error:
        raise DeviceError(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            "check the address, or leave it out to use this machine",
        ) from error
    if not client:
        _check_service(address)


def _check_service(address: str) -> None:
    """Ask in a process of its own, which can be killed: something else may listen at the port, or nothing any more."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SERVICE_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_SERVICE_TIMEOUT:g} s"
    else:
        if done.returncode == 0:
            return
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = " ".join(lines[-1].split()) if lines else f"the health check returned {done.returncode}"
    raise DeviceError(
        f"no Ray cluster answers at {address}: {reason}", "check the address, or leave it out to use this machine"
    )


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """`ray.init` would replace the handler of SIGTERM by one that exits with 15: it must not, and what is replaced all
    the same is put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    utils: Any = sys.modules.get("ray._private.utils")
    setter = getattr(utils, "set_sigterm_handler", None)
    if setter is not None:
        utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        if setter is not None:
            utils.set_sigterm_handler = setter
        for number, handler in kept.items():
            if handler is not None:  # None: not installed from Python, so not ours to put back
                signal.signal(number, handler)


_ray_printer: Any = None


def _messages_to_log(on: bool) -> None:
    """Keep Ray's reports of dead workers off standard output, where a program's result may go; there is no option."""
    global _ray_printer
    module: Any = sys.modules.get("ray._private.worker")
    if on and _ray_printer is None:
        _ray_printer = getattr(module, "print_to_stdstream", None)
        if _ray_printer is not None:
            module.print_to_stdstream = _log_message
    elif not on and _ray_printer is not None:
        module.print_to_stdstream, _ray_printer = _ray_printer, None


def _log_message(data: Any, *arguments: Any, **options: Any) -> None:
    logger.debug("Ray: %s", " ".join(str(data.get("lines")).split()) if isinstance(data, dict) else data)
