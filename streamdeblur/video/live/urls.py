"""URLs with credentials: where they come from, and how they are kept out of everything that is shown.

One masking function for all of it: ``mask``. Credentials come with the URL or from the environment
(STREAMDEBLUR_RTSP_USER and STREAMDEBLUR_RTSP_PASSWORD), are remembered here when a URL is first seen, and every text
that goes through ``mask`` loses them, in whatever form FFmpeg or a server repeats them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from streamdeblur.errors import UsageError

USER = "STREAMDEBLUR_RTSP_USER"
PASSWORD = "STREAMDEBLUR_RTSP_PASSWORD"
HIDDEN = "***"

_USERINFO = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)"
    # The second: a password with a bare slash in it, known by what no port is.
    r"(?:[^/\s'\"]*|[^/\s'\"@:\[\]]+:(?!\d{1,5}(?![^/?#\s'\"]))[^\s'\"]*)@",
    re.IGNORECASE,
)
#: What cameras, servers and object stores call secrets in the query of a URL.
_QUERY = re.compile(
    r"(?P<key>[?&/_;](?:password|passphrase|passwd|pass|pwd|pw|loginpas|token|auth|key|secret|sig|signature|apikey|api_key"
    r"|access_token|streamkey|x-amz-signature|x-amz-credential|x-amz-security-token)=)"
    r"[^&\s'\"#]*",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(?P<key>authorization:\s*)[^\r\n]*", re.IGNORECASE)
#: Schemes of URLs that are nothing without a host: others listen, or are local.
_WITH_HOST = ("rtsp", "rtsps", "rtmp", "http", "https", "tcp")
#: Secrets of this process, beside what is recognised by its form. A secret of fewer letters would blot out words.
_secrets: set[str] = set()
_SHORTEST = 4


def is_url(source: str) -> bool:
    """A scheme and ``://``, as opposed to a path."""
    return "://" in source


def scheme_of(source: str) -> str:
    """The scheme of a URL in lower case; "file" for a path."""
    return source.split("://", 1)[0].lower() if is_url(source) else "file"


def check_url(url: str, what: str) -> None:
    """Refuse a URL that can't be taken apart. what: for the message, as "source". Raises UsageError."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        hint = "an IPv6 address stands in brackets: rtsp://[::1]/a"
        raise UsageError(f"{what} {mask(url)} is no URL", hint) from None
    try:
        _ = parts.port
    except ValueError:
        raise UsageError(
            f"{what} {mask(url)} has no port from 0 to 65535 behind its host",
            "special characters in a user or password are written as %2F, %3A, %40",
        ) from None
    if not host and parts.scheme.lower() in _WITH_HOST:
        raise UsageError(f"{what} {mask(url)} names no host", f"as {parts.scheme}://HOST/PATH")


def remember(url: str) -> None:
    """Keep a URL's password out of all that is masked from now on."""
    if not is_url(url):
        return
    try:
        password = urlsplit(url).password
    except ValueError:
        return
    if password:
        for form in (password, unquote(password), quote(unquote(password), safe="")):
            if len(form) >= _SHORTEST:
                _secrets.add(form)


def mask(text: str) -> str:
    """The text without credentials: user information and secrets in queries of URLs, and remembered passwords."""
    text = _USERINFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<key>{HIDDEN}", text)
    text = _HEADER.sub(rf"\g<key>{HIDDEN}", text)
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def with_credentials(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """The URL to open: an RTSP one without user information gets that of the environment. It is remembered."""
    if scheme_of(url) in ("rtsp", "rtsps") and environment.get(USER):
        parts = urlsplit(url)  # of a URL that ``check_url`` took
        if "@" not in parts.netloc:
            user = quote(environment[USER], safe="")
            password = quote(environment.get(PASSWORD, ""), safe="")
            url = urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc}"))
    remember(url)
    return url


class MaskFilter(logging.Filter):
    """Masks every record that passes. For handlers: a logger's filter does not see what its children log."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        masked = mask(text)
        if masked != text:
            record.msg, record.args = masked, ()
        return True
