"""Work that the event loop must not wait for: what may take long, or never come back."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from streamdeblur.jobs.live.preview.status import StatusProvider, document

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Seconds that a status is good for, and after which a job that does not tell it is said not to answer.
_FRESH, _PATIENCE = 0.4, 3.0


def in_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Run it on a daemon thread: unlike an executor's, one that hangs keeps no process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as e:
            error = e
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:  # the page has ended
            pass

    threading.Thread(target=run, name="preview-work", daemon=True).start()
    return future


class Statuses:
    """The status document, asked of the job by one thread at a time and shared by all who ask within a moment."""

    def __init__(
        self, provider: StatusProvider, about: Callable[[], Mapping[str, Any]], secrets: Sequence[str]
    ) -> None:
        self._provider = provider
        self._about = about
        self._secrets = secrets
        self._last: Mapping[str, Any] = {}
        self._asked: asyncio.Future[Mapping[str, Any]] | None = None
        self._fetching: asyncio.Task[dict[str, Any]] | None = None
        self._fetched = 0.0

    async def get(self) -> dict[str, Any]:
        """Raises nothing: a job that fails to tell, or does not answer, is not ready."""
        now = time.monotonic()
        if self._fetching is None or (self._fetching.done() and now - self._fetched > _FRESH):
            self._fetching = asyncio.ensure_future(self._fetch())
        return await asyncio.shield(self._fetching)

    async def _fetch(self) -> dict[str, Any]:
        problem = None
        if self._asked is None:
            self._asked = in_thread(self._provider)
        try:
            # One that hangs is waited for again; no second is started beside it.
            self._last = await asyncio.wait_for(asyncio.shield(self._asked), _PATIENCE)
            self._asked = None
        except TimeoutError:
            problem = "the job does not answer"
        except Exception as e:
            self._asked = None
            log.debug("the job failed to tell its status", exc_info=True)
            problem = f"the job can't tell its status: {type(e).__name__}"
        found = document(self._last, self._about(), self._secrets)
        if problem is not None:
            found["ready"] = False
            found["problems"] = [problem]
        self._fetched = time.monotonic()
        return found
