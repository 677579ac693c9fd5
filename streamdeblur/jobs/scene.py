"""A street that we render ourselves: the demonstration's footage, seeded, from no asset but this file.

Houses with brick and plaster, shop signs, small print and a number plate; foliage, paving, wires; a hand-held camera
that pans, turns and zooms; a van with turning wheels, a bouncing ball, someone walking. Blur is what a shutter does:
the mean of consecutive sharp pictures at a high rate, in linear light (paper Eq. 1), the middle one being the truth.

Layers and objects are painted once, at ``_SUPERSAMPLE`` times their final density, and moved by affine maps. Lengths
are in *units*: the picture is 360 units high whatever its size. Time is in seconds. Deterministic for a seed, on one
version of OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur.errors import UsageError

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]
Color = tuple[int, int, int]
Point = tuple[float, float]

GAMMA = 2.2
_HEIGHT = 360.0
_EYE = 202.0  # what the camera looks at
_SUPERSAMPLE = 3
_DENSITY = 1.25  # texture pixels for one picture pixel at zoom 1: bilinear sampling stays sharp, thin lines don't alias
_FONT = cv2.FONT_HERSHEY_DUPLEX
_PAN = 170.0
_TOP, _BOTTOM = -60.0, 440.0
_ROOF_LOW, _GROUND, _KERB, _ROAD = 96.0, 262.0, 300.0, 307.0
_HOP = 0.8  # seconds between two bounces of the ball
_LINEAR = ((np.arange(256) / 255.0) ** GAMMA).astype(np.float32)


def _encode(linear: Floats) -> Picture:
    codes: Picture = np.rint(np.clip(linear, 0.0, 1.0) ** (1 / GAMMA) * 255.0).astype(np.uint8)
    return codes


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, octaves: int = 4) -> Floats:
    """Multi-octave value noise in about [-1, 1]; the coarsest octave has cells of ``cell`` pixels."""
    rows, columns = shape
    total = np.zeros(shape, np.float32)
    weight = 0.0
    for octave in range(octaves):
        size = max(cell / 2**octave, 1.0)
        grid = rng.uniform(-1, 1, (math.ceil(rows / size) + 3, math.ceil(columns / size) + 3)).astype(np.float32)
        fine = cv2.resize(grid, None, fx=size, fy=size, interpolation=cv2.INTER_CUBIC)
        total += fine[:rows, :columns] / 2**octave
        weight += 1 / 2**octave
    return total / np.float32(weight)


class _Canvas:
    """Anti-aliased drawing in units on a transparent premultiplied RGBA picture."""

    def __init__(self, box: tuple[float, float, float, float], scale: float, rng: np.random.Generator) -> None:
        self.x0, self.y0, x1, y1 = box
        self.scale = scale * _SUPERSAMPLE
        self.rng = rng
        columns, rows = round((x1 - self.x0) * scale), round((y1 - self.y0) * scale)
        self.pixels = np.zeros((rows * _SUPERSAMPLE, columns * _SUPERSAMPLE, 4), np.uint8)

    def _points(self, points: Sequence[Point]) -> Any:
        spots = (np.asarray(points, np.float64) - (self.x0, self.y0)) * self.scale - 0.5
        return np.rint(spots * 16).astype(np.int32)

    def _window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
        rows, columns = self.pixels.shape[:2]

        def span(a: float, b: float, origin: float, size: int) -> slice:
            return slice(*np.clip(np.rint((np.array([a, b]) - origin) * self.scale), 0, size).astype(int))

        return span(y0, y1, self.y0, rows), span(x0, x1, self.x0, columns)

    def poly(self, points: Sequence[Point], color: Color) -> None:
        cv2.fillPoly(self.pixels, [self._points(points)], (*color, 255), cv2.LINE_AA, 4)

    def rect(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color)

    def line(self, points: Sequence[Point], color: Color, width: float, closed: bool = False) -> None:
        thickness = max(1, round(width * self.scale))
        cv2.polylines(self.pixels, [self._points(points)], closed, (*color, 255), thickness, cv2.LINE_AA, 4)

    def ellipse(self, center: Point, axes: Point, color: Color, angle: float = 0.0) -> None:
        self.poly([(float(x), float(y)) for x, y in _oval(center, axes, angle)], color)

    def shade(self, x0: float, y0: float, x1: float, y1: float, factor: Any) -> None:
        """Multiply the colours of a box by a number or an array that broadcasts to its (rows, columns, 3)."""
        box = self.pixels[self._window(x0, y0, x1, y1)]
        box[..., :3] = np.minimum(np.clip(box[..., :3] * factor, 0, 255), box[..., 3:])

    def fade(self, x0: float, y0: float, x1: float, y1: float, top: Color, bottom: Color) -> None:
        """Fill a box with a vertical gradient."""
        box = self.pixels[self._window(x0, y0, x1, y1)]
        ramp = np.linspace(0, 1, len(box))[:, None]
        box[..., :3] = ((1 - ramp) * top + ramp * bottom)[:, None].astype(np.uint8)
        box[..., 3] = 255

    def text(self, words: str, center: Point, height: float, color: Color, width: float = math.inf) -> None:
        """Capitals ``height`` units high, or less where ``width`` is not enough; centred."""
        thickness = max(1, round(height * self.scale / 9))
        (w, h), _ = cv2.getTextSize(words, _FONT, 1.0, thickness)
        size = min(height * self.scale / h, width * self.scale / w)
        (w, h), _ = cv2.getTextSize(words, _FONT, size, thickness)
        x = round((center[0] - self.x0) * self.scale - w / 2)
        y = round((center[1] - self.y0) * self.scale + h / 2)
        mask = np.zeros(self.pixels.shape[:2], np.uint8)
        cv2.putText(mask, words, (x, y), _FONT, size, 255, thickness, cv2.LINE_AA)
        box = (slice(max(y - 2 * h, 0), y + h), slice(max(x - h, 0), x + w + h))
        cover = mask[box][..., None] / np.float32(255)
        under = self.pixels[box]
        under[:] = under * (1 - cover) + np.array([*color, 255], np.float32) * cover

    def bricks(self, x0: float, y0: float, x1: float, y1: float, color: Color, size: Point, mortar: float) -> None:
        """Courses of ``size``, every second one shifted by a half, each stone of its own tint; joints lighter."""
        rows, columns = self._window(x0, y0, x1, y1)
        y = (np.arange(rows.start, rows.stop) / self.scale / size[1])[:, None]
        course = np.floor(y).astype(int)
        x = np.arange(columns.start, columns.stop)[None] / self.scale / size[0] + 0.5 * (course % 2)
        stone = np.floor(x).astype(int)
        tint = self.rng.normal(1.0, 0.09, (course.max() + 1, stone.max() + 1)).astype(np.float32)
        joint = (y % 1.0 < mortar) | (x % 1.0 < mortar * size[1] / size[0])
        grain = 1 + 0.10 * _noise(self.rng, joint.shape, 6 * self.scale)
        body = np.where(joint, np.float32(1.25 if mortar > 0.1 else 0.72), tint[course, stone]) * grain
        box = self.pixels[rows, columns]
        box[..., :3] = np.clip(body[..., None] * np.array(color, np.float32), 0, 255)
        box[..., 3] = 255

    def leaves(self, center: Point, axes: Point, count: int) -> None:
        """A crown of single leaves, darker and denser towards its lower inside."""
        for i in range(count):
            angle, radius = self.rng.uniform(0, 2 * math.pi), math.sqrt(self.rng.uniform(0, 1))
            radius *= 1 + 0.18 * math.sin(5 * angle) + 0.1 * math.sin(11 * angle + 1)
            x = center[0] + axes[0] * radius * math.cos(angle)
            y = center[1] + axes[1] * radius * math.sin(angle)
            light = 0.35 + 0.65 * i / count - 0.25 * (y - center[1]) / axes[1] + self.rng.normal(0, 0.12)
            light = min(max(light, 0.15), 1.15)
            green = (int(88 * light), int(142 * light), int(52 * light))
            self.ellipse(
                (x, y), (self.rng.uniform(1.6, 3.4), self.rng.uniform(0.9, 1.7)), green, self.rng.uniform(0, math.pi)
            )

    def finish(self) -> Floats:
        """(rows, columns, 4) premultiplied linear light at the layer's density."""
        rows, columns = (n // _SUPERSAMPLE for n in self.pixels.shape[:2])
        linear = np.empty(self.pixels.shape, np.float32)
        linear[..., :3] = _LINEAR[self.pixels[..., :3]]
        linear[..., 3] = self.pixels[..., 3] / np.float32(255)
        return np.asarray(cv2.resize(linear, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def _oval(center: Point, axes: Point, angle: float = 0.0, count: int = 40) -> npt.NDArray[np.float64]:
    turn = np.linspace(0, 2 * math.pi, count, endpoint=False)
    c, s = math.cos(angle), math.sin(angle)
    x, y = axes[0] * np.cos(turn), axes[1] * np.sin(turn)
    return np.stack([center[0] + c * x - s * y, center[1] + s * x + c * y], axis=1)


@dataclass(frozen=True, slots=True)
class _House:
    sign: str
    line: str
    notes: tuple[str, ...]
    wall: Color
    board: Color
    letters: Color
    brick: bool
    roof: float
    awning: Color | None


_HOUSES = (
    _House(
        "FLOUR & CRUMB", "bread since 1921", ("RYE 4.20", "SPELT 4.80", "BUN 0.90"),
        (150, 82, 64), (38, 60, 48), (240, 222, 170), True, 34, (188, 60, 52),
    ),
    _House(
        "Antiquarian Books", "maps - prints - atlases", ("bought & sold", "Tue-Sat 10-18"),
        (214, 198, 164), (92, 34, 38), (246, 232, 206), False, 58, None,
    ),
    _House(
        "OPTIK 7", "free eye test", ("E", "F P", "T O Z", "L P E D", "P E C F D"),
        (126, 134, 142), (232, 234, 236), (20, 74, 150), True, 22, None,
    ),
    _House(
        "Harbour Cycles", "repairs while you wait", ("TUBES 6.50", "BRAKES 15.-", "LAMPS 9.90"),
        (176, 112, 76), (24, 86, 120), (255, 255, 255), True, 66, (34, 110, 150),
    ),
    _House(
        "CAFE MIRA", "espresso 1.80", ("SOUP OF THE DAY", "pumpkin 5.40", "quiche 6.20"),
        (226, 206, 190), (60, 52, 70), (250, 206, 90), False, 44, (214, 168, 60),
    ),
    _House(
        "RADIO KRAUS", "valves, sets & service", ("LW 153-279", "MW 531-1602", "FM 87.5-108"),
        (134, 70, 60), (222, 196, 60), (40, 30, 30), True, 28, None,
    ),
)  # fmt: skip


def _draw_window(c: _Canvas, x: float, y: float, w: float, h: float) -> None:
    c.rect(x - 3, y - 3, x + w + 3, y + h + 3, (226, 222, 212))
    c.rect(x - 5, y + h + 2, x + w + 5, y + h + 6, (196, 190, 178))
    c.fade(x, y, x + w, y + h, (112, 140, 164), (38, 46, 58))
    lean = c.rng.uniform(0.1, 0.6) * w
    c.poly([(x + lean, y), (x + lean + 6, y), (x + lean - 4, y + h), (x + lean - 10, y + h)], (150, 172, 190))
    if c.rng.random() < 0.6:
        for side, reach in ((x, 1.0), (x + w, -1.0)):
            c.poly(
                [(side, y), (side + reach * w * 0.34, y), (side + reach * w * 0.12, y + h), (side, y + h)],
                (206, 196, 176),
            )
    c.rect(x + w / 2 - 0.9, y, x + w / 2 + 0.9, y + h, (236, 234, 228))
    c.rect(x, y + h * 0.36, x + w, y + h * 0.36 + 1.6, (236, 234, 228))
    c.shade(x - 3, y - 3, x + w + 3, y - 0.5, 0.72)


def _draw_goods(c: _Canvas, x0: float, x1: float, y0: float, y1: float) -> None:
    for shelf in np.arange(y1, y0 + 8, -15.0):
        x = x0 + 2
        while x < x1 - 5:
            width, height = c.rng.uniform(2.5, 8), c.rng.uniform(5, 11.5)
            color = tuple(int(v) for v in c.rng.uniform(50, 225, 3))
            c.rect(x, shelf - height, min(x + width, x1 - 1), shelf, (color[0], color[1], color[2]))
            c.rect(x + 0.7, shelf - height * 0.6, min(x + width, x1 - 1) - 0.7, shelf - height * 0.4, (235, 230, 214))
            x += width + c.rng.uniform(0.4, 2)
        c.rect(x0, shelf, x1, shelf + 1.2, (92, 70, 50))


def _draw_house(c: _Canvas, house: _House, x0: float, x1: float, number: int) -> None:
    mid, roof = (x0 + x1) / 2, house.roof
    c.bricks(
        x0, roof, x1, _GROUND, house.wall, (11.0, 4.6) if house.brick else (400.0, 400.0), 0.16 if house.brick else 0.0
    )
    for inset, y0, y1, tone in (
        (-4, roof - 3, roof + 1, 176),
        (-1, roof + 1, roof + 5, 150),
        (-2, roof + 5, roof + 7, 118),
    ):
        c.rect(x0 + inset, y0, x1 - inset, y1, (tone, tone - 6, tone - 16))
    c.shade(x0, roof + 7, x1, roof + 11, 0.75)
    for offset in (-58.0, 0.0, 58.0):
        for y in (roof + 20, roof + 74):
            if y + 40 < 150:
                _draw_window(c, mid + offset - 13, y, 26, 36)

    # shop front: pilasters, sign, glass, door
    c.rect(
        x0 + 6, 150, x1 - 6, _GROUND, (int(house.board[0] * 0.6), int(house.board[1] * 0.6), int(house.board[2] * 0.6))
    )
    c.rect(x0 + 6, 150, x1 - 6, 174, house.board)
    c.line([(x0 + 8, 152), (x1 - 8, 152), (x1 - 8, 172), (x0 + 8, 172)], house.letters, 0.8, closed=True)
    c.text(house.sign, (mid, 162), 13, house.letters, x1 - x0 - 34)
    glass0, glass1, door0, door1 = x0 + 13, x1 - 58, x1 - 50, x1 - 16
    c.fade(glass0, 184, glass1, 250, (54, 60, 66), (96, 84, 66))
    _draw_goods(c, glass0, glass1, 204, 249)
    c.poly([(glass0 + 12, 184), (glass0 + 20, 184), (glass0 + 6, 250), (glass0 - 0.0, 250)], (132, 140, 146))
    c.line([(glass0, 184), (glass1, 184), (glass1, 250), (glass0, 250)], (220, 214, 200), 1.6, closed=True)
    c.line([((glass0 + glass1) / 2, 184), ((glass0 + glass1) / 2, 250)], (220, 214, 200), 1.2)
    c.text(house.line, ((glass0 + glass1) / 2, 195), 6.2, (244, 240, 224), glass1 - glass0 - 8)
    c.rect(glass1 - 40, 203, glass1 - 4, 203 + 8.4 * len(house.notes) + 3, (240, 236, 222))
    for i, note in enumerate(house.notes):
        c.text(note, (glass1 - 22, 209 + 8.4 * i), 5.2, (36, 32, 36), 33)
    c.rect(door0, 184, door1, _GROUND, house.board)
    c.fade(door0 + 5, 190, door1 - 5, 228, (108, 128, 142), (52, 58, 64))
    c.rect(
        door0 + 5,
        234,
        door1 - 5,
        256,
        (int(house.board[0] * 0.75), int(house.board[1] * 0.75), int(house.board[2] * 0.75)),
    )
    c.text("OPEN", ((door0 + door1) / 2, 203), 6, (250, 250, 244))
    c.text("7-19 h", ((door0 + door1) / 2, 214), 5, (250, 250, 244))
    c.ellipse((door0 + 3, 232), (1.4, 1.4), (222, 190, 90))
    c.rect(x1 - 13, 192, x1 - 1, 203, (24, 54, 128))
    c.text(str(number), (x1 - 7, 197.5), 6, (255, 255, 255), 9)
    c.rect(x0 + 6, 250, x1 - 58, _GROUND, (86, 82, 80))
    if house.awning:
        stripes = 13
        step = (glass1 - glass0 + 12) / stripes
        for i in range(stripes):
            a, b = glass0 - 6 + i * step, glass0 - 6 + (i + 1) * step
            color = house.awning if i % 2 == 0 else (240, 236, 226)
            c.poly([(a + 2, 175), (b + 2, 175), (b, 186), (a, 186)], color)
            c.ellipse(((a + b) / 2, 186), (step / 2, 3), color)
        c.shade(glass0 - 6, 183, glass1 + 6, 190, 0.88)
    c.line([(x0 + 2, roof + 7), (x0 + 2, _GROUND)], (92, 94, 92), 2.0)
    c.line([(x0 + 1.4, roof + 7), (x0 + 1.4, _GROUND)], (150, 152, 148), 0.6)


def _draw_street(c: _Canvas, width: float) -> None:
    """Houses, pavement, road, and all that stands still between them."""
    slot = 188.0
    for i in range(math.ceil(width / slot)):
        _draw_house(c, _HOUSES[i % len(_HOUSES)], i * slot, min((i + 1) * slot, width), 12 + 2 * i)
    c.bricks(0, _GROUND, width, _KERB, (166, 160, 150), (24.0, 12.6), 0.05)
    c.shade(0, _GROUND, width, _GROUND + 5, 0.7)
    c.bricks(0, _KERB, width, _ROAD, (188, 184, 176), (46.0, 60.0), 0.04)
    c.bricks(0, _ROAD, width, _BOTTOM, (84, 85, 90), (900.0, 900.0), 0.0)
    rows, columns = c._window(0, _ROAD, width, _BOTTOM)
    grit = c.rng.normal(1.0, 0.16, (rows.stop - rows.start, columns.stop - columns.start, 1)).astype(np.float32)
    c.shade(0, _ROAD, width, _BOTTOM, cv2.GaussianBlur(grit, (0, 0), 0.35 * c.scale)[..., None] * 3 - 2)
    c.shade(0, _ROAD, width, _ROAD + 4, 0.65)
    for x in np.arange(-20, width, 70.0):
        c.poly([(x, 372), (x + 38, 372), (x + 34, 378), (x - 4, 378)], (206, 204, 194))
    c.ellipse((width * 0.42, 336), (17, 5.4), (58, 58, 60))
    c.text("WATER", (width * 0.42, 336), 4.6, (120, 118, 112))

    for x, size in ((width * 0.30, 1.0), (width * 0.72, 1.15)):  # trees at the kerb
        c.poly(
            [(x - 4, 296), (x - 3, 190), (x - 14, 120), (x + 2, 176), (x + 16, 112), (x + 4, 192), (x + 5, 296)],
            (84, 66, 50),
        )
        c.leaves((x, 104), (46 * size, 40 * size), 1500)
        c.rect(x - 12, 294, x + 12, 297, (70, 66, 62))
    for x in np.arange(60, width, 113.0):  # bollards
        c.rect(x - 2, 276, x + 2, 300, (54, 56, 60))
        c.rect(x - 2, 281, x + 2, 284, (226, 222, 214))
        c.ellipse((x, 276), (2.6, 2.2), (54, 56, 60))
    x = width * 0.468  # a bus stop with a timetable
    c.rect(x - 1.2, 172, x + 1.2, 298, (120, 124, 128))
    c.ellipse((x, 166), (13, 13), (246, 206, 40))
    c.ellipse((x, 166), (10.6, 10.6), (22, 112, 62))
    c.text("H", (x, 166), 12, (246, 206, 40))
    c.rect(x - 15, 206, x + 15, 248, (244, 244, 240))
    c.text("LINE 47", (x, 212), 5.6, (170, 24, 30), 26)
    for i, row in enumerate(("6 04 24 44", "7 04 14 34", "8 09 29 49", "9 09 39")):
        c.text(row, (x, 220 + 7 * i), 4.6, (30, 30, 34), 27)
    c.rect(width * 0.545 - 17, 118, width * 0.545 + 17, 129, (20, 60, 140))
    c.text("LANTERN ST", (width * 0.545, 123.5), 5.6, (255, 255, 255), 31)
    for y in (70.0, 80.0):  # wires
        xs = np.linspace(0, width, 60)
        c.line([(float(v), y + 7 * math.cos(v / 150)) for v in xs], (44, 44, 50), 0.55)


def _draw_distance(c: _Canvas, x0: float, x1: float) -> None:
    """Sky, clouds, and roofs behind the street."""
    c.fade(x0, _TOP, x1, _BOTTOM, (104, 152, 208), (226, 226, 220))
    rows, columns = c.pixels.shape[:2]
    cloud = np.clip(_noise(c.rng, (rows, columns), 90 * c.scale, 6) * 3.0 - 0.15, 0, 0.85)[..., None]
    c.pixels[..., :3] = c.pixels[..., :3] * (1 - cloud) + 246 * cloud
    x = x0
    while x < x1:
        width, top = c.rng.uniform(34, 70), c.rng.uniform(-6, 60)
        tone = c.rng.uniform(0.85, 1.1)
        wall = (int(150 * tone), int(156 * tone), int(170 * tone))
        c.rect(x, top, x + width, _BOTTOM, wall)
        for wx in np.arange(x + 4, x + width - 5, 8.0):
            for wy in np.arange(top + 6, 130, 11.0):
                c.rect(wx, wy, wx + 4, wy + 6, (98, 108, 126) if c.rng.random() < 0.8 else (214, 206, 176))
        c.line([(x + width * 0.3, top), (x + width * 0.3, top - 14)], (120, 122, 128), 0.8)
        x += width + c.rng.uniform(-3, 10)


def _draw_van(c: _Canvas) -> None:
    for i in range(8):  # shadow on the road, soft
        c.ellipse((0, 40), (96 - 3 * i, 7 - 0.5 * i), (8, 8, 9))
    c.poly([(-92, 30), (-92, -36), (-86, -42), (36, -42), (62, -14), (86, -8), (92, 4), (92, 30)], (232, 228, 220))
    c.poly([(-92, 30), (-92, 16), (92, 16), (92, 30)], (176, 36, 40))
    c.shade(-92, -42, 92, -38, 1.06)
    c.poly([(34, -36), (54, -14), (54, -6), (24, -6), (24, -36)], (64, 84, 102))
    c.poly([(37, -36), (45, -27), (33, -6), (27, -6), (27, -14)], (112, 132, 148))
    c.line([(20, -40), (20, 28)], (150, 146, 140), 0.8)
    c.line([(60, -12), (60, 28), (20, 28)], (150, 146, 140), 0.8)
    c.rect(26, 2, 34, 3.6, (70, 70, 72))
    c.text("FRESH FISH", (-37, -22), 14, (22, 70, 132), 104)
    c.text("from the quay - tel. 555 0142", (-37, -4), 6, (52, 52, 60), 104)
    c.line([(-88, 6), (16, 6)], (22, 70, 132), 1.2)
    c.ellipse((88, 6), (4, 6), (252, 240, 190))
    c.rect(-92, 2, -88, 14, (216, 40, 34))
    c.rect(-32, 18, 12, 28, (246, 246, 238))
    c.line([(-32, 18), (12, 18), (12, 28), (-32, 28)], (30, 30, 30), 0.7, closed=True)
    c.text("SD 0473 X", (-10, 23), 7, (20, 20, 24), 40)
    for x in (-56.0, 58.0):
        c.ellipse((x, 30), (17, 17), (28, 28, 30))


def _draw_wheel(c: _Canvas) -> None:
    c.ellipse((0, 0), (14, 14), (30, 30, 32))
    c.ellipse((0, 0), (9.4, 9.4), (186, 188, 192))
    for i in range(5):
        a = 2 * math.pi * i / 5
        c.ellipse((5.6 * math.cos(a), 5.6 * math.sin(a)), (2, 2), (58, 60, 64))
    c.ellipse((0, 0), (2.4, 2.4), (120, 30, 30))
    c.rect(-0.6, -13.6, 0.6, -10, (200, 200, 200))


def _draw_ball(c: _Canvas) -> None:
    for i in range(6):
        a, b = math.pi * i / 3, math.pi * (i + 1) / 3
        rim = [(10 * math.cos(v), 10 * math.sin(v)) for v in np.linspace(a, b, 12)]
        c.poly([(0.0, 0.0), *rim], (222, 58, 44) if i % 2 else (248, 244, 232))
    c.ellipse((0, 0), (2.2, 2.2), (40, 70, 150))


def _draw_limb(c: _Canvas, length: float, width: float, cloth: Color, end: Color) -> None:
    c.poly([(-width / 2, 0), (width / 2, 0), (width * 0.36, length), (-width * 0.36, length)], cloth)
    c.ellipse((0, 0), (width / 2, width / 2), cloth)
    c.ellipse((1.0, length), (width * 0.62, width * 0.42), end)


def _draw_body(c: _Canvas) -> None:
    c.poly([(-8, -36), (8, -36), (9, 4), (-9, 4)], (196, 84, 40))
    c.ellipse((0, -35), (8.2, 4), (196, 84, 40))
    for y in (-26, -16, -6):
        c.line([(-8, y), (8.4, y)], (238, 206, 160), 1.6)
    c.rect(-3, -42, 3, -34, (214, 168, 138))
    c.ellipse((0, -48), (7, 8.4), (222, 176, 146))
    c.poly([(-7.4, -48), (-7, -57), (0, -59), (7, -56), (7.4, -50), (2, -53)], (58, 40, 32))
    c.poly([(-15, -34), (-8, -36), (-8, -8), (-16, -10)], (44, 66, 92))


def _draw_post(c: _Canvas) -> None:
    c.rect(-4, _TOP, 4, _BOTTOM, (48, 54, 52))
    c.rect(-3, _TOP, -1.4, _BOTTOM, (104, 112, 108))
    c.rect(-7, 300, 7, _BOTTOM, (42, 48, 46))
    c.rect(-24, 96, 24, 128, (250, 250, 246))
    c.line([(-24, 96), (24, 96), (24, 128), (-24, 128)], (196, 30, 36), 2.2, closed=True)
    c.text("LOST CAT", (0, 106), 8, (30, 30, 34), 40)
    c.text("grey, answers to Fourier", (0, 118), 5, (30, 30, 34), 42)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Premultiplied linear RGBA, and the map from its pixels to units."""

    pixels: Floats
    x0: float
    y0: float
    density: float

    def to_units(self) -> npt.NDArray[np.float64]:
        d = 1 / self.density
        return np.array([[d, 0, self.x0 + d / 2], [0, d, self.y0 + d / 2], [0, 0, 1]])


@dataclass(frozen=True, slots=True)
class Exposure:
    """One frame of the demonstration: both (H, W, 3) uint8 R'G'B', ``sharp`` taken at the middle of the shutter."""

    blurry: Picture
    sharp: Picture


class Scene:
    """A street and the camera in it.

    size: (width, height) in pixels, 64 to 4096 each. seed: of texture, trajectory and tint. ``render`` may be called
    for any time, in any order, from several threads.
    """

    def __init__(self, size: tuple[int, int] = (640, 360), seed: int = 0) -> None:
        self.width, self.height = size
        if not (64 <= self.width <= 4096 and 64 <= self.height <= 4096):
            raise UsageError(
                f"a scene of {self.width}x{self.height} can't be rendered", "take 64 to 4096 pixels a side"
            )
        self._unit = self.height / _HEIGHT
        self._rng = np.random.default_rng(seed)
        self._view = self.width / self._unit
        self._street_width = self._view + 2 * (_PAN + 110)
        self._center = (self._street_width / 2, _EYE)
        self._phase = self._rng.uniform(0, 2 * math.pi, (3, 5))

        reach = self._view / 2 + 180
        self._distance = self._paint((-reach, _TOP, reach, _BOTTOM), lambda c: _draw_distance(c, -reach, reach))
        street_box = (0.0, _TOP, self._street_width, _BOTTOM)
        self._street = self._paint(street_box, lambda c: _draw_street(c, self._street_width))
        self._van = self._paint((-100, -46, 100, 50), _draw_van)
        self._wheel = self._paint((-15, -15, 15, 15), _draw_wheel)
        self._ball = self._paint((-11, -11, 11, 11), _draw_ball)
        self._body = self._paint((-18, -61, 18, 6), _draw_body)
        self._leg = self._paint((-7, -6, 9, 42), lambda c: _draw_limb(c, 36, 8, (46, 52, 78), (40, 32, 30)))
        self._arm = self._paint((-6, -5, 7, 34), lambda c: _draw_limb(c, 28, 6, (178, 74, 34), (222, 176, 146)))
        self._post = self._paint((-26, _TOP, 26, _BOTTOM), _draw_post)
        self._branch = self._paint((-90, -70, 90, 70), lambda c: c.leaves((0, 0), (74, 50), 900))

    def _paint(self, box: tuple[float, float, float, float], draw: Any) -> _Layer:
        density = self._unit * _DENSITY
        canvas = _Canvas(box, density, self._rng)
        draw(canvas)
        pixels = canvas.finish()
        return _Layer(pixels, box[0], box[1], density)

    # -- camera -------------------------------------------------------------------------------------------------------

    def _shake(self, axis: int, t: float) -> float:
        """A trembling hand: sines whose speeds, not amplitudes, are alike; the unit is that of one sine's speed."""
        frequencies = (0.83, 1.71, 3.3, 5.6, 8.9)
        return sum(
            math.sin(2 * math.pi * f * t + p) / (2 * math.pi * f)
            for f, p in zip(frequencies, self._phase[axis], strict=True)
        )

    def _camera(self, t: float, parallax: float) -> npt.NDArray[np.float64]:
        """Units of a layer to picture pixels. parallax: 1 at the houses, less behind them, more in front."""
        x = parallax * (_PAN * math.sin(2 * math.pi * t / 7 - 0.5) + 105 * self._shake(0, t))
        y = parallax * 80 * self._shake(1, t)
        turn = 0.011 * math.sin(2 * math.pi * 0.37 * t) + 0.10 * self._shake(2, t)
        zoom = self._unit * (0.94 + 0.045 * parallax * math.sin(2 * math.pi * t / 5))
        c, s = zoom * math.cos(turn), zoom * math.sin(turn)
        return np.array(
            [
                [c, -s, self.width / 2 - 0.5 - c * x + s * y],
                [s, c, self.height / 2 - 0.5 - s * x - c * y],
                [0, 0, 1],
            ]
        )

    # -- pictures -----------------------------------------------------------------------------------------------------

    def render_linear(self, t: float) -> Floats:
        """(H, W, 3) linear light in [0, 1] at time ``t``, as an infinitely short shutter sees it."""
        near = self._camera(t, 1.0) @ _shift(-self._center[0], -_EYE)
        far = self._camera(t, 0.35) @ _shift(0, -_EYE)
        front = self._camera(t, 1.7) @ _shift(0, -_EYE)

        street = self._warp(self._street, near, 0, self.height)
        picture = np.ascontiguousarray(street[..., :3])
        # the sky shows above the lowest roof only
        edge = max(float((near @ (x, _ROOF_LOW, 1.0))[1]) for x in (0.0, self._street_width))
        rows = min(max(math.ceil(edge) + 1, 0), self.height)
        if rows:
            behind = self._warp(self._distance, far, 0, rows)
            picture[:rows] += behind[..., :3] * (1 - street[:rows, :, 3:])

        self._put_walker(picture, near, t)
        self._put_ball(picture, near, t)
        self._put_van(picture, near, t)
        self._put(picture, self._post, front @ _shift(-self._view * 0.62, 0))
        self._put(picture, self._branch, front @ _shift(self._view * 0.34, 18) @ _spin(0.05 * math.sin(2.1 * t)))
        return picture

    def render(self, t: float) -> Picture:
        """(H, W, 3) uint8 R'G'B' (gamma 2.2) at time ``t``."""
        return _encode(self.render_linear(t))

    def expose(self, t: float, shutter: float, samples: int) -> Exposure:
        """Open the shutter for ``shutter`` seconds around ``t``: the mean of ``samples`` pictures in linear light.

        samples: odd, so that the middle one, the sharp truth, is taken at ``t``.
        """
        if samples < 1 or samples % 2 == 0:
            raise UsageError(f"{samples} samples of an exposure have no middle one", "take an odd number")
        total = np.zeros((self.height, self.width, 3), np.float32)
        sharp = total
        for i in range(samples):
            picture = self.render_linear(t + shutter * ((i + 0.5) / samples - 0.5))
            total += picture
            if i == samples // 2:
                sharp = picture
        return Exposure(_encode(total / np.float32(samples)), _encode(sharp))

    def frames(
        self, count: int, rate: Fraction, *, samples: int = 11, shutter_angle: float = 250.0
    ) -> Iterator[Exposure]:
        """``count`` frames at ``rate`` a second; 360 degrees of shutter are the whole frame interval."""
        interval = float(1 / rate)
        for i in range(count):
            yield self.expose(i * interval, interval * shutter_angle / 360, samples)

    # -- sound --------------------------------------------------------------------------------------------------------

    def sound(self, seconds: float, rate: int = 48000) -> Floats:
        """(samples, 2) float32 in [-1, 1]: a soft chord, the van's hum, a knock where the ball touches ground."""
        t = np.arange(round(seconds * rate)) / rate
        swell = 0.6 + 0.4 * np.sin(2 * np.pi * 0.4 * t)
        chord = sum(np.sin(2 * np.pi * f * t) / (i + 2) for i, f in enumerate((196.0, 246.94, 293.66, 392.0)))
        hum = np.sin(2 * np.pi * 62 * t + 0.8 * np.sin(2 * np.pi * 7 * t))
        since = np.mod(t, _HOP)
        knock = np.sin(2 * np.pi * 520 * since) * np.exp(-since * 38)
        left = 0.10 * chord * swell + 0.06 * hum + 0.34 * knock
        right = 0.10 * chord * swell[::-1] + 0.09 * hum + 0.26 * knock
        return np.stack([left, right], axis=1).astype(np.float32)

    # -- objects ------------------------------------------------------------------------------------------------------

    def _put_van(self, picture: Floats, near: npt.NDArray[np.float64], t: float) -> None:
        span = self._street_width + 260
        x = (self._center[0] - 0.34 * self._view + 150 * t + 130) % span - 130
        bob = 0.7 * math.sin(2 * math.pi * 2.3 * t)
        self._put(picture, self._van, near @ _shift(x, 318 + bob))
        for offset in (-56.0, 58.0):
            self._put(picture, self._wheel, near @ _shift(x + offset, 349) @ _spin(150 * t / 14))

    def _put_ball(self, picture: Floats, near: npt.NDArray[np.float64], t: float) -> None:
        x = (self._center[0] + 40 + 62 * t) % self._street_width
        phase = (t / _HOP) % 1.0
        height = 58 * 4 * phase * (1 - phase)
        self._put(picture, self._ball, near @ _shift(x, 284 - height) @ _spin(4 * t))

    def _put_walker(self, picture: Floats, near: npt.NDArray[np.float64], t: float) -> None:
        x = (self._center[0] + 150 - 64 * t) % self._street_width
        swing = math.sin(2 * math.pi * 0.95 * t)
        hip = near @ _shift(x, 254 - 2.0 * abs(swing)) @ np.diag([-1.0, 1.0, 1.0])
        self._put(picture, self._arm, hip @ _shift(0, -32) @ _spin(0.55 * swing))
        for side in (-1, 1):
            self._put(picture, self._leg, hip @ _spin(0.5 * side * swing))
        self._put(picture, self._body, hip)
        self._put(picture, self._arm, hip @ _shift(0, -32) @ _spin(-0.55 * swing))

    def _warp(self, layer: _Layer, to_picture: npt.NDArray[np.float64], top: int, bottom: int) -> Floats:
        matrix = (_shift(0, -top) @ to_picture @ layer.to_units())[:2]
        return np.asarray(
            cv2.warpAffine(
                layer.pixels,
                matrix,
                (self.width, bottom - top),
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            ),
            np.float32,
        )

    def _put(self, picture: Floats, layer: _Layer, to_picture: npt.NDArray[np.float64]) -> None:
        """Lay an object over the picture, touching only the box it covers."""
        rows, columns = layer.pixels.shape[:2]
        matrix = to_picture @ layer.to_units()
        corners = matrix @ np.array([[-1, columns, columns, -1], [-1, -1, rows, rows], [1, 1, 1, 1]])
        x0, y0 = np.floor(corners[:2].min(axis=1)).astype(int)
        x1, y1 = np.ceil(corners[:2].max(axis=1)).astype(int) + 1
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, self.width), min(y1, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        local = (_shift(-float(x0), -float(y0)) @ matrix)[:2]
        patch = cv2.warpAffine(layer.pixels, local, (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR)
        under = picture[y0:y1, x0:x1]
        under *= 1 - patch[..., 3:]
        under += patch[..., :3]


def _shift(x: float, y: float) -> npt.NDArray[np.float64]:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _spin(angle: float) -> npt.NDArray[np.float64]:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
