"""Does restoring help a detector? The paper's Sec. 4.4.

Following Kupyn et al. (DeblurGAN, CVPR 2018), as the paper does: what a detector finds on the sharp image is the truth;
the same detector on the blurry and on the restored image is measured against it by average precision (COCO's, through
faster-coco-eval: 101 recall levels, at most 100 detections of a class in an image).
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamdeblur.detect.detector import Detections, Detector, Picture, checked, load_detector
from streamdeblur.detect.factories import factory_word
from streamdeblur.detect.onnx_model import iou
from streamdeblur.errors import InputError, StreamdeblurError, UsageError
from streamdeblur.evaluation.detection_options import DetectEvalOptions
from streamdeblur.evaluation.measure import Progress, to_picture, to_tensor
from streamdeblur.evaluation.restorers import load_candidates
from streamdeblur.evaluation.results import legible, plain
from streamdeblur.evaluation.store import require_room, save
from streamdeblur.training.pairs import find_pairs, read_pair
from streamdeblur.version import __version__

#: Least score of a detection that is measured: average precision needs the whole curve, and below this it is noise.
LEAST_SCORE = 0.05
#: Overlap at which a detection counts as the true object, where one number is needed (pictures, recall).
MATCH = 0.5
BLURRY = "blurry"

DEFINITIONS = {
    "truth": "objects that the detector finds on the sharp image with the threshold's score or more",
    "ap": "average precision of a class, the mean over IoU thresholds 0.50, 0.55 ... 0.95 (COCO)",
    "ap50": "average precision at an IoU of 0.50",
    "ap75": "average precision at an IoU of 0.75",
    "mean": "mean over the classes that have a true object, each with the same weight",
    "recall": f"share of all true objects that are found with the threshold's score, IoU {MATCH:g} or more",
    "found": "detections with the threshold's score or more, right or wrong",
    "mean_score": "mean score of those",
}


@dataclass(frozen=True, slots=True)
class Precision:
    """Average precisions in [0, 1]; NaN where there is no true object."""

    ap: float
    ap50: float
    ap75: float


@dataclass(frozen=True, slots=True)
class ClassResult:
    """A class with true objects. precision: by version ("blurry", then the models)."""

    name: str
    truth: int
    precision: dict[str, Precision]


@dataclass(frozen=True, slots=True)
class VersionResult:
    """All classes of one version of the images. See DEFINITIONS."""

    ap: float
    ap50: float
    ap75: float
    recall: float
    found: int
    mean_score: float


@dataclass(frozen=True, slots=True)
class ImageCount:
    """One pair: its true objects, and for each version how many of them were found."""

    name: str
    width: int
    height: int
    truth: int
    matched: dict[str, int]


@dataclass(frozen=True, slots=True)
class DetectionSet:
    """A folder of pairs."""

    name: str
    folder: str
    images: list[ImageCount]
    classes: list[ClassResult]
    versions: dict[str, VersionResult]

    @property
    def truth(self) -> int:
        return sum(c.truth for c in self.classes)


@dataclass(frozen=True, slots=True)
class DetectionEvaluation:
    """Everything measured. detector, options: for the record. models: names, the subject first. stopped: how far it
    came, "" to its end."""

    version: str
    created: str
    detector: str
    threshold: float
    options: dict[str, Any]
    models: list[str]
    sets: list[DetectionSet]
    stopped: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        values: dict[str, Any] = _plain({**asdict(self), "definitions": DEFINITIONS})
        return values

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"

    def as_csv(self) -> str:
        """A row for every set, class and version; class "" is the mean over classes."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("set", "class", "truth", "version", "ap", "ap50", "ap75"))
        for s in self.sets:
            rows: list[tuple[str, int, Mapping[str, Precision | VersionResult]]] = [("", s.truth, s.versions)]
            rows += [(c.name, c.truth, c.precision) for c in s.classes]
            for name, truth, values in rows:
                for version, p in values.items():
                    cells = ["" if math.isnan(v) else v for v in (p.ap, p.ap50, p.ap75)]
                    writer.writerow([s.name, name, truth, version, *cells])
        return text.getvalue()


@dataclass(frozen=True, slots=True)
class Example:
    """A pair to look at. found: by version, "sharp" last, only what reaches the threshold. matched: see ImageCount."""

    set_name: str
    image: str
    truth: int
    matched: dict[str, int]
    pictures: dict[str, Picture]
    found: dict[str, Detections]


