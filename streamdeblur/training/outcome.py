"""What a run tells: progress, validations, how it ended. Standard library only."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from streamdeblur.training.validation import Scores


@dataclass(frozen=True)
class Progress:
    """A snapshot of a run. step: steps done; rate: of the last step; loss, parts, norm: means since the last snapshot.

    images_per_second over all processes; waiting: share of the time spent waiting for data.
    seconds: since this run began, with ``resumed`` steps done before it.
    """

    step: int
    steps: int
    loss: float
    parts: dict[str, float]
    rate: float
    norm: float
    images_per_second: float
    waiting: float
    seconds: float
    resumed: int
    best: float | None


class Observer(Protocol):
    """Told what happens, on the main process only."""

    def on_progress(self, progress: Progress) -> None: ...

    def on_validation(self, step: int, scores: Scores) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a call of ``train`` ended. finished: all steps are done; stopped: why not, else ""."""

    step: int
    finished: bool
    stopped: str
    scores: Scores | None
    best: float | None
    folder: Path
    seconds: float

    @property
    def exit_code(self) -> int:
        """Of the process that ran it: 0, or 128 and the number of the signal that stopped it."""
        return 128 + int(signal.Signals[self.stopped]) if self.stopped.startswith("SIG") else 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "step": self.step,
            "finished": self.finished,
            "stopped": self.stopped,
            "best": self.best,
            "seconds": round(self.seconds, 1),
            "folder": str(self.folder),
            "scores": None if self.scores is None else self.scores.as_dict(),
        }
