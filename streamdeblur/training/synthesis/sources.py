"""Training crops, one at a time, from pairs, high-speed frames, ordinary footage or photographs.

A source draws everything from the generator that it is given, so that the same state gives the same bytes whatever was
asked before; caches only save time. Only the neighbourhood of a crop is rendered. Sources can be pickled (their caches
stay behind); one source belongs to one thread.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from streamdeblur.errors import InputError, UsageError
from streamdeblur.training.pairs import find_pairs, read_pair
from streamdeblur.training.pictures import read_picture
from streamdeblur.training.synthesis import flow
from streamdeblur.training.synthesis.average import average_linear, draw_count, draw_steps
from streamdeblur.training.synthesis.cache import ArrayCache
from streamdeblur.training.synthesis.degrade import CLEAN, Degradation, degrade, draw_damage
from streamdeblur.training.synthesis.footage import Sequence, find_sequences, list_pictures
from streamdeblur.training.synthesis.render import expose_footage, expose_still, scaled_region, speed_in, worth
from streamdeblur.training.synthesis.response import (
    SHARES,
    Floats,
    Picture,
    Response,
    draw_response,
    lift_highlights,
    to_coded,
    to_linear,
)
from streamdeblur.training.synthesis.shake import SHAKIEST, draw_tremble

Kind = Literal["pairs", "highspeed", "footage", "stills"]
Crop = tuple[Picture, Picture]

_TRIES = 5  # crops looked at, of which the best is taken if none is good
_WINDOWS = 16  # exposures looked at until one has no cut in it
_MB = 1 << 20


@runtime_checkable
class CropSource(Protocol):
    """Anything that gives training crops. ``name`` appears in logs."""

    name: str

    def sample(self, rng: np.random.Generator, size: int) -> Crop:
        """(blur, sharp), both (size, size, 3) uint8 R'G'B', aligned."""
        ...


class TooSmall(InputError):
    """A picture that holds no crop of the size asked for."""


class _Synthesizer(ABC):
    """What the synthesizing sources share.

    responses: shares of the camera response curves. degradation: of the blurred side; of a mapping, what it doesn't
    name stays as ``usual``. identity: share of crops whose blurred side is the sharp one, byte for byte. cache_mb:
    bound of the decoded pictures kept, in MiB.
    """

    kind: ClassVar[str]
    usual: ClassVar[Degradation] = Degradation()

    def __init__(
        self,
        path: Path | str,
        *,
        responses: Mapping[Response, float] = SHARES,
        degradation: Degradation | Mapping[str, float] | None = None,
        identity: float = 0.05,
        cache_mb: int = 768,
    ) -> None:
        if not isinstance(responses, Mapping) or not all(_is_number(v) for v in responses.values()):
            raise UsageError(f"responses {responses!r} are no shares", "give numbers by name, for example srgb: 1")
        draw_response(np.random.default_rng(0), responses)  # refuse bad shares now
        self.path = Path(path)
        self.name = f"{self.kind}:{self.path.name}"
        self._responses = dict(responses)
        self._degradation = _degradation(degradation, self.usual)
        self._identity = _share("identity", identity)
        self._pictures: ArrayCache[Picture] = ArrayCache(_bound(cache_mb))

    def sample(self, rng: np.random.Generator, size: int) -> Crop:
        """(blur, sharp), both (size, size, 3) uint8 R'G'B', aligned. Raises InputError where pictures are smaller."""
        untouched = rng.random() < self._identity
        if untouched:
            sharp = self._sharp(rng, size)
            return sharp.copy(), sharp
        return self._pair(rng, size)

    @abstractmethod
    def _pair(self, rng: np.random.Generator, size: int) -> Crop: ...

    @abstractmethod
    def _sharp(self, rng: np.random.Generator, size: int) -> Picture: ...

    def _picture(self, path: Path) -> Picture:
        return self._pictures.get(path, lambda: read_picture(path))

    def _frame(self, sequence: Sequence, index: int) -> Picture:
        return self._pictures.get((sequence.name, index), lambda: sequence.read(index))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _share(name: str, value: float) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise UsageError(f"{name} {value!r} is no share", "give a number from 0 to 1")
    return value


