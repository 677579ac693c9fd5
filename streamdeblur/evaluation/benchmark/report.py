"""The benchmark's page: tables, and quality against speed; one self-contained file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from streamdeblur.evaluation.benchmark import reference
from streamdeblur.evaluation.benchmark.network import NetworkRow
from streamdeblur.evaluation.benchmark.quality import QualityRow
from streamdeblur.evaluation.benchmark.results import NETWORK_HEADS, network_cells
from streamdeblur.evaluation.benchmark.run import Report
from streamdeblur.evaluation.benchmark.ways import labelled
from streamdeblur.evaluation.charts import Point, scatter
from streamdeblur.evaluation.page import PALETTE, STYLE

_TITLE = "Speed of deblurring"
_EXTRA = "pre{overflow-x:auto;font-size:.85rem;line-height:1.45;margin:0}"


def html_report(report: Report) -> str:
    """The page of a report."""
    machine = ", ".join(f"{k} {v}" for k, v in report.machine.items())
    parts = [
        f"<h1>{_TITLE}</h1>",
        f'<p class="meta">{escape(report.created)} · {escape(machine)}</p>',
        f'<p class="meta">load before: {report.load_before}; {escape(report.command)}</p>',
    ]
    if report.warning:
        parts.append(f'<p class="note">{escape(report.warning)}</p>')
    if report.network is not None:
        parts += _network(report)
    for title, text in report.texts.items():
        if title != "network":
            parts.append(f'<h2>{escape(title)}</h2><div class="card"><pre>{escape(text)}</pre></div>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_TITLE}</title>"
        '<link rel="icon" href="data:,">'
        f"<style>{STYLE}{_EXTRA}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _network(report: Report) -> list[str]:
    assert report.network is not None
    parts = [f'<h2>The network alone</h2><p class="note">The loop: {escape(reference.WORDS)}.</p>']
    rows = report.network.rows
    for size in dict.fromkeys(r.size for r in rows):
        chosen = [r for r in rows if r.size == size]
        models = list(dict.fromkeys((r.model, r.weights) for r in chosen))
        words = f"{size[0]}x{size[1]}"
        parts.append(f'<h3>{words}</h3><div class="card scroll">{_table(chosen)}</div>')
        quality = report.quality.rows if report.quality is not None else []
        if quality:
            for name in dict.fromkeys(q.set_name for q in quality):
                some = [q for q in quality if q.set_name == name]
                points, blurry = _on_pairs(chosen, some, models)
                caption = f"Quality against speed: PSNR on {name} (dB), time of a frame of {words}"
                parts.append(_figure(caption, scatter(points, blurry)))
        else:
            points = [
                Point(_label(r, chosen), r.time.median, r.psnr_fp32, models.index((r.model, r.weights)) % PALETTE)
                for r in chosen
                if r.time is not None and r.psnr_fp32 is not None
            ]
            if points:
                caption = f"Quality against speed: PSNR to float32 (dB), time of a frame of {words}"
                parts.append(_figure(caption, scatter(points, math.nan)))
    return parts


def _figure(caption: str, drawing: str) -> str:
    return f'<figure class="card"><h3>{escape(caption)}</h3>{drawing}</figure>'


def _on_pairs(
    rows: Sequence[NetworkRow], quality: Sequence[QualityRow], models: Sequence[tuple[str, str]]
) -> tuple[list[Point], float]:
    """A point for each way whose scores are known: of the same weights, engine, precision and tiling."""
    points = []
    for r in rows:
        if r.time is None:
            continue
        for q in quality:
            if (q.model, q.weights) != (r.model, r.weights):
                continue
            loop = r.engine == reference.NAME
            if loop or (q.engine, q.precision, q.tiling) == (r.engine, r.precision, r.asked_tiling):
                color = models.index((r.model, r.weights)) % PALETTE
                points.append(Point(_label(r, rows), r.time.median, q.psnr_fp32 if loop else q.psnr, color))
                break
    return points, quality[0].psnr_blurry


def _label(row: NetworkRow, rows: Sequence[NetworkRow]) -> str:
    """A way by what tells it from the others of the plot."""
    words = [labelled(row.model, row.weights), row.name]
    if row.engine != reference.NAME and len({r.tiling for r in rows if r.engine != reference.NAME}) > 1:
        words.append(row.tiling)
    return " ".join(words)


def _table(rows: Sequence[NetworkRow]) -> str:
    heads = "".join(f"<th>{escape(h)}</th>" for h in ("model", *NETWORK_HEADS))
    body = []
    for r in rows:
        cells = network_cells(r)
        texts = "".join(f"<td>{escape(c)}</td>" for c in cells)
        missing = f'<td colspan="{len(NETWORK_HEADS) - len(cells)}"></td>' if len(cells) < len(NETWORK_HEADS) else ""
        figures = f' data-seconds="{r.time.median!r}"' if r.time is not None else ""
        body.append(
            f'<tr data-model="{escape(r.model)}" data-engine="{escape(r.engine)}"{figures}>'
            f"<td>{escape(r.model)}<small>{escape(r.weights)}</small></td>{texts}{missing}</tr>"
        )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
