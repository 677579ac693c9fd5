"""Options of the detection hook; they lie with those of the jobs that take them in."""

from __future__ import annotations

from streamdeblur.config import DetectOptions, On, parse_on

__all__ = ["DetectOptions", "On", "parse_on"]
