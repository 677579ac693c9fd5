"""Options of a live job: those of the job, and those of each source in a YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from streamdeblur.config import (
    Conflict,
    DetectOptions,
    Preset,
    ProcessOptions,
    StrictModel,
    memory_bytes,
    memory_checked,
    parse,
)
from streamdeblur.errors import UsageError
from streamdeblur.jobs.live.preview.options import PreviewOptions


def _same(name: str) -> Any:
    """The option of the main job, with its default and its words."""
    return copy(ProcessOptions.model_fields[name])


class SourceOptions(StrictModel):
    """One source in the YAML: where it is, what it is called, and what differs from the job's options."""

    url: str = Field(description="RTSP or any URL that FFmpeg opens, or a file.")
    name: str | None = Field(None, description="In messages, file names and the status. Default: made from the URL.")
    to: tuple[str, ...] | None = Field(None, description="Outputs of this source, instead of those of the job.")
    transport: Literal["tcp", "udp"] | None = Field(None, description="Of RTSP.")
    loop: bool | None = Field(None, description="Begin a file anew at its end.")
    audio: bool | None = Field(None, description="Pass its sound through.")
    restore: bool = Field(True, description="false passes its frames through as they are.")
    detect: bool = Field(True, description="false leaves the detector out.")

    # Instead of those of the job; ``options_of`` checks them as the job's.
    latency_ms: float | None = None
    late: Literal["pass", "drop"] | None = None
    stall: float | None = None
    give_up: float | None = None
    reuse: bool | None = None
    skip_sharp: bool | None = None
    crf: float | None = None
    keyframe_seconds: float | None = None
    segment_seconds: float | None = None
    detect_on: str | None = None
    detect_every: int | None = None
    detect_threshold: float | None = None
    annotate: bool | None = None
    auto: bool | None = None
    detections: str | None = None
    webhook: SecretStr | None = None
    mqtt: SecretStr | None = None

    @field_validator("to", mode="before")
    @classmethod
    def _one_output(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class LiveOptions(DetectOptions, PreviewOptions):
    """Options of ``streamdeblur live`` and ``run_live``."""

    model: str | None = Field(
        None,
        description="Variant: see `streamdeblur models`. Default: the best that ships; on a CPU, without --ray, the "
        "cheapest.",
    )
    weights: str | None = _same("weights")
    device: str = _same("device")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = _same("precision")
    engine: Literal["auto", "eager", "fused", "winograd", "compile", "openvino", "onnx", "cuda-graphs"] = _same(
        "engine"
    )
    tiling: Literal["auto", "exact", "fast", "whole"] = _same("tiling")
    memory: str | None = _same("memory")
    threads: int | None = _same("threads")
    small_model: str = Field(
        "auto", description="Second step of the ladder: a cheaper variant whose weights ship, auto or none."
    )
    half_scale: bool = Field(True, description="Third step of the ladder: restore at half the width and height.")
    batch: int | None = Field(
        None, ge=1, le=64, description="Frames of different sources in one call. Default: 4 on a GPU, 1 on a CPU."
    )
    workers: int | None = Field(None, ge=1, le=256, description="Ray actors that restore, instead of this process.")
    ray: str | None = _same("ray")
    gpus_per_worker: float | None = _same("gpus_per_worker")

    reuse: bool = Field(True, description="Keep the corrections of what does not change: for fixed cameras.")
    reuse_threshold: float = _same("reuse_threshold")
    reuse_halo: int = _same("reuse_halo")
    reuse_refresh: int = _same("reuse_refresh")
    skip_sharp: bool = Field(True, description="Leave tiles alone that are sharp already.")
    sharp_below: float = _same("sharp_below")

    latency_ms: float = Field(
        500.0, ge=20, le=60_000, description="From the arrival of a frame to its output, at most."
    )
    late: Literal["pass", "drop"] = Field(
        "pass", description="Frames that can't be restored in time: pass them as they are, or drop them."
    )
    queue: int = Field(16, ge=2, le=256, description="Frames of a source that wait to be restored, at most.")
    transport: Literal["tcp", "udp"] = Field("tcp", description="Of RTSP.")
    stall: float = Field(5.0, ge=0.5, le=300, description="Seconds without a frame before a source is opened anew.")
    give_up: float | None = Field(
        None, gt=0, description="End a source after this many seconds without a frame. Default: never."
    )
    loop: bool = Field(False, description="Begin files anew at their end.")
    duration: float | None = Field(None, gt=0, description="Stop after this many seconds.")

    encoder: Literal["x264", "h264_nvenc"] = Field("x264", description="What encodes.")
    crf: float | None = Field(None, ge=0, le=51, description="Constant quality, lower is better. x264: 18.")
    preset: Preset = Field("veryfast", description="Encoder effort, in x264's words.")
    keyframe_seconds: float = Field(2.0, gt=0, le=60, description="Between keyframes: readers can join at each.")
    audio: bool = Field(True, description="Pass sound through.")
    segment_seconds: float = Field(
        600.0, ge=0, le=86_400, description="Length of a file before the next is begun; 0 writes a single one."
    )
    hls_seconds: float = Field(2.0, gt=0, le=60, description="Length of an HLS segment.")
    hls_window: int = Field(6, ge=2, le=1000, description="Segments in the HLS playlist; older ones are deleted.")
    output_stall: float = Field(
        5.0, ge=0.5, le=300, description="Seconds after which an output that stalls is reopened."
    )
    reserve_mb: float = Field(64.0, ge=0, description="Writing to a disk pauses while fewer MB than this are free.")
    ledger: Path | None = _same("ledger")

    auto: bool = Field(
        False, description="Compare detections with and without restoring, and restore only where it pays."
    )

    to: tuple[str, ...] = Field((), description="Outputs: rtsp://…, hls:FOLDER, udp:// or tcp://…, FILE, none.")
    sources: tuple[SourceOptions, ...] = Field((), description="In the YAML: url, and name, to, latency_ms, … of each.")

    _memory = field_validator("memory")(memory_checked)

    @property
    def memory_limit(self) -> int | None:
        """``memory`` in bytes."""
        return None if self.memory is None else memory_bytes(self.memory)

    @field_validator("sources", mode="before")
    @classmethod
    def _plain_urls(cls, value: Any) -> Any:
        """A source may be a URL alone."""
        if isinstance(value, list | tuple):
            return tuple({"url": v} if isinstance(v, str) else v for v in value)
        return value

    @field_validator("to", mode="before")
    @classmethod
    def _one_output(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    conflicts: ClassVar[tuple[Conflict, ...]] = (
        *DetectOptions.conflicts,
        *PreviewOptions.conflicts,
        Conflict(
            ("auto", "detect"),
            lambda o: o.auto and o.detect is None,
            lambda o: "auto without a detector has no effect: name one with detect",
        ),
        Conflict(
            ("auto", "detect_on"),
            lambda o: o.auto and o.detect_on.startswith("blurry"),
            lambda o: f"auto looks at both, restored and not, and detect_on is {o.detect_on}: leave one out",
        ),
        Conflict(
            ("hls_seconds", "keyframe_seconds"),
            lambda o: o.keyframe_seconds > o.hls_seconds and any(t.startswith("hls:") for t in _all_outputs(o)),
            lambda o: (
                f"keyframe_seconds {o.keyframe_seconds:g} is more than hls_seconds {o.hls_seconds:g}: "
                "a segment begins at a keyframe"
            ),
        ),
    )


def _all_outputs(o: Any) -> list[str]:
    return [*o.to, *(t for s in o.sources for t in s.to or ())]


#: What a source may have of its own.
_OWN = tuple(
    name for name in SourceOptions.model_fields if name in LiveOptions.model_fields and name not in ("to", "detect")
)


def options_of(options: LiveOptions, source: SourceOptions) -> LiveOptions:
    """The options of the job as they are for one source of ``named_sources``: with its own over them, without a
    detector where it has none. ``{name}`` in ``detections`` is its name. Raises ConfigError."""
    values = {name: getattr(options, name) for name in LiveOptions.model_fields}
    values |= {name: own for name in _OWN if (own := getattr(source, name)) is not None}
    if not source.detect:
        values |= {n: f.default for n, f in DetectOptions.model_fields.items()} | {"auto": False}
    if values["detections"] is not None:
        values["detections"] = values["detections"].replace("{name}", source.name)
    return parse(LiveOptions, values, f"source {source.name}")


def named_sources(options: LiveOptions, urls: tuple[str, ...] = ()) -> tuple[SourceOptions, ...]:
    """The sources of the options and of the command line, each with its name and its outputs filled in.

    Raises UsageError when there is none, for a URL that is none, when two have one name, or when two would write to one
    place.
    """
    from streamdeblur.video.live.urls import check_url, is_url, mask

    given = (*options.sources, *(parse(SourceOptions, {"url": u}, "the command line") for u in urls))
    if not given:
        raise UsageError("no source is given", "name one, or list sources in the YAML")
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    result = []
    for number, source in enumerate(given, 1):
        if is_url(source.url):
            check_url(source.url, "source")
        name = source.name or (_name_of(source.url, number) if len(given) > 1 else _name_of(source.url, 1))
        if source.name is None:
            base, n = name, 2
            while name in names:
                name, n = f"{base}-{n}", n + 1
        if name in names:
            raise UsageError(f"two sources are called {name!r}", "names tell them apart: give each its own")
        if not name or "/" in name or name.startswith("."):
            raise UsageError(f"source name {name!r} can't be part of a file name", "use letters, digits and dashes")
        names[name] = source.url
        outputs = tuple(t.replace("{name}", name) for t in (source.to if source.to is not None else options.to))
        for output in outputs:
            if output == "none":
                continue
            place = _place(output)
            if place in taken and taken[place] == name:
                raise UsageError(f"source {name} would write to {mask(output)} twice", "name each output once")
            if taken.setdefault(place, name) != name:
                raise UsageError(
                    f"sources {taken[place]} and {name} would both write to {mask(output)}",
                    "write {name} into --to, or give each source its own `to`",
                )
        values: Mapping[str, Any] = {
            "name": name,
            "to": outputs,
            "transport": source.transport or options.transport,
            "loop": options.loop if source.loop is None else source.loop,
            "audio": options.audio if source.audio is None else source.audio,
        }
        result.append(source.model_copy(update=values))
    return tuple(result)


def _place(output: str) -> str:
    """An output in one way of writing it."""
    if output.startswith("hls:"):
        return f"hls:{os.path.realpath(output[4:])}"
    return output if "://" in output else os.path.realpath(output)


def _name_of(url: str, number: int) -> str:
    """From the last part of a URL's path or a file's name, else cameraN; letters, digits and dashes."""
    from urllib.parse import urlsplit

    path = urlsplit(url).path if "://" in url else url
    last = path.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    if "=" in last:  # user=…_password=…: no name, and not to be shown
        return f"camera{number}"
    plain = "".join(c if c.isalnum() and c.isascii() else "-" for c in last).strip("-").lower()
    return plain[:40] or f"camera{number}"
