"""Options of ``streamdeblur benchmark`` and ``streamdeblur tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, field_validator

from streamdeblur.config import RestoreOptions, StrictModel, memory_checked

#: What can be measured, and what it is.
PARTS = {
    "network": "the network alone: every engine against the loop of research code",
    "stages": "decode, colour, network, compose, encode, each by itself",
    "job": "the whole of process against the network alone, start-up, memory",
    "tiling": "ways of tiling: time, memory, difference from the whole frame",
    "pools": "process in this process and on Ray actors",
    "growth": "longer clips, and more workers where they only wait",
}
DEFAULT_PARTS = ("network", "stages", "job")

_FIELDS = RestoreOptions.model_fields
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


class BenchmarkSettings(StrictModel):
    """How to measure: all options that have one value."""

    rounds: int | None = Field(None, ge=1, le=1000, description="Measured calls of each way. Default: 5, quick 2.")
    frames: int | None = Field(None, ge=2, le=100_000, description="Frames of rendered clips. Default: 12, quick 6.")
    limit: int = Field(4, ge=1, description="Pairs of each set of --data, spread evenly.")
    clip: Path | None = Field(None, description="A video for stages, job and pools, instead of a rendered one.")
    reference: bool = Field(True, description="Run the loop of research code beside the rest.")
    peak_memory: bool = Field(True, description="Measure peak memory and start-up, in processes of their own.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of PyTorch.")
    memory: str | None = Field(None, description="As for process: what tilings are planned for.")
    html: Path | None = Field(None, description="Write a page with tables and a plot of quality against speed.")
    quick: bool = Field(False, description="A small picture and few rounds: to see that it works.")

    _memory = field_validator("memory")(memory_checked)


class BenchmarkOptions(BenchmarkSettings):
    """All of ``streamdeblur benchmark``. ``LISTS`` are given with commas on the command line."""

    what: tuple[str, ...] = Field(DEFAULT_PARTS, description=f"{', '.join(PARTS)}, or all.")
    models: tuple[str, ...] = Field((), description="Variants, or NAME=WEIGHTS. Default: the best that ships.")
    engines: tuple[str, ...] = Field(
        (),
        description="Engines, or auto, in every part. Default: network all of such a device, the others auto.",
    )
    precisions: tuple[str, ...] = Field(("auto",), description="auto, fp32, bf16, fp16, int8: every engine in each.")
    sizes: tuple[str, ...] = Field(("720p",), description="360p, 720p, 1080p, 4k or WIDTHxHEIGHT.")
    tiles: tuple[str, ...] = Field(("auto",), description="auto, whole, exact, fast, TILE or TILE/OVERLAP in pixels.")
    batch: tuple[int, ...] = Field((), description="Windows in one call of the network. Default: as planned.")
    data: tuple[str, ...] = Field((), description="Folders of pairs, or .shard files: what a way loses in PSNR.")

    @field_validator("what")
    @classmethod
    def _parts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == ("all",):
            return tuple(PARTS)
        for word in value:
            if word not in PARTS:
                raise ValueError(f"nothing called {word!r} is measured: choose from {', '.join(PARTS)}, or all")
        if not value:
            raise ValueError(f"nothing is to be measured: choose from {', '.join(PARTS)}, or all")
        return tuple(dict.fromkeys(value))

    @field_validator("precisions", "sizes", "tiles")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("give one at least")
        return value

    @field_validator("precisions")
    @classmethod
    def _precisions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            if word not in PRECISIONS:
                raise ValueError(f"precision {word!r} is not known: choose from {', '.join(PRECISIONS)}")
        return value

    @field_validator("batch")
    @classmethod
    def _batch(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(b < 1 for b in value):
            raise ValueError("a call has 1 window or more: give whole numbers from 1 on")
        return value


#: Options of several values.
LISTS = tuple(n for n in BenchmarkOptions.model_fields if n not in BenchmarkSettings.model_fields)


class TuneOptions(StrictModel):
    """All of ``streamdeblur tune``."""

    model: str | None = Field(None, description=_FIELDS["model"].description)
    weights: str | None = Field(None, description=_FIELDS["weights"].description)
    device: str = Field("auto", description=_FIELDS["device"].description)
    precision: Precision = Field("auto", description=_FIELDS["precision"].description)
    engine: str = Field("auto", description="As for process: auto is what a long job gets.")
    memory: str | None = Field(None, description=_FIELDS["memory"].description)
    threads: int | None = Field(None, ge=1, le=1024, description=_FIELDS["threads"].description)
    size: str = Field("720p", description="Frames to measure with: 360p, 720p, 1080p, 4k or WIDTHxHEIGHT.")
    seconds: float = Field(60.0, gt=0, le=3600, description="About how long to measure, after first calls.")
    forget: bool = Field(False, description="Remove what was measured before; measure nothing.")

    _memory = field_validator("memory")(memory_checked)
