"""Images through a trained network: the folded form and the tiles give the network's own values."""

from __future__ import annotations

import copy
import platform
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from derain.inference import (
    MAX_UNTILED_PIXELS,
    FoldedResidualGroup,
    derain,
    derain_image,
    fold,
    load_weights,
    optimize,
    weights_file,
)
from networks import DARGNet, DualAttention, load_network
from utils import InputError, keep_freed_memory


def random_image(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def random_pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.RandomState(0).randint(np.iinfo(dtype).max + 1, size=shape).astype(dtype)


def is_folded(network: nn.Module) -> bool:
    return isinstance(network.groups[0], FoldedResidualGroup)


# ---------------------------------------------------------------- the folded form


def test_folded_equals_unfolded(network: DARGNet) -> None:
    before = copy.deepcopy(network.state_dict())
    folded = optimize(network)
    assert is_folded(folded)
    assert folded.receptive_field == 60
    for size in ((1, 1), (33, 47)):
        rainy = random_image(2, 3, *size)
        expected = derain(network, rainy)
        torch.testing.assert_close(derain(folded, rainy), expected, rtol=0, atol=1e-5)
        assert torch.equal(rainy, random_image(2, 3, *size))  # computed in place, but not there
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_folded_in_bfloat16(network: DARGNet) -> None:
    rainy = random_image(1, 3, 48, 48)
    network = copy.deepcopy(network)
    network.tail.append(nn.Identity())  # the last convolution need not be the last layer
    found, exact = derain(optimize(network, "bf16"), rainy), derain(network, rainy)
    assert not torch.equal(found.bfloat16().float(), found), "the image itself was rounded"
    assert 1e-9 < (found - exact).square().mean() < 1e-4


@pytest.mark.parametrize("name", ["real", "Rain100H", "Rain100L"])
def test_the_committed_weights_run_folded(name: str) -> None:
    assert is_folded(optimize(load_network(ROOT / "logs" / name / "net_latest.pth")))


# ---------------------------------------------------------------- what is edited is what runs


def without_channel(self: DualAttention, x: Tensor) -> Tensor:
    return x + self.spatial(x)


def predict_rain(self: DARGNet, rainy: Tensor) -> Tensor:
    shallow = self.head(rainy)
    return rainy - self.tail(shallow + self.groups[0](self.body(shallow)))


def use_the_image_twice(self: DARGNet, rainy: Tensor) -> Tensor:
    shallow = self.head(rainy)
    return self.tail(shallow + self.groups[0](self.head[0](rainy)))


@pytest.mark.parametrize(
    ("owner", "forward", "fits"),
    [
        (DARGNet, use_the_image_twice, False),  # in bf16 its types would not fit
        (DualAttention, without_channel, False),
        (DARGNet, predict_rain, True),  # the groups are as they were
    ],
)
def test_the_edited_network_is_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    forward: Callable,
    fits: bool,
) -> None:
    torch.manual_seed(3)
    network, rainy = DARGNet(groups=2).eval(), random_image(1, 3, 33, 47)
    unedited = derain(network, rainy)
    monkeypatch.setattr(owner, "forward", forward)
    found = optimize(network)
    assert is_folded(found) == is_folded(optimize(network, "bf16")) == fits
    expected = derain(network, rainy)
    torch.testing.assert_close(derain(found, rainy), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(expected, unedited, atol=1e-3)


def whole_image_network() -> nn.Module:
    """A network that has nothing of DARGNet, and looks at the whole image."""
    return nn.Sequential(nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 3, padding=1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_without_receptive_field_runs_whole(tmp_path: Path, precision: str) -> None:
    saved = whole_image_network()
    torch.save(saved.state_dict(), tmp_path / "own.pth")
    load = partial(load_network, network=whole_image_network())
    opened = optimize(load_weights(tmp_path / "own.pth", load), precision)
    rgb = random_pixels(40, 50, 3)
    assert np.array_equal(derain_image(opened, rgb, tile=16), derain_image(opened, rgb, tile=0))
    rainy = random_image(1, 3, 40, 50)
    torch.testing.assert_close(derain(opened, rainy), derain(saved, rainy), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- tiles


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_in_tiles_is_the_same_image(network: DARGNet, dtype: type) -> None:
    """Integers in, integers out; at most one value in a thousand rounds to the next level."""
    image, folded = random_pixels(64, 130, 3, dtype=dtype), fold(network)
    whole, tiled = derain_image(folded, image, 0), derain_image(folded, image, 50)
    assert whole.dtype == tiled.dtype == dtype
    difference = np.abs(whole.astype(int) - tiled.astype(int))
    assert difference.max() <= (1 if dtype == np.uint8 else 2)
    assert (difference > 0).mean() < (1e-3 if dtype == np.uint8 else 0.2)
    assert np.array_equal(image, random_pixels(64, 130, 3, dtype=dtype))


class Shift(nn.Module):
    """Moves an image by 60 pixels, so that every pixel of the result comes from that far."""

    receptive_field = 60

    def __init__(self, down: int, right: int) -> None:
        super().__init__()
        self.down, self.right = down, right

    def forward(self, rainy: Tensor) -> Tensor:
        self.seen = [*getattr(self, "seen", []), tuple(rainy.shape[2:])]
        return rainy.roll((self.down, self.right), (2, 3))


@pytest.mark.parametrize("shift", [(60, 0), (-60, 0), (0, 60), (0, -60), (60, -60)])
def test_tiles_overlap_by_the_whole_receptive_field(shift: tuple[int, int]) -> None:
    network = Shift(*shift)
    image = random_pixels(170, 210, 3)
    inner = slice(60, -60)  # of what comes from beyond the borders nothing is known
    expected = np.roll(image, shift, (0, 1))[inner, inner]
    assert np.array_equal(derain_image(network, image, 40)[inner, inner], expected)
    network.receptive_field = 59
    assert not np.array_equal(derain_image(network, image, 40)[inner, inner], expected)


@pytest.mark.parametrize("size", [(1000, 1500), (1300, 1300), (2500, 2600), (300, 20_000)])
def test_large_images_are_computed_in_tiles(size: tuple[int, int]) -> None:
    network, image = Shift(0, 0), np.zeros((*size, 3), np.uint8)
    assert np.array_equal(derain_image(network, image), image)
    assert (network.seen == [size]) == (size[0] * size[1] <= MAX_UNTILED_PIXELS)
    assert max(height * width for height, width in network.seen) <= 1.02 * MAX_UNTILED_PIXELS


def test_output_that_is_not_finite_is_an_error() -> None:
    network = DARGNet(4, 1).eval()
    network.tail[4].weight.data[:] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        derain_image(fold(network), np.zeros((20, 20, 3), np.uint8))


# ---------------------------------------------------------------- files and flags


def test_weights_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert weights_file(Path("logs/Rain100L")).samefile(ROOT / "logs/Rain100L/net_latest.pth")
    with pytest.raises(InputError, match="logs/none"):
        weights_file(Path("logs/none"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_freed_memory_is_kept() -> None:
    """Tensors of 60 MB again and again cost no new pages."""
    keep_freed_memory()
    pages = []
    for _ in range(20):
        torch.ones(15_000_000)
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    assert pages[-1] - pages[9] < 5000
