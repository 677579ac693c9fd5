"""MQTT 3.1.1, through paho-mqtt 2."""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from typing import Any

from streamdeblur.detect.sinks.base import QUEUE, Record, Refused, Sink, encode
from streamdeblur.detect.sinks.urls import parse_address
from streamdeblur.errors import StreamdeblurError, UsageError

log = logging.getLogger(__name__)

#: Environment variables with credentials, for addresses that hold none.
USER, PASSWORD = "STREAMDEBLUR_MQTT_USER", "STREAMDEBLUR_MQTT_PASSWORD"
TOPIC = "streamdeblur/detections"
#: Seconds between attempts to connect: the first and the longest (doubling).
_RECONNECT = (1, 30)
#: Seconds to wait for a connection, and for a broker's acknowledgement, before the sink counts as down.
_CONNECT, _ACKNOWLEDGE = 5.0, 10.0
#: Seconds of silence after which client and broker ask whether the other is there.
_KEEP_ALIVE = 10


class MqttSink(Sink):
    """Publishes each record as one message.

    url: ``mqtt://[USER:PASSWORD@]HOST[:1883]/TOPIC[?qos=0|1|2&retain=0|1]``, ``mqtts`` for TLS (port 8883, the system's
    certificates). Credentials that are not in it come from STREAMDEBLUR_MQTT_USER and STREAMDEBLUR_MQTT_PASSWORD.
    ``{source}`` in the topic stands for the record's source. Quality of service is 1 by default: a record counts as
    sent when the broker has acknowledged it, and may arrive twice around a lost connection. The connection comes back
    by itself, for ever.
    Raises UsageError for an address or topic that can't be used, and where paho-mqtt is missing.
    """

    def __init__(self, url: str, *, queue: int = QUEUE) -> None:
        address = parse_address(url, "MQTT broker", {"mqtt": 1883, "mqtts": 8883})
        super().__init__(f"MQTT broker {address.shown}", batch=20, queue=queue)
        try:
            import paho.mqtt.client as paho
            from paho.mqtt.enums import CallbackAPIVersion
        except ImportError as e:
            raise UsageError("MQTT needs paho-mqtt", "pip install 'streamdeblur[detect]'") from e
        self._topic = address.path.removeprefix("/") or TOPIC
        if re.search(r"[+#\0]", self._topic):
            raise UsageError(f"topic {self._topic!r} can't be published to", "it must not hold + or #")
        self._qos = _number(address.query, "qos", 1, 2)
        self._retain = bool(_number(address.query, "retain", 0, 1))
        self._place = (address.host, address.port)
        self._success = paho.MQTT_ERR_SUCCESS
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"streamdeblur-{secrets.token_hex(6)}")
        user, password = address.user, address.password
        if user is None:
            user, password = os.environ.get(USER), os.environ.get(PASSWORD)
        if user:
            client.username_pw_set(user, password)
        if address.scheme == "mqtts":
            client.tls_set()
        client.reconnect_delay_set(*_RECONNECT)
        client.connect_timeout = _CONNECT
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_connect_fail = self._on_connect_fail
        client.on_publish = self._on_publish
        self._client = client
        self._connected = threading.Event()
        self._changed_ids = threading.Condition()
        self._acknowledged: set[int] = set()
        self._why = "no connection"
        self.start()

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._why = f"the broker refused: {reason}"
        else:
            self._connected.set()

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._connected.is_set():  # else it is the end of a refused attempt, whose reason is known better
            self._why = "the connection was lost"
        self._connected.clear()

    def _on_connect_fail(self, client: Any, userdata: Any) -> None:
        self._why = "no connection"

    def _open(self) -> None:
        self._client.connect_async(*self._place, keepalive=_KEEP_ALIVE)
        self._client.loop_start()

    def _deliver(self, records: list[Record]) -> None:
        self._wait(self._connected.is_set, _CONNECT)
        with self._changed_ids:
            self._acknowledged.clear()
        # Without the lock: the client calls _on_publish with a lock of its own held that publish takes.
        messages = [
            self._client.publish(_topic(self._topic, r), encode(r).encode(), self._qos, self._retain) for r in records
        ]
        ids = {m.mid for m in messages if self._qos or m.rc == self._success}
        lost = len(records) - len(ids)
        # What is not acknowledged when the connection is lost is sent again by the client, but not with QoS 0.
        until, told = time.monotonic() + _ACKNOWLEDGE, False
        while True:
            with self._changed_ids:
                if self._changed_ids.wait_for(lambda: ids <= self._acknowledged, 0.1):
                    break
                late = time.monotonic() > until or not self._connected.is_set()
                if self._abandoned.is_set() or (late and not self._qos):
                    raise Refused(self._why, lost=lost + len(ids - self._acknowledged))
            if late and not told:
                told = True
                self._failed(StreamdeblurError("no acknowledgement" if self._connected.is_set() else self._why), 0)
        if lost:
            raise Refused(self._why, lost=lost)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason: Any, properties: Any) -> None:
        with self._changed_ids:
            self._acknowledged.add(mid)
            self._changed_ids.notify_all()

    def _wait(self, ready: Any, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > until or self._abandoned.wait(0.02):
                raise StreamdeblurError(self._why)

    def _shut(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def _topic(pattern: str, record: Record) -> str:
    if "{source}" not in pattern:
        return pattern
    return pattern.replace("{source}", re.sub(r"[^\w.-]+", "_", str(record.get("source", ""))) or "_")


def _number(query: dict[str, str], key: str, default: int, most: int) -> int:
    word = query.get(key, str(default))
    if not (word.isdecimal() and int(word) <= most):
        raise UsageError(f"{key} {word!r} in the address of the MQTT broker is not known", f"give 0 to {most}")
    return int(word)
