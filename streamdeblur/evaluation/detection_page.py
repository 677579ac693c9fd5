"""The report of ``detect-eval``: one HTML page with table, chart, and pictures like the paper's Fig. 7."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from streamdeblur.detect.draw import draw_rgb, labels
from streamdeblur.evaluation.charts import WIDTH
from streamdeblur.evaluation.detection import BLURRY, DEFINITIONS, DetectionEvaluation, DetectionSet, Example
from streamdeblur.evaluation.gallery import shrink
from streamdeblur.evaluation.page import PALETTE, STYLE
from streamdeblur.evaluation.report import data_uri

#: Longest side of the pictures, in pixels.
_SIDE = 1280
#: Classes in the chart; the table has all.
_MOST_CLASSES = 12
_MINUS = str.maketrans("-", "−")
_STYLE = """
.fillb{fill:var(--soft);background:var(--soft)}
.trio{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:8px}
.trio img{display:block;width:100%;border-radius:4px;background:var(--grid)}
.trio figcaption{margin-top:3px}
"""


def detection_page(evaluation: DetectionEvaluation, examples: Sequence[Example]) -> str:
    """The page. Numbers stand in elements with ``data-key`` and, unrounded, ``data-value``."""
    title = "Detection on restored images"
    origin = f"{evaluation.created} · streamdeblur {evaluation.version} · {evaluation.detector}"
    parts = [
        f"<h1>{title}</h1>",
        *([f'<p class="note">{evaluation.stopped.capitalize()}.</p>'] if evaluation.stopped else []),
        '<ul class="lead">',
        *(f"<li>{_sentence(s, evaluation.models[0])}</li>" for s in evaluation.sets),
        "</ul>",
        f'<p class="meta">{escape(origin)}, true: found on the sharp image from {evaluation.threshold:g} on</p>',
    ]
    for s in evaluation.sets:
        parts += _set(s, evaluation.models)
    parts += _pictures(examples, evaluation.models[0], len(evaluation.sets) > 1)
    definitions = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in DEFINITIONS.items())
    given = "".join(
        f"<dt>{escape(k)}</dt><dd>{escape(', '.join(map(str, v)) if isinstance(v, list) else str(v))}</dd>"
        for k, v in evaluation.options.items()
        if v not in (None, [])
    )
    parts += [
        f'<h2>How it was measured</h2><div class="card"><dl>{definitions}</dl></div>',
        f'<details class="card"><summary>Options</summary><dl>{given}</dl></details>',
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _sentence(s: DetectionSet, subject: str) -> str:
    before, after = s.versions[BLURRY], s.versions[subject]
    return (
        f"<strong>{escape(subject)}</strong> on {escape(s.name)}: mean AP {_percent(before.ap)} → {_percent(after.ap)} "
        f"({_change(after.ap - before.ap)}), true objects found {_percent(before.recall)} → {_percent(after.recall)} % "
        f"of {s.truth}"
    )


def _set(s: DetectionSet, models: Sequence[str]) -> list[str]:
    count = f"{len(s.images)} pair{'s' if len(s.images) != 1 else ''}, {s.truth} true objects"
    versions = [BLURRY, *models]
    caption = (
        "AP in percent, mean over IoU 0.50 to 0.95, most frequent classes first; in brackets the true objects. "
        "A class of few objects says little."
    )
    return [
        f'<h2>{escape(s.name)} <span class="note">{count}</span></h2>',
        f'<div class="card scroll">{_summary(s, versions)}</div>',
        '<figure class="card"><h3>Average precision of each class</h3>',
        _legend(versions),
        class_bars(s, versions),
        f"<figcaption>{caption}</figcaption></figure>",
        f'<details class="card"><summary>Every class of {escape(s.name)}</summary>',
        f'<div class="scroll">{_classes(s, versions)}</div></details>',
    ]


def _summary(s: DetectionSet, versions: Sequence[str]) -> str:
    head = ("images", "mean AP", "AP50", "AP75", "true objects found", "detections", "mean score")
    rows = []
    for n, v in enumerate(versions):
        x = s.versions[v]
        cells = "".join(
            f'<td data-key="{key}" data-value="{_raw(value)}">{_percent(value)}</td>'
            for key, value in (("ap", x.ap), ("ap50", x.ap50), ("ap75", x.ap75), ("recall", x.recall))
        )
        rows.append(
            f'<tr data-set="{escape(s.name)}" data-version="{escape(v)}">'
            f'<td><span class="dot {_fill(n)}"></span>{escape(v)}</td>{cells}'
            f'<td data-key="found" data-value="{x.found}">{x.found}</td>'
            f'<td data-key="mean_score" data-value="{_raw(x.mean_score)}">{_percent(x.mean_score)}</td></tr>'
        )
    heads = "".join(f"<th>{h}</th>" for h in head)
    return f'<table class="summary"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _classes(s: DetectionSet, versions: Sequence[str]) -> str:
    heads = "<th>class</th><th>true</th>" + "".join(
        f"<th>{escape(v)}<small>AP</small></th><th>AP50</th><th>AP75</th>" for v in versions
    )
    rows = []
    for c in s.classes:
        cells = "".join(
            f'<td data-version="{escape(v)}" data-key="{key}" data-value="{_raw(value)}">{_percent(value)}</td>'
            for v in versions
            for key, value in (
                ("ap", c.precision[v].ap),
                ("ap50", c.precision[v].ap50),
                ("ap75", c.precision[v].ap75),
            )
        )
        rows.append(f'<tr data-class="{escape(c.name)}"><td>{escape(c.name)}</td><td>{c.truth}</td>{cells}</tr>')
    return f'<table class="classes"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def class_bars(s: DetectionSet, versions: Sequence[str]) -> str:
    """Bars of AP (the paper's Fig. 8): a group for the mean and for each of the most frequent classes. Inline SVG."""
    groups = [(f"mean of {len(s.classes)} classes", {v: s.versions[v].ap for v in versions})]
    groups += [(f"{c.name} ({c.truth})", {v: c.precision[v].ap for v in versions}) for c in s.classes[:_MOST_CLASSES]]
    left, right, head, thick, top = 8, 44, 18, 14, 24
    step = head + thick * len(versions) + 10
    height = top + step * len(groups)

    def across(value: float) -> float:
        return left + value * (WIDTH - left - right)

    title = f"Average precision of each class of {s.name}"
    parts = [f'<svg class="bars" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = across(tick)
        style = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="18" y2="{height - 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="12" text-anchor="middle">{100 * tick:g}</text>')
    for row, (name, values) in enumerate(groups):
        y = top + row * step
        parts.append(f'<text class="name" x="{left + 4}" y="{y + 13}">{escape(name)}</text>')
        for n, v in enumerate(versions):
            value, at = values[v], y + head + n * thick
            if not math.isfinite(value):
                continue
            parts.append(
                f'<rect class="{_fill(n)}" x="{left}" y="{at}" width="{max(across(value) - left, 1):.1f}" '
                f'height="{thick - 2}" data-class="{escape(name)}" data-version="{escape(v)}" data-ap="{value!r}">'
                f"<title>{escape(v)}, {escape(name)}: {_percent(value)}</title></rect>"
            )
            parts.append(
                f'<text class="value" x="{across(value) + 5:.1f}" y="{at + thick - 3}">{_percent(value)}</text>'
            )
    parts.append("</svg>")
    return "".join(parts)


def _pictures(examples: Sequence[Example], subject: str, several: bool) -> list[str]:
    if not examples:
        return []
    parts = ["<h2>What the detector sees</h2>"]
    for e in examples:
        figures = []
        for version in (BLURRY, subject, "sharp"):
            drawn = draw_rgb(e.pictures[version], labels(e.found[version]))
            words = f"{len(e.found[version])} found"
            if version in e.matched:
                words += f", {e.matched[version]} of {e.truth} true ones"
            figures.append(
                f'<figure><img alt="{escape(version)} with boxes" loading="lazy" '
                f'src="{data_uri(shrink(drawn, _SIDE), "whole")}">'
                f"<figcaption>{escape(version)}: {words}</figcaption></figure>"
            )
        where = f"{escape(e.set_name)} · {escape(e.image)}" if several else escape(e.image)
        parts.append(f'<div class="card" data-image="{escape(e.image)}"><h3>{where}</h3>')
        parts.append(f'<div class="trio">{"".join(figures)}</div></div>')
    parts.append(
        f'<p class="note">The images where {escape(subject)} shows most true objects that the blurry one hides, and '
        "the one where it gains least. Boxes are those that reach the threshold.</p>"
    )
    return parts


def _legend(versions: Sequence[str]) -> str:
    entries = (f'<span><span class="dot {_fill(n)}"></span>{escape(v)}</span>' for n, v in enumerate(versions))
    return f'<div class="legend">{"".join(entries)}</div>'


def _fill(version: int) -> str:
    """The blurry image is grey, models have the palette's colours."""
    return "fillb" if version == 0 else f"fill{(version - 1) % PALETTE}"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _change(value: float) -> str:
    if math.isnan(value):
        return "–"
    side = "up" if value > 0 else "down" if value < 0 else ""
    return f'<span class="{side}">{100 * value:+.1f}</span>'.translate(_MINUS)


def _raw(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
