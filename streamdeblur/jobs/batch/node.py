"""The work of one actor, without Ray: plan, restore whole files and segments, join, verify, publish.

Everything grows in a folder of its own under DEST's state folder (in the scratch folder where DEST is a URL) and gets
its final name in one step when it is complete, so two attempts never meet in one file, and a kill leaves nothing
behind but that folder, which the next driver removes.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamdeblur import heap
from streamdeblur.config import ProcessOptions
from streamdeblur.detect.detector import load_detector
from streamdeblur.errors import (
    DiskFull,
    EncoderError,
    InputError,
    MismatchError,
    OutputError,
    StreamdeblurError,
    UsageError,
    WeightsError,
)
from streamdeblur.jobs.batch import place
from streamdeblur.jobs.batch.apart import EncodeFile, EncodeSegment, RestoreFile, RestoreSegment, Unmatched
from streamdeblur.jobs.batch.fetched import Fetched
from streamdeblur.jobs.batch.gpu_use import GpuUse
from streamdeblur.jobs.batch.joining import join_segments
from streamdeblur.jobs.batch.pictures import thumbnail_pair
from streamdeblur.jobs.batch.plan import make_plan, peek
from streamdeblur.jobs.batch.restorers import Restorers
from streamdeblur.jobs.batch.segments import FileWork, SegmentWork, Uncuttable
from streamdeblur.jobs.batch.sources import STATE
from streamdeblur.jobs.batch.units import (
    WHOLE,
    Done,
    Failure,
    Item,
    JobSpec,
    Outcome,
    Probed,
    Restored,
    SegmentDone,
    Unit,
)
from streamdeblur.jobs.process import Progress
from streamdeblur.jobs.verify import verify
from streamdeblur.jobs.workforce import tiling_words
from streamdeblur.runtime.ledger import TileCounts

log = logging.getLogger(__name__)

#: Beside a result, with its name in front.
DETECTIONS = "detections.jsonl"
#: What lies between the two halves of the work on a file or segment.
CORRECTIONS = "corrections"
#: In DEST's state folder: the token of the driver whose job it is; tries to read it, with pauses that double.
DRIVER = "driver"
_READS = 6
_PAUSE = 0.2
_CERTAIN = (InputError, UsageError, WeightsError, EncoderError, MismatchError)


class Superseded(StreamdeblurError):
    """Another driver has taken the job over: this one's results are no longer wanted."""


