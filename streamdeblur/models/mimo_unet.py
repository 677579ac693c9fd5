"""MIMO-UNet, with the switches of its ablations.

Cho et al., "Rethinking Coarse-to-Fine Approach in Single Image Deblurring", ICCV 2021, Sec. 3, Figs. 3 and 4.
Where the paper leaves something open, this follows the authors' released program (github.com/chosj95/MIMO-UNet), so
that their checkpoints give the same numbers; ``streamdeblur.models.authors`` maps their parameter names to these.

Levels are numbered as in the paper: 1 is full scale, 2 half, 3 a quarter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from types import MappingProxyType
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdeblur.models.base import ResidualModel
from streamdeblur.models.receptive_field import Reach

Fusion = Literal["fam", "concat", "sum"]


@dataclass(frozen=True, slots=True)
class MIMOUNetConfig:
    """Architecture of one network.

    width: channels at full scale, even; levels have width, 2 width, 4 width. blocks: residual blocks in each EB and DB.
    mise: multi-scale inputs (SCM and fusion). mosd: multi-scale outputs (two small heads). aff: asymmetric feature
    fusion, else plain U-Net skips. fusion: how MISE joins features (Table 3). dropout: on AFF outputs, training only.
    Raises ValueError on a value out of range.
    """

    width: int = 32
    blocks: int = 8
    mise: bool = True
    mosd: bool = True
    aff: bool = True
    fusion: Fusion = "fam"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "blocks"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} {value!r} is not a whole number")
        for name in ("mise", "mosd", "aff"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} {getattr(self, name)!r} is not true or false")
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width {self.width} is not an even number of at least 2")
        if self.blocks < 1:
            raise ValueError(f"blocks {self.blocks} is not at least 1")
        if self.fusion not in get_args(Fusion):
            raise ValueError(f"fusion {self.fusion!r} is not one of {', '.join(get_args(Fusion))}")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout!r} is not in 0..1")

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> MIMOUNetConfig:
        """Inverse of ``to_json``; keys that are absent take their defaults. Raises ValueError on anything else."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"{text!r} is not a JSON object")
        unknown = sorted(values.keys() - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"unknown architecture key {unknown[0]!r}")
        return cls(**values)

    def differences(self, other: MIMOUNetConfig) -> list[str]:
        """The switches that change parameters or inference and differ; dropout does neither."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{k} {mine[k]} and {theirs[k]}" for k in mine if k != "dropout" and mine[k] != theirs[k]]

    @property
    def receptive_radius(self) -> int:
        """Pixels of the input that ``MIMOUNet.residual`` sees to each side at most; 241 with 8 blocks, 577 with 20."""
        return _reach(self).radius


#: The published networks (Sec. 4.1); the authors' release adds dropout to MIMO-UNet+.
MIMO_UNET = MIMOUNetConfig()
MIMO_UNET_PLUS = MIMOUNetConfig(blocks=20, dropout=0.1)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def _relu(x: Tensor) -> Tensor:
    # In place: always on the fresh output of a convolution, whose backward does not need it.
    return F.relu(x, inplace=True)


class ResidualBlock(nn.Module):
    """conv3x3, ReLU, conv3x3, plus identity; no normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 3)
        self.conv2 = _conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(_relu(self.conv1(x)))
        return y.add_(x)


def _blocks(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


class SCM(nn.Module):
    """Shallow convolutional module (Fig. 4a): features of the downsampled input image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(3, channels // 4, 3)
        self.conv2 = _conv(channels // 4, channels // 2, 1)
        self.conv3 = _conv(channels // 2, channels // 2, 3)
        self.conv4 = _conv(channels // 2, channels - 3, 1)
        self.mix = _conv(channels, channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        y = image
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            y = _relu(conv(y))
        return cast(Tensor, self.mix(torch.cat((image, y), 1)))


class FAM(nn.Module):
    """Feature attention module (Fig. 4b): ``x + conv(x * scm)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels, 3)

    def forward(self, x: Tensor, scm: Tensor) -> Tensor:
        y: Tensor = self.conv(x * scm)
        return y.add_(x)


