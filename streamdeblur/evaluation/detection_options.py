"""Options of ``streamdeblur detect-eval``."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from streamdeblur.config import StrictModel
from streamdeblur.evaluation.options import Layout, MeasureOptions


def _same(name: str) -> Any:
    """The option of ``evaluate``, with its default and its words."""
    return copy(MeasureOptions.model_fields[name])


class DetectionMeasureOptions(StrictModel):
    """How to measure: all options that are given once."""

    detector: str | None = Field(
        None, description="FILE.onnx (YOLOX, FastestDet), module:factory or FILE.py:factory. Must be given."
    )
    truth_threshold: float = Field(
        0.5, ge=0.01, le=1, description="Score from which on what is found on the sharp image is true."
    )
    classes: str | None = Field(None, description="Only these classes, by name, separated by commas. Default: all.")
    names: Path | None = Field(None, description="File with the name of a class on each line, for FILE.onnx.")
    detector_device: str = Field("auto", description="Device of FILE.onnx: auto, cpu, cuda or cuda:N.")
    pictures: int = Field(4, ge=0, le=50, description="Images shown in the report.")
    weights: str | None = _same("weights")
    overwrite: bool = _same("overwrite")
    device: str = _same("device")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _same("precision")
    tiling: Literal["auto", "exact", "fast", "whole"] = _same("tiling")
    multiple: int = _same("multiple")
    layout: Layout = _same("layout")
    split: Literal["train", "test"] = _same("split")
    limit: int | None = _same("limit")
    threads: int | None = _same("threads")


class DetectEvalOptions(DetectionMeasureOptions):
    """All of them. data: folders of pairs, one or more. model: what restores, as in ``evaluate``; the subject first."""

    data: tuple[str, ...] = Field((), description="Folder of pairs; may be given several times.")
    model: tuple[str, ...] = Field(
        (), description="What restores, as in evaluate; may be given several times. Default: the best that ships."
    )
    output: Path | None = Field(None, description="Folder for results.json, results.csv and report.html.")
