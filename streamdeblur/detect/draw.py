"""Boxes on pictures: on RGB for pages, and on a frame's own planes for video.

On planes only the pixels of outlines and labels change; all others keep their code values, at any depth, matrix, range
and chroma layout. OpenCV's Hershey font has ASCII only; what else is in a name is drawn as a question mark.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import torch

from streamdeblur.color import planes_to_rgb, rgb_correction_to_planes
from streamdeblur.detect.detector import Detections, Picture
from streamdeblur.frames import Array, ColorSpec, Frame

_FONT = cv2.FONT_HERSHEY_SIMPLEX
#: Distinct on any picture (Okabe & Ito 2008, without black, and with a lighter blue), R'G'B'.
PALETTE = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (60, 130, 220), (213, 94, 0), (204, 121, 167),
)  # fmt: skip
_INK = (255, 255, 255)
_PAPER_SHARE = 0.55  # how dark the label's background is against its colour, so that white can be read on it


@dataclass(frozen=True, slots=True)
class Label:
    """One object to draw. box: x1, y1, x2, y2 in pixels. color: index into PALETTE, wrapping."""

    box: tuple[float, float, float, float]
    text: str
    color: int


def labels(found: Detections, tracks: Sequence[int | None] | None = None) -> list[Label]:
    """What to draw of detections: name and score, with the track's number where there is one; a track keeps its colour.

    tracks: one number or None an object.
    """
    result = []
    for i in range(len(found)):
        track = tracks[i] if tracks is not None else None
        text = f"{found.name(i)} {found.scores[i]:.2f}"
        box = found.boxes[i]
        result.append(
            Label(
                (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                text if track is None else f"#{track} {text}",
                int(found.class_ids[i]) if track is None else track,
            )
        )
    return result


def draw_rgb(rgb: Picture, what: Sequence[Label]) -> Picture:
    """A copy of an (H, W, 3) uint8 picture with the labels drawn."""
    result = rgb.copy()
    for stencil in _stencils(what, rgb.shape[0], rgb.shape[1]):
        region = result[stencil.rows, stencil.columns]
        region[... if stencil.mask is None else stencil.mask] = stencil.color
    return result


def draw_frame(frame: Frame, what: Sequence[Label]) -> Frame:
    """The frame with the labels drawn on copies of its colour planes; alpha and everything not drawn on is untouched.

    A chroma sample takes the colour where any of the pixels that it covers is drawn on. Colours are nominal R'G'B': on
    HDR material they are as bright as the transfer makes them. Returns the frame itself where there is nothing to draw.
    """
    stencils = _stencils(what, frame.spec.height, frame.spec.width)
    if not stencils:
        return frame
    color = frame.spec.color
    count = color.color_planes
    planes = [p.copy() for p in frame.planes[:count]]
    for stencil in stencils:
        codes = code_values(stencil.color, color)
        for number, plane in enumerate(planes):
            shift = color.chroma_shift if number else (0, 0)
            _fill(plane, stencil, shift, codes[number])
    return replace(frame, planes=(*planes, *frame.planes[count:]))  # with all that a kind of Frame carries besides


def frame_to_rgb(frame: Frame) -> Picture:
    """(H, W, 3) uint8 R'G'B' of the frame's colour planes, C-contiguous; what leaves [0, 1] is clamped.

    The transfer is left as it is: PQ and HLG are not tone-mapped.
    """
    with torch.inference_mode():
        rgb = planes_to_rgb(frame.planes[: frame.spec.color.color_planes], frame.spec.color)[0]
        codes = rgb.clamp_(0, 1).mul_(255).add_(0.5).to(torch.uint8)
        return np.asarray(codes.permute(1, 2, 0).contiguous().numpy(), np.uint8)


@functools.lru_cache(maxsize=256)  # some fifteen colours for each kind of video; half a millisecond each
def code_values(rgb: tuple[int, int, int], color: ColorSpec) -> tuple[int, ...]:
    """Code values of an R'G'B' colour of 0..255, one a colour plane."""
    # black plus the correction that leads from it to the colour
    black = 0 if color.full_range else 16 << (color.depth - 8)
    base = [black] * color.color_planes
    if color.model == "yuv":
        base[1] = base[2] = 1 << (color.depth - 1)
    delta = torch.tensor(rgb, dtype=torch.float32).reshape(3, 1, 1) / 255
    steps = rgb_correction_to_planes(delta, replace(color, chroma_shift=(0, 0), alpha=False))
    return tuple(min(max(b + int(s[0, 0]), 0), color.max_code) for b, s in zip(base, steps, strict=True))


