"""Those who look at pictures. Each gets the newest one when it can take one, and never a queue of old ones.

Everything here runs on the event loop of the page's thread.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import WSMsgType, web

from streamdeblur.jobs.live.preview.hub import Hub, Picture

BOUNDARY: Final = "streamdeblur-frame"
#: Seconds in which a reader has to take a picture, or it is cut off.
STALL = 15.0
#: Seconds between two status messages to a page.
STATUS_EVERY = 1.0
#: Bytes a second to all readers together, and what a message costs beside its bytes: work of this thread is time that
#: the restorer does not get.
_BUDGET = 40e6
_OVERHEAD = 16_384
_MOST_SOURCES = 256
_HEARTBEAT = 20.0


class Budget:
    """Lets so many bytes a second pass, in the order in which they are asked for."""

    def __init__(self, rate: float = _BUDGET) -> None:
        self._rate = rate
        self._next = 0.0

    async def take(self, size: int) -> None:
        now = time.monotonic()
        start = max(now, self._next)
        self._next = start + (size + _OVERHEAD) / self._rate
        if start > now:
            await asyncio.sleep(start - now)


class Gallery:
    """The newest picture of each watched source, and the readers who wait for the next."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._pictures: dict[str, Picture] = {}
        self._readers: dict[str, set[asyncio.Event]] = {}

    def put(self, picture: Picture) -> None:
        """Show a new picture to those who watch its source."""
        readers = self._readers.get(picture.source)
        if readers:
            self._pictures[picture.source] = picture
            for reader in readers:
                reader.set()

    def newest(self, source: str) -> Picture | None:
        return self._pictures.get(source)

    def watch(self, source: str, reader: asyncio.Event) -> None:
        """``reader`` is set for every new picture from now on, and now if there is one."""
        self._readers.setdefault(source, set()).add(reader)
        self._hub.watch(source)
        if source in self._pictures:
            reader.set()

    def unwatch(self, source: str, reader: asyncio.Event) -> None:
        readers = self._readers.get(source)
        if readers is None or reader not in readers:
            return
        readers.discard(reader)
        self._hub.unwatch(source)
        if not readers:
            del self._readers[source]
            self._pictures.pop(source, None)  # it grows old: the next to come gets a new one


async def multipart(
    request: web.Request, source: str, side: str, gallery: Gallery, budget: Budget, stall: float
) -> web.StreamResponse:
    """Pictures of one side of a source as multipart/x-mixed-replace ("MJPEG"), until the reader goes or stalls."""
    response = web.StreamResponse(headers={"Content-Type": f"multipart/x-mixed-replace; boundary={BOUNDARY}"})
    woken = asyncio.Event()
    gallery.watch(source, woken)
    try:
        await asyncio.wait_for(response.prepare(request), stall)
        sent = 0
        while True:
            await woken.wait()
            woken.clear()
            picture = gallery.newest(source)
            if picture is None or picture.number <= sent:
                continue
            await budget.take(len(picture.side(side)))
            picture = gallery.newest(source) or picture
            sent = picture.number
            image = picture.side(side)
            head = (
                f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n"
                f"X-Frame-Index: {picture.index}\r\n\r\n"
            )
            await asyncio.wait_for(response.write(b"".join((head.encode(), image, b"\r\n"))), stall)
    except TimeoutError:
        abort(request)
    except ConnectionError:
        pass
    finally:
        gallery.unwatch(source, woken)
    return response


def abort(request: web.Request) -> None:
    """Cut the connection; what waits to be written is thrown away."""
    if request.transport is not None:
        request.transport.abort()


class Page:
    """One browser page on a WebSocket.

    It says which sources it wants, ``{"watch": [names]}``, and confirms each picture when it is drawn,
    ``{"ack": [source, number]}``; until then it gets no other of that source. It gets ``Picture.message`` as binary and
    ``{"status": {...}}`` as text, once a second.
    """

    def __init__(
        self,
        request: web.Request,
        gallery: Gallery,
        budget: Budget,
        status: Callable[[], Awaitable[dict[str, Any]]],
        stall: float,
    ) -> None:
        self._request = request
        self._gallery = gallery
        self._budget = budget
        self._status = status
        self._stall = stall
        self._socket = web.WebSocketResponse(
            heartbeat=_HEARTBEAT, compress=False, max_msg_size=65_536, timeout=1.0, autoping=True
        )
        self._woken = asyncio.Event()
        self._sent: dict[str, int] = {}  # watched sources and the number last sent
        self._open: dict[str, tuple[int, float]] = {}  # what is not confirmed yet: number, when it was sent

    async def run(self) -> web.StreamResponse:
        try:
            await asyncio.wait_for(self._socket.prepare(self._request), self._stall)
        except ValueError:  # a key that is none
            raise web.HTTPBadRequest(reason="this is no handshake of a WebSocket") from None
        tasks = [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._talk())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except TimeoutError:
            abort(self._request)
        except ConnectionError:
            pass
        finally:
            for task in tasks:
                task.cancel()
            for source in list(self._sent):
                self._gallery.unwatch(source, self._woken)
            await asyncio.gather(*tasks, return_exceptions=True)
        return self._socket

    async def close(self) -> None:
        """Say goodbye: the server goes away."""
        await self._socket.close(code=1001, message=b"stopping")

    async def _listen(self) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                continue
            try:
                said = json.loads(message.data)
            except (ValueError, RecursionError):
                continue
            if not isinstance(said, dict):
                continue
            if isinstance(said.get("watch"), list):
                self._watch([s for s in said["watch"] if isinstance(s, str)][:_MOST_SOURCES])
            ack = said.get("ack")
            if isinstance(ack, list) and len(ack) == 2 and isinstance(ack[0], str):
                waiting = self._open.get(ack[0])
                if waiting is not None and waiting[0] == ack[1]:
                    del self._open[ack[0]]
                    self._woken.set()

    def _watch(self, sources: list[str]) -> None:
        wanted = set(sources)
        for source in [s for s in self._sent if s not in wanted]:
            del self._sent[source]
            self._open.pop(source, None)
            self._gallery.unwatch(source, self._woken)
        for source in wanted:
            if source not in self._sent:
                self._sent[source] = 0
                self._gallery.watch(source, self._woken)

    async def _talk(self) -> None:
        told = 0.0
        while True:
            now = time.monotonic()
            if now - told >= STATUS_EVERY:
                told = now
                text = json.dumps({"status": await self._status()}, separators=(",", ":"))
                await asyncio.wait_for(self._socket.send_str(text), self._stall)
            if any(now - when > self._stall for _, when in self._open.values()):
                raise TimeoutError
            await self._send_pictures()
            try:
                await asyncio.wait_for(self._woken.wait(), max(0.0, told + STATUS_EVERY - time.monotonic()))
            except TimeoutError:
                continue
            self._woken.clear()

    async def _send_pictures(self) -> None:
        for source in list(self._sent):
            picture = self._due(source)
            if picture is None:
                continue
            await self._budget.take(len(picture.message))
            picture = self._due(source)  # waiting for the budget may have brought a newer one, or an end of interest
            if picture is None:
                continue
            self._sent[source] = picture.number
            self._open[source] = (picture.number, time.monotonic())
            await asyncio.wait_for(self._socket.send_bytes(picture.message), self._stall)

    def _due(self, source: str) -> Picture | None:
        if source in self._open:
            return None
        picture = self._gallery.newest(source)
        return picture if picture is not None and picture.number > self._sent.get(source, picture.number) else None
