"""The sound of a source as every container takes it: without ADTS headers, its configuration in the stream's header.

AAC in MPEG-TS carries its configuration in front of every packet (ADTS: ISO/IEC 14496-3, 1.A.3.2); MP4 and RTSP want it
once, in the header. It is known from the first packet on, so a reader looks ahead to that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import av
import av.error
from av.bitstream import BitStreamFilterContext

from streamdeblur.video.packets import without_adts

log = logging.getLogger(__name__)

#: Packets, and seconds of a source that is no recording, within which the first sound has to come.
_AHEAD, _PATIENCE = 500, 2.0


def has_adts(stream: Any) -> bool:
    """Whether a stream is AAC whose configuration is in its packets alone."""
    context = stream.codec_context
    return context.codec.canonical_name == "aac" and not context.extradata


def configuration(stream: Any, data: bytes) -> bytes:
    """The AudioSpecificConfig of a stream from a packet with an ADTS header; empty where there is none."""
    try:
        # A filter of its own for each: one that has found a configuration tells it no second time.
        for packet in BitStreamFilterContext("aac_adtstoasc", in_stream=stream).filter(av.Packet(data)):
            if packet.has_sidedata("new_extradata"):
                return bytes(packet.get_sidedata("new_extradata"))
    except (av.error.FFmpegError, ValueError) as e:
        log.debug("no ADTS header in a packet of AAC: %s", e)
    return b""


def look_ahead(
    packets: Iterator[av.Packet[Any]], sound: Any, stopping: Callable[[], bool]
) -> tuple[bytes, Iterator[av.Packet[Any]]]:
    """(configuration, packets) of a source whose sound ``has_adts``: all packets, those looked at among them.

    The configuration is empty where no sound came in time.
    """
    seen: list[av.Packet[Any]] = []
    limit = time.monotonic() + _PATIENCE
    found = b""
    for packet in packets:
        seen.append(packet)
        if packet.size and packet.stream.index == sound.index:
            found = configuration(sound, bytes(packet))
        if found or len(seen) >= _AHEAD or time.monotonic() > limit or stopping():
            break
    return found, chain(seen, packets)


__all__ = ["configuration", "has_adts", "look_ahead", "without_adts"]
