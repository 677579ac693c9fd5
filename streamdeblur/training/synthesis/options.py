"""What `streamdeblur synthesize` may be told."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from streamdeblur.config import StrictModel

Method = Literal["auto", "average", "flow", "shake"]


class SynthesizeOptions(StrictModel):
    """Options of ``synthesize``: keys of configs/synthesize.yaml, options of the command, keywords of the call."""

    method: Method = Field(
        "auto",
        description="average: Eq. 1 on high-speed frames; flow: frames in between by optical flow; shake: stills.",
    )
    count: int = Field(50, ge=1, le=1_000_000, description="Number of pairs.")
    size: int | None = Field(None, ge=32, le=8192, description="Side of square crops. Default: nearly whole frames.")
    frames: str = Field("7-15", description="average: MIN-MAX frames in one exposure.")
    length: str = Field("4-48", description="flow and shake: MIN-MAX pixels of blur where it is longest.")
    tremble: str = Field(
        "1", description="shake: MIN-MAX of how unsteady the camera is: 0 constant speed, 1 a hand, 3 the most."
    )
    stepped: float = Field(
        0.0, ge=0, le=1, description="flow and shake: share of pairs that are means of at most 7 to 13 frames."
    )
    response: Literal["random", "srgb", "gamma", "none"] = Field(
        "random", description="Camera response curve; none averages coded values."
    )
    noise: bool = Field(True, description="Some pairs get photon noise, on the blurred side.")
    demosaic: bool = Field(True, description="Some pairs get the softness of demosaicing.")
    compression: bool = Field(True, description="Some pairs get JPEG or H.264 artefacts.")
    highlights: bool = Field(True, description="flow and shake: some pairs get highlights that leave clipped streaks.")
    foreground: bool = Field(True, description="shake: some pairs get something that moves in front.")
    identity: float = Field(0.0, ge=0, le=1, description="Share of pairs whose blurred side is the sharp one.")
    seed: int = Field(0, ge=0, description="Of everything random: the same seed, the same bytes.")
    preview: bool = Field(True, description="Write preview.png, blurred and sharp side by side.")
    overwrite: bool = Field(False, description="Replace an existing set of pairs.")

    @field_validator("frames", "length", "tremble", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        """A number, or a list of two, as YAML and callers may have it."""
        if isinstance(value, list | tuple) and len(value) == 2:
            return f"{value[0]}-{value[1]}"
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("frames")
    @classmethod
    def _frames(cls, value: str) -> str:
        low, high = span(value, "7-15")
        if not (low >= 1 and low == int(low) and high == int(high) and high <= 999):
            raise ValueError("is no range of frames: give MIN-MAX, for example 7-15")
        if low == high and low % 2 == 0:
            raise ValueError(f"is an even number, without a middle frame: give {low - 1:g} or {low + 1:g}")
        return value

    @field_validator("length")
    @classmethod
    def _length(cls, value: str) -> str:
        if span(value, "4-48")[1] > 400:
            raise ValueError("is longer than 400 pixels: give MIN-MAX, for example 4-48")
        return value

    @field_validator("tremble")
    @classmethod
    def _tremble(cls, value: str) -> str:
        if span(value, "0-2")[1] > 3:  # shake.SHAKIEST; not imported, as the command line needs no OpenCV for its help
            raise ValueError("is more than 3: give MIN-MAX, for example 0-2")
        return value


def span(text: str, example: str = "7-15") -> tuple[float, float]:
    """(low, high) of ``LOW-HIGH`` or of one number. Raises ValueError, which gives ``example``."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:-\s*(\d+(?:\.\d+)?)\s*)?", text)
    if found is None:
        raise ValueError(f"is no range: give MIN-MAX, for example {example}")
    low = float(found[1])
    high = float(found[2]) if found[2] else low
    if low > high:
        raise ValueError(f"ends below its beginning: give MIN-MAX, for example {example}")
    return low, high
