"""What a network is compared on when something else computes it: test pictures, a fingerprint, tolerances."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from streamdeblur.models.base import ResidualModel
from streamdeblur.version import __version__


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a correction may be from that of eager fp32, as root mean squares over the test pictures.

    relative: of the correction's own root mean square. absolute: in nominal [0, 1], granted in any case, since a
    network that corrects next to nothing has no precision to speak of. noise: what takes the place of ``relative`` on
    noise, None for the same.
    """

    relative: float
    absolute: float
    noise: float | None = None

    def allowed(self, reference: Tensor) -> float:
        return max(self.absolute, self.relative * _rms(reference))

    def error(self, result: Tensor, reference: Tensor) -> float:
        """Root mean square difference; infinite for what is not finite or of another shape."""
        if result.shape != reference.shape:
            return math.inf
        error = _rms(result.float() - reference)
        return error if math.isfinite(error) else math.inf

    def judge(self, results: Sequence[Tensor], references: Sequence[Tensor]) -> tuple[float, float]:
        """(error, allowed) of the picture that takes the largest part of what is allowed.

        One picture, or several of which the first is noise, as in ``pictures``.
        """
        on_noise = self if self.noise is None else replace(self, relative=self.noise)
        rules = [on_noise, *[self] * (len(references) - 1)] if len(references) > 1 else [self]
        found = [
            (rule.error(one, wanted), rule.allowed(wanted))
            for rule, one, wanted in zip(rules, results, references, strict=True)
        ]
        return max(found, key=lambda pair: pair[0] / pair[1])


#: Per precision. fp32 differs by the order of sums alone. bf16 has 8 bits of mantissa: 1 to 2 % of the correction were
#: measured. int8 rounds activations to 1/255 of the range that they have in pictures: 14 to 20 % of the correction with
#: the weights that ship, and what noise has beyond that range is cut off (60 to 75 %).
TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        "fp32": Tolerance(1e-3, 2e-5),
        "fp16": Tolerance(0.02, 2e-4),
        "bf16": Tolerance(0.06, 1e-3),
        "int8": Tolerance(0.35, 1e-3, noise=0.9),
    }
)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


#: Leaves in a picture: enough that none of the ground is seen.
_LEAVES = 400


@cache
def noise(height: int, width: int) -> Tensor:
    """(1, 3, height, width) uniform noise in [0, 1], float32 on the CPU, always the same. Not to be written to."""
    return torch.rand((1, 3, height, width), generator=torch.Generator("cpu").manual_seed(7))


@cache
def picture(height: int, width: int) -> Tensor:
    """(1, 3, height, width) of a rendered, blurred picture, as ``noise``: a sky, a checkered ground, discs and bars."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, width / height, width)[None].expand(height, width)
    sky = torch.stack((0.35 + 0.3 * y, 0.5 + 0.25 * y, 0.85 - 0.1 * y))
    squares = ((x * 12).floor() + (y * 12 / (0.4 + y)).floor()) % 2
    ground = torch.stack((0.25 + 0.45 * squares, 0.3 + 0.3 * squares, 0.2 + 0.35 * squares))
    scene = torch.where(y > 0.55, ground, sky)
    discs = ((0.3, 0.35, 0.16, (0.9, 0.2, 0.15)), (0.75, 0.6, 0.2, (0.1, 0.55, 0.3)), (0.55, 0.2, 0.07, (1, 1, 0.9)))
    for cx, cy, radius, color in discs:
        inside = (x - cx).square() + (y - cy).square() < radius**2
        scene = torch.where(inside, torch.tensor(color, dtype=torch.float32)[:, None, None], scene)
    bars = (y > 0.75) & (y < 0.92) & (((x * 40).floor() % 2) == 0)
    scene = torch.where(bars, 0.05, scene)[None]
    # The mean along a slanted stretch, as a shutter sees a moving camera.
    steps = [F.pad(scene, (8, 8, 4, 4), mode="replicate")[..., 4 + k // 2 :, 8 + k :] for k in range(-8, 9)]
    return torch.stack([s[..., :height, :width] for s in steps]).mean(0).contiguous()


def pictures(height: int, width: int) -> Tensor:
    """(2, 3, height, width): noise and a picture."""
    return torch.cat((noise(height, width), picture(height, width)))


@cache
def leaves(height: int, width: int, seed: int) -> Tensor:
    """(1, 3, height, width) of a blurred picture whose edges, sizes and contrasts are distributed as in photographs:
    opaque leaves of all sizes that hide each other (the dead leaves model: Lee, Mumford & Huang, IJCV 2001), shaded,
    smeared along a straight line, with a little noise. float32 in [0, 1] on the CPU. Not to be written to.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    margin = 8
    y = torch.arange(height + 2.0 * margin)[:, None]
    x = torch.arange(width + 2.0 * margin)[None]
    scene = torch.zeros(3, height + 2 * margin, width + 2 * margin)
    for n, leaf in enumerate(torch.rand((_LEAVES, 8), generator=generator).tolist()):
        size, cy, cx, turn, flat, light, red, blue = leaf
        radius = 4 / (size + 0.025)  # as many of a size as its square goes into the picture, from 4 to 160 px
        dy, dx = y - cy * (height + 2 * margin), x - cx * (width + 2 * margin)
        along = (dx * math.cos(math.pi * turn) + dy * math.sin(math.pi * turn)) / radius
        across = (dy * math.cos(math.pi * turn) - dx * math.sin(math.pi * turn)) / (radius * (0.3 + 0.7 * flat))
        inside = along.square() + across.square() < 1 if n % 2 else (along.abs() < 1) & (across.abs() < 1)
        color = torch.tensor([red - 0.5, 0.0, blue - 0.5]) * 0.25 + light**1.5
        shaded = color[:, None, None] * (1 + 0.3 * (flat - 0.5) * along)
        scene = torch.where(inside, shaded, scene)
    length, direction, grain = torch.rand(3, generator=generator).tolist()
    steps = []
    for n in range(-8, 9):
        top = margin + round(math.sin(math.pi * direction) * margin * length * n / 8)
        left = margin + round(math.cos(math.pi * direction) * margin * length * n / 8)
        steps.append(scene[:, top : top + height, left : left + width])
    blurred = torch.stack(steps).mean(0)
    blurred += 0.01 * grain * torch.randn(blurred.shape, generator=generator)
    return blurred.clamp(0, 1)[None].contiguous()


#: The modules that define what networks compute and how they are exported.
_DEFINING = ("base", "ensemble", "export", "mimo_unet", "simple")


@cache
def _code() -> str:
    digest = hashlib.blake2b(__version__.encode(), digest_size=8)
    for name in _DEFINING:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


def fingerprint(model: ResidualModel) -> str:
    """A name for what a model computes: its class, architecture and weights, and this package's code."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{type(model).__qualname__} {getattr(model, 'config', '')} {_code()}".encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
