"""What a camera does to the light after the shutter: noise, demosaicing, compression. For the blurred side only."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from streamdeblur.errors import UsageError
from streamdeblur.training.synthesis.response import Floats, Picture, Response, to_coded
from streamdeblur.video.simple import read_rgb, write_clip


@dataclass(frozen=True, slots=True)
class Degradation:
    """How probable each is, 0 to 1. Of JPEG and H.264 at most one is applied."""

    noise: float = 0.3
    demosaic: float = 0.2
    jpeg: float = 0.2
    h264: float = 0.1

    def __post_init__(self) -> None:
        for name in ("noise", "demosaic", "jpeg", "h264"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageError(f"probability {value!r} of {name} is not one", "give a number from 0 to 1")
        if self.jpeg + self.h264 > 1:
            raise UsageError(
                f"jpeg {self.jpeg:g} and h264 {self.h264:g} are more than 1 together", "only one of them is applied"
            )


CLEAN = Degradation(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Damage:
    """What happens to one picture; None is "not this".

    noise: (variance for each unit of light, deviation of the read-out), in linear light. seed: of the noise. demosaic:
    phase of the Bayer pattern. jpeg: quality. h264: CRF.
    """

    noise: tuple[float, float] | None = None
    seed: int = 0
    demosaic: int | None = None
    jpeg: int | None = None
    h264: int | None = None


def draw_damage(rng: np.random.Generator, options: Degradation) -> Damage:
    """A random part of a camera. Takes the same number of draws whatever ``options`` are."""
    dice = rng.random(3)
    seed = int(rng.integers(2**62))
    noise = (
        math.exp(rng.uniform(math.log(1e-4), math.log(2.5e-3))),
        math.exp(rng.uniform(math.log(3e-4), math.log(6e-3))),
    )
    phase, quality, crf = (int(rng.integers(low, high)) for low, high in ((0, 4), (45, 96), (18, 33)))
    jpeg = dice[2] < options.jpeg
    h264 = not jpeg and dice[2] < options.jpeg + options.h264
    return Damage(
        noise if dice[0] < options.noise else None,
        seed,
        phase if dice[1] < options.demosaic else None,
        quality if jpeg else None,
        crf if h264 else None,
    )


def degrade(linear: Floats, response: Response, damage: Damage) -> Picture:
    """A blurred picture in linear light ((H, W, 3) float32) to coded uint8, as a camera records it."""
    light = linear
    if damage.noise is not None:
        shot, read = damage.noise
        light = add_noise(np.clip(light, 0, 1), np.random.default_rng(damage.seed), shot, read)
    if damage.demosaic is not None:
        light = demosaic(light, damage.demosaic)
    picture = to_coded(light, response)
    if damage.jpeg is not None:
        picture = through_jpeg(picture, damage.jpeg)
    if damage.h264 is not None:
        picture = through_h264(picture, damage.h264)
    return picture


def add_noise(linear: Floats, rng: np.random.Generator, shot: float, read: float) -> Floats:
    """Photon noise of variance ``shot`` * light, and Gaussian noise of deviation ``read``, in linear light."""
    deviation = np.sqrt(np.float32(shot) * np.maximum(linear, 0) + np.float32(read * read))
    return np.asarray(linear + deviation * rng.standard_normal(linear.shape, np.float32), np.float32)


def demosaic(linear: Floats, phase: int) -> Floats:
    """Sample through a Bayer pattern (``phase`` 0 to 3) and interpolate: softness and colour fringes."""
    mosaic = np.empty(linear.shape[:2], np.float32)
    rows, columns = divmod(phase, 2)
    mosaic[rows::2, columns::2] = linear[rows::2, columns::2, 0]
    mosaic[1 - rows :: 2, 1 - columns :: 2] = linear[1 - rows :: 2, 1 - columns :: 2, 2]
    mosaic[rows::2, 1 - columns :: 2] = linear[rows::2, 1 - columns :: 2, 1]
    mosaic[1 - rows :: 2, columns::2] = linear[1 - rows :: 2, columns::2, 1]
    # a square root spends the 16 bits where eyes and response curves do; reflecting keeps the pattern's phase
    code = (np.sqrt(np.clip(mosaic, 0, 1)) * 65535 + 0.5).astype(np.uint16)
    framed = cv2.copyMakeBorder(code, 2, 2, 2, 2, cv2.BORDER_REFLECT_101)
    # OpenCV names a pattern by the second row's second and third pixel
    conversion = (
        cv2.COLOR_BayerBG2RGB_EA,
        cv2.COLOR_BayerGB2RGB_EA,
        cv2.COLOR_BayerGR2RGB_EA,
        cv2.COLOR_BayerRG2RGB_EA,
    )
    full = cv2.cvtColor(framed, conversion[phase])[2:-2, 2:-2].astype(np.float32) / np.float32(65535)
    return np.asarray(full * full, np.float32)


def through_jpeg(picture: Picture, quality: int) -> Picture:
    """Compress as JPEG (libjpeg's quality 1 to 100) and back."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    back = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(back[..., ::-1])


def through_h264(picture: Picture, crf: int) -> Picture:
    """Compress as one H.264 frame at ``crf`` (4:2:0, BT.709 limited range) and back."""
    height, width = picture.shape[:2]
    even = np.asarray(cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8)
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
    with tempfile.TemporaryDirectory(prefix="streamdeblur-") as folder:
        path = Path(folder) / "frame.mp4"
        write_clip(path, [even], Fraction(25), options=options)
        back = next(iter(read_rgb(path)))
    return np.ascontiguousarray(back[:height, :width])
