"""Vocabulary: what travels between the rooms. NumPy only; no torch, no av, no ray.

A frame is a set of *component planes* at the source's own bit depth and chroma grid. Packed layouts (NV12, RGB24,
P010) are the decoder's business: by the time a frame has this type, every component is an array of its own (possibly a
strided view) that holds plain code values, least significant bit at bit 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
ColorModel = Literal["yuv", "rgb", "gray"]
FieldOrder = Literal["progressive", "tff", "bff"]

#: (Kr, Kb) of the luma equations. ITU-R BT.601-7 2.5.1, BT.709-6 3.2, BT.2020-2 table 4 (non-constant luminance),
#: SMPTE ST 240M, FCC Title 47 73.682.
MATRICES: dict[str, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "smpte240m": (0.212, 0.087),
    "fcc": (0.30, 0.11),
}


@dataclass(frozen=True, slots=True)
class ColorSpec:
    """How code values of the planes relate to R'G'B' in [0, 1].

    model: "yuv" (planes Y, Cb, Cr), "rgb" (R, G, B), "gray" (Y); with ``alpha`` one more plane at the end.
    matrix: a key of MATRICES; matters for "yuv" only.
    full_range: 0..2^depth-1 if true, else ITU-R limited range (16..235 and 16..240, times 2^(depth-8)).
    depth: significant bits of a code value, 8 to 16; 8 means uint8 planes, more means uint16.
    chroma_shift: log2 of the chroma subsampling (horizontal, vertical): (1, 1) is 4:2:0, (0, 0) 4:4:4.
    """

    model: ColorModel
    matrix: str = "bt709"
    full_range: bool = False
    depth: int = 8
    chroma_shift: tuple[int, int] = (0, 0)
    alpha: bool = False

    def __post_init__(self) -> None:
        if self.matrix not in MATRICES:
            raise ValueError(f"matrix {self.matrix!r} is not one of {', '.join(MATRICES)}")
        if not 8 <= self.depth <= 16:
            raise ValueError(f"depth {self.depth} is not in 8..16")
        if self.model != "yuv" and self.chroma_shift != (0, 0):
            raise ValueError(f"{self.model} has no subsampled planes")

    @property
    def color_planes(self) -> int:
        """Planes that carry colour; alpha, if any, comes after them."""
        return 1 if self.model == "gray" else 3

    @property
    def max_code(self) -> int:
        return (1 << self.depth) - 1

    def plane_shapes(self, width: int, height: int) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of every plane, alpha included; odd sizes round up, as in every codec."""
        sx, sy = self.chroma_shift
        luma = (height, width)
        chroma = (-(-height >> sy), -(-width >> sx))
        shapes = [luma] if self.model == "gray" else [luma, chroma, chroma]
        return tuple(shapes + [luma] if self.alpha else shapes)


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """Size, colour and field order of a frame. Sizes in pixels."""

    width: int
    height: int
    color: ColorSpec
    field_order: FieldOrder = "progressive"


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture.

    index: position in decoding order of output, 0-based, no holes: the only thing order is made from.
    pts: presentation time in ``time_base`` units, or None where the container has none.
    planes: one (rows, columns) uint8 or uint16 array a component, in the order of ``ColorSpec``; may be read-only.
    """

    index: int
    pts: int | None
    time_base: Fraction
    planes: tuple[Array, ...]
    spec: FrameSpec

    def __post_init__(self) -> None:
        shapes = self.spec.color.plane_shapes(self.spec.width, self.spec.height)
        got = tuple(p.shape for p in self.planes)
        if got != shapes:
            raise ValueError(f"planes {got} do not fit {self.spec}: expected {shapes}")
        want = np.dtype(np.uint8 if self.spec.color.depth == 8 else np.uint16)
        for p in self.planes:
            if p.dtype != want:
                raise ValueError(f"plane of {p.dtype} in a {self.spec.color.depth}-bit frame: expected {want}")

    @property
    def time(self) -> float | None:
        """Seconds, or None."""
        return None if self.pts is None else float(self.pts * self.time_base)

    def __repr__(self) -> str:  # shapes, not pixels
        c = self.spec.color
        return (
            f"Frame(index={self.index}, pts={self.pts}, time_base={self.time_base}, "
            f"{self.spec.width}x{self.spec.height} {c.model} {c.depth}-bit {c.chroma_shift})"
        )


@dataclass(frozen=True, slots=True)
class Gap:
    """Stands in the place of a frame, or of its correction, that could not be made."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What is known of a video before its frames are read.

    frames: the container's own count, 0 where it does not say (Matroska, TS). duration: seconds, or None.
    average_rate: frames a second, or None; never used for timing.
    """

    width: int
    height: int
    time_base: Fraction
    average_rate: Fraction | None
    frames: int
    duration: float | None
    codec: str
    pix_fmt: str
    color: ColorSpec
    sample_aspect_ratio: Fraction | None = None
    rotation: int = 0
    field_order: FieldOrder = "progressive"
    metadata: dict[str, str] = field(default_factory=dict)


def correction_dtype(depth: int) -> np.dtype[Any]:
    """int16 holds every correction of planes up to 14 bit; 16-bit planes need int32."""
    return np.dtype(np.int16 if depth <= 14 else np.int32)


def apply_correction(frame: Frame, corrections: Sequence[Array]) -> Frame:
    """Add integer plane corrections to a frame; what leaves 0..2^depth-1 is clipped to it.

    corrections: one array a colour plane, same shape as the plane, in code values. Alpha is passed untouched.
    Returns a new frame with planes of its own; the given one is not written to. Thread-safe.
    """
    count = frame.spec.color.color_planes
    if len(corrections) != count:
        raise ValueError(f"{len(corrections)} corrections for {count} colour planes")
    top = frame.spec.color.max_code
    planes = []
    for plane, c in zip(frame.planes, corrections, strict=False):
        if c.shape != plane.shape:
            raise ValueError(f"correction of {c.shape} for a plane of {plane.shape}")
        total = plane.astype(np.int32)
        total += c
        np.clip(total, 0, top, out=total)
        planes.append(total.astype(plane.dtype))
    return Frame(frame.index, frame.pts, frame.time_base, (*planes, *frame.planes[count:]), frame.spec)
