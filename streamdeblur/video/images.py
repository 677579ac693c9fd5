"""Single pictures in and out, with the profile, orientation and camera data that they carry.

Pixels go through the same component planes as video. What FFmpeg's image encoders would drop (EXIF, ICC profiles, text)
is taken from the source file and put into the new one, segment by segment: JPEG markers (ITU-T T.81, B.2.4) and PNG
chunks (RFC 2083, 3.2).
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from streamdeblur.errors import EncoderError, OutputError, UsageError
from streamdeblur.frames import Frame
from streamdeblur.video.encoders import layouts_for
from streamdeblur.video.multipage import pictures_in
from streamdeblur.video.opening import reason
from streamdeblur.video.pixfmt import LAYOUTS, Layout, write_components
from streamdeblur.video.reader import DecodedFrame, OnError, VideoReader
from streamdeblur.video.tags import SourceTags
from streamdeblur.video.writer import check_writable, partial_path

log = logging.getLogger(__name__)

#: FFmpeg's encoder for a file name.
CODECS = {
    ".png": "png",
    ".jpg": "mjpeg",
    ".jpeg": "mjpeg",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
    ".webp": "libwebp",
    ".ppm": "ppm",
    ".pgm": "pgm",
}
_JPEG_QUANTISER = 2  # FFmpeg's scale of 1 to 31; 2 is what cameras write
_LAMBDA = 118  # FF_QP2LAMBDA


def is_image(path: str | os.PathLike[str]) -> bool:
    """True for a file name that ends like a picture."""
    return Path(path).suffix.lower() in CODECS


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The pictures in a folder, by name. Raises UsageError when there is none."""
    found = sorted(p for p in Path(folder).iterdir() if p.is_file() and is_image(p) and not p.name.startswith("."))
    if not found:
        raise UsageError(f"folder {os.fspath(folder)} holds no image", f"looked for {', '.join(CODECS)}")
    return found


def read_image(
    path: str | os.PathLike[str], index: int = 0, *, on_error: OnError = "fail"
) -> tuple[DecodedFrame, SourceTags]:
    """A picture as a frame, numbered ``index``; the first one of several, with a warning.

    on_error: "bypass" takes what can be seen of a damaged JPEG, with a warning. Raises UnreadableInput or BrokenStream.
    """
    with VideoReader(path, copy_streams=False, on_error=on_error) as reader:
        count = pictures_in(path)
        if count > 1:
            log.warning("%s holds %d pictures: only the first is read, %d are left out", path, count, count - 1)
        frame = next(iter(reader))
        numbered = DecodedFrame(index, None, Fraction(1), frame.planes, frame.spec, frame.native)
        return numbered, reader.tags


def write_image(
    path: str | os.PathLike[str], frame: Frame, tags: SourceTags, *, like: str | os.PathLike[str] | None = None
) -> str:
    """Write a frame as a picture; ``like`` is the file whose EXIF, profile and text go along. Returns the pixel format.

    The frame's own layout is kept where the format takes it; YCbCr in an RGB format is converted by its own matrix and
    range. Written beside the target and renamed. Raises EncoderError, OutputError, DiskFull.
    """
    target = Path(path)
    codec = CODECS.get(target.suffix.lower())
    if codec is None:
        raise UsageError(f"{target} does not end like an image", f"use one of {', '.join(CODECS)}")
    check_writable(target)
    data, name = _encode(codec, frame, tags)
    if like is not None:
        data = _with_metadata(data, Path(like))
    partial = partial_path(target)
    try:
        with open(partial, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, target)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{target} can't be written: {e.strerror}") from e
    return name


def changes(source: Layout, written: str, ending: str) -> Iterator[str]:
    """What a picture of layout ``source`` loses in one of the pixel format ``written``, a line each without its name.

    YCbCr that becomes RGB, or the other way round, is none: that is how these types differ.
    """
    layout = LAYOUTS[written]
    kind = ending.lstrip(".")
    if layout.depth < source.depth:
        yield f"{source.depth} bits a component become {layout.depth} in .{kind}; .png and .tif would keep them"
    if source.alpha and not layout.alpha:
        yield f"its alpha plane is left out of .{kind}; .png and .tif would keep it"
    if source.model == "gray" and layout.model != "gray":
        yield f"gray becomes three components in .{kind}; .png and .tif would keep it"


