"""Clips made inside the tests, whose frames carry their own number in the picture.

The number is drawn as 16 blocks of 16x16 pixels from the top left corner, row by row: one white and one black
reference, then 14 bits, highest first. Reading compares with the references, so it survives lossy codecs, any bit
depth, limited and full range, and a restoration that shifts the levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def uneven_pts(frames: int) -> list[int]:
    """Of so many frames at a rate that varies, in ticks of 1/90000 s."""
    pts = [0]
    for i in range(frames - 1):
        pts.append(pts[-1] + (3003, 1500, 4004)[i % 3])
    return pts


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


# --- frames of noise in any pixel format, and an independent way to read them ------------------------------------

#: P010 and the like keep their bits in the upper part of sixteen.
_UPPER_BITS = {"p010le": 6, "p012le": 4, "p210le": 6}


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded frame: presentation time in seconds, and its components by name (Y U V, R G B, A) as code values."""

    time: Fraction | None
    parts: dict[str, npt.NDArray[Any]]
    native: av.VideoFrame

    def same(self, other: Picture) -> bool:
        """Bit-identical components."""
        return self.parts.keys() == other.parts.keys() and all(
            np.array_equal(p, other.parts[k]) for k, p in self.parts.items()
        )


def components(frame: av.VideoFrame) -> dict[str, npt.NDArray[Any]]:
    """Components of a frame by name, from its buffers and FFmpeg's description of the format alone."""
    name = frame.format.name
    wide = frame.format.components[0].bits > 8
    kind = np.dtype("<u2" if wide else "u1")

    def rows(n: int) -> npt.NDArray[Any]:
        plane = frame.planes[n]
        buffer = np.frombuffer(bytes(plane), kind)
        return buffer.reshape(plane.height, plane.line_size // kind.itemsize)

    w, h = frame.width, frame.height
    first = frame.format.components
    if name in ("nv12", "nv16", "p010le", "p012le", "p210le"):
        shift = _UPPER_BITS.get(name, 0)
        cw = -(-w // 2)
        pairs = rows(1)[:, : 2 * cw] >> shift
        return {"Y": rows(0)[:, :w] >> shift, "U": pairs[:, 0::2], "V": pairs[:, 1::2]}
    if name in ("yuyv422", "uyvy422"):
        packed = rows(0)[:, : 2 * w]
        y, u, v = (0, 1, 3) if name == "yuyv422" else (1, 0, 2)
        return {"Y": packed[:, y::2], "U": packed[:, u::4], "V": packed[:, v::4]}
    base = name.removesuffix("24").removesuffix("48le").removesuffix("64le")
    if len(frame.planes) == 1 and set(base) <= set("rgba0") and len(base) in (3, 4):
        packed = rows(0)[:, : w * len(base)]
        return {c.upper(): packed[:, i :: len(base)] for i, c in enumerate(base) if c != "0"}
    if name.startswith("gbr"):
        return {c: rows(i)[:h, :w] for i, c in enumerate("GBRA"[: len(first)])}
    if name.startswith(("yuv", "gray")):
        return {c: rows(p.plane)[: p.height, : p.width] for c, p in zip("YUVA", first, strict=False)}
    raise ValueError(f"no reading of {name} here")


def noise_frame(pix_fmt: str, size: tuple[int, int], rng: np.random.Generator) -> av.VideoFrame:
    """Noise over all code values of a format, the smallest and the largest among them in every plane."""
    frame = av.VideoFrame(*size, pix_fmt)
    bits = frame.format.components[0].bits
    kind = np.dtype("<u2" if bits > 8 else "u1")
    shift = _UPPER_BITS.get(pix_fmt, 0)
    for plane in frame.planes:
        codes = rng.integers(0, 1 << bits, plane.buffer_size // kind.itemsize).astype(kind)
        codes[: 8 * 8 : 2] = 0
        codes[1 : 8 * 8 : 2] = (1 << bits) - 1
        plane.update((codes << shift).astype(kind).tobytes())
    return frame


def write_noise_clip(
    path: Path,
    pix_fmt: str,
    *,
    size: tuple[int, int] = (64, 48),
    frames: int = 3,
    codec: str = "ffv1",
    rate: Fraction | int = 25,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    color_range: int = 1,
    matrix: int = 2,
    primaries: int = 2,
    transfer: int = 2,
    options: Mapping[str, str] | None = None,
    flags: int = 0,
    seed: int = 0,
) -> Path:
    """Write frames of noise losslessly and return the path. Colour codes as in ITU-T H.273, color_range 1 or 2."""
    rng = np.random.default_rng(seed)
    tick = time_base or 1 / Fraction(rate)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(rate), options=dict(options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = tick
        context = stream.codec_context
        context.flags |= flags
        context.color_range, context.colorspace = color_range, matrix
        context.color_primaries, context.color_trc = primaries, transfer
        for i in range(frames):
            frame = noise_frame(pix_fmt, size, rng)
            frame.pts = pts[i] if pts is not None else round(i / Fraction(rate) / tick)
            frame.time_base = tick
            frame.color_range, frame.colorspace = color_range, matrix
            frame.color_primaries, frame.color_trc = primaries, transfer
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_clip(path: Path, stream: int = 0) -> list[Picture]:
    """All frames of a video stream, by PyAV alone. A time is exact; frames keep their own memory."""
    pictures = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=stream):
            time = None if frame.pts is None else frame.pts * Fraction(frame.time_base or 1)
            pictures.append(Picture(time, components(frame), frame))
    return pictures


def read_packets(path: Path, index: int) -> list[tuple[Fraction | None, bytes]]:
    """(presentation time in seconds, payload) of every packet of stream ``index``."""
    found = []
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams[index]):
            if packet.size:
                time = None if packet.pts is None else packet.pts * Fraction(packet.time_base)
                found.append((time, bytes(packet)))
    return found


def moov_first(path: Path, target: Path) -> Path:
    """The MP4 at ``path`` with its index before its payload, so that a cut leaves a file that opens."""
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as out:
        streams = {s.index: out.add_stream_from_template(s, opaque=True) for s in source.streams}
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return target
