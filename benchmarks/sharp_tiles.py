"""Which limit of the blur score leaves sharp tiles alone and blurred ones not: the tables in docs/reuse.md.

    python benchmarks/sharp_tiles.py DATA [--clips CLIP...]

DATA: a folder with blur/ and sharp/, whose pictures have the same names; several may be given. Tells, for each limit,
the share of sharp tiles and of blurred tiles that fall below it, and the share of the blur's squared error that those
hold: at full size, at half, and at half through x264. --clips: frames of videos as they are and smeared by motion.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import cv2
import numpy as np
import numpy.typing as npt

from streamdeblur.restore.blur import blur_scores

TILE = 64
LIMITS = (0.45, 0.5, 0.55, 0.6, 0.65)
Luma = npt.NDArray[Any]


def half(luma: Luma) -> Luma:
    return np.asarray(cv2.resize(luma, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))


def coded(luma: Luma, crf: int) -> Luma:
    """The second of three equal frames, through x264."""
    high, wide = (n - n % 2 for n in luma.shape)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = wide, high, "gray"
        for n in range(3):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(luma[:high, :wide]), format="gray")
            frame.pts = n
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer, "r") as result:
        return list(result.decode(video=0))[1].to_ndarray(format="gray")


def smeared(luma: Luma, length: int, degrees: float) -> Luma:
    line = np.zeros((length, length), np.float32)
    line[length // 2] = 1
    kernel = cv2.warpAffine(line, cv2.getRotationMatrix2D((length // 2, length // 2), degrees, 1), (length, length))
    return np.asarray(cv2.filter2D(luma, -1, kernel / kernel.sum()))


def tile_sums(values: Luma) -> Luma:
    rows, columns = (range(0, n, TILE) for n in values.shape)
    return np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)


def row(name: str, found: list[tuple[Luma, Luma, Luma]]) -> None:
    """found: (scores of sharp tiles, of blurred ones, the blur's squared error in those)."""
    sharp, blurred, error = (np.concatenate([part.ravel() for part in parts]) for parts in zip(*found, strict=True))
    cells = [
        f"{np.mean(sharp < t):.0%}, {np.mean(blurred < t):.0%}, {error[blurred < t].sum() / max(error.sum(), 1):.1%}"
        for t in LIMITS
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def judged(sharp: Luma, blurred: Luma) -> tuple[Luma, Luma, Luma]:
    error = (blurred.astype(np.float32) - sharp) ** 2
    return blur_scores(sharp, TILE), blur_scores(blurred, TILE), tile_sums(error)


def frames(path: str, count: int) -> Iterator[Luma]:
    with av.open(path) as container:
        step = max(1, (container.streams.video[0].frames or 300) // count)
        for n, frame in enumerate(container.decode(video=0)):
            if n % step == step // 2:
                yield frame.to_ndarray(format="gray")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="folders with blur/ and sharp/")
    parser.add_argument("--clips", nargs="+", default=[])
    parser.add_argument("--frames", type=int, default=4, help="of each clip")
    a = parser.parse_args()
    print(f"sharp tiles skipped, blurred tiles skipped, error lost\n\n| | {' | '.join(map(str, LIMITS))} |")
    print("|---" * (len(LIMITS) + 1) + "|")
    ways: dict[str, Callable[[Luma], Luma]] = {
        "as they are": lambda y: y,
        "half size": half,
        "half size, CRF 28": lambda y: coded(half(y), 28),
        "half size, CRF 34": lambda y: coded(half(y), 34),
    }
    pairs = [(p, Path(d) / "sharp" / p.name) for d in a.data for p in sorted((Path(d) / "blur").iterdir())]
    for name, way in ways.items() if pairs else ():
        read = [tuple(way(np.asarray(cv2.imread(str(p), cv2.IMREAD_GRAYSCALE))) for p in pair) for pair in pairs]
        row(name, [judged(sharp, blurred) for blurred, sharp in read])
    for clip in a.clips:
        for length in (5, 9):
            shown = enumerate(frames(clip, a.frames))
            row(
                f"{Path(clip).name}, {length} px",
                [judged(y, smeared(y, length, (0, 45, 90, 20)[n % 4])) for n, y in shown],
            )


if __name__ == "__main__":
    main()