def _span(name: str, value: tuple[float, float], hint: str, most: float = math.inf) -> tuple[float, float]:
    """Two numbers, 0 <= MIN <= MAX <= ``most``; a list, as YAML has it, will do."""
    if isinstance(value, tuple | list) and len(value) == 2 and all(_is_number(v) for v in value):
        low, high = value
        if 0 <= low <= high <= most:
            return low, high
    raise UsageError(f"{name} {value!r} is no range", hint)


def _bound(cache_mb: int) -> int:
    if not _is_number(cache_mb) or cache_mb < 0:
        raise UsageError(f"cache_mb {cache_mb!r} is no size", "give a number of MiB")
    return int(cache_mb * _MB)


def _degradation(value: object, usual: Degradation) -> Degradation:
    if value is None:
        return usual
    if isinstance(value, Degradation):
        return value
    known = [f.name for f in fields(Degradation)]
    if not isinstance(value, Mapping):
        raise UsageError(f"degradation {value!r} is no mapping", f"give probabilities of {', '.join(known)}")
    for name, probability in value.items():
        if name not in known:
            raise UsageError(f"degradation {name!r} is unknown", f"use {', '.join(known)}")
        if not _is_number(probability):
            raise UsageError(f"probability {probability!r} of {name} is not one", "give a number from 0 to 1")
    return replace(usual, **value)