class ConcatFusion(nn.Module):
    """Table 3, concatenation: conv3x3 over both, back to the channels of one. The paper gives no more than the name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(2 * channels, channels, 3)

    def forward(self, x: Tensor, scm: Tensor) -> Tensor:
        return cast(Tensor, self.conv(torch.cat((x, scm), 1)))


class SumFusion(nn.Module):
    """Table 3, element-wise sum; no parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, scm: Tensor) -> Tensor:
        return x + scm


_FUSIONS: dict[Fusion, type[nn.Module]] = {"fam": FAM, "concat": ConcatFusion, "sum": SumFusion}


class AFF(nn.Module):
    """Asymmetric feature fusion (Fig. 4c, Eq. 6): conv1x1 + ReLU over all encoder outputs at one level, conv3x3.

    A 1x1 convolution of a concatenation is the sum of 1x1 convolutions, and it commutes with nearest-neighbour
    resizing. So each encoder output is mixed at the smaller of both scales and then enlarged: the concatenation (7
    times the width at full scale, the largest tensor of the network by far) never exists.
    """

    def __init__(self, level: int, width: int, dropout: float) -> None:
        super().__init__()
        self.level = level
        self.channels = (width, 2 * width, 4 * width)
        outputs = self.channels[level - 1]
        self.mix = _conv(sum(self.channels), outputs, 1)
        self.conv = _conv(outputs, outputs, 3)
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()

    def forward(self, *encoded: Tensor) -> Tensor:
        """encoded: the outputs of EB 1, 2, 3."""
        weights = self.mix.weight.split(self.channels, 1)
        y = F.conv2d(encoded[self.level - 1], weights[self.level - 1], self.mix.bias)
        for level, (features, weight) in enumerate(zip(encoded, weights, strict=True), start=1):
            if level < self.level:
                step = 2 ** (self.level - level)
                y.add_(F.conv2d(features[..., ::step, ::step], weight))
            elif level > self.level:
                y.add_(F.interpolate(F.conv2d(features, weight), scale_factor=2 ** (level - self.level)))
        return cast(Tensor, self.dropout(self.conv(_relu(y))))


