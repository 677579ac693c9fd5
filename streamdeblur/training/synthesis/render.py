"""One exposure of a part of a still or of a frame: what sources and the command have in common."""

from __future__ import annotations

import math

import cv2
import numpy as np

from streamdeblur.training.synthesis import flow, shake
from streamdeblur.training.synthesis.flow import Flow
from streamdeblur.training.synthesis.response import Floats, Picture, Response, lift_highlights, to_coded, to_linear

_TEXTURE = 5.0  # mean absolute gradient, in code values, below which a crop is flat
#: ``flow.sharpness`` of a crop that can be a truth. Of 256 x 256 crops of GoPro, the blurred side has 0.23 to 0.35
#: (5th to 90th percentile), the sharp side 0.38 to 0.55; photographs and DAVIS frames lie above.
_SHARP = 0.37


def texture(picture: Picture) -> float:
    """Mean absolute horizontal plus vertical difference of luma, in code values: below 5 there is little to learn."""
    gray = flow.luma(picture).astype(np.int16)
    return float(np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean())


def worth(truth: Picture) -> float:
    """How much there is to learn from a crop, 1 and above being enough: it has texture, and its truth is sharp."""
    return min(texture(truth) / _TEXTURE, flow.sharpness(flow.luma(truth)) / _SHARP)


def speed_in(half: Flow, box: shake.Box, full: tuple[int, int], percentile: float = 90) -> float:
    """Pixels per frame that a fast part of ``box`` moves: a percentile of a flow at half size."""
    part = _part(half, box, full)
    return float(np.percentile(np.hypot(part[..., 0], part[..., 1]), percentile))


def expose_footage(
    frames: tuple[Picture, Picture, Picture],
    flows: tuple[Flow, Flow, Flow, Flow],
    box: shake.Box,
    shutter: float,
    response: Response,
    gain: float,
    *,
    steps: int | None = None,
) -> Floats:
    """Blurred ``box`` of the middle of three frames, float32 in linear light.

    flows: half-size, from the middle to the frame before and back, then to the frame after and back. shutter: frame
    intervals, at most 2. gain: of clipped highlights. steps: an odd number; of so many moments at most it is the
    mean, so that fast motion leaves steps.
    """
    height, width = frames[1].shape[:2]
    left, top, wide, high = box
    fastest = max(speed_in(f, box, (width, height), 98) for f in (flows[0], flows[2]))
    widest = max(float(np.percentile(np.abs(_part(f, box, (width, height))), 99.8)) for f in (flows[0], flows[2]))
    margin = min(math.ceil(widest) + 4, 128)
    x0, y0 = max(left - margin, 0), max(top - margin, 0)
    x1, y1 = min(left + wide + margin, width), min(top + high + margin, height)
    region = np.s_[y0:y1, x0:x1]
    before, middle, after = (lift_highlights(to_linear(f[region], response), gain) for f in frames)
    back, back_again, forth, forth_again = (flow.crop_flow(f, x0, y0, x1 - x0, y1 - y0, (width, height)) for f in flows)
    return flow.expose(
        flow.Between(middle, before, back, back_again),
        flow.Between(middle, after, forth, forth_again),
        flow.moments(shutter, fastest, steps),
        (left - x0, top - y0, wide, high),
    )


def _part(half: Flow, box: shake.Box, full: tuple[int, int]) -> Floats:
    """Every fourth vector in a box."""
    x, y = half.shape[1] / full[0], half.shape[0] / full[1]
    left, top, width, height = box
    part = half[int(top * y) : int((top + height) * y) + 1 : 4, int(left * x) : int((left + width) * x) + 1 : 4]
    return np.asarray(part, np.float32)


def scaled_region(photo: Picture, region: tuple[int, int, int, int], scale: float) -> Picture:
    """What ``region`` (left, top, right, bottom) of the photo made smaller by ``scale`` holds."""
    left, top, right, bottom = region
    if scale == 1:
        return photo[top:bottom, left:right].copy()
    box = [round(v / scale) for v in region]
    part = photo[box[1] : box[3], box[0] : box[2]]
    return np.asarray(cv2.resize(part, (right - left, bottom - top), interpolation=cv2.INTER_AREA), np.uint8)


def expose_still(
    photo: Picture,
    box: shake.Box,
    rng: np.random.Generator,
    *,
    extent: float,
    response: Response,
    scale: float = 1.0,
    gain: float = 1.0,
    lights: int = 0,
    foreground: Picture | None = None,
    tremble: float = 1.0,
    steps: int | None = None,
) -> tuple[Floats, Picture]:
    """(blurred in linear light, sharp uint8) of ``box``, a part of ``photo`` made smaller by ``scale``.

    extent: length of the blur in pixels; less where the box lies too near the picture's rim. foreground: a picture of
    which a random blob moves in front by a trajectory of its own. tremble: of ``shake.draw_trajectory``. steps: of
    ``shake.expose``.
    """
    size = (int(photo.shape[1] * scale), int(photo.shape[0] * scale))
    path = shake.fit(shake.draw_trajectory(rng, size, box, extent, tremble=tremble), box, size)
    left, top, right, bottom = shake.reach(path, box)
    coded = scaled_region(photo, (left, top, right, bottom), scale)
    still = lift_highlights(to_linear(coded, response), gain)
    if lights:
        still = shake.add_lights(rng, still, lights)
    layers = []
    if foreground is not None:
        layers.append(_draw_layer(rng, foreground, box, size, extent, response, gain, tremble))
    blurred, sharp = shake.expose(still, (left, top), box, path, layers, steps=steps)
    if lights or layers or gain > 1:
        return blurred, to_coded(sharp, response)
    x, y = box[0] - left, box[1] - top
    return blurred, coded[y : y + box[3], x : x + box[2]].copy()


def _draw_layer(
    rng: np.random.Generator,
    picture: Picture,
    box: shake.Box,
    size: tuple[int, int],
    extent: float,
    response: Response,
    gain: float,
    tremble: float,
) -> shake.Layer:
    left, top, width, height = box
    w = min(int(rng.uniform(0.3, 0.95) * width), picture.shape[1])
    h = min(int(rng.uniform(0.3, 0.95) * height), picture.shape[0])
    most = (-1.0, 0, 0)
    for _ in range(3):
        x, y = int(rng.integers(picture.shape[1] - w + 1)), int(rng.integers(picture.shape[0] - h + 1))
        most = max(most, (texture(picture[y : y + h, x : x + w]), x, y))
    _, x, y = most
    content = lift_highlights(to_linear(picture[y : y + h, x : x + w], response), gain)
    mask = shake.draw_mask(rng, w, h)
    pixels = cv2.merge([*cv2.split(content * mask[..., None]), mask])
    place = (
        left + int(rng.integers(-w // 3, width - w + w // 3 + 1)),
        top + int(rng.integers(-h // 3, height - h + h // 3 + 1)),
    )
    around: shake.Box = (place[0], place[1], w, h)
    # often of the background's strength, sometimes still before a moving background (a camera that follows it)
    own = 0.0 if rng.random() < 0.2 else extent * float(rng.uniform(0.3, 1.5))
    path = shake.draw_trajectory(rng, size, around, own, tremble=tremble)
    path = shake.Trajectory(path.parameters, (place[0] + w / 2, place[1] + h / 2))
    return shake.Layer(np.asarray(pixels, np.float32), place, path)
