"""What --reuse saves and what it costs: python benchmarks/reuse.py CLIP... [--thresholds 3,5,8] [--halos 8,16,32]

Every frame of a clip is restored whole, and beside it in the way of --reuse with each setting: the planner's regions
go through the network with their halos, the composer adds new and kept corrections. For each setting:

saved       pixels of the frames over pixels that the network saw, halos included
faster      time of the whole frames over that of planning, network and composing, in the same run
PSNR        of the result from the full run's, over all samples of all planes, 8 bits: of the clip (mean of squared
            errors), and of its worst frame
kept        of the corrections' energy what is as in the full run, in dB: PSNR is flattered where corrections are small
none        PSNR of the input itself from the full run's result

With --approximate the network runs once a frame, and the kept parts of regions are taken from its result: what a halo
without limit would give. Thresholds can be compared so in little more time than the full run takes.

The first threshold is tried with all halos, the first halo with all thresholds. --job compares the whole of
process_video with and without --reuse instead, in turns, for footage where nothing can be saved.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, plain, table

from streamdeblur import process_video
from streamdeblur.frames import Array, Frame, apply_correction
from streamdeblur.restore import Restorer
from streamdeblur.restore.composer import Composer, plane_part
from streamdeblur.restore.engines import facts
from streamdeblur.restore.planner import Planner, SpendOptions
from streamdeblur.video.reader import VideoReader

#: Series of the chart: colours that can be told apart on light and dark ground.
_COLORS = ("#3b7dd8", "#d9822b", "#3fa45b", "#b0569c", "#8a8a8a")


@dataclass
class Setting:
    """One way to reuse, on its way through a clip."""

    options: SpendOptions
    pixels: int = 0
    total: int = 0
    seconds: float = 0.0
    windows: int = 0
    errors: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.planner, self.composer = Planner(self.options), Composer()

    def step(
        self, restorer: Restorer, frame: Frame, truth: Frame, full: tuple[Array, ...], *, approximate: bool
    ) -> None:
        began = time.perf_counter()
        request = self.planner.plan(frame)
        if request.regions is None:
            # The same call with the same result: what the full run measured is added by the caller.
            corrections = tuple(c.copy() for c in full)
        elif approximate:
            color = frame.spec.color
            corrections = tuple(
                c[r.parity :: 2][plane_part(r.kept, color, n, c[r.parity :: 2].shape)]
                if r.parity is not None
                else c[plane_part(r.kept, color, n, c.shape)]
                for r in request.regions
                for n, c in enumerate(full)
            )
        else:
            corrections = restorer.correction(frame, request.regions)
        result = self.composer.compose(frame, request, corrections)
        self.seconds += time.perf_counter() - began
        self.pixels += request.pixels
        self.total += request.total
        self.windows += 1 if request.regions is None else len(request.regions)
        self.whole = request.regions is None
        self.errors.append(squared_error(result, truth))


def squared_error(a: Frame, b: Frame) -> float:
    """Mean over all samples of the colour planes, in levels of 8 bits."""
    count, depth = a.spec.color.color_planes, a.spec.color.depth
    pairs = list(zip(a.planes[:count], b.planes[:count], strict=True))
    total = sum(float(np.square(p.astype(np.float32) - q).sum(dtype=np.float64)) for p, q in pairs)
    return total / sum(p.size for p, _ in pairs) / 4 ** (depth - 8)


def decibels(error: float) -> float:
    return 10 * math.log10(255**2 / error) if error > 0 else math.inf


def frames_of(path: Path, skip: int, most: int | None) -> Iterator[Frame]:
    with VideoReader(path, copy_streams=False) as reader:
        for n, decoded in enumerate(reader):
            if most is not None and n >= skip + most:
                return
            if n >= skip:
                frame = decoded.plain() if hasattr(decoded, "plain") else decoded
                yield Frame(n - skip, frame.pts, frame.time_base, tuple(np.array(p) for p in frame.planes), frame.spec)


def measure(restorer: Restorer, path: Path, settings: Sequence[SpendOptions], o: argparse.Namespace) -> dict[str, Any]:
    ways = [Setting(s) for s in settings]
    whole_seconds, nothing, count = 0.0, 0.0, 0
    for frame in frames_of(path, o.skip, o.frames):
        if count == 0:
            restorer.correction(frame)  # what an engine prepares at its first frame is not the frame's cost
        began = time.perf_counter()
        full = restorer.correction(frame)
        truth = apply_correction(frame, full)
        took = time.perf_counter() - began
        whole_seconds += took
        nothing += squared_error(frame, truth)
        count += 1
        for way in ways:
            way.step(restorer, frame, truth, full, approximate=o.approximate)
            way.seconds += took if way.whole else 0.0
    rows = []
    for way in ways:
        error = sum(way.errors) / count
        rows.append(
            {
                "threshold": way.options.threshold,
                "halo": way.options.halo,
                "saved": way.total / way.pixels,
                "faster": None if o.approximate else whole_seconds / way.seconds,
                "psnr": decibels(error),
                "worst": decibels(max(way.errors)),
                "kept": 10 * math.log10(nothing / count / error) if error > 0 else math.inf,
                "windows": way.windows / count,
            }
        )
    return {"clip": path.name, "frames": count, "none": decibels(nothing / count), "rows": rows}


def show(result: dict[str, Any]) -> str:
    heads = ["threshold", "halo", "saved", "faster", "PSNR", "worst frame", "kept", "windows a frame"]
    rows = []
    for r in result["rows"]:
        faster = "–" if r["faster"] is None else f"{r['faster']:.2f}x"
        levels = [f"{r[name]:.1f} dB" for name in ("psnr", "worst", "kept")]
        rows.append(
            [f"{r['threshold']:g}", f"{r['halo']}", f"{r['saved']:.2f}x", faster, *levels, f"{r['windows']:.1f}"]
        )
    return f"{result['clip']}, {result['frames']} frames, none {result['none']:.1f} dB\n\n{table(heads, rows)}"


def job(path: Path, o: argparse.Namespace) -> dict[str, Any]:
    """Frames a second of process_video with and without --reuse, in turns."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    share = None
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(o.rounds + 1):
            for reuse in (False, True):
                summary = process_video(
                    path, Path(folder) / "out.mkv", model=o.model, weights=o.weights, reuse=reuse, overwrite=True,
                    device=o.device, duration=o.seconds,
                )  # fmt: skip
                share = summary.network_share if reuse else share
                if turn:  # the first warms up
                    seconds[reuse].append((summary.seconds - summary.first_frame_seconds) / (summary.frames - 1))
    plain_time, reuse_time = (float(np.median(seconds[r])) for r in (False, True))
    return {
        "clip": path.name, "frames": summary.frames, "seconds_plain": plain_time, "seconds_reuse": reuse_time,
        "ratio": plain_time / reuse_time, "fps": 1 / reuse_time, "network_share": share,
    }  # fmt: skip


