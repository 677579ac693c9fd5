"""What was measured, as values; and as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

#: What the numbers mean; goes into every report.
DEFINITIONS = {
    "psnr": "10 log10(1 / mean squared error over all pixels and channels) of the restored image in [0, 1], clamped; "
    "a set's PSNR is the mean of its images' PSNR",
    "psnr_8bit": "the same after rounding the restored image to 8 bits",
    "ssim_gaussian": "Wang et al. 2004: Gaussian 11x11 window of sigma 1.5, population statistics, windows inside the "
    "image only, mean of the three channels (scikit-image: gaussian_weights=True, sigma=1.5, "
    "use_sample_covariance=False)",
    "ssim_uniform": "scikit-image's default: uniform 7x7 window, sample statistics, mean of the three channels",
    "gain": "PSNR of the restored image minus PSNR of the blurry one, both against the sharp one; a set's gain and the "
    "PSNR of its blurry input are means over gain_pairs only",
    "gain_pairs": "pairs whose blurry image differs from the sharp one; the others have nothing to gain",
    "seconds": "one image, from tensor to tensor on the device, synchronised before and after; warm-up excluded; "
    "median of the runs, and over a set the median of its images",
    "sharp_psnr": "do no harm: the sharp images through the model, 8-bit, PSNR against themselves; inf is unchanged",
    "gflop": "1e9 operations for one image of the size named, multiply and add counted apart",
    "aligned": "RealBlur's protocol: brightness matched and registered to the sharp image (ECC homography), then "
    "scored where the registered image has content",
}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model. gflop: of one image of ``gflop_size`` ("1280x720"); None where it can't be told."""

    name: str
    source: str
    kind: str
    device: str
    precision: str
    tiling: str
    parameters: int | None
    gflop: float | None
    gflop_size: str


