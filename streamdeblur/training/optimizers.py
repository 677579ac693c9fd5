"""Adam, AdamW and Muon, with one layout of state: ``step``, ``exp_avg``, and ``exp_avg_sq`` but for Muon's matrices."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from streamdeblur.training.recipe import Optimizer

#: Newton-Schulz coefficients of Muon's authors: they push all singular values near 1 in five steps.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
#: Root mean square of an update of AdamW, which Muon's are scaled to, so that learning rates mean the same.
_UPDATE_RMS = 0.2
_MOMENTUM = 0.95


def make_optimizer(options: Optimizer, net: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of a recipe over all parameters of ``net``."""
    if options.name == "muon":
        return Muon(net, options)
    kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    return kind(
        net.parameters(),
        lr=options.lr,
        betas=options.betas,
        weight_decay=options.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal: every direction of a weight matrix moves alike (Jordan et al. 2024, Liu et al. 2025).

    A convolution is the matrix (out, in * kh * kw). Stem, heads, convolutions of the image, and biases take AdamW with
    the recipe's betas, at 1/``muon_ratio`` of the matrices' rate. Fewer steps to the same loss, which counts where
    steps are dear; one process gives the same result to the bit every time.
    """

    def __init__(self, net: nn.Module, options: Optimizer) -> None:
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in net.named_parameters():
            inner = parameter.dim() == 4 and min(parameter.shape[:2]) > 3 and not name.startswith(("stem", "head"))
            (matrices if inner else others).append(parameter)
        groups = [{"params": matrices, "muon": True}, {"params": others, "muon": False}]
        defaults = {"lr": options.lr, "betas": options.betas, "weight_decay": options.weight_decay}
        super().__init__(groups, defaults)
        self._ratio = options.muon_ratio

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not group["muon"]:
                for parameter in given:
                    self._other(parameter, group)
                continue
            # Matrices of one shape at once: a network has a hundred of them, and most are small.
            for _, alike in itertools.groupby(sorted(given, key=_shape), key=_shape):
                self._matrices(list(alike), group)
        return loss

    def _matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """One update of parameters of one shape."""
        flat = torch.stack([self._direction(parameter) for parameter in parameters])
        updates = orthogonal(flat).mul_(_UPDATE_RMS * max(flat.shape[1:]) ** 0.5)
        rate = group["lr"] * self._ratio
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - rate * group["weight_decay"]).add_(update.view(parameter.shape), alpha=-rate)

    def _direction(self, parameter: Tensor) -> Tensor:
        """The gradient with momentum, as a matrix."""
        gradient = parameter.grad
        assert gradient is not None
        momentum = self._state(parameter, squares=False)["exp_avg"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(momentum, _MOMENTUM).reshape(parameter.shape[0], -1)

    def _other(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self._state(parameter, squares=True)
        gradient = parameter.grad
        assert gradient is not None
        first, second = group["betas"]
        count = float(state["step"])
        mean = state["exp_avg"].lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (square / (1 - second**count)).sqrt_().add_(1e-8)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, root, value=-group["lr"] / (1 - first**count))

    def _state(self, parameter: Tensor, *, squares: bool) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # on the CPU: it is only counted with
            state["exp_avg"] = torch.zeros_like(parameter)
            if squares:
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        return state


def _shape(parameter: Tensor) -> tuple[int, ...]:
    return tuple(parameter.shape)


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with all singular values near 1 (0.7 to 1.2): five Newton-Schulz steps, in float32.

    matrix: (..., m, n), any float dtype; each of several is treated alone. Returns a new contiguous float32 tensor of
    that shape; zeros stay zeros.
    """
    x = matrix.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result.contiguous()
