"""Kernels of our own for CPUs: compiled for this machine when they are first used, kept in the cache folder."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from functools import cache as once
from pathlib import Path

import torch

from streamdeblur.errors import DeviceError
from streamdeblur.restore.engines import cache

log = logging.getLogger(__name__)

#: No -ffast-math: linked with it, GCC's libraries change how the whole process treats tiny numbers.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC")

#: Seconds that a compiler may take; one that is there takes two.
_PATIENCE = 60.0

_INSTEAD = "take --engine auto or fused"

_lock = threading.Lock()


def find_compiler() -> str | None:
    """The C++ compiler: of ``CXX``, else the first of g++, clang++ and c++ that is there; None where there is none.

    What ``CXX`` names is a program, without arguments.
    """
    names = (os.environ.get("CXX") or "g++", "g++", "clang++", "c++")
    return next((found for name in names if (found := shutil.which(name))), None)


def version() -> str:
    """What verdicts on kernels depend on beside the machine: their source, the compiler and its flags.

    Raises DeviceError where there is no compiler.
    """
    return cache.key(_source().read_bytes(), _compiler_version(_required()), *_FLAGS)


def library() -> ctypes.CDLL:
    """The kernels, compiled for this CPU; a few seconds when a machine has them first. Safe for any thread.

    Raises DeviceError where there is no compiler, or where it fails.
    """
    with _lock:
        return _library()


@once
def _library() -> ctypes.CDLL:
    compiler = _required()
    digest = cache.key(version(), cache.cpu_name(), *map(str, _openmp()))
    kept = cache.cache_folder() / "kernels" / f"{digest}.so"
    if cache.intact(kept):
        try:
            return _open(kept)
        except DeviceError as e:  # in a folder from which nothing may be run, say
            log.debug("kept kernels: %s", e)
    with tempfile.TemporaryDirectory(prefix="streamdeblur-") as folder:
        made = Path(folder) / "kernels.so"
        try:
            _compile(compiler, made, parallel=True)
            found = _open(made)
        except DeviceError as e:
            # Clang's OpenMP is not GCC's, which PyTorch brings. Frames side by side use all cores without it.
            log.debug("kernels without OpenMP: %s", e)
            _compile(compiler, made, parallel=False)
            found = _open(made)
        try:
            with cache.replacing(kept) as temporary:
                shutil.copyfile(made, temporary)
            cache.seal(kept)
        except OSError as e:
            log.debug("compiled kernels can't be kept: %s", e)
    return found


def _open(path: Path) -> ctypes.CDLL:
    try:
        found = ctypes.CDLL(str(path))
    except OSError as e:
        raise DeviceError(f"compiled kernels can't be loaded ({e})", f"{_INSTEAD}, or set TMPDIR") from None
    pointer, number = ctypes.c_void_p, ctypes.c_int
    found.streamdeblur_winograd_width.restype = number
    found.streamdeblur_winograd.argtypes = [pointer] * 4 + [number] * 9
    found.streamdeblur_winograd.restype = number
    found.streamdeblur_winograd_gradient.argtypes = [pointer] * 5 + [number] * 8
    found.streamdeblur_winograd_gradient.restype = number
    return found


def _required() -> str:
    compiler = find_compiler()
    if compiler is None:
        raise DeviceError("engine winograd needs a C++ compiler", "install g++, or take --engine auto")
    return compiler


def _source() -> Path:
    return Path(__file__).with_name("winograd.cpp")


@once
def _compiler_version(compiler: str) -> str:
    return f"{compiler} {_call([compiler, '--version'])}"


def _openmp() -> list[Path]:
    """PyTorch's own copy of GCC's OpenMP, if it brings one: two in a process have threads that wait for each other."""
    folder = Path(torch.__file__).parent
    return sorted([*(folder / "lib").glob("libgomp*"), *folder.with_name("torch.libs").glob("libgomp*")])[:1]


def _compile(compiler: str, to: Path, *, parallel: bool) -> None:
    """Raises DeviceError where it fails."""
    part = to.with_suffix(".o")
    openmp = ["-fopenmp"] * parallel
    _call([compiler, *_FLAGS, *openmp, "-c", str(_source()), "-o", str(part)])
    theirs = [str(path) for path in _openmp()] if parallel else []
    _call([compiler, "-shared", str(part), *(theirs or openmp), "-o", str(to)])
    if not to.is_file():
        raise DeviceError(f"the C++ compiler {compiler} writes nothing", _INSTEAD)


def _call(command: list[str]) -> str:
    """What it prints. In a session of its own, so that all that a wrapper starts can be stopped. Raises DeviceError."""
    name = command[0]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},  # its errors are looked for by that word
            start_new_session=True,
        )
    except OSError as e:
        raise DeviceError(f"the C++ compiler {name} does not run ({e.strerror})", _INSTEAD) from None
    try:
        printed, errors = process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        raise DeviceError(f"the C++ compiler {name} takes longer than {_PATIENCE:g} s", _INSTEAD) from None
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        log.debug("%s\n%s", " ".join(command), errors)
        told = next((line.strip() for line in errors.splitlines() if "error" in line), "")
        how = f"by signal {-process.returncode}" if process.returncode < 0 else f"with {process.returncode}"
        raise DeviceError(f"the C++ compiler {name} ends {how} ({told[:160] or 'it does not say why'})", _INSTEAD)
    return printed
