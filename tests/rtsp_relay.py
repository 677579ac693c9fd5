"""An RTSP relay for tests: takes a publisher (ANNOUNCE, RECORD) and serves readers (PLAY), interleaved over TCP.

RFC 2326 as far as FFmpeg speaks it. Runs as a process of its own, so that it can be killed and stopped like a camera:
``python tests/rtsp_relay.py PORT [USER:PASSWORD]`` prints its port, then obeys lines on stdin:

    cut      close the connections of all readers, in mid-GOP
    garbage  send bytes that are no RTP to all readers
    deaf     stop reading from publishers, for ever (a peer that stalls)
    middle   let readers come in from now on where a keyframe has already begun (else: where a picture begins)

``Relay`` starts and torments one.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self


class Stream:
    """What was announced under one path, and who listens."""

    def __init__(self, sdp: bytes) -> None:
        self.sdp = sdp
        self.readers: set[asyncio.StreamWriter] = set()
        self.coming: set[asyncio.StreamWriter] = set()
        self.parts = 0  # RTP packets in a row that hold parts of a keyframe


class Server:
    def __init__(self, credentials: str | None) -> None:
        self.streams: dict[str, Stream] = {}
        self.readers: set[asyncio.StreamWriter] = set()
        self.deaf = False
        self.middle = False
        self.credentials = credentials
        self.sessions = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream: Stream | None = None
        path = ""
        recording = False
        self.sessions += 1
        session = f"{self.sessions:08d}"
        try:
            while first := await reader.read(1):
                if self.deaf and recording:
                    await asyncio.sleep(1e9)
                if first == b"$":
                    head = await reader.readexactly(3)
                    data = await reader.readexactly(int.from_bytes(head[1:], "big"))
                    if recording and stream is not None:
                        self.forward(stream, first + head + data)
                    continue
                request = first + await reader.readuntil(b"\r\n\r\n")
                line, *rest = request.decode("latin-1").split("\r\n")
                method, url = line.split()[:2]
                headers = {k.strip().lower(): v.strip() for k, _, v in (r.partition(":") for r in rest if r)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                base = "/" + url.split("://", 1)[-1].partition("/")[2]
                answer, extra, content = "200 OK", {"Session": session}, b""
                given = headers.get("authorization", "").removeprefix("Basic ")
                if self.credentials and base64.b64decode(given) != self.credentials.encode():
                    answer, extra = "401 Unauthorized", {"WWW-Authenticate": 'Basic realm="test"'}
                elif method == "OPTIONS":
                    extra["Public"] = "OPTIONS, DESCRIBE, ANNOUNCE, SETUP, PLAY, RECORD, TEARDOWN, GET_PARAMETER"
                elif method == "ANNOUNCE":
                    path = base
                    stream = self.streams[path] = Stream(body)
                elif method == "DESCRIBE":
                    path = base.rstrip("/")
                    stream = self.streams.get(path)
                    if stream is None:
                        answer = "404 Not Found"
                    else:
                        content = stream.sdp
                        extra |= {"Content-Type": "application/sdp", "Content-Base": f"{url}/"}
                elif method == "SETUP":
                    transport = headers.get("transport", "")
                    if "TCP" not in transport:
                        answer = "461 Unsupported Transport"
                    extra["Transport"] = transport.split(";mode")[0]
                elif method == "RECORD":
                    recording = True
                elif method == "PLAY" and stream is not None:
                    self.readers.add(writer)
                elif method == "TEARDOWN":
                    recording = False
                extra["CSeq"] = headers.get("cseq", "0")
                if content:
                    extra["Content-Length"] = str(len(content))
                text = f"RTSP/1.0 {answer}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in extra.items()) + "\r\n"
                writer.write(text.encode() + content)
                await writer.drain()
                if method == "PLAY" and stream is not None:
                    stream.coming.add(writer)
                if method == "TEARDOWN":
                    break
        except (asyncio.IncompleteReadError, ConnectionError, ValueError, asyncio.LimitOverrunError):
            pass
        finally:
            if stream is not None:
                stream.readers.discard(writer)
                stream.coming.discard(writer)
                if recording and self.streams.get(path) is stream:
                    del self.streams[path]
                    for other in [*stream.readers, *stream.coming]:
                        other.close()
            self.readers.discard(writer)
            writer.close()

    def forward(self, stream: Stream, data: bytes) -> None:
        if data[1] == 0:
            # Of the first stream. H.264 (RFC 6184): a slice of a keyframe, or a fragment of one.
            key = len(data) > 17 and (data[16] & 31 == 5 or (data[16] & 31 == 28 and data[17] & 31 == 5))
            stream.parts = stream.parts + 1 if key else 0
            if self.middle and stream.parts == 3:
                self.admit(stream)
        for reader in list(stream.readers):
            if reader.transport.get_write_buffer_size() > 1 << 22:
                reader.close()  # too slow: a server lets it go
            else:
                reader.write(data)
        if data[1] == 0 and data[5] & 0x80 and not self.middle:  # the marker: a picture ends here
            self.admit(stream)

    @staticmethod
    def admit(stream: Stream) -> None:
        stream.readers |= stream.coming
        stream.coming.clear()

    def obey(self, word: str) -> None:
        noise = random.Random(0)
        for reader in list(self.readers):
            if word == "cut":
                reader.transport.abort()
            elif word == "garbage":
                reader.write(bytes(noise.randrange(256) for _ in range(5000)))
        if word == "deaf":
            self.deaf = True
        if word == "middle":
            self.middle = True


async def main() -> None:
    server = Server(sys.argv[2] if len(sys.argv) > 2 else None)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", int(sys.argv[1]))
    sys.stdout.write(f"{listening.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def command() -> None:
        line = sys.stdin.readline()
        if line:
            server.obey(line.strip())
        else:
            done.set()

    loop.add_reader(sys.stdin, command)
    await done.wait()


class Relay:
    """A relay process. port: 0 takes a free one, which is kept when it is killed and started again."""

    def __init__(self, credentials: str | None = None, port: int = 0) -> None:
        self.port = port
        self._credentials = credentials
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        words = [sys.executable, __file__, str(self.port), *([self._credentials] if self._credentials else [])]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def url(self, path: str = "camera", credentials: str | None = None) -> str:
        return f"rtsp://{credentials + '@' if credentials else ''}127.0.0.1:{self.port}/{path}"

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGCONT)
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def obey(self, word: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


if __name__ == "__main__":
    asyncio.run(main())
