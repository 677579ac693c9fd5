"""What a stream says of its picture, learnt from the first decoded frame: layout, colour, geometry, HDR metadata.

The truth is in the frames and not in the header, which may be silent or wrong.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import av
from av.dictionary import Dictionary
from av.sidedata.sidedata import Type as SideDataType

from streamdeblur.frames import FieldOrder
from streamdeblur.video.hdr import ContentLight, MasteringDisplay, parse_content_light, parse_mastering_display
from streamdeblur.video.pixfmt import LAYOUTS, Layout, nearest

log = logging.getLogger(__name__)

# ITU-T H.273 MatrixCoefficients, as FFmpeg numbers them (AVColorSpace).
_MATRIX_BY_CODE = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
_UNSPECIFIED = 2
# AVFieldOrder: 2 TT, 3 BB, 4 TB (stored top first, shown bottom first), 5 BT.
_FIELD_ORDER: dict[int, FieldOrder] = {2: "tff", 3: "bff", 4: "bff", 5: "tff"}
_STILL = (65536, 0, 0, 65536)
#: Side data that no encoder here takes, and its name for the reader.
_LOST = {
    "DYNAMIC_HDR_PLUS": "HDR10+ dynamic metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "AMBIENT_VIEWING_ENVIRONMENT": "ambient viewing environment",
}


@dataclass(frozen=True, slots=True)
class SourceTags:
    """What the encoder and the muxer must be told about the picture; codes as in ITU-T H.273 (2 is unspecified)."""

    pix_fmt: str
    layout: Layout
    matrix: int
    primaries: int
    transfer: int
    color_range: int
    display_matrix: tuple[int, ...] | None
    mastering: MasteringDisplay | None
    light: ContentLight | None
    lost: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """The tags, and what they come to: the key of ``frames.MATRICES`` and the range that the codes have."""

    tags: SourceTags
    matrix: str
    full_range: bool


def guess_matrix(code: int, height: int) -> str:
    """The key of ``frames.MATRICES`` for an H.273 code; unspecified is BT.709 from 720 lines on, else BT.601."""
    if code in _MATRIX_BY_CODE:
        return _MATRIX_BY_CODE[code]
    if code == _UNSPECIFIED or code == 0:
        return "bt709" if height >= 720 else "bt601"
    return "bt709"


def learn(native: av.VideoFrame, *, path: str, codec: str, metadata: Mapping[str, str]) -> Look:
    """Format, colour and tags of a stream from its first frame; warns of what is converted, left out or unknown.

    path, codec, metadata: the file, the name of the stream's decoder and the stream's metadata.
    """
    name = native.format.name
    layout = LAYOUTS.get(name)
    if layout is None:
        f = native.format
        bits = max(c.bits for c in f.components)
        layout = LAYOUTS[nearest(name, is_rgb=f.is_rgb, bits=bits, components=len(f.components))]
        log.warning("%s: pixel format %s is converted to %s", path, name, layout.name)
    if not layout.alpha and any(k.lower() == "alpha_mode" and v == "1" for k, v in metadata.items()):
        log.warning("%s: its alpha plane is left out: FFmpeg's %s decoder reads none", path, codec)
    code = native.colorspace
    if layout.model == "yuv" and code not in _MATRIX_BY_CODE and code not in (0, _UNSPECIFIED):
        log.warning("%s: colour matrix %d (H.273) is unknown here; corrections use BT.709", path, code)
    tagged = native.color_range
    if layout.full_range is not None:
        full = layout.full_range
    elif tagged in (1, 2):
        full = tagged == 2
    else:
        full = layout.model == "gray"  # untagged gray is full range to FFmpeg's own scaler as well
    side = _side_data(native)
    display = side.get("DISPLAYMATRIX")
    mastering = side.get("MASTERING_DISPLAY_METADATA")
    light = side.get("CONTENT_LIGHT_LEVEL")
    tags = SourceTags(
        pix_fmt=name,
        layout=layout,
        matrix=code,
        primaries=native.color_primaries,
        transfer=native.color_trc,
        color_range=2 if full and layout.full_range and layout.model != "rgb" else tagged,
        display_matrix=struct.unpack_from("=9i", display) if display is not None and len(display) >= 36 else None,
        mastering=parse_mastering_display(mastering) if mastering is not None else None,
        light=parse_content_light(light) if light is not None else None,
        lost=tuple(text for key, text in _LOST.items() if key in side),
    )
    return Look(tags, guess_matrix(code, native.height), full)


def same_turn(x: tuple[int, ...] | None, y: tuple[int, ...] | None) -> bool:
    """Equal rotations and flips. The translation only brings the turned picture back to the origin."""

    def turn(m: tuple[int, ...] | None) -> tuple[int, ...]:
        return _STILL if m is None else (m[0], m[1], m[3], m[4])

    return all(abs(a - b) <= 2 for a, b in zip(turn(x), turn(y), strict=True))  # Matroska keeps angles


def field_order(native: av.VideoFrame, code: int) -> FieldOrder:
    """The field order of a frame; ``code`` is the AVFieldOrder of its stream."""
    if not native.interlaced_frame:
        return "progressive"
    # Unknown order: 525-line DV is bottom first by its standard, everything else is top first in practice.
    return _FIELD_ORDER.get(code) or ("bff" if native.height == 480 else "tff")


def _side_data(native: av.VideoFrame) -> dict[str, bytes]:
    """Side data of a frame by the name of its type."""
    blocks: Any = native.side_data  # PyAV's own types have it as a mapping of str
    found: dict[str, bytes] = {}
    for block in blocks:
        for owned in gc.get_referents(block):
            if isinstance(owned, Dictionary) and len(owned):
                # PyAV 18 frees the name of an ICC profile twice, with this wrapper and with the frame, and the process
                # crashes later. A wrapper that is never freed costs a few bytes a file.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(owned))
        found[block.type.name] = bytes(block)
    return found


def _unknown_side_data(kind: type[Enum], value: object) -> Enum:
    """A member for a type of side data that PyAV has no name for (31, the EXIF data of a camera's picture)."""
    member = object.__new__(kind)
    member._name_, member._value_ = f"UNKNOWN_{value}", value
    return member


# Without it PyAV raises while it collects the blocks, and the rotation among them is lost.
SideDataType._missing_ = classmethod(_unknown_side_data)  # type: ignore[assignment, method-assign]
