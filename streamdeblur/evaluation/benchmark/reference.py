"""The loop of research code, which everything is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdeblur.errors import UsageError
from streamdeblur.models.mimo_unet import AFF, FAM, MIMOUNet, ResidualBlock
from streamdeblur.models.registry import build, resolve
from streamdeblur.restore.blend import pad_frame
from streamdeblur.restore.memory import activation_bytes
from streamdeblur.restore.tiles import round_up

#: What a table calls it, and what it is.
NAME = "reference"
WORDS = "eager, float32, contiguous, whole frame, all heads, one frame at a time, everything in turn"

#: Its peak memory over what ``activation_bytes`` counts.
_OVERHEAD = 1.6


def exists(model: str) -> bool:
    """Whether there is such a loop for a variant: it is a network, and not an ensemble of its passes."""
    variant = resolve(model)
    return variant.config is not None and not variant.ensemble


class _Block(nn.Module):
    """A residual block as research code runs it: the sum is a tensor of its own."""

    def __init__(self, ours: ResidualBlock) -> None:
        super().__init__()
        self.conv1, self.conv2 = ours.conv1, ours.conv2

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv2(F.relu(self.conv1(x), inplace=True)) + x)


class _FAM(nn.Module):
    """FAM likewise."""

    def __init__(self, ours: FAM) -> None:
        super().__init__()
        self.conv = ours.conv

    def forward(self, x: Tensor, scm: Tensor) -> Tensor:
        return cast(Tensor, x + self.conv(x * scm))


class _AFF(nn.Module):
    """AFF as the paper draws it (Fig. 4c) and research code runs it: resize all, concatenate, convolve."""

    def __init__(self, ours: AFF) -> None:
        super().__init__()
        self.level, self.mix, self.conv, self.dropout = ours.level, ours.mix, ours.conv, ours.dropout

    def forward(self, *encoded: Tensor) -> Tensor:
        resized = [
            F.interpolate(features, scale_factor=2.0 ** (level - self.level))
            for level, features in enumerate(encoded, start=1)
        ]
        mixed = F.relu(self.mix(torch.cat(resized, 1)), inplace=True)
        return cast(Tensor, self.dropout(self.conv(mixed)))


_PLAIN: dict[type[nn.Module], Callable[[Any], nn.Module]] = {ResidualBlock: _Block, FAM: _FAM, AFF: _AFF}


def as_published(net: MIMOUNet) -> MIMOUNet:
    """Change ``net`` in place to run as the authors' program does, without our sums in place and our cheaper fusion.

    Weights and results stay.
    """
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in _PLAIN:
                setattr(parent, name, _PLAIN[type(child)](child))
    return net


class Reference:
    """What the authors' program does with a frame: (1, 3, H, W) float32 in [0, 1] → the restored one.

    On CUDA with what PyTorch then does by default: convolutions in TF32, cuDNN's heuristics. Frames are padded to
    multiples of 4. A self-ensemble is not in it: that is a choice of quality. Raises UsageError for a model that is no
    network.
    """

    def __init__(self, model: str, weights: str | None, device: torch.device) -> None:
        if not exists(model):
            raise UsageError(f"{model} has no reference loop", "take mimo-unet-small, mimo-unet or mimo-unet-plus")
        net = build(model, weights)
        assert isinstance(net, MIMOUNet)
        #: Bytes for a pixel of the frame, roughly.
        self.bytes_per_pixel = activation_bytes(net, torch.float32) * _OVERHEAD
        self._net = as_published(net).to(device)
        self._device = device

    def __call__(self, image: Tensor) -> Tensor:
        return self._run(image, True)

    def exact(self, image: Tensor) -> Tensor:
        """The same in float32 throughout, on CUDA too: what other results are compared with."""
        return self._run(image, False)

    def _run(self, image: Tensor, rounded: bool) -> Tensor:
        height, width = image.shape[-2:]
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=rounded):
            padded = pad_frame(image.to(self._device), (round_up(height), round_up(width)))
            return cast(Tensor, self._net(padded)[-1])[..., :height, :width]
