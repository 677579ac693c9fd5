"""Which encoder takes these frames, and with which settings.

FFmpeg lists encoders that do not open (NVENC without a GPU) and pixel formats that open at some sizes only (x264 takes
no odd-sized 4:2:0), so the answer is found by opening a real codec context, never by a table alone. Depth, chroma and
size are never changed to suit an encoder: the next encoder that can is used, and the caller says so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import av.error

from streamdeblur.config import CRF_LIMITS
from streamdeblur.errors import EncoderError, UsageError
from streamdeblur.frames import ColorSpec, FieldOrder
from streamdeblur.video.opening import reason
from streamdeblur.video.pixfmt import LAYOUTS, Layout
from streamdeblur.video.scheduling import kept_scheduling
from streamdeblur.video.tags import SourceTags

log = logging.getLogger(__name__)

#: What a user may call an encoder, and FFmpeg's name for it.
ENCODERS: dict[str, str] = {
    "x264": "libx264",
    "x264rgb": "libx264rgb",
    "x265": "libx265",
    "av1": "libsvtav1",
    "svtav1": "libsvtav1",
    "vp9": "libvpx-vp9",
    "ffv1": "ffv1",
    "h264_nvenc": "h264_nvenc",
    "hevc_nvenc": "hevc_nvenc",
    "av1_nvenc": "av1_nvenc",
}
_CRF_LIMIT = {ENCODERS[name]: limit for name, limit in CRF_LIMITS.items()}
_LOSSY = ("libx264", "libx264rgb", "libx265", "libsvtav1", "libvpx-vp9", "ffv1")
_LOSSLESS = ("ffv1", "libx264", "libx264rgb", "libx265", "libvpx-vp9")
#: Constant-quality settings that look alike; crf 18 of x264 is the yardstick.
_DEFAULT_CRF = {"libx264": 18, "libx264rgb": 18, "libx265": 20, "libsvtav1": 24, "libvpx-vp9": 24}
_WHOLE_CRF = ("libsvtav1", "libvpx-vp9")
#: What tells a decoder which lines of a frame belong together. x265 can only code every field as a picture.
_KEEPS_FIELDS = ("libx264", "libx264rgb", "ffv1")
#: Containers without presentation times: pictures are shown in the order in which they are decoded.
_ORDERED = ("avi",)
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
_SVT_PRESET = dict(zip(_PRESETS, (12, 11, 10, 9, 8, 7, 5, 4, 3), strict=True))
_VP9_SPEED = dict(zip(_PRESETS, (8, 8, 6, 5, 4, 2, 1, 1, 0), strict=True))
_NVENC_PRESET = dict(zip(_PRESETS, ("p1", "p1", "p2", "p3", "p4", "p4", "p5", "p6", "p7"), strict=True))


@dataclass(frozen=True, slots=True)
class EncoderRequest:
    """What the user asked for. encoder is a key of ENCODERS or "auto"; crf None takes the encoder's default."""

    encoder: str = "auto"
    crf: float | None = None
    preset: str = "veryfast"
    lossless: bool = False
    threads: int = 0


@dataclass(frozen=True, slots=True)
class EncoderChoice:
    """An encoder that was seen to open: FFmpeg's name, the pixel format it gets and its options."""

    codec: str
    layout: Layout
    options: dict[str, str]
    lossless: bool
    notes: tuple[str, ...] = field(default=())


