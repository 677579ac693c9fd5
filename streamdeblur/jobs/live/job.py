"""Live restoration: sources in, restored frames out in time, whatever breaks.

    LiveSource ─ frames ─► Line ─► [ pool ] ─► Line ─► Chain ─► encoder ─► Publisher ─► RTSP, HLS, TS, file
     (process)            (order,   shared by          (thread)    └─► taps: detection, preview   (process)
                          deadline) all sources

One thread of the job (``run``'s caller) feeds the pool: sources in turn, the oldest frame of each that can still be
restored in time, on the step where the ladder has the source. A source that dies, an output that stalls and a device
that is too slow each cost what they cost and nothing else.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from streamdeblur.config import parse
from streamdeblur.errors import InputError, UnreadableInput, UsageError
from streamdeblur.frames import Gap
from streamdeblur.jobs.live.chain import Chain
from streamdeblur.jobs.live.engines import BatchingPool, LiveRecipe, recipe_of
from streamdeblur.jobs.live.ladder import LadderSettings
from streamdeblur.jobs.live.options import LiveOptions, SourceOptions, named_sources, options_of
from streamdeblur.jobs.live.record import LiveLedger
from streamdeblur.jobs.live.scheduler import Lane, Scheduler
from streamdeblur.jobs.live.status import LiveSourceStatus, LiveStatus, Meter, gpu_mb, memory_mb
from streamdeblur.jobs.live.taps import OnFrame, Tap
from streamdeblur.jobs.live.treatment import WholeFrames, treatment_of
from streamdeblur.jobs.live.watching import LiveWatch, make_watches
from streamdeblur.runtime.pool import Factory, Pool, Result, Work
from streamdeblur.version import __version__
from streamdeblur.video.live.source import Arrived, LiveSource, SoundPacket, SourceSettings
from streamdeblur.video.live.urls import is_url, mask
from streamdeblur.video.publish import Publisher
from streamdeblur.video.publish_targets import Target, parse_target, prepare
from streamdeblur.video.publish_wire import PublishSettings

if TYPE_CHECKING:
    from streamdeblur.detect import Look
    from streamdeblur.jobs.live.preview import Preview

log = logging.getLogger(__name__)

#: Seconds between two looks at the pool while it works, and at all else while nothing happens.
_BUSY, _IDLE = 0.004, 0.05
#: Share of the deadline that is kept for what comes after the line, beside the measured work of the chain.
_MARGIN = 0.05
#: What a path may lead to beside files and folders.
_KINDS = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


@dataclass(frozen=True, slots=True)
class Engine:
    """What restores: a recipe as for ``runtime.pool`` and the names of the ladder's steps, bypass last. A `Work` gets
    ``engines.LiveFrame`` and looks at its step. device, model: for the status. saves: restore only the parts of a frame
    that need it, as the options say; the `Work` then gets regions beside the frame."""

    factory: Factory
    steps: tuple[str, ...]
    device: str = "cpu"
    model: str = ""
    saves: bool = False


@dataclass(frozen=True, slots=True)
class LiveSummary:
    """What a job did. failed: sources that were given up, with the reason."""

    seconds: float
    status: LiveStatus
    failed: Mapping[str, str]

    @property
    def silent(self) -> Mapping[str, str]:
        """Outputs and why they took nothing, where that holds for all of them; empty where one took something."""
        outputs = [o for s in self.status.sources for o in s.outputs]
        if any(o.packets for o in outputs):
            return {}
        return {o.target: o.error or "no frame came" for o in outputs}

    def as_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {"seconds": round(self.seconds, 3), "failed": dict(self.failed), **self.status.as_dict()}


class LiveJob:
    """A live job. ``run`` (or ``with`` and ``wait``) on one thread; everything else from any.

    sources: URLs or files beside those of the options. engine: what restores, instead of the options' model; tests pass
    a stand-in. ladder: its control law's constants. on_frame: see ``add_tap``.

    Raises UsageError, UnreadableInput (a file that is not there), WeightsError, DeviceError, OutputError before
    anything is opened.
    """

    def __init__(
        self,
        sources: Sequence[str] = (),
        *,
        options: LiveOptions | None = None,
        engine: Engine | None = None,
        ladder: LadderSettings | None = None,
        on_frame: Sequence[OnFrame] = (),
    ) -> None:
        self.options = options or parse(LiveOptions, {})
        self._named = named_sources(self.options, tuple(sources))
        for s in self._named:
            if not is_url(s.url):
                _check_file(s.url)
        own = {str(s.name): options_of(self.options, s) for s in self._named}
        _spare_sources(own, self._named)
        targets = {s.name: [parse_target(t) for t in s.to or ()] for s in self._named}
        for target in (t for several in targets.values() for t in several):
            prepare(target)
        self._stop = threading.Event()
        self._wake = threading.Condition()
        self._engine = engine if engine is not None else build_engine(self.options)
        self._workers = 1
        self._batch = 1
        self._pool = self._make_pool()
        self._scheduler = Scheduler(self._engine.steps, self._pool, settings=ladder, workers=self._workers)
        self.ladder = self._scheduler.ladder
        self._taps: tuple[Tap, ...] = tuple(Tap(f) for f in on_frame)
        self._started = time.monotonic()
        self._failed: dict[str, str] = {}
        self._streams: dict[str, _Stream] = {}
        self._watches: dict[str, LiveWatch] = {}
        self._preview: Preview | None = None
        try:
            self._watches = make_watches(own)
            self._preview = self._open_page()
            for s in self._named:
                self._streams[str(s.name)] = self._stream(
                    s, own[str(s.name)], [t for t in targets[s.name] if t.kind != "none"]
                )
        except BaseException:
            self._abandon()
            raise
        self._opened = False
        self._closed = False

    # --- making ------------------------------------------------------------------------------------------------------

    def _abandon(self) -> None:
        """End what was begun of a job that can't be."""
        for stream in self._streams.values():
            stream.chain.close()
        for watch in self._watches.values():
            watch.close()
        if self._preview is not None:
            self._preview.close()
        self._pool.close(abort=True)

    def _shares_cores(self) -> bool:
        """Whether restoration takes time from the cores that encode: then less of it helps where encoding is behind."""
        return not self._engine.device.startswith("cuda") and self.options.ray in (None, "local", "")

    def _make_pool(self) -> Pool:
        o, engine = self.options, self._engine
        if o.workers is None and o.ray is None:
            self._batch = o.batch or (4 if engine.device.startswith("cuda") else 1)
            return BatchingPool(engine.factory, self._batch, self._notify)
        from streamdeblur.runtime.ray_pool import RayPool

        gpu = engine.device.startswith("cuda")
        self._workers = o.workers or 1
        return RayPool(
            engine.factory,
            workers=self._workers,
            address=None if o.ray in (None, "local", "") else o.ray,
            num_gpus=o.gpus_per_worker if o.gpus_per_worker is not None else float(gpu),
            in_flight_per_worker=2 if gpu else 1,
            threads=o.threads,
        )

    def _open_page(self) -> Preview | None:
        """The page, which answers from now on."""
        if self.options.preview is None:
            return None
        from streamdeblur.jobs.live.preview import Preview

        def look(name: str) -> Look | None:
            return self._watches[name].latest() if name in self._watches else None

        page = Preview(lambda: self.status().as_dict(), self.options, looks=look).start()
        self.add_tap(page.show, depth=max(8, len(self._named)))
        return page

    @property
    def page(self) -> str | None:
        """Where the preview page is, without its token; None without one."""
        return None if self._preview is None else self._preview.url

    def _stream(self, source: SourceOptions, o: LiveOptions, targets: Sequence[Target]) -> _Stream:
        treatment = treatment_of(o) if self._engine.saves else WholeFrames()
        assert source.name is not None
        name = source.name
        settings = PublishSettings(
            segment=o.segment_seconds,
            hls_time=o.hls_seconds,
            hls_window=o.hls_window,
            transport=o.transport,
            reserve=int(o.reserve_mb * 1e6),
            stall=o.output_stall,
        )
        ledger = LiveLedger(
            _ledger_path(o.ledger, name, len(self._named)),
            name=name,
            source=mask(source.url),
            output=", ".join(t.shown for t in targets) or "none",
            settings={**o.model_dump(mode="json", exclude={"sources", "to"})},
            version=__version__,
        )
        publishers = [Publisher(name, t, settings) for t in targets]
        watch = self._watches.get(name)
        chain = Chain(name, o, self._engine.steps, publishers, treatment, ledger, lambda: self._taps, watch)
        latency = o.latency_ms / 1000
        late: Literal["passed", "dropped"] = "dropped" if o.late == "drop" else "passed"
        emit = chain.put if self._shares_cores() else lambda entry: chain.put(entry) or True
        lane = self._scheduler.add(name, latency * (1 - _MARGIN), o.queue, late, treatment, emit)
        if not source.restore:
            self.ladder.pin(name, self.ladder.bypass)
        stream = _Stream(name, latency, lane, chain, watch)
        stream.source = LiveSource(
            name,
            source.url,
            SourceSettings(
                transport=source.transport or o.transport,
                stall=o.stall,
                give_up=o.give_up,
                loop=bool(source.loop),
                audio=bool(source.audio),
            ),
            on_frame=lambda a: self._arrived(stream, a),
            on_sound=lambda p: self._sound(stream, p),
            on_end=lambda e: self._ended(stream, e),
        )
        return stream

    # --- called on other threads -------------------------------------------------------------------------------------

    def add_tap(self, function: OnFrame, depth: int = 2) -> Tap:
        """Show every frame that leaves to ``function(source, before, after, meta)``, on a thread of its own."""
        tap = Tap(function, depth)
        self._taps = (*self._taps, tap)
        return tap

    def remove_tap(self, tap: Tap) -> None:
        """Show it no more frames, and end its thread."""
        self._taps = tuple(t for t in self._taps if t is not tap)
        tap.close()

    def pin(self, source: str, step: str | None) -> None:
        """Keep a source on a step of the ladder ("bypass", for one where restoration does not pay); None lets it go."""
        with self._wake:
            self.ladder.pin(source, None if step is None else self.ladder.steps.index(step))

    def stop(self) -> None:
        """Ask for the end; ``run`` then closes everything in order. Thread-safe, and safe in a signal handler."""
        self._stop.set()

    def source(self, name: str) -> LiveSource:
        """The source of that name. Raises KeyError."""
        found = self._streams[name].source
        assert found is not None
        return found

    def status(self) -> LiveStatus:
        """A snapshot."""
        now = time.monotonic()
        with self._wake:
            load = self.ladder.load(now)
            rows = tuple(self._row(s, now) for s in list(self._streams.values()))
        return LiveStatus(
            seconds=round(now - self._started, 3),
            device=self._engine.device,
            model=self._engine.model,
            steps=self.ladder.steps,
            latency_ms=self.options.latency_ms,
            load=round(load, 3),
            memory_mb=round(memory_mb(), 1),
            gpu_mb=gpu_mb(self._engine.device),
            sources=rows,
        )

    def _row(self, s: _Stream, now: float) -> LiveSourceStatus:
        assert s.source is not None
        st = s.source.status
        chain = s.chain
        counts = chain.ledger.counts
        p50, p95 = chain.latency.percentiles(now, (0.5, 0.95))
        tiles = chain.ledger.tiles
        all_tiles = tiles.restored + tiles.reused + tiles.skipped
        step = self.ladder.step_of(s.name)
        return LiveSourceStatus(
            name=s.name,
            url=s.source.shown,
            state=st.state,
            codec=st.codec,
            width=st.size[0] if st.size else None,
            height=st.size[1] if st.size else None,
            latency_ms=round(s.latency * 1000, 3),
            fps_in=round(s.arrivals.rate(now), 2),
            fps_out=round(chain.latency.rate(now), 2),
            latency_p50_ms=None if p50 is None else round(p50 * 1000, 1),
            latency_p95_ms=None if p95 is None else round(p95 * 1000, 1),
            frames=st.frames,
            restored=counts["restored"],
            bypassed=counts["bypassed"],
            dropped=counts["dropped"],
            failed=s.lane.failures,
            late=chain.late,
            behind=min(chain.behind, counts["dropped"]),  # it is known before they are booked, in their turn
            undecodable=st.undecodable,
            waiting=s.lane.line.waiting,
            step=self.ladder.steps[step],
            step_index=step,
            restore_ms=round(self.ladder.cost(s.name) * 1000, 1) or None,
            costs_ms=tuple(None if c is None else round(c * 1000, 1) for c in self.ladder.costs(s.name)),
            reused=round(tiles.reused / all_tiles, 3) if all_tiles else None,
            reconnects=st.reconnects,
            restarts=st.restarts,
            error=st.error or s.lane.error or chain.error,
            outputs=tuple(p.status for p in chain.publishers),
            detection=None if s.watch is None else s.watch.stats(),
            ledger=chain.ledger.status(),
        )

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _arrived(self, s: _Stream, arrived: Arrived) -> None:
        now = time.monotonic()
        s.arrivals.add(now)
        with self._wake:
            self._scheduler.arrived(s.lane, arrived, now, spare=s.watch is not None and s.watch.spares(arrived))
            self._wake.notify()

    def _sound(self, s: _Stream, packet: SoundPacket) -> None:
        s.chain.sound(packet)

    def _ended(self, s: _Stream, error: str | None) -> None:
        with self._wake:
            s.ended = True
            if error is not None:
                self._failed[s.name] = error
            self._wake.notify()

    # --- the thread of the job ---------------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the sources."""
        if not self._opened:
            self._opened = True
            self._started = time.monotonic()
            for s in self._streams.values():
                assert s.source is not None
                s.source.start()

    def run(self, progress: Callable[[LiveStatus], None] | None = None, every: float = 1.0) -> LiveSummary:
        """Work until the sources have ended, the duration is over, or ``stop`` is called; then close in order.

        progress: called on this thread every ``every`` seconds. Raises what ended the workers for good, and InputError
        when every source was given up.
        """
        limit = self.options.duration
        told = time.monotonic()
        try:
            self.open()
            while not self._stop.is_set():
                self._turn_once()
                now = time.monotonic()
                if limit is not None and now - self._started >= limit:
                    break
                if all(s.ended and not len(s.lane.line) for s in self._streams.values()):
                    break
                if progress is not None and now - told >= every:
                    told = now
                    progress(self.status())
        finally:
            self.close()
        status = self.status()
        if self._failed and len(self._failed) == len(self._streams):
            name, why = next(iter(self._failed.items()))
            raise InputError(f"source {name} ({self.source(name).shown}) was given up: {mask(why)}")
        return LiveSummary(time.monotonic() - self._started, status, {n: mask(e) for n, e in self._failed.items()})

    def close(self) -> None:
        """End sources, finish what is under way, close outputs. Idempotent."""
        if self._closed:
            return
        self._closed = True
        threads = [threading.Thread(target=s.close, name="closing") for s in self._streams.values()]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for tap in self._taps:
            tap.close()
        if self._preview is not None:
            self._preview.close()
        self._pool.close(abort=True)

    def _turn_once(self) -> None:
        """Let leave what is due, give the pool what it can take, take what it has done, judge."""
        with self._wake:
            now = time.monotonic()
            for s in self._streams.values():
                s.lane.line.latency = self._time_of_line(s)
            due = self._scheduler.turn(now)
            next_due = now + _IDLE if due is None else min(due, now + _IDLE)
            busy = self._pool.in_flight > 0
            results: list[Result | Gap] = []
            own = isinstance(self._pool, BatchingPool)
            if own and self._batch == 1:
                # Frames side by side, each on its share of the cores: known once the work is built.
                self.ladder.workers = self._pool.capacity
            if busy and own:
                results = self._pool.collect(0.0)
            if not results and (own or not busy):
                self._wake.wait(max(0.0005, min(next_due - now, _IDLE)))
                if busy and own:
                    results = self._pool.collect(0.0)
        if busy and not own:
            # Ray tells nobody: look often, and let arrivals in meanwhile.
            results = self._pool.collect(max(0.0005, min(next_due - now, _BUSY)))
        if results:
            with self._wake:
                now = time.monotonic()
                for result in results:
                    self._scheduler.done(result, now)

    def _time_of_line(self, s: _Stream) -> float:
        return max(0.2 * s.latency, s.latency * (1 - _MARGIN) - 1.5 * s.chain.work)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Stream:
    """All that belongs to one source. latency: its deadline in seconds."""

    def __init__(self, name: str, latency: float, lane: Lane, chain: Chain, watch: LiveWatch | None) -> None:
        self.name = name
        self.latency = latency
        self.watch = watch
        self.lane = lane
        self.chain = chain
        self.source: LiveSource | None = None
        self.arrivals = Meter()
        self.ended = False

    def close(self) -> None:
        """Stop the source, let all frames leave, close the outputs."""
        assert self.source is not None
        self.source.stop()
        for entry in self.lane.line.flush():
            self.chain.put(entry)
        self.chain.close()
        if self.watch is not None:
            self.watch.close()


