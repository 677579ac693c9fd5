"""One self-contained HTML page of an evaluation: for a browser, a phone, an attachment; light or dark, printable.

Every number stands in an element with ``data-key`` and, unrounded, ``data-value``, so that the page can be read by
programs too.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import cv2
import numpy as np

from streamdeblur.evaluation.charts import MOST_BARS, Point, bars, duration, scatter
from streamdeblur.evaluation.gallery import CROPS, LEAST_LOSS, Crop, Gallery, Picture, Whole, shrink
from streamdeblur.evaluation.page import PALETTE, SCRIPT, STYLE
from streamdeblur.evaluation.published import CAPTION, TABLE_1
from streamdeblur.evaluation.results import Evaluation, ImageResult, ModelInfo, SetResult, Summary

#: Rows of the table of images; the CSV has all.
MOST_ROWS = 200
#: Longest side of the pictures under the slider.
SLIDER = 1600
_QUALITY = {"crop": 95, "whole": 88, "overview": 80}
_MINUS = str.maketrans("-", "−")


def html_report(evaluation: Evaluation, gallery: Gallery, *, published: bool = False) -> str:
    """The page. published: draw the paper's printed numbers as hollow points. There must be a set with an image."""
    subject = gallery.subject
    title = "Deblurring evaluation"
    machine = ", ".join(v for k, v in evaluation.machine.items() if k != "device")
    origin = " · ".join((evaluation.created, f"streamdeblur {evaluation.version}", machine))
    parts = [
        f"<h1>{title}</h1>",
        *([f'<p class="note">{evaluation.stopped.capitalize()}.</p>'] if evaluation.stopped else []),
        '<ul class="lead">',
        *(f"<li>{_sentence(s, s.summary(subject))}</li>" for s in evaluation.sets),
        "</ul>",
        f'<p class="meta">{escape(origin)}</p>',
    ]
    for s in evaluation.sets:
        parts += _set(s, evaluation, published)
    parts += _crops(gallery, evaluation)
    parts += _sliders(gallery)
    parts += _footer(evaluation)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}: {escape(subject)}</title>"
        '<link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _sentence(s: SetResult, summary: Summary) -> str:
    what = (
        f"<strong>{escape(summary.model)}</strong> on {escape(s.name)}: {_db(s.input_psnr)} → {_db(summary.psnr)} dB, "
        f"{_signed(summary.gain)}"
    )
    if summary.worst_image and len(s.images) > 1:
        what += f"; worst image {_signed(summary.worst_gain)}"
    if summary.sharp_psnr is not None:
        kept = "unchanged" if math.isinf(summary.sharp_psnr) else f"kept to {_db(summary.sharp_psnr)} dB"
        what += f"; sharp images {kept}"
    if s.note:
        what += f"; {escape(s.note)}"
    return what


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _set(s: SetResult, evaluation: Evaluation, published: bool) -> list[str]:
    names = [m.name for m in evaluation.models]
    colors = [i % PALETTE for i in range(len(names))]
    summaries = [s.summary(n) for n in names]
    gains = [[i.scores[n].gain for i in s.images] for n in names]
    points = [Point(x.model, x.seconds, x.psnr, c) for x, c in zip(summaries, colors, strict=True)]
    count = f"{len(s.images)} pair{'s' if len(s.images) != 1 else ''}"
    how = ", registered to the sharp image (RealBlur's protocol)" if s.aligned else ""
    parts = [
        f'<h2>{escape(s.name)} <span class="note">{count}{how}</span></h2>',
        f'<div class="card scroll">{_table(s, summaries, evaluation.models, colors)}</div>',
        *([f'<p class="note">{escape(_upper(s.note))}.</p>'] if s.note else []),
        '<div class="two"><figure class="card"><h3>PSNR (dB) against run time</h3>',
        scatter(points, s.input_psnr, TABLE_1 if published else ()),
    ]
    if published:
        parts.append(f"<figcaption>{escape(CAPTION)}</figcaption>")
    parts.append('</figure><figure class="card"><h3>Gain of each image</h3>')
    if len(names) > 1:
        parts.append(_legend(names, colors))
    parts.append(bars([i.name for i in s.images], gains, colors, names, f"Gain of each image of {s.name} in dB"))
    if len(s.images) <= MOST_BARS:
        parts.append("<figcaption>dB over the blurry input, largest gain first.</figcaption>")
    parts.append("</figure></div>")
    parts.append(_images(s, names))
    return parts


