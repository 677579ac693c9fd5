"""Kernels of our own for CPUs: compiled for this machine when they are first used, kept in the cache folder."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache as once
from pathlib import Path

import torch

from streamdeblur.errors import DeviceError
from streamdeblur.restore.engines import cache

log = logging.getLogger(__name__)

#: No -ffast-math: linked with it, GCC's libraries change how the whole process treats tiny numbers.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-fopenmp")

#: Seconds that a compiler may take.
_PATIENCE = 120.0


def find_compiler() -> str | None:
    """The C++ compiler: of ``CXX``, else the first of g++, clang++ and c++ that is there; None where there is none."""
    names = (os.environ.get("CXX") or "g++", "g++", "clang++", "c++")
    return next((found for name in names if (found := shutil.which(name))), None)


def version() -> str:
    """What verdicts on kernels depend on beside the machine: their source, the compiler and its flags.

    Raises DeviceError where there is no compiler.
    """
    return cache.key(_source().read_bytes(), _compiler_version(_required()), *_FLAGS)


@once
def library() -> ctypes.CDLL:
    """The kernels, compiled for this CPU; a few seconds when a machine has them first. Safe for any thread.

    Raises DeviceError where there is no compiler, or where it fails.
    """
    compiler = _required()
    digest = cache.key(version(), cache.cpu_name(), *map(str, _openmp()))
    path = cache.cache_folder() / "kernels" / f"{digest}.so"
    if not cache.intact(path):
        try:
            with cache.replacing(path) as temporary:
                _compile(compiler, temporary)
            cache.seal(path)
        except OSError as e:
            log.debug("compiled kernels can't be kept: %s", e)
            with tempfile.TemporaryDirectory() as folder:
                _compile(compiler, Path(folder) / "kernels.so")
                return _open(Path(folder) / "kernels.so")
    return _open(path)


def _open(path: Path) -> ctypes.CDLL:
    try:
        found = ctypes.CDLL(str(path))
    except OSError as e:
        raise DeviceError(f"compiled kernels can't be loaded ({e})", "take --engine auto or fused") from None
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
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise DeviceError(f"the C++ compiler {compiler} does not run ({e})", "take --engine auto or fused") from None
    return f"{compiler} {done.stdout}"


def _openmp() -> list[Path]:
    """PyTorch's own copy of GCC's OpenMP, if it brings one: two in a process have threads that wait for each other."""
    folder = Path(torch.__file__).parent
    return sorted([*(folder / "lib").glob("libgomp*"), *folder.with_name("torch.libs").glob("libgomp*")])[:1]


def _compile(compiler: str, to: Path) -> None:
    """Raises DeviceError where it fails, OSError where ``to`` can't be written."""
    theirs = _openmp()
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        part = Path(folder) / "winograd.o"
        _call([compiler, *_FLAGS, "-c", str(_source()), "-o", str(part)])
        _call([compiler, "-shared", str(part), *(map(str, theirs) if theirs else ["-fopenmp"]), "-o", str(to)])


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise DeviceError(f"the C++ compiler does not run ({e})", "take --engine auto or fused") from None
    if done.returncode:
        log.debug("%s\n%s", " ".join(command), done.stderr)
        last = next((line for line in done.stderr.splitlines() if "error" in line), "no reason told")
        raise DeviceError(f"the C++ compiler fails ({last.strip()[:160]})", "take --engine auto or fused")