@dataclass(frozen=True, slots=True)
class _Stencil:
    """A region of the picture, which of its pixels are drawn on (None: all), and the colour they get."""

    rows: slice
    columns: slice
    mask: npt.NDArray[np.bool_] | None
    color: tuple[int, int, int]


def _stencils(what: Sequence[Label], height: int, width: int) -> list[_Stencil]:
    """In drawing order: all outlines, then the labels, which stay readable."""
    unit = min(height, width)
    thick = max(1, round(unit / 360))
    scale = max(0.4, unit / 1100)
    outlines: list[_Stencil] = []
    texts: list[_Stencil] = []
    for label in what:
        color = PALETTE[label.color % len(PALETTE)]
        x1, y1, x2, y2 = _pixels(label.box, height, width)
        for rows, columns in (
            (slice(y1, min(y1 + thick, y2)), slice(x1, x2)),
            (slice(max(y2 - thick, y1), y2), slice(x1, x2)),
            (slice(y1, y2), slice(x1, min(x1 + thick, x2))),
            (slice(y1, y2), slice(max(x2 - thick, x1), x2)),
        ):
            outlines.append(_Stencil(rows, columns, None, color))
        texts += _text(label.text, x1, y1, y2, height, width, scale, thick, color)
    return outlines + texts


def _pixels(box: tuple[float, float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
    """Whole pixels inside the picture, one at least on each side."""
    x1 = min(max(int(box[0]), 0), width - 1)
    y1 = min(max(int(box[1]), 0), height - 1)
    return x1, y1, min(max(round(box[2]), x1 + 1), width), min(max(round(box[3]), y1 + 1), height)


def _text(
    text: str, x: int, top: int, bottom: int, height: int, width: int, scale: float, thick: int, color: tuple[int, ...]
) -> list[_Stencil]:
    """The label above the box, inside it where there is no room above; nothing where it doesn't fit at all."""
    mask = _letters(text.encode("ascii", "replace").decode("ascii"), scale, thick)
    tall, wide = mask.shape
    if tall > height:
        return []
    y = top - tall if top >= tall else min(top, height - tall)
    x = max(0, min(x, width - wide))
    rows, columns = slice(y, y + tall), slice(x, min(x + wide, width))
    drawn = mask[:, : columns.stop - columns.start]
    r, g, b = (round(c * _PAPER_SHARE) for c in color)
    return [_Stencil(rows, columns, None, (r, g, b)), _Stencil(rows, columns, drawn, _INK)]


@functools.lru_cache(maxsize=1024)  # a millisecond each, and most come again
def _letters(text: str, scale: float, thick: int) -> npt.NDArray[np.bool_]:
    """Which pixels of a label with a small margin are ink. Not to be written to."""
    (wide, high), below = cv2.getTextSize(text, _FONT, scale, thick)
    mask = np.zeros((high + below + 2 * thick, wide + 2 * thick + 2), np.uint8)
    cv2.putText(mask, text, (thick + 1, high + thick), _FONT, scale, 255, thick, cv2.LINE_8)
    result: npt.NDArray[np.bool_] = mask > 127
    result.flags.writeable = False
    return result


def _fill(plane: Array, stencil: _Stencil, shift: tuple[int, int], code: int) -> None:
    sx, sy = shift
    rows, columns, mask = stencil.rows, stencil.columns, stencil.mask
    # Whole chroma blocks: the region begins and ends on one.
    x0, y0 = columns.start >> sx, rows.start >> sy
    x1, y1 = -(-columns.stop >> sx), -(-rows.stop >> sy)
    region = plane[y0:y1, x0:x1]
    if mask is None:
        region[...] = code
        return
    if sx or sy:
        grid = np.zeros(((y1 - y0) << sy, (x1 - x0) << sx), np.bool_)
        down, across = rows.start - (y0 << sy), columns.start - (x0 << sx)
        grid[down : down + mask.shape[0], across : across + mask.shape[1]] = mask
        mask = np.asarray(grid.reshape(y1 - y0, 1 << sy, x1 - x0, 1 << sx).any(axis=(1, 3)))
    region[mask[: region.shape[0], : region.shape[1]]] = code
