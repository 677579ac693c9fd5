"""The measurement: pair by pair through every model, scored as soon as it is restored."""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamdeblur.errors import InputError, StreamdeblurError, UsageError
from streamdeblur.evaluation.gallery import Gallery, Picture
from streamdeblur.evaluation.metrics import SIDES, Window, psnr, quantize, ssim
from streamdeblur.evaluation.options import EvaluateOptions
from streamdeblur.evaluation.report import html_report
from streamdeblur.evaluation.restorers import Candidate, load_candidates
from streamdeblur.evaluation.results import Evaluation, ImageResult, ModelInfo, Score, SetResult, legible, plain
from streamdeblur.evaluation.store import require_room, save
from streamdeblur.training.alignment import align
from streamdeblur.training.pairs import find_pairs, read_pair
from streamdeblur.version import __version__


@dataclass(frozen=True, slots=True)
class Progress:
    """What a caller may show: pairs done of all, the set and the subject's mean gain there so far (None at first)."""

    done: int
    total: int
    set_name: str
    gain: float | None
    seconds: float


def evaluate(options: EvaluateOptions, progress: Callable[[Progress], None] | None = None) -> Evaluation:
    """``measure``, then ``write``: results.json, results.csv and report.html where ``options.output`` says.

    They are written too where it ends early, of the pairs until then, if none were there. Raises what both raise.
    """

    def rescue(part: Evaluation, gallery: Gallery) -> None:
        with contextlib.suppress(StreamdeblurError):  # what ended it is to be told
            write(part, gallery, options)

    evaluation, gallery = measure(options, progress, rescue=rescue)
    write(evaluation, gallery, options)
    return evaluation


def write(evaluation: Evaluation, gallery: Gallery, options: EvaluateOptions) -> None:
    """The files of an evaluation, if ``options.output`` names a folder. Raises OutputError and DiskFull.

    A part of an evaluation takes the place of no earlier one: OutputError then, too.
    """
    if options.output is not None:
        if evaluation.stopped:
            require_room(options.output, overwrite=False)
        save(
            options.output,
            {
                "results.json": evaluation.as_json(),
                "results.csv": evaluation.as_csv(),
                "report.html": html_report(evaluation, gallery, published=options.published),
            },
        )


def measure(
    options: EvaluateOptions,
    progress: Callable[[Progress], None] | None = None,
    *,
    rescue: Callable[[Evaluation, Gallery], None] | None = None,
) -> tuple[Evaluation, Gallery]:
    """Measure every model on every pair; nothing is written, but ``options.output`` is made and must have room.

    Names in what is returned are legible: bytes that are not UTF-8 are escaped. Pairs are read one after the other;
    what stays in memory beside the numbers is one pair, its restored images and the gallery. The first model is the
    subject: the gallery shows where it gains and loses most. rescue: is given what there is where an error or a signal
    ends it early, if a pair was done; then that is raised.

    Raises UsageError (options, unknown models), InputError (pairs, empty sets), WeightsError, DeviceError, OutputError,
    and StreamdeblurError where a restorer fails or returns something else than an image.
    """
    if not options.data:
        raise UsageError("no pairs to measure", "give a folder of pairs with --data")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    sets = [_Set(folder, options) for folder in options.data]
    _name(sets)
    candidates = load_candidates(
        options.model,
        weights=options.weights,
        device=options.device,
        precision=options.precision,
        tiling=options.tiling,
        multiple=options.multiple,
    )
    if options.output is not None:  # last: a folder is made for what is going to be measured only
        require_room(options.output, overwrite=options.overwrite)
    gallery = Gallery(candidates[0].name)
    stopwatches = [_Stopwatch(c, options.warmup, options.repeats) for c in candidates]
    infos: list[ModelInfo] = []
    results: list[SetResult] = []
    total, done, begun = sum(len(s.pairs) for s in sets), 0, time.monotonic()

    def so_far(stopped: str) -> Evaluation:
        return Evaluation(
            version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=_machine(candidates[0].device),
            options=plain(options.model_dump(mode="json", exclude={"output", "overwrite"})),
            ssim_window=options.ssim_window,
            models=infos,
            sets=[r for r in results if r.images],
            stopped=stopped,
        )

    try:
        for one in sets:
            result = SetResult(one.name, legible(str(one.folder)), one.aligned)
            results.append(result)
            gains: list[float] = []
            for name, blurry, sharp in one.read():
                if not infos:
                    infos = [_info(c, blurry) for c in candidates]
                result.images.append(_measure(one, name, blurry, sharp, stopwatches, gallery, options))
                gain = result.images[-1].scores[gallery.subject].gain
                gains += [gain] if gain == gain else []
                done += 1
                if progress is not None:
                    mean = sum(gains) / len(gains) if gains else None
                    progress(Progress(done, total, one.name, mean, time.monotonic() - begun))
    except BaseException:
        if done and rescue is not None:  # hours of work
            rescue(so_far(f"stopped after {done} of {total} pairs"), gallery)
        raise
    return so_far(""), gallery


