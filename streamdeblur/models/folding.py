"""MIMO-UNet rewritten for inference on CPUs: weights packed once, and every sum and ReLU done inside a convolution.

Exact rewritings, in real numbers: a 1x1 convolution of a concatenation is the sum of one convolution for each part, so
that no concatenation is made; a sum or a ReLU after a convolution is done on its result while that is in the cache.
The operations are oneDNN's through ``torch.ops.mkldnn``, those that ``torch.compile`` puts in the place of
convolutions. Its weights are in the blocked layout that oneDNN asks for, so nothing is reordered between calls.

On two cores with AMX this takes 0.6 of the time of eager mode in bf16, with nothing to compile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdeblur.models.base import ResidualModel
from streamdeblur.models.ensemble import SelfEnsemble
from streamdeblur.models.mimo_unet import AFF, FAM, SCM, ConcatFusion, MIMOUNet

_NO_DILATION = [1, 1]


def can_fold(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether ``fold`` takes this network here: PyTorch has oneDNN and its fused operations, and they the type on this
    CPU (bf16 wants AVX-512, or its like)."""
    net = model.net if isinstance(model, SelfEnsemble) else model
    names = (
        "_convolution_pointwise",
        "_convolution_pointwise_",
        "_convolution_transpose_pointwise",
        "_reorder_convolution_weight",
        "_reorder_convolution_transpose_weight",
    )
    return (
        isinstance(net, MIMOUNet)
        and dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in names)
        and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


