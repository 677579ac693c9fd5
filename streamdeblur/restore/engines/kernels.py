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

_INSTEAD = "set CXX to another, or do without --engine winograd"

_lock = threading.Lock()
_loaded_version: str | None = None


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


def loaded_version() -> str | None:
    """``version`` as it was when this process asked for kernels first; None where it never did."""
    return _loaded_version


def library() -> ctypes.CDLL:
    """The kernels, compiled for this CPU; a few seconds when a machine has them first. Safe for any thread.

    Raises DeviceError where there is no compiler, or where it fails; it is not tried again in this process.
    """
    with _lock:
        found = _library()
    if isinstance(found, DeviceError):
        raise found
    return found


class _TooLong(DeviceError):
    """A compiler that did not end."""


@once
def _library() -> ctypes.CDLL | DeviceError:
    global _loaded_version
    try:
        compiler = _required()
        _loaded_version = version()
        digest = cache.key(_loaded_version, cache.cpu_name(), *map(str, _openmp()))
        kept = cache.cache_folder() / "kernels" / f"{digest}.so"
        if cache.intact(kept):
            with suppress(DeviceError):  # in a folder from which nothing may be run, say
                return _open(kept)
        with tempfile.TemporaryDirectory(prefix="streamdeblur-") as folder:
            made = Path(folder) / "kernels.so"
            try:
                return _make(compiler, made, kept, parallel=True)
            except _TooLong:
                raise
            except DeviceError as e:
                # Clang's OpenMP is not GCC's, which PyTorch brings. Frames side by side use all cores without it.
                log.debug("kernels without OpenMP: %s", e)
                return _make(compiler, made, kept, parallel=False)
    except DeviceError as e:
        return e
    except OSError as e:
        return DeviceError(f"there is no folder to compile kernels in ({e})", "set TMPDIR")


def _make(compiler: str, made: Path, kept: Path, *, parallel: bool) -> ctypes.CDLL:
    """Compile, and open from the cache, else, where that can't be, from where it was made. Raises DeviceError."""
    _compile(compiler, made, parallel=parallel)
    try:
        with cache.replacing(kept) as temporary:
            shutil.copyfile(made, temporary)
        cache.seal(kept)
        return _open(kept)
    except (OSError, DeviceError) as e:
        log.debug("compiled kernels can't be kept: %s", e)
        return _open(made)


def _open(path: Path) -> ctypes.CDLL:
    try:
        found = ctypes.CDLL(str(path))
    except OSError as e:
        raise DeviceError(f"compiled kernels can't be loaded ({e})", f"{_INSTEAD}, or set STREAMDEBLUR_CACHE") from None
    pointer, number, strides = ctypes.c_void_p, ctypes.c_int, [ctypes.c_ssize_t] * 4
    found.streamdeblur_width.restype = number
    found.streamdeblur_parallel.restype = number
    found.streamdeblur_half.restype = number
    found.streamdeblur_tiles.restype = number
    found.streamdeblur_winograd.argtypes = [pointer] * 4 + [number] * 10
    found.streamdeblur_winograd.restype = number
    found.streamdeblur_direct.argtypes = [pointer] * 6 + [number] * 12
    found.streamdeblur_direct.restype = number
    found.streamdeblur_winograd_pack.argtypes = [pointer] * 2 + [number] * 2 + strides + [number]
    found.streamdeblur_winograd_pack.restype = None
    found.streamdeblur_winograd_gradient.argtypes = [pointer] * 5 + [number] * 5 + strides + [number] * 4
    found.streamdeblur_winograd_gradient.restype = number
    return found


def _required() -> str:
    compiler = find_compiler()
    if compiler is None:
        raise DeviceError("engine winograd needs a C++ compiler", "install g++, or take --engine auto")
    return compiler


def _source() -> Path:
    return Path(__file__).with_name("kernels.cpp")


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
    """What it prints. All that it starts ends with it. Raises DeviceError, OSError where nothing can be written."""
    name = command[0]
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:  # pipes might be held open by others
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=errors,
                env={**os.environ, "LC_ALL": "C"},  # its errors are looked for by that word
                start_new_session=True,
            )
        except OSError as e:
            raise DeviceError(f"the C++ compiler {name} does not run ({e.strerror})", _INSTEAD) from None
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise _TooLong(f"the C++ compiler {name} takes longer than {_PATIENCE:g} s", _INSTEAD) from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        texts = []
        for file in (printed, errors):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    if process.returncode:
        log.debug("%s\n%s", " ".join(command), texts[1])
        lines = [line.strip() for line in texts[1].splitlines() if "error" in line]
        told = next((line for line in lines if not line.startswith("collect2")), "")
        how = f"by signal {-process.returncode}" if process.returncode < 0 else f"with {process.returncode}"
        raise DeviceError(f"the C++ compiler {name} ends {how} ({told[:160] or 'it does not say why'})", _INSTEAD)
    return texts[0]