def chart(results: Sequence[dict[str, Any]], halo: int) -> str:
    """Work saved against fidelity over the thresholds, as an SVG of its own."""
    width, height, left, right, top, bottom = 620, 360, 52, 120, 16, 46
    series = [(r["clip"], [q for q in r["rows"] if q["halo"] == halo]) for r in results]
    points = [q for _, rows in series for q in rows]
    x_top = math.ceil(max(q["saved"] for q in points))
    psnrs = [q["psnr"] for q in points]
    low, high = 5 * math.floor(min(*psnrs, 45) / 5), 5 * math.ceil(max(psnrs) / 5)

    def across(x: float) -> float:
        return left + (x - 1) / max(1, x_top - 1) * (width - left - right)

    def down(y: float) -> float:
        return top + (high - y) / max(1, high - low) * (height - top - bottom)

    text = 'font-family="sans-serif" font-size="12" fill="#808080"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">']
    parts.append("<title>Work saved against PSNR from the full run</title>")
    for y in range(low, high + 1, 5):
        parts.append(f'<path d="M{left} {down(y):.1f}H{width - right}" stroke="#80808050"/>')
        parts.append(f'<text x="{left - 6}" y="{down(y) + 4:.1f}" text-anchor="end" {text}>{y}</text>')
    for x in range(1, x_top + 1):
        parts.append(f'<path d="M{across(x):.1f} {top}V{height - bottom}" stroke="#80808050"/>')
        parts.append(f'<text x="{across(x):.1f}" y="{height - bottom + 16}" text-anchor="middle" {text}>{x}x</text>')
    middle = (left + width - right) / 2
    parts.append(
        f'<text x="{middle}" y="{height - 8}" text-anchor="middle" {text}>fewer pixels through the network</text>'
    )
    parts.append(f'<text transform="translate(14 {height / 2}) rotate(-90)" text-anchor="middle" {text}>'
                 "PSNR from the full run, dB</text>")  # fmt: skip
    for (name, rows), color in zip(series, _COLORS, strict=False):
        rows = sorted(rows, key=lambda q: q["saved"])
        path = " ".join(f"{across(q['saved']):.1f},{down(q['psnr']):.1f}" for q in rows)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for q in rows:
            x, y = across(q["saved"]), down(q["psnr"])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
            parts.append(f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle" {text}>{q["threshold"]:g}</text>')
        label = name.rsplit(".", 1)[0].removeprefix("fixed_camera_")
        x, y = across(rows[-1]["saved"]) + 10, down(rows[-1]["psnr"]) + 4
        look = f'font-family="sans-serif" font-size="13" fill="{color}"'
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {look}>{label}</text>')
    return "\n".join([*parts, "</svg>\n"])


def numbers(kind: type) -> Any:
    return lambda text: [kind(part) for part in text.split(",")]


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    default = SpendOptions(reuse=True)
    parser.add_argument("--thresholds", type=numbers(float), default=[default.threshold, 2.0, 3.0, 8.0, 12.0])
    parser.add_argument("--halos", type=numbers(int), default=[default.halo, 0, 8, 32])
    parser.add_argument("--refresh", type=int, default=default.refresh)
    parser.add_argument("--skip", type=int, default=0, help="frames left out at the start")
    parser.add_argument("--frames", type=int, help="frames of each clip. Default: all")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    parser.add_argument("--approximate", action="store_true", help="see above")
    parser.add_argument("--job", action="store_true", help="whole jobs, with and without --reuse, in turns")
    parser.add_argument("--rounds", type=int, default=3, help="measured jobs of each way")
    parser.add_argument("--seconds", type=float, help="seconds of each clip in --job. Default: all")
    parser.add_argument("--chart", type=Path, help="write the curve as SVG")
    parser.add_argument("--json", action="store_true")
    o = parser.parse_args()
    if o.threads is not None:
        torch.set_num_threads(o.threads)
    if o.job:
        results = [job(clip, o) for clip in o.clips]
        for r in results:
            print(json.dumps(r) if o.json else f"{r['clip']}: {r['fps']:.1f} fps, {r['ratio']:.3f} of the full run's")
        return 0
    pairs = [(t, o.halos[0]) for t in o.thresholds] + [(o.thresholds[0], h) for h in o.halos[1:]]
    settings = [SpendOptions(reuse=True, threshold=t, halo=h, refresh=o.refresh) for t, h in pairs]
    restorer = Restorer(
        o.model, weights=o.weights, device=o.device, precision=o.precision, engine=o.engine, tiling="whole"
    )
    engine = facts(restorer.engine)
    where = {**machine(restorer.engine.device), "engine": f"{engine.name} {engine.precision}"}
    if not o.json:
        print(" · ".join(f"{k} {v}" for k, v in where.items()), flush=True)
    results = []
    for clip in o.clips:
        results.append(measure(restorer, clip, settings, o))
        if not o.json:
            print(f"\n{show(results[-1])}", flush=True)
    if o.json:
        print(json.dumps(plain({"machine": where, "results": results}), indent=2))
    if o.chart is not None:
        o.chart.write_text(chart(results, o.halos[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
