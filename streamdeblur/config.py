"""Strict models of the YAML files and the command line: one place for every option, its default and its meaning.

A model's fields are the keys of the YAML, the options of the command line (``_`` written ``-``) and the keyword
arguments of the library call. Unknown keys are refused with the nearest known name. No torch, no av, no ray.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streamdeblur.errors import ConfigError

OnError = Literal["fail", "bypass"]
Interlaced = Literal["auto", "progressive", "tff", "bff"]
Preset = Literal["auto", "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]


class StrictModel(BaseModel):
    """Immutable, refuses unknown keys and silent conversions that lose something."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class RestoreOptions(StrictModel):
    """What restores, and on which device."""

    model: str | None = Field(None, description="Variant: see `streamdeblur models`. Default: the best that ships.")
    weights: str | None = Field(None, description="Checkpoint (.safetensors, or the authors' .pkl), or random:SEED.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="Arithmetic of the network.")
    tiling: Literal["auto", "exact", "fast", "whole"] = Field(
        "auto", description="exact equals the whole frame, fast overlaps less, whole does not tile."
    )
    workers: int | None = Field(None, ge=1, le=1024, description="Run N Ray actors instead of this process alone.")
    ray: str | None = Field(
        None, description="Run on Ray: auto, HOST:PORT or ray://HOST:PORT; local (or no address) starts it here."
    )
    gpus_per_worker: float | None = Field(
        None, gt=0, le=16, description="GPUs (or a fraction of one) an actor asks of Ray. Default: 1 on CUDA, else 0."
    )
    in_flight: int = Field(2, ge=1, le=16, description="Frames a worker holds at most.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of the network, per worker.")


class EncodeOptions(StrictModel):
    """How the result is encoded."""

    encoder: str = Field("auto", description="x264, x265, av1, vp9, ffv1, h264_nvenc, hevc_nvenc, av1_nvenc or auto.")
    crf: float | None = Field(None, ge=0, le=63, description="Constant quality, lower is better. x264: 18.")
    preset: Preset = Field("auto", description="Encoder effort, in x264's words. auto: by what the network leaves.")
    lossless: bool = Field(False, description="Encode without loss (FFV1, or what the container takes).")


class ProcessOptions(RestoreOptions, EncodeOptions):
    """Options of the main job: `streamdeblur process`, `process_video`."""

    stream: int = Field(0, ge=0, description="Which video stream to restore; the others are copied.")
    start: float | None = Field(None, ge=0, description="Begin at this time, in seconds.")
    duration: float | None = Field(None, description="Stop after this many seconds.")
    interlaced: Interlaced = Field("auto", description="Field order, where the file is wrong about it.")
    deinterlace: bool = Field(False, description="Weave fields into progressive frames first (bwdif).")
    hardware: Literal["none", "cuda"] = Field("none", description="cuda decodes with NVDEC where it is.")
    on_error: OnError = Field(
        "fail", description="bypass: keep what decodes and pass frames through that can't be restored."
    )
    overwrite: bool = Field(False, description="Replace an existing output.")
    rate: float = Field(25.0, gt=0, le=1000, description="Frames a second of a video made from a folder of images.")
    ledger: Path | None = Field(None, description="Write what became of every frame to this file (JSON lines).")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.duration is not None and self.duration <= 0:
            raise ValueError(f"duration {self.duration:g} selects nothing: give a number of seconds above 0")
        if self.deinterlace and self.interlaced == "progressive":
            raise ValueError("deinterlace needs an interlaced source, and interlaced is set to progressive")
        if self.lossless and self.crf is not None:
            raise ValueError("lossless and crf exclude each other: leave one out")
        return self


M = TypeVar("M", bound="StrictModel")


def parse(model: type[M], values: Mapping[str, Any], origin: str = "") -> M:
    """A model from plain values; every fault becomes one line (ConfigError) that names the key, the value, the remedy.

    origin: what the values come from, for the message (a file name, "the command line").
    """
    where = f" in {origin}" if origin else ""
    known = list(model.model_fields)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown option {key!r}{where}", hint)
    try:
        return model.model_validate(dict(values))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        name = ".".join(str(p) for p in first["loc"])
        text = str(first["msg"]).removeprefix("Value error, ")
        what = f"{name} {first['input']!r}{where}: {text}" if name else f"{text}{where}"
        raise ConfigError(what) from e


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file; ``${NAME}`` in strings is replaced from the environment.

    Raises ConfigError for a file that is missing, is not YAML, or holds no mapping, and for an unset variable.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        cause = getattr(e, "strerror", None) or "it is not a text file"
        raise ConfigError(f"configuration {os.fspath(path)} can't be read: {cause}") from e
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(e, "problem", None) or "not YAML"
        raise ConfigError(f"configuration {os.fspath(path)} is not valid YAML{line}: {problem}") from e
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise ConfigError(f"configuration {os.fspath(path)} must be a mapping of option names to values")
    return {k.replace("-", "_"): _expand(v, path) for k, v in data.items()}


def _expand(value: Any, path: str | os.PathLike[str]) -> Any:
    if isinstance(value, str) and "${" in value:
        expanded = os.path.expandvars(value)
        if "${" in expanded:
            raise ConfigError(f"{value!r} in {os.fspath(path)} names an environment variable that is not set")
        return expanded
    if isinstance(value, dict):
        return {k: _expand(v, path) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v, path) for v in value]
    return value
