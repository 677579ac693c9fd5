"""Work on a whole file or on one segment of it, on one node: read, restore, encode. The code is that of the main
job."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from streamdeblur.config import ProcessOptions
from streamdeblur.errors import MismatchError
from streamdeblur.jobs.batch.packet_file import EncodedPacket, PacketFile, PacketHeader
from streamdeblur.jobs.batch.plan import Plan, Segment, open_segment_reader
from streamdeblur.jobs.batch.restorers import Restorers
from streamdeblur.jobs.process import Job, ProcessSummary, Progress, Sink, check_target
from streamdeblur.jobs.run import refuse_meaningless
from streamdeblur.jobs.workforce import Workforce
from streamdeblur.restore import Tiling
from streamdeblur.runtime.ledger import Ledger
from streamdeblur.video.encoders import EncoderRequest
from streamdeblur.video.reader import CopyPacket, DecodedFrame, VideoReader
from streamdeblur.video.streams import StreamPlan
from streamdeblur.video.writer import VideoWriter

log = logging.getLogger(__name__)


class Uncuttable(MismatchError):
    """A file whose segments do not come out as planned; whole it may well go."""


def request_for(options: ProcessOptions, preset: str) -> EncoderRequest:
    """What the main job asks of the encoder."""
    return EncoderRequest(options.encoder, options.crf, preset, options.lossless, threads=0)


class FileWork(Job):
    """The main job on one file, with a restorer that outlives it."""

    def __init__(
        self,
        source: str,
        target: Path,
        options: ProcessOptions,
        restorers: Restorers,
        tiling: Tiling | None,
        progress: Callable[[Progress], None] | None = None,
        final: str | None = None,
    ) -> None:
        """tiling: as planned, None to plan it now."""
        super().__init__(source, target, options, progress, final)
        self._restorers = restorers
        self._tiling = tiling
        self.preset: str = options.preset  # "auto" until the work begins

    def run(self) -> ProcessSummary:
        refuse_meaningless(self.options, "video", self.source)
        check_target(self.source, self.target, self.options)
        return super().run()

    def workforce(self, size: tuple[int, int], pictures: int | None) -> Workforce:
        return self._restorers.workforce(self.options, self._tiling, size)

    def writer(self, reader: VideoReader, request: EncoderRequest) -> Sink:
        self.preset = request.preset
        return super().writer(reader, request)


class SegmentWork(FileWork):
    """The main job on one segment. target: named like the output, in a folder of its own; nothing is left there.

    packets: the file of encoded packets to write.
    """

    def __init__(self, segment: Segment, plan: Plan, packets: Path, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._segment = segment
        self._plan = plan
        self._packets = packets

    def open(self) -> VideoReader:
        tick = Fraction(self._plan.tick)
        start, stop = (None if pts is None else pts * tick for pts in (self._segment.start, self._segment.stop))
        return open_segment_reader(self.source, start, stop, self.options)

    def items(self, reader: VideoReader) -> Iterator[DecodedFrame | CopyPacket]:
        """With timestamps on the clock of the whole file."""
        shift = reader.shift
        for item in super().items(reader):
            if isinstance(item, DecodedFrame) and item.pts is not None and shift:
                item = replace(item, pts=item.pts + round(shift / item.time_base))
            yield item

    def writer(self, reader: VideoReader, request: EncoderRequest) -> Sink:
        self.preset = request.preset
        return SegmentWriter(self.target, self._packets, reader, request)

    def check(self, reader: VideoReader, writer: Sink, ledger: Ledger) -> None:
        super().check(reader, writer, ledger)
        s = self._segment
        if reader.skipped or reader.broken:
            raise Uncuttable(f"segment {s.number} of {self.source} does not decode without loss")
        if ledger.frames != s.frames:
            raise Uncuttable(f"segment {s.number} of {self.source} has {ledger.frames} frames, {s.frames} were planned")


class SegmentWriter(VideoWriter):
    """Encodes like the writer of the whole file and keeps the packets as they leave the encoder."""

    def __init__(self, target: Path, packets: Path, reader: VideoReader, request: EncoderRequest) -> None:
        self._out: PacketFile | None = None
        super().__init__(target, reader, request)
        self._out = PacketFile(packets)

    def _start(self) -> None:
        """Open the encoder as for the whole file; the header goes nowhere."""
        assert self._out is not None
        super()._start()
        if not self._out.begun:
            self._out.begin_packets(self.packet_header())

    def packet_header(self) -> PacketHeader:
        context = self._video.codec_context
        return PacketHeader(
            self.choice.codec,
            self.choice.layout.name,
            self.choice.options,
            bytes(context.extradata or b"").hex(),
            str(Fraction(context.time_base)),
            look_of(self._reader),
        )

    def _mux(self, packet: Any, plan: StreamPlan | None = None) -> None:
        assert self._out is not None
        base, mine = Fraction(packet.time_base), self._time_base
        if base != mine or packet.pts is None or packet.dts is None:
            raise Uncuttable(f"{self.choice.codec} gives packets without exact times")
        self._out.add_packet(
            EncodedPacket(packet.pts, packet.dts, packet.duration or 0, bool(packet.is_keyframe), bytes(packet))
        )

    def finish(self) -> None:
        assert self._out is not None
        with self._guard(f"{self.choice.codec} failed at its end"):
            packets = self._video.encode(None)
            self._start()
            for packet in packets:
                self._mux(packet)
            self._out.finish()
        self._out = None
        self.abort()

    def abort(self) -> None:
        if self._out is not None:
            self._out.abort()
        super().abort()


def look_of(reader: VideoReader) -> str:
    """Size, layout and tags of the pictures, which all segments must share."""
    t, i = reader.tags, reader.info
    return repr(
        (i.width, i.height, t.layout.name, t.matrix, t.primaries, t.transfer, t.color_range, t.mastering, t.light)
        + (i.field_order, i.sample_aspect_ratio, t.display_matrix)
    )
