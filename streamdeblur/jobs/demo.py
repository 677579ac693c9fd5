"""A clip of our own, restored and compared with the truth: what ``streamdeblur demo`` does.

Renders a street (``scene``), writes it blurry with sound and sharp, runs the main job on the blurry clip, measures
PSNR against the sharp one before and after, and draws a side-by-side picture.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur import interrupts
from streamdeblur.errors import DiskFull, MismatchError, OutputError, UsageError
from streamdeblur.jobs.process import process_video
from streamdeblur.jobs.scene import Scene
from streamdeblur.models.registry import build, default_variant
from streamdeblur.video.simple import read_rgb, write_clip

Picture = npt.NDArray[np.uint8]
Progress = Callable[[str, int, int], None]

NO_WEIGHTS = (
    "no trained weights come with this version: the model is identity, nothing is restored, "
    "and what differs is the encoder's"
)

_CRF = 12  # of the blurry clip and of the restored one: what differs is the restoration, not the encoder
_BLURRY_OPTIONS = {"crf": str(_CRF), "preset": "veryfast"}
_TRUTH_OPTIONS = {"crf": "8", "preset": "veryfast"}
_SOUND_RATE = 48000
_LONGEST = 60  # seconds; the truth of all frames is held while they are rendered
_BAR = 40
_GAP = 8
_CROPS = 2


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to render and with what to restore it.

    output: folder for all files; made where missing, files of an earlier run are replaced. size: (width, height),
    even. seconds, rate: of the clip. samples: sharp pictures averaged for a blurry one, odd; shutter_angle: degrees of
    the frame interval that the shutter is open. model, weights: as for any job; both None means the best variant whose
    weights come with the package, or ``identity`` where none do.
    """

    output: Path
    size: tuple[int, int] = (640, 360)
    seconds: float = 2.5
    rate: Fraction = Fraction(30)
    seed: int = 0
    samples: int = 11
    shutter_angle: float = 250.0
    model: str | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What came out. PSNR in dB over R'G'B' of the decoded files, the mean of per-frame values.

    note: one plain sentence where nothing was restored, else None.
    """

    model: str
    frames: int
    fps: float
    psnr_blurry: float
    psnr_restored: float
    blurry: Path
    restored: Path
    sharp: Path
    picture: Path
    summary: Path
    note: str | None

    @property
    def gain(self) -> float:
        return self.psnr_restored - self.psnr_blurry


def run_demo(options: DemoOptions, on_progress: Progress | None = None) -> DemoReport:
    """Render, restore, compare; write ``demo_{blurry,sharp,restored}.mp4``, ``demo.png`` and ``demo.json``.

    on_progress: called with a stage ("render", "restore", "compare"), steps done and steps in all.
    Raises UsageError on options, OutputError where the folder can't be written, and what ``process_video`` raises.
    """
    count = _frame_count(options)
    if options.model is not None or options.weights is not None:
        build(options.model, options.weights)  # what is wrong with them is told before anything is rendered
    report = on_progress or _silent
    scene = Scene(options.size, options.seed)
    folder = Path(options.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {folder} can't be made: {error.strerror}", "name another with -o") from error
    blurry, sharp, restored = (folder / f"demo_{name}.mp4" for name in ("blurry", "sharp", "restored"))
    _render(scene, options, count, blurry, sharp, report)

    model = options.model
    note = None
    if model is None and options.weights is None:
        variant = default_variant()
        model = variant.name if variant else "identity"
        note = None if variant else NO_WEIGHTS
    report("restore", 0, count)
    done = process_video(
        blurry,
        restored,
        model=model,
        weights=options.weights,
        crf=_CRF,
        overwrite=True,
        progress=lambda state: report("restore", state.frames, count),
    )

    before, after = _compare(blurry, restored, sharp, count, report)
    index = int(np.argmin(np.abs(before - before.mean())))
    picture = folder / "demo.png"
    _draw_comparison(
        picture,
        [_frame_at(path, index) for path in (blurry, restored, sharp)],
        [f"blurry  {before[index]:.2f} dB", f"{done.model}  {after[index]:.2f} dB", "sharp"],
    )
    result = DemoReport(
        model=done.model,
        frames=count,
        fps=float(done.fps),
        psnr_blurry=float(before.mean()),
        psnr_restored=float(after.mean()),
        blurry=blurry,
        restored=restored,
        sharp=sharp,
        picture=picture,
        summary=folder / "demo.json",
        note=note,
    )
    _write_summary(result, options)
    return result


def psnr(a: Picture, b: Picture) -> float:
    """Peak signal-to-noise ratio in dB of two (H, W, 3) uint8 pictures, over all values; inf where they are equal."""
    if a.shape != b.shape:
        raise MismatchError(f"pictures of {a.shape} and {b.shape} can't be compared")
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2, dtype=np.float64))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _frame_count(options: DemoOptions) -> int:
    if options.size[0] % 2 or options.size[1] % 2:
        width, height = options.size
        raise UsageError(f"size {width}x{height} is odd, which 4:2:0 H.264 can't hold", "take even sides")
    if not 0 < options.seconds <= _LONGEST:
        raise UsageError(f"{options.seconds} s is no length for a demonstration", f"take up to {_LONGEST} s")
    if options.seed < 0:
        raise UsageError(f"seed {options.seed} is negative", "take 0 or more")
    count = round(options.seconds * options.rate)
    if count < 1:
        raise UsageError(f"{options.seconds} s at {options.rate} frames a second is no frame", "take a longer clip")
    return count


def _render(scene: Scene, options: DemoOptions, count: int, blurry: Path, sharp: Path, report: Progress) -> None:
    truth: list[Picture] = []  # held until the first clip is done: 0.7 MB a frame at the default size

    def exposures() -> Iterator[Picture]:
        frames = scene.frames(count, options.rate, samples=options.samples, shutter_angle=options.shutter_angle)
        for i, exposure in enumerate(frames):
            truth.append(exposure.sharp)
            report("render", i + 1, count)
            yield exposure.blurry

    sound = scene.sound(float(count / options.rate), _SOUND_RATE)
    write_clip(blurry, exposures(), options.rate, audio=(sound, _SOUND_RATE), options=_BLURRY_OPTIONS)
    write_clip(sharp, truth, options.rate, options=_TRUTH_OPTIONS)


def _compare(
    blurry: Path, restored: Path, sharp: Path, count: int, report: Progress
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """PSNR per frame against the truth, before and after."""
    before, after = [], []
    try:
        for a, b, truth in zip(read_rgb(blurry), read_rgb(restored), read_rgb(sharp), strict=True):
            before.append(psnr(a, truth))
            after.append(psnr(b, truth))
            report("compare", len(before), count)
    except ValueError as error:
        raise MismatchError("the restored clip has not the frames of its source", "report this as a bug") from error
    return np.array(before), np.array(after)


def _frame_at(path: Path, index: int) -> Picture:
    for i, picture in enumerate(read_rgb(path)):
        if i == index:
            return picture
    raise MismatchError(f"{path} has no frame {index}")


def _draw_comparison(path: Path, pictures: list[Picture], labels: list[str]) -> None:
    """Columns of a picture and, magnified below it, the places where blur did the most harm."""
    height, width = pictures[0].shape[:2]
    boxes = _worst_boxes(pictures[0], pictures[-1], (width // 5, height // 5))
    crop_width = (width - _GAP * (_CROPS - 1)) // _CROPS
    crop_height = round(crop_width * (height // 5) / (width // 5))
    column_height = _BAR + height + _GAP + crop_height
    sheet = np.full((column_height, (width + _GAP) * len(pictures) - _GAP, 3), 24, np.uint8)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = i * (width + _GAP)
        _write_label(sheet[:_BAR, left : left + width], label)
        marked = picture.copy()
        for k, (x, y, w, h) in enumerate(boxes):
            crop = cv2.resize(picture[y : y + h, x : x + w], (crop_width, crop_height), interpolation=cv2.INTER_CUBIC)
            at = left + k * (crop_width + _GAP)
            sheet[_BAR + height + _GAP :, at : at + crop_width] = crop
            cv2.rectangle(marked, (x, y), (x + w - 1, y + h - 1), (255, 210, 60), 2)
        sheet[_BAR : _BAR + height, left : left + width] = marked
    ok, data = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not ok:
        raise OutputError(f"{path} can't be encoded as PNG")
    _replace(path, data.tobytes())


def _write_label(bar: Picture, label: str) -> None:
    font = cv2.FONT_HERSHEY_SIMPLEX
    size = 0.8
    (w, h), _ = cv2.getTextSize(label, font, size, 2)
    if w > bar.shape[1] - 16:
        size *= (bar.shape[1] - 16) / w
    cv2.putText(bar, label, (8, (_BAR + h) // 2), font, size, (240, 240, 240), 2, cv2.LINE_AA)


def _worst_boxes(blurry: Picture, sharp: Picture, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """(x, y, width, height) of the boxes with the largest squared error, not touching one another, left to right."""
    width, height = size
    error = ((blurry.astype(np.float32) - sharp) ** 2).sum(axis=2)
    total = np.zeros((error.shape[0] + 1, error.shape[1] + 1))
    total[1:, 1:] = error.cumsum(0, dtype=np.float64).cumsum(1)
    score = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    boxes = []
    for _ in range(_CROPS):
        y, x = (int(v) for v in np.unravel_index(np.argmax(score), score.shape))
        boxes.append((x, y, width, height))
        score[max(0, y - height) : y + height, max(0, x - width) : x + width] = -1
    return sorted(boxes)


def _write_summary(report: DemoReport, options: DemoOptions) -> None:
    values: dict[str, Any] = {k: v.name if isinstance(v, Path) else v for k, v in asdict(report).items()}
    values["gain"] = report.gain
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            values[key] = None  # JSON has no infinity, the PSNR of equal pictures
    values["size"] = list(options.size)
    values["rate"] = str(options.rate)
    values["seed"] = options.seed
    _replace(report.summary, (json.dumps(values, indent=2) + "\n").encode())


@interrupts.held()
def _replace(path: Path, data: bytes) -> None:
    """Write a file beside its target, then rename it."""
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = DiskFull if full else OutputError
        raise kind(f"{path} can't be written: {error.strerror}", "name another folder with -o") from error
