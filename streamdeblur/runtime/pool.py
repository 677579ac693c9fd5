"""Who runs the restoration: the pool protocol with explicit credits, and the pool inside this process.

A pool takes frames while it has credits (``in_flight < capacity``) and gives back one `Result` or `Gap` for every frame
it took, in any order. Frames stay in flight until they are collected, so a slow caller bounds the memory of the pool.
Results do not depend on how many workers there are: a pool is stateless, every frame is restored from itself alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from streamdeblur import interrupts
from streamdeblur.errors import StreamdeblurError
from streamdeblur.frames import Frame, Gap

if TYPE_CHECKING:
    from streamdeblur.restore.planner import Region

logger = logging.getLogger(__name__)

Corrections = tuple[npt.NDArray[Any], ...]
#: The corrections of one frame: one integer array a colour plane, same shape as the plane, in code values. Called with
#: a frame; or with a frame and regions, for the kept parts of those alone (``Restorer.correction``).
Work = Callable[..., Corrections]
#: A frame that waits for a worker, and the parts of it to restore: None is all of it.
Item = tuple[Frame, "Sequence[Region] | None"]
#: A picklable recipe for a `Work`; called once in every worker (loads weights there).
Factory = Callable[[], Work]
#: What the one worker of this process is called.
WORKER = "local:0"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one frame.

    index: that of the frame. corrections: see `Work`. worker: stable name of who did it. seconds: spent in the work.
    """

    index: int
    corrections: Corrections
    worker: str
    seconds: float


class Pool(Protocol):
    """What a job asks of whoever runs the restoration. One thread submits and collects; any thread may close."""

    @property
    def capacity(self) -> int:
        """Frames in flight at most."""

    @property
    def in_flight(self) -> int:
        """Frames submitted and not yet collected."""

    def submit(self, frame: Frame, regions: Sequence[Region] | None = None) -> None:
        """Hand over a frame; returns at once.

        regions: the parts to restore; None is all of it. Raises RuntimeError when no credit is left or the pool is
        closed (errors of the program), and whatever ended the workers for good.
        """

    def collect(self, timeout: float | None = None) -> list[Result | Gap]:
        """Take what is done, in any order; wait up to ``timeout`` seconds (None: for ever) for at least one.

        Empty on timeout, when nothing is in flight and on a closed pool. Raises whatever ended the workers for good.
        """

    def close(self, *, abort: bool = False) -> None:
        """End the workers; idempotent. Waits for the work in flight, and drops it, unless ``abort``."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def one_line(error: BaseException) -> str:
    """An exception in one line: its own words if it is ours, with the class in front if not."""
    text = " ".join(str(error).split())
    if isinstance(error, StreamdeblurError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def checked(corrections: Any) -> Corrections:
    """The tuple of arrays that a `Work` must return; TypeError if it is something else."""
    if not isinstance(corrections, tuple) or not all(isinstance(c, np.ndarray) for c in corrections):
        raise TypeError(f"the work returned {type(corrections).__name__}, not a tuple of arrays")
    return corrections


class InProcessPool:
    """One worker in this process: for one device. Starts in milliseconds.

    threads: that call the work at once, where it gains by that. The factory runs in the first of them, so that contexts
    bound to a thread belong to the one that uses them. If it fails, every later `submit` and `collect` raises its
    exception. An exception from one frame, MemoryError included, becomes the `Gap` of that frame. The threads are
    daemons: an abandoned frame never holds the interpreter.
    Pools that take several frames at once derive from it (`begin`, `take`, `restore`, `announce`).
    """

    def __init__(self, factory: Factory, capacity: int = 2, threads: int = 1) -> None:
        if capacity < 1 or threads < 1:
            raise ValueError(f"capacity {capacity} or threads {threads} is not at least 1")
        self._capacity = capacity
        self._waiting: deque[Item] = deque()
        self._done: deque[Result | Gap] = deque()
        self._in_flight = 0
        self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._callers = threads
        self._threads: list[threading.Thread] = []
        self._start(self._first, factory)

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def submit(self, frame: Frame, regions: Sequence[Region] | None = None) -> None:
        with self._changed:
            self._raise_failure()
            if self._closed:
                raise RuntimeError("the pool is closed")
            if self._in_flight >= self._capacity:
                raise RuntimeError(f"all {self._capacity} credits of the pool are in use")
            self._waiting.append((frame, regions))
            self._in_flight += 1
            self._changed.notify_all()

    def collect(self, timeout: float | None = None) -> list[Result | Gap]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._done or self._failure is not None or self._in_flight == 0 or self._closed, timeout
            )
            if self._closed:
                return []
            if not self._done:
                self._raise_failure()
            done = list(self._done)
            self._done.clear()
            self._in_flight -= len(done)
            return done

    def close(self, *, abort: bool = False) -> None:
        with self._changed:
            if abort:
                self._waiting.clear()
            self._closed = True
            self._changed.notify_all()
        if not abort:
            for thread in self._threads:  # the first starts the others, and is the last to know of them
                thread.join()
        with self._changed:
            self._done.clear()
            self._in_flight = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(abort=kind is not None)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def begin(self, work: Work) -> int:
        """How many threads are to call the work at once. Called under the lock, before the first frame."""
        return self._callers

    def take(self, work: Work) -> list[Item]:
        """What is to be restored next, taken out of ``_waiting``, which holds at least one. Called under the lock."""
        return [self._waiting.popleft()]

    def restore(self, work: Work, items: Sequence[Item]) -> list[Result | Gap]:
        """What became of those: one for each. Called on a worker thread."""
        (item,) = items
        return [restored(work, item)]

    def announce(self) -> None:
        """There is something to collect. Called on a worker thread, without the lock."""

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, name="restore", daemon=True)
        self._threads.append(thread)
        with interrupts.held():  # broken off in there, it would keep a lock that the end of the program needs
            thread.start()

    def _first(self, factory: Factory) -> None:
        try:
            work = factory()
            with self._changed:
                if not self._closed:
                    for _ in range(self.begin(work) - 1):
                        self._start(self._run, work)
        except BaseException as error:
            self._fail(error)
            return
        self._run(work)

    def _run(self, work: Work) -> None:
        try:
            while items := self._next(work):
                results = self.restore(work, items)
                with self._changed:
                    self._done.extend(results)
                    self._changed.notify_all()
                self.announce()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        logger.debug("a worker thread ended", exc_info=error)
        with self._changed:
            self._failure = error
            self._changed.notify_all()
        self.announce()

    def _next(self, work: Work) -> list[Item]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self.take(work) if self._waiting else []


def restored(work: Work, item: Item) -> Result | Gap:
    """One frame through the work of this process; its exceptions, MemoryError included, become a `Gap`."""
    frame, regions = item
    start = time.perf_counter()
    try:
        corrections = checked(work(frame) if regions is None else work(frame, regions))
    except Exception as error:
        logger.debug("frame %d failed", frame.index, exc_info=True)
        return Gap(frame.index, one_line(error))
    return Result(frame.index, corrections, WORKER, time.perf_counter() - start)
