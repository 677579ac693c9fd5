"""The main job: one video in, the restored video out, everything else as it was.

    reader thread ── frames ──► pump (the caller's thread) ── corrected frames ──► writer thread
         └─────────── packets of the other streams ──────────────────────────────►┘
                                   │      ▲
                                   ▼      │ corrections
                                   pool (in-process thread, or Ray actors)

Every queue is bounded, so memory does not depend on the length of the file. Frames leave the pump in order of their
index whatever order the pool finishes them in. An error on any thread ends the others and reaches the caller.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from streamdeblur import interrupts
from streamdeblur.config import ProcessOptions, parse
from streamdeblur.errors import BrokenStream, OutputError, UsageError, WorkerError
from streamdeblur.frames import Frame
from streamdeblur.jobs.channel import Channel, Closed
from streamdeblur.jobs.run import Done, open_ledger, open_source, refuse_meaningless, restored, settle, spending
from streamdeblur.jobs.watching import Watch
from streamdeblur.jobs.workforce import Workforce, encoder_preset, tiling_words
from streamdeblur.runtime.ledger import FrameRecord, Ledger, TileCounts
from streamdeblur.runtime.pool import Pool
from streamdeblur.video.encoders import EncoderChoice, EncoderRequest
from streamdeblur.video.reader import CopyPacket, DecodedFrame, VideoReader
from streamdeblur.video.streams import StreamPlan
from streamdeblur.video.writer import VideoWriter, check_writable, muxer_for

log = logging.getLogger(__name__)

#: Decoded frames that wait for the pool; corrected frames that wait for the encoder, and how many packets of other
#: streams weigh as much as a frame; written frames that wait to be booked (more than can be behind at any time).
_AHEAD = 3
_BEHIND = 4
_PACKETS_A_FRAME = 64
_UNBOOKED = 1024
_KEPT_ENDINGS = (".mp4", ".mov", ".mkv")


@dataclass(frozen=True, slots=True)
class Progress:
    """A snapshot for a progress display. total: frames expected, None when the container does not say.

    tiles: what became of them so far (of 16x16 pixels), None without ``reuse`` and ``skip_sharp``.
    """

    frames: int
    total: int | None
    restored: int
    bypassed: int
    seconds: float
    position: float | None
    tiles: TileCounts | None = None

    @property
    def fps(self) -> float:
        return self.frames / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ProcessSummary:
    """What a job did. Times in seconds: of the whole, of getting the engine ready, to the first frame written.

    ``copied`` and ``dropped`` name streams of the source.

    tiles: of 16x16 pixels, by what became of them; network_share: pixels that the network saw, halos included, of those
    in the frames. Both None without ``reuse`` and ``skip_sharp``. detection: what a detector saw, and how fast
    (``detect.HookStats``), None without one.
    """

    source: str
    output: str
    model: str
    weights: str | None
    device: str
    engine: str
    precision: str
    tiling: str
    encoder: str
    pix_fmt: str
    width: int
    height: int
    frames: int
    restored: int
    bypassed: int
    undecodable_packets: int
    seconds: float
    prepare_seconds: float
    first_frame_seconds: float
    workers: int
    copied: tuple[str, ...] = field(default=())
    dropped: tuple[str, ...] = field(default=())
    broken: str | None = None
    tiles: TileCounts | None = None
    network_share: float | None = None
    detection: dict[str, Any] | None = None

    @property
    def fps(self) -> float:
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON values only."""
        names = [f for f in self.__slots__ if f not in ("copied", "dropped", "tiles")]
        values = {n: getattr(self, n) for n in names}
        values["tiles"] = None if self.tiles is None else asdict(self.tiles)
        return {**values, "fps": round(self.fps, 3), "copied": list(self.copied), "dropped": list(self.dropped)}


def default_output(source: str | os.PathLike[str]) -> Path:
    """NAME.deblurred.EXT beside the source; mp4, mov and mkv keep their ending, others become mkv."""
    path = named(source)
    ending = path.suffix if path.suffix.lower() in _KEPT_ENDINGS else ".mkv"
    return path.with_name(f"{path.stem}.deblurred{ending}")


