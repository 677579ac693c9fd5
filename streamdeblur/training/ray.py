"""A training run on Ray (Ray Train): one process a GPU, on this machine or a cluster; it survives dying workers.

Ray brings the processes up, joins them to a process group, and brings all of them up again when one dies. What a run
is, lies in its folder as everywhere (``streamdeblur.training.trainer``), which all nodes must see under the same path:
a group that comes up again goes on from the last state in it. Words between driver and workers (progress, warnings, the
wish to stop) go through an actor, the mailbox.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import ray.exceptions

from streamdeblur.errors import DeviceError, StreamdeblurError, UsageError, WorkerError
from streamdeblur.runtime import ray_session
from streamdeblur.training.feeds import open_batches, open_validation
from streamdeblur.training.outcome import Observer, Outcome, Progress
from streamdeblur.training.recipe import Recipe
from streamdeblur.training.run import run_training
from streamdeblur.training.stopping import HURRY_AFTER
from streamdeblur.training.validation import Scores

log = logging.getLogger(__name__)

#: Deaths of workers that a run survives.
MAX_FAILURES = 3

#: Seconds between looks at the mailbox, on both sides.
_TICK = 0.5

#: Seconds that workers get to save when the driver fails.
_PATIENCE = 20.0

_ray: Any = ray  # parts of it are not typed


def run_on_ray(
    recipe: Recipe,
    folder: Path,
    *,
    address: str | None = None,
    workers: int | None = None,
    max_minutes: float | None = None,
    threads: int | None = None,
    tensorboard: bool = True,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Train, or go on with the run in ``folder``, on Ray. Blocks until it ends; SIGTERM and SIGINT save and stop it.

    address: None for the Ray of this process or, without one, this machine; "auto" or "host:port" join a cluster, whose
    nodes have streamdeblur and see the folders under the same paths. workers: processes; None takes one a GPU, or one
    in all where there is none. ``recipe.data.batch`` is that of each. threads: of each; None shares the cores out on
    CPUs. max_minutes: see ``Trainer.train``; it includes restarts.

    Raises UsageError where Ray Train's own dependencies are missing, DeviceError when the cluster does not answer or is
    too small, WorkerError when workers died more than ``MAX_FAILURES`` times, and what ``run_training`` raises.
    """
    _require_ray_train()
    deadline = None if max_minutes is None else time.time() + 60 * max_minutes
    with _connected(address, workers, threads):
        scale = _scale(workers, threads)
        _look(recipe, scale.workers)
        mailbox = _ray.remote(num_cpus=0)(_Mailbox).remote()
        errand = _Errand(
            recipe, str(folder.resolve()), os.getcwd(), deadline, scale.threads, tensorboard, not scale.gpus, mailbox
        )
        fit = _Fit(errand, scale)
        try:
            with _signals_to(mailbox):
                fit.start()
                while fit.is_alive():
                    fit.join(_TICK)
                    _pass_on(mailbox, observers)
                _pass_on(mailbox, observers)
            failure = _ray.get(mailbox.failure.remote())
        except BaseException:  # an observer's fault, or a second signal: the workers must not train on unseen
            mailbox.stop.remote(int(signal.SIGTERM))
            fit.join(_PATIENCE)
            raise
        finally:
            _ray.kill(mailbox)
    if failure is not None:
        raise failure
    if fit.error is not None:
        raise WorkerError(
            f"training on Ray failed: {_cause(fit.error)}", f"the state in {folder} is kept; the same command goes on"
        ) from fit.error
    assert fit.outcome is not None
    return fit.outcome


def _require_ray_train() -> None:
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as e:
        raise UsageError("Ray Train lacks libraries of its own (pandas, pyarrow)", "pip install 'ray[train]'") from e


