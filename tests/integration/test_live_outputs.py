"""One output by itself: what is handed to it is taken or counted as lost, and what it can't take it says once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from streamdeblur.frames import ColorSpec, Frame, FrameSpec
from streamdeblur.video.live.clock import TIME_BASE
from streamdeblur.video.live.link import SoundStream
from streamdeblur.video.live.reading import template
from streamdeblur.video.pixfmt import LAYOUTS, read_components
from streamdeblur.video.publish import Publisher
from streamdeblur.video.publish_encoder import LiveEncoder
from streamdeblur.video.publish_targets import parse_target
from streamdeblur.video.publish_wire import Out, PublishSettings
from streamdeblur.video.tags import SourceTags, learn
from tests.clips import numbered_picture, write_numbered_clip
from tests.integration.test_live import numbers_in, wait_for
from tests.integration.test_live_sound import write_clip
from tests.rtsp_relay import Relay, free_port

pytestmark = pytest.mark.integration

SIZE, RATE = (160, 64), 12
Handed = tuple[Out, bytes]


class Pictures:
    """Numbered pictures as they leave the encoder, a keyframe a second."""

    def __init__(self) -> None:
        native = self._native(0)
        look = learn(native, path="test", codec="h264", metadata={})
        self.tags: SourceTags = look.tags
        self._color: ColorSpec = look.tags.layout.color(look.matrix, look.full_range)
        self._spec = FrameSpec(*SIZE, self._color)
        self._encoder = LiveEncoder(self._spec, self.tags, Fraction(RATE), TIME_BASE, keyframes=1.0, preset="ultrafast")
        self._count = 0
        self._first = self.more(1)
        self.header = self._encoder.header

    @staticmethod
    def _native(number: int) -> av.VideoFrame:
        return av.VideoFrame.from_ndarray(numbered_picture(number, SIZE), format="rgb24").reformat(format="yuv420p")

    def more(self, count: int) -> list[Handed]:
        """The next packets."""
        made: list[Handed] = []
        for n in range(self._count, self._count + count):
            planes = tuple(p.copy() for p in read_components(self._native(n), LAYOUTS["yuv420p"]))
            packets = self._encoder.encode(Frame(n, n * 90_000 // RATE, TIME_BASE, planes, self._spec))
            made += [(Out(True, p.pts, p.dts, 0, TIME_BASE, p.key, time.time()), p.data) for p in packets]
        self._count += count
        return made

    def all(self, count: int) -> list[Handed]:
        """The first packets."""
        return self._first + self.more(count - 1)


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()


@pytest.fixture
def publisher() -> Iterator[Callable[..., Publisher]]:
    made: list[Publisher] = []

    def make(target: str, **settings: Any) -> Publisher:
        made.append(
            Publisher("gate", parse_target(target), PublishSettings(**({"segment": 0, "reserve": 0} | settings)))
        )
        return made[-1]

    yield make
    for p in made:
        p.close()


def taken(publisher: Publisher, count: int) -> None:
    wait_for(lambda: publisher.status.packets >= count, f"{count} packets; {publisher.status}")


def test_packets_that_an_ended_process_had_not_taken_are_counted(
    pictures: Pictures, publisher: Callable[..., Publisher], tmp_path: Path
) -> None:
    out = publisher(f"{tmp_path}/a.mkv", stall=60)
    out.begin(pictures.header, None)
    for p in pictures.all(RATE):
        out.put(*p)
    taken(out, RATE)
    assert out.pid is not None
    os.kill(out.pid, signal.SIGSTOP)
    for p in pictures.more(RATE):
        out.put(*p)
    wait_for(lambda: len(out._sent) == RATE, "packets on their way")
    os.kill(out.pid, signal.SIGKILL)
    wait_for(lambda: out.status.restarts == 1, "the loss of the process")
    for p in pictures.more(3 * RATE):
        out.put(*p)
        time.sleep(1 / RATE)
    out.close()
    s = out.status
    assert s.packets + s.dropped == 5 * RATE
    assert s.dropped >= RATE
    assert s.packets > RATE


@pytest.mark.parametrize("target", ["rtsp://127.0.0.1:{port}/gate", "{folder}/gone/a.mp4"])
def test_packets_of_an_output_that_is_never_there_are_all_counted(
    pictures: Pictures, publisher: Callable[..., Publisher], tmp_path: Path, target: str
) -> None:
    (tmp_path / "gone").mkdir()
    out = publisher(target.format(port=free_port(), folder=tmp_path))
    (tmp_path / "gone").rmdir()
    out.begin(pictures.header, None)
    for p in pictures.all(3 * RATE):
        out.put(*p)
        time.sleep(0.02)
    wait_for(lambda: out.status.restarts >= 2, "another try")
    for p in pictures.more(2 * RATE):
        out.put(*p)
    out.close()
    assert (out.status.packets, out.status.dropped) == (0, 5 * RATE)


def test_a_sound_that_breaks_an_output_breaks_it_once(
    pictures: Pictures, publisher: Callable[..., Publisher], tmp_path: Path, caplog: Any
) -> None:
    # Matroska opens with AAC that does not tell its configuration, and refuses its packets.
    clip = write_numbered_clip(tmp_path / "in.ts", RATE, SIZE, rate=RATE, audio=True)
    with av.open(str(clip)) as c:
        sound = SoundStream(template(c.streams.audio[0]), "aac")
    out = publisher(f"{tmp_path}/a.mkv")
    out.begin(pictures.header, sound)
    for n, (packet, data) in enumerate(pictures.all(4 * RATE)):
        out.put(packet, data)
        out.put(Out(False, packet.pts + 10, packet.pts + 10, 1920, TIME_BASE, True, 0.0), b"no sound at all" * 9)
        if n == RATE // 2:
            wait_for(lambda: out.status.restarts == 1, "its failure")
            wait_for(lambda: out.status.state == "live", "its return")
    out.close()
    s = out.status
    assert s.restarts == 1
    assert s.packets + s.dropped == 8 * RATE
    assert sum("sound is left out" in r.getMessage() for r in caplog.records) == 1
    (again,) = tmp_path.glob("a-*.mkv")  # the first was cut off at once
    assert numbers_in(again)[-2 * RATE :] == list(range(2 * RATE, 4 * RATE))


def test_a_sound_that_crashes_the_process_of_an_output_does_so_once(
    pictures: Pictures, publisher: Callable[..., Publisher], tmp_path: Path, caplog: Any
) -> None:
    # G.726 without the bits of a sample: FFmpeg's RTP muxer divides by them.
    with av.open(str(write_clip(tmp_path / "in.avi", "g726", 8000))) as c:
        sound = SoundStream(template(c.streams.audio[0]), "aac")
    with Relay() as relay:
        out = publisher(relay.url("out"))
        out.begin(pictures.header, sound)
        for packet, data in pictures.all(RATE):
            out.put(packet, data)
            out.put(Out(False, packet.pts + 10, packet.pts + 10, 1920, TIME_BASE, True, 0.0), bytes(160))
        wait_for(lambda: out.status.restarts == 1 and out.status.state == "live", "its return")
        for packet, data in pictures.more(2 * RATE):
            out.put(packet, data)
        taken(out, RATE)
        out.close()
    assert out.status.restarts == 1
    assert out.status.packets + out.status.dropped == 4 * RATE
    assert sum("sound is left out" in r.getMessage() for r in caplog.records) == 1
