"""Addresses, tokens, and who may look."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from streamdeblur.jobs.live.preview.access import Access, own_form, own_host, policy_with_style, same_origin
from streamdeblur.jobs.live.preview.options import TOKEN_VARIABLE, Address, PreviewOptions, parse_address, token_of

TOKEN = "correct horse battery"


@pytest.mark.parametrize(
    ("text", "host", "port", "local"),
    [
        (":8080", "127.0.0.1", 8080, True),
        ("8080", "127.0.0.1", 8080, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("127.0.0.9:0", "127.0.0.9", 0, True),
        ("localhost:1", "localhost", 1, True),
        ("[::1]:8080", "::1", 8080, True),
        ("[::]:8080", "::", 8080, False),
        ("camera.example:8443", "camera.example", 8443, False),
    ],
)
def test_an_address_is_this_machine_unless_it_says_otherwise(text: str, host: str, port: int, local: bool) -> None:
    found = parse_address(text)
    assert (found.host, found.port, found.loopback) == (host, port, local)


@pytest.mark.parametrize("text", ["", "8080:", "::1:80", "http://x:80", ":99999", "a b:", "[zz]:80", ":", "[::1]"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0:8080|IPv6"):
        parse_address(text)


def test_an_ipv6_address_is_written_in_brackets() -> None:
    assert str(Address("::1", 80)) == "[::1]:80"


@pytest.mark.parametrize("token", ["short", "with\nline feed", "ümlaut-token", " blank around "])
def test_a_token_that_is_none_is_refused(token: str) -> None:
    with pytest.raises(ValidationError, match="8 printable ASCII"):
        PreviewOptions(preview=":1", preview_token=token)  # type: ignore[arg-type]


def test_a_token_without_a_page_is_refused() -> None:
    with pytest.raises(ValidationError, match="give preview an address"):
        PreviewOptions(preview_token=TOKEN)  # type: ignore[arg-type]


def test_the_token_of_the_options_comes_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_of(PreviewOptions(preview=":1")) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "from-the-environment")
    assert token_of(PreviewOptions(preview=":1")) == "from-the-environment"
    assert token_of(PreviewOptions(preview=":1", preview_token=TOKEN)) == TOKEN  # type: ignore[arg-type]
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(ValueError, match="8 printable"):
        token_of(PreviewOptions(preview=":1"))


def test_a_dump_of_the_options_does_not_hold_the_token() -> None:
    options = PreviewOptions(preview=":1", preview_token=TOKEN)  # type: ignore[arg-type]
    assert TOKEN not in options.model_dump_json()
    assert TOKEN not in repr(options)


def test_only_the_token_or_its_cookie_lets_in() -> None:
    access = Access(TOKEN, 8080)
    assert access.lets_in(f"Bearer {TOKEN}", None)
    assert access.lets_in(f"bearer  {TOKEN}", None)
    assert access.lets_in(None, access.cookie_value)
    for authorization, cookie in [
        (None, None),
        ("", None),
        ("Bearer", None),
        (f"Bearer {TOKEN}x", None),
        (f"Basic {TOKEN}", None),
        (TOKEN, None),
        (None, TOKEN),
        (None, Access("another token", 8080).cookie_value),
        ("Bearer wrong", access.cookie_value),  # what is said outright decides
        ("Bearer \udcff\udcfe", None),
        (None, "\udcff"),
    ]:
        assert not access.lets_in(authorization, cookie), (authorization, cookie)


def test_the_cookie_is_not_the_token_and_outlives_the_process() -> None:
    assert TOKEN not in Access(TOKEN, 1).cookie_value
    assert Access(TOKEN, 1).cookie_value == Access(TOKEN, 1).cookie_value
    assert Access(TOKEN, 1).cookie != Access(TOKEN, 2).cookie  # pages on one host don't take each other's


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8080",
        "127.0.0.1:1",
        "192.0.2.7",
        "[::1]:80",
        "[fe80::1%25eth0]",
        "page.localhost",
        "Desk.Example",
    ],
)
def test_the_page_knows_its_own_names(host: str) -> None:
    assert own_host(host, "desk.example")


@pytest.mark.parametrize(
    "host", [None, "", "evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[bad", "localhost.evil"]
)
def test_a_strangers_domain_that_points_here_is_not_ours(host: str | None) -> None:
    assert not own_host(host, "127.0.0.1")


def test_an_origin_is_the_same_only_with_its_port() -> None:
    assert same_origin(None, "a:1")
    assert same_origin("http://A:1", "a:1")
    assert not same_origin("http://[::1", "a:1")
    assert not same_origin("http://a:2", "a:1")
    assert not same_origin("null", "a:1")
    assert not same_origin("http://a:1", None)


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, True),  # what a browser sends under no-referrer
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://a:1", "Host": "a:1"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Origin": "http://a:1", "Host": "a:1"}, True),
        ({"Origin": "null", "Host": "a:1"}, False),
    ],
)
def test_a_form_comes_from_the_page_itself(headers: dict[str, str], own: bool) -> None:
    assert own_form(headers) is own


def test_a_style_is_allowed_by_its_hash_alone() -> None:
    # The hash of the empty string is known from elsewhere.
    policy = policy_with_style("")
    assert "style-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='" in policy
    assert "unsafe-inline" not in policy