class Examples:
    """Keeps the pairs where the subject finds more true objects than are found on the blurry image, and the one where
    it finds fewest: memory is bounded, whatever the size of the set. One thread."""

    def __init__(self, subject: str, most: int) -> None:
        self._subject, self._most = subject, most
        self._kept: list[Example] = []
        self._worst: Example | None = None

    def gain(self, e: Example) -> int:
        return e.matched[self._subject] - e.matched[BLURRY]

    def offer(self, e: Example) -> None:
        if not self._most or not e.truth:
            return
        if self._worst is None or self.gain(e) < self.gain(self._worst):
            self._worst = e
        self._kept.append(e)
        self._kept.sort(key=lambda k: -self.gain(k))
        del self._kept[self._most :]

    @property
    def shown(self) -> list[Example]:
        """Largest gain first; the last is the smallest gain of all, even where that is a loss."""
        if self._worst is None or any(e is self._worst for e in self._kept):
            return list(self._kept)
        return [*self._kept[: max(0, self._most - 1)], self._worst]


def evaluate_detection(
    options: DetectEvalOptions, progress: Callable[[Progress], None] | None = None
) -> DetectionEvaluation:
    """``measure_detection``, then ``write_detection``: results.json, results.csv and report.html where
    ``options.output`` says.

    They are written too where it ends early, of the pairs until then, if none were there. Raises what both raise.
    """

    def rescue(part: DetectionEvaluation, examples: Examples) -> None:
        with contextlib.suppress(StreamdeblurError):  # what ended it is to be told
            write_detection(part, examples, options)

    evaluation, examples = measure_detection(options, progress, rescue=rescue)
    write_detection(evaluation, examples, options)
    return evaluation


def write_detection(evaluation: DetectionEvaluation, examples: Examples, options: DetectEvalOptions) -> None:
    """The files of an evaluation, if ``options.output`` names a folder. Raises OutputError and DiskFull.

    A part of an evaluation takes the place of no earlier one: OutputError then, too.
    """
    if options.output is None:
        return
    if evaluation.stopped:
        require_room(options.output, overwrite=False)
    from streamdeblur.evaluation.detection_page import detection_page

    files = {
        "results.json": evaluation.as_json(),
        "results.csv": evaluation.as_csv(),
        "report.html": detection_page(evaluation, examples.shown),
    }
    save(options.output, files)


def measure_detection(
    options: DetectEvalOptions,
    progress: Callable[[Progress], None] | None = None,
    *,
    rescue: Callable[[DetectionEvaluation, Examples], None] | None = None,
) -> tuple[DetectionEvaluation, Examples]:
    """Measure every model; nothing is written, but ``options.output`` is made and must have room.

    rescue: is given what there is where an error or a signal ends it early, if something was found on a sharp image;
    then that is raised.

    Raises UsageError (options, detector, models, no faster-coco-eval), InputError (pairs; nothing found on any sharp
    image), WeightsError, DeviceError, OutputError, and StreamdeblurError where detector or restorer fail.
    """
    if not options.data:
        raise UsageError("no pairs to measure", "give a folder of pairs with --data")
    if options.detector is None:
        raise UsageError("no detector to measure with", "name one with --detector")
    _faster_coco_eval()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    detector = load_detector(
        options.detector,
        threshold=LEAST_SCORE,
        names=options.names,
        device=options.detector_device,
        threads=options.threads or torch.get_num_threads(),
    )
    sets = [_Pairs(folder, options) for folder in options.data]
    if len({s.name for s in sets}) < len(sets):
        for s in sets:
            s.name = legible(str(s.folder))
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
    factory = factory_word(options.detector)
    at_home = contextlib.nullcontext if factory is None else factory.at_home
    versions = [BLURRY, *(c.name for c in candidates)]
    examples = Examples(versions[1], options.pictures if options.output is not None else 0)
    wanted = _wanted(options.classes)
    total, done, begun = sum(len(s.pairs) for s in sets), 0, time.monotonic()
    results: list[DetectionSet] = []

    def so_far(stopped: str) -> DetectionEvaluation:
        assert options.detector is not None
        return DetectionEvaluation(
            version=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            detector=legible(Path(options.detector).name),
            threshold=options.truth_threshold,
            options=plain(options.model_dump(mode="json", exclude={"output", "overwrite"})),
            models=versions[1:],
            sets=results,
            stopped=stopped,
        )

    at_work: tuple[_Seen, _Pairs] | None = None
    try:
        for s in sets:
            seen = _Seen(s.name, versions, options.truth_threshold)
            at_work = seen, s
            for pair in s.pairs:
                name = legible(pair.name)
                blurry, sharp = read_pair(pair)
                tensor = to_tensor(blurry)
                pictures = {BLURRY: blurry}
                for c in candidates:
                    pictures[c.name] = to_picture(c(tensor.to(c.device)).clamp(0, 1))
                pictures["sharp"] = sharp
                with at_home():
                    found = {k: _only(_detect(detector, p, name), wanted) for k, p in pictures.items()}
                examples.offer(seen.add(name, pictures, found))
                done += 1
                if progress is not None:
                    progress(Progress(done, total, s.name, None, time.monotonic() - begun))
            results.append(seen.result(legible(str(s.folder))))
            at_work = None
    except BaseException:
        if rescue is not None:  # hours of work
            if at_work is not None and at_work[0].images:
                results.append(at_work[0].result(legible(str(at_work[1].folder))))
            if any(s.truth for s in results):
                rescue(so_far(f"stopped after {done} of {total} pairs"), examples)
        raise
    if not any(s.truth for s in results):
        raise InputError(
            f"{options.detector} finds nothing on any sharp image with a score of {options.truth_threshold:g}",
            "lower --truth-threshold, or take another detector",
        )
    return so_far(""), examples


