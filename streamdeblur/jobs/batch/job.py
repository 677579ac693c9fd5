"""A batch job from its words to its report: what ``streamdeblur batch`` and ``pipelines/batch.py`` call."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from streamdeblur import interrupts
from streamdeblur.config import ProcessOptions, parse
from streamdeblur.errors import DiskFull, OutputError, StreamdeblurError, UnreadableInput, UsageError
from streamdeblur.jobs.batch import fingerprint, place
from streamdeblur.jobs.batch.manifest import SCHEMA, Entry, Manifest
from streamdeblur.jobs.batch.node import CORRECTIONS, DETECTIONS, DRIVER, segment_name
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.plan import Plan
from streamdeblur.jobs.batch.report import write_reports
from streamdeblur.jobs.batch.sources import STATE, Source, gather_sources
from streamdeblur.jobs.batch.state import STATUSES, FileState, Snapshot, TakenOver
from streamdeblur.jobs.batch.units import Item, JobSpec
from streamdeblur.restore import Restorer, Tiling
from streamdeblur.runtime.ledger import TileCounts
from streamdeblur.version import __version__
from streamdeblur.video.live.urls import mask

if TYPE_CHECKING:
    from streamdeblur.jobs.batch.scheduler import Scheduler

log = logging.getLogger(__name__)

#: What a network and a detector are made of; detectors that an actor tries at its start.
_NETWORK = ("model", "weights", "device", "precision", "tiling", "engine", "memory", "threads")
_DETECTOR = ("detect", "detect_names", "detect_device", "detect_threads")
_TRIED = 8
#: Questions to a store, or a disk, at a time.
_ASKING = 16
#: Seconds between looks for room on a full disk, before and after the work.
_LOOK_FOR_ROOM = 1.0


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What a job did. files: by status. resumed: of those done, how many were done before this run. seconds: of this
    run; frames: of all results. actors: at most at a time. idle: seconds that actors, all together, waited for their
    next unit; transit: that units and what became of them were on their way. nodes: frames by host. state: "stopped" by
    whoever called, "failed" with an error that ended the job. exit_code: 0 when every file is done and passes verify,
    else 1."""

    dest: str
    state: Literal["finished", "stopped", "failed"]
    files: Mapping[str, int]
    resumed: int
    frames: int
    seconds: float
    fps: float
    deaths: int
    retries: int
    actors: int
    idle: float
    transit: float
    report: str
    rows: tuple[Mapping[str, Any], ...] = field(repr=False, default=())
    nodes: Mapping[str, int] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return 0 if self.files["done"] == sum(self.files.values()) else 1

    def as_dict(self) -> dict[str, Any]:
        """JSON values only; without the rows of files, which report.json has."""
        names = [n for n in self.__slots__ if n != "rows"]
        tiles = None if self.tiles is None else asdict(self.tiles)
        values = {n: getattr(self, n) for n in names}
        return {**values, "files": dict(self.files), "nodes": dict(self.nodes), "tiles": tiles}

    @property
    def tiles(self) -> TileCounts | None:
        """Sum over the files that are done."""
        found = [TileCounts(**r["tiles"]) for r in self.rows if r.get("tiles")]
        if not found:
            return None
        return TileCounts(*(sum(getattr(t, n) for t in found) for n in ("restored", "reused", "skipped")))


def run_batch(
    sources: Iterable[str],
    dest: str | os.PathLike[str],
    *,
    options: BatchOptions | None = None,
    progress: Callable[[Snapshot], None] | None = None,
    build: Callable[[ProcessOptions], Restorer] | None = None,
) -> BatchSummary:
    """Restore many files on a Ray cluster, or on this machine, into ``dest``.

    sources: files, folders, globs, URLs, manifests (``sources.gather_sources``). dest: a folder that all nodes see,
    or a URL. progress: called about once a second on this thread. build: makes the restorer of every actor, instead
    of the options' model (an engine of your own); it travels by pickle.

    Blocks until every file is done or quarantined, and writes report.html and report.json into ``dest``, also when
    KeyboardInterrupt or another such exception stops it. Stopped or killed, it goes on when it is called again. Raises
    StreamdeblurError for what concerns the job as a whole (options, weights, detectors, no cluster, a file in ``dest``
    that is not ours); what concerns a file is in the summary.
    """
    o = options or parse(BatchOptions, {})
    where = os.fspath(dest)
    where = where.rstrip("/") if place.is_url(where) else os.path.abspath(where)
    found = gather_sources(sources, where, o)
    copy = place.join(where, STATE, "manifest.jsonl") if place.is_url(where) else None
    with Manifest(_state_folder(where), copy, place.join(where, STATE, DRIVER)) as manifest:
        return _Job(where, o, found, manifest, progress, build).run()


