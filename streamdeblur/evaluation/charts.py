"""Charts as inline SVG: text that a browser lays out, colours from the page's style sheet, no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from streamdeblur.evaluation.published import Published

WIDTH = 560
#: More images than this and bars become a line over the sorted images.
MOST_BARS = 40


@dataclass(frozen=True, slots=True)
class Point:
    """A model in the scatter. color: index into the page's palette."""

    name: str
    seconds: float
    psnr: float
    color: int


def scatter(points: Sequence[Point], input_psnr: float, published: Sequence[Published] = ()) -> str:
    """PSNR against run time on a logarithmic axis (the paper's Fig. 1); hollow circles for published numbers.

    The dashed line is the blurry input. Points that are not finite are left out.
    """
    own = [p for p in points if math.isfinite(p.psnr) and p.seconds > 0]
    levels = [p.psnr for p in own] + [p.psnr for p in published]
    if math.isfinite(input_psnr):
        levels.append(input_psnr)
    times = [p.seconds for p in own] + [p.seconds for p in published]
    if not levels or not times:
        return '<p class="note">No finite PSNR to draw: every image equals its sharp one.</p>'
    height, left, right, top, bottom = 340, 48, 14, 14, 46
    y_ticks = nice_ticks(min(levels), max(levels))
    span = max(y_ticks[-1] - y_ticks[0], 1e-9)
    low, high = _decades(min(times), max(times))

    def across(seconds: float) -> float:
        return left + (math.log10(seconds) - low) / (high - low) * (WIDTH - left - right)

    def down(psnr: float) -> float:
        return top + (y_ticks[-1] - psnr) / span * (height - top - bottom)

    parts = [_open("scatter", height, "PSNR against run time")]
    for tick in y_ticks:
        y = down(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for seconds, label in _time_ticks(low, high):
        x = across(seconds)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - bottom}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{escape(label)}</text>'
        )
    middle = (left + WIDTH - right) / 2
    parts.append(
        f'<text class="axis" x="{middle:.1f}" y="{height - 8}" text-anchor="middle">run time of one image (log)</text>'
    )
    labels = _Labels((left, top, WIDTH - right, height - bottom))
    for p in own:
        labels.block(across(p.seconds), down(p.psnr), 7)
    for q in published:
        labels.block(across(q.seconds), down(q.psnr), 4)
    if math.isfinite(input_psnr):
        y = down(input_psnr)
        parts.append(f'<line class="input" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        placed = labels.place(left + 2, y - 9, f"blurry input {input_psnr:.2f}", 10, 2)
        parts.append(placed.replace("<text", '<text class="tick"', 1))
    for q in published:
        x, y = across(q.seconds), down(q.psnr)
        parts.append(
            f'<circle class="published" cx="{x:.1f}" cy="{y:.1f}" r="4">'
            f"<title>{escape(q.method)}, as printed: {q.psnr:.2f} dB, {q.seconds:g} s</title></circle>"
        )
    for p in own:
        x, y = across(p.seconds), down(p.psnr)
        parts.append(
            f'<circle class="point fill{p.color}" cx="{x:.1f}" cy="{y:.1f}" r="7" data-model="{escape(p.name)}" '
            f'data-psnr="{p.psnr!r}" data-seconds="{p.seconds!r}">'
            f"<title>{escape(p.name)}: {p.psnr:.2f} dB, {duration(p.seconds)}</title></circle>"
        )
        parts.append(labels.place(x, y, p.name, 13, 10).replace("<text", '<text class="label"', 1))
    for q in published:  # last: they give way to ours
        text = labels.place(across(q.seconds), down(q.psnr), q.method, 10, 6)
        parts.append(text.replace("<text", '<text class="faint"', 1))
    parts.append("</svg>")
    return "".join(parts)


def bars(
    names: Sequence[str], gains: Sequence[Sequence[float]], colors: Sequence[int], models: Sequence[str], title: str
) -> str:
    """Gain of each image in dB, sorted by the first model's. gains: one row a model, NaN where there is none."""
    order = sorted(range(len(names)), key=lambda i: -gains[0][i] if math.isfinite(gains[0][i]) else math.inf)
    known = [g for row in gains for g in row if math.isfinite(g)]
    ticks = nice_ticks(min([0.0, *known]), max([0.0, *known]))
    if len(names) > MOST_BARS:
        return _skyline(order, gains, colors, models, ticks, title)
    left, right, head, thick = 44, 44, 18, 13
    group = head + thick * len(gains) + 8
    height = 24 + group * len(names)

    def across(gain: float) -> float:
        return left + (gain - ticks[0]) / max(ticks[-1] - ticks[0], 1e-9) * (WIDTH - left - right)

    parts = [_open("bars", height, title)]
    for tick in ticks:
        x = across(tick)
        style = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{height - 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="12" text-anchor="middle">{tick:+g}</text>')
    for row, i in enumerate(order):
        y = 24 + row * group
        parts.append(f'<text class="name" x="4" y="{y + 12}">{escape(_short(names[i], 60))}</text>')
        for m, line in enumerate(gains):
            gain, at = line[i], y + head + m * thick
            if not math.isfinite(gain):
                continue
            a, b = sorted((across(0), across(gain)))
            parts.append(
                f'<rect class="fill{colors[m]}" x="{a:.1f}" y="{at}" width="{max(b - a, 1):.1f}" height="{thick - 2}" '
                f'data-image="{escape(names[i])}" data-model="{escape(models[m])}" data-gain="{gain!r}">'
                f"<title>{escape(models[m])}, {escape(names[i])}: {gain:+.2f} dB</title></rect>"
            )
            side = f'x="{a - 4:.1f}" text-anchor="end"' if gain < 0 else f'x="{b + 4:.1f}"'
            parts.append(f'<text class="value" {side} y="{at + thick - 3}">{gain:+.2f}</text>')
    parts.append("</svg>")
    return "".join(parts)


def _skyline(
    order: Sequence[int],
    gains: Sequence[Sequence[float]],
    colors: Sequence[int],
    models: Sequence[str],
    ticks: Sequence[float],
    title: str,
) -> str:
    """One line a model over the images as sorted by the subject: two numbers an image, however many there are."""
    height, left, right, top, bottom = 260, 48, 14, 14, 30

    def down(gain: float) -> float:
        return top + (ticks[-1] - gain) / max(ticks[-1] - ticks[0], 1e-9) * (height - top - bottom)

    step = (WIDTH - left - right) / len(order)
    parts = [_open("bars", height, title)]
    for tick in ticks:
        y = down(tick)
        style = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{style}" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:+g}</text>')
    for m in reversed(range(len(gains))):
        values = [(n, gains[m][i]) for n, i in enumerate(order) if math.isfinite(gains[m][i])]
        line = "".join(
            f"{'L' if k else 'M'}{left + n * step:.1f} {down(g):.1f}h{step:.2f}" for k, (n, g) in enumerate(values)
        )
        parts.append(
            f'<path class="line stroke{colors[m]}" d="{line}" data-model="{escape(models[m])}">'
            f"<title>{escape(models[m])}</title></path>"
        )
    parts.append(
        f'<text class="axis" x="{(left + WIDTH - right) / 2:.1f}" y="{height - 8}" text-anchor="middle">'
        f"{len(order)} images, by the gain of {escape(models[0])} (dB)</text></svg>"
    )
    return "".join(parts)


class _Labels:
    """Places texts beside points where they cover neither a point nor each other; at the right if nothing is free."""

    def __init__(self, area: tuple[float, float, float, float]) -> None:
        self._area = area
        self._taken: list[tuple[float, float, float, float]] = []

    def block(self, x: float, y: float, radius: float) -> None:
        self._taken.append((x - radius, y - radius, x + radius, y + radius))

    def place(self, x: float, y: float, text: str, size: int, gap: int) -> str:
        wide, half = 0.58 * size * len(text), size * 0.6
        around: list[tuple[float, float, str]] = [
            (x + gap, y, "start"),
            (x - gap, y, "end"),
            (x, y - gap - half, "middle"),
            (x, y + gap + half, "middle"),
            (x + gap, y - half, "start"),
            (x + gap, y + half, "start"),
            (x - gap, y - half, "end"),
            (x - gap, y + half, "end"),
        ]
        best = around[0] if x + gap + wide <= self._area[2] else around[1]
        for at, level, anchor in around:
            a = at if anchor == "start" else at - wide if anchor == "end" else at - wide / 2
            box = (a, level - half, a + wide, level + half)
            inside = box[0] >= self._area[0] and box[2] <= self._area[2]
            inside = inside and box[1] >= self._area[1] - half and box[3] <= self._area[3] + half
            if inside and not any(_overlap(box, other) for other in self._taken):
                best = (at, level, anchor)
                self._taken.append(box)
                break
        at, level, anchor = best
        return f'<text x="{at:.1f}" y="{level + size * 0.35:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, evenly spaced, that enclose low and high."""
    span = max(high - low, 0.1)
    raw = span / about
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(k * base for k in (1, 2, 5, 10) if k * base >= raw - 1e-12)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(i * step, 10) + 0.0 for i in range(first, last + 1)]


def _decades(low: float, high: float) -> tuple[float, float]:
    """Ends of the logarithmic axis, with room: never less than a factor of four."""
    a, b = math.log10(low) - 0.15, math.log10(high) + 0.15
    missing = max(0.0, math.log10(4) - (b - a)) / 2
    return a - missing, b + missing


def _time_ticks(low: float, high: float) -> list[tuple[float, str]]:
    digits: Callable[[float], tuple[int, ...]] = lambda decades: (1, 2, 5) if decades < 2.5 else (1,)  # noqa: E731
    ticks = []
    for decade in range(math.floor(low), math.ceil(high) + 1):
        for digit in digits(high - low):
            value = digit * 10.0**decade
            if low <= math.log10(value) <= high:
                ticks.append((value, duration(value)))
    return ticks


def duration(seconds: float) -> str:
    """A run time as people read it: 1.25 s, 34 ms, 0.8 ms."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1000:.3g} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} µs"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _open(kind: str, height: int, title: str) -> str:
    return f'<svg class="{kind}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
