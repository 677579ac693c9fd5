"""The scheduling of threads is put back, whoever changed it."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from streamdeblur.video.scheduling import kept_scheduling

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="scheduling policies of Linux")


def _mine(tid: int = 0) -> tuple[int, int]:
    return os.sched_getscheduler(tid), os.sched_getparam(tid).sched_priority


def test_old_threads_and_new_ones_are_as_they_were() -> None:
    # Every process may make itself one of SCHED_BATCH; real-time takes rights.
    end = threading.Event()
    ids: list[int] = []

    def work(ready: threading.Event) -> None:
        ids.append(threading.get_native_id())
        ready.set()
        end.wait()

    def start() -> threading.Thread:
        ready = threading.Event()
        thread = threading.Thread(target=work, args=(ready,))
        thread.start()
        ready.wait()
        return thread

    before = _mine()
    threads = [start()]
    try:
        with kept_scheduling():
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            os.sched_setscheduler(ids[0], os.SCHED_BATCH, os.sched_param(0))
            threads.append(start())
            assert [_mine(tid)[0] for tid in (0, *ids)] == [os.SCHED_BATCH] * 3
        assert [_mine(tid) for tid in (0, *ids)] == [before] * 3
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_it_is_put_back_after_an_error_too() -> None:
    before = _mine()
    try:
        with kept_scheduling():
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            raise EOFError
    except EOFError:
        pass
    assert _mine() == before
