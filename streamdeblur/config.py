"""Strict models of the YAML files and the command line: one place for every option, its default and its meaning.

A model's fields are the keys of the YAML, the options of the command line (``_`` written ``-``) and the keyword
arguments of the library call. Unknown keys are refused with the nearest known name. No torch, no av, no ray.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from streamdeblur.errors import ConfigError

OnError = Literal["fail", "bypass"]
Interlaced = Literal["auto", "progressive", "tff", "bff"]
Preset = Literal["auto", "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]


#: The worst quality that an encoder takes, of those that have a scale of it.
CRF_LIMITS: Mapping[str, int] = {
    "x264": 51, "x264rgb": 51, "x265": 51, "av1": 63, "svtav1": 63, "vp9": 63,
    "h264_nvenc": 51, "hevc_nvenc": 51, "av1_nvenc": 63,
}  # fmt: skip
_ALWAYS_LOSSLESS = ("ffv1",)
_NEVER_LOSSLESS = ("av1", "svtav1", "av1_nvenc")


@dataclass(frozen=True, slots=True)
class Conflict:
    """Values of several fields that can't be meant together.

    applies: whether the values of a model do that; says: what is wrong and what to do, from the same values.
    """

    fields: tuple[str, ...]
    applies: Callable[[Any], bool]
    says: Callable[[Any], str]


class ConflictError(ValueError):
    """Raised within validation, so that ``merge`` finds the conflict again."""

    def __init__(self, conflict: Conflict, values: Any) -> None:
        super().__init__(conflict.says(values))
        self.conflict = conflict


class StrictModel(BaseModel):
    """Immutable, refuses unknown keys, silent conversions that lose something, and values that exclude each other."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
    conflicts: ClassVar[tuple[Conflict, ...]] = ()

    @model_validator(mode="after")
    def _without_conflicts(self) -> Self:
        for conflict in self.conflicts:
            if conflict.applies(self):
                raise ConflictError(conflict, self)
        return self


_MEMORY_UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 1 << 20, "GIB": 1 << 30}
_MEMORY_FORM = re.compile(r"(\d+(?:\.\d+)?) ?([MG]i?B)", re.IGNORECASE)


def memory_bytes(text: str) -> int:
    """Bytes of an amount of memory with its unit: 800MB, 4GB (powers of 1000), 512MiB, 1.5GiB (of 1024).

    Raises ValueError for anything else, a number without a unit too; it leaves the text itself to who names the option.
    """
    found = _MEMORY_FORM.fullmatch(text.strip())
    unit = _MEMORY_UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise ValueError("no amount of memory: give a number with MB, GB, MiB or GiB, as 4GB or 512MiB")
    amount = round(float(found[1]) * unit)
    if amount < 1 << 20:
        raise ValueError("less than 1 MiB: give 1MiB or more, as 4GB or 512MiB")
    if amount >= 1 << 50:
        raise ValueError("more than any machine has: give less than 1048576GiB, as 4GB or 512MiB")
    return amount


def memory_checked(text: str | None) -> str | None:
    """The text itself, if it is an amount of memory or None; for validators."""
    if text is not None:
        memory_bytes(text)
    return text