def _state_folder(dest: str) -> Path:
    """DEST's own; for a URL one on this machine, whose manifest is sent to DEST again and again (``mirror``)."""
    if not place.is_url(dest):
        return Path(dest) / STATE
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "streamdeblur" / "batch" / fingerprint.combined(dest)[:16] / STATE


def _detector_file(options: ProcessOptions) -> str | None:
    """A detector that is a file of a network; it is checked here, before anything is done."""
    if options.detect is None or not options.detect.lower().endswith(".onnx"):
        return None
    if place.stat(options.detect) is None:
        raise UsageError(f"detector {options.detect} does not exist", "check the path")
    return options.detect


class _Job:
    def __init__(
        self,
        dest: str,
        options: BatchOptions,
        sources: list[Source],
        manifest: Manifest,
        progress: Callable[[Snapshot], None] | None,
        build: Callable[[ProcessOptions], Restorer] | None,
    ) -> None:
        self.dest = dest
        self.build = build
        self.options = options
        self.sources = sources
        self.manifest = manifest
        self.progress = progress
        self.files: dict[str, FileState] = {}
        self.started = time.monotonic()
        self.token = uuid.uuid4().hex
        self.scheduler: Scheduler | None = None

    def run(self) -> BatchSummary:
        o, manifest = self.options, self.manifest
        if self.build is None:
            self._check_models()
        if not o.resume:
            manifest.forget()
        manifest.add(
            "job",
            schema=SCHEMA,
            version=__version__,
            token=self.token,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            host=os.uname().nodename,
            options=o.model_dump(mode="json", exclude_defaults=True),
        )
        self._look_at_files()
        self._refuse_foreign()
        _with_room(manifest.commit)
        left = {key: f for key, f in self.files.items() if not f.over}
        if left:
            _with_room(lambda: self._take_over(left))
            try:
                self._schedule(left)
            except BaseException as e:
                if self.scheduler is None:  # it never began
                    self._break_off(e)
                raise
        else:
            manifest.begin_copies("")
        return self._finish()

    # --- before ------------------------------------------------------------------------------------------------------

    def _check_models(self) -> None:
        """Weights that are missing or wrong end the job before it begins, and not file by file."""
        from streamdeblur.models import registry

        for model, weights in {(s.options.model, s.options.weights) for s in self.sources}:
            if weights is None or not place.is_url(weights):
                registry.build(model, weights)

    def _look_at_files(self) -> None:
        """Fingerprint all sources and take what the manifest knows of them."""
        settings: dict[ProcessOptions, str] = {}
        for s in self.sources:
            if s.options not in settings:
                settings[s.options] = fingerprint.settings_print(s.options)
        with ThreadPoolExecutor(_ASKING) as pool:
            o = self.options
            prints = list(pool.map(lambda s: _print(s.name, o.attempts, o.backoff), self.sources))
        thumbnails = self.options.thumbnails
        known: list[tuple[FileState, Entry]] = []
        for number, (s, (mark, size, error)) in enumerate(zip(self.sources, prints, strict=True)):
            whole = fingerprint.combined(mark, settings[s.options])
            item = Item(s.id, s.name, s.output, s.options, whole, thumbnails=number < thumbnails)
            state = FileState(s, whole, size, item)
            self.files[s.id] = state
            entry = self.manifest.entries.get(s.id)
            if error is not None:
                state.status, state.error = "quarantined", error
                if entry is None:  # what is known of a source stays so while it is away
                    self.manifest.add(
                        "quarantined", id=s.id, print=whole, source=mask(s.name), output=s.output, message=mask(error)
                    )
            elif entry is not None and entry.print == whole:
                known.append((state, entry))
        with ThreadPoolExecutor(_ASKING) as pool:
            list(pool.map(lambda pair: self._recall(*pair), known))

    def _recall(self, state: FileState, entry: Entry) -> None:
        """What was done before, as far as it is still valid."""
        done = entry.done
        if done is not None:
            found = place.stat(place.join(self.dest, state.source.output))
            if found is not None and (found.size, found.tag) == (done["size"], done["tag"]):
                if self.options.verify and not done["summary"]["verified"]:
                    return  # it was never compared, and now that is asked for
                if not self._has_detections(state, done):
                    return
                state.status = "differs" if done["summary"]["differences"] else "done"
                state.summary, state.resumed = done["summary"], True
                state.frames_done, state.parts = done["summary"]["frames"], done["segments"]
                state.spent, state.seconds, state.tries = done["spent"], done["seconds"], done["tries"]
                state.notes = list(done["notes"])
            return
        if entry.plan is None or state.item is None:
            return
        plan = Plan.from_dict(entry.plan["plan"])
        tiling = None if entry.plan["tiling"] is None else Tiling(*entry.plan["tiling"])
        item = replace(state.item, plan=plan, tiling=tiling)
        restored = {
            number: line["facts"]
            for number, line in entry.restored.items()
            if line["plan_print"] == plan.print
            and place.stat(segment_name(self.dest, item, number, CORRECTIONS)) is not None
        }
        if not plan.segments and restored:
            state.item, state.restored = item, restored
            return
        if not plan.segments or self.options.segment_seconds <= 0:
            return  # it costs little to plan it again, perhaps otherwise
        valid = {}
        for number, line in entry.segments.items():
            names = [segment_name(self.dest, item, number, ending) for ending in ("seg", "jsonl")]
            if line["plan_print"] == plan.print and all(place.stat(n) is not None for n in names):
                valid[number] = line
        presets = {line["preset"] for line in valid.values()}
        if len(presets) > 1 or not (valid or restored):
            return
        if valid:
            item = replace(item, preset=presets.pop(), device=next(iter(valid.values()))["device"])
        state.item = item
        state.restored = {n: facts for n, facts in restored.items() if n not in valid}
        state.left = {s.number for s in plan.segments} - set(valid)
        state.frames_done = sum(line["frames"] for line in valid.values())

    def _has_detections(self, state: FileState, done: Mapping[str, Any]) -> bool:
        """Whether what a detector found lies beside a result as it was written, where one was asked for."""
        if state.source.options.detect is None:
            return True
        found = place.stat(place.join(self.dest, f"{state.source.output}.{DETECTIONS}"))
        return found is not None and [found.size, found.tag] == list(done.get("detections") or ())

    def _refuse_foreign(self) -> None:
        """Raise OutputError for a file in DEST that no batch job wrote, and that one would replace; UsageError for a
        source that would be replaced by its own result."""
        for state in self.files.values():
            final, name = place.join(self.dest, state.source.output), state.source.name
            if place.is_url(final) or place.is_url(name) or not os.path.exists(final):
                continue
            if os.path.exists(name) and os.path.samefile(final, name):
                raise UsageError(f"{name} would be replaced by its own result", "write to another folder with -o")
        if self.options.overwrite:
            return
        finals: list[str] = []
        for key, state in self.files.items():
            entry = self.manifest.entries.get(key)
            ours = (entry is not None and entry.begun) or state.source.output in self.manifest.outputs
            if not state.over and not ours:
                final = place.join(self.dest, state.source.output)
                finals += [final] if state.source.options.detect is None else [final, f"{final}.{DETECTIONS}"]
        with ThreadPoolExecutor(_ASKING) as pool:
            for final, found in zip(finals, pool.map(place.stat, finals), strict=True):
                if found is not None:
                    raise OutputError(
                        f"{final} exists and is of no batch job", "--overwrite replaces it, -o writes elsewhere"
                    )

    def _take_over(self, left: Mapping[str, FileState]) -> None:
        """Make this driver the one whose actors may publish, and remove what an earlier one left unfinished."""
        name = place.join(self.dest, STATE, DRIVER)
        if place.is_url(self.dest):
            local = self.manifest.path.with_name(DRIVER)
            local.write_text(self.token, encoding="ascii")
            place.send(local, name)
            # The copy of the manifest is behind, and what actors write must be known as ours there before they do.
            for key, f in left.items():
                known = self.manifest.entries.get(key)
                if known is None or not known.begun:
                    self.manifest.add(
                        "begin", id=key, print=f.print, source=mask(f.source.name), output=f.source.output
                    )
            self.manifest.begin_copies(self.token)
            self.manifest.commit()
            self.manifest.send()
            return
        place.write_local(name, self.token.encode("ascii"))
        place.remove(place.join(self.dest, STATE, "work"))

    # --- the work ----------------------------------------------------------------------------------------------------

    def _common(self, left: Mapping[str, FileState]) -> tuple[tuple[ProcessOptions, ...], tuple[ProcessOptions, ...]]:
        """Options whose network, and whose detector, every actor tries before it is given work: those of most files."""
        networks: Counter[ProcessOptions] = Counter()
        detectors: Counter[ProcessOptions] = Counter()
        plain = parse(ProcessOptions, {})
        for f in left.values():
            o = f.source.options
            networks[plain.model_copy(update={n: getattr(o, n) for n in _NETWORK})] += 1
            if o.detect is not None:
                detectors[plain.model_copy(update={n: getattr(o, n) for n in _DETECTOR})] += 1
        return tuple(o for o, _ in networks.most_common(1)), tuple(o for o, _ in detectors.most_common(_TRIED))

    def _schedule(self, left: Mapping[str, FileState]) -> None:
        from streamdeblur.jobs.batch.cluster import connected, put
        from streamdeblur.jobs.batch.scheduler import Scheduler

        o = self.options
        names: dict[str, tuple[str, str]] = {}
        contents: dict[str, str] = {}
        # Weights and detectors: each node gets the bytes; what is no file (module:factory) every node must have.
        wanted = {s.options.weights for s in self.sources} | {_detector_file(s.options) for s in self.sources}
        for weights in wanted - {None}:
            assert weights is not None
            if weights.startswith("random:"):
                continue
            digest = fingerprint.combined(fingerprint.weights_print(None, weights))[:24]
            names[weights] = (digest, Path(weights).suffix)
            if not place.is_url(weights):
                contents[digest] = weights
        threads = o.threads or (max(1, int(o.cpus_per_worker)) if o.device in ("auto", "cpu") else None)
        networks, detectors = self._common(left)
        spec = JobSpec(
            self.dest,
            self.token,
            o.scratch,
            o.segment_seconds,
            o.verify,
            threads,
            names,
            self.build,
            networks,
            detectors,
        )
        with connected(o) as started_here:
            held = {digest: put(Path(path).read_bytes()) for digest, path in contents.items()}
            self.scheduler = Scheduler(left, o, spec, self.manifest, held, self.progress, self.files, started_here)
            with interrupts.held():
                try:
                    with interrupts.interruptible():
                        self.scheduler.run()
                except BaseException as e:
                    self._break_off(e)  # before Ray is shut down: whoever stops a job may soon kill it
                    raise

    # --- after -------------------------------------------------------------------------------------------------------

    def _clean_up(self) -> None:
        # An actor that Ray took for dead may still be at work on a node that was cut off: it must not publish any more.
        over = all(f.over for f in self.files.values())
        for name in (DRIVER, "work", "segments") if over else (DRIVER,):
            with suppress(StreamdeblurError):
                place.remove(place.join(self.dest, STATE, name))

    def _finish(self) -> BatchSummary:
        summary = self._summary("finished")
        _with_room(lambda: self._book_end(summary))
        try:
            self.manifest.send()
        except TakenOver:
            if self.scheduler is not None:
                raise
            log.debug("there was nothing to do, and another driver's token is in DEST")
        self._clean_up()
        _with_room(lambda: write_reports(summary, self.options))
        return summary

    def _break_off(self, e: BaseException) -> None:
        """Tell what was done, as far as that can be told; ``e`` goes on to the caller."""
        stopped = not isinstance(e, Exception)
        began = self.scheduler is not None and self.scheduler.crew.ever_ready
        if isinstance(e, TakenOver) or not (stopped or began):
            return
        summary = self._summary("stopped" if stopped else "failed")
        steps: tuple[Callable[[], None], ...] = (
            lambda: self._book_end(summary),
            lambda: write_reports(summary, self.options, pictures=not place.is_url(self.dest)),
            lambda: self.manifest.send(tries=1),
        )
        for step in steps:
            try:
                step()
            except Exception as other:
                log.warning("%s, and that could not be written down: %s", summary.state, other)
        over, count = sum(f.over for f in self.files.values()), len(self.files)
        log.warning("%s when %d of %d files were over; the same command goes on", summary.state, over, count)

    def _book_end(self, summary: BatchSummary) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.manifest.add("end", finished=now, state=summary.state, files=dict(summary.files))
        self.manifest.commit()

    def _summary(self, state: Literal["finished", "stopped", "failed"]) -> BatchSummary:
        scheduler = self.scheduler
        counts: dict[str, int] = {status: sum(f.status == status for f in self.files.values()) for status in STATUSES}
        seconds = time.monotonic() - self.started
        made = sum(f.frames_done for f in self.files.values() if not f.resumed)
        return BatchSummary(
            dest=self.dest,
            state=state,
            files=counts,
            resumed=sum(f.resumed for f in self.files.values()),
            frames=sum(f.frames_done for f in self.files.values() if f.over),
            seconds=round(seconds, 3),
            fps=round(made / seconds, 3) if seconds > 0 else 0.0,
            deaths=scheduler.crew.deaths if scheduler else 0,
            retries=scheduler.retries if scheduler else 0,
            actors=scheduler.crew.peak if scheduler else 0,
            idle=round(scheduler.crew.idle, 3) if scheduler else 0.0,
            transit=round(scheduler.crew.transit, 3) if scheduler else 0.0,
            report=place.join(self.dest, "report.html"),
            rows=tuple(_row(f) for f in self.files.values()),
            nodes=scheduler.node_frames if scheduler else {},
        )