def _encode(codec: str, frame: Frame, tags: SourceTags) -> tuple[bytes, str]:
    spec = frame.spec
    color = spec.color
    source = tags.layout
    if codec == "tiff" and color.model == "rgb" and color.alpha and color.depth in (8, 16):
        # FFmpeg's TIFF leaves out the tag that says what alpha means, and readers then take colours as premultiplied.
        r, g, b, a = frame.planes
        done, data = cv2.imencode(".tif", np.dstack((b, g, r, a)))
        if not done:
            raise EncoderError(f"TIFF can't hold {spec.width}x{spec.height} {source.name}", "write .png instead")
        return data.tobytes(), source.name
    matching = layouts_for(codec, color, source)
    if not matching and codec == "mjpeg" and color.model == "yuv" and color.depth == 8:
        # Limited range under a name that JPEG does not have: the values stay, and are read as limited again.
        matching = [LAYOUTS[n] for n in ("yuv420p", "yuv422p", "yuv444p") if LAYOUTS[n].same_components(source)]
    formats = [f.name for f in av.Codec(codec, "w").video_formats or ()]
    if not matching and codec in ("png", "tiff", "ppm", "pgm"):
        # Big-endian deep formats hold the same components.
        matching = [
            LAYOUTS[n]
            for n in formats
            if n in LAYOUTS
            and LAYOUTS[n].model == source.model
            and LAYOUTS[n].depth >= source.depth
            and LAYOUTS[n].alpha == source.alpha
        ]
    if matching:
        layout = matching[0]
        picture = av.VideoFrame(spec.width, spec.height, layout.name)
        write_components(picture, layout, frame.planes, color)
    else:
        plain = av.VideoFrame(spec.width, spec.height, source.name)
        write_components(plain, source, frame.planes, color)
        layout, picture = _convert(plain, formats, frame, tags)
    try:
        context: Any = av.CodecContext.create(codec, "w")
        context.width, context.height, context.pix_fmt = spec.width, spec.height, layout.name
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
        if codec == "mjpeg":
            context.color_range = 2 if color.full_range else 1
            context.qmin = 1
            context.qscale = True
            context.global_quality = _LAMBDA * _JPEG_QUANTISER
            context.options = {"strict": "unofficial", "huffman": "optimal"}
            picture.color_range = context.color_range
        elif codec == "libwebp":
            context.options = {"lossless": "1"}
        picture.pts, picture.time_base = 0, Fraction(1, 25)
        packets = [*context.encode(picture), *context.encode(None)]
    except (av.error.FFmpegError, ValueError, OSError) as e:
        raise EncoderError(f"{codec} can't write {spec.width}x{spec.height} {layout.name}: {reason(e)}") from e
    return b"".join(bytes(p) for p in packets), layout.name


def _convert(plain: av.VideoFrame, formats: list[str], frame: Frame, tags: SourceTags) -> tuple[Any, av.VideoFrame]:
    """To the widest RGB (or, for JPEG, full-range YCbCr) format that the encoder takes."""
    color = frame.spec.color
    wanted = [n for n in formats if n in LAYOUTS and LAYOUTS[n].alpha <= color.alpha]
    deep = color.depth > 8

    def rank(name: str) -> tuple[bool, bool, bool]:
        layout = LAYOUTS[name]
        return (
            layout.alpha != color.alpha,
            (layout.depth > 8) != deep,
            layout.chroma_shift != (0, 0) or (layout.model == "gray") != (color.model == "gray"),
        )

    if not wanted:
        raise EncoderError(f"no pixel format of this image type takes {tags.layout.name}", "write .png instead")
    name = min(wanted, key=rank)
    codes = {"bt709": 1, "bt601": 5, "bt2020": 9, "smpte240m": 7, "fcc": 4}
    space = codes[color.matrix]
    to_rgb = LAYOUTS[name].model == "rgb"
    picture = VideoReformatter().reformat(
        plain,
        format=name,
        src_colorspace=space if color.model == "yuv" else None,
        dst_colorspace=space if to_rgb or color.model == "yuv" else 5,
        src_color_range=2 if color.full_range else 1,
        dst_color_range=2,
        interpolation="BICUBIC",
        threads=1,
    )
    return LAYOUTS[name], picture


# --- metadata -----------------------------------------------------------------------------------------------------

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEEP = {b"iCCP", b"eXIf", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"cICP"}


def _with_metadata(data: bytes, like: Path) -> bytes:
    try:
        source = like.read_bytes()
    except OSError:
        return data
    if source[:2] == b"\xff\xd8" and data[:2] == b"\xff\xd8":
        return data[:2] + b"".join(_jpeg_segments(source)) + data[2:]
    if source[:8] == _PNG and data[:8] == _PNG:
        kept = b"".join(chunk for kind, chunk in _png_chunks(source) if kind in _PNG_KEEP)
        out = _PNG
        for kind, chunk in _png_chunks(data):
            if kind not in _PNG_KEEP:
                out += chunk
            if kind == b"IHDR":
                out += kept
        return out
    if b"Exif\0\0" in source[:4096] or b"ICC_PROFILE" in source[:65536] or b"iCCP" in source[:4096]:
        log.warning("%s: its EXIF data or colour profile has no place in another image format", like)
    return data


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """APP1 to APP15 but Adobe's APP14 (which speaks of the coding itself), and comments, before the scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        kind = data[position + 1]
        if kind in (0xD8, 0xFF):
            position += 1 if kind == 0xFF else 2
            continue
        if kind in (0xDA, 0xD9):
            return
        (length,) = struct.unpack(">H", data[position + 2 : position + 4])
        if (0xE1 <= kind <= 0xEF and kind != 0xEE) or kind == 0xFE:
            yield data[position : position + 2 + length]
        position += 2 + length


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        yield data[position + 4 : position + 8], data[position : position + 12 + length]
        position += 12 + length
