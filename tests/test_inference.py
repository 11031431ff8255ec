"""Images through a trained network: tiles, blocks, batches and rewritten forms give the network's own values."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from derain import blocks, inference
from derain.blocks import in_blocks
from derain.inference import LARGEST_TILE, automatic_tile, derain, derain_image
from derain.optimized import fold
from networks import DARGNet


@pytest.mark.parametrize("tile", [48, 64, 100])
@pytest.mark.parametrize("size", [pytest.param((150, 201), marks=pytest.mark.slow), (64, 130), (129, 65)])
def test_tiled_equals_whole_at_every_border(network: DARGNet, size: tuple[int, int], tile: int) -> None:
    rainy = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3))
    whole, tiled = derain(network, rainy), derain(network, rainy, tile)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def evenly(network: DARGNet) -> DARGNet:
    """A copy in float64 whose weights are all equal: every pixel within reach changes the output measurably."""
    network = copy.deepcopy(network).double()
    for parameter in network.parameters():
        parameter.data.fill_(0.05)
    return network


@pytest.mark.parametrize("halo", [None, 52, 30])
def test_tiles_need_the_whole_halo(network: DARGNet, halo: int | None) -> None:
    """A few pixels less than the receptive field show, in float64."""
    network = evenly(network)
    rainy = torch.rand(1, 3, 40, 150, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    whole = derain(network, rainy)
    if halo is None:
        assert torch.equal(derain(network, rainy, 75), whole) or torch.allclose(
            derain(network, rainy, 75), whole, rtol=1e-13, atol=0
        )
        return
    network.receptive_field = halo
    assert not torch.allclose(derain(network, rainy, 75), whole, rtol=1e-13, atol=0)


def test_images_in_tiles_have_the_whole_halo(network: DARGNet, monkeypatch: pytest.MonkeyPatch) -> None:
    halos = []
    monkeypatch.setattr(inference, "in_blocks", lambda *a: halos.append(a[2]) or in_blocks(*a))
    derain_image(network, np.zeros((30, 200, 3), np.uint8), tile=100)
    assert halos == [60]


def test_batched_equals_single(network: DARGNet) -> None:
    rainy = torch.rand(3, 3, 50, 60, generator=torch.Generator().manual_seed(5))
    batched = derain(network, rainy)
    single = torch.cat([derain(network, image[None]) for image in rainy])
    torch.testing.assert_close(batched, single, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (96, 64)])
def test_folded_equals_unfolded(network: DARGNet, size: tuple[int, int]) -> None:
    rainy = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(6))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold(network)
    whole, found = derain(network, rainy), derain(folded, rainy)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
    levels = [(image.clamp(0, 1) * 255).round() for image in (whole, found)]
    assert (levels[0] == levels[1]).float().mean() >= 0.9999
    assert folded.receptive_field == network.receptive_field == 60
    assert rainy.min() >= 0  # computing in place leaves the input alone
    assert torch.equal(rainy, torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(6)))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_folded_in_half_precision(network: DARGNet) -> None:
    rainy = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(7))
    found, exact = derain(fold(network, torch.bfloat16), rainy), derain(network, rainy)
    assert found.dtype == torch.float32
    assert not torch.equal(found.bfloat16().float(), found), "the image itself was rounded to bfloat16"
    assert (found - exact).pow(2).mean() < 1e-4


def test_folded_in_tiles(network: DARGNet) -> None:
    rainy = torch.rand(1, 3, 130, 150, generator=torch.Generator().manual_seed(8))
    folded = fold(network)
    torch.testing.assert_close(derain(folded, rainy, 64), derain(folded, rainy), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width"), [(70, 90), (33, 200), (150, 20)])
def test_blocks_give_the_whole_images_values(
    network: DARGNet, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, height: int, width: int
) -> None:
    """In bfloat16 up to its rounding, which differs with the order of the sums."""
    rainy = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(9))
    folded = fold(network, dtype)
    whole = derain(folded, rainy)
    parts = []
    original = blocks.in_blocks
    monkeypatch.setattr(blocks, "in_blocks", lambda *a: parts.append(a) or original(*a))
    monkeypatch.setattr(blocks, "BLOCK", 32)
    found = derain(folded, rainy)
    assert len(parts) == 6  # five groups and the tail
    if dtype == torch.float32:
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)
    else:
        assert (found - whole).pow(2).mean().sqrt() < 5e-3


def test_blocks_are_as_equal_as_can_be() -> None:
    seen: list[tuple[int, ...]] = []
    x = torch.arange(3 * 100 * 7.0).view(1, 3, 100, 7)
    y = in_blocks(lambda block: seen.append(tuple(block.shape[-2:])) or block, x, halo=2, side=33)
    assert torch.equal(y, x)
    assert seen == [(27, 7), (29, 7), (29, 7), (27, 7)]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_freed_memory_is_kept() -> None:
    """In a process of its own: a tensor of 20 MB, again and again, costs no new pages once the setting is made."""
    code = """
import resource, torch
from utils import keep_freed_memory
keep_freed_memory()
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        a, b = torch.ones(5_000_000), torch.ones(5_000_000)
        del a, b
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
assert pages() < 5000, pages()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_large_images_are_cut_into_tiles_that_fit_the_memory(network: DARGNet, monkeypatch: pytest.MonkeyPatch) -> None:
    folded, half = fold(network), fold(network, torch.bfloat16)
    monkeypatch.setattr(inference, "free_memory", lambda _: 8 * 2**30)
    assert automatic_tile(1080, 1920, folded) == 0
    assert automatic_tile(4320, 7680, folded) == LARGEST_TILE
    monkeypatch.setattr(inference, "free_memory", lambda _: 300 * 2**20)
    tile = automatic_tile(1080, 1920, folded)
    assert 64 <= tile < automatic_tile(1080, 1920, half) < 1080
    assert (tile + 120) ** 2 * folded.bytes_per_pixel < 300 * 2**20
    monkeypatch.setattr(inference, "free_memory", lambda _: 0)
    assert automatic_tile(1080, 1920, folded) == 64


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_in_tiles_is_the_same_image(network: DARGNet, dtype: type) -> None:
    """Integers in, integers out; at most one value in a thousand may round to the next level."""
    image = np.random.RandomState(0).randint(np.iinfo(dtype).max + 1, size=(90, 130, 3)).astype(dtype)
    before = image.copy()
    whole, tiled = (derain_image(fold(network), image, tile) for tile in (0, 50))
    assert whole.dtype == tiled.dtype == dtype
    assert whole.shape == tiled.shape == image.shape
    difference = np.abs(whole.astype(int) - tiled.astype(int))
    assert difference.max() <= (1 if dtype == np.uint8 else 2)
    assert np.array_equal(image, before)
    if dtype == np.uint8:
        assert (difference > 0).mean() < 1e-3
