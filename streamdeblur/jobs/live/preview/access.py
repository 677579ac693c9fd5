"""Who may look: the token, its cookie, the names that the page may be called by, and the headers of every answer.

Without a token a page on the local address is open to this machine; a foreign web page in the same browser must still
not reach it. Hence the check of ``Host`` (a name that an attacker lets point here is not ours) and of ``Origin``.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import urlsplit

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src {style}; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

#: On every answer. Nothing here is for other sites, for frames, or for caches.
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY.format(style="'self'"),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
    "Server": "streamdeblur",
}


def policy_with_style(css: str) -> str:
    """The policy of a page whose one inline style sheet is ``css``, recognised by its hash."""
    digest = b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return _POLICY.format(style=f"'sha256-{digest}'").replace("img-src 'self'", "img-src data:")


class Access:
    """token: what is asked for, None lets all in. port: of the page; cookies know none, so it is in their name."""

    def __init__(self, token: str | None, port: int) -> None:
        self._token = None if token is None else token.encode()
        self.cookie = f"streamdeblur-preview-{port}"

    @property
    def needed(self) -> bool:
        return self._token is not None

    @property
    def cookie_value(self) -> str:
        """What a browser keeps: made from the token, good after a restart too, and not the token itself."""
        assert self._token is not None
        return hmac.new(self._token, b"streamdeblur preview cookie", hashlib.sha256).hexdigest()

    def is_token(self, given: str) -> bool:
        """In constant time."""
        return self._token is None or hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)

    def lets_in(self, authorization: str | None, cookie: str | None) -> bool:
        """Whether one of both proves the token. A header that is there decides alone."""
        if self._token is None:
            return True
        if authorization is not None:
            scheme, _, given = authorization.partition(" ")
            return scheme.lower() == "bearer" and self.is_token(given.strip())
        if cookie is None:
            return False
        return hmac.compare_digest(cookie.encode("utf-8", "surrogateescape"), self.cookie_value.encode())


def own_host(host: str | None, bound: str) -> bool:
    """Whether a Host header names this server in a way that no stranger's domain can: an address, localhost, the
    machine's own name, or what the page was bound to."""
    name = _name(host)
    if name is None:
        return False
    if name in ("localhost", bound.lower(), socket.gethostname().lower()) or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]").split("%")[0])
    except ValueError:
        return False
    return True


def same_origin(origin: str | None, host: str | None) -> bool:
    """Whether a request comes from the page itself. Browsers say where one comes from; what doesn't is no browser."""
    if origin is None:
        return True
    try:
        place = urlsplit(origin).netloc
    except ValueError:
        return False
    return bool(host) and place.lower() == str(host).lower()


def own_form(headers: Mapping[str, str]) -> bool:
    """Whether a form was sent from the page itself. Under no-referrer its Origin is "null", so what the browser says of
    the site decides, where it says that."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    return same_origin(headers.get("Origin"), headers.get("Host"))


def _name(host: str | None) -> str | None:
    if not host:
        return None
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