def build_engine(options: LiveOptions) -> Engine:
    """The engine of the options' model. Weights and device are checked here, by building it once."""
    recipe = recipe_of(options)
    if options.workers is not None or options.ray is not None:
        device = str(recipe.steps[0].restorer.build().engine.device)
        return Engine(recipe, recipe.names, device, recipe.steps[0].name, recipe.learned)
    work = recipe()
    return Engine(_Built(work), recipe.names, work.device, recipe.steps[0].name, recipe.learned)


class _Built:
    """The factory of a work that is there already, for the one worker in this process."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self) -> Work:
        return self._work


def _check_file(path: str) -> None:
    """Raises UnreadableInput for a source that is no URL and no file either."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableInput(f"{path} does not exist", "check the path") from None
    except (OSError, ValueError) as e:
        raise UnreadableInput(f"{path!r} can't be looked at: {getattr(e, 'strerror', e)}", "check the path") from e
    if stat.S_ISDIR(mode):
        raise UnreadableInput(
            f"{path} is a folder, and live takes streams and video files",
            "name a file in it; `streamdeblur process` takes folders of pictures, `streamdeblur batch` those of videos",
        )
    if not stat.S_ISREG(mode):
        raise UnreadableInput(
            f"{path} is a {_KINDS.get(stat.S_IFMT(mode), 'special file')}, and live takes streams and video files",
            "serve it as a stream, as MPEG-TS over udp://",
        )


