"""Options of ``streamdeblur evaluate``: what it measures, with which models, where it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from streamdeblur.config import StrictModel

#: Those of ``training.pairs``, which this module does not import: it loads OpenCV.
Layout = Literal["auto", "plain", "gopro", "gopro_gamma", "realblur_j", "realblur_r", "hide", "reds"]
Align = Literal["auto", "on", "off"]


class MeasureOptions(StrictModel):
    """How to measure: all options that are given once."""

    weights: str | None = Field(
        None, description="Checkpoint, or random:SEED, for the models of ours that name none with NAME=FILE."
    )
    overwrite: bool = Field(False, description="Replace results that are in the folder.")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Arithmetic of our networks; other restorers use their own."
    )
    tiling: Literal["auto", "exact", "fast", "whole"] = Field(
        "auto", description="Tiling of our networks, whole is off; other restorers always get the whole image."
    )
    multiple: int = Field(
        1, ge=1, le=4096, description="Pad what other restorers get to a multiple of this many pixels."
    )
    layout: Layout = Field("auto", description="How the folders of pairs are laid out.")
    split: Literal["train", "test"] = Field("test", description="Which part of a set that has both.")
    limit: int | None = Field(None, ge=1, description="Only this many pairs of each folder, spread evenly.")
    align: Align = Field(
        "auto", description="RealBlur's protocol, which registers before it compares. auto: for RealBlur's layout."
    )
    ssim_window: Literal["gaussian", "uniform"] = Field(
        "gaussian", description="gaussian is the literature's, uniform 7x7 what scikit-image takes by default."
    )
    do_no_harm: bool = Field(True, description="Run the sharp images too, and compare them with themselves.")
    warmup: int = Field(1, ge=0, le=100, description="Untimed runs before the first image of every size.")
    repeats: int = Field(1, ge=1, le=1000, description="Timed runs of every image; its time is their median.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of the networks.")
    published: bool = Field(
        False, description="Draw the paper's printed numbers (other data and hardware) into the report."
    )


class EvaluateOptions(MeasureOptions):
    """All of them. data: folders of pairs, one or more. model: what to compare (``restorers``), the subject first."""

    data: tuple[str, ...] = Field((), description="Folder of pairs; may be given several times.")
    model: tuple[str, ...] = Field(
        (),
        description="A variant, NAME=WEIGHTS, a checkpoint, module:factory, FILE.py:factory, a torch.export .pt2 or an "
        ".onnx; may be given several times. Default: the best that ships.",
    )

    output: Path | None = Field(None, description="Folder for results.json, results.csv and report.html.")
