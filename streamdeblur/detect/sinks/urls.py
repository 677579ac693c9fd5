"""Addresses with credentials in them, and the same without."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from streamdeblur.errors import UsageError


@dataclass(frozen=True, slots=True)
class Address:
    """An address taken apart. shown: scheme, host and port, for people: paths and queries may hold keys too.

    bare: the whole address without user and password. query: of the address, the last value of a repeated key.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: dict[str, str]
    user: str | None
    password: str | None
    shown: str
    bare: str

    def __repr__(self) -> str:
        return f"Address({self.shown})"

    __str__ = __repr__


def parse_address(url: str, what: str, ports: dict[str, int]) -> Address:
    """The parts of a URL. what: for the message. ports: the schemes that are taken, with their default ports.

    Raises UsageError, which names no part of the URL but a scheme: the rest may be a secret.
    """
    schemes = " or ".join(f"{s}://" for s in ports)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError(f"the address of the {what} is not a URL", f"give {schemes}HOST[:PORT]/...") from None
    if parts.scheme not in ports:
        given = f"begins with {parts.scheme}://" if parts.scheme and "://" in url else "has no scheme"
        raise UsageError(f"the address of the {what} {given}", f"it begins with {schemes}")
    if not parts.hostname:
        raise UsageError(f"the address of the {what} has no host", f"give {schemes}HOST[:PORT]/...")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    place = host if port is None else f"{host}:{port}"
    return Address(
        parts.scheme,
        parts.hostname,
        port or ports[parts.scheme],
        parts.path,
        dict(parse_qsl(parts.query)),
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        f"{parts.scheme}://{place}",
        urlunsplit((parts.scheme, place, parts.path, parts.query, "")),
    )