def candidates(request: EncoderRequest, tags: SourceTags, supported: frozenset[str] | None) -> Iterator[str]:
    """Encoders to try, best first; ``supported`` are the codec names that the container takes, None for any."""
    if request.encoder != "auto":
        if request.encoder not in ENCODERS:
            import difflib

            near = difflib.get_close_matches(request.encoder, [*ENCODERS, "auto"], 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(
                f"encoder {request.encoder!r} is unknown", f"{hint}choose one of auto, {', '.join(ENCODERS)}"
            )
        first = ENCODERS[request.encoder]
    elif request.lossless:
        first = _LOSSLESS[0]
    elif tags.transfer in (16, 18) and tags.layout.model == "yuv":  # PQ, HLG: HDR belongs into HEVC
        first = "libx265"
    else:
        first = _LOSSY[0]
    rest = _LOSSLESS if request.lossless else _LOSSY
    for name in dict.fromkeys((first, *rest)):
        if supported is None or _CODEC_ID.get(name, name) in supported:
            yield name


_CODEC_ID = {
    "libx264": "h264",
    "libx264rgb": "h264",
    "libx265": "hevc",
    "libsvtav1": "av1",
    "libvpx-vp9": "vp9",
    "h264_nvenc": "h264",
    "hevc_nvenc": "hevc",
    "av1_nvenc": "av1",
}


def layouts_for(codec: str, color: ColorSpec, source: Layout) -> list[Layout]:
    """Layouts of ``codec`` that hold every bit of the source, best first.

    Same components first (the source's own format, with alpha before without), then a greater depth or a finer chroma
    grid, which only formats need that no lossy encoder knows (9 bit, 4:1:1, 4:1:0).
    """
    try:
        formats = av.Codec(codec, "w").video_formats or ()
    except (av.error.FFmpegError, ValueError):
        return []
    scored: list[tuple[tuple[int, ...], Layout]] = []
    for f in formats:
        layout = LAYOUTS.get(f.name)
        if layout is None or layout.model != source.model:
            continue
        if layout.full_range is not None and layout.model != "rgb" and layout.full_range != color.full_range:
            continue
        dx = source.chroma_shift[0] - layout.chroma_shift[0]
        dy = source.chroma_shift[1] - layout.chroma_shift[1]
        up = layout.depth - source.depth
        if dx < 0 or dy < 0 or up < 0 or (not layout.dtype.isnative and layout.depth > 8):
            continue
        semi = any(c.step != 1 for c in layout.components)
        alpha_lost = source.alpha and not layout.alpha
        if layout.alpha and not source.alpha:
            continue
        key = (dx + dy, up, int(alpha_lost), int(layout.name != source.name), int(semi))
        scored.append((key, layout))
    return [layout for _, layout in sorted(scored, key=lambda pair: pair[0])]


def choose(
    request: EncoderRequest,
    tags: SourceTags,
    color: ColorSpec,
    size: tuple[int, int],
    *,
    field_order: FieldOrder = "progressive",
    supported: frozenset[str] | None = None,
    container: str = "",
) -> EncoderChoice:
    """The first encoder that opens with these frames at this size (width, height).

    First those that take the very components, then those that take them after a lossless widening of depth or chroma,
    and in a lossy job FFV1 last of all. Raises EncoderError when none does, naming what was tried.
    """
    source = tags.layout
    tried: list[str] = []
    names = list(candidates(request, tags, supported))
    interlaced = field_order != "progressive"
    if interlaced:  # rather a larger file than fields that nobody knows to be fields
        names[1:] = sorted(names[1:], key=lambda n: n not in _KEEPS_FIELDS)
    # Last resort of a lossy job: lossless FFV1 takes nearly everything, at ten times the size.
    resort = [] if interlaced or request.lossless or names[:1] == ["ffv1"] else [n for n in names if n == "ffv1"]
    main = [n for n in names if n not in resort]
    for codecs, widened in ((main, False), (main, True), (resort, False), (resort, True)):
        for codec in codecs:
            usable = [x for x in layouts_for(codec, color, source) if x.same_components(source) is not widened]
            if not usable and not widened:
                tried.append(f"{codec} takes no {source.name}")
            for layout in usable:
                for options in variants(codec, request, tags, field_order, size, container):
                    why = _refuses(codec, layout, size, container, interlaced) or _try_open(
                        codec, layout, size, options
                    )
                    if why is None:
                        notes = tuple(_notes(codec, names[0], layout, source, request, tags, field_order, tried))
                        lossless = request.lossless or codec == "ffv1"
                        return EncoderChoice(codec, layout, options, lossless, notes)
                tried.append(f"{codec} takes no {layout.name} of {size[0]}x{size[1]}: {why}")
    hint = "choose another --encoder or an .mkv output"
    where = f" in {container}" if container else ""
    detail = f" ({'; '.join(tried[:4])})" if tried else ""
    raise EncoderError(f"no encoder{where} takes {size[0]}x{size[1]} {source.name}{detail}", hint)


def _notes(
    codec: str,
    first: str,
    layout: Layout,
    source: Layout,
    request: EncoderRequest,
    tags: SourceTags,
    field_order: FieldOrder,
    tried: list[str],
) -> Iterator[str]:
    if codec != first:
        because = next((t for t in tried if t.startswith(first + " ")), f"{first} is not for this container")
        large = ", which is lossless: the file will be many times larger" if codec == "ffv1" else ""
        yield f"{because}; using {codec}{large if not request.lossless else ''}"
    if not layout.same_components(source):
        yield f"{source.name} is stored as {layout.name}, which holds every value of it"
    if source.alpha and not layout.alpha:
        yield f"{codec} takes no alpha: it is left out; --lossless or --encoder vp9 keeps it"
    if request.crf is not None:
        crf = _crf(codec, request)
        if crf is None:
            yield f"{codec} is lossless: --crf {request.crf:g} has no effect"
        elif crf != request.crf:
            yield f"{codec} takes {_scale(codec)} for --crf: {request.crf:g} is taken as {crf:g}"
    if field_order != "progressive" and codec not in _KEEPS_FIELDS:
        yield f"lost, because {codec} has no interlaced coding: the field order; fields are lines of progressive frames"
    if codec != "libx265" and (tags.mastering or tags.light):
        yield f"{codec} carries no HDR10 mastering and light metadata through FFmpeg: they are lost"
    if tags.lost:
        yield f"lost, because no encoder here carries it: {', '.join(tags.lost)}"


def _scale(codec: str) -> str:
    return f"{'whole numbers of ' if codec in _WHOLE_CRF else ''}0 to {_CRF_LIMIT[codec]}"


def _crf(codec: str, request: EncoderRequest) -> float | None:
    """The quality that an encoder is given; None for one that has no scale of it."""
    if codec not in _CRF_LIMIT:
        return None
    crf = request.crf if request.crf is not None else _DEFAULT_CRF.get(codec, 20)
    crf = min(crf, _CRF_LIMIT[codec])
    return round(crf) if codec in _WHOLE_CRF else crf


def settings(
    codec: str, request: EncoderRequest, tags: SourceTags, field_order: FieldOrder, container: str = ""
) -> dict[str, str]:
    """FFmpeg options of an encoder for a request. Raises UsageError for a preset that is not one."""
    if request.preset not in _PRESETS:
        raise UsageError(f"preset {request.preset!r} is unknown", f"choose one of {', '.join(_PRESETS)}")
    quality = f"{_crf(codec, request) or 0:g}"
    ordered = container in _ORDERED
    if codec in ("libx264", "libx264rgb"):
        options = {"preset": request.preset, **({"qp": "0"} if request.lossless else {"crf": quality})}
        if ordered:
            options["bf"] = "0"
        if field_order != "progressive":
            options["x264-params"] = "tff=1" if field_order == "tff" else "bff=1"
        return options
    if codec == "libx265":
        params = ["log-level=error"]  # FFmpeg repeats the headers where a container has no place for them
        if request.lossless:
            params.append("lossless=1")
        if ordered:
            params.append("bframes=0")
        if tags.mastering:
            params += [f"master-display={tags.mastering.x265()}", "hdr10=1"]
        if tags.light:
            params.append(f"max-cll={tags.light.x265()}")
        if request.threads:
            params.append(f"pools={request.threads}")
        return {"preset": request.preset, "crf": quality, "x265-params": ":".join(params)}
    if codec == "libsvtav1":
        return {"preset": str(_SVT_PRESET[request.preset]), "crf": quality}
    if codec == "libvpx-vp9":
        base = {"deadline": "good", "cpu-used": str(min(5, _VP9_SPEED[request.preset])), "row-mt": "1", "b": "0"}
        return {**base, **({"lossless": "1"} if request.lossless else {"crf": quality})}
    if codec == "ffv1":
        return {"level": "3", "coder": "1", "context": "0", "g": "1", "slicecrc": "1"}
    if codec.endswith("_nvenc"):
        base = {"preset": _NVENC_PRESET[request.preset], **({"bf": "0"} if ordered else {})}
        return {**base, **({"tune": "lossless"} if request.lossless else {"rc": "vbr", "cq": quality, "b": "0"})}
    return {}


def variants(
    codec: str,
    request: EncoderRequest,
    tags: SourceTags,
    field_order: FieldOrder,
    size: tuple[int, int],
    container: str = "",
) -> Iterator[dict[str, str]]:
    """Settings to try in turn.

    FFV1's sliced version 3 does not open at a few pixels' height, and its slices lose the last chroma column of 4:1:1
    and 4:1:0 at widths that are no multiple of theirs; version 1, without slices, has neither fault.
    """
    if codec == "ffv1":
        if max(tags.layout.chroma_shift) < 2:
            yield settings(codec, request, tags, field_order, container)
        yield {"level": "1", "coder": "1", "context": "0", "g": "1"}
        return
    options = settings(codec, request, tags, field_order, container)
    if codec == "libsvtav1" and min(size) < 256:
        # Its faster presets turn out garbage there (luma PSNR of 11 to 18 dB at 97x65).
        options["preset"] = str(min(int(options["preset"]), _SVT_PRESET["medium"]))
    yield options


def _refuses(codec: str, layout: Layout, size: tuple[int, int], container: str, interlaced: bool) -> str | None:
    """What is known beforehand, so that x264 and x265 need not write about it to stderr themselves."""
    sx, sy = layout.chroma_shift
    odd = size[0] % (1 << sx) or size[1] % (1 << sy)
    if odd and codec in ("libx264", "libx265", "h264_nvenc", "hevc_nvenc"):
        return "an odd size with subsampled chroma"
    lines = 2 << sy
    if interlaced and codec in ("libx264", "libx264rgb") and size[1] % lines:
        return f"interlaced coding needs a height that is a multiple of {lines}"
    if codec == "libvpx-vp9" and container in ("mp4", "mov") and layout.chroma_shift == (0, 1):
        return "the VP9 box of MP4 has no code for 4:4:0"
    if codec == "libx265" and min(size) < 16:
        return "smaller than 16 pixels"
    if codec == "libsvtav1" and min(size) < 4:
        return "smaller than 4 pixels"
    return None


def configure(
    context: Any, choice: EncoderChoice, size: tuple[int, int], tags: SourceTags, rate: Fraction, time_base: Fraction
) -> None:
    """Set size, format, timing and colour tags of an encoder context, exactly as the source has them."""
    context.width, context.height = size
    context.pix_fmt = choice.layout.name
    context.framerate = rate
    context.time_base = time_base
    context.color_primaries = tags.primaries
    context.color_trc = tags.transfer
    # RGB in, RGB out: H.273 says 0 (identity) there, whatever the source forgot to say.
    context.colorspace = tags.matrix
    if choice.layout.model != "rgb" or tags.color_range:
        context.color_range = tags.color_range


def _try_open(codec: str, layout: Layout, size: tuple[int, int], options: dict[str, str]) -> str | None:
    """None when the encoder opens with these settings, else FFmpeg's reason. Nothing is encoded."""
    os.environ.setdefault("SVT_LOG", "0")  # fatal only; SVT-AV1 writes a banner to stderr otherwise
    try:
        context: Any = av.CodecContext.create(codec, "w")
        context.width, context.height = size
        context.pix_fmt = layout.name
        context.framerate = Fraction(25)
        context.time_base = Fraction(1, 25)
        context.options = dict(options)
        context.thread_count = 1
        with kept_scheduling():
            context.open()
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError) as e:
        return reason(e)
    return None
