"""HDR10 static metadata: from FFmpeg's frame side data to x265's parameters.

Layouts: ``AVMasteringDisplayMetadata`` and ``AVContentLightMetadata`` of ``libavutil/mastering_display_metadata.h``;
x265's ``--master-display`` wants SMPTE ST 2086 units (0.00002 for chromaticity, 0.0001 cd/m2 for luminance).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MasteringDisplay:
    """SMPTE ST 2086: chromaticities of red, green, blue and white in 1/50000, luminances in 1/10000 cd/m2."""

    red: tuple[int, int]
    green: tuple[int, int]
    blue: tuple[int, int]
    white: tuple[int, int]
    min_luminance: int
    max_luminance: int

    def x265(self) -> str:
        """The value of x265's ``master-display``."""
        g, b, r, w = self.green, self.blue, self.red, self.white
        return (
            f"G({g[0]},{g[1]})B({b[0]},{b[1]})R({r[0]},{r[1]})WP({w[0]},{w[1]})"
            f"L({self.max_luminance},{self.min_luminance})"
        )


@dataclass(frozen=True, slots=True)
class ContentLight:
    """CTA-861.3: maximum content light level and maximum frame-average light level, cd/m2."""

    max_cll: int
    max_fall: int

    def x265(self) -> str:
        """The value of x265's ``max-cll``."""
        return f"{self.max_cll},{self.max_fall}"


def parse_mastering_display(data: bytes) -> MasteringDisplay | None:
    """None when the block is too short or says that it has neither primaries nor luminance.

    One flag is enough: FFmpeg clears the luminance flag of a block whose values contradict each other, yet the values
    are the source's own, and passing them on changes nothing.
    """
    size = struct.calcsize("=22i")
    if len(data) < size:
        return None
    values = struct.unpack_from("=22i", data)
    has_primaries, has_luminance = values[20:22]
    if not (has_primaries or has_luminance):
        return None

    def scaled(i: int, unit: int) -> int:
        num, den = values[2 * i], values[2 * i + 1]
        return 0 if den == 0 else round(num * unit / den)

    # display_primaries[3][2] (red, green, blue), white_point[2], min_luminance, max_luminance
    xy = [(scaled(2 * i, 50000), scaled(2 * i + 1, 50000)) for i in range(4)]
    return MasteringDisplay(xy[0], xy[1], xy[2], xy[3], scaled(8, 10000), scaled(9, 10000))


def parse_content_light(data: bytes) -> ContentLight | None:
    """None when the block is too short or both values are 0 (unknown)."""
    if len(data) < 8:
        return None
    cll, fall = struct.unpack_from("=2I", data)
    return ContentLight(cll, fall) if cll or fall else None
