"""Options of the preview page, as fields that a job's own options take in."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field, SecretStr, field_validator

from streamdeblur.config import Conflict, StrictModel

TOKEN_VARIABLE = "STREAMDEBLUR_PREVIEW_TOKEN"
#: Letters of a token at least: it is all that stands between a network and the cameras.
SHORTEST_TOKEN = 8
_LOCAL = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^:\[\]]*)):)?(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. port: 0 takes any that is free."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """``:8080`` and ``8080`` are this machine alone, ``0.0.0.0:8080`` every network. Raises ValueError."""
    found = _ADDRESS.fullmatch(text.strip())
    if found is None or int(found["port"]) > 65535:
        raise ValueError("give :PORT for this machine alone, or ADDRESS:PORT, as 0.0.0.0:8080")
    if found["v6"] is not None:
        try:
            ipaddress.IPv6Address(found["v6"].split("%")[0])
        except ValueError:
            raise ValueError(f"{found['v6']} is no IPv6 address") from None
    return Address(found["v6"] or found["host"] or _LOCAL, int(found["port"]))


def _without_page(name: str) -> Conflict:
    return Conflict(
        ("preview", name),
        lambda o: o.preview is None and getattr(o, name) != type(o).model_fields[name].default,
        lambda o: f"{name} without a page has no effect: give preview an address, as :8080",
    )


class PreviewOptions(StrictModel):
    """The preview page. Without ``preview`` there is none."""

    preview: str | None = Field(
        None, description="Serve a page, /metrics and /healthz here: :8080 is this machine alone, 0.0.0.0:8080 not."
    )
    preview_token: SecretStr | None = Field(
        None, description=f"What the page asks for before it shows anything. Better in {TOKEN_VARIABLE}."
    )
    preview_fps: float = Field(10.0, gt=0, le=30, description="Pictures a second and source on the page, at most.")
    preview_width: int = Field(960, ge=160, le=3840, description="Width of pictures on the page, at most.")
    preview_readers: int = Field(256, ge=1, le=4096, description="Who may look at pictures at once, at most.")

    @field_validator("preview")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is not None:
            parse_address(value)
        return value

    @field_validator("preview_token")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _check_token(value.get_secret_value())
        return value

    conflicts: ClassVar[tuple[Conflict, ...]] = tuple(
        _without_page(name) for name in ("preview_token", "preview_fps", "preview_width", "preview_readers")
    )


def token_of(options: Any) -> str | None:
    """The token of the options, else of the environment, else None. Raises ValueError for one that is no token."""
    if options.preview_token is not None:
        return str(options.preview_token.get_secret_value())
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None:
        _check_token(token)
    return token


def _check_token(token: str) -> None:
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or token != token.strip():
        raise ValueError(f"a token has {SHORTEST_TOKEN} printable ASCII characters or more, none around it blank")