def _corner(rng: np.random.Generator, shape: tuple[int, ...], size: int, name: str, margin: int = 0) -> tuple[int, int]:
    """(left, top) of a random crop at least ``margin`` from the sides, or as far as there is room for."""
    height, width = shape[:2]
    if height < size or width < size:
        raise TooSmall(f"{name} is {width}x{height}, smaller than a crop of {size}", "take smaller crops")
    mx, my = min(margin, (width - size) // 2), min(margin, (height - size) // 2)
    return int(rng.integers(mx, width - size - mx + 1)), int(rng.integers(my, height - size - my + 1))


def _good_corner(rng: np.random.Generator, picture: Picture, size: int, name: str, margin: int = 0) -> tuple[int, int]:
    best = (-1.0, 0, 0)
    for _ in range(_TRIES):
        left, top = _corner(rng, picture.shape, size, name, margin)
        best = max(best, (worth(picture[top : top + size, left : left + size]), left, top))
        if best[0] >= 1:
            break
    return best[1], best[2]


class PairsSource:
    """Crops of pairs made by others, in any layout of ``training.pairs``. identity, cache_mb: as of the others.

    uniform: every place of a picture is as probable as any other (the paper's recipe); otherwise crops with texture are
    preferred. only: a pattern of names (``*`` is any text), where one folder holds several scenes that are to have
    shares of their own.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        layout: str = "auto",
        split: Literal["train", "test"] = "train",
        only: str = "*",
        uniform: bool = False,
        identity: float = 0.05,
        cache_mb: int = 768,
    ) -> None:
        if not isinstance(uniform, bool):
            raise UsageError(f"uniform {uniform!r} is not true or false", "give one of the two")
        self.path = Path(path)
        self.name = f"pairs:{self.path.name}" + (f"/{only}" if only != "*" else "")
        self._identity = _share("identity", identity)
        self._uniform = uniform
        self._cache: ArrayCache[npt.NDArray[np.uint8]] = ArrayCache(_bound(cache_mb))
        found = find_pairs(self.path, layout=layout, split=split)
        if not isinstance(only, str):
            raise UsageError(f"only {only!r} is no pattern", "give text in quotes, for example 'GOPR0372*'")
        self._pairs = [pair for pair in found if fnmatchcase(pair.name, only)]
        if not self._pairs:
            raise InputError(f"no pair in {path} is called {only!r}", f"names are like {found[0].name!r}")

    def __len__(self) -> int:
        return len(self._pairs)

    def sample(self, rng: np.random.Generator, size: int) -> Crop:
        """(blur, sharp), both (size, size, 3) uint8 R'G'B'."""
        untouched = rng.random() < self._identity
        return self._crop(int(rng.integers(len(self._pairs))), rng, size, untouched)

    def sample_pair(self, index: int, rng: np.random.Generator, size: int) -> Crop:
        """As ``sample``, of pair ``index`` modulo their number (they are in the order of their names)."""
        untouched = rng.random() < self._identity
        return self._crop(index % len(self._pairs), rng, size, untouched)

    def _crop(self, index: int, rng: np.random.Generator, size: int, untouched: bool) -> Crop:
        pair = self._pairs[index]
        both = self._cache.get(pair.sharp, lambda: np.stack(read_pair(pair)))
        if self._uniform:
            left, top = _corner(rng, both[1].shape, size, pair.name)
        else:
            left, top = _good_corner(rng, both[1], size, pair.name)
        window = np.s_[top : top + size, left : left + size]
        sharp = both[1][window].copy()
        return (sharp.copy() if untouched else both[0][window].copy()), sharp


class HighSpeedSource(_Synthesizer):
    """Eq. 1 on consecutive frames of high-speed footage: a folder of sequences, of videos, or one of them.

    frames: the range that M is drawn from, always odd; a sequence with fewer frames than M gives as many as it has, or
    one less. Pictures are clean already, so nothing is degraded by default. Exposures with a cut in them are drawn
    again.
    """

    kind = "highspeed"
    usual = CLEAN

    def __init__(self, path: Path | str, *, frames: tuple[int, int] = (7, 15), **options: Any) -> None:
        super().__init__(path, **options)
        if not isinstance(frames, tuple | list) or len(frames) != 2 or not all(type(n) is int for n in frames):
            raise UsageError(f"frames {frames!r} is no range", "give two whole numbers, for example 7 and 15")
        draw_count(np.random.default_rng(0), *frames)
        self._frames = (frames[0], frames[1])
        fewest = frames[0] | 1  # the least M
        self._thumbs: ArrayCache[Floats] = ArrayCache(64 * _MB)
        self._sequences = [s for s in find_sequences(self.path, videos=True) if len(s) >= fewest]
        if not self._sequences:
            raise InputError(
                f"{path} has no sequence of {fewest} frames", "give videos, or folders of consecutive frames"
            )

    def _pair(self, rng: np.random.Generator, size: int) -> Crop:
        for _ in range(_WINDOWS):
            sequence = self._draw(rng)
            # Of an even number of frames none would be the middle of the exposure, which is the truth.
            count = min(draw_count(rng, *self._frames), (len(sequence) - 1) | 1)
            response = draw_response(rng, self._responses)
            first = int(rng.integers(len(sequence) - count + 1))
            if not self._has_cut(sequence, first, count):
                break
        else:
            raise InputError(f"{self.path} has hardly {count} frames without a cut", "give a folder for every shot")
        middle = self._frame(sequence, first + count // 2)
        left, top = _good_corner(rng, middle, size, sequence.called(first))
        window = np.s_[top : top + size, left : left + size]
        frames = [self._frame(sequence, k)[window] for k in range(first, first + count)]
        linear = average_linear(frames, response)
        return degrade(linear, response, draw_damage(rng, self._degradation)), middle[window].copy()

    def _sharp(self, rng: np.random.Generator, size: int) -> Picture:
        sequence = self._draw(rng)
        picture = self._frame(sequence, int(rng.integers(len(sequence))))
        left, top = _good_corner(rng, picture, size, self.name)
        return picture[top : top + size, left : left + size].copy()

    def _has_cut(self, sequence: Sequence, first: int, count: int) -> bool:
        def thumb(index: int) -> Floats:
            key = (sequence.name, index)
            return self._thumbs.get(key, lambda: flow.thumbnail(flow.luma(self._frame(sequence, index))))

        return bool(flow.cuts(thumb, len(sequence), first, first + count - 1))

    def _draw(self, rng: np.random.Generator) -> Sequence:
        return self._sequences[int(rng.integers(len(self._sequences)))]


class FootageSource(_Synthesizer):
    """Frames between the frames of ordinary footage, by optical flow: a folder of sequences, of videos, or one of them.

    extent: pixels that the blur should have where it moves fast; the shutter is chosen for it, within ``shutter``, in
    frame intervals (2 is the most: from the frame before to the frame after). stepped: share of exposures that are
    means of 7 to 13 moments at most, as GoPro's pairs. Cuts and blurred frames are no truths.
    """

    kind = "footage"

    def __init__(
        self,
        path: Path | str,
        *,
        extent: tuple[float, float] = (4, 48),
        shutter: tuple[float, float] = (0.3, 2.0),
        highlights: float = 0.3,
        stepped: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self._stepped = _share("stepped", stepped)
        self._extent = _span("extent", extent, "give 0 <= MIN <= MAX pixels")
        self._shutter = _span("shutter", shutter, "give 0 < MIN <= MAX <= 2 frame intervals", 2)
        if self._shutter[0] == 0:
            raise UsageError(f"shutter {shutter!r} is no range", "give 0 < MIN <= MAX <= 2 frame intervals")
        self._highlights = _share("highlights", highlights)
        self._sequences: list[Sequence] = [s for s in find_sequences(self.path, videos=True) if len(s) >= 3]
        if not self._sequences:
            raise InputError(f"{path} has no sequence of 3 frames", "give videos, or folders of consecutive frames")
        self._centers: dict[int, list[int]] = {}
        self._flows: ArrayCache[npt.NDArray[np.float16]] = ArrayCache(384 * _MB)

    def _draw(self, rng: np.random.Generator) -> tuple[Sequence, int]:
        for _ in range(8):
            number = int(rng.integers(len(self._sequences)))
            sequence = self._sequences[number]
            if number not in self._centers:
                self._centers[number] = sequence.centers()
            if self._centers[number]:
                usable = self._centers[number]
                return sequence, usable[int(rng.integers(len(usable)))]
        raise InputError(f"{self.path} has hardly a sharp frame away from cuts", "give steadier footage")

    def _flow(self, sequence: Sequence, a: int, b: int) -> npt.NDArray[np.float16]:
        def make() -> npt.NDArray[np.float16]:
            return flow.dense_flow(flow.luma(self._frame(sequence, a)), flow.luma(self._frame(sequence, b)))

        return self._flows.get((sequence.name, a, b), make)

    def _pair(self, rng: np.random.Generator, size: int) -> Crop:
        sequence, k = self._draw(rng)
        response = draw_response(rng, self._responses)
        middle = self._frame(sequence, k)
        flow.check_size(middle, str(sequence.video or sequence.frames[k]))
        height, width = middle.shape[:2]
        best = (-1.0, 0, 0)
        forward = self._flow(sequence, k, k + 1)
        for _ in range(_TRIES):
            left, top = _corner(rng, middle.shape, size, sequence.name, margin=8)
            speed = speed_in(forward, (left, top, size, size), (width, height))
            score = worth(middle[top : top + size, left : left + size]) * min(speed / 2, 1)
            best = max(best, (score, left, top))
            if score >= 1:
                break
        _, left, top = best
        window = np.s_[top : top + size, left : left + size]
        low, high = self._extent
        wanted = low + (high - low) * float(rng.beta(1.3, 2.2))
        speed = speed_in(forward, (left, top, size, size), (width, height))
        shutter = min(max(wanted / max(speed, 0.1), self._shutter[0]), self._shutter[1])
        gain = math.exp(rng.uniform(0, math.log(8))) if rng.random() < self._highlights else 1.0
        linear = expose_footage(
            (self._frame(sequence, k - 1), middle, self._frame(sequence, k + 1)),
            (
                self._flow(sequence, k, k - 1),
                self._flow(sequence, k - 1, k),
                forward,
                self._flow(sequence, k + 1, k),
            ),
            (left, top, size, size),
            shutter,
            response,
            gain,
            steps=draw_steps(rng, self._stepped),
        )
        sharp = middle[window].copy()
        if gain > 1:
            sharp = to_coded(lift_highlights(to_linear(sharp, response), gain), response)
        return degrade(linear, response, draw_damage(rng, self._degradation)), sharp

    def _sharp(self, rng: np.random.Generator, size: int) -> Picture:
        sequence, k = self._draw(rng)
        picture = self._frame(sequence, k)
        left, top = _good_corner(rng, picture, size, self.name)
        return picture[top : top + size, left : left + size].copy()


class StillsSource(_Synthesizer):
    """Camera shake, moving foreground and highlights on photographs: a folder of them (folders inside it too).

    extent: range of the blur's length in pixels. scale: range of the factor by which photographs are made smaller
    first, for other textures and sharper edges. foreground, highlights, lights: how probable each is. tremble: range
    of how unsteady the camera is: 0 is constant speed, as in a short exposure, 1 a hand with jerks, 3 (the most) has
    many hooks and some loops. stepped: share of exposures that are means of 7 to 13 moments at most, as GoPro's pairs.
    """

    kind = "stills"

    def __init__(
        self,
        path: Path | str,
        *,
        extent: tuple[float, float] = (3, 64),
        scale: tuple[float, float] = (0.55, 1.0),
        foreground: float = 0.35,
        highlights: float = 0.4,
        lights: float = 0.08,
        tremble: tuple[float, float] = (1.0, 1.0),
        stepped: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self._extent = _span("extent", extent, "give 0 <= MIN <= MAX pixels")
        self._scale = _span("scale", scale, "give 0 < MIN <= MAX <= 1", 1)
        if self._scale[0] == 0:
            raise UsageError(f"scale {scale!r} is no range", "give 0 < MIN <= MAX <= 1")
        self._foreground = _share("foreground", foreground)
        self._highlights = _share("highlights", highlights)
        self._lights = _share("lights", lights)
        self._tremble = _span("tremble", tremble, f"give 0 <= MIN <= MAX <= {SHAKIEST:g}", SHAKIEST)
        self._stepped = _share("stepped", stepped)
        self._photos = sorted(list_pictures(self.path))  # by text, as they are in no order: seeds keep their bytes

    def _pair(self, rng: np.random.Generator, size: int) -> Crop:
        photo, scale, (left, top) = self._draw(rng, size, margin=40)
        response = draw_response(rng, self._responses)
        low, high = self._extent
        linear, sharp = expose_still(
            photo,
            (left, top, size, size),
            rng,
            extent=low + (high - low) * float(rng.beta(1.2, 2.2)),
            response=response,
            scale=scale,
            gain=math.exp(rng.uniform(0, math.log(10))) if rng.random() < self._highlights else 1.0,
            lights=int(rng.integers(1, 12)) if rng.random() < self._lights else 0,
            foreground=self._photo(rng) if rng.random() < self._foreground else None,
            tremble=draw_tremble(rng, self._tremble),
            steps=draw_steps(rng, self._stepped),
        )
        return degrade(linear, response, draw_damage(rng, self._degradation)), sharp

    def _sharp(self, rng: np.random.Generator, size: int) -> Picture:
        photo, scale, (left, top) = self._draw(rng, size, margin=0)
        return scaled_region(photo, (left, top, left + size, top + size), scale)

    def _photo(self, rng: np.random.Generator) -> Picture:
        return self._picture(self._photos[int(rng.integers(len(self._photos)))])

    def _draw(self, rng: np.random.Generator, size: int, margin: int) -> tuple[Picture, float, tuple[int, int]]:
        path = self._photos[int(rng.integers(len(self._photos)))]
        photo = self._picture(path)
        smallest = min(1.0, (size + 2 * margin + 4) / min(photo.shape[:2]))
        scale = max(float(rng.uniform(*self._scale)), smallest)
        if rng.random() < 0.25:
            scale = 1.0
        shape = (int(photo.shape[0] * scale), int(photo.shape[1] * scale))
        best = (-1.0, 0, 0)
        for _ in range(_TRIES):
            left, top = _corner(rng, shape, size, path.name, margin)
            x, y, s = int(left / scale), int(top / scale), int(size / scale)
            best = max(best, (worth(photo[y : y + s, x : x + s]), left, top))
            if best[0] >= 1:
                break
        return photo, scale, (best[1], best[2])


_KINDS: dict[str, Any] = {
    "pairs": PairsSource,
    "highspeed": HighSpeedSource,
    "footage": FootageSource,
    "stills": StillsSource,
}


def open_source(kind: Kind, path: Path | str, **options: Any) -> CropSource:
    """A source by its kind; ``options`` are its keyword arguments.

    Raises UsageError for an unknown kind or option, or a bad value.
    """
    if kind not in _KINDS:
        raise UsageError(f"source {kind!r} is unknown", f"use {', '.join(_KINDS)}")
    known = _options(_KINDS[kind])
    for name in options:
        if name not in known:
            raise UsageError(f"option {name!r} of source {kind!r} is unknown", f"use {', '.join(known)}")
    source: CropSource = _KINDS[kind](path, **options)
    return source


def _options(kind: type) -> list[str]:
    """Names of the keyword arguments of a source and of what it derives from."""
    found: list[str] = []
    for base in kind.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    return found
