"""The preview page over HTTP: what it serves, whom it refuses, and that readers never reach the job."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote, urlsplit

import cv2
import numpy as np
import pytest

from streamdeblur.errors import StreamdeblurError, UsageError
from streamdeblur.jobs.live.preview import Preview, PreviewOptions
from tests.clips import read_number
from tests.preview import Facts, StandIn, job_status, pair, rgb_frame, source_status

aiohttp = pytest.importorskip("aiohttp", reason="needs aiohttp")

pytestmark = pytest.mark.integration

WAIT = 60.0
TOKEN = "a-token-of-ours"
SECRET = "s3same-open"
ODD = "yard <b>&'\"/ü%"[:7] + "ü%"  # no slash: names are parts of file names
GUARDED = (
    "/", "/assets/preview.js", "/assets/preview.css", "/metrics", "/api/status", "/api/status/schema", "/api/sources",
    "/api/snapshot/gate?which=before", "/api/live", "/stream/gate/before", "/stream/gate/after", "/nothing/here",
)  # fmt: skip


def status() -> dict[str, Any]:
    lost = source_status(
        ODD,
        url=f"rtsp://admin:{SECRET}@192.0.2.9/yard?token={SECRET}",
        state="waiting",
        error=f"could not open rtsp://admin:{SECRET}@192.0.2.9/yard",
        outputs=[
            {"target": f"rtsp://u:{SECRET}@192.0.2.1/x", "state": "live", "error": f"http://a:{SECRET}@b/ says no"}
        ],
    )
    return job_status(source_status("gate"), lost)


@pytest.fixture(scope="module")
def page() -> Iterator[Preview]:
    with Preview(status, PreviewOptions(preview=":0")) as preview, StandIn(preview.show, ("gate",)):
        wait(lambda: preview._hub.newest("gate") is not None)
        yield preview


@pytest.fixture(scope="module")
def guarded() -> Iterator[Preview]:
    options = PreviewOptions(preview=":0", preview_token=TOKEN)  # type: ignore[arg-type]
    with Preview(status, options) as preview:
        preview.show("gate", *pair(1), Facts(1))
        yield preview


def wait(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "a condition did not become true"
        time.sleep(0.02)


def ask(
    preview: Preview, path: str, *, method: str = "GET", body: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Exactly this path, not tidied up. headers: underscores are dashes."""
    connection = http.client.HTTPConnection(urlsplit(preview.url).netloc, timeout=WAIT)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Type", "application/x-www-form-urlencoded")
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body.encode() if body is not None else None)
        answer = connection.getresponse()
        streams = answer.getheader("Content-Type", "").startswith("multipart")
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, b"" if streams else answer.read()
    finally:
        connection.close()


def post(preview: Preview, body: bytes, kind: str | None, **headers: str) -> int:
    """The code that a form is answered with. headers: as for ``ask``."""
    connection = http.client.HTTPConnection(urlsplit(preview.url).netloc, timeout=WAIT)
    try:
        connection.putrequest("POST", "/login")
        given = {"Content-Length": str(len(body)), **({} if kind is None else {"Content-Type": kind})}
        for name, value in {**given, **{n.replace("_", "-"): v for n, v in headers.items()}}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse().status
    finally:
        connection.close()


def number_in(image: bytes) -> int:
    return read_number(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE))