def _spare_sources(own: Mapping[str, LiveOptions], sources: Sequence[SourceOptions]) -> None:
    """Refuse what would write over a source that is a file."""
    for source in sources:
        if is_url(source.url):
            continue
        options = own[str(source.name)]
        ledger = _ledger_path(options.ledger, str(source.name), len(sources))
        for word, path in (
            ("ledger", ledger),
            ("detections", options.detections),
            *(("to", t) for t in source.to or ()),
        ):
            if path is not None and os.path.exists(path) and os.path.samefile(path, source.url):
                raise UsageError(f"{word} {path} is the source itself", f"name another file with --{word}")


def _ledger_path(path: Path | None, name: str, sources: int) -> Path | None:
    """One file a source: NAME.SOURCE.EXT where there are several."""
    if path is None or sources == 1:
        return path
    return path.with_name(f"{path.stem}.{name}{path.suffix}")


def run_live(
    sources: Sequence[str] = (),
    *,
    options: LiveOptions | None = None,
    progress: Callable[[LiveStatus], None] | None = None,
) -> LiveSummary:
    """Restore live sources until they end or ``options.duration`` is over; blocks. See ``LiveJob``."""
    return LiveJob(sources, options=options).run(progress)


__all__ = ["Engine", "LiveJob", "LiveRecipe", "LiveSummary", "build_engine", "run_live"]
