"""Muon: what its matrices get, what the rest gets, and that both can be resumed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from streamdeblur.models import MIMOUNet, MIMOUNetConfig
from streamdeblur.training.optimizers import Muon, make_optimizer, orthogonal
from streamdeblur.training.recipe import Optimizer

TINY = MIMOUNetConfig(width=4, blocks=1)


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16), (1, 9)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    result = orthogonal(matrix).double().numpy()
    u, s, v = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    # In the basis of the input's singular vectors the result is diagonal, near 1 where the input was not tiny.
    inside = u.T @ result @ v.T
    diagonal = np.diag(inside)
    assert np.abs(inside - np.diag(diagonal)).max() < 1e-4
    large = s > 0.1 * s.max()
    assert ((diagonal[large] > 0.6) & (diagonal[large] < 1.3)).all()


@pytest.mark.parametrize("shape", [(8, 72), (72, 8)])
def test_each_of_several_matrices_is_treated_alone(shape: tuple[int, int]) -> None:
    scales = torch.tensor([1e-3, 1.0, 50.0])[:, None, None]
    several = torch.randn((3, *shape), generator=torch.Generator().manual_seed(2)) * scales
    for together, alone in zip(orthogonal(several), several, strict=True):
        torch.testing.assert_close(together, orthogonal(alone), rtol=1e-5, atol=1e-6)


def test_zeros_stay_zeros() -> None:
    assert not orthogonal(torch.zeros(4, 9)).any()


def test_small_parameters_get_exactly_adamw() -> None:
    torch.manual_seed(0)
    nets = [nn.Linear(5, 3) for _ in range(2)]  # no matrix of four dimensions: all of it is AdamW's
    nets[1].load_state_dict(nets[0].state_dict())
    options = Optimizer(name="muon", lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1)
    pair = (
        Muon(nets[0], options),
        torch.optim.AdamW(nets[1].parameters(), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.1),
    )
    for step in range(5):
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        for net, optimizer in zip(nets, pair, strict=True):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    for mine, reference in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-7)


def test_an_update_of_a_matrix_has_the_size_that_was_promised() -> None:
    torch.manual_seed(0)
    net = MIMOUNet(TINY)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = make_optimizer(Optimizer(name="muon", lr=1e-3, muon_ratio=3.0), net, torch.device("cpu"))
    net(torch.rand(1, 3, 32, 32))[-1].square().mean().backward()
    optimizer.step()
    name = "encoder3.0.conv1.weight"
    change = (net.get_parameter(name) - before[name]).detach()
    # Orthogonal rows of 16 x 144: entries of 1/sqrt(144), times 0.2 sqrt(144) of the update, times the rate.
    assert change.square().mean().sqrt().item() == pytest.approx(0.2 * 3e-3, rel=0.2)


def test_every_parameter_moves() -> None:
    torch.manual_seed(0)
    net = MIMOUNet(TINY)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = make_optimizer(Optimizer(name="muon", lr=1e-3), net, torch.device("cpu"))
    sum(o.square().mean() for o in net(torch.rand(1, 3, 32, 32))).backward()
    optimizer.step()
    assert [n for n, p in net.named_parameters() if torch.equal(p, before[n])] == []