def named(source: str | os.PathLike[str]) -> Path:
    """The path, with a name at its end: also of "." and ".."."""
    path = Path(source)
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def process_video(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    options: ProcessOptions | None = None,
    **keywords: Any,
) -> ProcessSummary:
    """Restore a video file.

    output: None takes ``default_output``. progress: called on this thread after every frame written. Options are the
    fields of ``config.ProcessOptions``, given as one object or by keyword.

    Blocks until the file is complete under its final name. On any error nothing is left there, and a previous file of
    that name stays as it was. Raises StreamdeblurError (errors.py); KeyboardInterrupt stops it cleanly.
    """
    if options is not None and keywords:
        raise UsageError("options and keywords exclude each other", "give one of the two")
    chosen = options if options is not None else parse(ProcessOptions, _plain(keywords), "the call")
    target = Path(output) if output is not None else default_output(source)
    refuse_meaningless(chosen, "video from pictures" if os.path.isdir(source) else "video", source)
    check_target(source, target, chosen)
    muxer_for(target)
    check_writable(target)  # before the engine gets ready, which can take a minute
    return Job(os.fspath(source), target, chosen, progress).run()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in values.items()}


def check_target(source: str | os.PathLike[str] | None, target: Path, options: ProcessOptions) -> None:
    """Refuse what would destroy something: the source as output or ledger, an existing output without overwrite."""
    if source is not None and _same_file(source, target):
        raise UsageError(f"output {target} is the source itself", "choose another output with -o")
    if options.ledger is not None:
        for what, path in (("source", source), ("output", target)):
            if path is not None and _same_file(path, options.ledger):
                raise UsageError(f"ledger {options.ledger} is the {what} itself", "name another file with --ledger")
        if options.ledger.is_file() and not options.overwrite and not _is_ledger(options.ledger):
            raise UsageError(f"{options.ledger} exists and is no ledger", "name another file with --ledger")
    if options.detections not in (None, "-"):
        for what, path in (("output", target), ("ledger", options.ledger)):
            if path is not None and _same_file(path, options.detections):
                raise UsageError(
                    f"detections {options.detections} is the {what} itself", "name another with --detections"
                )
    if target.exists() and not target.is_dir() and not target.is_file():
        raise OutputError(f"{target} is no file that could be replaced", "-o writes elsewhere")
    if (target.exists() or target.is_symlink()) and not target.is_dir() and not options.overwrite:
        raise OutputError(f"{target} exists", "--overwrite replaces it, -o writes elsewhere")