# --- what is served ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code", "kind"),
    [
        ("/", 200, "text/html"),
        ("/assets/preview.js", 200, "text/javascript"),
        ("/assets/preview.css", 200, "text/css"),
        ("/assets/icon.svg", 200, "image/svg+xml"),
        ("/healthz", 200, "application/json"),
        ("/readyz", 503, "application/json"),
        ("/metrics", 200, "text/plain; version=0.0.4"),
        ("/api/status", 200, "application/json"),
        ("/api/status/schema", 200, "application/json"),
        ("/api/sources", 200, "application/json"),
        ("/api/snapshot/gate?which=before", 200, "image/png"),
        ("/stream/gate/after", 200, "multipart/x-mixed-replace"),
        (f"/stream/{quote(ODD, safe='')}/before", 200, "multipart/x-mixed-replace"),
        # what is not there
        ("/assets/../server.py", 404, "application/json"),
        ("/assets/..%2fserver.py", 404, "application/json"),
        ("/assets/%2e%2e/%2e%2e/job.py", 404, "application/json"),
        ("/../../../etc/passwd", 404, "application/json"),
        ("//etc/passwd", 404, "application/json"),
        ("/assets/", 404, "application/json"),
        ("/assets/login.html", 404, "application/json"),
        ("/favicon.ico", 404, "application/json"),
        ("/stream/nobody/after", 404, "application/json"),
        ("/stream/gate/middle", 404, "application/json"),
        ("/api/snapshot/nobody", 404, "application/json"),
        ("/api/snapshot/gate?which=both", 400, "application/json"),
        ("/api/snapshot/gate?which=after&frame=99999", 410, "application/json"),
        (f"/api/snapshot/{quote(ODD, safe='')}", 503, "application/json"),
        ("/api/live", 400, "application/json"),
    ],
)
def test_each_path_answers(page: Preview, path: str, code: int, kind: str) -> None:
    got, headers, body = ask(page, path)
    assert got == code, body
    assert headers["content-type"].startswith(kind)
    if code >= 400 and path != "/readyz":
        assert set(json.loads(body)) == {"error"}


@pytest.mark.parametrize("path", ["/", "/nothing", "/metrics", "/api/status", "/stream/gate/after", "/healthz"])
def test_every_answer_has_the_strict_headers(page: Preview, path: str) -> None:
    _, headers, _ = ask(page, path)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["server"] == "streamdeblur"
    assert headers["cache-control"] == ("no-cache" if path == "/" else "no-store")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/"), ("PUT", "/metrics"), ("DELETE", "/api/status"), ("POST", "/stream/gate/after")]
)
def test_other_methods_are_refused(page: Preview, method: str, path: str) -> None:
    code, headers, _ = ask(page, path, method=method)
    assert code == 405
    assert "GET" in headers["allow"]


def test_unchanged_files_are_not_sent_again(page: Preview) -> None:
    _, headers, _ = ask(page, "/assets/preview.js")
    code, _, body = ask(page, "/assets/preview.js", If_None_Match=headers["etag"])
    assert (code, body) == (304, b"")


def test_nothing_of_the_page_comes_from_elsewhere(page: Preview) -> None:
    for name in (
        "",
        "assets/preview.js",
        "assets/card.js",
        "assets/link.js",
        "assets/divider.js",
        "assets/preview.css",
    ):
        _, _, body = ask(page, f"/{name}")
        # the SVG namespace is a name, not an address
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", body), name


def test_a_strangers_domain_that_points_here_is_turned_away(page: Preview) -> None:
    assert ask(page, "/api/status", Host="evil.example")[0] == 421
    assert ask(page, "/api/status", Host="localhost:1")[0] == 200


def test_both_snapshots_are_of_one_frame_in_full_size(page: Preview) -> None:
    _, headers, before = ask(page, "/api/snapshot/gate?which=before")
    index = headers["x-frame-index"]
    assert f"gate-{int(index):06d}-before.png" in headers["content-disposition"]
    wait(lambda: page._hub.newest("gate").facts.index != int(index))  # type: ignore[union-attr]
    _, headers, after = ask(page, f"/api/snapshot/gate?which=after&frame={index}")
    assert headers["x-frame-index"] == index
    assert number_in(before) == number_in(after) == int(index)
    expected = pair(int(index))[1]
    picture = cv2.imdecode(np.frombuffer(after, np.uint8), cv2.IMREAD_COLOR)
    assert (picture[..., ::-1] == np.stack(expected.planes, axis=-1)).all()


def test_credentials_are_nowhere(page: Preview) -> None:
    for path in ("/api/status", "/metrics", "/readyz", "/api/sources", "/"):
        _, _, body = ask(page, path)
        assert body
        assert SECRET.encode() not in body, path
    told = json.loads(ask(page, "/api/status")[2])
    assert told["sources"][1]["url"].startswith("rtsp://***@192.0.2.9/yard")  # masked, not left out


def test_readiness_names_who_does_not_deliver(page: Preview) -> None:
    assert json.loads(ask(page, "/readyz")[2]) == {"ready": False, "problems": [f"{ODD}: waiting"]}


