"""Webhook and MQTT against real servers on this machine, which go away, stand still, refuse, and come back."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from streamdeblur.detect.sinks import MqttSink, WebhookSink, base
from streamdeblur.detect.sinks import mqtt as mqtt_module

pytestmark = pytest.mark.integration

WAIT = 60.0
SECRETS = ("s3cret", "t0ken")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between attempts."""
    monkeypatch.setattr(base, "BACK_OFF", (0.02, 0.1))


@pytest.fixture(autouse=True)
def no_secrets(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that any of these tests logs holds a credential."""
    with caplog.at_level(logging.DEBUG):
        yield
    for record in caplog.records:
        assert not any(s in record.getMessage() for s in SECRETS)
        assert not record.exc_text or not any(s in record.exc_text for s in SECRETS)


# -- webhook -----------------------------------------------------------------------------------------------------------


class Hooks:
    """A server that keeps what is posted. answers: codes of the next requests; then 204."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.answers: list[int] = []
        self.silent = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                while outer.silent.is_set():
                    time.sleep(0.01)
                code = outer.answers.pop(0) if outer.answers else 204
                outer.requests.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.silent.clear()
        self.server.shutdown()
        self.server.server_close()

    @property
    def records(self) -> list[int]:
        return [r["i"] for _, _, body in self.requests for r in body["records"]]


@pytest.fixture
def hooks() -> Iterator[Hooks]:
    server = Hooks()
    yield server
    server.close()


def test_webhook_posts_batches_with_credentials_it_does_not_show(hooks: Hooks) -> None:
    sink = WebhookSink(f"http://us:s3cret@127.0.0.1:{hooks.port}/in/t0ken?key=t0ken", batch=3, linger=60)
    assert not any(s in f"{sink!r} {sink.stats()}" for s in SECRETS)
    for i in range(7):
        sink.send({"i": i})
    sink.close(WAIT)
    assert [[r["i"] for r in body["records"]] for _, _, body in hooks.requests] == [[0, 1, 2], [3, 4, 5], [6]]
    path, headers, body = hooks.requests[0]
    assert path == "/in/t0ken?key=t0ken"
    assert headers["Authorization"] == "Basic dXM6czNjcmV0"  # us:s3cret
    assert body["schema"] == "streamdeblur.detections/1"
    assert (sink.stats().sent, sink.stats().dropped) == (7, 0)


def test_webhook_token_from_the_environment(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMDEBLUR_WEBHOOK_TOKEN", "t0ken")
    sink = WebhookSink(f"http://127.0.0.1:{hooks.port}/")
    sink.send({"i": 0})
    sink.close(WAIT)
    assert hooks.requests[0][1]["Authorization"] == "Bearer t0ken"


@pytest.mark.parametrize(("code", "arrives"), [(503, True), (429, True), (400, False), (401, False), (302, False)])
def test_webhook_answers(hooks: Hooks, code: int, arrives: bool) -> None:
    hooks.answers = [code]
    sink = WebhookSink(f"http://us:s3cret@127.0.0.1:{hooks.port}/in", linger=0)
    sink.send({"i": 0})
    until(lambda: sink.stats().sent + sink.stats().dropped == 1)
    sink.close(WAIT)
    assert sink.stats().sent == arrives
    assert sink.stats().errors == 1
    assert {path for path, _, _ in hooks.requests} == {"/in"}  # a redirect is not followed


def test_webhook_server_down_and_back(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    sink = WebhookSink(f"http://us:s3cret@127.0.0.1:{port}/", linger=0, queue=5)
    for i in range(20):
        sink.send({"i": i})
    until(lambda: sink.stats().errors >= 2)
    assert sink.stats().down
    assert "no connection" in str(sink.stats().error)
    server = Hooks(port)
    until(lambda: sink.stats().waiting == 0)
    sink.close(WAIT)
    server.close()
    stats = sink.stats()
    assert stats.sent + stats.dropped == 20
    assert not stats.down
    assert server.records[-5:] == [15, 16, 17, 18, 19]
    told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert sum("no connection" in t for t in told) == 1
    assert sum("works again" in t for t in told) == 1


def test_webhook_server_that_does_not_answer(hooks: Hooks) -> None:
    hooks.silent.set()
    sink = WebhookSink(f"http://127.0.0.1:{hooks.port}/", linger=0, timeout=0.1)
    sink.send({"i": 0})
    until(lambda: sink.stats().errors >= 1)
    assert sink.stats().error == "no answer in time"
    hooks.silent.clear()
    until(lambda: sink.stats().sent == 1)
    sink.close(WAIT)


# -- MQTT --------------------------------------------------------------------------------------------------------------


class Broker:
    """Mosquitto on a port of this machine, with or without a password (us, s3cret)."""

    def __init__(self, folder: Path, *, password: bool = False) -> None:
        program = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")
        if program is None:
            pytest.skip("needs Mosquitto: install mosquitto")
        self.port = free_port()
        self._program, self._config = program, folder / "mosquitto.conf"
        text = f"listener {self.port} 127.0.0.1\nallow_anonymous {'false' if password else 'true'}\npersistence false\n"
        if password:
            accounts = folder / "accounts"
            tool = shutil.which("mosquitto_passwd") or "mosquitto_passwd"
            subprocess.run([tool, "-b", "-c", str(accounts), "us", "s3cret"], check=True, capture_output=True)
            accounts.chmod(0o644)
            folder.chmod(0o755)
            text += f"password_file {accounts}\n"
        if os.geteuid() == 0:
            text += "user root\n"
        self._config.write_text(text)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self._program, "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

        def answers() -> bool:
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.port)) == 0

        until(answers)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def broker(folder: Path, **values: Any) -> Iterator[Broker]:
    made = Broker(folder, **values)
    try:
        yield made
    finally:
        made.stop()


class Subscriber:
    """Keeps what is published, by topic."""

    def __init__(self, port: int, user: str | None = None) -> None:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        self.got: list[tuple[str, dict[str, Any]]] = []
        self.ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        if user:
            self._client.username_pw_set(user, "s3cret")
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self.ready.set()
        self._client.on_message = lambda _c, _u, m: self.got.append((m.topic, json.loads(m.payload)))
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        assert self.ready.wait(WAIT)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(autouse=True)
def _paho(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "mqtt" in request.node.name:
        pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt")
        monkeypatch.setattr(mqtt_module, "_RECONNECT", (1, 1))


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_mqtt_publishes_each_record_once_in_order(tmp_path: Path, qos: int) -> None:
    with broker(tmp_path) as b:
        listener = Subscriber(b.port)
        sink = MqttSink(f"mqtt://127.0.0.1:{b.port}/cameras/{{source}}/found?qos={qos}")
        for i in range(50):
            sink.send({"i": i, "source": "gate/1 #north"})
        until(lambda: sink.stats().sent == 50)
        until(lambda: len(listener.got) == 50)
        sink.close(WAIT)
        listener.close()
    assert [r["i"] for _, r in listener.got] == list(range(50))
    assert {topic for topic, _ in listener.got} == {"cameras/gate_1_north/found"}
    assert sink.stats().dropped == 0


def test_mqtt_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with broker(tmp_path, password=True) as b:
        listener = Subscriber(b.port, "us")
        wrong = MqttSink(f"mqtt://us:s3cret-wrong@127.0.0.1:{b.port}")
        wrong.send({"i": 0})
        until(lambda: "refused" in str(wrong.stats().error))
        assert "authori" in str(wrong.stats().error).lower()
        wrong.close(0.1)
        right = MqttSink(f"mqtt://us:s3cret@127.0.0.1:{b.port}")
        assert not any(s in f"{right!r} {right.stats()} {wrong.stats()}" for s in SECRETS)
        right.send({"i": 1})
        monkeypatch.setenv("STREAMDEBLUR_MQTT_USER", "us")
        monkeypatch.setenv("STREAMDEBLUR_MQTT_PASSWORD", "s3cret")
        from_environment = MqttSink(f"mqtt://127.0.0.1:{b.port}")
        until(lambda: len(listener.got) == 1)
        from_environment.send({"i": 2})
        until(lambda: len(listener.got) == 2)
        for sink in (right, from_environment):
            sink.close(WAIT)
            assert sink.stats().sent == 1
        listener.close()
    assert listener.got == [("streamdeblur/detections", {"i": 1}), ("streamdeblur/detections", {"i": 2})]
    assert (wrong.stats().sent, wrong.stats().dropped) == (0, 1)


def test_mqtt_broker_killed_and_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with broker(tmp_path) as b:
        sink = MqttSink(f"mqtt://127.0.0.1:{b.port}/t", queue=5)
        sink.send({"i": 0})
        until(lambda: sink.stats().sent == 1)
        b.stop()
        until(lambda: not sink._connected.is_set())
        for i in range(1, 101):
            sink.send({"i": i})
        assert sink.stats().waiting <= 5 + 20
        b.start()
        listener = Subscriber(b.port)
        until(lambda: sink.stats().waiting == 0)
        sink.send({"i": 101})
        until(lambda: bool(listener.got) and listener.got[-1][1] == {"i": 101})
        sink.close(WAIT)
        listener.close()
    stats = sink.stats()
    assert stats.sent + stats.dropped == 102
    assert stats.dropped >= 75
    assert not stats.down


def test_mqtt_broker_that_stands_still_does_not_hold_the_end(tmp_path: Path) -> None:
    with broker(tmp_path) as b:
        sink = MqttSink(f"mqtt://127.0.0.1:{b.port}/t")
        sink.send({"i": 0})
        until(lambda: sink.stats().sent == 1)
        assert b.process is not None
        b.process.send_signal(signal.SIGSTOP)
        for i in range(1, 30):
            sink.send({"i": i})
        sink.close(0.2)
        assert sink.stats().sent + sink.stats().dropped == 30
        assert sink.stats().dropped >= 1


def test_mqtt_no_broker() -> None:
    sink = MqttSink(f"mqtt://us:s3cret@127.0.0.1:{free_port()}/t")
    sink.send({"i": 0})
    sink.close(0.2)
    assert (sink.stats().sent, sink.stats().dropped) == (0, 1)
