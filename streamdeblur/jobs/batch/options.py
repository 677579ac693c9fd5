"""Options of a batch job: those of the main job, per file if need be, and those of the job as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from streamdeblur.config import (
    Conflict,
    EncodeOptions,
    Interlaced,
    OnError,
    ProcessOptions,
    StrictModel,
    detect_on_checked,
    memory_checked,
    parse,
)

#: Options of the main job that a batch sets itself.
_OWN = ("workers", "ray", "gpus_per_worker", "overwrite", "ledger", "rate", "detections")
#: What a manifest may set for a single file: everything that a job of one file takes and that is not about the cluster.
_DEVICE = ("device", "threads", "in_flight", "memory", "detect_device", "detect_threads")
_SINKS = ("webhook", "mqtt")
PER_FILE = tuple(name for name in ProcessOptions.model_fields if name not in (*_OWN, *_DEVICE, *_SINKS))
#: Options that change a result. Another number of threads or workers does not.
SHAPING = PER_FILE


def _same(name: str) -> Any:
    """The option of the main job, with its default and its words."""
    return copy(ProcessOptions.model_fields[name])


class BatchOptions(EncodeOptions):
    """Options of ``streamdeblur batch`` and ``run_batch``."""

    model: str | None = _same("model")
    weights: str | None = _same("weights")
    device: str = _same("device")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = _same("precision")
    engine: Literal["auto", "eager", "fused", "winograd", "compile", "openvino", "onnx", "cuda-graphs"] = _same(
        "engine"
    )
    tiling: Literal["auto", "exact", "fast", "whole"] = _same("tiling")
    memory: str | None = _same("memory")
    in_flight: int = _same("in_flight")
    threads: int | None = _same("threads")
    stream: int = _same("stream")
    start: float | None = _same("start")
    duration: float | None = _same("duration")
    interlaced: Interlaced = _same("interlaced")
    deinterlace: bool = _same("deinterlace")
    hardware: Literal["none", "cuda"] = _same("hardware")
    reuse: bool = _same("reuse")
    reuse_threshold: float = _same("reuse_threshold")
    reuse_halo: int = _same("reuse_halo")
    reuse_refresh: int = _same("reuse_refresh")
    skip_sharp: bool = _same("skip_sharp")
    sharp_below: float = _same("sharp_below")
    on_error: OnError = _same("on_error")
    detect: str | None = _same("detect")
    detect_threshold: float = _same("detect_threshold")
    detect_on: str = _same("detect_on")
    detect_every: int = _same("detect_every")
    detect_names: Path | None = _same("detect_names")
    detect_device: str = _same("detect_device")
    detect_threads: int | None = _same("detect_threads")
    track: bool = _same("track")
    annotate: bool = _same("annotate")
    webhook: SecretStr | None = _same("webhook")
    mqtt: SecretStr | None = _same("mqtt")

    _detect_on = field_validator("detect_on")(detect_on_checked)
    _memory = field_validator("memory")(memory_checked)

    address: str | None = Field(
        None, description="Ray cluster: auto, HOST:PORT or ray://HOST:PORT. Default: RAY_ADDRESS, else this machine."
    )
    workers: int | None = Field(
        None, ge=1, le=100_000, description="Actors at most. Default: as many as the cluster has room for, as it grows."
    )
    cpus_per_worker: float = Field(1.0, gt=0, le=1024, description="CPU cores an actor asks of Ray.")
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        le=16,
        description="GPUs (or a fraction of one) an actor asks of Ray. Default: 1 where there are any, and for cuda.",
    )
    helpers: int = Field(
        0, ge=0, le=10_000, description="Actors without GPU more, for planning, joining and verifying on CPU nodes."
    )
    encode_on: Literal["workers", "helpers"] = Field(
        "workers",
        description="Who encodes: those that restore, or helpers, where a GPU restores faster than its node encodes.",
    )
    segment_seconds: float = Field(
        60.0, ge=0, le=86_400, description="Cut longer files at keyframes into about this much; 0 never cuts."
    )
    group_seconds: float = Field(
        30.0, ge=0, le=3600, description="Hand out short files in groups of about this much footage."
    )
    attempts: int = Field(3, ge=1, le=20, description="Tries before a file is quarantined.")
    unit_timeout: float = Field(
        1800.0,
        ge=0,
        description="Seconds without any progress after which an actor is ended and its work tried again; 0: never.",
    )
    backoff: float = Field(2.0, ge=0, le=3600, description="Seconds before the second try; doubled for each further.")
    verify: bool = Field(True, description="Compare each result with its source, as `streamdeblur verify` does.")
    resume: bool = Field(True, description="Skip what is done and valid; --no-resume does everything anew.")
    overwrite: bool = Field(False, description="Replace files in DEST that no batch job wrote.")
    thumbnails: int = Field(100, ge=0, le=5000, description="Files with pictures, before and after, in the report.")
    scratch: str | None = Field(
        None, description="Folder for work in progress on each node. Default: the system's own."
    )
    reserve_gb: float = Field(1.0, ge=0, description="Pause while less than this many GB are free in DEST.")

    conflicts: ClassVar[tuple[Conflict, ...]] = (
        *(c for c in ProcessOptions.conflicts if "detections" not in c.fields),
        Conflict(
            ("encode_on", "helpers"),
            lambda o: o.encode_on == "helpers" and not o.helpers,
            lambda o: "encode_on helpers needs some: set helpers to how many",
        ),
    )


_SHARED = tuple(name for name in ProcessOptions.model_fields if name in BatchOptions.model_fields and name not in _OWN)


def file_options(options: BatchOptions, changes: Mapping[str, Any], origin: str = "") -> ProcessOptions:
    """Options of the main job for one file. changes: its own, over those of the job. Raises ConfigError."""
    if changes:
        parse(_FileChanges, changes, origin)
    values: dict[str, Any] = {name: getattr(options, name) for name in _SHARED}
    values.update({k: v for k, v in changes.items() if k in PER_FILE})
    if changes:
        return parse(ProcessOptions, {**values, "overwrite": True}, origin)
    return ProcessOptions(**values, overwrite=True)


class _FileChanges(StrictModel):
    """Options of a single file, in a manifest. ``output``: where it goes, from DEST on."""

    output: str | None = None
    model: Any = None
    weights: Any = None
    precision: Any = None
    engine: Any = None
    tiling: Any = None
    encoder: Any = None
    crf: Any = None
    preset: Any = None
    lossless: Any = None
    stream: Any = None
    start: Any = None
    duration: Any = None
    interlaced: Any = None
    deinterlace: Any = None
    hardware: Any = None
    reuse: Any = None
    reuse_threshold: Any = None
    reuse_halo: Any = None
    reuse_refresh: Any = None
    skip_sharp: Any = None
    sharp_below: Any = None
    on_error: Any = None
    detect: Any = None
    detect_threshold: Any = None
    detect_on: Any = None
    detect_every: Any = None
    detect_names: Any = None
    track: Any = None
    annotate: Any = None


assert {*_FileChanges.model_fields} == {"output", *PER_FILE}
