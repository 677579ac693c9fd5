"""Observers of a run: a log in JSON lines, and TensorBoard where it is installed."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamdeblur.errors import DiskFull, OutputError
from streamdeblur.training.outcome import Progress
from streamdeblur.training.state import make_folder
from streamdeblur.training.validation import Scores

log = logging.getLogger(__name__)


class JsonLog:
    """Appends one JSON object a line to ``log.jsonl`` of the run: progress and validations, as they come.

    Raises DiskFull or OutputError where that can't be written.
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._path = folder / "log.jsonl"
        try:
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        except OSError as e:
            raise OutputError(f"can't write in the folder of the run {folder}: {e.strerror}", "name another") from e

    def on_progress(self, progress: Progress) -> None:
        p = progress
        self._write(
            step=p.step,
            loss=p.loss,
            **p.parts,
            rate=p.rate,
            norm=p.norm,
            images_per_second=p.images_per_second,
            waiting=p.waiting,
            seconds=p.seconds,
        )

    def on_validation(self, step: int, scores: Scores) -> None:
        self._write(step=step, validation={k: round(v, 4) for k, v in scores.as_dict().items()})

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a line that did not go out was told when it was written
            self._file.close()

    def _write(self, **values: Any) -> None:
        try:
            self._file.write(json.dumps({k: _number(v) for k, v in values.items()}) + "\n")
        except OSError as e:
            kind = DiskFull if e.errno in (errno.ENOSPC, errno.EDQUOT) else OutputError
            raise kind(f"can't write {self._path}: {e.strerror}", "make room; the same command goes on") from e


def _number(value: Any) -> Any:
    """Six digits of a float; null for one that JSON can't hold (the gradient's norm where fp16 overflowed)."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


class TensorBoard:
    """Curves, and strips of validation crops (blurred, restored, sharp), under ``tensorboard`` of the run.

    A run is worth more than its curves: where they can't be written, that is said once and they end.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder / "tensorboard"
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_error
        self._failed = False
        self._writer = SummaryWriter(str(self._folder))

    def on_progress(self, progress: Progress) -> None:
        p = progress
        values = {
            "train/loss": p.loss,
            **{f"train/{k}": v for k, v in p.parts.items()},
            "train/rate": p.rate,
            "train/gradient_norm": p.norm,
            "speed/images_per_second": p.images_per_second,
            "speed/waiting_for_data": p.waiting,
        }
        with self._guarded():
            for key, value in values.items():
                self._writer.add_scalar(key, value, p.step)

    def on_validation(self, step: int, scores: Scores) -> None:
        with self._guarded():
            for key, value in scores.as_dict().items():
                self._writer.add_scalar(f"validation/{key}", value, step)
            for strip in scores.strips:
                self._writer.add_image(f"validation/{strip.name}", strip.picture, step, dataformats="HWC")
            self._writer.flush()

    def close(self) -> None:
        with self._guarded():
            self._writer.close()
        threading.excepthook = self._hook

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            if not self._failed:
                log.warning("no more TensorBoard curves: %s can't be written: %s", self._folder, e.strerror or e)
            self._failed = True

    def _on_thread_error(self, error: threading.ExceptHookArgs) -> None:
        # The thread that writes hands its exception to the next call, and Python would print it before that.
        if isinstance(error.exc_value, OSError) and type(error.thread).__name__ == "_AsyncWriterThread":
            return
        self._hook(error)


def open_observers(folder: Path, *, tensorboard: bool = True) -> list[JsonLog | TensorBoard]:
    """The log, and TensorBoard unless it is not installed (said once) or not wanted."""
    observers: list[JsonLog | TensorBoard] = [JsonLog(folder)]
    if tensorboard:
        try:
            observers.append(TensorBoard(folder))
        except ImportError:
            log.warning("no TensorBoard curves: pip install 'streamdeblur[train]' brings it")
    return observers