@dataclass(frozen=True, slots=True)
class Score:
    """One model on one image. PSNR in dB, may be infinite; gain is NaN where the blurry image equals the sharp one."""

    psnr: float
    psnr_8bit: float
    ssim: float
    ssim_8bit: float
    gain: float
    seconds: float
    sharp_psnr: float | None = None


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One pair. input_psnr, input_ssim: of the blurry image. scores: by the name of the model."""

    name: str
    width: int
    height: int
    input_psnr: float
    input_ssim: float
    scores: dict[str, Score]


@dataclass(frozen=True, slots=True)
class Summary:
    """One model on one set: means, the median time, and the images with the smallest gain and most harm done."""

    model: str
    psnr: float
    psnr_8bit: float
    ssim: float
    ssim_8bit: float
    gain: float
    seconds: float
    worst_image: str
    worst_gain: float
    sharp_psnr: float | None
    sharp_psnr_lowest: float | None
    sharp_psnr_lowest_image: str | None


@dataclass(frozen=True, slots=True)
class SetResult:
    """A folder of pairs. aligned: measured by RealBlur's protocol."""

    name: str
    folder: str
    aligned: bool
    images: list[ImageResult] = field(default_factory=list)

    @property
    def gain_pairs(self) -> int:
        """How many pairs have a blurry image that differs from the sharp one, and so a gain."""
        return sum(math.isfinite(i.input_psnr) for i in self.images)

    @property
    def note(self) -> str:
        """One line where gain and input PSNR are not of all pairs, else ""."""
        count, total = self.gain_pairs, len(self.images)
        if count == total:
            return ""
        if not count:
            return "no pair has a blurry image that differs from the sharp one: there is nothing to gain"
        return f"gain and input PSNR are of the {count} of {total} pairs whose blurry image differs from the sharp one"

    @property
    def input_psnr(self) -> float:
        """Mean over the pairs that have a gain, so that one untouched pair doesn't make it infinite."""
        levels = [i.input_psnr for i in self.images]
        return _mean([p for p in levels if math.isfinite(p)] or levels)

    @property
    def input_ssim(self) -> float:
        return _mean(i.input_ssim for i in self.images)

    def summary(self, model: str) -> Summary:
        """The means of one model. There must be an image."""
        scores = [(i.name, i.scores[model]) for i in self.images]
        # an image that was never blurry has no gain; it is left out of the mean and can't be the worst
        gains = [(s.gain, name) for name, s in scores if not math.isnan(s.gain)]
        worst_gain, worst = min(gains, default=(math.nan, ""))
        sharp = [(s.sharp_psnr, name) for name, s in scores if s.sharp_psnr is not None]
        lowest, lowest_image = min(sharp) if sharp else (None, None)
        return Summary(
            model=model,
            psnr=_mean(s.psnr for _, s in scores),
            psnr_8bit=_mean(s.psnr_8bit for _, s in scores),
            ssim=_mean(s.ssim for _, s in scores),
            ssim_8bit=_mean(s.ssim_8bit for _, s in scores),
            gain=_mean(g for g, _ in gains),
            seconds=statistics.median(s.seconds for _, s in scores),
            worst_image=worst,
            worst_gain=worst_gain,
            sharp_psnr=_mean(p for p, _ in sharp) if sharp else None,
            sharp_psnr_lowest=lowest,
            sharp_psnr_lowest_image=lowest_image,
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything measured. machine, options: plain values for the record. stopped: how far it came, "" to its end."""

    version: str
    created: str
    machine: dict[str, str]
    options: dict[str, Any]
    ssim_window: str
    models: list[ModelInfo]
    sets: list[SetResult]
    stopped: str = ""

    @property
    def definitions(self) -> dict[str, str]:
        """The meaning of every number that is in here."""
        kept = {k: v for k, v in DEFINITIONS.items() if not k.startswith("ssim_")}
        kept["ssim"] = DEFINITIONS[f"ssim_{self.ssim_window}"]
        if not any(s.aligned for s in self.sets):
            del kept["aligned"]
        return kept

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; infinities and NaN become the words "inf", "-inf" and None."""
        sets = [
            {
                "name": s.name,
                "folder": s.folder,
                "pairs": len(s.images),
                "gain_pairs": s.gain_pairs,
                "aligned": s.aligned,
                "input": {"psnr": s.input_psnr, "ssim": s.input_ssim},
                "results": [asdict(s.summary(m.name)) for m in self.models],
                "images": [asdict(i) for i in s.images],
            }
            for s in self.sets
        ]
        values: dict[str, Any] = plain(
            {
                "version": self.version,
                "created": self.created,
                "stopped": self.stopped,
                "machine": self.machine,
                "options": self.options,
                "definitions": self.definitions,
                "models": [asdict(m) for m in self.models],
                "sets": sets,
            }
        )
        return values

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"

    def as_csv(self) -> str:
        """One row for every image and model; means are in the JSON."""
        text = io.StringIO()
        names = ("psnr", "psnr_8bit", "ssim", "ssim_8bit", "gain", "seconds", "sharp_psnr")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("set", "image", "width", "height", "model", "input_psnr", "input_ssim", *names))
        for s in self.sets:
            for i in s.images:
                for model, score in i.scores.items():
                    values = [getattr(score, n) for n in names]
                    row = [s.name, i.name, i.width, i.height, model, i.input_psnr, i.input_ssim, *values]
                    writer.writerow(["" if v is None or v != v else v for v in row])
        return text.getvalue()


def plain(value: Any) -> Any:
    """A value as JSON takes it: see ``Evaluation.as_dict``; text is made legible."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, str):
        return legible(value)
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def legible(name: str) -> str:
    r"""A name of a file as text that can be written: bytes that are not UTF-8 become ``\xe9``."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a pair of UTF-16, which no file system of ours gives
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _mean(values: Iterable[float]) -> float:
    held = list(values)
    return sum(held) / len(held) if held else math.nan