def _table(s: SetResult, summaries: Sequence[Summary], models: Sequence[ModelInfo], colors: Sequence[int]) -> str:
    head = ["model", "PSNR", "gain", "SSIM", "time", "parameters", "GFLOP", "sharp kept", "worst image"]
    head[6] += f"<small>{escape(models[0].gflop_size)}</small>"
    best = {key: max((getattr(x, key) for x in summaries), default=math.nan) for key in ("psnr", "ssim", "gain")}
    empty = "<td></td>"
    given = f"<td>blurry input</td>{_cell('input_psnr', s.input_psnr)}{empty}{_cell('input_ssim', s.input_ssim, 4)}"
    rows = [f'<tr data-set="{escape(s.name)}" data-model="">{given}{empty * 5}</tr>']
    for x, m, c in zip(summaries, models, colors, strict=True):
        several = len(summaries) > 1
        marks = {k: " best" if several and getattr(x, k) == v else "" for k, v in best.items()}
        image = escape(x.worst_image)
        worst = f'{_signed(x.worst_gain)}<small title="{image}">{image}</small>' if image else "–"
        sharp = "–" if x.sharp_psnr is None else f"{_db(x.sharp_psnr)}<small>least {_db(x.sharp_psnr_lowest)}</small>"
        cells = [
            f'<td><span class="dot fill{c}"></span>{escape(m.name)}<small>{escape(_how(m))}</small></td>',
            _cell("psnr", x.psnr, 2, marks["psnr"], _eight("psnr_8bit", x.psnr_8bit, 2)),
            _gain(x.gain, marks["gain"]),
            _cell("ssim", x.ssim, 4, marks["ssim"], _eight("ssim_8bit", x.ssim_8bit, 4)),
            f'<td data-key="seconds" data-value="{_raw(x.seconds)}">{duration(x.seconds)}</td>',
            f'<td data-key="parameters" data-value="{_raw(m.parameters)}">{_millions(m.parameters)}</td>',
            f'<td data-key="gflop" data-value="{_raw(m.gflop)}">{_giga(m)}</td>',
            f'<td data-key="sharp_psnr" data-value="{_raw(x.sharp_psnr)}">{sharp}</td>',
            f'<td data-key="worst_gain" data-value="{_raw(x.worst_gain)}">{worst}</td>',
        ]
        rows.append(f'<tr data-set="{escape(s.name)}" data-model="{escape(m.name)}">{"".join(cells)}</tr>')
    heads = "".join(f"<th>{h}</th>" for h in head)
    return f'<table class="summary"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _images(s: SetResult, names: Sequence[str]) -> str:
    """All images, or where they are too many those of the smallest gain of the first model."""
    shown: list[ImageResult] = s.images
    note = ""
    if len(shown) > MOST_ROWS:
        shown = sorted(shown, key=lambda i: _last_without(i.scores[names[0]].gain))[:MOST_ROWS]
        note = (
            f'<p class="note">The {MOST_ROWS} images with the smallest gain of {escape(names[0])}; '
            "results.csv has all.</p>"
        )
    head = "<th>image</th><th>blurry</th>" + "".join(
        f"<th>{escape(n)}</th><th>gain</th><th>SSIM</th><th>time</th>" for n in names
    )
    rows = []
    for i in shown:
        cells = [f"<td>{escape(i.name)}<small>{i.width}×{i.height}</small></td>", _cell("input_psnr", i.input_psnr)]
        for n in names:
            score = i.scores[n]
            cells += [
                _cell("psnr", score.psnr),
                _gain(score.gain),
                _cell("ssim", score.ssim, 4),
                f'<td data-key="seconds" data-value="{_raw(score.seconds)}">{duration(score.seconds)}</td>',
            ]
        rows.append(f'<tr data-set="{escape(s.name)}" data-image="{escape(i.name)}">{"".join(cells)}</tr>')
    return (
        f'<details class="card"><summary>Every image of {escape(s.name)}</summary>{note}<div class="scroll">'
        f'<table class="images"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></details>'
    )


