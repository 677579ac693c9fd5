"""What can go wrong, drawn first.

    StreamdeblurError            anything we can explain
    ├── UsageError               the caller's words: an option, a key, a combination
    │   └── ConfigError          a YAML file or one of its values
    ├── InputError               the source can't be read as what it should be
    │   ├── UnreadableInput      missing, empty, not media, no video stream
    │   └── BrokenStream         it began well and broke at a known time
    ├── OutputError              the result can't be written
    │   ├── EncoderError         no encoder takes these frames, or one failed
    │   └── DiskFull             no room on the target's file system
    ├── WeightsError             a checkpoint is missing, foreign, truncated or of another network
    ├── DeviceError              the device, precision or memory asked for is not there
    ├── WorkerError              a worker failed for good, or one frame kills every worker
    ├── TrainingError            a training run diverged or can't go on
    ├── MismatchError            output and input disagree (verify, ledger)
    └── Interrupted              Ctrl-C or SIGTERM

Every error is one line: what happened, the value, what to do. ``exit_code`` is what the command line returns.
"""

from __future__ import annotations


class StreamdeblurError(Exception):
    """Anything streamdeblur can explain: one line with what went wrong, the value and what to do.

    Parameters
    ----------
    what: the fact, with the value in it, without a final full stop.
    hint: what the reader can do about it; appended after a semicolon.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str | None = None) -> None:
        self.what = " ".join(str(what).split())
        self.hint = " ".join(hint.split()) if hint else None
        super().__init__(f"{self.what}; {self.hint}" if self.hint else self.what)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (Ray); the default would call __init__ with one joined line.
        return (type(self), (self.what, self.hint))


class UsageError(StreamdeblurError):
    """An option, an argument or a combination of them that can't be acted on."""

    exit_code = 2


class ConfigError(UsageError):
    """A YAML file, a key in it or a value is not what the strict model takes."""


class InputError(StreamdeblurError):
    """The source can't be read as what it should be."""


class UnreadableInput(InputError):
    """The source is missing, empty, not media, or has no picture in it."""


class BrokenStream(InputError):
    """The source began well and broke at a known time; what came before is good."""


class OutputError(StreamdeblurError):
    """The result can't be written."""


class EncoderError(OutputError):
    """No encoder takes these frames, or the one chosen failed."""


class DiskFull(OutputError):
    """There is no room on the file system of the target."""


class WeightsError(StreamdeblurError):
    """A checkpoint is missing, foreign, truncated, or belongs to another network."""


class DeviceError(StreamdeblurError):
    """The device, precision or memory asked for is not there."""


class WorkerError(StreamdeblurError):
    """A worker failed for good, or one frame kills every worker that takes it."""


class TrainingError(StreamdeblurError):
    """A training run diverged, or can't be continued."""


class MismatchError(StreamdeblurError):
    """Output and input disagree where they must not."""


class Interrupted(StreamdeblurError):
    """The user or the system asked the job to stop (Ctrl-C, SIGTERM)."""

    exit_code = 130
