"""A camera moves, or something before it, while the shutter is open: blur for still pictures.

A trajectory has six parameters over the time of the exposure: translation (2), rotation, zoom and perspective (2),
each the integral of a smooth random velocity with jerks in it. At the middle of the exposure it is the identity, so
the still itself is the truth. Each moment is one homography; the exposure is the mean of the warped stills in linear
light, clipped after it as a sensor does.

Coordinates are pixel centres, (x, y), of the still; a *box* is (left, top, width, height) in whole pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur.training.synthesis.response import Floats

Matrix = npt.NDArray[np.float64]
Box = tuple[int, int, int, int]

SHAKIEST = 3.0  # the largest ``tremble`` that options take

_GRID = 129  # moments of a drawn trajectory; odd, so that the middle of the exposure is one of them
_MIDDLE = _GRID // 2
_STEP = 1.2  # pixels between two neighbouring moments of the exposure: less than what bilinear sampling spreads
_MOST = 97  # moments rendered at most
_STEEPEST = math.radians(14)  # rotation within one exposure

#: (share, weights of tx, ty, rotation, zoom, perspective x, y); all in pixels at the rim of the picture.
_KINDS: tuple[tuple[float, tuple[float, float, float, float, float, float]], ...] = (
    (0.36, (1, 1, 0.15, 0.1, 0, 0)),  # pan and tremble
    (0.26, (0.5, 0.5, 0.8, 0.2, 0.1, 0.1)),  # a hand
    (0.22, (0.15, 0.15, 1, 0.1, 0.05, 0.05)),  # roll
    (0.08, (0.2, 0.2, 0.15, 1, 0.05, 0.05)),  # forward
    (0.08, (0.4, 0.4, 0.4, 0.3, 0.3, 0.3)),  # everything
)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """Where the still is seen from, at equally spaced moments of the exposure.

    parameters: (N, 6) float64, N odd: tx, ty in pixels, rotation in radians, log zoom, perspective x and y in 1/pixel;
    zero at N // 2. center: (x, y) about which it turns and zooms.
    """

    parameters: Matrix
    center: tuple[float, float]

    def at(self, count: int) -> Matrix:
        """(count, 3, 3) float64 homographies from the picture's to the still's coordinates.

        Taken at the middles of ``count`` equal parts of the exposure, so that their plain mean is its integral. For an
        odd ``count`` the middle one is the identity.
        """
        moments = np.linspace(0, 1, len(self.parameters))
        wanted = (np.arange(count) + 0.5) / count
        return self._matrices(np.stack([np.interp(wanted, moments, column) for column in self.parameters.T], axis=1))

    def _matrices(self, p: Matrix) -> Matrix:
        count = len(p)
        cx, cy = self.center
        cos, sin = np.cos(p[:, 2]) * np.exp(p[:, 3]), np.sin(p[:, 2]) * np.exp(p[:, 3])
        h = np.zeros((count, 3, 3))
        h[:, 0, 0], h[:, 0, 1], h[:, 0, 2] = cos, -sin, p[:, 0]
        h[:, 1, 0], h[:, 1, 1], h[:, 1, 2] = sin, cos, p[:, 1]
        h[:, 2, 0], h[:, 2, 1], h[:, 2, 2] = p[:, 4], p[:, 5], 1
        back, forth = np.eye(3), np.eye(3)
        back[:2, 2] = cx, cy
        forth[:2, 2] = -cx, -cy
        return np.asarray(back @ h @ forth, np.float64)

    def scaled(self, factor: float) -> Trajectory:
        """The same motion, ``factor`` times as large; rotation stays within 14 degrees."""
        p = self.parameters * factor
        turn = float(np.ptp(p[:, 2]))
        if turn > _STEEPEST:
            p = p * (_STEEPEST / turn)
        return Trajectory(p, self.center)

    def paths(self, box: Box) -> Matrix:
        """(N, 9, 2) float64: where nine points of ``box`` (corners, sides, centre) are in the still, end to end."""
        left, top, width, height = box
        xs = np.array([0.0, 0.5, 1.0]) * (width - 1) + left
        ys = np.array([0.0, 0.5, 1.0]) * (height - 1) + top
        points = np.array([(x, y, 1.0) for y in ys for x in xs])
        moved = np.einsum("nij,pj->npi", self._matrices(self.parameters), points)
        return np.asarray(moved[..., :2] / moved[..., 2:], np.float64)

    def extent(self, box: Box) -> float:
        """Pixels between the ends of the longest motion of a point of ``box``: the size of its blur."""
        paths = self.paths(box)
        return float(np.hypot(*np.moveaxis(np.ptp(paths, axis=0), -1, 0)).max())

    def count(self, box: Box) -> int:
        """Moments that an exposure of ``box`` needs, odd: neighbours lie about a pixel apart wherever it moves most."""
        steps = np.linalg.norm(np.diff(self.paths(box), axis=0), axis=2)
        needed = math.ceil(float(steps.sum(axis=0).max()) / _STEP)
        return min(max(needed, 2), _MOST) | 1


def _velocity(rng: np.random.Generator, tremble: float) -> Matrix:
    """(_GRID, 6): a steady part, a smooth random one, and jerks, each column of unit size but for ``tremble``."""
    steady = rng.normal(size=6)
    noise = rng.normal(size=(_GRID, 6))
    sigma = float(rng.uniform(6, 40))
    smooth = np.asarray(cv2.GaussianBlur(noise, (1, 0), sigmaX=0.1, sigmaY=sigma, borderType=cv2.BORDER_REFLECT))
    velocity = steady + smooth / np.maximum(smooth.std(axis=0), 1e-9) * rng.uniform(0.1, 1.2) * tremble
    for _ in range(int(rng.poisson(0.5))):
        # a jerk: the hand hits something and moves on otherwise
        at = int(rng.integers(_GRID // 6, _GRID - _GRID // 6))
        velocity[at:] += rng.normal(size=6) * 1.2 * tremble
    return np.asarray(velocity, np.float64)


def draw_tremble(rng: np.random.Generator, span: tuple[float, float]) -> float:
    """How unsteady the next motion is, from least to most. One value draws nothing, so that seeds keep their bytes."""
    least, most = span
    return float(rng.uniform(least, most)) if least < most else least


def draw_trajectory(
    rng: np.random.Generator,
    size: tuple[int, int],
    box: Box,
    extent: float,
    *,
    weights: Sequence[float] | None = None,
    tremble: float = 1.0,
) -> Trajectory:
    """A random trajectory whose blur in ``box`` is ``extent`` pixels long where it is longest.

    size: (width, height) of the still, about whose centre (more or less) the camera turns. weights: six sizes of
    translation x, y, rotation, zoom, perspective x, y; default: one of several kinds of motion, pans and rolls among
    them. tremble: size of what is not steady in it; 0 is a motion at constant speed, as a short exposure sees it.
    Rotation is limited to 14 degrees, so that boxes at the centre of a pure roll get less than ``extent``.
    """
    shares = np.array([share for share, _ in _KINDS])
    kind = _KINDS[int(rng.choice(len(_KINDS), p=shares / shares.sum()))][1]
    chosen = np.asarray(kind if weights is None else weights, np.float64)
    width, height = size
    rim = 0.5 * math.hypot(width, height)
    units = np.array([1, 1, 1 / rim, 1 / rim, 1 / rim**2, 1 / rim**2])
    parameters = np.cumsum(_velocity(rng, tremble), axis=0) * (chosen * units / _GRID)
    parameters -= parameters[_MIDDLE].copy()
    wander = rng.normal(size=2) * (0.12 * width, 0.12 * height)
    path = Trajectory(parameters, ((width - 1) / 2 + float(wander[0]), (height - 1) / 2 + float(wander[1])))
    for _ in range(3):  # all but proportional: a few corrections settle it
        now = path.extent(box)
        if now < 1e-9:
            break
        path = path.scaled(extent / now)
    return path


def fit(path: Trajectory, box: Box, size: tuple[int, int]) -> Trajectory:
    """``path``, made smaller until ``box`` sees nothing outside a still of ``size`` (width, height)."""
    for _ in range(12):
        left, top, right, bottom = reach(path, box)
        if left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]:
            return path
        path = path.scaled(0.75)
    return path.scaled(0)


def reach(path: Trajectory, box: Box) -> tuple[int, int, int, int]:
    """(left, top, right, bottom), ends exclusive, of what ``box`` sees of the still, with a pixel for interpolation."""
    if not path.parameters.any():
        return box[0], box[1], box[0] + box[2], box[1] + box[3]
    points = path.paths(box).reshape(-1, 2)
    low, high = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int)
    return int(low[0]) - 1, int(low[1]) - 1, int(high[0]) + 2, int(high[1]) + 2


@dataclass(frozen=True, slots=True)
class Layer:
    """Something in front: (H, W, 4) float32, linear R, G, B multiplied by the alpha that follows, and how it moves.

    origin: (x, y) of its first pixel in the still's coordinates. ``pixels`` must be transparent at its rim.
    """

    pixels: Floats
    origin: tuple[int, int]
    path: Trajectory


def expose(
    still: Floats,
    origin: tuple[int, int],
    box: Box,
    path: Trajectory,
    layers: Sequence[Layer] = (),
    *,
    steps: int | None = None,
) -> tuple[Floats, Floats]:
    """(blurred, sharp) of ``box`` in linear light, not clipped, (height, width, 3) float32 each.

    still: (H, W, 3) float32 linear, the part of the picture from ``origin`` on; it must hold what ``reach`` says.
    layers: what lies over it, the nearest last; where they are at the middle of the exposure is where they are sharp.
    steps: an odd number; no more moments than that, so that fast motion leaves steps, as in a mean of that many frames.
    """
    left, top, width, height = box
    count = max([path.count(box), *(layer.path.count(box) for layer in layers)])
    if steps is not None:
        count = min(count, steps)
    planes = [(_with_alpha(still), origin, path), *((layer.pixels, layer.origin, layer.path) for layer in layers)]
    shift = np.eye(3)
    shift[:2, 2] = left, top
    views = []
    for pixels, (x, y), way in planes:
        local = np.eye(3)
        local[:2, 2] = -x, -y
        views.append((pixels, local @ way.at(count) @ shift))
    total = np.zeros((height, width, 4), np.float32)
    sharp = total
    for i in range(count):
        picture = _see(*views[0], i, (width, height), cv2.BORDER_REPLICATE)
        for pixels, matrices in views[1:]:
            layer = _see(pixels, matrices, i, (width, height), cv2.BORDER_CONSTANT)
            picture *= 1 - layer[..., 3:]
            picture += layer
        total += picture
        if i == count // 2:
            sharp = picture
    return np.asarray(total[..., :3] / np.float32(count), np.float32), np.ascontiguousarray(sharp[..., :3])


def _see(pixels: Floats, matrices: Matrix, moment: int, size: tuple[int, int], border: int) -> Floats:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpPerspective(pixels, matrices[moment], size, flags=flags, borderMode=border), np.float32)


def _with_alpha(still: Floats) -> Floats:
    # OpenCV warps four channels more than twice as fast as three
    return np.asarray(cv2.merge([*cv2.split(still), np.ones(still.shape[:2], np.float32)]), np.float32)


def draw_mask(rng: np.random.Generator, width: int, height: int) -> Floats:
    """(height, width) float32 in [0, 1]: a random blob with a soft edge, 0 at the rim."""
    cells = int(rng.integers(3, 8))
    noise = rng.normal(size=(cells, cells)).astype(np.float32)
    rough = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    turn = float(rng.uniform(0, math.pi))
    long = float(rng.uniform(1.0, 2.2))
    u = (x * math.cos(turn) + y * math.sin(turn)) * long
    v = -x * math.sin(turn) + y * math.cos(turn)
    inside = (0.72 - np.sqrt(u * u + v * v)) * 4 + 0.45 * rough
    solid = (inside > 0).astype(np.float32)
    soft = cv2.GaussianBlur(solid, (0, 0), float(rng.uniform(0.6, 2.2)))
    edge = np.minimum(1 - np.abs(x), 1 - np.abs(y)) * (min(width, height) / 2)
    return np.asarray(soft * np.clip((edge - 1) / 6, 0, 1), np.float32)


def add_lights(rng: np.random.Generator, linear: Floats, count: int) -> Floats:
    """``linear`` with ``count`` small lamps much brighter than white, as of a street at night."""
    lit = linear.copy()
    height, width = lit.shape[:2]
    for _ in range(count):
        radius = float(rng.uniform(0.6, 2.6))
        power = float(np.exp(rng.uniform(math.log(2), math.log(30))))
        tint = 1 - np.abs(rng.normal(size=3)) * (0.05, 0.15, 0.3)
        x, y = int(rng.integers(width)), int(rng.integers(height))
        r = math.ceil(3 * radius)
        x0, x1, y0, y1 = max(x - r, 0), min(x + r + 1, width), max(y - r, 0), min(y + r + 1, height)
        gx = np.exp(-0.5 * ((np.arange(x0, x1) - x) / radius) ** 2)
        gy = np.exp(-0.5 * ((np.arange(y0, y1) - y) / radius) ** 2)
        glow = gy[:, None, None] * gx[None, :, None] * np.clip(tint, 0.2, 1) * power
        lit[y0:y1, x0:x1] += glow.astype(np.float32)
    return lit