def average_precision(
    truth: Sequence[Detections], found: Sequence[Detections], names: Sequence[str]
) -> dict[str, Precision]:
    """COCO's average precision by the name of each class that has a true object.

    truth, found: one an image, in one order; classes are compared by name. names: all classes that may occur.
    Raises UsageError without faster-coco-eval.
    """
    coco_type, evaluator_type = _faster_coco_eval()
    numbers = {n: i + 1 for i, n in enumerate(dict.fromkeys(names))}
    images = [{"id": i + 1, "width": 1, "height": 1} for i in range(len(truth))]
    annotations = [
        {"id": n, "image_id": image, "category_id": numbers[name], "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for n, (image, name, box, _) in enumerate(_rows(truth), 1)
    ]
    results = [
        {"image_id": image, "category_id": numbers[name], "bbox": box, "score": score}
        for image, name, box, score in _rows(found)
    ]
    present = sorted({numbers[name] for _, name, _, _ in _rows(truth)})
    by_number = {i: n for n, i in numbers.items()}
    if not annotations:
        return {}
    if not results:
        return {by_number[i]: Precision(0.0, 0.0, 0.0) for i in present}
    categories = [{"id": i, "name": n} for n, i in numbers.items()]
    with contextlib.redirect_stdout(io.StringIO()):  # the library is chatty
        ground = coco_type({"images": images, "annotations": annotations, "categories": categories})
        evaluator = evaluator_type(ground, ground.loadRes(results), "bbox", print_function=lambda *_: None)
        evaluator.evaluate()
        evaluator.accumulate()
    table = np.asarray(evaluator.eval["precision"])  # IoU, recall, class, area, most detections
    order = list(evaluator.params.catIds)
    result = {}
    for number in present:
        curve = table[:, :, order.index(number), 0, -1]
        means = np.where(curve > -1, curve, np.nan).mean(axis=1)
        result[by_number[number]] = Precision(float(means.mean()), float(means[0]), float(means[5]))
    return result


def matches(truth: Detections, found: Detections, overlap: float = MATCH) -> int:
    """How many true objects have a detection of their class with at least this IoU, each detection used once; best
    scores choose first."""
    if not len(truth) or not len(found):
        return 0
    value = iou(found.boxes, truth.boxes)
    same = np.array([[found.name(i) == truth.name(j) for j in range(len(truth))] for i in range(len(found))])
    value = np.where(same, value, 0.0)
    free = np.ones(len(truth), np.bool_)
    count = 0
    for i in np.argsort(-found.scores, kind="stable"):
        j = int(np.where(free, value[i], -1.0).argmax())
        if free[j] and value[i, j] >= overlap:
            free[j] = False
            count += 1
    return count


class _Pairs:
    """The pairs of one folder: only their names are held."""

    def __init__(self, folder: str, options: DetectEvalOptions) -> None:
        self.folder = Path(folder)
        pairs = find_pairs(folder, layout=options.layout, split=options.split)
        if options.limit is not None and options.limit < len(pairs):
            pairs = [pairs[i * len(pairs) // options.limit] for i in range(options.limit)]
        self.pairs = pairs
        self.name = legible(self.folder.resolve().name or str(self.folder))


class _Seen:
    """Boxes of one set, image after image."""

    def __init__(self, name: str, versions: Sequence[str], threshold: float) -> None:
        self._name, self._versions, self._threshold = name, versions, threshold
        self._truth: list[Detections] = []
        self._found: dict[str, list[Detections]] = {v: [] for v in versions}
        self.images: list[ImageCount] = []

    def add(self, image: str, pictures: Mapping[str, Picture], found: Mapping[str, Detections]) -> Example:
        truth = found["sharp"].at_least(self._threshold)
        self._truth.append(truth)
        matched = {}
        for v in self._versions:
            self._found[v].append(found[v])
            matched[v] = matches(truth, found[v].at_least(self._threshold))
        height, width = pictures[BLURRY].shape[:2]
        self.images.append(ImageCount(image, width, height, len(truth), matched))
        sure = {k: d.at_least(self._threshold) for k, d in found.items()}
        return Example(self._name, image, len(truth), matched, dict(pictures), sure)

    def result(self, folder: str) -> DetectionSet:
        names = sorted({d.name(i) for ds in (self._truth, *self._found.values()) for d in ds for i in range(len(d))})
        tables = {v: average_precision(self._truth, self._found[v], names) for v in self._versions}
        counts = {n: sum(d.name(i) == n for d in self._truth for i in range(len(d))) for n in names}
        classes = [
            ClassResult(n, counts[n], {v: tables[v][n] for v in self._versions})
            for n in sorted(names, key=lambda n: (-counts[n], n))
            if counts[n]
        ]
        versions = {v: self._version(v, [c.precision[v] for c in classes]) for v in self._versions}
        return DetectionSet(self._name, folder, self.images, classes, versions)

    def _version(self, version: str, precisions: Sequence[Precision]) -> VersionResult:
        scores = np.concatenate([d.at_least(self._threshold).scores for d in self._found[version]])
        truth = sum(i.truth for i in self.images)
        matched = sum(i.matched[version] for i in self.images)
        return VersionResult(
            _mean(p.ap for p in precisions),
            _mean(p.ap50 for p in precisions),
            _mean(p.ap75 for p in precisions),
            matched / truth if truth else math.nan,
            len(scores),
            float(scores.mean()) if len(scores) else math.nan,
        )


def _detect(detector: Detector, picture: Picture, name: str) -> Detections:
    try:
        return checked(detector(np.ascontiguousarray(picture)), *picture.shape[:2])
    except StreamdeblurError:
        raise
    except (Exception, SystemExit) as e:  # a detector is somebody else's code
        raise StreamdeblurError(f"the detector failed on {name}: {type(e).__name__}: {e}") from e


def _wanted(classes: str | None) -> set[str] | None:
    return None if classes is None else {c.strip() for c in classes.split(",") if c.strip()}


def _only(found: Detections, wanted: set[str] | None) -> Detections:
    if wanted is None:
        return found
    unknown = wanted - set(found.names)
    if unknown and found.names:
        raise UsageError(
            f"the detector knows no class {', '.join(sorted(unknown))}", f"it knows {', '.join(found.names[:20])}"
        )
    return found.pick([i for i in range(len(found)) if found.name(i) in wanted])


def _rows(images: Sequence[Detections]) -> Iterable[tuple[int, str, list[float], float]]:
    """(number of the image, class, COCO's box x, y, width, height, score) of every object."""
    for number, d in enumerate(images, 1):
        for i in range(len(d)):
            x1, y1, x2, y2 = (float(v) for v in d.boxes[i])
            yield number, d.name(i), [x1, y1, x2 - x1, y2 - y1], float(d.scores[i])


def _faster_coco_eval() -> tuple[Any, Any]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as e:
        raise UsageError("detect-eval needs faster-coco-eval", "pip install 'streamdeblur[detect]'") from e
    return COCO, COCOeval_faster


def _mean(values: Iterable[float]) -> float:
    held = list(values)
    return sum(held) / len(held) if held else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
