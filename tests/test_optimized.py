"""Rewritten forms of the network: the same values and gradients, and never used for a network that was edited."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, write_pairs
from torch import Tensor, nn

import networks
from derain import evaluate, train
from derain.images import read_rgb
from derain.inference import derain_image, open_network
from derain.optimized import AsWritten, fold, optimize
from derain.sets import RAIN12
from networks import DARGNet, DualAttention, ResidualGroup
from SSIM import SSIM
from utils import to_tensor


def without_channel(self: DualAttention, x: Tensor) -> Tensor:
    return x + self.spatial(x)


def twice(self: ResidualGroup, x: Tensor) -> Tensor:
    return x + 2 * self.act3(self.conv(self.act2(self.attention2(self.act1(self.attention1(x))))))


def without_far(self: networks.SpatialAttention, x: Tensor) -> Tensor:
    return self.act(self.merge(torch.cat([self.conv_d1(x), self.act(self.conv_d2(x))], dim=1)))


def skip(self: DARGNet, rainy: Tensor) -> Tensor:
    shallow = self.head(rainy)
    return rainy - self.tail(shallow + self.groups[0](self.body(shallow)))


# name: (class, method, its edit, whether the rewritten forms still fit)
EDITS: dict[str, tuple[type, Callable, bool]] = {
    "without channel attention": (DualAttention, without_channel, False),
    "another residual group": (ResidualGroup, twice, False),
    "without dilation 5": (networks.SpatialAttention, without_far, False),
    "another skip": (DARGNet, skip, True),  # the groups are as they were
}


@pytest.mark.parametrize("edit", EDITS)
def test_the_edited_network_is_the_one_that_tests(
    network: DARGNet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], edit: str
) -> None:
    owner, forward, fits = EDITS[edit]
    unedited = network(torch.full((1, 3, 40, 40), 0.5))
    monkeypatch.setattr(owner, "forward", forward)
    rainy = torch.rand(1, 3, 33, 47, generator=torch.Generator().manual_seed(1))
    found = optimize(network)
    assert isinstance(found, AsWritten) != fits
    assert ("was edited: it is computed as it is written" in capsys.readouterr().out) != fits
    with torch.no_grad():
        torch.testing.assert_close(found(rainy), network(rainy), rtol=0, atol=1e-5)
    assert not torch.allclose(network(torch.full((1, 3, 40, 40), 0.5)), unedited, atol=1e-3)  # it is an edit


def test_a_module_that_was_taken_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def build(self: DualAttention, channels: int) -> None:
        nn.Module.__init__(self)
        self.spatial = networks.SpatialAttention(channels)

    monkeypatch.setattr(DualAttention, "__init__", build)
    monkeypatch.setattr(DualAttention, "forward", without_channel)
    network = DARGNet(groups=1)
    assert isinstance(optimize(network), AsWritten)
    assert capsys.readouterr().out.count("was edited") == 1


@pytest.fixture
def network() -> DARGNet:
    """One of the test's own: these tests change it."""
    torch.manual_seed(3)
    return DARGNet(groups=2).eval()


class Residual(DARGNet):
    """A subclass: the rain is predicted, not the image."""

    def forward(self, rainy: Tensor) -> Tensor:
        return rainy - super().forward(rainy)


class Foreign(nn.Module):
    """A network that has nothing of DARGNet, and pools over the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x) * x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize("kind", [Residual, Foreign])
def test_a_network_of_ones_own_trains_and_tests_through_the_scripts_calls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: type[nn.Module]
) -> None:
    """What a script does with another network in its one line: its scores are the plain network's."""

    def build() -> nn.Module:
        return kind(8, 1) if kind is Residual else kind()

    folder = write_pairs(tmp_path / "pairs", 2)
    settings = train.TrainSettings(
        data_path=folder, save_path=tmp_path / "run", patch_size=32, stride=32, max_steps=2, device="cpu"
    )
    train.train(settings, build(), ssim=SSIM())
    tested = evaluate.EvalSettings(
        data_path=folder, logdir=tmp_path / "run", save_path=tmp_path / "out", device="cpu", page=False, tile="32"
    )
    evaluate.evaluate(tested, RAIN12, lambda path: networks.load_network(path, build()))
    plain = networks.load_network(tmp_path / "run/net_latest.pth", build())
    for number in (1, 2):
        rainy = read_rgb(folder / f"rainy/rain-{number:03d}.png")
        with torch.no_grad():
            expected = plain(to_tensor(rainy))[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        found = read_rgb(tmp_path / f"out/rain-{number:03d}.png")
        assert np.abs(found.astype(int) - expected).max() <= 1
        assert (found != expected).mean() < 1e-3
    assert ("has no receptive_field" in capsys.readouterr().out) == (kind is Foreign)


@pytest.mark.parametrize("name", ["Rain100H", "Rain100L"])
def test_the_weights_that_come_with_the_scripts_run_in_their_fast_forms(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Whatever their values are, nothing was edited."""
    network = networks.load_network(ROOT / "logs" / name / "net_latest.pth")
    assert not isinstance(optimize(network), AsWritten)
    assert capsys.readouterr().out == ""


def test_other_widths_and_depths_carry_their_size(tmp_path: Path) -> None:
    torch.save(DARGNet(channels=12, groups=3).state_dict(), tmp_path / "net_latest.pth")
    network = open_network(tmp_path)
    assert network.receptive_field == 38
    assert len(network.groups) == 3


def test_output_that_is_not_finite_is_an_error() -> None:
    network = DARGNet(4, 1).eval()
    network.tail[4].weight.data[:] = float("inf")
    with pytest.raises(ValueError, match="output is not finite"):
        derain_image(fold(network), np.zeros((20, 20, 3), np.uint8))