def _last_without(gain: float) -> tuple[bool, float]:
    """A key to sort by: pairs that have no gain come last."""
    return math.isnan(gain), gain


def _crops(gallery: Gallery, evaluation: Evaluation) -> list[str]:
    subject = escape(gallery.subject)
    several = len(evaluation.sets) > 1
    parts = []
    if gallery.gains:
        parts += [f"<h2>Where {subject} gains most</h2>", '<div class="card">']
        parts += [_crop(c, several) for c in gallery.gains]
        parts.append("</div>")
    parts.append(f"<h2>Where {subject} loses most</h2>")
    if gallery.losses:
        parts += ['<div class="card">', *(_crop(c, several) for c in gallery.losses), "</div>"]
    else:
        parts.append(f'<p class="note">No region of any image lost {LEAST_LOSS:g} dB or more.</p>')
    parts.append(
        f'<p class="note">Magnified regions, one of an image, at most {CROPS}; the red frame shows where they lie. '
        "Chosen on 8-bit images, with two levels of error added on both sides, so that changes nobody sees do not "
        "count.</p>"
    )
    return parts


def _crop(c: Crop, several: bool) -> str:
    x, y = 100 * c.x / c.width, 100 * c.y / c.height
    box = f"left:{x:.2f}%;top:{y:.2f}%;width:{100 * c.size / c.width:.2f}%;height:{100 * c.size / c.height:.2f}%"
    where = f"{escape(c.set_name)} · {escape(c.image)}" if several else escape(c.image)
    figures = "".join(
        f'<figure><img alt="{escape(name)}" src="{data_uri(picture, "crop")}">'
        f"<figcaption>{escape(name)}</figcaption></figure>"
        for name, picture in c.parts.items()
    )
    return (
        f'<div class="crop"><div class="head"><span class="overview">'
        f'<img alt="" src="{data_uri(c.overview, "overview")}"><i style="{box}"></i></span>'
        f'<span>{_signed(c.gain)}<br><span class="note">{where}, {c.size}×{c.size} px at '
        f'{c.x}, {c.y}</span></span></div><div class="parts">{figures}</div></div>'
    )


def _sliders(gallery: Gallery) -> list[str]:
    if not gallery.wholes:
        return []
    parts = ["<h2>Before and after</h2>"]
    for number, whole in enumerate(gallery.wholes):
        word = ("largest", "smallest")[number] if len(gallery.wholes) > 1 else ""
        parts.append(_slider(whole, gallery.subject, f"{word} gain" if word else "gain"))
    parts.append(
        '<p class="note">Drag the divider, or focus it and use the arrow keys. Pictures are compressed for this page; '
        "the numbers are of the originals.</p>"
    )
    return parts


