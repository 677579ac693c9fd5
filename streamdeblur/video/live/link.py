"""How a child process and its parent talk: pickled headers, raw payloads behind them, over a socket.

Both ends are ours and of one version. A payload is bytes that need no pickling: planes of a frame, a packet. Over a
Unix socket a 1080p frame costs one copy on each side, as a ring in shared memory would (the parent has to free the
slot), and nothing is left behind when either end is killed. What a source's process says is in ``wire``, what an
output's says in ``video.publish_wire``; what both say is here.
"""

from __future__ import annotations

import pickle
import select
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_HEAD = struct.Struct("<IQ")
#: Bytes that may be under way. A few frames, so that a burst does not hold up the decoder.
_BUFFER = 4 << 20


class Link:
    """Framed messages over a stream socket. One thread may send while another receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def send(self, message: object, payload: Sequence[memoryview | bytes] = (), timeout: float | None = None) -> None:
        """Raises TimeoutError after ``timeout`` seconds without room (the link is of no use then), OSError when the
        other end has gone."""
        header = pickle.dumps(message, protocol=5)
        size = sum(len(p) for p in payload)
        self._socket.settimeout(timeout)
        self._socket.sendall(_HEAD.pack(len(header), size) + header)
        for part in payload:
            self._socket.sendall(part)

    def ready(self, timeout: float) -> bool:
        """Whether a message, or the end, can be received within ``timeout`` seconds."""
        return bool(self._poll.poll(max(0.0, timeout) * 1000))

    def receive(self, timeout: float | None = None) -> tuple[Any, bytearray]:
        """The next message and its payload. Raises EOFError at the end, TimeoutError in mid-message."""
        self._socket.settimeout(timeout)
        head = self._exactly(_HEAD.size)
        length, size = _HEAD.unpack(head)
        message = pickle.loads(self._exactly(length))
        return message, self._exactly(size)

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view.nbytes:
            try:
                count = self._socket.recv_into(view)
            except ConnectionResetError:
                count = 0
            if count == 0:
                raise EOFError("the other end of the link has gone")
            view = view[count:]
        return data

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log. level: of ``logging``."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class SoundStream:
    """header: ``reading.template`` of the stream. codec: its name."""

    header: bytes
    codec: str
