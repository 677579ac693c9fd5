"""Planes ↔ RGB, for every matrix, range, depth and chroma layout of ``frames.ColorSpec``.

In: code values of the decoded planes become nominal R'G'B'. Out: an RGB *correction* becomes integer corrections of the
same planes, so that a zero correction leaves every code value as it was. Nothing is clamped on the way and rounding
happens once, at the end.

Sources: luma and colour-difference equations of ITU-R BT.601-7 2.5.1, BT.709-6 3.2, BT.2020-2 table 4 (non-constant
luminance), SMPTE ST 240M and FCC 73.682; quantisation of BT.601-7 2.5.3, BT.709-6 3.4, BT.2020-2 table 5, collected
with the full-range forms in ITU-T H.273 8.3 (equations 20 to 31):

    limited   Y = 2^(d-8) (219 E'Y + 16)    C = 2^(d-8) 224 E'C + 2^(d-1)    R'G'B' as Y
    full      Y = (2^d - 1) E'Y             C = (2^d - 1) E'C + 2^(d-1)      R'G'B' as Y

All functions are thread-safe and write to nothing they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from streamdeblur.frames import MATRICES, Array, ColorSpec, correction_dtype

#: What travels to a device, by the bytes of a value.
_STAGED = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def luma_weights(color: ColorSpec) -> tuple[float, float, float]:
    """(Kr, Kg, Kb) of the matrix; they sum to one."""
    kr, kb = MATRICES[color.matrix]
    return kr, 1.0 - kr - kb, kb


def scales(color: ColorSpec) -> tuple[float, float]:
    """Code values for one unit of (luma or R'G'B', colour difference)."""
    if color.full_range:
        return float(color.max_code), float(color.max_code)
    step = 1 << (color.depth - 8)
    return 219.0 * step, 224.0 * step


def _black(color: ColorSpec) -> float:
    return 0.0 if color.full_range else 16.0 * (1 << (color.depth - 8))


def _to_device(plane: Array, depth: int, device: torch.device) -> Tensor:
    """The plane as float32 on the device; the bytes that travel are the code values' own."""
    if depth == 16:
        plane = plane.astype(np.int32)  # torch's uint16 has no arithmetic to speak of
    elif depth > 8:
        plane = plane.view(np.int16)
    if device.type == "cuda":
        # Through page-locked memory, which the copy engine reads by itself; PyTorch gives it away again when it has.
        staged = torch.empty(plane.shape, dtype=_STAGED[plane.dtype.itemsize], pin_memory=True)
        np.copyto(staged.numpy(), plane)
        return staged.to(device, non_blocking=True).to(torch.float32)
    # A contiguous, writable copy: planes may be read-only and strided, and torch takes neither quietly.
    return torch.from_numpy(np.array(plane, order="C", copy=True)).to(device).to(torch.float32)


def planes_to_rgb(
    planes: Sequence[Array],
    color: ColorSpec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """R'G'B' of the colour planes: (1, 3, H, W) on ``device``, nominal [0, 1], not clamped.

    planes: uint8 or uint16 code values as in ``frames.Frame``; strided and read-only ones are fine; alpha is ignored.
    Chroma is replicated (nearest neighbour), gray gives three equal channels. Arithmetic is float32 on the device.
    """
    target = torch.device(device)
    luma_scale, chroma_scale = scales(color)
    black = _black(color)
    first = _to_device(planes[0], color.depth, target)
    height, width = first.shape
    out = torch.empty((1, 3, height, width), dtype=torch.float32, device=target)
    if color.model != "yuv":
        rest = [_to_device(p, color.depth, target) for p in planes[1 : color.color_planes]]
        for channel, plane in enumerate([first, *rest] if rest else [first] * 3):
            torch.sub(plane, black, out=out[0, channel])
        return out.div_(luma_scale).to(dtype)

    kr, kg, kb = luma_weights(color)
    middle = float(1 << (color.depth - 1))
    cb = _to_device(planes[1], color.depth, target).sub_(middle).div_(chroma_scale)
    cr = _to_device(planes[2], color.depth, target).sub_(middle).div_(chroma_scale)
    first.sub_(black).div_(luma_scale)
    red, blue = 2.0 * (1.0 - kr), 2.0 * (1.0 - kb)
    # What each channel differs from luma by, computed on the small chroma grid and only then spread.
    difference = torch.stack((cr * red, cb * (-kb * blue / kg) + cr * (-kr * red / kg), cb * blue))
    sx, sy = color.chroma_shift
    if sx:
        difference = difference.repeat_interleave(1 << sx, dim=2)
    difference = difference[:, :, :width]
    if not sy:
        torch.add(first, difference, out=out[0])
        return out.to(dtype)
    rows = 1 << sy
    for phase in range(rows):
        picked = first[phase::rows]
        torch.add(picked, difference[:, : picked.shape[0]], out=out[0, :, phase::rows])
    return out.to(dtype)


def _block_mean(x: Tensor, shift: tuple[int, int]) -> Tensor:
    """Mean of the 2^sx x 2^sy samples under each chroma sample; at odd edges, of those that exist. (C, H, W)."""
    sx, sy = shift
    for dim, log in ((1, sy), (2, sx)):
        if not log:
            continue
        block = 1 << log
        size = x.shape[dim]
        whole = size - size % block
        body = x.narrow(dim, 0, whole)
        phases = [body[:, k::block] if dim == 1 else body[:, :, k::block] for k in range(block)]
        mean = reduce(torch.add, phases) * (1.0 / block)
        if whole < size:
            mean = torch.cat((mean, x.narrow(dim, whole, size - whole).mean(dim, keepdim=True)), dim)
        x = mean
    return x


def _to_codes(x: Tensor, depth: int) -> Tensor:
    """floor(x + 0.5), saturated to the correction's type."""
    want = correction_dtype(depth)
    limits = np.iinfo(want)
    # float32 has no 2^31 - 1; the next below it is what int32 can take. int16's bounds are exact.
    high = float(np.nextafter(np.float32(limits.max), np.float32(0))) if want.itemsize == 4 else float(limits.max)
    kind = torch.int32 if want.itemsize == 4 else torch.int16
    return x.add_(0.5).floor_().clamp_(float(limits.min), high).to(kind)


def _to_host(planes: Sequence[Tensor]) -> tuple[Array, ...]:
    """The planes as arrays, when the device has come so far."""
    if planes[0].device.type != "cuda":
        return tuple(plane.cpu().numpy() for plane in planes)
    landed = []
    for plane in planes:
        host = torch.empty(plane.shape, dtype=plane.dtype, pin_memory=True)
        landed.append(host.copy_(plane, non_blocking=True))
    torch.cuda.current_stream(planes[0].device).synchronize()
    return tuple(host.numpy() for host in landed)


def rgb_correction_to_planes(
    delta: Tensor, color: ColorSpec, shapes: Sequence[tuple[int, int]] | None = None
) -> tuple[Array, ...]:
    """Integer corrections of the colour planes for a correction in R'G'B'.

    delta: (3, H, W) or (1, 3, H, W), any float type, R'G'B' units, finite (what is not gives arbitrary codes).
    shapes: (rows, columns) expected of each plane, for a check; alpha's, if there, is ignored.
    Returns C-contiguous ``frames.correction_dtype`` arrays in code values, one a colour plane. Each is the exact
    correction, brought to the plane's grid by the mean over the samples it covers, plus one half, rounded down; since
    code values are integers, adding it rounds the sum once. Gray takes the luma of the correction, so that an equal
    step of R, G and B is that step. Raises ValueError where the shapes disagree.
    """
    rgb = delta[0] if delta.dim() == 4 and delta.shape[0] == 1 else delta
    if rgb.dim() != 3 or rgb.shape[0] != 3 or not rgb.is_floating_point():
        raise ValueError(f"correction of shape {tuple(delta.shape)}, {delta.dtype}: expected (3, H, W) float")
    rgb = rgb.detach().to(torch.float32)
    luma_scale, chroma_scale = scales(color)
    if color.model == "rgb":
        codes = tuple(_to_codes(rgb * luma_scale, color.depth))
    else:
        kr, kg, kb = luma_weights(color)
        luma = (rgb[0] * kr).add_(rgb[1], alpha=kg).add_(rgb[2], alpha=kb)
        if color.model == "gray":
            codes = (_to_codes(luma.mul_(luma_scale), color.depth),)
        else:
            # B' - Y' and R' - Y'; taking the mean first costs less and, being linear, changes nothing.
            pair = _block_mean(torch.stack((rgb[2] - luma, rgb[0] - luma)), color.chroma_shift)
            cb = _to_codes(pair[0] * (chroma_scale / (2.0 * (1.0 - kb))), color.depth)
            cr = _to_codes(pair[1] * (chroma_scale / (2.0 * (1.0 - kr))), color.depth)
            codes = (_to_codes(luma.mul_(luma_scale), color.depth), cb, cr)
    result = _to_host(codes)
    if shapes is not None:
        got = tuple(c.shape for c in result)
        if got != tuple(tuple(s) for s in shapes)[: len(result)]:
            raise ValueError(f"correction planes {got} do not fit {tuple(shapes)}")
    return result