def _with_room(step: Callable[[], None]) -> None:
    """Do it; on a full disk wait until there is room."""
    told = False
    while True:
        try:
            step()
        except DiskFull as e:
            if not told:
                log.warning("paused: %s", e)
                told = True
            time.sleep(_LOOK_FOR_ROOM)
        else:
            return


def _print(name: str, attempts: int, pause: float) -> tuple[str, int, str | None]:
    """Hash and size of a source; or why there is none. A store that does not answer is asked again, after ``pause``
    seconds, doubled each time."""
    for number in range(attempts):
        try:
            mark = fingerprint.source_print(name)
            found = place.stat(name)
        except UnreadableInput as e:
            return "", 0, str(e)
        except OutputError as e:
            if number == attempts - 1 or not place.is_url(name):
                return "", 0, str(e)
            time.sleep(pause * 2**number)
        else:
            return mark, found.size if found is not None else 0, None
    raise AssertionError("attempts is at least 1")


def _row(f: FileState) -> dict[str, Any]:
    """A file in the report."""
    s = f.summary
    return {
        "id": f.source.id,
        "source": mask(f.source.name),
        "output": f.source.output,
        "status": f.status,
        "resumed": f.resumed,
        "frames": s.get("frames", 0),
        "restored": s.get("restored", 0),
        "bypassed": s.get("bypassed", 0),
        "tiles": s.get("tiles"),
        "undecodable_packets": s.get("undecodable_packets", 0),
        "size": [s.get("width", 0), s.get("height", 0)],
        "segments": f.parts,
        "seconds": round(f.seconds, 3),
        "worker_seconds": round(f.spent, 3),
        "retries": f.tries,
        "encoder": s.get("encoder", ""),
        "device": s.get("device", ""),
        "node": s.get("node", ""),
        "verified": s.get("verified", False),
        "differences": s.get("differences", []),
        "warnings": [mask(text) for text in (*f.notes, *s.get("warnings", []))],
        "error": None if f.error is None else mask(f.error),
    }
