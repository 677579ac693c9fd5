"""Restoring in one place and encoding in another, for nodes whose GPU is faster than their cores can encode.

The first actor runs the main job with a file of corrections in place of the encoder; the second runs it again, with
that file in place of the network. Both decode the source, so corrections travel and frames don't, and all that a frame
carries beside its picture is there. The pictures are the same to the bit as in one place: a checksum of each decoded
one holds that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from streamdeblur.errors import InputError, MismatchError
from streamdeblur.frames import Frame, Gap
from streamdeblur.jobs.batch.corrections_file import CorrectionsFile, Kept, checksum, difference, read_frames
from streamdeblur.jobs.batch.segments import FileWork, SegmentWork
from streamdeblur.jobs.process import Job, Sink
from streamdeblur.jobs.run import Done, open_ledger
from streamdeblur.jobs.workforce import Workforce
from streamdeblur.runtime.ledger import FrameRecord, Ledger
from streamdeblur.runtime.pool import Result
from streamdeblur.video.encoders import EncoderChoice, EncoderRequest
from streamdeblur.video.reader import CopyPacket, DecodedFrame, VideoReader
from streamdeblur.video.streams import StreamPlan

if TYPE_CHECKING:
    from streamdeblur.restore.planner import Region

#: Frames that are read ahead of the encoder.
_CAPACITY = 2
#: Of a summary: what the second job does not know of itself.
_FACTS = ("model", "device", "engine", "precision", "tiling", "workers", "tiles", "network_share", "detection")


class Unmatched(MismatchError):
    """Corrections that do not fit what is decoded here, or are damaged: the work has to be done in one place."""


class CorrectionsSink:
    """Stands in for the writer: keeps what was changed. records: lines of frames that are still to be written."""

    def __init__(self, path: Path, reader: VideoReader) -> None:
        self.choice = EncoderChoice("none", reader.tags.layout, {}, True)
        self.plans: Sequence[StreamPlan] = ()
        self.frames_written = 0
        self.records: dict[int, FrameRecord] = {}
        self._file = CorrectionsFile(path)

    def write(self, frame: Frame, like: DecodedFrame | None = None) -> int | None:
        assert like is not None
        self._file.add_frame(difference(like, frame, self.records.pop(like.index)))
        self.frames_written += 1
        return like.pts

    def copy(self, item: CopyPacket) -> None:
        """The other actor reads those itself."""

    def finish(self) -> None:
        self._file.finish()

    def abort(self) -> None:
        self._file.abort()


class _Restoring(Job):
    """The first half. corrections: the file to write."""

    preset: str
    corrections: Path
    _sink: CorrectionsSink

    def writer(self, reader: VideoReader, request: EncoderRequest) -> Sink:
        self.preset = request.preset
        self._sink = CorrectionsSink(self.corrections, reader)
        return self._sink

    def settled(self, done: Done[DecodedFrame]) -> tuple[Frame, FrameRecord]:
        frame, record = super().settled(done)
        self._sink.records[record.index] = record
        return frame, record


class RestoreFile(_Restoring, FileWork):
    """A whole file. corrections: see ``_Restoring``; the rest as for ``FileWork``."""

    def __init__(self, corrections: Path, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.corrections = corrections


class RestoreSegment(_Restoring, SegmentWork):
    """A segment. corrections: see ``_Restoring``; the rest as for ``SegmentWork``."""

    def __init__(self, corrections: Path, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.corrections = corrections


class ReplayPool:
    """Stands in for the network: gives corrections that were computed elsewhere. For one thread.

    Raises Unmatched, from ``submit``.
    """

    def __init__(self, corrections: Path) -> None:
        self.capacity = _CAPACITY
        self.taken: dict[int, Kept] = {}
        self._path = corrections
        self._frames = read_frames(corrections)
        self._done: deque[Result | Gap] = deque()

    @property
    def in_flight(self) -> int:
        return len(self._done)

    def submit(self, frame: Frame, regions: Sequence[Region] | None = None) -> None:
        kept = self._next()
        if kept is None or kept.index != frame.index or kept.checksum != checksum(frame):
            raise Unmatched(f"frame {frame.index} is not what was restored: it was decoded otherwise there")
        self.taken[frame.index] = kept
        self._done.append(Result(frame.index, kept.corrections, kept.worker or "", kept.seconds or 0.0))

    def collect(self, timeout: float | None = None) -> list[Result | Gap]:
        done = list(self._done)
        self._done.clear()
        return done

    def check(self) -> None:
        """Raise Unmatched where there are corrections for more frames, or the file is damaged."""
        if self._next() is not None:
            raise Unmatched(f"{self._path.name} has more frames than were decoded here")

    def _next(self) -> Kept | None:
        try:
            return next(self._frames, None)
        except (InputError, OSError) as e:
            raise Unmatched(f"its corrections can't be read: {e}") from e

    def close(self, *, abort: bool = False) -> None:
        self._frames.close()  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Replayed(Workforce):
    """What the first half was done with, for the second one's summary."""

    def __init__(self, pool: ReplayPool, facts: Mapping[str, Any]) -> None:
        self.pool = pool
        self.model, self.device = facts["model"], facts["device"]
        self.engine, self.precision = facts["engine"], facts["precision"]
        self.prepare_seconds = 0.0
        self.tiling = None
        self.workers = facts["workers"]


class _Encoding(Job):
    """The second half. corrections: the file to read; facts: the summary of the first half."""

    def replay(self, corrections: Path, facts: Mapping[str, Any], preset: str) -> None:
        self._facts = facts
        self._given = self.options
        self._pool = ReplayPool(corrections)
        # Planned, and looked at by a detector, it was in the first half.
        self.options = self.options.model_copy(update={"detect": None, "detections": None, "preset": preset})
        self.spent = None

    def facts(self) -> dict[str, Any]:
        """What a summary says of the first half."""
        return {name: self._facts[name] for name in _FACTS}

    def book(self) -> Ledger:
        return open_ledger(self._given, self.source, self.final)

    def workforce(self, size: tuple[int, int], pictures: int | None) -> Workforce:
        return _Replayed(self._pool, self._facts)

    def settled(self, done: Done[DecodedFrame]) -> tuple[Frame, FrameRecord]:
        frame, record = super().settled(done)
        k = self._pool.taken.pop(record.index)
        return frame, replace(
            record, status=k.status, tiles=k.tiles, worker=k.worker, seconds=k.seconds, reason=k.reason
        )

    def check(self, reader: VideoReader, writer: Sink, ledger: Ledger) -> None:
        super().check(reader, writer, ledger)
        self._pool.check()


class EncodeFile(_Encoding, FileWork):
    """A whole file; ``replay`` before ``run``."""


class EncodeSegment(_Encoding, SegmentWork):
    """A segment; ``replay`` before ``run``."""
