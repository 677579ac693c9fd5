"""Our checkpoints: safetensors with string metadata that says what the weights are and where they come from."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from streamdeblur.errors import DiskFull, OutputError, WeightsError
from streamdeblur.models.mimo_unet import MIMOUNet, MIMOUNetConfig, parameter_shapes

FORMAT = "streamdeblur-weights"
FORMAT_VERSION = 1
_OWN_KEYS = frozenset(
    {
        "format",
        "format_version",
        "variant",
        "config",
        "training_data",
        "recipe",
        "score",
        "score_note",
        "licence",
        "created_by",
    }
)
_NAMED = 3  # keys that an error line names before it counts the rest

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a checkpoint says of itself.

    variant: name in the registry, or any word for a network of its own. config: its architecture.
    score: mean PSNR in dB on the validation set, None if never measured; score_note: which set, measured how.
    created_by: program and version; filled in when saved if empty. extra: further entries, kept as they are.
    """

    variant: str
    config: MIMOUNetConfig
    training_data: str = "unknown"
    recipe: str = "unknown"
    score: float | None = None
    score_note: str = ""
    licence: str = "unknown"
    created_by: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """In a few words: variant, size, training data, score."""
        count = sum(math.prod(shape) for shape in parameter_shapes(self.config).values())
        score = "" if self.score is None else f", {self.score:.2f} dB"
        return f"{self.variant}, {count / 1e6:.2f} M parameters, trained on {self.training_data}{score}"

    def to_strings(self) -> dict[str, str]:
        """Entries of the safetensors header."""
        clash = sorted(self.extra.keys() & _OWN_KEYS)
        if clash:
            raise ValueError(f"extra entry {clash[0]!r} has the name of an entry of the format")
        return {
            **self.extra,
            "format": FORMAT,
            "format_version": str(FORMAT_VERSION),
            "variant": self.variant,
            "config": self.config.to_json(),
            "training_data": self.training_data,
            "recipe": self.recipe,
            "score": "" if self.score is None else repr(float(self.score)),
            "score_note": self.score_note,
            "licence": self.licence,
            "created_by": self.created_by or _program(),
        }

    @classmethod
    def from_strings(cls, entries: Mapping[str, str]) -> Metadata:
        """Inverse of ``to_strings``. Raises ValueError saying which entry is wrong."""
        if entries.get("format") != FORMAT:
            raise ValueError(f"no entry format={FORMAT}")
        version = entries.get("format_version", "")
        if not version.isdecimal() or int(version) > FORMAT_VERSION:
            raise ValueError(f"format version {version!r}, this program reads up to {FORMAT_VERSION}")
        if not entries.get("variant"):
            raise ValueError("no variant entry")
        score = float(entries["score"]) if entries.get("score") else None
        if score is not None and not math.isfinite(score):
            raise ValueError(f"score {score}")
        return cls(
            variant=entries["variant"],
            config=MIMOUNetConfig.from_json(entries.get("config", "")),
            training_data=entries.get("training_data", "unknown"),
            recipe=entries.get("recipe", "unknown"),
            score=score,
            score_note=entries.get("score_note", ""),
            licence=entries.get("licence", "unknown"),
            created_by=entries.get("created_by", ""),
            extra={k: v for k, v in entries.items() if k not in _OWN_KEYS},
        )


def _program() -> str:
    try:
        return f"streamdeblur {importlib.metadata.version('streamdeblur')}"
    except importlib.metadata.PackageNotFoundError:  # copied to a machine, not installed there
        return "streamdeblur"


#: Files of ``export``, which hold a network and not the weights of one.
_PROGRAMS = {
    ".onnx": "a network in ONNX, for evaluate --model and other programs",
    ".pt2": "a program of torch.export, for evaluate --model and other programs",
    ".xml": "a network of OpenVINO, for other programs",
}


