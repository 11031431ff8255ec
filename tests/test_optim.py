"""Muon: singular values, two steps by hand, clipping."""

import math

import pytest
import torch
from torch import nn

from derain.optim import Muon, is_inner_kernel, orthogonalize
from networks import DARGNet


@pytest.mark.parametrize("shape", [(32, 288), (32, 64), (32, 32), (96, 40)])
def test_an_update_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    """Singular values that spread over three decades all end near 1, and no direction changes."""
    generator = torch.Generator().manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(4, *shape, generator=generator), full_matrices=False)
    gradients = u * torch.logspace(0, -3, min(shape)) @ vt
    updates = orthogonalize(gradients)
    values = (u.mT @ updates @ vt.mT).diagonal(dim1=1, dim2=2)
    assert torch.allclose(u * values[:, None] @ vt, updates, atol=1e-4)
    large = torch.logspace(0, -3, min(shape)) > 0.02
    assert ((values[:, large] > 0.6) & (values[:, large] < 1.3)).all()
    assert ((values > 0) & (values < 1.3)).all()


def test_muon_takes_the_inner_kernels_and_adam_the_rest() -> None:
    network = DARGNet()
    muon, adam = Muon(network).param_groups
    shapes = [tuple(p.shape) for p in muon["params"]]
    # Inside: the head's second layer, the tail's first two, five groups' convolutions, and in each
    # of ten attention blocks three dilations, a merge and a gate.
    assert shapes.count((32, 32, 3, 3)) == 1 + 2 + 5 + 30
    assert shapes.count((32, 64, 1, 1)) == 10
    assert shapes.count((32, 32, 1, 1)) == 10
    assert len(shapes) == 58
    assert len(muon["params"]) + len(adam["params"]) == len(list(network.parameters()))
    assert not any(is_inner_kernel(p) for p in DARGNet(channels=16).parameters())


def test_one_step_by_hand() -> None:
    """The gradient is orthogonal, so the five iterations act on its singular values alone."""
    network = nn.Conv2d(32, 32, 1)
    optimizer = Muon(network, lr=0.1, adam_lr=0.01, weight_decay=0.5)
    weight, bias = network.weight.detach().clone(), network.bias.detach().clone()
    network.weight.grad = torch.eye(32).view(32, 32, 1, 1) * 7
    network.bias.grad = torch.full((32,), -3.0)
    optimizer.step()
    value = 1 / math.sqrt(32)
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    update = value * torch.eye(32).view(32, 32, 1, 1)
    assert torch.allclose(network.weight, weight * (1 - 0.1 * 0.5) - 0.1 * update, atol=1e-6)
    assert torch.allclose(network.bias, bias + 0.01, atol=1e-6)  # Adam's first step


def test_the_momentum_of_two_gradients_by_hand() -> None:
    """Nesterov: 0.1 G + 0.9 M is orthogonalized, M being 0.9 M + 0.1 G."""
    network = nn.Conv2d(32, 40, 1, bias=False)
    optimizer = Muon(network, momentum=0.9, weight_decay=0.2, clip=math.inf)
    gradients = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(0))
    momentum = torch.zeros(40, 32)
    for gradient, lr in zip(gradients, (1.0, 0.5), strict=True):
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonalize((0.1 * gradient + 0.9 * momentum)[None])[0]
        expected = network.weight.detach() * (1 - lr * 0.2) - lr * update.view(40, 32, 1, 1)
        network.weight.grad = gradient.view(40, 32, 1, 1).clone()
        optimizer.param_groups[0]["lr"] = lr  # as a schedule does: weight decay follows
        optimizer.step()
        assert torch.allclose(network.weight, expected, atol=1e-5)


def test_the_adam_part_is_torchs() -> None:
    ours, theirs = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    theirs.load_state_dict(ours.state_dict())
    adam = torch.optim.Adam(theirs.parameters(), 0.003)
    optimizers = Muon(ours, adam_lr=0.003, clip=math.inf), adam  # nothing for Muon here
    for step in range(5):
        x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(step))
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_gradient_far_above_its_running_norm_is_clipped() -> None:
    network = nn.Conv2d(3, 4, 3, bias=False)
    optimizer = Muon(network, clip=2.5)
    unit = torch.ones_like(network.weight) / math.sqrt(network.weight.numel())
    for norm, expected in ((1, 1), (1, 1), (100, 2.5), (2, 2)):
        network.weight.grad = unit * norm
        optimizer.step()
        assert network.weight.grad.norm().item() == pytest.approx(expected, rel=0.1)
    assert optimizer.param_groups[0]["running_norm"] < 1.1  # the outlier counts as clipped