def test_sources_lead_to_their_streams(page: Preview) -> None:
    rows = json.loads(ask(page, "/api/sources")[2])["sources"]
    assert [r["name"] for r in rows] == ["gate", ODD]
    for row in rows:
        assert ask(page, "/" + row["streams"]["before"])[0] == 200


def test_a_stream_shows_frames_that_say_which_they_are(page: Preview) -> None:
    connection = http.client.HTTPConnection(urlsplit(page.url).netloc, timeout=WAIT)
    connection.request("GET", "/stream/gate/after")
    answer = connection.getresponse()
    seen = []
    for _ in range(3):
        assert answer.readline() == b"--streamdeblur-frame\r\n"
        head = {}
        while (line := answer.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            head[name] = value
        image = answer.read(int(head["Content-Length"]))
        assert answer.readline() == b"\r\n"
        assert number_in(image) == int(head["X-Frame-Index"])
        seen.append(head["X-Frame-Index"])
    connection.close()
    assert len(set(seen)) == 3
    wait(lambda: page.readers == 0)


# --- the page's connection -----------------------------------------------------------------------------------------


def talk(preview: Preview, what: Any, **options: Any) -> Any:
    """Run ``what(socket)`` on a WebSocket to the page."""

    async def run() -> Any:
        async with aiohttp.ClientSession() as session:
            url = preview.url.replace("http", "ws", 1) + "api/live"
            async with session.ws_connect(url, max_msg_size=0, **options) as connection:
                return await asyncio.wait_for(what(connection), WAIT)

    return asyncio.run(run())


def parts(message: bytes) -> tuple[dict[str, Any], bytes, bytes]:
    (length,) = struct.unpack(">I", message[:4])
    header = json.loads(message[4 : 4 + length])
    rest = message[4 + length :]
    return header, rest[: header["before_bytes"]], rest[header["before_bytes"] :]


async def binary(connection: Any) -> bytes:
    while True:
        message = await connection.receive()
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
        if message.type is aiohttp.WSMsgType.BINARY:
            return bytes(message.data)


def test_the_page_gets_both_sides_of_one_frame_and_the_next_when_it_is_drawn(page: Preview) -> None:
    async def look(connection: Any) -> None:
        await connection.send_str("no JSON")
        await connection.send_json(["no object"])
        await connection.send_json({"watch": ["gate", "nobody", 7]})
        last = 0
        for _ in range(4):
            header, before, after = parts(await binary(connection))
            assert number_in(before) == number_in(after) == header["index"]
            assert header["number"] > last
            last = header["number"]
            await connection.send_json({"ack": ["gate", last]})
        header, _, _ = parts(await binary(connection))
        # Without a word that it is drawn nothing follows but numbers.
        told = 0
        while told < 2:
            message = await connection.receive()
            assert message.type is aiohttp.WSMsgType.TEXT
            assert SECRET not in message.data
            assert json.loads(message.data)["status"]["sources"][0]["name"] == "gate"
            told += 1
        await connection.send_json({"ack": ["gate", header["number"]]})
        newer, _, _ = parts(await binary(connection))
        assert newer["number"] > header["number"] + 1  # the newest, not the next in a queue
        await connection.send_json({"watch": []})

    talk(page, look)
    wait(lambda: page.readers == 0)
    wait(lambda: not page._hub._watchers)  # nobody looks: no more pictures are made


def test_another_sites_page_gets_no_connection(page: Preview) -> None:
    async def nothing(_: Any) -> None: ...

    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        talk(page, nothing, headers={"Origin": "http://evil.example"})
    assert refused.value.status == 403
    talk(page, nothing, headers={"Origin": page.url.rstrip("/")})


# --- the token -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GUARDED)
def test_without_the_token_nothing_is_shown(guarded: Preview, path: str) -> None:
    cookie = f"streamdeblur-preview-{urlsplit(guarded.url).port}"
    for headers in ({}, {"Authorization": "Bearer wrong-token"}, {"Cookie": f"{cookie}={TOKEN}"}):
        code, answer, body = ask(guarded, path, **headers)
        assert code == 401
        assert answer["www-authenticate"].startswith("Bearer")
        assert TOKEN.encode() not in body
    code, _, _ = ask(guarded, path + ("&" if "?" in path else "?") + "token=wrong-token")
    assert code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_need_no_token(guarded: Preview, path: str) -> None:
    assert ask(guarded, path)[0] in (200, 503)


def test_the_token_in_a_header_lets_in(guarded: Preview) -> None:
    for path in GUARDED[:-1]:
        code, _, _ = ask(guarded, path, Authorization=f"Bearer {TOKEN}")
        assert code == (400 if path == "/api/live" else 200), path
    assert ask(guarded, "/nothing/here", Authorization=f"Bearer {TOKEN}")[0] == 404
    assert ask(guarded, "/metrics", method="POST", Authorization=f"Bearer {TOKEN}")[0] == 405


def cookie_of(headers: dict[str, str]) -> str:
    given = headers["set-cookie"]
    assert "HttpOnly" in given
    assert "SameSite=Lax" in given
    assert TOKEN not in given
    return given.split(";")[0]


def test_a_token_in_the_address_becomes_a_cookie(guarded: Preview) -> None:
    code, headers, _ = ask(guarded, f"/?token={TOKEN}")
    assert (code, headers["location"]) == (303, "./")
    cookie = cookie_of(headers)
    assert ask(guarded, "/", Cookie=cookie)[0] == 200
    assert ask(guarded, "/metrics", Cookie=cookie)[0] == 200
    _, headers, _ = ask(guarded, f"/api/snapshot/gate?which=before&token={TOKEN}")
    assert headers["location"] == "./gate?which=before"
    for path in ("//evil.example", "/\\evil.example", "//evil.example/x"):
        code, headers, _ = ask(guarded, f"{path}?token={TOKEN}")
        assert headers["location"].startswith("./")


def test_the_form_takes_the_token(guarded: Preview) -> None:
    for path in ("/", "/login"):
        code, headers, body = ask(guarded, path, Accept="text/html")
        assert code == (401 if path == "/" else 200)
        assert b'<form method="post" action="login">' in body
        assert "sha256-" in headers["content-security-policy"]
        assert "script" not in body.decode()
    code, headers, body = ask(guarded, "/login", method="POST", body="token=wrong-token")
    assert code == 401
    assert b"not the token" in body
    assert "set-cookie" not in headers
    code, headers, _ = ask(guarded, "/login", method="POST", body=f"token={TOKEN}")
    assert (code, headers["location"]) == (303, "./")
    assert ask(guarded, "/", Cookie=cookie_of(headers))[0] == 200
    assert ask(guarded, "/login", method="POST", body=f"token={TOKEN}", Origin="http://evil.example")[0] == 403
    assert ask(guarded, "/login", method="POST", body="token=" + "x" * 10_000)[0] == 413


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        ("multipart/form-data", b"{}", 400),
        ("multipart/form-data; boundary=x", b"no boundary in it\r\n" * 9, 400),
        ("multipart/form-data; boundary=" + "x" * 99, b"", 400),
        ("application/json", b'{"token":', 400),
        ("///;;;=", b"token=x", 400),
        (None, b"token=x", 400),
        (f"{FORM}; charset=none-such", b"token=%ff", 401),
        (f"{FORM}; charset=utf-16", b"token=x", 401),
        (FORM, b"token=\xff\xfe", 401),
        (FORM, b"token=%ff%zz%ed%a0%80&;;==&&", 401),
        (FORM, b"token[]=" + TOKEN.encode(), 401),
        (FORM, b"token=" + b"x" * 10_000, 413),
        (f"{FORM}; charset=none-such", f"token={TOKEN}".encode(), 303),
    ],
)
def test_whatever_a_stranger_posts_is_answered_and_not_logged(
    guarded: Preview, caplog: pytest.LogCaptureFixture, kind: str | None, body: bytes, code: int
) -> None:
    assert post(guarded, body, kind) == code
    assert not caplog.records


