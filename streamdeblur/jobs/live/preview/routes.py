"""What is answered on which path, and to whom."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from aiohttp import web

from streamdeblur.jobs.live.preview.access import (
    HEADERS,
    Access,
    own_form,
    own_host,
    policy_with_style,
    same_origin,
)
from streamdeblur.jobs.live.preview.background import Statuses, in_thread
from streamdeblur.jobs.live.preview.hub import Hub, Picture, Shown
from streamdeblur.jobs.live.preview.metrics import CONTENT_TYPE, Exposition
from streamdeblur.jobs.live.preview.options import PreviewOptions
from streamdeblur.jobs.live.preview.pictures import png
from streamdeblur.jobs.live.preview.readers import Budget, Gallery, Page, multipart
from streamdeblur.jobs.live.preview.status import STATUS_SCHEMA, StatusProvider
from streamdeblur.video.live.urls import mask

log = logging.getLogger(__name__)

#: Paths that answer without a token: probes have none, and learn no more than that.
_OPEN = ("/healthz", "/readyz")
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_MESSAGE = "<!-- message -->"
#: Seconds in which the other side of a snapshot can be had, and snapshots that wait.
_PINNED, _MOST_SNAPSHOTS = 20.0, 8
_COOKIE_AGE = 30 * 86_400


class Routes:
    """All of it on the event loop's thread. host: what the page was bound to. stall: seconds that a reader may take."""

    def __init__(
        self,
        hub: Hub,
        provider: StatusProvider,
        options: PreviewOptions,
        *,
        token: str | None,
        host: str,
        port: int,
        stall: float,
    ) -> None:
        self._hub = hub
        self._options = options
        self._host = host
        self._stall = stall
        self._access = Access(token, port)
        self._statuses = Statuses(provider, self._about, [token] if token else [])
        self._exposition = Exposition()
        self._assets = _load_assets()
        self._gallery = Gallery(hub)
        self._budget = Budget()
        #: Who looks at pictures, and those of them that are pages.
        self.readers: set[asyncio.Task[Any]] = set()
        self.pages: set[Page] = set()
        self._refused = 0
        self._pinned: dict[str, tuple[Shown, float]] = {}
        self._drawing = asyncio.Semaphore(1)
        self._waiting_snapshots = 0

    def put(self, picture: Picture) -> None:
        """Show a new picture to those who watch its source."""
        self._gallery.put(picture)

    def _about(self) -> dict[str, Any]:
        return {
            "readers": len(self.readers),
            "readers_limit": self._options.preview_readers,
            "pictures": self._hub.encoded,
            "refused": self._refused,
            "fps": self._options.preview_fps,
            "width": self._options.preview_width,
        }

    def add_to(self, app: web.Application) -> None:
        app.on_response_prepare.append(_add_headers)
        get = app.router.add_get
        get("/", self._asset("index.html"))
        for name in self._assets:
            if not name.endswith(".html"):
                get(f"/assets/{name}", self._asset(name))
        get("/login", self._login_page)
        app.router.add_post("/login", self._login)
        get("/healthz", self._health)
        get("/readyz", self._readiness)
        get("/metrics", self._metrics)
        get("/api/status", self._status)
        get("/api/status/schema", self._schema)
        get("/api/sources", self._sources)
        get("/api/snapshot/{source}", self._snapshot, allow_head=False)
        get("/api/live", self._live, allow_head=False)
        get("/stream/{source}/{side:before|after}", self._stream, allow_head=False)

    def guard(self) -> Any:
        """The middleware that lets in, and that makes every failure an answer."""

        @web.middleware
        async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
            try:
                answer = None if request.path in _OPEN else self._check(request)
                result: web.StreamResponse = answer if answer is not None else await handler(request)
                return result
            except web.HTTPException as e:
                kept = {k: v for k, v in e.headers.items() if k in ("Allow", "Location", "Retry-After")}
                return web.json_response({"error": e.reason}, status=e.status, headers=kept)
            except (asyncio.CancelledError, ConnectionError):
                raise
            except Exception as e:
                log.warning("the preview page could not answer: %s: %s", type(e).__name__, mask(str(e)))
                return web.json_response({"error": "internal error"}, status=500)

        return guard

    def _check(self, request: web.Request) -> web.StreamResponse | None:
        """None lets the request pass."""
        if not self._access.needed:
            if own_host(request.headers.get("Host"), self._host):
                return None
            why = "this page is not known by that name; use its address, or set a token"
            return web.json_response({"error": why}, status=421)
        given = request.query.get("token")
        if given is not None and request.method in ("GET", "HEAD"):
            # A link with the token in it: out of the address bar, the history and the logs with it.
            if not self._access.is_token(given):
                return self._refusal(request, wrong=True)
            rest = urlencode([(k, v) for k, v in request.query.items() if k != "token"])
            last = quote(request.path.rsplit("/", 1)[-1])  # relative: no foreign host can be in it
            answer = web.Response(status=303, headers={"Location": f"./{last}" + (f"?{rest}" if rest else "")})
            self._set_cookie(request, answer)
            return answer
        if request.path == "/login":
            return None
        cookie = request.cookies.get(self._access.cookie)
        authorization = request.headers.get("Authorization")
        if self._access.lets_in(authorization, cookie):
            return None
        return self._refusal(request, wrong=authorization is not None)

    def _refusal(self, request: web.Request, *, wrong: bool) -> web.Response:
        head = {"WWW-Authenticate": 'Bearer realm="streamdeblur preview"'}
        if request.path in ("/", "/login") and "text/html" in request.headers.get("Accept", ""):
            return self._form("That is not the token." if wrong else "", 401, head)
        why = "the token is wrong" if wrong else "a token is needed: send it as Authorization: Bearer TOKEN"
        return web.json_response({"error": why}, status=401, headers=head)

    def _form(self, message: str, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
        page = self._assets["login.html"][0].decode()
        style = _STYLE.search(page)
        policy = policy_with_style(style[1] if style is not None else "")
        return web.Response(
            text=page.replace(_MESSAGE, message),
            status=status,
            content_type="text/html",
            headers={**(headers or {}), "Content-Security-Policy": policy},
        )

    def _set_cookie(self, request: web.Request, answer: web.StreamResponse) -> None:
        secure = request.secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https"
        answer.set_cookie(
            self._access.cookie,
            self._access.cookie_value,
            max_age=_COOKIE_AGE,
            httponly=True,
            samesite="Lax",
            secure=secure,
            path="/",
        )

    async def _login_page(self, request: web.Request) -> web.StreamResponse:
        if not self._access.needed:
            return web.Response(status=303, headers={"Location": "./"})
        return self._form("", 200)

    async def _login(self, request: web.Request) -> web.StreamResponse:
        if not own_form(request.headers):
            raise web.HTTPForbidden(reason="the form comes from another site")
        if not self._access.is_token(await self._token_in_form(request)):
            return self._form("That is not the token.", 401)
        answer = web.Response(status=303, headers={"Location": "./"})
        if self._access.needed:
            self._set_cookie(request, answer)
        return answer

    async def _token_in_form(self, request: web.Request) -> str:
        """Empty where none is in it. Read here rather than by aiohttp: whoever is not let in yet may send anything, and
        what is no form of the page's is their mistake, and none of the operator's."""
        if request.content_type != "application/x-www-form-urlencoded":
            raise web.HTTPBadRequest(reason="send the form as application/x-www-form-urlencoded")
        try:
            body = await asyncio.wait_for(request.read(), self._stall)
        except TimeoutError:
            raise web.HTTPRequestTimeout(reason="the form did not arrive") from None
        except web.RequestPayloadError:
            raise web.HTTPBadRequest(reason="the form can't be decoded") from None
        fields = parse_qs(body.decode("utf-8", "surrogateescape"), errors="surrogateescape")
        return fields.get("token", [""])[0]

    def _asset(self, name: str) -> Callable[[web.Request], Any]:
        body, tag = self._assets[name]
        kind = _TYPES[name.rsplit(".", 1)[1]]

        async def asset(request: web.Request) -> web.StreamResponse:
            head = {"ETag": tag, "Cache-Control": "no-cache"}
            if request.headers.get("If-None-Match") == tag:
                return web.Response(status=304, headers=head)
            return web.Response(body=body, headers={**head, "Content-Type": kind})

        return asset

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"alive": True})

    async def _readiness(self, request: web.Request) -> web.StreamResponse:
        status = await self._statuses.get()
        answer = {"ready": status["ready"], "problems": status["problems"]}
        return web.json_response(answer, status=200 if status["ready"] else 503)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        text = self._exposition.render(await self._statuses.get())
        return web.Response(body=text.encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._statuses.get())

    async def _schema(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(STATUS_SCHEMA)

    async def _sources(self, request: web.Request) -> web.StreamResponse:
        status = await self._statuses.get()
        told = {s.get("name"): s for s in status["sources"]}
        rows = []
        for name in dict.fromkeys([*told, *self._hub.names()]):
            part, s = quote(str(name), safe=""), told.get(name, {})
            links = {side: f"stream/{part}/{side}" for side in ("before", "after")}
            rows.append(
                {
                    "name": name,
                    "state": s.get("state"),
                    "width": s.get("width"),
                    "height": s.get("height"),
                    "streams": links,
                    "snapshot": f"api/snapshot/{part}",
                }
            )
        return web.json_response({"sources": rows})

    async def _source_of(self, request: web.Request) -> str:
        name = request.match_info["source"]
        if name not in self._hub.names():
            status = await self._statuses.get()
            if all(s.get("name") != name for s in status["sources"]):
                raise web.HTTPNotFound(reason="no such source")
        return name

    async def _snapshot(self, request: web.Request) -> web.StreamResponse:
        name = await self._source_of(request)
        which = request.query.get("which", "after")
        if which not in ("before", "after"):
            raise web.HTTPBadRequest(reason="which is before or after")
        shown = self._frame_for(name, request.query.get("frame"))
        if self._waiting_snapshots >= _MOST_SNAPSHOTS:
            raise web.HTTPServiceUnavailable(reason="too many snapshots at once", headers={"Retry-After": "2"})
        self._waiting_snapshots += 1
        try:
            async with self._drawing:
                body = await in_thread(lambda: png(shown.before if which == "before" else shown.after))
        finally:
            self._waiting_snapshots -= 1
        index = shown.facts.index
        file = f"{name}-{index:06d}-{which}.png"
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", file)
        disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(file, safe='')}"
        head = {"Content-Type": "image/png", "Content-Disposition": disposition, "X-Frame-Index": str(index)}
        return web.Response(body=body, headers=head)

    def _frame_for(self, name: str, wanted: str | None) -> Shown:
        """The newest frame, or the one with that index if it is the newest or was asked for a moment ago."""
        now = time.monotonic()
        for source in [s for s, (_, until) in self._pinned.items() if until < now]:
            del self._pinned[source]
        newest = self._hub.newest(name)
        if wanted is None:
            if newest is None:
                raise web.HTTPServiceUnavailable(reason="no picture of this source yet", headers={"Retry-After": "2"})
            self._pinned[name] = (newest, now + _PINNED)
            return newest
        pinned = self._pinned.get(name)
        for shown in (pinned[0] if pinned else None, newest):
            if shown is not None and str(shown.facts.index) == wanted:
                return shown
        raise web.HTTPGone(reason="that frame is no longer here; ask for the newest")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        name = await self._source_of(request)
        self._admit()
        task = asyncio.current_task()
        assert task is not None
        self.readers.add(task)
        try:
            side = request.match_info["side"]
            return await multipart(request, name, side, self._gallery, self._budget, self._stall)
        finally:
            self.readers.discard(task)

    async def _live(self, request: web.Request) -> web.StreamResponse:
        if not same_origin(request.headers.get("Origin"), request.headers.get("Host")):
            raise web.HTTPForbidden(reason="the page comes from another site")
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise web.HTTPBadRequest(reason="this is a WebSocket")
        self._admit()
        task = asyncio.current_task()
        assert task is not None
        page = Page(request, self._gallery, self._budget, self._statuses.get, self._stall)
        self.readers.add(task)
        self.pages.add(page)
        try:
            return await page.run()
        finally:
            self.pages.discard(page)
            self.readers.discard(task)

    def _admit(self) -> None:
        if len(self.readers) >= self._options.preview_readers:
            self._refused += 1
            raise web.HTTPServiceUnavailable(reason="too many readers", headers={"Retry-After": "10"})


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = HEADERS["Server"]


def _load_assets() -> dict[str, tuple[bytes, str]]:
    """Name to content and entity tag. In memory: no request ever names a file."""
    found = {}
    for item in files(__package__).joinpath("assets").iterdir():
        if item.name.rsplit(".", 1)[-1] in _TYPES:
            body = item.read_bytes()
            found[item.name] = (body, f'"{hashlib.sha256(body).hexdigest()[:20]}"')
    return found