class _Set:
    """The pairs of one folder: only their names are held."""

    def __init__(self, folder: str, options: EvaluateOptions) -> None:
        self.folder = Path(folder)
        pairs = find_pairs(folder, layout=options.layout, split=options.split)
        if options.limit is not None and options.limit < len(pairs):
            pairs = [pairs[i * len(pairs) // options.limit] for i in range(options.limit)]
        self.pairs = pairs
        self.aligned = options.align == "on" or (options.align == "auto" and self._is_realblur(options))
        self.name = legible(self.folder.resolve().name or str(self.folder))

    def _is_realblur(self, options: EvaluateOptions) -> bool:
        if options.layout != "auto":
            return options.layout.startswith("realblur")
        return any(self.folder.glob(f"RealBlur_[JR]_{options.split}_list.txt"))

    def read(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, blurry and sharp image of each pair: (1, 3, H, W) float32 in [0, 1] on the CPU."""
        for pair in self.pairs:
            blurry, sharp = read_pair(pair)
            yield legible(pair.name), to_tensor(blurry), to_tensor(sharp)


def _name(sets: Sequence[_Set]) -> None:
    """Folders of one name get the path that tells them apart."""
    counts = Counter(s.name for s in sets)
    for s in sets:
        if counts[s.name] > 1:
            s.name = legible(str(s.folder))
    if len({s.name for s in sets}) < len(sets):
        raise UsageError(f"folder {Counter(s.name for s in sets).most_common(1)[0][0]} is given twice", "give it once")


class _Stopwatch:
    """Runs a candidate and times it, synchronised; a size that it has not seen yet is warmed up first."""

    def __init__(self, candidate: Candidate, warmup: int, repeats: int) -> None:
        self.candidate = candidate
        self._warmup, self._repeats = warmup, repeats
        self._seen: set[tuple[int, ...]] = set()

    def run(self, image: Tensor) -> tuple[Tensor, float]:
        """The restored image, clamped, and the median seconds."""
        with self.candidate.home():
            return self._run(image)

    def _run(self, image: Tensor) -> tuple[Tensor, float]:
        x = image.to(self.candidate.device)
        if tuple(x.shape) not in self._seen:
            self._seen.add(tuple(x.shape))
            for _ in range(self._warmup):
                self.candidate(x.clone())
        times = []
        for _ in range(self._repeats):
            given = x.clone()  # some restorers work in place
            synchronize(x.device)
            begun = time.perf_counter()
            result = self.candidate.run(given)
            synchronize(x.device)
            times.append(time.perf_counter() - begun)
        return self.candidate.check(x, result).clamp(0, 1), statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait for what the device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _measure(
    one: _Set,
    name: str,
    blurry: Tensor,
    sharp: Tensor,
    stopwatches: Sequence[_Stopwatch],
    gallery: Gallery,
    options: EvaluateOptions,
) -> ImageResult:
    height, width = blurry.shape[-2:]
    window = options.ssim_window
    least = SIDES[window]
    if min(height, width) < least:
        raise InputError(f"pair {name} is {width}x{height}", f"SSIM needs {least}x{least} or more")
    before = _score(one.aligned, blurry, sharp, window)
    scores: dict[str, Score] = {}
    pictures: dict[str, Picture] = {}
    for stopwatch in stopwatches:
        candidate = stopwatch.candidate
        restored, seconds = stopwatch.run(blurry)
        truth = sharp.to(restored.device)
        exact = _score(one.aligned, restored, truth, window)
        rounded = _score(one.aligned, quantize(restored), truth, window)
        harmless = None
        if options.do_no_harm:
            again = candidate(truth.clone()).clamp(0, 1)
            harmless = float(psnr(quantize(again), truth))
        scores[candidate.name] = Score(
            psnr=exact.psnr,
            psnr_8bit=rounded.psnr,
            ssim=exact.ssim,
            ssim_8bit=rounded.ssim,
            gain=exact.psnr - before.psnr if np.isfinite(before.psnr) else float("nan"),
            seconds=seconds,
            sharp_psnr=harmless,
        )
        pictures[candidate.name] = to_picture(rounded.image)
    if options.output is not None:
        gain = scores[gallery.subject].gain
        gallery.offer(one.name, name, gain, to_picture(before.image), to_picture(sharp), pictures)
    return ImageResult(name, width, height, before.psnr, before.ssim, scores)


@dataclass(frozen=True, slots=True)
class _Scored:
    """image: what was compared with the sharp image; registered, in the aligned protocol."""

    psnr: float
    ssim: float
    image: Tensor


def _score(aligned: bool, image: Tensor, sharp: Tensor, window: Window) -> _Scored:
    truth, mask = sharp, None
    if aligned:
        found = align(_rows(image), _rows(sharp))
        image, truth = (_image(p).to(sharp.device) for p in (found.restored, found.sharp))
        mask = torch.from_numpy(found.mask)[None, None].to(sharp)
    return _Scored(
        float(psnr(image, truth, mask=mask)),
        float(ssim(image, truth, window=window, mask=mask)),
        # to look at: where nothing counts, the sharp image
        image if mask is None else image * mask + sharp * (1 - mask),
    )


def _rows(image: Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(image[0].permute(1, 2, 0).contiguous().cpu().numpy(), np.float32)


def _image(rows: npt.NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).permute(2, 0, 1)[None]


def to_tensor(picture: Picture) -> Tensor:
    """uint8 (H, W, 3) → float32 (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].to(torch.float32) / 255


def to_picture(image: Tensor) -> Picture:
    """float (1, 3, H, W) in [0, 1] → uint8 (H, W, 3)."""
    scaled = torch.round(image[0].clamp(0, 1) * 255).to(torch.uint8)
    return np.asarray(scaled.permute(1, 2, 0).contiguous().cpu().numpy(), np.uint8)


def _info(candidate: Candidate, first: Tensor) -> ModelInfo:
    height, width = first.shape[-2:]
    return ModelInfo(
        name=candidate.name,
        source=legible(candidate.source),
        kind=candidate.kind,
        device=str(candidate.device),
        precision=candidate.precision,
        tiling=candidate.tiling,
        parameters=candidate.parameters,
        gflop=candidate.gflop(first.to(candidate.device)),
        gflop_size=f"{width}x{height}",
    )


def _machine(device: torch.device) -> dict[str, str]:
    processor, threads = platform.processor() or platform.machine(), torch.get_num_threads()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:  # not Linux
        pass
    machine = {"device": str(device), "cpu": f"{processor}, {threads} thread{'s' if threads != 1 else ''}"}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    machine["torch"] = f"PyTorch {torch.__version__}"
    return machine
