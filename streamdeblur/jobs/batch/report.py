"""``report.json`` for programs and ``report.html`` for people, both in DEST and each one file."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdeblur.errors import StreamdeblurError
from streamdeblur.jobs.batch import place
from streamdeblur.jobs.batch.options import BatchOptions
from streamdeblur.jobs.batch.sources import STATE
from streamdeblur.version import __version__

if TYPE_CHECKING:
    from streamdeblur.jobs.batch.job import BatchSummary

#: Rows of the page; report.json has all. What went wrong comes first.
MOST_ROWS = 5000
_RANK = {"quarantined": 0, "differs": 1, "working": 2, "waiting": 3, "done": 4}

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#5b6470;--line:#dfe3e8;--good:#0b7a4b;
--bad:#b3261e}
@media (prefers-color-scheme:dark){:root{--bg:#111418;--card:#191d23;--ink:#e7eaee;--soft:#9aa4b1;--line:#2c333c;
--good:#4cc38a;--bad:#ff8a80}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
main{max-width:1200px;margin:0 auto;padding:24px 16px 64px}h1{font-size:1.6rem;margin:.2em 0}
.meta,small{color:var(--soft)}.card{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:12px;margin:14px 0;overflow-x:auto}table{border-collapse:collapse;width:100%;
font-variant-numeric:tabular-nums}th,td{padding:6px 8px;text-align:right;vertical-align:top;
border-bottom:1px solid var(--line)}th{color:var(--soft);font-weight:500}th:first-child,td:first-child,
td.text,th.text{text-align:left}td small{display:block;overflow-wrap:anywhere}
.done{color:var(--good)}.quarantined,.differs{color:var(--bad);font-weight:600}
img{display:block;width:160px;height:auto;border-radius:4px}.pair{display:flex;gap:6px}
"""


def write_reports(summary: BatchSummary, options: BatchOptions, *, pictures: bool = True) -> None:
    """Write both files. pictures: with them, as far as there are any. Raises OutputError."""
    values = {
        "version": __version__,
        **summary.as_dict(),
        "options": options.model_dump(mode="json", exclude_defaults=True),
        "results": [dict(row) for row in summary.rows],
    }
    _write(place.join(summary.dest, "report.json"), json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    _write(place.join(summary.dest, "report.html"), html_report(summary, options, pictures=pictures))


def html_report(summary: BatchSummary, options: BatchOptions, *, pictures: bool = True) -> str:
    """The page."""
    counts = ", ".join(f"{n} {status}" for status, n in summary.files.items() if n)
    if summary.state != "finished":
        counts = f"{summary.state}: {counts}"
    rows = sorted(summary.rows, key=lambda r: (_RANK[r["status"]], r["source"]))
    given = options.model_dump(mode="json", exclude_defaults=True)
    said = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in given.items())
    nodes = "".join(
        f"<tr><td>{escape(host)}</td><td>{frames}</td></tr>" for host, frames in sorted(summary.nodes.items())
    )
    more = f'<p class="meta">{len(rows) - MOST_ROWS} more in report.json.</p>' if len(rows) > MOST_ROWS else ""
    head = "".join(
        f"<th{' class=text' if i in (1, 2) else ''}>{h}</th>"
        for i, h in enumerate(
            (
                "file",
                "status",
                "before and after",
                "frames",
                "bypassed",
                "reused",
                "segments",
                "time",
                "in workers",
                "retries",
            )
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Batch report</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body><main><h1>{escape(counts)}</h1>'
        f'<p class="meta">{escape(summary.dest)} · {summary.frames} frames · this run {_time(summary.seconds)}, '
        f"{summary.fps:.1f} frames/s, {summary.actors} actors, {summary.deaths} deaths, {summary.retries} retries · "
        f"{summary.resumed} files were done before · streamdeblur {escape(__version__)}</p>"
        f'<div class="card"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(_row(r, summary.dest, pictures) for r in rows[:MOST_ROWS])}</tbody></table>{more}</div>"
        + (f'<div class="card"><table><tr><th>node</th><th>frames</th></tr>{nodes}</table></div>' if nodes else "")
        + (f'<details class="card"><summary>Options</summary><dl>{said}</dl></details>' if said else "")
        + "</main></body></html>\n"
    )


def _row(r: Mapping[str, Any], dest: str, pictures: bool) -> str:
    notes = [r["error"], *r["differences"], *r["warnings"]]
    text = "".join(f"<small>{escape(n)}</small>" for n in notes if n)
    size = f"<small>{r['size'][0]}×{r['size'][1]} {escape(r['encoder'])}</small>" if r["frames"] else ""
    return (
        f'<tr data-id="{r["id"]}" data-status="{r["status"]}"><td>{escape(r["output"])}'
        f"<small>{escape(r['source'])}</small>{size}</td>"
        f'<td class="text"><span class="{r["status"]}">{r["status"]}{" (before)" if r["resumed"] else ""}</span>{text}'
        f'</td><td class="text">{_pictures(r, dest) if pictures else ""}</td>'
        f"<td>{r['frames']}</td><td>{r['bypassed']}</td>"
        f"<td>{_saved(r['tiles'])}</td>"
        f"<td>{r['segments'] or 'whole'}</td><td>{_time(r['seconds'])}</td><td>{_time(r['worker_seconds'])}</td>"
        f"<td>{r['retries']}</td></tr>"
    )


def _pictures(r: Mapping[str, Any], dest: str) -> str:
    if not r["frames"]:
        return ""
    found = []
    for word in ("before", "after"):
        name = place.join(dest, STATE, "thumbnails", f"{r['id']}-{word}.jpg")
        try:
            stat = None if place.is_url(dest) and r["resumed"] else place.stat(name)
            data = place.read_range(name, 0, stat.size) if stat is not None else b""
        except StreamdeblurError:
            data = b""
        if data:
            found.append(f'<img alt="{word}" src="data:image/jpeg;base64,{base64.b64encode(data).decode("ascii")}">')
    return f'<div class="pair">{"".join(found)}</div>' if len(found) == 2 else ""


def _saved(tiles: Mapping[str, int] | None) -> str:
    """Share of tiles that were reused or left as they are (``--reuse``, ``--skip-sharp``)."""
    total = sum(tiles.values()) if tiles else 0
    return f"{(tiles['reused'] + tiles['skipped']) / total:.0%}" if tiles and total else "–"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _write(name: str, text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")  # names of files that are no text: JSON's own escapes
    if not place.is_url(name):
        place.write_local(name, data)
        return
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "report"
        local.write_bytes(data)
        place.send(local, name)