def _is_ledger(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            start = f.read(16)
    except OSError:
        return True  # opening it for writing says why
    return not start or start.startswith(b'{"type":"header"')


def _same_file(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    if "://" in os.fspath(a):
        return False
    return os.path.realpath(a) == os.path.realpath(b) or (
        os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)
    )


class Sink(Protocol):
    """What a job writes to: a ``VideoWriter``, or what stands in for one. For one thread."""

    choice: EncoderChoice
    frames_written: int

    @property
    def plans(self) -> Sequence[StreamPlan]: ...

    def write(self, frame: Frame, like: DecodedFrame | None = None) -> int | None:
        """Take a frame; its timestamp in the output."""

    def copy(self, item: CopyPacket) -> None:
        """Take a packet of another stream."""

    def finish(self) -> None:
        """All is there: complete the file and give it its name."""

    def abort(self) -> None:
        """Leave nothing behind; idempotent."""


class Job:
    """One video through the pool. ``run`` once; subclasses say otherwise what opens, works and writes.

    final: the name that the ledger gives the output, where ``target`` is only on the way there.
    """

    def __init__(
        self,
        source: str,
        target: Path,
        options: ProcessOptions,
        progress: Callable[[Progress], None] | None = None,
        final: str | None = None,
    ) -> None:
        self.source = source
        self.target = target
        self.options = options
        self.progress = progress
        self.spent = spending(options)
        self.final = final or str(target)
        self.frames: Channel[DecodedFrame] = Channel(_AHEAD)
        self.mux: Channel[CopyPacket | tuple[Frame, DecodedFrame, FrameRecord]] = Channel(
            _BEHIND * _PACKETS_A_FRAME, lambda item: 1 if isinstance(item, CopyPacket) else _PACKETS_A_FRAME
        )
        self.written: Channel[FrameRecord] = Channel(_UNBOOKED)
        self.started = time.monotonic()
        self.first_frame: float | None = None

    def run(self) -> ProcessSummary:
        o = self.options
        with self.open() as reader:
            info = reader.info
            fields = info.field_order != "progressive"
            size = (info.width, (info.height + 1) // 2 if fields else info.height)
            frames = _expected(reader, o)
            workforce = self.workforce(size, None if frames is None else frames * (1 + fields))
            with (
                interrupts.held(),
                workforce.pool as pool,
                self.book() as ledger,
                Watch(o, self.source, info.rotation) as watch,
            ):
                self.watch = watch
                preset = encoder_preset(o.preset, workforce, reuse=o.reuse)
                writer = self.writer(reader, EncoderRequest(o.encoder, o.crf, preset, o.lossless, threads=0))
                if writer.choice.codec == "ffv1" and o.preset != "auto":
                    log.warning("ffv1 has no presets: --preset %s has no effect", o.preset)
                try:
                    self._flow(reader, writer, pool, ledger)
                    self.check(reader, writer, ledger)
                    interrupts.check()
                    writer.finish()
                except BaseException:
                    writer.abort()  # before Ray ends: while it does, SIGTERM kills
                    pool.close(abort=True)
                    raise
            return self._summary(reader, writer, workforce, ledger)

    # --- what a job is made of ---------------------------------------------------------------------------------------

    def open(self) -> VideoReader:
        return open_source(self.options, self.source, copy_streams=True)

    def items(self, reader: VideoReader) -> Iterator[DecodedFrame | CopyPacket]:
        return reader.items()

    def workforce(self, size: tuple[int, int], pictures: int | None) -> Workforce:
        """size: (width, height) of the pictures that the network will see. pictures: how many, None if unknown."""
        return Workforce(self.options, size, pictures)

    def book(self) -> Ledger:
        return open_ledger(self.options, self.source, self.final)

    def writer(self, reader: VideoReader, request: EncoderRequest) -> Sink:
        return VideoWriter(self.target, reader, request)

    def settled(self, done: Done[DecodedFrame]) -> tuple[Frame, FrameRecord]:
        """The frame to write and the line to book. Raises WorkerError for one that can't be restored."""
        decoded = done.item
        when = f" at {decoded.time:.3f} s" if decoded.time is not None else ""
        frame, record = settle(decoded, done, f"frame {decoded.index}{when} of {self.source}", self.options, self.spent)
        return self.watch.see(decoded, frame, record), record

    def check(self, reader: VideoReader, writer: Sink, ledger: Ledger) -> None:
        """Raise MismatchError or BrokenStream where frames are missing, before the output gets its name."""
        ledger.check(reader.frames_read, writer.frames_written)
        if reader.frames_read == 0:
            raise BrokenStream(f"{self.source} gave no frame")

    # --- the three threads -------------------------------------------------------------------------------------------

    def _flow(self, reader: VideoReader, writer: Sink, pool: Pool, ledger: Ledger) -> None:
        threads = [
            threading.Thread(target=self._read, args=(reader,), name="reader", daemon=True),
            threading.Thread(target=self._write, args=(writer,), name="writer", daemon=True),
        ]
        try:
            for t in threads:
                t.start()
            self._pump(pool, ledger, reader)
            self.mux.finish()
            self._drain(ledger, reader, until_done=True)
        finally:
            self.frames.leave()
            self.mux.finish(Closed())
            self.mux.leave()
            for t in threads:
                if t.is_alive():
                    t.join()

    def _read(self, reader: VideoReader) -> None:
        try:
            for item in self.items(reader):
                if isinstance(item, DecodedFrame):
                    self.frames.put(item)
                else:
                    self.mux.put(item)
        except Closed:
            pass
        except BaseException as e:
            self.frames.finish(e)
            return
        self.frames.finish()

    def _write(self, writer: Sink) -> None:
        try:
            while (item := self.mux.get()) is not None:
                if isinstance(item, CopyPacket):
                    writer.copy(item)
                    continue
                frame, decoded, record = item
                pts = writer.write(frame, decoded)
                self.written.put(replace(record, pts_out=pts))
        except Closed:
            pass
        except BaseException as e:
            self.written.finish(e)
            self.mux.leave()
            return
        self.written.finish()

    def _pump(self, pool: Pool, ledger: Ledger, reader: VideoReader) -> None:
        plan = self.spent.plan if self.spent is not None else None
        frames = restored(pool, self.frames.get, lambda f: f, plan=plan, idle=lambda: self._drain(ledger, reader))
        for done in frames:
            frame, record = self.settled(done)
            try:
                self.mux.put((frame, done.item, record))
            except Closed:
                self._drain(ledger, reader, until_done=True)  # raises what the writer raised
                raise WorkerError("the writer stopped without a reason") from None
            self._drain(ledger, reader)  # many frames may come at once, and what is written must not pile up

    def _drain(self, ledger: Ledger, reader: VideoReader, *, until_done: bool = False) -> None:
        """Book what the writer has written, and show it."""
        while True:
            try:
                record = self.written.get(None if until_done else 0.0)
            except TimeoutError:
                return
            if record is None:
                return
            if self.first_frame is None:
                self.first_frame = time.monotonic() - self.started
            ledger.record(record)
            if self.progress is not None:
                self.progress(self._snapshot(ledger, reader, record))

    def _snapshot(self, ledger: Ledger, reader: VideoReader, record: FrameRecord) -> Progress:
        counts = ledger.counts
        return Progress(
            frames=ledger.frames,
            total=_expected(reader, self.options),
            restored=counts["restored"],
            bypassed=counts["bypassed"],
            seconds=time.monotonic() - self.started,
            position=None if record.pts_out is None else float(record.pts_out * record.time_base),
            tiles=ledger.tiles if self.spent is not None else None,
        )

    # --- the end ----------------------------------------------------------------------------------------------------

    def _summary(self, reader: VideoReader, writer: Sink, workforce: Workforce, ledger: Ledger) -> ProcessSummary:
        counts = ledger.counts
        t = workforce.tiling
        return ProcessSummary(
            source=self.source,
            output=str(self.target),
            model=workforce.model,
            weights=self.options.weights,
            device=workforce.device,
            engine=workforce.engine,
            precision=workforce.precision,
            tiling=tiling_words(t, self.options.tiling),
            encoder=writer.choice.codec,
            pix_fmt=writer.choice.layout.name,
            width=reader.info.width,
            height=reader.info.height,
            frames=ledger.frames,
            restored=counts["restored"],
            bypassed=counts["bypassed"],
            undecodable_packets=reader.skipped,
            seconds=round(time.monotonic() - self.started, 3),
            prepare_seconds=round(workforce.prepare_seconds, 3),
            first_frame_seconds=round(self.first_frame or 0.0, 3),
            workers=workforce.workers,
            copied=tuple(p.label for p in writer.plans if p.action != "drop"),
            dropped=tuple(p.label for p in writer.plans if p.action == "drop" and p.why),
            broken=reader.broken,
            tiles=ledger.tiles if self.spent is not None else None,
            network_share=None if self.spent is None or self.spent.share is None else round(self.spent.share, 4),
            detection=self.watch.summary(),
        )


def _expected(reader: VideoReader, options: ProcessOptions) -> int | None:
    info = reader.info
    if options.start is not None or options.duration is not None or not info.frames:
        rate, length = info.average_rate, info.duration
        if rate is None or length is None:
            return None
        length = max(0.0, length - (options.start or 0.0))
        if options.duration is not None:
            length = min(length, options.duration)
        return max(1, round(Fraction(rate) * Fraction(length).limit_denominator(10**6)))
    return info.frames


__all__ = ["Job", "ProcessSummary", "Progress", "check_target", "default_output", "process_video"]
