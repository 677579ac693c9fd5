"""The segments of a file joined to the result: their packets as they are, and everything else of the source.

The writer is that of the main job, with its header, streams, tags and chapters; only the pictures come from segments
instead of the encoder. Decoding times are made anew over the whole file, as one encoder would have: the sorted
presentation times, late by the deepest reordering of any segment.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error

from streamdeblur.config import ProcessOptions
from streamdeblur.jobs.batch.packet_file import EncodedPacket, PacketHeader, read_header, read_packets
from streamdeblur.jobs.batch.segments import Uncuttable, look_of, request_for
from streamdeblur.jobs.run import open_ledger as _ledger
from streamdeblur.jobs.run import open_source
from streamdeblur.runtime.ledger import FrameRecord, Ledger, read_ledger
from streamdeblur.video.encoders import EncoderRequest
from streamdeblur.video.opening import open_container
from streamdeblur.video.reader import CopyPacket, VideoReader
from streamdeblur.video.writer import VideoWriter


class JoinWriter(VideoWriter):
    """A writer whose pictures are encoded already."""

    def __init__(self, path: Path, reader: VideoReader, request: EncoderRequest, header: PacketHeader) -> None:
        super().__init__(path, reader, request)
        try:
            self._start()
            mine = (self.choice.codec, self.choice.layout.name, self.choice.options)
            if mine != (header.codec, header.pix_fmt, header.options) or look_of(reader) != header.look:
                raise Uncuttable(f"segments of {reader.path} are not encoded as the whole would be here")
            if bytes(self._video.codec_context.extradata or b"").hex() != header.extradata:
                raise Uncuttable(f"segments of {reader.path} have other codec headers than the whole")
        except BaseException:
            self.abort()
            raise

    def add(self, p: EncodedPacket, dts: int) -> None:
        """Mux an encoded picture, in coding order."""
        packet: av.Packet[Any] = av.Packet(p.data)
        packet.pts, packet.dts, packet.duration = p.pts, dts, p.duration
        packet.time_base = self._time_base
        packet.is_keyframe = p.key
        packet.stream = self._video
        self._mux(packet)
        self.frames_written += 1

    def begin_at(self, stamps: Sequence[int]) -> None:
        """The first timestamps in order of display, for what the writer says of losses."""
        self._first_stamps = list(stamps[:2])


def join_segments(
    source: str,
    target: Path,
    options: ProcessOptions,
    preset: str,
    packets: Sequence[Path],
    ledgers: Sequence[Path],
    final: str | None = None,
    step: Callable[[], None] = lambda: None,
) -> tuple[Ledger, tuple[str, ...], tuple[str, ...], str]:
    """Write ``target`` (NAME.partial, synced, renamed) and the ledger that ``options`` names.

    preset: the encoder's, as the segments have it. final: where ``target`` goes in the end, for the ledger. step:
    called for every packet of the pictures. Returns the ledger with its counts, the labels of copied and dropped
    streams and the encoder. Raises Uncuttable where the segments are not of one piece, InputError for a damaged one.
    """
    headers = [read_header(p) for p in packets]
    if any(h != headers[0] for h in headers[1:]):
        raise Uncuttable(f"the segments of {source} are not encoded alike")
    stamps, delay = _timing(packets, source, step)
    with (
        open_source(options, source, copy_streams=True) as reader,
        _ledger(options, source, final or str(target)) as ledger,
    ):
        writer = JoinWriter(target, reader, request_for(options, preset), headers[0])
        try:
            if Fraction(headers[0].time_base) != writer.timeline.tick:
                raise Uncuttable(f"the segments of {source} count time otherwise")
            writer.begin_at(stamps)
            _mux_all(writer, source, reader.stream.index, packets, stamps, delay, step)
            _merge(ledger, ledgers)
            ledger.check(writer.frames_written, writer.frames_written)
            writer.finish()
        except BaseException:
            writer.abort()
            raise
        copied = tuple(p.label for p in writer.plans if p.action != "drop")
        dropped = tuple(p.label for p in writer.plans if p.action == "drop" and p.why)
        return ledger, copied, dropped, writer.choice.codec


def _timing(packets: Sequence[Path], source: str, step: Callable[[], None]) -> tuple[array[int], int]:
    """All presentation times in order, and the deepest reordering in frames. Reads every segment to its end."""
    stamps: array[int] = array("q")
    delay = 0
    for path in packets:
        mine = []
        for p in read_packets(path):
            step()
            mine.append(p.pts)
        ranks = {pts: rank for rank, pts in enumerate(sorted(mine))}
        if len(ranks) != len(mine) or not mine or (stamps and min(mine) <= stamps[-1]):
            raise Uncuttable(f"the segments of {source} overlap")
        delay = max(delay, *(position - ranks[pts] for position, pts in enumerate(mine)))
        stamps.extend(sorted(mine))
    return stamps, delay


def _decoding_times(stamps: array[int], delay: int) -> Iterator[int]:
    """Strictly increasing, none after the presentation of its frame."""
    if not stamps:
        return
    late = stamps[min(delay, len(stamps) - 1)] - stamps[0]
    for position in range(len(stamps)):
        yield stamps[position] - late if position < delay else stamps[position - delay]


def _mux_all(
    writer: JoinWriter,
    source: str,
    index: int,
    packets: Sequence[Path],
    stamps: array[int],
    delay: int,
    step: Callable[[], None],
) -> None:
    """Pictures and the other streams, whichever is next."""
    tick = writer.timeline.tick
    times = _decoding_times(stamps, delay)
    with open_container(source) as container:
        streams = [s for s in container.streams if s.index != index and s.type != "attachment"]
        others = _others(container, streams) if streams else iter(())
        waiting = next(others, None)
        for path in packets:
            for packet in read_packets(path):
                dts = next(times)
                while waiting is not None and waiting[0] <= dts * tick:
                    writer.copy(CopyPacket(waiting[1]))
                    waiting = next(others, None)
                writer.add(packet, dts)
                step()
        while waiting is not None:
            writer.copy(CopyPacket(waiting[1]))
            waiting = next(others, None)


def _others(container: Any, streams: list[Any]) -> Iterator[tuple[Fraction, Any]]:
    """Packets of the other streams with their time, that of the packet before where there is none."""
    last = Fraction(-(1 << 32))
    try:
        for packet in container.demux(*streams):
            if not packet.size:
                continue
            stamp = packet.dts if packet.dts is not None else packet.pts
            if stamp is not None:
                last = stamp * Fraction(packet.time_base)
            yield last, packet
    except (av.error.FFmpegError, OSError) as e:
        raise Uncuttable(f"{container.name} can't be read to its end") from e


def _merge(ledger: Ledger, parts: Sequence[Path]) -> None:
    """The lines of all segments, numbered over the whole file."""
    for path in parts:
        first = ledger.frames
        for line in read_ledger(path):
            if isinstance(line, FrameRecord):
                ledger.record(
                    FrameRecord(
                        first + line.index,
                        line.pts_in,
                        line.pts_out,
                        line.time_base,
                        line.status,
                        line.tiles,
                        line.worker,
                        line.seconds,
                        line.reason,
                    )
                )
