"""What a publisher and its process say to each other, over a ``live.link``."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from streamdeblur.video.live.link import SoundStream
from streamdeblur.video.publish_targets import Target


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """segment: seconds a file, cut at the next keyframe; 0 for a single one. hls_time: seconds a segment.
    hls_window: segments in the playlist. transport: of RTSP. reserve: bytes that must stay free on a disk.
    stall: seconds that an output may hold up a packet. queue: packets that wait for an output at most."""

    segment: float = 600.0
    hls_time: float = 2.0
    hls_window: int = 6
    transport: str = "tcp"
    reserve: int = 64 << 20
    stall: float = 5.0
    queue: int = 512


@dataclass(frozen=True, slots=True)
class Begin:
    """Open the output anew with these streams. video: ``reading.template``. turn: how players shall turn the pictures,
    as ``SourceTags.display_matrix``."""

    target: Target
    settings: PublishSettings
    video: bytes
    sound: SoundStream | None
    turn: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Out:
    """A packet; its bytes are the payload. pts, dts, duration: ticks of ``time_base``. wall: seconds since 1970 of the
    frame, 0 for sound."""

    video: bool
    pts: int
    dts: int
    duration: int
    time_base: Fraction
    key: bool
    wall: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Close the output in order."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The output takes packets. A file is begun by the first of them."""


@dataclass(frozen=True, slots=True)
class Taken:
    """``count`` packets more were muxed."""

    count: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A file or segment is complete under this name."""

    path: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The output broke; packets are dropped until the next ``Begin``. kind: "disk full" or "broken". sound: it may have
    been the sound."""

    kind: str
    text: str
    sound: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The output is closed in order."""