@contextmanager
def _connected(address: str | None, workers: int | None, threads: int | None) -> Iterator[None]:
    """Inside a Ray: this process's own, a cluster's, or one that is started here and ended again."""
    if ray.is_initialized():
        yield
        return
    address = ray_session.chosen_address(address)
    if address.startswith("ray://"):
        raise UsageError(f"training does not run through a Ray client ({address})", "submit it as a job instead")
    # As many processes as are asked for, also on fewer cores.
    local = {} if workers is None else {"num_cpus": max(os.cpu_count() or 1, workers * (threads or 1))}
    ray_session.start(address, **local)
    try:
        yield
    finally:
        ray_session.shut_down()


@dataclass(frozen=True)
class _Scale:
    workers: int
    gpus: bool
    threads: int


def _scale(workers: int | None, threads: int | None) -> _Scale:
    """How many processes, on what. Raises DeviceError for more than there is room for: Ray would wait for ever."""
    there = _ray.cluster_resources()
    gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
    count = workers or gpus or 1
    if 0 < gpus < count:
        raise DeviceError(f"{count} workers need a GPU each, the cluster has {gpus}", f"take --workers {gpus}")
    nodes = [int(n["Resources"].get("CPU", 0)) for n in _ray.nodes() if n["Alive"]]
    if threads is None:
        threads = 1 if gpus else max(1, min(nodes) // -(-count // len(nodes)))
    if count * threads > cpus:
        raise DeviceError(
            f"{count} workers of {threads} threads need {count * threads} CPUs, the cluster has {cpus}",
            "ask for fewer workers or threads",
        )
    return _Scale(count, gpus > 0, threads)


def _look(recipe: Recipe, workers: int) -> None:
    """Find here what workers would not find: they take a minute to come up, and a group of them comes up twice to fail.

    Raises what ``run_training`` raises of a recipe's files.
    """
    open_batches(recipe, world=workers).close()
    open_validation(recipe.validation.sets)


# --- between driver and workers ------------------------------------------------------------------------------------


class _Mailbox:
    """An actor. Keeps what workers tell until the driver takes it, and what the driver wants until they ask."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []
        self._failure: StreamdeblurError | None = None
        self._signal = 0
        self._groups = 0

    def begin(self) -> int:
        """A group of workers starts: its number, from 1."""
        self._groups += 1
        return self._groups

    def tell(self, kind: str, value: Any) -> None:
        self._events.append((kind, value))

    def take(self) -> list[tuple[str, Any]]:
        events, self._events = self._events, []
        return events

    def fail(self, error: StreamdeblurError) -> None:
        """The first error is the cause; the others follow from it."""
        self._failure = self._failure or error

    def failure(self) -> StreamdeblurError | None:
        return self._failure

    def stop(self, number: int) -> None:
        self._signal = number

    def asked(self) -> int:
        return self._signal


@contextmanager
def _signals_to(mailbox: Any) -> Iterator[None]:
    """SIGTERM and SIGINT become a wish in the mailbox; a later Ctrl-C ends the driver at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[float] = []  # the first signal and when it came

    def on_signal(number: int, frame: FrameType | None) -> None:
        if asked:
            if number == signal.SIGINT and time.monotonic() - asked[1] > HURRY_AFTER:
                raise KeyboardInterrupt
            return
        asked.extend((number, time.monotonic()))
        # From a thread: the handler may have interrupted a call into Ray that holds its locks.
        threading.Thread(target=mailbox.stop.remote, args=(number,), daemon=True).start()

    kept = {n: signal.signal(n, on_signal) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _pass_on(mailbox: Any, observers: Sequence[Observer]) -> None:
    for kind, value in _ray.get(mailbox.take.remote()):
        if kind == "warning":
            log.warning("%s", value)
        for observer in observers:
            if kind == "progress":
                observer.on_progress(value)
            elif kind == "validation":
                observer.on_validation(*value)


class _Fit(threading.Thread):
    """``TorchTrainer.fit`` in a thread: on the main one it would take Ctrl-C for itself."""

    def __init__(self, errand: _Errand, scale: _Scale) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._errand, self._scale = errand, scale
        self.outcome: Outcome | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        work: Any = _work  # typed as if it might not return anything
        storage = Path(self._errand.folder) / ".ray"  # Ray's own notes, of no use afterwards
        trainer = TorchTrainer(
            work,
            train_loop_config={"errand": self._errand},
            torch_config=TorchConfig(backend="nccl" if self._scale.gpus else "gloo", timeout_s=7200),
            scaling_config=ScalingConfig(
                num_workers=self._scale.workers,
                use_gpu=self._scale.gpus,
                resources_per_worker={"CPU": self._scale.threads, **({"GPU": 1} if self._scale.gpus else {})},
            ),
            run_config=RunConfig(
                name=f"{os.getpid()}-{time.time_ns()}",
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        try:
            result: Any = trainer.fit()
            self.outcome = result.return_value
        except Exception as e:
            self.error = e
        finally:
            shutil.rmtree(storage, ignore_errors=True)


def _cause(error: BaseException) -> str:
    """The last line of what Ray has to say, which holds the exception."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[-1].split())[:300] if lines else type(error).__name__


# --- in a worker ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Errand:
    """What a worker has to do, as it travels to it."""

    recipe: Recipe
    folder: str
    current: str
    deadline: float | None
    threads: int
    tensorboard: bool
    on_cpu: bool
    mailbox: Any


def _work(config: dict[str, Any]) -> Outcome | None:
    """The run in one worker; the outcome on the first. A fault of the user's is told once and not tried again."""
    import ray.train

    errand: _Errand = config["errand"]
    mailbox = errand.mailbox
    if _ray.get(mailbox.failure.remote()) is not None:
        return None
    first = ray.train.get_context().get_world_rank() == 0
    logger = logging.getLogger("streamdeblur")
    teller = _Teller(mailbox)
    logger.addHandler(teller)
    ask = _Asker(mailbox)
    try:
        if first and _ray.get(mailbox.begin.remote()) > 1:
            log.warning("a worker died; all of them go on from the last state in %s", errand.folder)
        _enter(errand.current)
        minutes = None if errand.deadline is None else max(1e-6, (errand.deadline - time.time()) / 60)
        outcome = run_training(
            errand.recipe,
            Path(errand.folder),
            device="cpu" if errand.on_cpu else "cuda",
            threads=errand.threads,
            max_minutes=minutes,
            tensorboard=errand.tensorboard,
            observers=[_Reports(mailbox)] if first else [],
            asked=ask,
        )
        return outcome if first else None
    except StreamdeblurError as e:
        _ray.get(mailbox.fail.remote(e))
        if ray.train.get_context().get_world_size() == 1:
            return None
        raise  # the others may be waiting for this one: Ray ends them, and tries once more to no avail
    finally:
        ask.close()
        logger.removeHandler(teller)


def _enter(folder: str) -> None:
    """Relative paths of the recipe mean the driver's current folder."""
    try:
        os.chdir(folder)
    except OSError as e:
        raise UsageError(
            f"{os.uname().nodename} has no folder {folder}", "start from a folder that all nodes share"
        ) from e


class _Reports:
    """An observer that tells the driver."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def on_progress(self, progress: Progress) -> None:
        self._mailbox.tell.remote("progress", progress)

    def on_validation(self, step: int, scores: Scores) -> None:
        self._mailbox.tell.remote("validation", (step, scores))

    def close(self) -> None:
        pass


class _Teller(logging.Handler):
    """Warnings of the package to the driver."""

    def __init__(self, mailbox: Any) -> None:
        super().__init__(logging.WARNING)
        self._mailbox = mailbox

    def emit(self, record: logging.LogRecord) -> None:
        self._mailbox.tell.remote("warning", record.getMessage())


class _Asker:
    """Looks into the mailbox now and then; calling it gives the signal that the driver got, 0 for none, at once."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._signal = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="asker", daemon=True)
        self._thread.start()

    def __call__(self) -> int:
        return self._signal

    def _look(self) -> None:
        while not self._ended.wait(_TICK):
            try:
                self._signal = _ray.get(self._mailbox.asked.remote())
            except ray.exceptions.RayError:  # the driver is gone, and this worker will be
                return

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
