"""What the scripts of this folder measure with."""

from __future__ import annotations

from streamdeblur.evaluation.benchmark.machine import load, machine, peak_memory
from streamdeblur.evaluation.benchmark.pictures import picture
from streamdeblur.evaluation.benchmark.pictures import psnr_between as psnr
from streamdeblur.evaluation.benchmark.results import table
from streamdeblur.evaluation.benchmark.timing import Timing, alternate, plain, seconds, synchronise
from streamdeblur.evaluation.benchmark.timing import faster as ratio

__all__ = [
    "Timing", "alternate", "load", "machine", "peak_memory", "picture", "plain", "psnr", "ratio", "seconds",
    "synchronise", "table",
]  # fmt: skip