def test_a_form_that_is_damaged_or_never_arrives_is_answered_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    options = PreviewOptions(preview=":0", preview_token=TOKEN)  # type: ignore[arg-type]
    with Preview(status, options, stall=0.2) as preview:
        assert post(preview, b"no gzip at all", FORM, Content_Encoding="gzip") == 400
        assert post(preview, b"token=", FORM, Content_Length="4000") == 408
    assert not caplog.records


def test_a_page_that_says_nonsense_is_answered_and_not_logged(page: Preview, caplog: pytest.LogCaptureFixture) -> None:
    for key in ("A", "\xff\xff"):
        answer = ask(
            page, "/api/live", Upgrade="websocket", Connection="Upgrade", Sec_WebSocket_Version="13",
            Sec_WebSocket_Key=key,
        )  # fmt: skip
        assert answer[0] == 400

    async def nonsense(connection: Any) -> Any:
        for text in ("[" * 60_000, "{", "null", '{"watch": [[1], "\\ud800"]}', '{"ack": ["gate", []]}'):
            await connection.send_str(text)
        await connection.send_json({"watch": ["gate"]})
        return parts(await binary(connection))[0]["source"]

    assert talk(page, nonsense) == "gate"
    assert not caplog.records


def test_a_connection_needs_the_token_too(guarded: Preview) -> None:
    async def first(connection: Any) -> Any:
        await connection.send_json({"watch": ["gate"]})
        return parts(await binary(connection))[0]["index"]

    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        talk(guarded, first)
    assert refused.value.status == 401
    assert talk(guarded, first, headers={"Authorization": f"Bearer {TOKEN}"}) == 1