class RestoreOptions(StrictModel):
    """What restores, and on which device."""

    model: str | None = Field(
        None,
        description="Variant: see `streamdeblur models`; NAME:8 averages a network over flips and "
        "transposes. Default: the best that ships.",
    )
    weights: str | None = Field(None, description="Checkpoint (.safetensors, or the authors' .pkl), or random:SEED.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        "auto", description="Arithmetic of the network; int8 with OpenVINO."
    )
    engine: Literal["auto", "eager", "fused", "winograd", "compile", "openvino", "onnx", "cuda-graphs"] = Field(
        "auto", description="What runs the network. auto: the fastest that is there and computes what it should."
    )
    tiling: Literal["auto", "exact", "fast", "whole"] = Field(
        "auto", description="exact equals the whole frame, fast overlaps less, whole does not tile."
    )
    memory: str | None = Field(
        None, description="Most memory to use on the device, as 4GB or 800MiB: smaller tiles. Default: half the free."
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

    _memory = field_validator("memory")(memory_checked)

    @property
    def memory_limit(self) -> int | None:
        """``memory`` in bytes."""
        return None if self.memory is None else memory_bytes(self.memory)


class EncodeOptions(StrictModel):
    """How the result is encoded."""

    encoder: str = Field("auto", description="x264, x265, av1, vp9, ffv1, h264_nvenc, hevc_nvenc, av1_nvenc or auto.")
    crf: float | None = Field(None, ge=0, le=63, description="Constant quality, lower is better. x264: 18.")
    preset: Preset = Field("auto", description="Encoder effort, in x264's words. auto: by what the network leaves.")
    lossless: bool = Field(False, description="Encode without loss (FFV1, or what the container takes).")


_ON = re.compile(r"restored|both|blurry:(?P<threshold>\d*\.?\d+)")


@dataclass(frozen=True, slots=True)
class On:
    """Which frames a detector looks at. threshold: blur score above which it does, for "blurry"."""

    mode: Literal["restored", "both", "blurry"]
    threshold: float = 0.0


def parse_on(text: str) -> On:
    """``restored``, ``both`` or ``blurry:THRESHOLD``. Raises ValueError."""
    found = _ON.fullmatch(text)
    if found is None:
        raise ValueError("give restored, both or blurry:THRESHOLD, as blurry:0.7")
    if found["threshold"] is None:
        return On("both" if text == "both" else "restored")
    threshold = float(found["threshold"])
    if not 0 <= threshold <= 1:
        raise ValueError(f"blur scores lie between 0 and 1, {threshold:g} does not")
    return On("blurry", threshold)


def detect_on_checked(text: str) -> str:
    """The text itself, if ``parse_on`` takes it; for validators."""
    parse_on(text)
    return text


def _needs_detector(name: str) -> Conflict:
    def applies(options: Any) -> bool:
        # A file that lists every option with its default asks for nothing.
        return options.detect is None and getattr(options, name) != type(options).model_fields[name].default

    def says(options: Any) -> str:
        return f"{name} without a detector has no effect: name one with detect"

    return Conflict(("detect", name), applies, says)


class DetectOptions(StrictModel):
    """What looks at the frames, and where its findings go. Without ``detect`` nothing does."""

    detect: str | None = Field(
        None, description="Detector: FILE.onnx (YOLOX, FastestDet), module:factory or FILE.py:factory."
    )
    detect_threshold: float = Field(0.3, ge=0, le=1, description="Score from which on a detection counts.")
    detect_on: str = Field(
        "restored", description="restored, both (and compare with the unrestored frame), or blurry:THRESHOLD."
    )
    detect_every: int = Field(1, ge=1, le=10_000, description="Look at every Nth frame only.")
    detect_names: Path | None = Field(None, description="File with the name of a class on each line, for FILE.onnx.")
    detect_device: str = Field("auto", description="Device of FILE.onnx: auto, cpu, cuda or cuda:N.")
    detect_threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of FILE.onnx.")
    track: bool = Field(True, description="Give objects numbers that stay with them from frame to frame.")
    annotate: bool = Field(False, description="Draw the boxes into the video.")
    detections: str | None = Field(None, description="Write findings as JSON lines to this file; - is stdout.")
    webhook: SecretStr | None = Field(None, description="POST findings to this http(s) URL, in batches.")
    mqtt: SecretStr | None = Field(None, description="Publish findings: mqtt(s)://[USER:PASSWORD@]HOST[:PORT]/TOPIC.")

    _detect_on = field_validator("detect_on")(detect_on_checked)

    conflicts: ClassVar[tuple[Conflict, ...]] = tuple(
        # one each, so that the command line can overrule what a file says
        _needs_detector(name)
        for name in (
            "annotate", "detections", "webhook", "mqtt", "track",
            "detect_threshold", "detect_on", "detect_every", "detect_names", "detect_device", "detect_threads",
        )
    )  # fmt: skip


class ProcessOptions(RestoreOptions, EncodeOptions, DetectOptions):
    """Options of the main job: `streamdeblur process`, `process_video`."""

    stream: int = Field(0, ge=0, description="Which video stream to restore; the others are copied.")
    start: float | None = Field(None, ge=0, description="Begin at this time, in seconds.")
    duration: float | None = Field(None, description="Stop after this many seconds.")
    interlaced: Interlaced = Field("auto", description="Field order, where the file is wrong about it.")
    deinterlace: bool = Field(False, description="Weave fields into progressive frames first (bwdif).")
    hardware: Literal["none", "cuda"] = Field("none", description="cuda decodes with NVDEC where it is.")
    reuse: bool = Field(False, description="Keep the corrections of what does not change: for fixed cameras.")
    reuse_threshold: float = Field(
        6.0, ge=0, le=255, description="Change that asks for a new correction, in levels of 8 bits; less is more exact."
    )
    reuse_halo: int = Field(
        16, ge=0, le=512, multiple_of=4, description="Context around what is computed anew, in pixels."
    )
    reuse_refresh: int = Field(100, ge=1, le=1_000_000, description="Frames at most that a correction is kept.")
    skip_sharp: bool = Field(False, description="Leave tiles alone that are sharp already.")
    sharp_below: float = Field(0.55, gt=0, le=1, description="Blur score below which a tile is sharp.")
    on_error: OnError = Field(
        "fail", description="bypass: keep what decodes and pass frames through that can't be restored."
    )
    overwrite: bool = Field(False, description="Replace an existing output.")
    rate: float | None = Field(
        None, gt=0, le=1000, description="Frames a second of a video made from a folder of images. Default: 25."
    )
    ledger: Path | None = Field(None, description="Write what became of every frame to this file (JSON lines).")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.duration is not None and self.duration <= 0:
            raise ValueError(f"duration {self.duration:g} selects nothing: give a number of seconds above 0")
        return self

    conflicts: ClassVar[tuple[Conflict, ...]] = (
        *DetectOptions.conflicts,
        Conflict(
            ("deinterlace", "interlaced"),
            lambda o: o.deinterlace and o.interlaced == "progressive",
            lambda o: "deinterlace needs an interlaced source, and interlaced is set to progressive",
        ),
        Conflict(
            ("lossless", "crf"),
            lambda o: o.lossless and o.crf is not None,
            lambda o: "lossless and crf exclude each other: leave one out",
        ),
        Conflict(
            ("encoder", "crf"),
            lambda o: o.encoder in _ALWAYS_LOSSLESS and o.crf is not None,
            lambda o: f"{o.encoder} is always lossless, so crf {o.crf:g} has no meaning: leave one out",
        ),
        Conflict(
            ("encoder", "preset"),
            lambda o: o.encoder in _ALWAYS_LOSSLESS and o.preset != "auto",
            lambda o: f"{o.encoder} has no presets, so preset {o.preset} has no meaning: leave one out",
        ),
        Conflict(
            ("encoder", "crf"),
            lambda o: o.crf is not None and o.crf > CRF_LIMITS.get(o.encoder, o.crf),
            lambda o: f"crf {o.crf:g} is more than {o.encoder} takes: give 0 to {CRF_LIMITS[o.encoder]}",
        ),
        Conflict(
            ("encoder", "lossless"),
            lambda o: o.encoder in _NEVER_LOSSLESS and o.lossless,
            lambda o: f"{o.encoder} has no lossless mode here: ffv1, x264, x265 and vp9 have one",
        ),
    )


M = TypeVar("M", bound="StrictModel")
#: User and password in a URL, which no message shows.
_USERINFO = re.compile(r"://[^/\s'\"]*@")


def parse(model: type[M], values: Mapping[str, Any], origin: str = "") -> M:
    """A model from plain values; every fault becomes one line (ConfigError) that names the key, the value, the remedy.

    origin: what the values come from, for the message (a file name, "the call"). Without one they are those of the
    command line, and options are named as they are typed there.
    """
    return _parse(model, values, origin, () if origin else model.model_fields)


def _parse(model: type[M], values: Mapping[str, Any], origin: str, typed: Container[str]) -> M:
    """typed: keys whose values come from the command line."""
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
        name = _name(first["loc"], typed)
        text = in_words(first["type"], first["msg"])
        secret = any(part in name for part in ("webhook", "mqtt", "token"))
        value = "" if secret or first["type"] == "missing" else _USERINFO.sub("://***@", _shown(first["input"]))
        if name.startswith("--"):
            where = ""  # an option tells where it stands
        what = f"{name} {value}".rstrip() + f"{where}: {text}" if name else f"{text}{where}"
        raise ConfigError(what) from e


def _name(place: Sequence[int | str], typed: Container[str]) -> str:
    """A key as YAML has it, or the option; the command line has no words for what lies deeper than one of a list."""
    if place and place[0] in typed and not any(isinstance(p, str) for p in place[1:]):
        return f"--{str(place[0]).replace('_', '-')}"
    return ".".join(str(p) for p in place)


def _shown(value: Any) -> str:
    """A value as one would write it: of a list what is in it, with commas."""
    return ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else repr(value)


#: What pydantic says of a type, in the words of who writes YAML; by the beginning of its error's type.
_WORDS = {
    "tuple_": "give a list, as [A, B]",
    "list_": "give a list, as [A, B]",
    "set_": "give a list, as [A, B]",
    "dict_": "give keys and values, as {KEY: VALUE}",
    "mapping_": "give keys and values, as {KEY: VALUE}",
    "dataclass_": "give keys and values, as {KEY: VALUE}",
    "model_": "give keys and values, as {KEY: VALUE}",
    "string_type": "give one text",
    "path_type": "give one path",
    "bool_": "give true or false",
    "int_": "must be a whole number",
    "float_": "must be a number",
    "missing": "required: give it",
}
#: What pydantic calls a value in its own sentences, as Input or String.
_SUBJECT = re.compile(r"^\w+ should ")


def in_words(kind: str, message: str) -> str:
    """A fault that pydantic found, as one would say it of a YAML file. kind, message: "type" and "msg" of its error."""
    words = (words for beginning, words in _WORDS.items() if kind.startswith(beginning))
    # What our own validators say, after "Value error, ", is in words already.
    return next(words, _SUBJECT.sub("must ", message).removeprefix("Value error, "))


def merge(model: type[M], file: Mapping[str, Any], given: Mapping[str, Any], origin: str) -> M:
    """A model from the values of a file and, over them, those of the command line.

    What is given wins: where it conflicts (``StrictModel.conflicts``) with a value that only the file has, the file's
    is dropped. origin: the file's name. Faults of the file are blamed on the file, but for what the command line puts
    right. Raises ConfigError.
    """
    values = {**file, **given}
    if _conflict(model, file) is None or _conflict(model, values) is not None:
        parse(model, file, origin)
    while (conflict := _conflict(model, values)) is not None:
        losers = [f for f in conflict.fields if f in values and f not in given]
        if len(losers) == len(conflict.fields) or not losers:
            break
        for name in losers:
            del values[name]
    return _parse(model, values, f"{origin} and the command line" if file else "the command line", given)


def _conflict(model: type[StrictModel], values: Mapping[str, Any]) -> Conflict | None:
    try:
        model.model_validate(dict(values))
    except ValidationError as e:
        error = e.errors(include_url=False)[0].get("ctx", {}).get("error")
        return error.conflict if isinstance(error, ConflictError) else None
    return None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which takes the last of equal keys, refusing them."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


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
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(e, "problem", None) or "not YAML"
        raise ConfigError(f"configuration {os.fspath(path)} is not valid YAML{line}: {problem}") from e
    except (ValueError, RecursionError) as e:  # a date that does not exist; nesting without end
        problem = "it is nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise ConfigError(f"configuration {os.fspath(path)} is not valid YAML: {problem}") from e
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(k, str) for k in data):
        raise ConfigError(f"configuration {os.fspath(path)} must be a mapping of option names to values")
    try:
        return {k.replace("-", "_"): _expand(v, path) for k, v in data.items()}
    except RecursionError as e:
        raise ConfigError(f"configuration {os.fspath(path)} holds an alias of itself") from e


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
