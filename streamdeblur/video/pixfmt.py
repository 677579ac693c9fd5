"""Where each component of a pixel format lies in memory, so that any frame can be seen as component planes.

FFmpeg's names (``libavutil/pixdesc.c``). A layout says for every component, in the order of ``frames.ColorSpec``, which
plane of the AVFrame holds it, at which sample offset, with which step between neighbours, and how far its code values
are shifted up (P010 keeps ten bits in the upper part of sixteen). Copying component by component between two layouts
with the same components is exact, so NV12 to YUV420P, or RGB24 to GBRP, needs no scaler.

Knows NumPy and the frame's buffers only; formats that are not in the table go through swscale (``reader``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from streamdeblur.frames import Array, ColorModel, ColorSpec


class _PlanarFrame(Protocol):
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def planes(self) -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class Component:
    """One component: plane number, offset and step in samples, left shift of its code values."""

    plane: int
    offset: int = 0
    step: int = 1
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """A pixel format: its colour model, depth, subsampling, and where the components are."""

    name: str
    model: ColorModel
    depth: int
    chroma_shift: tuple[int, int]
    alpha: bool
    full_range: bool | None
    dtype: np.dtype[Any]
    components: tuple[Component, ...]

    def same_components(self, other: Layout) -> bool:
        """True when code values can be copied component by component, alpha aside."""
        return (self.model, self.depth, self.chroma_shift) == (other.model, other.depth, other.chroma_shift)

    def color(self, matrix: str, full_range: bool) -> ColorSpec:
        """The colour spec of a frame in this layout; RGB is always full range."""
        full = True if self.model == "rgb" else full_range
        return ColorSpec(self.model, matrix, full, self.depth, self.chroma_shift, self.alpha)


_U8, _LE, _BE = np.dtype("u1"), np.dtype("<u2"), np.dtype(">u2")
_SHIFTS = {"420": (1, 1), "422": (1, 0), "444": (0, 0), "440": (0, 1), "411": (2, 0), "410": (2, 2)}


def _build() -> dict[str, Layout]:
    table: dict[str, Layout] = {}

    def add(
        name: str,
        model: ColorModel,
        depth: int,
        dtype: np.dtype[Any],
        components: Sequence[Component],
        shift: tuple[int, int] = (0, 0),
        alpha: bool = False,
        full: bool | None = None,
    ) -> None:
        table[name] = Layout(name, model, depth, shift, alpha, full, dtype, tuple(components))

    def depths(bits: Sequence[int]) -> list[tuple[int, str, np.dtype[Any]]]:
        wide = [(b, f"{b}{e}", d) for b in bits for e, d in (("le", _LE), ("be", _BE))]
        return [(8, "", _U8), *wide]

    planar = [Component(0), Component(1), Component(2)]
    for sub, shift in _SHIFTS.items():
        for bits, tail, dtype in depths((9, 10, 12, 14, 16)):
            add(f"yuv{sub}p{tail}", "yuv", bits, dtype, planar, shift)
            add(f"yuva{sub}p{tail}", "yuv", bits, dtype, [*planar, Component(3)], shift, alpha=True)
        add(f"yuvj{sub}p", "yuv", 8, _U8, planar, shift, full=True)
    for sub, shift in (("420", (1, 1)), ("422", (1, 0)), ("444", (0, 0))):
        digit = {"420": "0", "422": "2", "444": "4"}[sub]
        for bits, tail, dtype in depths((10, 12, 16)):
            name = {"420": "nv12", "422": "nv16", "444": "nv24"}[sub] if bits == 8 else f"p{digit}{tail}"
            up = 0 if bits == 8 else 16 - bits
            semi = [Component(0, 0, 1, up), Component(1, 0, 2, up), Component(1, 1, 2, up)]
            add(name, "yuv", bits, dtype, semi, shift)
    swapped = [Component(0), Component(1, 1, 2), Component(1, 0, 2)]
    add("nv21", "yuv", 8, _U8, swapped, (1, 1))
    add("nv42", "yuv", 8, _U8, swapped, (0, 0))
    add("nv20le", "yuv", 10, _LE, [Component(0), Component(1, 0, 2), Component(1, 1, 2)], (1, 0))
    add("nv20be", "yuv", 10, _BE, [Component(0), Component(1, 0, 2), Component(1, 1, 2)], (1, 0))
    for name, (y, u, v) in {"yuyv422": (0, 1, 3), "uyvy422": (1, 0, 2), "yvyu422": (0, 3, 1)}.items():
        add(name, "yuv", 8, _U8, [Component(0, y, 2), Component(0, u, 4), Component(0, v, 4)], (1, 0))
    for bits, tail, dtype in depths((9, 10, 12, 14, 16)):
        add(f"gray{tail}", "gray", bits, dtype, [Component(0)])
        add(f"gbrp{tail}", "rgb", bits, dtype, [Component(2), Component(0), Component(1)], full=True)
        add(
            f"gbrap{tail}",
            "rgb",
            bits,
            dtype,
            [Component(2), Component(0), Component(1), Component(3)],
            alpha=True,
            full=True,
        )
    for bits, tail, dtype in ((8, "8", _U8), (16, "16le", _LE), (16, "16be", _BE)):
        add(f"ya{tail}", "gray", bits, dtype, [Component(0, 0, 2), Component(0, 1, 2)], alpha=True)
    for order in ("rgb", "bgr", "rgba", "bgra", "argb", "abgr", "rgb0", "bgr0", "0rgb", "0bgr"):
        step = len(order)
        comps = [Component(0, order.index(c), step) for c in "rgb"]
        has_alpha = "a" in order
        if has_alpha:
            comps.append(Component(0, order.index("a"), step))
        deep = {"rgb": "rgb48", "bgr": "bgr48", "rgba": "rgba64", "bgra": "bgra64"}.get(order)
        add(f"{order}24" if step == 3 else order, "rgb", 8, _U8, comps, alpha=has_alpha, full=True)
        if deep:
            add(f"{deep}le", "rgb", 16, _LE, comps, alpha=has_alpha, full=True)
            add(f"{deep}be", "rgb", 16, _BE, comps, alpha=has_alpha, full=True)
    return table


LAYOUTS: dict[str, Layout] = _build()

#: Formats that have no layout, and the one with a layout that loses least. What is in neither list is decided by
#: ``nearest`` from the format's own description.
NEAREST: dict[str, str] = {
    "pal8": "bgra",  # a palette has alpha
    "monob": "gray",
    "monow": "gray",
    "xyz12le": "rgb48le",
    "xyz12be": "rgb48le",
    "x2rgb10le": "gbrp10le",
    "x2bgr10le": "gbrp10le",
    "grayf32le": "gray16le",
    "grayf32be": "gray16le",
    "grayf16le": "gray16le",
    "gbrpf32le": "gbrp16le",
    "gbrpf32be": "gbrp16le",
    "gbrpf16le": "gbrp16le",
    "gbrapf32le": "gbrap16le",
    "gbrapf32be": "gbrap16le",
    "gbrapf16le": "gbrap16le",
    "uyyvyy411": "yuv411p",
    "y210le": "yuv422p10le",
    "y212le": "yuv422p12le",
    "y216le": "yuv422p16le",
    "xv30le": "yuv444p10le",
    "v30xle": "yuv444p10le",
    "xv36le": "yuv444p12le",
    "xv48le": "yuv444p16le",
    "vuya": "yuva444p",
    "vuyx": "yuv444p",
    "ayuv": "yuva444p",
    "ayuv64le": "yuva444p16le",
    "uyva": "yuva444p",
    "vyu444": "yuv444p",
}


def nearest(name: str, *, is_rgb: bool, bits: int, components: int) -> str:
    """The layout to convert a format without one to; bits is the depth of its widest component."""
    if name in NEAREST:
        return NEAREST[name]
    if is_rgb or name.startswith("bayer"):
        return "rgb24" if bits <= 8 else "gbrp16le"
    if components == 1:
        return "gray" if bits <= 8 else "gray16le"
    return "yuv444p" if bits <= 8 else "yuv444p12le" if bits <= 12 else "yuv444p16le"


def component_views(frame: _PlanarFrame, layout: Layout) -> list[Array]:
    """Every component as a (rows, columns) view into the frame's own memory, code values still shifted.

    The views keep the buffers alive; they are writable when the frame is. Rows are ``line_size`` apart.
    """
    views: list[Array] = []
    color = layout.color("bt709", bool(layout.full_range))
    shapes = color.plane_shapes(frame.width, frame.height)
    for component, (rows, cols) in zip(layout.components, shapes, strict=True):
        plane = frame.planes[component.plane]
        stride = int(plane.line_size)
        item = layout.dtype.itemsize
        if stride < 0:
            # Bottom-up pictures (raw RGB in AVI): the buffer protocol would read past the end. Row 0 is at the
            # pointer and the rest before it, so look at the whole block from its lowest address and flip.
            length = -stride * rows
            block: Any = (ctypes.c_uint8 * length).from_address(int(plane.buffer_ptr) + stride * (rows - 1))
            low = np.frombuffer(block, np.uint8).reshape(rows, -stride)[::-1]
            row_bytes = low.copy()  # the block does not keep the frame alive
            stride, base = -stride, row_bytes.reshape(-1)[component.offset * item :]
        else:
            base = np.frombuffer(plane, np.uint8)[component.offset * item :]
        # The ndarray constructor checks that all of it lies in the buffer.
        views.append(np.ndarray((rows, cols), layout.dtype, buffer=base.data, strides=(stride, component.step * item)))
    return views


def read_components(frame: _PlanarFrame, layout: Layout) -> tuple[Array, ...]:
    """Component planes as plain native code values: views where possible, copies where shifted or big-endian."""
    out = []
    for component, view in zip(layout.components, component_views(frame, layout), strict=True):
        plain = view
        if not layout.dtype.isnative:
            plain = plain.astype(np.uint16)
        if component.shift:
            plain = plain >> np.uint16(component.shift)
        out.append(plain)
    return tuple(out)


def write_components(frame: _PlanarFrame, layout: Layout, planes: Sequence[Array], source: ColorSpec) -> None:
    """Write component planes of a frame with colour ``source`` into a (writable) frame of ``layout``.

    Depth may only grow (code values are shifted up), and chroma may only be replicated to a finer grid: both keep every
    bit. A missing alpha becomes opaque, a surplus one is left out. Raises ValueError where that is impossible.
    """
    if layout.model != source.model or layout.depth < source.depth:
        raise ValueError(f"{source.model} {source.depth}-bit does not fit {layout.name}")
    up = layout.depth - source.depth
    count = source.color_planes
    views = component_views(frame, layout)
    rx = source.chroma_shift[0] - layout.chroma_shift[0]
    ry = source.chroma_shift[1] - layout.chroma_shift[1]
    if rx < 0 or ry < 0:
        raise ValueError(f"{layout.name} has a coarser chroma grid than the source")
    for i, (component, view) in enumerate(zip(layout.components, views, strict=True)):
        shift = up + component.shift
        if i >= count:
            if source.alpha:
                plane = planes[-1]
                view[...] = plane << shift if shift else plane
            else:
                view[...] = ((1 << layout.depth) - 1) << component.shift
            continue
        plane = planes[i]
        if i and (rx or ry):
            plane = plane.repeat(1 << ry, axis=0).repeat(1 << rx, axis=1)[: view.shape[0], : view.shape[1]]
        if shift:
            view[...] = plane.astype(np.uint16) << np.uint16(shift)
        else:
            view[...] = plane
