"""Tables on a terminal, of what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from streamdeblur.evaluation.benchmark import reference
from streamdeblur.evaluation.benchmark.network import NetworkResult, NetworkRow
from streamdeblur.evaluation.benchmark.quality import QualityResult
from streamdeblur.evaluation.benchmark.timing import seconds
from streamdeblur.evaluation.benchmark.variation import TilingResult
from streamdeblur.evaluation.benchmark.ways import labelled

#: What a table has where nothing could be measured.
BLANK = "–"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first flush left, the others flush right."""
    widths = [max(len(str(row[i])) for row in (heads, *rows)) for i in range(len(heads))]
    lines = []
    for row in (heads, *rows):
        cells = [
            str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def megabytes(value: int | None) -> str:
    """Bytes as people read them."""
    return BLANK if value is None else f"{value / 2**20:,.0f} MiB"


def number(value: float | None, words: str = "{:.3g}") -> str:
    """A figure, or a blank."""
    return BLANK if value is None else words.format(value)


def network_cells(r: NetworkRow) -> list[str]:
    """A row of the network's table, without model and size."""
    how = (
        f"{r.precision}, {r.tiling}"
        + (f" x{r.batch}" if r.batch > 1 else "")
        + (f", {r.at_once} at once" if r.at_once > 1 else "")
    )
    if r.time is None:
        return [r.engine, how, f"not measured: {r.failed}"]
    return [
        r.engine,
        how,
        str(r.time),
        BLANK if r.time.cpu is None else seconds(r.time.cpu),
        str(r.faster) if r.faster else BLANK,
        number(r.megapixels),
        number(r.tflops),
        number(r.share, "{:.0%}"),
        number(r.psnr_fp32, "{:.1f} dB"),
        megabytes(r.peak_bytes),
        number(r.time.joules, "{:.3g} J"),
        seconds(r.build_s or 0.0) + " + " + (seconds(r.time.first) if r.time.first is not None else BLANK),
        str(r.time.rounds),
    ]


NETWORK_HEADS = (
    "engine",
    "how",
    "a frame",
    "CPU time",
    "against the loop",
    "Mpx/s",
    "TFLOP/s",
    "of ceiling",
    "PSNR to fp32",
    "peak memory",
    "energy",
    "built + first call",
    "rounds",
)


def show_network(result: NetworkResult) -> str:
    """A table for each model and size; ways that could not be measured are told below it."""
    parts = [f"the loop: {reference.WORDS}"]
    groups: dict[tuple[str, str, tuple[int, int]], list[NetworkRow]] = {}
    for r in result.rows:
        groups.setdefault((r.model, r.weights, r.size), []).append(r)
    for (model, weights, size), rows in groups.items():
        ceilings = {r.precision: r.ceiling_tflops for r in rows if r.ceiling_tflops is not None}
        roof = ", ".join(f"{k} {v:.3g}" for k, v in ceilings.items())
        parts.append(
            f"\n{model} ({weights}) at {size[0]}x{size[1]}" + (f"; matrix product {roof} TFLOP/s" * bool(roof))
        )
        parts.append(table(NETWORK_HEADS, [network_cells(r) for r in rows if r.time is not None]))
        parts += [f"{r.engine} {r.precision}: not measured: {r.failed}" for r in rows if r.time is None]
    if result.meter is None:
        parts.append("\nenergy: nothing here tells it")
    return "\n".join(parts)


def show_quality(result: QualityResult) -> str:
    heads = ("model", "set", "pairs", "engine", "how", "blurry", "fp32", "this way", "lost", "lost most")
    return table(
        heads,
        [
            (
                f"{r.model} (random weights)" if r.random else labelled(r.model, r.weights),
                r.set_name,
                str(r.pairs),
                r.engine,
                f"{r.precision}, {r.tiling}",
                f"{r.psnr_blurry:.2f} dB",
                f"{r.psnr_fp32:.3f} dB",
                f"{r.psnr:.3f} dB",
                f"{r.lost:+.3f} dB",
                f"{r.lost_most:+.3f} dB",
            )
            for r in result.rows
        ],
    ) + "".join(f"\n{name}: not measured: {why}" for name, why in result.failed)


def show_tiling(result: TilingResult) -> str:
    rows = result.rows
    if not rows:
        return "nothing to compare: the model does not see beyond a pixel"
    heads = (
        "model", "tiling", "windows", "pixels computed", "a frame", "peak memory", "above start",
        "largest, fp32", "mean, fp32", "largest", "mean",
    )  # fmt: skip
    size = f"{result.size[0]}x{result.size[1]}"
    said = f"frames of {size} by {rows[0].engine} in {rows[0].precision}; differences from the whole frame in 1/255"
    cells = [
        (
            f"{labelled(r.model, r.weights)}, radius {r.radius}",
            r.tiling, str(r.windows), f"{r.computed:.2f}x", str(r.time),
            megabytes(r.peak_bytes), megabytes(r.above_bytes), f"{r.largest_fp32:.2g}", f"{r.mean_fp32:.2g}",
            f"{r.largest:.2g}", f"{r.mean:.2g}",
        )
        for r in rows
    ]  # fmt: skip
    return f"{said}\n{table(heads, cells)}"
