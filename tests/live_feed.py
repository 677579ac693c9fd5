"""A camera for tests: publishes numbered pictures, or a file, to an RTSP server in real time, for ever.

``python tests/live_feed.py URL WIDTHxHEIGHT RATE FIRST FILE SOUND NUMBERED``. Frame FIRST + n leaves n / RATE seconds
after the start. NUMBERED draws the number into the pictures of a file as well. When the server goes away, it comes back
to it, as cameras do; numbers go on. Prints each try on stdout.
"""

from __future__ import annotations

import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import numpy as np

from tests.clips import BITS, draw_number, numbered_picture


def publish(
    url: str, size: tuple[int, int], rate: int, first: int, file: str | None, sound: bool, numbered: bool
) -> None:
    started = time.monotonic()

    while True:
        try:
            with av.open(url, "w", format="rtsp", options={"rtsp_transport": "tcp"}) as out:
                options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "18"}
                stream: Any = out.add_stream("libx264", rate=rate, options=options)
                stream.width, stream.height = size
                stream.pix_fmt = "yuv420p"
                stream.codec_context.gop_size = rate
                audio: Any = out.add_stream("aac", rate=48000, layout="mono") if sound else None
                heard = 0
                sys.stdout.write("open\n")
                sys.stdout.flush()
                begun: int | None = None
                source = _file(file) if file else None
                while True:
                    n = max(0, round((time.monotonic() - started) * rate))
                    begun = n if begun is None else begun
                    if source is not None:
                        planes = next(source).reformat(format="yuv420p").to_ndarray()
                        if numbered:
                            draw_number(planes[: size[1]], (first + n) % (1 << BITS))  # luma is all that is read
                        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
                    else:
                        frame = av.VideoFrame.from_ndarray(
                            numbered_picture((first + n) % (1 << BITS), size), format="rgb24"
                        ).reformat(format="yuv420p")
                    frame.pts, frame.time_base = n - begun, Fraction(1, rate)
                    out.mux(stream.encode(frame))
                    while audio is not None and heard * rate < (n - begun) * 48000:
                        wave = 0.2 * np.sin((heard + np.arange(1024)) * (2 * np.pi * 440 / 48000))
                        chunk = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
                        chunk.sample_rate, chunk.pts, chunk.time_base = 48000, heard, Fraction(1, 48000)
                        out.mux(audio.encode(chunk))
                        heard += 1024
                    time.sleep(max(0.0, (n + 1) / rate - (time.monotonic() - started)))
        except (OSError, av.error.FFmpegError) as e:
            sys.stdout.write(f"{type(e).__name__}\n")
            sys.stdout.flush()
            time.sleep(0.2)


def _file(path: str) -> Any:
    while True:
        with av.open(path) as container:
            yield from container.decode(video=0)


class Feed:
    """A camera process, publishing to ``url``."""

    def __init__(
        self,
        url: str,
        size: tuple[int, int] = (320, 240),
        rate: int = 25,
        first: int = 0,
        file: str = "",
        sound: bool = False,
        numbered: bool = False,
    ) -> None:
        words = [
            sys.executable,
            __file__,
            url,
            f"{size[0]}x{size[1]}",
            str(rate),
            str(first),
            file,
            "1" if sound else "",
            "1" if numbered else "",
        ]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        while self._process.stdout.readline().strip() != "open":
            assert self._process.poll() is None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


if __name__ == "__main__":
    width, height = sys.argv[2].split("x")
    publish(
        sys.argv[1],
        (int(width), int(height)),
        int(sys.argv[3]),
        int(sys.argv[4]),
        sys.argv[5] or None,
        bool(sys.argv[6]),
        bool(sys.argv[7]),
    )
