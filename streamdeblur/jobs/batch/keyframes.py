"""Keyframes at which a stream can be cut, by proof from the bitstream: nothing behind them refers to anything before.

FFmpeg calls more packets keyframes than a decoder can start at without loss: recovery points of H.264, CRA pictures of
HEVC, hidden key frames of VP9 and AV1. What is not known to be closed is no place to cut.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Codecs without reference to another frame.
INTRA = frozenset(
    (
        *("mjpeg", "ljpeg", "prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "png"),
        *("jpeg2000", "v210", "dvvideo", "cfhd", "magicyuv", "qoi"),
    )
)


def is_closed(codec: str, data: bytes, configuration: bytes) -> bool:
    """True when a keyframe packet of ``codec`` (FFmpeg's name) is a place where decoding can start afresh.

    configuration: the codec's extradata, which tells how H.264 and HEVC are framed.
    """
    if codec in INTRA:
        return True
    if not data:
        return False
    if codec == "h264":
        # ITU-T H.264, table 7-1: 5 is a slice of an IDR picture, 1 to 4 slices of others.
        kinds = {unit[0] & 31 for unit in _units(data, _length_size(configuration, 4))}
        return 5 in kinds and not kinds & {1, 2, 3, 4}
    if codec == "hevc":
        # ITU-T H.265, table 7-1: 19 and 20 are IDR; all below 32 are slices.
        slices = {kind for unit in _units(data, _length_size(configuration, 21)) if (kind := unit[0] >> 1 & 63) < 32}
        return bool(slices) and slices <= {19, 20}
    if codec == "mpeg2video":
        # ITU-T H.262, 6.2.2.6: after 25 bits of time code comes closed_gop.
        at = data.find(b"\0\0\1\xb8")
        return 0 <= at <= len(data) - 8 and bool(data[at + 7] & 0x40)
    if codec == "vp8":
        return not data[0] & 1 and bool(data[0] & 0x10)  # RFC 6386, 9.1
    if codec == "vp9":
        # Uncompressed header: marker 10, profile below 3, not show_existing_frame, key frame, show_frame.
        return data[0] >> 6 == 2 and data[0] & 0x30 != 0x30 and data[0] & 0x0E == 0x02
    if codec == "av1":
        return _av1_key(data)
    return False


def _length_size(configuration: bytes, offset: int) -> int:
    """Bytes of a NAL unit's length (ISO/IEC 14496-15), 0 for start codes."""
    framed = len(configuration) > offset and configuration[0] == 1
    return (configuration[offset] & 3) + 1 if framed else 0


def _units(data: bytes, width: int) -> Iterator[bytes]:
    if width:
        position = 0
        while position + width < len(data):
            length = int.from_bytes(data[position : position + width], "big")
            if length:
                yield data[position + width : position + width + 2]
            position += width + length
        return
    at = data.find(b"\0\0\1")
    while at >= 0 and at + 3 < len(data):
        yield data[at + 3 : at + 5]
        at = data.find(b"\0\0\1", at + 3)


def _av1_key(data: bytes) -> bool:
    """The first frame header of a temporal unit is of a key frame that is shown (AV1 specification, 5.9.2)."""
    position = 0
    while position < len(data):
        head = data[position]
        kind, extended, sized = head >> 3 & 15, head & 4, head & 2
        position += 2 if extended else 1
        length = len(data) - position
        if sized:
            length = shift = 0
            while position < len(data):
                byte = data[position]
                position += 1
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        if kind in (3, 6) and position < len(data):
            return data[position] & 0xF0 == 0x10
        position += length
    return False
