"""A folder of pairs from a video, a folder of frames, or photographs: what ``streamdeblur synthesize`` does.

    PAIRS/blur/00000.png ...  PAIRS/sharp/00000.png ...  PAIRS/pairs.json  PAIRS/preview.png

Footage is read twice, in order and within a few frames of memory: first to find cuts and blurred frames, then to make
the pairs. Pair ``i`` draws from a generator of its own, of (seed, i).
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur import interrupts
from streamdeblur.config import parse
from streamdeblur.errors import DiskFull, InputError, OutputError, UnreadableInput, UsageError
from streamdeblur.training.pictures import read_picture
from streamdeblur.training.synthesis import flow
from streamdeblur.training.synthesis.average import average_linear, draw_count, draw_steps
from streamdeblur.training.synthesis.degrade import Damage, Degradation, degrade, draw_damage
from streamdeblur.training.synthesis.footage import VIDEOS, by_folder, is_picture, list_pictures
from streamdeblur.training.synthesis.options import SynthesizeOptions, span
from streamdeblur.training.synthesis.preview import sheet
from streamdeblur.training.synthesis.render import expose_footage, expose_still, speed_in, worth
from streamdeblur.training.synthesis.response import (
    Floats,
    Picture,
    Response,
    draw_response,
    lift_highlights,
    to_coded,
    to_linear,
)
from streamdeblur.training.synthesis.shake import Box, draw_tremble
from streamdeblur.video.reader import VideoReader
from streamdeblur.video.simple import read_rgb

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int | None], None]
Chosen = Literal["average", "flow", "shake"]

#: Footage of at least so many frames a second is averaged as it is.
HIGH_SPEED = 90
_PREVIEW = 8
#: ``flow.unexplained`` of consecutive frames: neighbours in DAVIS (24 fps) have 4 to 20 of it, photographs 44 and more.
_ALIKE = 28.0
_SHUTTER = (0.3, 2.0)  # frame intervals
_LEAST = 32  # pixels, the side of a pair
_TRIES = 6


@dataclass(frozen=True, slots=True)
class SynthesisReport:
    """What was made. skipped: frames of footage that could not be a truth (blurred, or at a cut)."""

    output: Path
    method: Chosen
    pairs: int
    frames: int
    skipped: int
    width: int
    height: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"output": str(self.output), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True)
class _Made:
    blur: Picture
    sharp: Picture
    parameters: dict[str, Any]


def synthesize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    options: SynthesizeOptions | None = None,
    progress: Progress | None = None,
    **keywords: Any,
) -> SynthesisReport:
    """Make blurred and sharp pairs of ``source`` in the folder ``output``.

    source: a video, a folder of consecutive frames, a folder of photographs, or one photograph. Folders inside it are
    read too, each as a sequence of its own; not ``output``, nor what an earlier call made. progress: called on this
    thread with what is done, how much of it, of how much (None: not known). Options are the fields of
    ``SynthesizeOptions``, as one object or by keyword.

    The folder appears under its name when it is complete. On any error nothing is left there, and an earlier set stays
    as it was. Raises UsageError, InputError, OutputError, DiskFull.
    """
    if options is not None and keywords:
        raise UsageError("options and keywords exclude each other", "give one of the two")
    chosen = options if options is not None else parse(SynthesizeOptions, keywords, "the call")
    began = time.monotonic()
    origin, target = Path(source), Path(output)
    if not origin.exists():
        raise UnreadableInput(f"{origin} is not there", "give a video, or a folder of frames or photographs")
    _check_target(target, overwrite=chosen.overwrite)
    if target.is_dir() and origin.resolve().is_relative_to(target.resolve()):
        raise UsageError(f"output {target} would replace {origin}, its source", "name another folder with -o")
    method = chosen.method if chosen.method != "auto" else choose_method(origin, target)
    if method == "shake" and origin.suffix.lower() in VIDEOS:
        raise UsageError(f"shake takes photographs, and {origin} is a video", "use flow or average, or give pictures")
    job = _Job(origin, target, method, chosen, progress or (lambda *_: None))
    place = target.resolve()  # of a link, what it leads to is replaced
    partial = place.with_name(f".{place.name}.partial-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for side in ("blur", "sharp"):
            (partial / side).mkdir(parents=True)
        width, height = job.write(partial)
        _put(partial, place)
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise DiskFull(f"no space left for {target}", "free some, or write elsewhere with -o") from e
        raise OutputError(f"{target} can't be written: {e.strerror or e}", "write elsewhere with -o") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    seconds = time.monotonic() - began
    return SynthesisReport(target, method, chosen.count, job.read, job.skipped, width, height, seconds)


def choose_method(source: Path, output: Path | None = None) -> Chosen:
    """What suits a source: flow for video (average from 90 frames a second on) and consecutive frames, else shake.

    output: the folder of the pairs, which is not looked at.
    """
    if source.is_file():
        if is_picture(source):
            return "shake"
        with VideoReader(source, copy_streams=False) as reader:
            rate = reader.rate
        return "average" if rate is not None and rate >= HIGH_SPEED else "flow"
    return "flow" if _consecutive(by_folder(list_pictures(source, output))) else "shake"


def _consecutive(folders: list[list[Path]]) -> bool:
    """True where neighbours in a folder are of one size and motion explains how they differ."""
    if max(map(len, folders)) < 3:
        return False
    neighbours = [pair for paths in folders for pair in pairwise(paths)]
    differences = []
    for i in np.linspace(0, len(neighbours) - 1, min(6, len(neighbours))).astype(int):
        a, b = (read_picture(path) for path in neighbours[i])
        if a.shape != b.shape:
            return False
        differences.append(flow.unexplained(flow.luma(a), flow.luma(b)))
    return float(np.median(differences)) < _ALIKE


def _check_target(target: Path, *, overwrite: bool) -> None:
    if not target.name:
        raise UsageError(f"{target} can't be the folder of the pairs", "name a new folder with -o")
    if not target.parent.is_dir():
        raise OutputError(f"folder {target.parent} of the output does not exist", "create it, or write elsewhere")
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{target} is a file", "name a folder with -o")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{target} exists and is not empty", "--overwrite replaces a set of pairs")
    if not (target / "pairs.json").is_file():
        raise OutputError(f"{target} holds something else than pairs made here", "name another folder with -o")


def _put(made: Path, place: Path) -> None:
    """Move a complete set to its place. An earlier one is set aside for that moment, and removed when all is well."""
    if not place.exists():
        os.replace(made, place)
        return
    aside = place.with_name(f".{place.name}.old-{os.getpid()}")
    with interrupts.held():
        os.replace(place, aside)
        try:
            os.replace(made, place)
        except BaseException:
            os.replace(aside, place)
            raise
    shutil.rmtree(aside, ignore_errors=True)
    if aside.exists():
        log.warning("the earlier pairs can't be removed from %s; remove them", aside)


class _Job:
    """One run: chooses, makes and writes the pairs."""

    def __init__(
        self, source: Path, output: Path, method: Chosen, options: SynthesizeOptions, progress: Progress
    ) -> None:
        self._source, self._output, self._method = source, output, method
        self._options, self._progress = options, progress
        self._degradation = Degradation(
            noise=0.3 if options.noise else 0.0,
            demosaic=0.2 if options.demosaic else 0.0,
            jpeg=0.2 if options.compression else 0.0,
            h264=0.1 if options.compression else 0.0,
        )
        self._length = span(options.length)
        self._tremble = span(options.tremble)
        self.read = 0
        self.skipped = 0

    def write(self, folder: Path) -> tuple[int, int]:
        """Make everything below ``folder``; the (width, height) of the pairs (of the last one, where they differ)."""
        entries: dict[int, dict[str, Any]] = {}
        shown: dict[int, tuple[str, Picture, Picture]] = {}
        wanted = {round(i) for i in np.linspace(0, self._options.count - 1, min(_PREVIEW, self._options.count))}
        size = (0, 0)
        for number, made in self._pairs():
            name = f"{number:05d}"
            for side, picture in (("blur", made.blur), ("sharp", made.sharp)):
                _write_png(folder / side / f"{name}.png", picture)
            entries[number] = {"name": name, "seed": [self._options.seed, number], **made.parameters}
            if number in wanted:
                shown[number] = (_label(name, made.parameters), made.blur, made.sharp)
            size = made.sharp.shape[1], made.sharp.shape[0]
            self._progress("synthesizing", len(entries), self._options.count)
        settings = self._options.model_dump(exclude={"overwrite", "preview"})
        document = {
            "source": self._source.name,
            "method": self._method,
            "options": settings,
            "pairs": [entries[number] for number in sorted(entries)],
        }
        (folder / "pairs.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        if self._options.preview:
            _write_png(folder / "preview.png", sheet([shown[number] for number in sorted(shown)]))
        return size

    def _pairs(self) -> Iterator[tuple[int, _Made]]:
        if self._method == "shake":
            return self._from_stills()
        return self._from_footage()

    def _begin(self, number: int) -> tuple[np.random.Generator, Response, bool]:
        """Generator and curve of a pair, and whether it stays sharp."""
        rng = np.random.default_rng([self._options.seed, number])
        drawn = draw_response(rng)
        untouched = bool(rng.random() < self._options.identity)
        return rng, drawn if self._options.response == "random" else self._options.response, untouched

    def _end(
        self, blurred: Floats, sharp: Picture, rng: np.random.Generator, parameters: dict[str, Any], untouched: bool
    ) -> _Made:
        damage = draw_damage(rng, self._degradation)
        if untouched:
            return _Made(sharp, sharp, parameters | {"identity": True})
        return _Made(degrade(blurred, parameters["response"], damage), sharp, parameters | _told(damage))

    # -- stills -------------------------------------------------------------------------------------------------------

    def _from_stills(self) -> Iterator[tuple[int, _Made]]:
        # by text, as photographs are in no order: seeds keep their bytes
        photos = [self._source] if self._source.is_file() else sorted(list_pictures(self._source, self._output))
        self.read = len(photos)
        order: list[int] = []
        shuffler = np.random.default_rng(self._options.seed)
        while len(order) < self._options.count:
            order.extend(int(i) for i in shuffler.permutation(len(photos)))
        for number in range(self._options.count):
            path = photos[order[number]]
            yield number, self._still(path, read_picture(path), photos, number)

    def _still(self, path: Path, photo: Picture, photos: list[Path], number: int) -> _Made:
        rng, response, untouched = self._begin(number)
        box = self._box(rng, photo, path.name, None)
        low, high = self._length
        extent = low + (high - low) * float(rng.beta(1.2, 2.2))
        bright, front = rng.random(2)
        gain = math.exp(rng.uniform(0, math.log(10)))
        other = photos[int(rng.integers(len(photos)))]
        gain = gain if self._options.highlights and bright < 0.4 else 1.0
        foreground = read_picture(other) if self._options.foreground and front < 0.35 else None
        tremble = draw_tremble(rng, self._tremble)
        steps = draw_steps(rng, self._options.stepped)
        blurred, sharp = expose_still(
            photo,
            box,
            rng,
            extent=extent,
            response=response,
            gain=gain,
            foreground=foreground,
            tremble=tremble,
            steps=steps,
        )
        parameters: dict[str, Any] = {"file": path.name, "box": list(box), "response": response}
        parameters |= {"length": round(extent, 2), "gain": round(gain, 3)}
        parameters |= _stepped(steps)
        if self._tremble[0] < self._tremble[1]:
            parameters["tremble"] = round(tremble, 3)
        if foreground is not None:
            parameters["foreground"] = other.name
        return self._end(blurred, sharp, rng, parameters, untouched)

    # -- footage ------------------------------------------------------------------------------------------------------

    def _sequences(self) -> list[tuple[Path, Iterator[Picture]]]:
        """Name and frames of the video, or of every folder with pictures: no exposure goes on from one to the next."""
        if self._source.is_file():
            return [(self._source, read_rgb(self._source))]
        folders = by_folder(list_pictures(self._source, self._output))
        return [(paths[0].parent, map(read_picture, paths)) for paths in folders]

    def _measured(self, name: Path, pictures: Iterator[Picture]) -> list[flow.FrameMeasure]:
        """Measures of a sequence, whose frames have one size, and one that suits the method."""
        measures: list[flow.FrameMeasure] = []
        shape: tuple[int, ...] | None = None
        for picture in pictures:
            if shape is None and self._method == "flow":
                flow.check_size(picture, name)
            if shape is not None and picture.shape != shape:
                raise InputError(
                    f"frame {len(measures)} of {name} is {picture.shape[1]}x{picture.shape[0]}, the first is "
                    f"{shape[1]}x{shape[0]}",
                    "consecutive frames have one size; photographs need --method shake",
                )
            shape = picture.shape
            measures.append(flow.measure(picture))
            self.read += 1
            if self.read % 10 == 0:
                self._progress("looking for sharp frames", self.read, None)
        return measures

    def _from_footage(self) -> Iterator[tuple[int, _Made]]:
        usable: list[int] = []
        cut: list[int] = []
        lively: list[float] = []
        longest = 0
        for name, pictures in self._sequences():
            first = len(lively)
            measures = self._measured(name, pictures)
            count = len(measures)
            centers = flow.usable_centers(measures)
            usable += [first + k for k in centers]
            # where a sequence ends is a cut
            cut += [first + k for k in (*_cuts(measures), count - 1)]
            lively += [flow.liveliness(measures, k) for k in range(count)]
            longest = max(longest, count)
            self.skipped += max(count - 2 - len(centers), 0)
        drawn = [self._begin(number) for number in range(self._options.count)]
        if self._method == "average":
            low, high = (int(v) for v in span(self._options.frames))
            counts = [draw_count(rng, low, high) for rng, _, _ in drawn]
        else:
            counts = [3] * len(drawn)
        if longest < max(counts):
            raise InputError(
                f"{self._source} has {longest} frames in a row, and {max(counts)} are needed", "give more of them"
            )
        yield from self._render(self._choose(usable, counts, lively, np.array(cut, np.int64)), counts, drawn)

    def _choose(
        self, usable: list[int], counts: list[int], lively: list[float], cut: npt.NDArray[np.int64]
    ) -> list[int]:
        """The middle frame of every pair: usable ones, those with motion more often, again if there are too few.

        No exposure goes on beyond a cut. cut: the frames right before one, in order.
        """
        longest = max(counts)  # what fits the longest exposure fits all
        before, behind = longest // 2, (longest - 1) // 2
        fitting = [
            k
            for k in usable
            if k >= before
            and k + behind < len(lively)
            and np.searchsorted(cut, k - before) == np.searchsorted(cut, k + behind)
        ]
        if not fitting:
            raise InputError(
                f"{self._source} has no sharp frame that is far enough from its ends and from cuts",
                "give more footage, or fewer --frames",
            )
        weights = np.array([lively[k] for k in fitting]) + 1e-3
        chooser = np.random.default_rng(self._options.seed)
        order: list[int] = []
        while len(order) < len(counts):
            some = chooser.choice(
                len(fitting), min(len(fitting), len(counts) - len(order)), replace=False, p=weights / weights.sum()
            )
            order.extend(fitting[int(i)] for i in some)
        return order

    def _render(
        self, centers: list[int], counts: list[int], drawn: list[tuple[np.random.Generator, Response, bool]]
    ) -> Iterator[tuple[int, _Made]]:
        """Second pass, with the frames of the longest exposure in memory."""
        waiting: Mapping[int, list[int]] = {k: [n for n, c in enumerate(centers) if c == k] for k in set(centers)}
        after = max(counts) // 2 + 1
        window: deque[tuple[int, Picture]] = deque(maxlen=2 * after + 1)
        due = sorted(waiting)
        last = -1
        for index, picture in enumerate(p for _, pictures in self._sequences() for p in pictures):
            window.append((index, picture))
            last = index
            while due and due[0] + after <= index:
                yield from self._of_center(due.pop(0), dict(window), waiting, counts, drawn)
            if not due:
                return
        for center in due:
            if center <= last:
                yield from self._of_center(center, dict(window), waiting, counts, drawn)

    def _of_center(
        self,
        center: int,
        frames: dict[int, Picture],
        waiting: Mapping[int, list[int]],
        counts: list[int],
        drawn: list[tuple[np.random.Generator, Response, bool]],
    ) -> Iterator[tuple[int, _Made]]:
        flows: tuple[flow.Flow, flow.Flow, flow.Flow, flow.Flow] | None = None
        for number in waiting[center]:
            rng, response, untouched = drawn[number]
            if self._method == "average":
                first = center - counts[number] // 2
                part = [frames[i] for i in range(first, first + counts[number])]
                yield number, self._average(part, center, rng, response, untouched)
                continue
            trio = (frames[center - 1], frames[center], frames[center + 1])
            if flows is None:
                before, middle, after = (flow.luma(p) for p in trio)
                ways = ((middle, before), (before, middle), (middle, after), (after, middle))
                a, b, c, d = (flow.dense_flow(x, y) for x, y in ways)
                flows = (a, b, c, d)
            yield number, self._flow(trio, flows, center, rng, response, untouched)

    def _average(
        self, frames: list[Picture], center: int, rng: np.random.Generator, response: Response, untouched: bool
    ) -> _Made:
        middle = frames[len(frames) // 2]
        left, top, width, height = box = self._box(rng, middle, self._source.name, None, margin=0)
        window = np.s_[top : top + height, left : left + width]
        linear = average_linear([f[window] for f in frames], response)
        parameters = {"frame": center, "box": list(box), "response": response, "frames": len(frames)}
        return self._end(linear, middle[window].copy(), rng, parameters, untouched)

    def _flow(
        self,
        trio: tuple[Picture, Picture, Picture],
        flows: tuple[flow.Flow, flow.Flow, flow.Flow, flow.Flow],
        center: int,
        rng: np.random.Generator,
        response: Response,
        untouched: bool,
    ) -> _Made:
        middle = trio[1]
        full = middle.shape[1], middle.shape[0]
        box = self._box(rng, middle, self._source.name, flows[2])
        left, top, width, height = box
        low, high = self._length
        length = low + (high - low) * float(rng.beta(1.3, 2.2))
        # of a whole frame only a small part may move
        speed = speed_in(flows[2], box, full, 90 if self._options.size else 98)
        shutter = min(max(length / max(speed, 0.1), _SHUTTER[0]), _SHUTTER[1])
        bright = rng.random()
        gain = math.exp(rng.uniform(0, math.log(8)))
        gain = gain if self._options.highlights and bright < 0.3 else 1.0
        steps = draw_steps(rng, self._options.stepped)
        linear = expose_footage(trio, flows, box, shutter, response, gain, steps=steps)
        sharp = middle[top : top + height, left : left + width].copy()
        if gain > 1:
            sharp = to_coded(lift_highlights(to_linear(sharp, response), gain), response)
        parameters = {"frame": center, "box": list(box), "response": response, "shutter": round(shutter, 4)}
        parameters |= {"length": round(speed * shutter, 2), "gain": round(gain, 3)} | _stepped(steps)
        return self._end(linear, sharp, rng, parameters, untouched)

    # -- where --------------------------------------------------------------------------------------------------------

    def _box(
        self, rng: np.random.Generator, picture: Picture, name: str, motion: flow.Flow | None, margin: int | None = None
    ) -> Box:
        """The part of a picture that becomes a pair: a crop with texture and motion in it, or all but its rim.

        The rim is where a moving camera sees what was never recorded.
        """
        height, width = picture.shape[:2]
        rim = math.ceil(self._length[1] / 2) + 4 if margin is None else margin
        rim = min(rim, min(width, height) // 8)
        size = self._options.size
        if size is None:
            rim = min(rim, max(0, (min(width, height) - _LEAST) // 2))
            wide, high = (width - 2 * rim) // 4 * 4, (height - 2 * rim) // 4 * 4
            if wide < _LEAST or high < _LEAST:
                raise InputError(
                    f"{name} is {width}x{height}, too small to blur", f"give pictures of {_LEAST} pixels or more a side"
                )
            return (width - wide) // 2, (height - high) // 2, wide, high
        if size > min(width, height):
            raise InputError(f"{name} is {width}x{height}, smaller than crops of {size}", "give a smaller --size")
        mx, my = min(rim, (width - size) // 2), min(rim, (height - size) // 2)
        best = (-1.0, 0, 0)
        for _ in range(_TRIES):
            left, top = int(rng.integers(mx, width - size - mx + 1)), int(rng.integers(my, height - size - my + 1))
            score = worth(picture[top : top + size, left : left + size])
            if motion is not None:
                score *= min(speed_in(motion, (left, top, size, size), (width, height)) / 2, 1)
            best = max(best, (score, left, top))
            if score >= 1:
                break
        return best[1], best[2], size, size


def _cuts(measures: list[flow.FrameMeasure]) -> list[int]:
    return flow.cuts(lambda i: measures[i].thumb, len(measures))


def _stepped(steps: int | None) -> dict[str, Any]:
    return {} if steps is None else {"steps_at_most": steps}


def _told(damage: Damage) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if damage.noise is not None:
        told["noise"] = [round(v, 7) for v in damage.noise]
    for key in ("demosaic", "jpeg", "h264"):
        if getattr(damage, key) is not None:
            told[key] = getattr(damage, key)
    return told


def _label(name: str, parameters: Mapping[str, Any]) -> str:
    words = [name]
    if "frame" in parameters:
        words.append(f"frame {parameters['frame']}")
    if "frames" in parameters:
        words.append(f"mean of {parameters['frames']}")
    if "length" in parameters:
        words.append(f"{parameters['length']:.0f} px")
    words.append(str(parameters["response"]))
    words.extend(text for key, text in (("noise", "noise"), ("demosaic", "demosaicing")) if key in parameters)
    words.extend(f"{key} {parameters[key]}" for key in ("jpeg", "h264") if key in parameters)
    if parameters.get("identity"):
        words.append("left sharp")
    return ", ".join(words)


def _write_png(path: Path, picture: Picture) -> None:
    done, data = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not done:
        raise OutputError(f"{path} can't be encoded as PNG", "report this with the source")
    path.write_bytes(data.tobytes())