class MIMOUNet(ResidualModel):
    """The network. ``forward`` is for training, ``residual`` for inference.

    Both take (N, 3, H, W) RGB in [0, 1], H and W multiples of 4, any floating dtype; work and result stay in
    channels_last where module and input are.
    """

    size_multiple = 4

    def __init__(self, config: MIMOUNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MIMOUNetConfig()
        c1, c2, c3 = (config.width * k for k in (1, 2, 4))
        self.stem = _conv(3, c1, 3)
        self.encoder1 = _blocks(c1, config.blocks)
        self.down2 = _conv(c1, c2, 3, stride=2)
        self.encoder2 = _blocks(c2, config.blocks)
        self.down3 = _conv(c2, c3, 3, stride=2)
        self.encoder3 = _blocks(c3, config.blocks)
        if config.mise:
            self.scm2, self.scm3 = SCM(c2), SCM(c3)
            self.fusion2, self.fusion3 = _FUSIONS[config.fusion](c2), _FUSIONS[config.fusion](c3)
        if config.aff:
            self.aff1, self.aff2 = (AFF(level, config.width, config.dropout) for level in (1, 2))
        self.decoder3 = _blocks(c3, config.blocks)
        self.up2 = nn.ConvTranspose2d(c3, c2, 4, 2, 1)
        self.merge2 = _conv(2 * c2, c2, 1)
        self.decoder2 = _blocks(c2, config.blocks)
        self.up1 = nn.ConvTranspose2d(c2, c1, 4, 2, 1)
        self.merge1 = _conv(2 * c1, c1, 1)
        self.decoder1 = _blocks(c1, config.blocks)
        self.head1 = _conv(c1, 3, 3)
        if config.mosd:
            self.head2, self.head3 = _conv(c2, 3, 3), _conv(c3, 3, 3)

    @property
    def receptive_radius(self) -> int:
        return self.config.receptive_radius

    def residual(self, x: Tensor) -> Tensor:
        """The full-scale correction ``o(DB_1)`` of Eq. 5, before the input is added; the small heads do not run."""
        self.check_input(x)
        return cast(Tensor, self.head1(self._decode(x)[-1]))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Restored images at 1/4, 1/2 and full scale (Eq. 5); only the last without MOSD. Unclamped."""
        self.check_input(x)
        d3, d2, d1 = self._decode(x)
        full: Tensor = x + self.head1(d1)
        if not self.config.mosd:
            return (full,)
        return (x[..., ::4, ::4] + self.head3(d3), x[..., ::2, ::2] + self.head2(d2), full)

    def _encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The skips of levels 1 and 2 and the output of EB 3."""
        e1 = self.encoder1(_relu(self.stem(x)))
        z = _relu(self.down2(e1))
        if self.config.mise:
            z = self.fusion2(z, self.scm2(x[..., ::2, ::2]))
        e2 = self.encoder2(z)
        z = _relu(self.down3(e2))
        if self.config.mise:
            z = self.fusion3(z, self.scm3(x[..., ::4, ::4]))
        e3 = self.encoder3(z)
        if self.config.aff:
            return self.aff1(e1, e2, e3), self.aff2(e1, e2, e3), e3
        return e1, e2, e3

    def _decode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs of DB 3, 2, 1."""
        skip1, skip2, e3 = self._encode(x)
        d3 = self.decoder3(e3)
        d2 = self.decoder2(_relu(self.merge2(torch.cat((_relu(self.up2(d3)), skip2), 1))))
        z = _relu(self.merge1(torch.cat((_relu(self.up1(d2)), skip1), 1)))
        del skip1, skip2  # the largest tensors; DB 1 needs the room
        return d3, d2, self.decoder1(z)


@cache
def parameter_shapes(config: MIMOUNetConfig) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the network's state, in its order; nothing is allocated."""
    with torch.device("meta"):
        net = MIMOUNet(config)
    return MappingProxyType({name: tuple(value.shape) for name, value in net.state_dict().items()})


def network_from_state(config: MIMOUNetConfig, state: Mapping[str, Tensor]) -> MIMOUNet:
    """A network that owns ``state``; no random numbers are drawn, unlike by the constructor."""
    with torch.device("meta"):
        net = MIMOUNet(config)
    net.load_state_dict(dict(state), strict=True, assign=True)
    return net


def _reach(config: MIMOUNetConfig) -> Reach:
    """The layer graph of ``MIMOUNet.residual``, for receptive fields."""

    def blocks(z: Reach) -> Reach:
        return z.conv(3, repeats=2 * config.blocks)

    def fuse(z: Reach, image: Reach) -> Reach:
        if not config.mise:
            return z
        both = z | image.conv(3, repeats=2)
        return both if config.fusion == "sum" else both.conv(3)

    x = Reach()
    e1 = blocks(x.conv(3))
    e2 = blocks(fuse(e1.conv(3, stride=2), x.subsample()))
    e3 = blocks(fuse(e2.conv(3, stride=2), x.subsample().subsample()))
    skip1, skip2 = e1, e2
    if config.aff:
        skip1 = (e1 | e2.upsample(2) | e3.upsample(4)).conv(3)
        skip2 = (e1.subsample() | e2 | e3.upsample(2)).conv(3)
    d3 = blocks(e3)
    d2 = blocks(d3.transposed_conv() | skip2)
    return blocks(d2.transposed_conv() | skip1).conv(3)
