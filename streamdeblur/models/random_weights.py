"""Random weights whose output is a sane image: for tests and benchmarks, where only the arithmetic matters."""

from __future__ import annotations

import math

import torch

from streamdeblur.models.checkpoint import State
from streamdeblur.models.mimo_unet import MIMOUNetConfig, parameter_shapes

#: Root mean square of the residual aimed at (features are near 1), in nominal [0, 1]: a few levels of 8 bits.
RESIDUAL_RMS = 3 / 255


def random_state(config: MIMOUNetConfig, seed: int) -> State:
    """Deterministic float32 weights for ``config``; the global random state is neither used nor changed.

    He initialisation (variance 2 / fan-in) keeps features at the scale of the input through ReLUs; the second
    convolution of a residual block is scaled down by the number of blocks, or 20 of them would overflow half precision;
    the heads are scaled to a correction of a few levels.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    state: State = {}
    for name, shape in parameter_shapes(config).items():
        module, parameter = name.rsplit(".", 1)
        head = module.startswith("head")
        if parameter == "bias":
            std = 0.1 * RESIDUAL_RMS if head else 0.02
        elif head:
            std = RESIDUAL_RMS / math.sqrt(math.prod(shape[1:]))
        elif module.startswith("up"):  # (in, out, 4, 4) with stride 2: four taps reach every output
            std = math.sqrt(2 / (4 * shape[0]))
        elif module.startswith(("encoder", "decoder")) and module.endswith("conv2"):
            std = math.sqrt(0.25 / (config.blocks * math.prod(shape[1:])))
        elif module.startswith("fusion"):  # a correction on top of the features, and of a product
            std = math.sqrt(0.25 / math.prod(shape[1:]))
        else:
            std = math.sqrt(2 / math.prod(shape[1:]))
        state[name] = torch.randn(shape, generator=generator) * std
    return state
