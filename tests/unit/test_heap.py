"""Freed memory that the process keeps, told by the page faults of taking it again.

Every case runs in a process of its own: the settings are of the whole process.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from streamdeblur import heap

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")

#: A block over 32 MiB, as a layer of a 720p frame has, and the pages in it.
SIZE = 64 << 20
PAGES = SIZE // os.sysconf("SC_PAGE_SIZE")

CODE = f"""
import ctypes, json, resource, sys, threading
from streamdeblur import heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults(size={SIZE}):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

found = {{}}
"""


def run(code: str, **environment: str) -> dict[str, int]:
    clean = {n: v for n, v in os.environ.items() if not n.startswith("MALLOC_") and n != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", CODE + code + "\nprint(json.dumps(found))"],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


@glibc
def test_freed_memory_is_kept() -> None:
    found = run("""
found["before"] = [faults() for _ in range(3)][-1]
found["kept"] = heap.keep_freed()
found["after"] = [faults() for _ in range(3)][-1]
""")
    assert found["kept"]
    assert found["before"] > 10  # huge pages make fewer faults of it, and never none
    assert found["after"] < 10


@glibc
def test_a_thread_keeps_what_it_freed_too() -> None:
    found = run("""
heap.keep_freed()
def work():
    found["after"] = [faults(40 << 20) for _ in range(4)][-1]
    found["large"] = [faults(200 << 20) for _ in range(4)][-1]
thread = threading.Thread(target=work)
thread.start()
thread.join()
""")
    assert found["after"] < 10
    assert found["large"] < 10


@glibc
@pytest.mark.parametrize("setting", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}])
def test_heaps_that_the_user_asks_for_are_there(setting: dict[str, str]) -> None:
    found = run(
        """
found["kept"] = heap.keep_freed()
def work():
    found["large"] = [faults(200 << 20) for _ in range(4)][-1]
thread = threading.Thread(target=work)
thread.start()
thread.join()
""",
        **setting,
    )
    assert found["kept"]
    assert found["large"] > 10


@glibc
def test_others_are_measured_with_memory_as_usual() -> None:
    found = run("""
heap.keep_freed()
faults()
found["held"] = resident()
with heap.as_usual():
    found["given"] = resident()
    found["usual"] = [faults() for _ in range(3)][-1]
found["back"] = resident()
found["after"] = faults()
""")
    assert found["held"] - found["given"] > PAGES * 0.9
    assert found["usual"] > 10
    assert abs(found["back"] - found["held"]) < PAGES * 0.1
    assert found["after"] < 10, "what runs next finds its memory"


@glibc
def test_what_is_free_is_given_back() -> None:
    found = run("""
heap.keep_freed()
faults()
found["before"] = resident()
heap.give_back()
found["after"] = resident()
""")
    assert found["before"] - found["after"] > PAGES * 0.9


@glibc
@pytest.mark.parametrize(
    "setting",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
)
def test_settings_of_the_user_hold(setting: dict[str, str]) -> None:
    found = run(
        """
found["kept"] = heap.keep_freed()
found["after"] = [faults() for _ in range(3)][-1]
with heap.as_usual():
    pass
found["later"] = [faults() for _ in range(3)][-1]
""",
        **setting,
    )
    assert not found["kept"]
    assert found["after"] > 10
    assert found["later"] > 10


@glibc
def test_a_setting_of_something_else_does_not_count() -> None:
    found = run(
        "found['kept'] = heap.keep_freed()", MALLOC_TRIM_THRESHOLD="1", GLIBC_TUNABLES="glibc.malloc.tcache_count=7"
    )
    assert found["kept"]


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    assert not heap.keep_freed()
    heap.give_back()
    with heap.as_usual():
        pass


@glibc
def test_an_engine_on_the_cpu_keeps_it() -> None:
    found = run("""
import torch
from streamdeblur.restore import Restorer
found["before"] = [faults() for _ in range(3)][-1]
Restorer("mimo-unet-small", weights="random:0", device="cpu", engine="eager")
found["after"] = [faults() for _ in range(3)][-1]
""")
    assert found["before"] > 10
    assert found["after"] < 10
