"""Muon: singular values, two steps by hand, clipping."""

import math

import pytest
import torch
from torch import nn

from derain.optim import Muon, is_inner_kernel, orthogonalize
from networks import DARGNet


@pytest.mark.parametrize("shape", [(32, 288), (32, 64), (32, 32), (96, 40)])
def test_an_update_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    """Singular values that spread over three decades end near 1, and no direction changes."""
    generator = torch.Generator().manual_seed(0)
    u, _, vt = torch.linalg.svd(torch.randn(4, *shape, generator=generator), full_matrices=False)
    values = torch.logspace(0, -3, min(shape))
    updates = orthogonalize(u * values @ vt)
    values /= values.norm()
    for _ in range(5):  # the published iteration, on the singular values alone
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    assert torch.allclose(updates, u * values @ vt, atol=1e-4)
    assert values[: len(values) // 2].min() > 0.6
    assert values.max() < 1.3


def test_muon_takes_the_inner_kernels_and_adam_the_rest() -> None:
    network = DARGNet()
    muon, adam = Muon(network).param_groups
    # Inside: the head's second layer, the tail's first two, five groups' convolutions, and in each
    # of ten attention blocks three dilations, a merge and a gate.
    assert len(muon["params"]) == 1 + 2 + 5 + 10 * (3 + 1 + 1)
    assert {len(kernel) for kernel in muon["params"]} == {32}
    assert len(muon["params"]) + len(adam["params"]) == len(list(network.parameters()))
    assert sum(map(is_inner_kernel, DARGNet(channels=16).parameters())) == len(muon["params"])


def test_two_steps_by_hand() -> None:
    """Nesterov: 0.1 G + 0.9 M is orthogonalized, M being 0.9 M + 0.1 G. Adam gets the bias."""
    network = nn.Conv2d(32, 40, 1)
    bias = nn.Parameter(network.bias.detach().clone())
    adam = torch.optim.Adam([bias], 0.003)
    optimizer = Muon(network, adam_lr=0.003, momentum=0.9, weight_decay=0.2, clip=math.inf)
    gradients = torch.randn(2, 40, 33, generator=torch.Generator().manual_seed(0))
    momentum = torch.zeros(40, 32)
    for all_gradients, lr in zip(gradients, (1.0, 0.5), strict=True):
        gradient, bias.grad = all_gradients[:, :32], all_gradients[:, 32]
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonalize((0.1 * gradient + 0.9 * momentum)[None])[0]
        expected = network.weight.detach() * (1 - lr * 0.2) - lr * update.view(40, 32, 1, 1)
        network.weight.grad = gradient.reshape(40, 32, 1, 1)
        network.bias.grad = bias.grad.clone()
        optimizer.param_groups[0]["lr"] = lr  # as a schedule does: weight decay follows
        optimizer.step()
        adam.step()
        assert torch.allclose(network.weight, expected, atol=1e-5)
        assert torch.allclose(network.bias, bias, atol=1e-6)


def test_a_gradient_far_above_its_running_norm_is_clipped() -> None:
    network = nn.Conv2d(3, 4, 3, bias=False)
    optimizer = Muon(network, clip=2.5)
    unit = torch.ones_like(network.weight) / math.sqrt(network.weight.numel())
    for norm, expected in ((1, 1), (1, 1), (100, 2.5), (2, 2)):
        network.weight.grad = unit * norm
        optimizer.step()
        assert network.weight.grad.norm().item() == pytest.approx(expected, rel=0.1)
    assert optimizer.param_groups[0]["running_norm"] < 1.1  # the outlier counts as clipped
