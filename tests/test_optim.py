"""Muon: orthogonal updates, one step by hand, resuming, and that it learns faster than Adam; learning rates."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from derain.optim import Muon, is_inner_kernel, learning_rate_factor, orthogonalize
from networks import DARGNet


@pytest.mark.parametrize("shape", [(32, 288), (32, 64), (32, 32), (96, 40)])
def test_an_update_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    """Singular values that spread over three decades all end near 1."""
    generator = torch.Generator().manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(4, *shape, generator=generator), full_matrices=False)
    gradients = u * torch.logspace(0, -3, min(shape)) @ vt
    updates = orthogonalize(gradients)
    values = (u.mT @ updates @ vt.mT).diagonal(dim1=1, dim2=2)  # in the gradient's own singular directions
    assert torch.allclose(u * values[:, None] @ vt, updates, atol=1e-4)  # which the update keeps
    large = torch.logspace(0, -3, min(shape)) > 0.02
    assert ((values[:, large] > 0.6) & (values[:, large] < 1.3)).all()
    assert ((values > 0) & (values < 1.3)).all()


def test_matrices_of_one_shape_are_updated_as_each_alone() -> None:
    matrices = torch.randn(3, 32, 64, generator=torch.Generator().manual_seed(1))
    for together, alone in zip(orthogonalize(matrices), matrices, strict=True):
        assert torch.allclose(together, orthogonalize(alone[None])[0], atol=1e-5)


def test_muon_takes_the_inner_kernels_and_adam_the_rest() -> None:
    muon, adam = Muon(DARGNet()).param_groups
    shapes = [tuple(p.shape) for p in muon["params"]]
    # head of body, tail's two and each group's conv; three dilations each; merge and gate 1x1
    assert shapes.count((32, 32, 3, 3)) == 1 + 2 + 5 + 30
    assert shapes.count((32, 64, 1, 1)) == 10
    assert shapes.count((32, 32, 1, 1)) == 10
    assert len(shapes) == 58
    assert len(muon["params"]) + len(adam["params"]) == len(list(DARGNet().parameters()))
    assert not any(is_inner_kernel(p) for p in DARGNet(channels=16).parameters())


def test_one_step_by_hand() -> None:
    """A gradient that is already orthogonal: the five iterations then act on its singular values alone."""
    network = nn.Conv2d(32, 32, 1, bias=True)
    optimizer = Muon(network, lr=0.1, adam_lr=0.01, momentum=0.9, weight_decay=0.5, clip=0)
    weight, bias = network.weight.detach().clone(), network.bias.detach().clone()
    network.weight.grad = torch.eye(32).view(32, 32, 1, 1) * 7
    network.bias.grad = torch.full((32,), -3.0)
    optimizer.step()
    value = 1 / math.sqrt(32)
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    expected = weight * (1 - 0.1 * 0.5) - 0.1 * value * torch.eye(32).view(32, 32, 1, 1)
    assert torch.allclose(network.weight, expected, atol=1e-6)
    assert torch.allclose(network.bias, bias + 0.01, atol=1e-6)  # Adam's first step: its learning rate
    # Second step, gradient 0: M = 0.9 * 0.1 G, Nesterov's update 0.9 M: the same direction again.
    before = network.weight.detach().clone()
    network.weight.grad.zero_()
    network.bias.grad.zero_()
    optimizer.param_groups[0]["lr"] = 0.05  # as a schedule does: weight decay follows
    optimizer.step()
    expected = before * (1 - 0.05 * 0.5) - 0.05 * value * torch.eye(32).view(32, 32, 1, 1)
    assert torch.allclose(network.weight, expected, atol=1e-6)


def test_the_adam_part_is_torchs() -> None:
    ours, theirs = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizers = Muon(ours, adam_lr=0.003, clip=0), torch.optim.Adam(theirs.parameters(), 0.003)
    assert len(optimizers[0].param_groups) == 1  # nothing for Muon here
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
    for scale, expected in ((1, 1), (1, 1), (100, 2.5), (2, 2)):
        network.weight.grad = unit * scale
        optimizer.step()
        norm = network.weight.grad.norm().item()
        assert norm == pytest.approx(expected, rel=0.1)
    assert optimizer.param_groups[0]["running_norm"] < 1.1  # the outlier counts as what it was clipped to


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range, last_step: int = 40) -> float:
    """Fit an orthogonal convolution from inputs whose directions differ in scale by a hundred; returns the loss.

    The scaled directions are no channels but mixtures of them, which a rate for each weight can't make up for.
    """
    generator = torch.Generator().manual_seed(0)
    target = nn.init.orthogonal_(torch.empty(32, 32, 3, 3), generator=generator)
    mix = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0] * torch.logspace(0, -2, 32)
    highest = [group["lr"] for group in optimizer.param_groups]
    for step in steps:
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * (1 - step / last_step)
        noise = torch.randn(2, 32, 12, 12, generator=torch.Generator().manual_seed(step))
        x = torch.einsum("oc,nchw->nohw", mix, noise)
        loss = F.mse_loss(network(x), F.conv2d(x, target, padding=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for group, lr in zip(optimizer.param_groups, highest, strict=True):
        group["lr"] = lr
    return loss.item()


def test_muon_beats_adam_on_ill_conditioned_least_squares() -> None:
    """After 40 steps the loss is less than 0.7 times Adam's at the best of four learning rates."""

    def loss(optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> float:
        network = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        nn.init.zeros_(network.weight)
        return train(network, optimizer(network), range(40))

    adam = [loss(lambda n, lr=lr: torch.optim.Adam(n.parameters(), lr)) for lr in (3e-3, 1e-2, 3e-2, 1e-1)]
    assert loss(lambda n: Muon(n, lr=0.2, weight_decay=0)) < 0.7 * min(adam)


def test_resuming_repeats_every_bit() -> None:
    networks = [nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.PReLU()) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    whole, part = Muon(networks[0]), Muon(networks[1])
    train(networks[0], whole, range(8))
    train(networks[1], part, range(5))
    saved = copy.deepcopy((networks[1].state_dict(), part.state_dict()))
    resumed = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.PReLU())
    optimizer = Muon(resumed)
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(resumed, optimizer, range(5, 8))
    for a, b in zip(networks[0].parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_published_learning_rate() -> None:
    milestones = [400, 600, 800]
    found = {step: learning_rate_factor("multistep", step, 1000, 50, milestones) for step in (0, 399, 400, 600, 999)}
    assert found == pytest.approx({0: 1, 399: 1, 400: 0.2, 600: 0.04, 999: 0.008})


@pytest.mark.parametrize(("schedule", "halfway"), [("linear", 0.5), ("cosine", 0.5)])
def test_learning_rates_that_fall_to_zero(schedule: str, halfway: float) -> None:
    factors = [learning_rate_factor(schedule, step, 1000, 10, []) for step in range(1000)]
    assert factors[0] == pytest.approx(0.1, rel=0.01)
    assert factors[500] == pytest.approx(halfway)
    assert 0 < factors[999] < 0.002
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert learning_rate_factor(schedule, 500, math.inf, 10, []) == 1  # the run's length is not known yet


def test_linear_decay_is_linear() -> None:
    assert learning_rate_factor("linear", 250, 1000, 10, []) == pytest.approx(0.75)
    assert learning_rate_factor("cosine", 250, 1000, 10, []) == pytest.approx(0.5 + math.sqrt(0.5) / 2)
