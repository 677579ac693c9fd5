"""HTTP POST of batches of records."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import urllib.error
import urllib.request
from typing import Any

from streamdeblur.detect.schema import SCHEMA
from streamdeblur.detect.sinks.base import QUEUE, Record, Refused, Sink, encode
from streamdeblur.detect.sinks.urls import parse_address
from streamdeblur.errors import StreamdeblurError
from streamdeblur.version import __version__

#: Environment variable with a token that goes as "Authorization: Bearer".
TOKEN = "STREAMDEBLUR_WEBHOOK_TOKEN"
#: Answers after which the same request may succeed later (RFC 9110 15.5.9, 15.6; RFC 6585 4).
_AGAIN = {408, 425, 429, 500, 502, 503, 504}


class WebhookSink(Sink):
    """POSTs ``{"schema": ..., "records": [...]}`` as JSON; an answer of 2xx means that it arrived.

    url: http or https; user and password in it go as HTTP Basic, else a token from the environment variable
    STREAMDEBLUR_WEBHOOK_TOKEN as Bearer. A batch goes when it has ``batch`` records or the first has waited ``linger``
    seconds. timeout: seconds without a byte from the server. No connection, a time-out, 408, 425, 429 and 5xx are tried
    again with back-off; other answers, redirects among them, lose the batch. Raises UsageError for what is no URL.
    """

    def __init__(
        self, url: str, *, batch: int = 100, linger: float = 1.0, timeout: float = 5.0, queue: int = QUEUE
    ) -> None:
        address = parse_address(url, "webhook", {"http": 80, "https": 443})
        super().__init__(f"webhook {address.shown}", batch=batch, linger=linger, queue=queue)
        self._url, self._timeout = address.bare, timeout
        self._headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": f"streamdeblur/{__version__}",
        }
        token = os.environ.get(TOKEN)
        if address.user is not None:
            pair = f"{address.user}:{address.password or ''}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode('ascii')}"
        elif token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._opener = urllib.request.build_opener(_NoRedirect())
        self.start()

    def _deliver(self, records: list[Record]) -> None:
        body = f'{{"schema":"{SCHEMA}","records":[{",".join(map(encode, records))}]}}'.encode()
        request = urllib.request.Request(self._url, data=body, headers=self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                answer.read(1)
        except urllib.error.HTTPError as e:
            e.close()
            failure = StreamdeblurError if e.code in _AGAIN else Refused
            raise failure(f"the server answered {e.code}") from None
        except urllib.error.URLError as e:
            raise StreamdeblurError(_cause(e.reason)) from None
        except (OSError, http.client.HTTPException) as e:
            raise StreamdeblurError(_cause(e)) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and take the credentials elsewhere."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _cause(reason: object) -> str:
    """What failed, in words that hold nothing of the URL."""
    if isinstance(reason, (TimeoutError, socket.timeout)):
        return "no answer in time"
    if isinstance(reason, ssl.SSLError):
        return f"TLS failed: {reason.reason or type(reason).__name__}"
    if isinstance(reason, socket.gaierror):
        return "its name is not known"
    if isinstance(reason, OSError) and reason.strerror:
        return f"no connection: {reason.strerror}"
    return f"no connection: {type(reason).__name__}"
