"""What the process of a source and its parent say to each other, over a ``link``."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from streamdeblur.frames import Array, FrameSpec
from streamdeblur.video.live.link import SoundStream
from streamdeblur.video.tags import SourceTags

# --- from the parent to a source's child -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenSource:
    """Open and read until it ends. timeout: seconds without data after which FFmpeg should give up (µs to it).

    transport: of RTSP. loop: begin a file anew at its end. audio: hand on the first sound stream.
    """

    url: str
    transport: str
    timeout: float
    loop: bool
    audio: bool


# --- from a source's child to the parent -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Opened:
    """codec: of the pictures. rate: frames a second as the source says, or None."""

    codec: str
    rate: Fraction | None
    sound: SoundStream | None


@dataclass(frozen=True, slots=True)
class Picture:
    """The frames from here on: their geometry and colour, and what an encoder must be told."""

    spec: FrameSpec
    tags: SourceTags


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame; its planes are the payload. arrival: ``time.monotonic`` (one clock for all processes) of its packet."""

    pts: int | None
    time_base: Fraction
    arrival: float


@dataclass(frozen=True, slots=True)
class Sound:
    """A packet of the sound stream; its bytes are the payload."""

    pts: int
    duration: int
    time_base: Fraction


@dataclass(frozen=True, slots=True)
class NewClock:
    """Timestamps start anew from here: a recording begins again."""


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Packets that the decoder refused, or frames it calls corrupt, since the last such message."""

    count: int


@dataclass(frozen=True, slots=True)
class Over:
    """Reading ended. kind: "finished" for a recording at its end, else what broke: see ``reading.KINDS``."""

    kind: str
    text: str


def planes_of(data: bytearray, spec: FrameSpec) -> tuple[Array, ...]:
    """Component planes that lie one after the other in ``data``."""
    dtype = np.dtype(np.uint8 if spec.color.depth == 8 else np.uint16)
    planes = []
    position = 0
    for rows, columns in spec.color.plane_shapes(spec.width, spec.height):
        count = rows * columns
        planes.append(np.frombuffer(data, dtype, count, position).reshape(rows, columns))
        position += count * dtype.itemsize
    return tuple(planes)