def _slider(whole: Whole, subject: str, word: str) -> str:
    height, width = whole.parts["blurry"].shape[:2]

    def options(chosen: str) -> str:
        return "".join(
            f'<option value="{escape(n)}"{" selected" if n == chosen else ""}>{escape(n)}</option>' for n in whole.parts
        )

    images = "".join(
        f'<img alt="{escape(n)}" data-part="{escape(n)}"{_shown(n, subject)} '
        f'src="{data_uri(shrink(p, SLIDER), "whole")}">'
        for n, p in whole.parts.items()
    )
    return (
        f'<figure class="card compare"><div class="controls"><label>left <select>{options("blurry")}</select></label>'
        f"<label>right <select>{options(subject)}</select></label></div>"
        f'<div class="stage" style="aspect-ratio:{width}/{height}">{images}<div class="divider" role="slider" '
        'tabindex="0" aria-label="divider between the two pictures" aria-valuemin="0" aria-valuemax="100" '
        'aria-valuenow="50"></div>'
        f'<span class="tag left">blurry</span><span class="tag right">{escape(subject)}</span></div>'
        f"<figcaption>{escape(whole.set_name)} · {escape(whole.image)}: {word} of {escape(subject)}, "
        f"{_signed(whole.gain)}</figcaption></figure>"
    )


def _shown(name: str, subject: str) -> str:
    """What is to be seen without a script."""
    return ' class="over"' if name == "blurry" else ' class="under"' if name == subject else ""


def _footer(evaluation: Evaluation) -> list[str]:
    definitions = "".join(
        f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in sorted(evaluation.definitions.items())
    )
    given = "".join(
        f"<dt>{escape(k)}</dt><dd>{escape(_word(v))}</dd>" for k, v in evaluation.options.items() if v not in (None, [])
    )
    return [
        f'<h2>How it was measured</h2><div class="card"><dl>{definitions}</dl></div>',
        f'<details class="card"><summary>Options</summary><dl>{given}</dl></details>',
    ]


def _word(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _how(m: ModelInfo) -> str:
    place = m.device if m.kind == "streamdeblur" else f"{m.kind}, {m.device}"
    return f"{place}, {m.precision}, {'not tiled' if m.tiling == 'whole' else f'tiling {m.tiling}'}"


def _legend(names: Iterable[str], colors: Iterable[int]) -> str:
    entries = (f'<span><span class="dot fill{c}"></span>{escape(n)}</span>' for n, c in zip(names, colors, strict=True))
    return f'<div class="legend">{"".join(entries)}</div>'


def _cell(key: str, value: float, digits: int = 2, mark: str = "", below: str = "") -> str:
    text = _number(value, digits)
    return f'<td class="{mark.strip()}" data-key="{key}" data-value="{_raw(value)}">{text}{below}</td>'


def _eight(key: str, value: float, digits: int) -> str:
    return f'<small data-key="{key}" data-value="{_raw(value)}">{_number(value, digits)} in 8 bits</small>'


def _gain(value: float, mark: str = "") -> str:
    return f'<td class="{mark.strip()}" data-key="gain" data-value="{_raw(value)}">{_signed(value, "")}</td>'


def _raw(value: float | None) -> str:
    return "" if value is None or value != value else repr(value)


def _number(value: float | None, digits: int = 2) -> str:
    if value is None or math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) and value > 0 else f"{value:.{digits}f}".translate(_MINUS)


def _db(value: float | None) -> str:
    return _number(value)


def _signed(value: float, unit: str = " dB") -> str:
    if math.isnan(value):
        return "–"
    text = f"{value:+.2f}".replace("-0.00", "+0.00").replace("+0.00", "0.00").translate(_MINUS)
    side = "up" if value >= 0.005 else "down" if value <= -0.005 else ""
    return f'<span class="{side}">{text}{unit}</span>'


def _millions(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.2f} M" if count >= 10_000 else f"{count:,}"


def _giga(m: ModelInfo) -> str:
    return "–" if m.gflop is None else f"{m.gflop:,.0f}" if m.gflop >= 10 or m.gflop == 0 else f"{m.gflop:.2g}"


def data_uri(picture: Picture, kind: str) -> str:
    bgr = np.ascontiguousarray(picture[..., ::-1])
    done, data = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, _QUALITY[kind]])
    if not done:  # a build of OpenCV without WebP
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY[kind]])
        return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode('ascii')}"
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode('ascii')}"