# --- many, slow, and broken ones -----------------------------------------------------------------------------------


def slow_reader(preview: Preview, path: str = "/stream/gate/after") -> socket.socket:
    """Asks for pictures and takes none."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(WAIT)
    made.connect((urlsplit(preview.url).hostname, urlsplit(preview.url).port))
    made.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return made


def test_200_slow_readers_reach_neither_the_job_nor_each_other() -> None:
    rng = np.random.default_rng(1)
    noise = [rgb_frame(rng.integers(0, 256, (540, 960, 3), dtype=np.uint8), i) for i in range(2)]  # big as JPEG
    preview = Preview(
        lambda: job_status(source_status("gate")), PreviewOptions(preview=":0", preview_readers=201), stall=2.0
    )
    with ExitStack() as stack:
        stack.enter_context(preview)
        readers = [slow_reader(preview) for _ in range(200)]
        for reader in readers:
            stack.callback(reader.close)
        wait(lambda: preview.readers == 200)
        stop = threading.Event()
        shown = []

        def job() -> None:
            index = 0
            while not stop.wait(0.02):
                frame = noise[index % 2]
                preview.show("gate", frame, frame, Facts(index, status="bypassed", step="bypass"))
                shown.append(index)
                index += 1

        thread = threading.Thread(target=job)

        async def look(connection: Any) -> list[int]:
            # The house is full with this one.
            code, headers, _ = await asyncio.get_running_loop().run_in_executor(
                None, ask, preview, "/stream/gate/after"
            )
            assert code == 503
            assert "retry-after" in headers
            thread.start()
            stack.callback(thread.join)
            stack.callback(stop.set)
            await connection.send_json({"watch": ["gate"]})
            seen = []
            while len(seen) < 8:
                header, _, _ = parts(await binary(connection))
                seen.append(header["index"])
                await connection.send_json({"ack": ["gate", header["number"]]})
            return seen

        seen = talk(preview, look)
        assert seen == sorted(set(seen))  # the one who reads goes on
        # Those who take nothing are cut off: their room is free again.
        wait(lambda: preview.readers == 0)
        # The job never stood still: it showed frames all the while, and far more than pictures were made.
        count = len(shown)
        wait(lambda: len(shown) > count + 5)
        assert preview._hub.encoded < len(shown)
        assert ask(preview, "/healthz")[0] == 200
        assert json.loads(ask(preview, "/api/status")[2])["preview"]["refused"] >= 1


def test_a_busy_event_loop_keeps_one_picture_a_source() -> None:
    with Preview(lambda: job_status(source_status("gate")), PreviewOptions(preview=":0", preview_fps=30)) as preview:
        stream = slow_reader(preview)
        wait(lambda: preview.readers == 1)
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            release.wait(WAIT)

        assert preview._loop is not None
        preview._loop.call_soon_threadsafe(hold)
        assert held.wait(WAIT)
        before, after = pair(1)
        for index in range(1, 4):
            preview.show("gate", before, after, Facts(index))
            wait(lambda index=index: preview._hub.encoded >= index)
        assert [p.index for p in preview._inbox.values()] == [3]
        release.set()
        wait(lambda: not preview._inbox)
        stream.close()


def test_a_connection_too_many_is_answered_and_closed() -> None:
    options = PreviewOptions(preview=":0", preview_readers=1)
    with Preview(lambda: job_status(source_status("gate")), options) as preview:
        idle = [
            socket.create_connection((urlsplit(preview.url).hostname, urlsplit(preview.url).port)) for _ in range(65)
        ]
        try:
            answers = []

            def refused() -> bool:
                extra = socket.create_connection((urlsplit(preview.url).hostname, urlsplit(preview.url).port), WAIT)
                extra.settimeout(0.5)
                try:
                    answers.append(extra.recv(100))
                except TimeoutError:
                    answers.append(b"")
                extra.close()
                return answers[-1].startswith(b"HTTP/1.1 503")

            wait(refused)
        finally:
            for one in idle:
                one.close()
        wait(lambda: _answers(preview))


def _answers(preview: Preview) -> bool:
    try:
        return ask(preview, "/healthz")[0] == 200
    except (ConnectionError, http.client.HTTPException):
        return False


def test_a_job_that_fails_to_tell_its_status_is_not_ready_and_the_page_lives() -> None:
    said: dict[str, Any] = {"fails": True}

    def status() -> dict[str, Any]:
        if said["fails"]:
            raise RuntimeError(f"at rtsp://u:{SECRET}@h/")
        return job_status(source_status("gate"))

    with Preview(status, PreviewOptions(preview=":0")) as preview:
        code, _, body = ask(preview, "/readyz")
        assert code == 503
        assert SECRET.encode() not in body
        assert b"RuntimeError" in body
        assert ask(preview, "/healthz")[0] == ask(preview, "/metrics")[0] == 200
        said["fails"] = False
        wait(lambda: ask(preview, "/readyz")[0] == 200)


def test_a_job_that_hangs_is_asked_by_one_thread_only() -> None:
    release = threading.Event()
    asked = []

    def status() -> dict[str, Any]:
        asked.append(1)
        release.wait(WAIT)
        return job_status(source_status("gate"))

    with Preview(status, PreviewOptions(preview=":0")) as preview:
        for _ in range(2):
            code, _, body = ask(preview, "/readyz")
            assert code == 503
            assert b"does not answer" in body
        assert ask(preview, "/healthz")[0] == 200
        assert len(asked) == 1
        release.set()
        wait(lambda: ask(preview, "/readyz")[0] == 200)


def test_the_end_sends_readers_away_and_frees_the_address() -> None:
    preview = Preview(lambda: job_status(source_status("gate")), PreviewOptions(preview=":0")).start()
    preview.show("gate", *pair(1), Facts(1))
    stream, idle = slow_reader(preview), slow_reader(preview, "/healthz")
    closed = []

    async def look(connection: Any) -> None:
        await connection.send_json({"watch": ["gate"]})
        await binary(connection)
        closer = threading.Thread(target=preview.close)
        closer.start()
        while (message := await connection.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
            pass
        closed.append(message.data)
        await asyncio.get_running_loop().run_in_executor(None, closer.join)

    talk(preview, look, autoclose=False)
    assert closed == [1001]  # going away, not an error
    assert preview._thread is not None
    assert not preview._thread.is_alive()
    preview.close()  # once more changes nothing
    stream.close()
    idle.close()
    port = urlsplit(preview.url).port
    with Preview(job_status, PreviewOptions(preview=f":{port}")) as again:
        assert ask(again, "/healthz")[0] == 200


def test_an_address_that_is_taken_is_said_at_once(page: Preview) -> None:
    port = urlsplit(page.url).port
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port}: Address already in use"):
        Preview(status, PreviewOptions(preview=f":{port}")).start()
    with pytest.raises(UsageError, match="can't listen on 203"):
        Preview(status, PreviewOptions(preview="203.0.113.1:0")).start()


def test_a_page_for_every_network_without_a_token_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with Preview(status, PreviewOptions(preview="0.0.0.0:0")):
        assert "open to everybody" in caplog.text


def test_without_aiohttp_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(StreamdeblurError, match=r"pip install 'streamdeblur\[live\]'"):
        Preview(status, PreviewOptions(preview=":0")).start()