class Convolution(Protocol):
    """A convolution and what follows it; tensors (N, C, H, W) in channels_last, of the network's type."""

    def __call__(self, x: Tensor, *, relu: bool = False, out: Tensor | None = None) -> Tensor:
        """The convolution of ``x``; ``out``, of the size of the result, may be written over and returned."""

    def add_to(self, other: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
        """``other`` plus the convolution of ``x``, written over ``other``."""

    def add_enlarged(self, small: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
        """The convolution of ``x`` plus ``small`` at twice its height and width, each pixel four times."""


class OneDNN:
    """What a folded network is made of: oneDNN's operations. Others of its kind have another way for some of them.

    channels: numbers of channels that nothing outside sees are rounded up to multiples of it, with zeros.
    """

    channels = 1

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def convolution(self, weight: Tensor, bias: Tensor | None, stride: int) -> Convolution:
        """Of weights (outputs, inputs, k, k), k odd, with a border of k // 2 zeros."""
        return _Conv(weight, bias, self.dtype, stride)

    def up(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The transposed convolution of weights (inputs, outputs, 4, 4), stride 2, border 1, then ReLU."""
        return _Up(weight, bias, self.dtype)


def fold(model: ResidualModel, dtype: torch.dtype, layers: OneDNN | None = None) -> ResidualModel:
    """A network for inference on the CPU that equals ``model`` but for rounding; it copies the weights.

    It takes and gives (N, 3, H, W) of ``dtype`` (float32 or bfloat16). layers: what to make it of. Raises ValueError
    where ``can_fold`` says no.
    """
    if not can_fold(model, dtype):
        raise ValueError(f"no fused {dtype} convolutions for {type(model).__name__} here")
    if isinstance(model, SelfEnsemble):
        return SelfEnsemble(fold(model.net, dtype, layers), model.transforms)
    return FoldedMIMOUNet(cast(MIMOUNet, model), layers if layers is not None else OneDNN(dtype))


class _Conv:
    """A convolution with packed weights, by oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, stride: int) -> None:
        pad = weight.shape[-1] // 2
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.where = [pad, pad], [stride, stride], _NO_DILATION, 1
        plain = weight.detach().to(dtype).contiguous()
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(plain, *self.where)

    def __call__(self, x: Tensor, *, relu: bool = False, out: Tensor | None = None) -> Tensor:
        unary = "relu" if relu else "none"
        y = torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.where, unary, [], "")
        return cast(Tensor, y)

    def add_to(self, other: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
        arguments: tuple[Any, ...] = ("add", None, "relu" if relu else None, [], "")
        y = torch.ops.mkldnn._convolution_pointwise_.binary(other, x, self.weight, self.bias, *self.where, *arguments)
        return cast(Tensor, y)

    def add_enlarged(self, small: Tensor, x: Tensor, *, relu: bool = False) -> Tensor:
        return self.add_to(F.interpolate(small, scale_factor=2.0), x, relu=relu)


class _Up:
    """A transposed convolution of stride 2 with ReLU."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.where = [1, 1], [0, 0], [2, 2], _NO_DILATION, 1
        plain = weight.detach().to(dtype).contiguous()
        self.weight = torch.ops.mkldnn._reorder_convolution_transpose_weight(plain, *self.where)

    def __call__(self, x: Tensor) -> Tensor:
        y = torch.ops.mkldnn._convolution_transpose_pointwise(x, self.weight, self.bias, *self.where, "relu", [], "")
        return cast(Tensor, y)


def _rounded_up(weight: Tensor, bias: Tensor | None, outputs: int, inputs: int) -> tuple[Tensor, Tensor | None]:
    """A convolution with zeros for further channels, up to these numbers."""
    more = outputs - weight.shape[0]
    weight = F.pad(weight, (0, 0, 0, 0, 0, inputs - weight.shape[1], 0, more))
    return weight, None if bias is None else F.pad(bias, (0, more))


def _subsample(x: Tensor, step: int) -> Tensor:
    return x[..., ::step, ::step].contiguous(memory_format=torch.channels_last)


class FoldedMIMOUNet(ResidualModel):
    """See ``fold``. In inference mode only; several threads may call it."""

    def __init__(self, net: MIMOUNet, layers: OneDNN) -> None:
        super().__init__()
        self.config = config = net.config
        self.size_multiple = net.size_multiple
        self.dtype = layers.dtype

        def conv(module: nn.Conv2d) -> Convolution:
            return layers.convolution(module.weight, module.bias, int(module.stride[0]))

        def split(
            module: nn.Conv2d, channels: tuple[int, ...], biased: int = 0, strides: tuple[int, ...] = (1, 1, 1)
        ) -> list[Convolution]:
            """One convolution for each part of a concatenation, the bias with one of them."""
            parts = module.weight.split(channels, 1)
            return [
                layers.convolution(w, module.bias if i == biased else None, s)
                for i, (w, s) in enumerate(zip(parts, strides, strict=False))
            ]

        def blocks(sequence: nn.Sequential) -> list[tuple[Convolution, Convolution]]:
            pairs: list[Any] = list(sequence)
            return [(conv(block.conv1), conv(block.conv2)) for block in pairs]

        def scm(module: SCM) -> tuple[list[Convolution], list[Convolution]]:
            found: list[Convolution] = []
            inputs, bias = 3, module.mix.bias
            for one in (module.conv1, module.conv2, module.conv3, module.conv4):
                outputs = math.ceil(one.out_channels / layers.channels) * layers.channels
                found.append(layers.convolution(*_rounded_up(one.weight, one.bias, outputs, inputs), 1))
                inputs = outputs
            of_image, of_features = module.mix.weight.split((3, module.mix.in_channels - 3), 1)
            of_features, _ = _rounded_up(of_features, None, of_features.shape[0], inputs)
            return found, [layers.convolution(of_image, bias, 1), layers.convolution(of_features, None, 1)]

        def fusion(module: nn.Module) -> list[Convolution]:
            if isinstance(module, FAM):
                return [conv(module.conv)]
            if isinstance(module, ConcatFusion):
                half = module.conv.in_channels // 2
                return split(module.conv, (half, half))
            return []

        def aff(module: AFF) -> tuple[list[Convolution], Convolution]:
            strides = (1, 1, 1) if module.level == 1 else (2, 1, 1)  # what is larger is needed at every other pixel
            return split(module.mix, module.channels, module.level - 1, strides), conv(module.conv)

        c1, c2 = config.width, 2 * config.width
        self._stem, self._down2, self._down3 = conv(net.stem), conv(net.down2), conv(net.down3)
        self._encoders = [blocks(m) for m in (net.encoder1, net.encoder2, net.encoder3)]
        self._decoders = [blocks(m) for m in (net.decoder1, net.decoder2, net.decoder3)]
        self._scm = [scm(m) for m in (net.scm2, net.scm3)] if config.mise else []
        self._fusion = [fusion(m) for m in (net.fusion2, net.fusion3)] if config.mise else []
        self._aff = [aff(m) for m in (net.aff1, net.aff2)] if config.aff else []
        self._up1, self._up2 = (layers.up(m.weight, m.bias) for m in (net.up1, net.up2))
        self._merge1, self._merge2 = split(net.merge1, (c1, c1)), split(net.merge2, (c2, c2))
        self._head = conv(net.head1)

    @property
    def receptive_radius(self) -> int:
        return self.config.receptive_radius

    def residual(self, x: Tensor) -> Tensor:
        self.check_input(x)
        x = x.contiguous(memory_format=torch.channels_last)
        e1 = _blocks(self._encoders[0], self._stem(x, relu=True))
        e2 = _blocks(self._encoders[1], self._fuse(0, self._down2(e1, relu=True), x))
        e3 = _blocks(self._encoders[2], self._fuse(1, self._down3(e2, relu=True), x))
        skip1, skip2 = (self._aff1(e1, e2, e3), self._aff2(e1, e2, e3)) if self._aff else (e1, e2)
        del e1, e2
        d2 = self._merge(self._merge2, self._up2(_blocks(self._decoders[2], e3)), skip2)
        del e3, skip2
        d1 = self._merge(self._merge1, self._up1(_blocks(self._decoders[1], d2)), skip1)
        del skip1, d2
        return self._head(_blocks(self._decoders[0], d1))

    def _fuse(self, index: int, z: Tensor, image: Tensor) -> Tensor:
        """Features joined with those of the image at 1/2 (index 0) or 1/4; ``z`` is not used afterwards."""
        if not self._scm:
            return z
        layers, (of_image, of_features) = self._scm[index]
        small = _subsample(image, 2 << index)
        y = small
        for layer in layers:
            y = layer(y, relu=True)
        scm = of_features.add_to(of_image(small), y)
        if self.config.fusion == "sum":
            return z.add_(scm)
        if self.config.fusion == "concat":
            of_z, of_scm = self._fusion[index]
            return of_scm.add_to(of_z(z), scm)
        return self._fusion[index][0].add_to(z, scm.mul_(z))

    def _aff1(self, e1: Tensor, e2: Tensor, e3: Tensor) -> Tensor:
        (of1, of2, of3), conv = self._aff[0]
        half = of2.add_enlarged(of3(e3), e2)
        return conv(of1.add_enlarged(half, e1, relu=True))

    def _aff2(self, e1: Tensor, e2: Tensor, e3: Tensor) -> Tensor:
        (of1, of2, of3), conv = self._aff[1]
        both = of1.add_enlarged(of3(e3), e1)
        return conv(of2.add_to(both, e2, relu=True))

    @staticmethod
    def _merge(parts: list[Convolution], enlarged: Tensor, skip: Tensor) -> Tensor:
        return parts[1].add_to(parts[0](enlarged), skip, relu=True)


def _blocks(layers: list[tuple[Convolution, Convolution]], x: Tensor) -> Tensor:
    """Residual blocks; ``x`` is written over."""
    between: Tensor | None = None
    for first, second in layers:
        between = first(x, relu=True, out=between)
        x = second.add_to(x, between)
    return x
