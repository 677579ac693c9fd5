"""The page's HTTP server, in a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from streamdeblur.detect.schema import Look
from streamdeblur.errors import UsageError
from streamdeblur.frames import Frame
from streamdeblur.jobs.live.preview.hub import Facts, Hub, Picture
from streamdeblur.jobs.live.preview.options import Address, PreviewOptions, parse_address, token_of
from streamdeblur.jobs.live.preview.status import StatusProvider
from streamdeblur.video.live.urls import mask

if TYPE_CHECKING:
    from streamdeblur.jobs.live.preview.routes import Routes

log = logging.getLogger(__name__)

#: Connections beside those of readers: probes, snapshots, the page's own files.
_SPARE_CONNECTIONS = 64
_START = 30.0
#: Kernel memory for what a reader has not taken yet: as little as holds one picture, so that none gets old there.
_SEND_BUFFER = 131_072


class Preview:
    """A page that shows a live job. ``with`` it, or ``start`` and ``close``.

    status: tells the state of the job, see ``status``. options: with ``preview`` set. looks: the last findings of the
    detector on a source, drawn as boxes. stall: seconds in which a reader has to take a picture.

    ``show`` may be called from any thread, before ``start`` too, and returns at once whatever readers do; ``close``
    takes less than two seconds. Raises UsageError for an address that can't be had, a token that is none, and without
    aiohttp.
    """

    def __init__(
        self,
        status: StatusProvider,
        options: PreviewOptions,
        *,
        looks: Callable[[str], Look | None] | None = None,
        stall: float = 15.0,
    ) -> None:
        if options.preview is None:
            raise UsageError("no address for the page", "name one with --preview, as :8080")
        self._address: Address = parse_address(options.preview)
        try:
            self._token = token_of(options)
        except ValueError as e:
            raise UsageError(str(e), "choose another token") from e
        self._options = options
        self._stall = stall
        self._hub = Hub(self._made, fps=options.preview_fps, width=options.preview_width, looks=looks)
        self._provider = status
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._inbox: dict[str, Picture] = {}
        self._inbox_lock = threading.Lock()
        self._routes: Routes | None = None  # of the event loop's thread

    # --- for the job ------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where the page is, without the token."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._address.host, self._address.host)
        return f"http://{Address(host, self._address.port)}/"

    @property
    def readers(self) -> int:
        """Who looks at pictures now."""
        return len(self._routes.readers) if self._routes is not None else 0

    def show(self, source: str, before: Frame, after: Frame, facts: Facts) -> None:
        """Take a frame that leaves the job; returns at once. after is before where nothing was restored. Planes must
        not be written to afterwards. Fits ``LiveJob.add_tap``."""
        self._hub.show(source, before, after, facts)

    def start(self) -> Self:
        """Listen. Raises UsageError when the address is taken or is not this machine's."""
        try:
            import aiohttp  # noqa: F401
        except ImportError as e:
            raise UsageError("the preview page needs aiohttp", "pip install 'streamdeblur[live]'") from e
        self._socket = self._listen()
        self._address = Address(self._address.host, self._socket.getsockname()[1])
        if self._token is None and not self._address.loopback:
            log.warning(
                "the preview page on %s is open to everybody who reaches it; --preview-token closes it", self._address
            )
        self._thread = threading.Thread(target=self._run, name="preview-server", daemon=True)
        self._thread.start()
        if not self._ready.wait(_START):
            raise UsageError(f"the preview page on {self._address} did not start in {_START:g} s", "try another port")
        if self._failure is not None:
            raise self._failure
        self._hub.start()
        return self

    def close(self) -> None:
        """Send readers away and stop listening. Idempotent."""
        loop, stop, thread = self._loop, self._stop, self._thread
        if loop is not None and stop is not None:
            try:
                loop.call_soon_threadsafe(stop.set)
            except RuntimeError:  # it has ended by itself
                pass
        if thread is not None:
            thread.join(1.5)
        self._hub.close(0.5)
        if self._socket is not None:
            self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _listen(self) -> socket.socket:
        a = self._address
        family = socket.AF_INET6 if ":" in a.host else socket.AF_INET
        try:
            found = socket.create_server((a.host, a.port), family=family, backlog=128)
        except OSError as e:
            why = e.strerror or str(e)
            raise UsageError(f"the preview page can't listen on {a}: {why}", "name another with --preview") from e
        # Before any connection: those accepted inherit it.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        return found

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as e:
            self._failure = e
            if self._ready.is_set():
                log.warning("the preview page ended: %s: %s", type(e).__name__, mask(str(e)))
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        from aiohttp import web

        from streamdeblur.jobs.live.preview.routes import Routes

        assert self._socket is not None
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: log.debug("preview page: %s", context.get("message")))
        stop = asyncio.Event()
        routes = self._routes = Routes(
            self._hub,
            self._provider,
            self._options,
            token=self._token,
            host=self._address.host,
            port=self._address.port,
            stall=self._stall,
        )
        app = web.Application(middlewares=[routes.guard()], client_max_size=4096)
        routes.add_to(app)
        quiet = logging.getLogger(f"{__name__}.http")
        quiet.setLevel(logging.CRITICAL)  # what strangers send is not the operator's business
        runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            keepalive_timeout=30.0,
            shutdown_timeout=0.3,
            logger=quiet,
        )
        await runner.setup()
        handlers = runner.server
        assert handlers is not None
        limit = self._options.preview_readers + _SPARE_CONNECTIONS

        def connection() -> asyncio.Protocol:
            return handlers() if len(handlers.connections) < limit else _Busy()

        server = await loop.create_server(connection, sock=self._socket)
        self._loop, self._stop = loop, stop
        self._ready.set()
        await stop.wait()
        server.close()
        if routes.pages:
            await asyncio.wait([asyncio.ensure_future(p.close()) for p in routes.pages], timeout=0.3)
        for task in list(routes.readers):
            task.cancel()
        await runner.cleanup()

    def _made(self, picture: Picture) -> None:
        """On the hub's thread. Only the newest of each source waits for the loop, however long that is busy."""
        loop = self._loop
        if loop is None:
            return
        with self._inbox_lock:
            first = not self._inbox
            self._inbox[picture.source] = picture
        if first:
            try:
                loop.call_soon_threadsafe(self._take_inbox)
            except RuntimeError:
                pass

    def _take_inbox(self) -> None:
        with self._inbox_lock:
            pictures, self._inbox = self._inbox, {}
        assert self._routes is not None
        for picture in pictures.values():
            self._routes.put(picture)


class _Busy(asyncio.Protocol):
    """Answers a connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        )
        transport.close()