def save_checkpoint(path: str | os.PathLike[str], weights: MIMOUNet | Mapping[str, Tensor], metadata: Metadata) -> None:
    """Write a network's weights, in the dtype they have, and what is known of them.

    The file appears under ``path`` only when complete; one that was there is replaced. Raises WeightsError when the
    weights do not fit ``metadata.config`` or are not finite, OutputError (DiskFull) when it can't be written.
    """
    target = Path(path)
    source = weights.state_dict() if isinstance(weights, MIMOUNet) else weights
    state = {name: value.detach().to("cpu").contiguous() for name, value in source.items()}
    check_state(f"weights for {target}", state, parameter_shapes(metadata.config), metadata.variant)
    # A copy each: safetensors refuses tensors that share memory.
    data = to_safetensors({name: value.clone() for name, value in state.items()}, metadata=metadata.to_strings())
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as exc:
        kind = DiskFull if exc.errno in (errno.ENOSPC, errno.EDQUOT) else OutputError
        raise kind(f"can't write weights to {target}: {exc.strerror}", "write them elsewhere, or make room") from exc
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[State, Metadata]:
    """Weights in float32 on the CPU, checked against the architecture that the file names, and its metadata.

    Raises WeightsError, one line, for whatever is wrong with the file.
    """
    with _opened(path) as (file, metadata):
        state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_state(str(path), state, parameter_shapes(metadata.config), metadata.variant)
        # Copied out of the memory map: the file may be overwritten while the network lives.
        return {name: value.to(torch.float32, copy=True) for name, value in state.items()}, metadata


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """The metadata alone; no tensor is read. Raises WeightsError like ``load_checkpoint``."""
    with _opened(path) as (_, metadata):
        return metadata


def require_file(path: str | os.PathLike[str]) -> Path:
    """``path``, if it is a readable file with something in it; else WeightsError."""
    file = Path(path)
    try:
        if file.is_dir():
            raise WeightsError(f"{file} is a folder, not a weights file", "name the file in it")
        with file.open("rb") as handle:
            if not handle.read(1):
                raise WeightsError(f"{file} is empty", "fetch or export the weights again")
    except FileNotFoundError:
        raise WeightsError(f"there is no weights file {file}", "check the path") from None
    except (OSError, ValueError) as exc:
        raise WeightsError(f"can't read weights from {file}: {getattr(exc, 'strerror', None) or exc}") from exc
    return file


def is_safetensors(path: Path) -> bool:
    """Whether the file begins like safetensors: the length of a JSON header, and its first brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def is_pickle(path: Path) -> bool:
    """Whether the file starts as ``torch.save`` begins its files (a zip archive, or before torch 1.6 a pickle)."""
    with path.open("rb") as file:
        head = file.read(4)
    # Byte 8 of a safetensors file opens its JSON header; the length before it may begin with any byte.
    return not is_safetensors(path) and head.startswith((b"PK\x03\x04", b"\x80"))


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Metadata]]:
    file = require_file(path)
    if file.suffix.lower() in _PROGRAMS:
        raise WeightsError(
            f"{file} is {_PROGRAMS[file.suffix.lower()]}, not weights", "export starts from .safetensors"
        )
    if is_pickle(file):
        raise WeightsError(
            f"{file} is a torch pickle, not safetensors", f"convert it: streamdeblur weights import {file} -o FILE"
        )
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            try:
                metadata = Metadata.from_strings(handle.metadata() or {})
            except (ValueError, TypeError) as exc:
                raise WeightsError(f"{file} is safetensors, but not weights of streamdeblur: {exc}") from exc
            yield handle, metadata
    except (SafetensorError, OSError) as exc:
        raise WeightsError(f"{file} is no complete safetensors file ({exc})", "fetch or export it again") from exc


def check_state(source: str, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], network: str) -> None:
    """Raise WeightsError unless ``state`` has exactly the names and shapes of ``shapes``, in finite floats.

    The one line names the first keys of every kind of difference and counts the rest.
    """
    problems = differences(state, shapes)
    if problems:
        raise WeightsError(f"{source} does not fit {network}: {'; '.join(problems)}")
    for name, value in state.items():
        if not value.is_floating_point():
            raise WeightsError(f"{source}: {name} holds {value.dtype}, not floats")
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{source}: {name} holds NaN or infinity", "the training that made it diverged")


def differences(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One phrase a kind of difference between a state and the names and shapes it should have; empty if none."""
    missing = [name for name in shapes if name not in state]
    unexpected = [str(name) for name in state if name not in shapes]
    reshaped = [
        f"{name} is {_shape(state[name])}, expected {shape}"
        for name, shape in shapes.items()
        if name in state and _shape(state[name]) != shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    return [f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in kinds if keys]


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _first(keys: list[str]) -> str:
    rest = len(keys) - _NAMED
    return ", ".join(keys[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