class NodeWork:
    """Does units, one at a time, in one process; ``progress`` may be asked for on another thread.

    steps: counts up whenever anything moves on, be it a frame, a packet or a block of data.

    weights: the bytes of each file of weights by its hash.
    """

    def __init__(self, spec: JobSpec, weights: Mapping[str, bytes]) -> None:
        self._spec = spec
        self._restorers = Restorers(spec.build)
        self._scratch = Path(spec.scratch or tempfile.gettempdir()) / f"streamdeblur-{os.getuid()}"
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._weights: dict[str, str] = {}
        for name, (digest, ending) in spec.weights.items():
            self._weights[name] = str(self._keep_weights(name, digest, ending, weights.get(digest)))
        self._fetched = Fetched(self._scratch / "sources", self._step)
        self.steps = 0
        self.frames = 0  # of all finished and current work
        self._base = self._unit_base = 0
        self._gpu = GpuUse()

    def check(self) -> None:
        """What all files need and only a node can tell: networks and detectors can be had here.

        Raises WeightsError, DeviceError, UsageError. The networks are kept for the work.
        """
        for options in self._spec.networks:
            self._restorers.get(self._options(options))
        for options in self._spec.detectors:
            o = self._options(options)
            assert o.detect is not None
            load_detector(o.detect, names=o.detect_names, device=o.detect_device, threads=o.detect_threads)

    # --- units -------------------------------------------------------------------------------------------------------

    def do(self, unit: Unit) -> list[Outcome]:
        """Outcomes of the items, in their order. Never raises for what a file or a disk does."""
        outcomes: list[Outcome] = []
        self._unit_base = self.frames
        for item in unit.items:
            self._base = self.frames
            with _warnings() as said:
                try:
                    outcomes.append(self._one(unit, item, said))
                except Exception as e:
                    log.debug("%s", unit.name, exc_info=True)
                    outcomes.append(self._failure(item, e))
                    self.frames = self._base
        heap.give_back()  # the next unit may be for another actor of this node
        return outcomes

    def _one(self, unit: Unit, item: Item, said: list[str]) -> Outcome:
        options = self._options(item.options)
        if unit.kind == "probe" and place.is_url(item.source):
            plan = peek(item.source, options, self._spec.segment_seconds)
            if plan is not None:
                return Probed(item.id, plan, None)
        with self._fetched.local(item.source) as source:
            self._step()
            try:
                return self._here(unit, item, source, options, said)
            except StreamdeblurError as e:
                if source != item.source:  # nobody knows the copy by its name
                    e.args = tuple(str(a).replace(source, item.source) for a in e.args)
                raise

    def _here(self, unit: Unit, item: Item, source: str, options: ProcessOptions, said: list[str]) -> Outcome:
        if unit.kind == "probe":
            return self._probe(item, source, options)
        folder = self._work_folder(item)
        try:
            if unit.kind == "segment":
                return self._segment(item, unit.segment, source, options, folder)
            if unit.kind == "join":
                return self._join(item, source, options, folder, said)
            if unit.kind == "restore":
                return self._restore(item, unit.segment, source, options, folder, said)
            if unit.kind == "encode":
                return self._encode(item, unit, source, options, folder, said)
            return self._file(item, source, options, folder, said)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _probe(self, item: Item, source: str, options: ProcessOptions) -> Probed:
        plan = make_plan(source, options, self._spec.segment_seconds, self._step)
        tiling = None
        if plan.segments:  # all segments are cut into tiles alike, whoever does them
            tiling = self._restorers.plan(options, plan.width, plan.height)
        return Probed(item.id, plan, tiling)

    def _file(self, item: Item, source: str, options: ProcessOptions, folder: Path, said: list[str]) -> Done:
        target, ledger = folder / Path(item.output).name, folder / "ledger.jsonl"
        found = folder / DETECTIONS if options.detect is not None else None
        options = options.model_copy(update={"ledger": ledger, "detections": None if found is None else str(found)})
        summary = FileWork(*self._job(item, source, options, folder)).run().as_dict()
        return self._publish(item, source, target, ledger, summary, said, found)

    # --- in two halves -----------------------------------------------------------------------------------------------

    def _restore(
        self, item: Item, number: int, source: str, options: ProcessOptions, folder: Path, said: list[str]
    ) -> Restored:
        corrections = folder / "corrections"
        found = folder / DETECTIONS if options.detect is not None else None
        options = options.model_copy(update={"detections": None if found is None else str(found)})
        common = self._job(item, source, options, folder)
        work: RestoreFile | RestoreSegment
        if number == WHOLE:
            work = RestoreFile(corrections, *common)
        else:
            assert item.plan is not None
            work = RestoreSegment(corrections, item.plan.segments[number], item.plan, folder / "unused.seg", *common)
        summary = work.run().as_dict()
        self._check_token()
        if found is not None:
            self._move(found, segment_name(self._spec.dest, item, number, DETECTIONS))
        self._move(corrections, segment_name(self._spec.dest, item, number, CORRECTIONS))
        warnings = [w.replace(source, item.source) for w in said]
        facts = {**summary, "preset": work.preset, "node": _node(), "warnings": warnings}
        return Restored(item.id, number, facts)

    def _encode(
        self, item: Item, unit: Unit, source: str, options: ProcessOptions, folder: Path, said: list[str]
    ) -> SegmentDone | Done:
        number, facts = unit.segment, unit.facts
        kept = segment_name(self._spec.dest, item, number, CORRECTIONS)
        corrections = self._near(kept, folder / "corrections")
        target, ledger, packets = folder / Path(item.output).name, folder / "ledger.jsonl", folder / f"{number}.seg"
        common = self._job(item, source, options.model_copy(update={"ledger": ledger}), folder)
        done: SegmentDone | Done
        if number == WHOLE:
            work = EncodeFile(*common)
            work.replay(corrections, facts, facts["preset"])
            summary = {**work.run().as_dict(), **work.facts()}
            found = None
            if options.detect is not None:
                found = self._near(segment_name(self._spec.dest, item, number, DETECTIONS), folder / DETECTIONS)
            said[:0] = facts["warnings"]
            done = self._publish(item, source, target, ledger, summary, said, found)
        else:
            assert item.plan is not None
            part = EncodeSegment(item.plan.segments[number], item.plan, packets, *common)
            part.replay(corrections, facts, facts["preset"])
            summary = {**part.run().as_dict(), **part.facts()}
            done = self._segment_done(item, number, part, packets, ledger, summary)
        with suppress(OutputError):  # the end of the job removes what is left
            place.remove(kept)
        return done

    def _near(self, name: str, local: Path) -> Path:
        """A file of the job's where this node can read it. Raises Unmatched where it is gone."""
        try:
            path = place.fetch(name, local, self._step) if place.is_url(name) else Path(name)
        except InputError as e:
            raise Unmatched(f"what was restored is gone: {e.what}") from e
        if not path.is_file():
            raise Unmatched(f"what was restored is gone: {name}")
        return path

    def _job(self, item: Item, source: str, options: ProcessOptions, folder: Path) -> tuple[Any, ...]:
        """What every kind of work on a file is given."""
        final = place.join(self._spec.dest, item.output)
        target = folder / Path(item.output).name
        return source, target, options, self._restorers, item.tiling, self._progress, final

    def _segment(self, item: Item, number: int, source: str, options: ProcessOptions, folder: Path) -> SegmentDone:
        assert item.plan is not None
        packets, ledger = folder / f"{number}.seg", folder / f"{number}.jsonl"
        common = self._job(item, source, options.model_copy(update={"ledger": ledger}), folder)
        work = SegmentWork(item.plan.segments[number], item.plan, packets, *common)
        return self._segment_done(item, number, work, packets, ledger, work.run().as_dict())

    def _segment_done(
        self, item: Item, number: int, work: SegmentWork, packets: Path, ledger: Path, summary: dict[str, Any]
    ) -> SegmentDone:
        self._check_token()
        for path, ending in ((ledger, "jsonl"), (packets, "seg")):  # the packets last: they say that it is done
            self._move(path, segment_name(self._spec.dest, item, number, ending))
        counts = {"restored": summary["restored"], "bypassed": summary["bypassed"]}
        return SegmentDone(
            item.id, number, summary["frames"], counts, summary["seconds"], work.preset, {**summary, "node": _node()}
        )

    def _join(self, item: Item, source: str, options: ProcessOptions, folder: Path, said: list[str]) -> Done:
        assert item.plan is not None
        started = time.monotonic()
        parts: dict[str, list[Path]] = {"seg": [], "jsonl": []}
        for segment in item.plan.segments:
            for ending, paths in parts.items():
                name = segment_name(self._spec.dest, item, segment.number, ending)
                if place.is_url(name):
                    paths.append(place.fetch(name, folder / f"{segment.number}.{ending}", self._step))
                else:
                    paths.append(Path(name))
        target, ledger = folder / Path(item.output).name, folder / "ledger.jsonl"
        final = place.join(self._spec.dest, item.output)
        booked, copied, dropped, encoder = join_segments(
            source,
            target,
            options.model_copy(update={"ledger": ledger}),
            item.preset,
            parts["seg"],
            parts["jsonl"],
            final,
            self._step,
        )
        summary = {
            "frames": booked.frames,
            "restored": booked.counts["restored"],
            "bypassed": booked.counts["bypassed"],
            "undecodable_packets": 0,
            "seconds": round(time.monotonic() - started, 3),
            "encoder": encoder,
            "device": item.device,
            "tiling": tiling_words(item.tiling, options.tiling),
            "width": item.plan.width,
            "height": item.plan.height,
            "copied": list(copied),
            "dropped": list(dropped),
            "tiles": asdict(booked.tiles) if booked.tiles != TileCounts() else None,
        }
        done = self._publish(item, source, target, ledger, summary, said)
        with suppress(OutputError):  # the end of the job removes what is left
            place.remove(place.join(self._spec.dest, STATE, "segments", item.id))
        return done

    # --- publishing --------------------------------------------------------------------------------------------------

    def _publish(
        self,
        item: Item,
        source: str,
        target: Path,
        ledger: Path,
        summary: dict[str, Any],
        said: list[str],
        found: Path | None = None,
    ) -> Done:
        """Verify, then give the result, its ledger and its detections (``found``) their names, the result last."""
        o = item.options
        differences: list[str] = []
        if self._spec.verify:
            report = verify(
                source,
                target,
                stream=o.stream,
                start=o.start,
                duration=o.duration,
                interlaced=o.interlaced,
                deinterlace=o.deinterlace,
                progress=self._step,
            )
            differences = report.differences
        dest = self._spec.dest
        if item.thumbnails:
            for word, data in thumbnail_pair(source, str(target), o).items():
                path = target.with_name(f"{word}.jpg")
                path.write_bytes(data)
                self._move(path, place.join(dest, STATE, "thumbnails", f"{item.id}-{word}.jpg"))
        self._check_token()
        self._move(ledger, place.join(dest, STATE, "ledgers", f"{item.output}.jsonl"))
        final = place.join(dest, item.output)
        beside = None
        if found is not None:
            self._move(found, f"{final}.{DETECTIONS}")
            beside = _written(f"{final}.{DETECTIONS}")
        self._move(target, final)
        written = _written(final)
        kept = ("frames", "restored", "bypassed", "undecodable_packets", "seconds", "encoder", "device", "tiling")
        values = {k: summary[k] for k in (*kept, "width", "height", "copied", "dropped")}
        values |= {
            "verified": self._spec.verify,
            "differences": differences,
            "warnings": list(dict.fromkeys(w.replace(source, item.source) for w in said))[:50],
            "node": _node(),
            "tiles": summary.get("tiles"),
        }
        return Done(item.id, written.size, written.tag, values, None if beside is None else (beside.size, beside.tag))

    def _move(self, path: Path, final: str) -> None:
        if place.is_url(final):
            place.send(path, final, self._step)
            return
        try:
            Path(final).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(path, final)
            except OSError:
                if path.stat().st_dev == Path(final).parent.stat().st_dev:
                    raise
                beside = Path(f"{final}.{uuid.uuid4().hex[:8]}.partial")
                try:
                    shutil.copyfile(path, beside)
                    os.replace(beside, final)
                finally:
                    beside.unlink(missing_ok=True)
            folder = os.open(Path(final).parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as e:
            raise OutputError(f"{final} can't be written: {e.strerror or e}") from e

    def _check_token(self) -> None:
        """Raise Superseded where the job is over or another driver's; OutputError where that can't be told for now."""
        name = place.join(self._spec.dest, STATE, DRIVER)
        for number in range(_READS):
            try:
                token = place.read_whole(name)
                break
            except InputError as e:
                if number == _READS - 1:
                    raise OutputError(f"whose job it is can't be told: {e.what}", "check DEST and its access") from e
                time.sleep(_PAUSE * 2**number)
        if token is None or token.decode("ascii", "replace") != self._spec.token:
            raise Superseded("another driver has taken the job over")

    def _work_folder(self, item: Item) -> Path:
        name = f"{item.id}-{uuid.uuid4().hex[:12]}"
        if place.is_url(self._spec.dest):
            folder = self._scratch / "work" / name
        else:
            folder = Path(self._spec.dest) / STATE / "work" / name
        try:
            folder.mkdir(parents=True)
        except OSError as e:
            raise OutputError(
                f"{folder} can't be made: {e.strerror}", "check that DEST can be written on every node"
            ) from e
        return folder

    # --- what comes from elsewhere -----------------------------------------------------------------------------------

    def _options(self, options: ProcessOptions) -> ProcessOptions:
        weights = self._weights.get(options.weights or "", options.weights)
        detect = self._weights.get(options.detect or "", options.detect)
        return options.model_copy(update={"weights": weights, "detect": detect, "threads": self._spec.threads})

    def _keep_weights(self, name: str, digest: str, ending: str, data: bytes | None) -> Path:
        """A file with the weights on this node, shared by its actors."""
        path = self._scratch / "weights" / f"{digest}{ending}"
        if path.is_file():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            return place.fetch(name, path)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
        partial.write_bytes(data)
        os.replace(partial, path)
        return path

    # --- telling -----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        self.steps += 1

    def _progress(self, p: Progress) -> None:
        self.frames = self._base + p.frames
        self._step()

    def progress(self) -> dict[str, Any]:
        """Frames done by this process and in its current unit, steps, use of its GPUs in percent, loads of weights."""
        return {
            "frames": self.frames,
            "steps": self.steps,
            "unit_frames": self.frames - self._unit_base,
            "gpu": self._gpu.use(),
            "weights_loads": self._restorers.loads,
        }

    def _failure(self, item: Item, e: Exception) -> Failure:
        text = str(e) if isinstance(e, StreamdeblurError) else f"unexpected {type(e).__name__}: {e}"
        text = " ".join(text.split())
        full = isinstance(e, DiskFull) or getattr(e, "errno", None) in (28, 122)
        if full:
            kind = "disk"
        elif isinstance(e, Superseded):
            kind = "superseded"
        elif isinstance(e, Unmatched):
            kind = "unmatched"
        elif isinstance(e, Uncuttable):
            kind = "uncuttable"
        else:
            certain = isinstance(e, _CERTAIN) or getattr(e.__cause__, "errno", None) == errno.ENAMETOOLONG
            kind = "file" if certain else "retry"
        return Failure(item.id, kind, type(e).__name__, text)  # type: ignore[arg-type]

    def close(self) -> None:
        """Remove what was fetched for this process, and no other actor reads."""
        self._fetched.clear()


def _written(name: str) -> place.Stat:
    found = place.stat(name)
    if found is None:
        raise OutputError(f"{name} is gone after it was written", "check what else writes there")
    return found


def segment_name(dest: str, item: Item, number: int, ending: str) -> str:
    """Where a finished segment lies until it is joined, or what was restored until it is encoded; its name tells what
    it depends on."""
    assert item.plan is not None
    mark = f"{item.print[:12]}-{item.plan.print}"
    part = "whole" if number == WHOLE else str(number)
    return place.join(dest, STATE, "segments", item.id, f"{part}-{mark}.{ending}")


def _node() -> str:
    return socket.gethostname()


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the library warns of meanwhile."""
    said: list[str] = []
    handler = _Collector(said.append)
    logger = logging.getLogger("streamdeblur")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


class _Collector(logging.Handler):
    def __init__(self, take: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        self._take(" ".join(record.getMessage().split()))
