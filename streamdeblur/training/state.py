"""A run on disk: all that a resume needs, in parts that may travel, replaced as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamdeblur.errors import DiskFull, InputError, OutputError, UsageError
from streamdeblur.training.recipe import StateOptions

FORMAT = "streamdeblur-training-state"
INDEX = "state.json"

#: Seconds to wait for a process that trains in the folder: one that was told to end may still be writing its state.
_PATIENCE = 10.0


def make_folder(folder: Path) -> None:
    """The folder of a run, made where missing. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{folder} can't be the folder of a run: {e.strerror}", "name another with -o") from e


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for the run of this process: two in one folder would replace each other's states.

    Waits a little for another to end. Where the file system has no locks, there is none. Raises UsageError where
    another process trains there, and OutputError for a folder that can't be written.
    """
    try:
        held = (folder / ".lock").open("a")
    except OSError as e:
        raise OutputError(f"can't write in the folder of the run {folder}: {e.strerror}", "name another with -o") from e
    with held:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                if e.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    break
                if time.monotonic() > until:
                    raise UsageError(
                        f"another process trains in {folder}", "wait for it, stop it, or name another folder with -o"
                    ) from e
                time.sleep(0.2)
            else:
                break
        yield


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file that others may read as far as the process's umask lets them; safetensors' own is private.

    Raises OSError and SafetensorError.
    """
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, dict(metadata) if metadata is not None else None)
    path.chmod(mode)


def save_state(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], options: StateOptions) -> None:
    """Write ``tensors`` and the JSON ``values`` to ``folder``, which is replaced only when the new one is complete.

    Floating tensors are stored in ``options.dtype``; tensors are laid into files of at most ``options.part_mib``
    (a tensor that is larger is cut along its first axis).
    """
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    limit = int(options.part_mib * 2**20) - 1024  # some room for the header, the rest is counted by tensor
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        parts: list[dict[str, Tensor]] = [{}]
        size = 0
        for name, tensor in _pieces(tensors, options, limit):
            length = tensor.numel() * tensor.element_size() + len(name) + 128
            if parts[-1] and size + length > limit:
                parts.append({})
                size = 0
            parts[-1][name] = tensor
            size += length
        files = [f"part-{k:03d}.safetensors" for k in range(len(parts))]
        for file, part in zip(files, parts, strict=True):
            write_tensors(part, partial / file)
        text = json.dumps({"format": FORMAT, "files": files, "values": values}, indent=1)
        (partial / INDEX).write_text(text, encoding="utf-8")
        for file in [*files, INDEX]:
            with (partial / file).open("rb") as handle:
                os.fsync(handle.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(partial, ignore_errors=True)
        full = getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(e)
        kind = DiskFull if full else OutputError
        kept = "the state before it is untouched" if (folder / INDEX).is_file() else "no state is kept yet"
        raise kind(f"can't write the training state to {folder}: {e}", kept) from e


def _pieces(tensors: Mapping[str, Tensor], options: StateOptions, limit: int) -> list[tuple[str, Tensor]]:
    pieces = []
    for name, value in tensors.items():
        tensor = value.detach().to("cpu")
        # A counter of steps is a scalar, and bf16 would round it from 257 on.
        if options.dtype == "bf16" and tensor.dtype == torch.float32 and tensor.dim():
            tensor = tensor.to(torch.bfloat16)
        tensor = tensor.contiguous()
        row = tensor.numel() * tensor.element_size() // max(1, tensor.shape[0]) if tensor.dim() else 0
        if not row or row * tensor.shape[0] <= limit - 256:
            pieces.append((name, tensor.clone()))
            continue
        step = max(1, (limit - 256) // row)
        pieces += [(f"{name}|{k:05d}", chunk.clone()) for k, chunk in enumerate(tensor.split(step))]
    return pieces


def has_state(folder: Path) -> bool:
    """Whether there is a state to resume from; finishes a replacement that was cut off between its two renames."""
    old = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and (old / INDEX).is_file():
        old.rename(folder)
    return (folder / INDEX).is_file()


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (floats as float32) and values. Raises InputError for a state that is damaged or foreign."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if index.get("format") != FORMAT:
            raise InputError(f"{folder} holds no training state", "name the folder of a run")
        read: dict[str, Tensor] = {}
        for file in index["files"]:
            read.update(load_file(folder / file))
        values: dict[str, Any] = index["values"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as e:
        raise InputError(
            f"the training state in {folder} is damaged: {e}", "start again from its best checkpoint"
        ) from e
    whole: dict[str, list[Tensor]] = {}
    for name in sorted(read):
        whole.setdefault(name.partition("|")[0], []).append(read[name])
    tensors = {name: torch.cat(chunks) if len(chunks) > 1 else chunks[0] for name, chunks in whole.items()}
    return {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in tensors.items()}, values
