"""Clips made inside the tests, whose frames carry their own number in the picture.

The number is drawn as 16 blocks of 16x16 pixels from the top left corner, row by row: one white and one black
reference, then 14 bits, highest first. Reading compares with the references, so it survives lossy codecs, any bit
depth, limited and full range, and a restoration that shifts the levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace

BLOCK = 16
BITS = 14
BLOCKS = BITS + 2


def _cells(width: int, height: int) -> list[tuple[slice, slice]]:
    columns = min(BLOCKS, width // BLOCK)
    rows = -(-BLOCKS // columns) if columns else BLOCKS
    if columns == 0 or rows * BLOCK > height:
        raise ValueError(f"{width}x{height} has no room for {BLOCKS} blocks of {BLOCK}x{BLOCK}")
    return [
        (slice(r * BLOCK, (r + 1) * BLOCK), slice(c * BLOCK, (c + 1) * BLOCK))
        for r, c in (divmod(i, columns) for i in range(BLOCKS))
    ]


def draw_number(rgb: npt.NDArray[np.uint8], number: int) -> None:
    """Write ``number`` (0 to 16383) into an (H, W, 3) picture, in place."""
    if not 0 <= number < 1 << BITS:
        raise ValueError(f"number {number} does not fit into {BITS} bits")
    bits = [1, 0, *((number >> (BITS - 1 - i)) & 1 for i in range(BITS))]
    for (rows, columns), bit in zip(_cells(rgb.shape[1], rgb.shape[0]), bits, strict=True):
        rgb[rows, columns] = 255 if bit else 0


def read_number(luma: npt.NDArray[Any]) -> int:
    """The number in an (H, W) luma plane of any depth; ValueError where there is none."""
    means = []
    for rows, columns in _cells(luma.shape[1], luma.shape[0]):
        means.append(float(luma[rows, columns][4:-4, 4:-4].mean()))
    white, black, *bits = means
    if white - black < 40:
        raise ValueError(f"no frame number here: the white reference reads {white:.0f}, the black {black:.0f}")
    number = 0
    for level in bits:
        position = (level - black) / (white - black)
        if 0.3 < position < 0.7:
            raise ValueError(f"a bit of the frame number is neither black nor white: {position:.2f}")
        number = number << 1 | (position > 0.5)
    return number


def numbered_picture(number: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB: a coloured pattern that moves with ``number``, which is drawn over it. size: (W, H)."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    picture = np.stack(
        [
            128 + 90 * np.sin((x + 3 * number) / 17),
            128 + 90 * np.sin((y - 2 * number) / 23 + x / 41),
            (2 * x + y + 5 * number) % 256,
        ],
        axis=-1,
    ).astype(np.uint8)
    draw_number(picture, number)
    return picture


def write_numbered_clip(
    path: Path,
    frames: int | Sequence[int],
    size: tuple[int, int] = (320, 240),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = 30,
    *,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    container_format: str | None = None,
    full_range: bool = False,
    matrix: Colorspace = Colorspace.ITU709,
    audio: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a clip of numbered pictures and return its path.

    frames: how many, numbered from 0, or their numbers. size: (width, height). rate: frames a second. pts: one a
    frame, in ``time_base`` (default 1/90000), for variable frame rate; without it frame i has pts i in 1/rate.
    options: of the encoder; container_options: of the muxer. audio: a mono AAC tone of the same length.
    """
    numbers = list(range(frames)) if isinstance(frames, int) else list(frames)
    rate = Fraction(rate)
    tick = time_base or (Fraction(1, 90000) if pts is not None else 1 / rate)
    stamps = list(pts) if pts is not None else [round(i / rate / tick) for i in range(len(numbers))]
    if len(stamps) != len(numbers):
        raise ValueError(f"{len(stamps)} pts for {len(numbers)} frames")

    with av.open(str(path), "w", format=container_format, options=dict(container_options or {})) as container:
        container.metadata.update(metadata or {})
        stream: Any = container.add_stream(codec, rate=rate, options=dict(options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = tick
        stream.time_base = tick
        color_range = ColorRange.JPEG if full_range else ColorRange.MPEG
        stream.codec_context.color_range = int(color_range)
        if not pix_fmt.startswith(("rgb", "gbr", "bgr", "gray")):
            stream.codec_context.colorspace = int(matrix)
        sound: Any = None
        if audio:
            sound = container.add_stream("aac", rate=48000, layout="mono")
        for number, stamp in zip(numbers, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, size), format="rgb24")
            frame = frame.reformat(
                format=pix_fmt,
                dst_colorspace=matrix,
                src_color_range=ColorRange.JPEG,
                dst_color_range=color_range,
            )
            frame.pts = stamp
            frame.time_base = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            last = stamps[-1] * tick if stamps else Fraction(0)
            samples = int((last + 1 / rate) * 48000)
            wave = (0.2 * np.sin(np.arange(samples) * (2 * np.pi * 440 / 48000))).astype(np.float32)[None]
            chunk = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            chunk.sample_rate = 48000
            chunk.pts = 0
            chunk.time_base = Fraction(1, 48000)
            container.mux(sound.encode(chunk))
            container.mux(sound.encode(None))
    return path
