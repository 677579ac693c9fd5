"""What a network costs and sees: parameters, arithmetic, receptive field; the rows of ``streamdeblur models``."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from streamdeblur.errors import WeightsError
from streamdeblur.models.checkpoint import read_metadata
from streamdeblur.models.ensemble import SelfEnsemble
from streamdeblur.models.mimo_unet import AFF, MIMOUNet, MIMOUNetConfig, network_from_state, parameter_shapes
from streamdeblur.models.registry import shipped_weights, variants

#: Pixels to a side of what ``gflop`` runs on: a multiple of 4, so that no layer rounds.
_SIDE = 32


class Description(TypedDict):
    """One row of ``describe``. Radius and field in pixels; weights: path of those that ship; score: PSNR in dB."""

    name: str
    summary: str
    parameters: int
    gflop_720p: float
    receptive_radius: int
    receptive_field: int
    weights: str | None
    score: float | None


def parameters(model: nn.Module | MIMOUNetConfig) -> int:
    """How many numbers are learned."""
    if isinstance(model, MIMOUNetConfig):
        return sum(math.prod(shape) for shape in parameter_shapes(model).values())
    return sum(p.numel() for p in model.parameters())


def receptive_radius(config: MIMOUNetConfig | None) -> int:
    """Pixels seen to each side at most; None stands for a model without layers."""
    return 0 if config is None else config.receptive_radius


@cache
def gflop(config: MIMOUNetConfig, height: int = 720, width: int = 1280, *, small_heads: bool = False) -> float:
    """Convolution arithmetic of one image in 1e9 operations, a multiply-add counted as two.

    Full-scale output only; with ``small_heads`` also those of 1/4 and 1/2 scale, which inference leaves out.

    Counted as the paper defines the layers, so that figures compare with those of other programs; mixing before
    resizing (see ``AFF``) makes ours 0.7 % less. Biases, activations and sums are left out. height and width: pixels,
    multiples of 4.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):  # every input value meets every tap
            total += 2 * inputs[0].shape[-2:].numel() * module.weight.numel()
        elif isinstance(module, nn.Conv2d):  # every output position meets every tap
            total += 2 * output.shape[-2:].numel() * module.weight.numel()
        elif isinstance(module, AFF):  # its 1x1 convolution of the concatenation is not called as a module
            total += 2 * output.shape[-2:].numel() * module.mix.weight.numel()

    # Weights of any value, a small picture, then in proportion: the meta device would do without arithmetic, but its
    # operations load PyTorch's compiler, more than a second of every start.
    net = network_from_state(config, {name: torch.empty(shape) for name, shape in parameter_shapes(config).items()})
    for module in net.modules():
        module.register_forward_hook(count)
    x = torch.zeros(1, 3, _SIDE, _SIDE)
    with torch.inference_mode():
        if small_heads:
            net(x)
        else:
            net.residual(x)
    return total / 1e9 * (height * width) / _SIDE**2


def flop_per_pixel(model: nn.Module) -> float:
    """Convolution operations of ``ResidualModel.residual`` for one input pixel, every pass of an ensemble counted."""
    net = model.net if isinstance(model, SelfEnsemble) else model
    passes = model.transforms if isinstance(model, SelfEnsemble) else 1
    return passes * gflop(net.config) * 1e9 / (720 * 1280) if isinstance(net, MIMOUNet) else 0.0


def describe() -> list[Description]:
    """One row a variant, from cheap to dear; self-ensembles count every pass. A damaged shipped file has no score."""
    rows: list[Description] = []
    for variant in variants().values():
        path = shipped_weights(variant)
        radius = receptive_radius(variant.config)
        rows.append(
            Description(
                name=variant.name,
                summary=variant.summary,
                parameters=0 if variant.config is None else parameters(variant.config),
                gflop_720p=0.0 if variant.config is None else variant.passes * gflop(variant.config),
                receptive_radius=radius,
                receptive_field=2 * radius + 1,
                weights=None if path is None else str(path),
                # A checkpoint's score is of the network alone, not of its self-ensemble.
                score=None if path is None or variant.ensemble else _score(str(path)),
            )
        )
    return rows


def _score(path: str) -> float | None:
    try:
        return read_metadata(path).score
    except WeightsError:
        return None
