"""Random crops: shares of folders, rain of other pairs, colours, crops without rain.

Which crops a seed and a step give, and that they repeat, is in test_training.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import scene, write, write_pairs

from derain.crops import RandomCrops, folder_and_share, parsed_stage
from DerainDataset import DerainDataset, prepare
from utils import InputError


def opened(folder: Path) -> DerainDataset:
    return DerainDataset(prepare(folder), 16, 16)


def write_pair(folder: Path, number: int, rainy: np.ndarray, clean: np.ndarray) -> Path:
    write(folder / f"rain-{number}.png", rainy)
    return write(folder / f"norain-{number}.png", clean).parent


def crops_of(folder: Path, count: int, size: int = 16, **variation: float) -> list:
    """Return `count` crops of a folder: (rainy, clean) of (size, size, 3) int each."""
    crops = RandomCrops([opened(folder)], [1.0], [(size, count, 1)], seed=1, **variation)
    levels = torch.stack(crops.batch(7, 0)) * 255
    return list(levels.round().int().permute(1, 0, 3, 4, 2).numpy())


def lies_in(crop: np.ndarray, images: list[np.ndarray]) -> bool:
    """Return whether a crop is a piece of one of the images, by their first channels."""
    for image in images:
        pieces = np.lib.stride_tricks.sliding_window_view(image[..., 0], crop.shape[:2])
        if (pieces == crop[..., 0]).all(axis=(2, 3)).any():
            return True
    return False


def test_folders_keep_their_shares(tmp_path: Path) -> None:
    """Three sets of flat clean images, whose grey level identifies the set."""
    sets = []
    for level in (50, 100, 150):
        clean = np.full((32, 32, 3), level, np.uint8)
        sets.append(opened(write_pair(tmp_path / str(level), 1, clean + np.uint8(10), clean)))
    for recombine in (0.0, 1.0):
        crops = RandomCrops(sets, [1, 2, 5], [(16, 800, 1)], seed=0, recombine=recombine)
        _, clean = crops.batch(0, 0)
        _, counts = np.unique(clean[:, 0, 0, 0].numpy(), return_counts=True)
        assert counts / 100 == pytest.approx([1, 2, 5], abs=0.4)


def test_rain_of_another_place(tmp_path: Path) -> None:
    """The clean crop stays; the rain is grey, and up to a fifth stronger or fainter."""
    folder = write_pairs(tmp_path / "pairs", 3)
    images = [scene(number) for number in (1, 2, 3)]
    wet = [rainy > clean for rainy, clean in images]
    wet += [image[::-1] for image in wet]
    wet += [image[:, ::-1] for image in wet]
    strengths = []
    for rainy, clean in crops_of(folder, 30, recombine=1):
        assert lies_in(clean, [clean for _, clean in images])
        layer = (rainy - clean)[(rainy < 255).all(axis=2)]
        assert (layer == layer[:, :1]).all()
        if len(layer) == 16 * 16:
            assert lies_in(rainy > clean, wet)
        strengths.append(layer[layer > 0].mean() / 70)  # the scenes' rain is 20 to 120
    assert 0.7 < min(strengths) < 0.9 < 1.1 < max(strengths) < 1.3


def test_only_pairs_with_a_grey_layer_give_rain(tmp_path: Path) -> None:
    clean = scene(1)[1] // 2  # at most 127, so that nothing is clipped
    blended = clean // 2 + np.uint8(90)
    write_pair(tmp_path / "mixed", 1, clean + np.uint8(40), clean)
    mixed = opened(write_pair(tmp_path / "mixed", 2, blended, clean))
    other = opened(write_pair(tmp_path / "blended", 1, blended, clean))
    with pytest.raises(InputError, match="--recombine"):
        RandomCrops([other], [1], [(16, 1, 1)], seed=0, recombine=1)
    crops = RandomCrops([other, mixed], [0.9, 0.1], [(16, 60, 1)], seed=0, recombine=1)
    rainy, dry = crops.batch(0, 0)
    layers = ((rainy - dry) * 255).round()
    assert 32 <= layers.min() < 36 < 44 < layers.max() <= 48


def test_a_layer_below_zero_does_not_wrap(tmp_path: Path) -> None:
    """As a few pixels of a set may have."""
    clean = np.full((64, 64, 3), 10, np.uint8)
    rainy = clean + np.uint8(30)
    rainy[:2, 0] = 0
    write_pair(tmp_path / "pairs", 1, rainy, clean)
    crops = crops_of(tmp_path / "pairs", 60, size=60, recombine=1)
    assert max((rainy - clean).max() for rainy, clean in crops) <= 36


def test_rain_that_white_hides_is_filled_in(tmp_path: Path) -> None:
    """Even rain of 50 over a white row; a pair that is mostly white gives no rain."""
    clean = np.full((64, 64, 3), 100, np.uint8)
    clean[20] = 255
    write_pair(tmp_path / "pairs", 1, np.maximum(clean, 150), clean)
    write_pair(tmp_path / "pairs", 2, np.full_like(clean, 255), np.full_like(clean, 255))
    strengths = []
    for rainy, clean_crop in crops_of(tmp_path / "pairs", 60, size=24, recombine=1):
        layer = (rainy - clean_crop)[clean_crop < 255]
        if layer.size:
            assert layer.min() == layer.max()  # no dry row where the white one was
            strengths.append(layer.max())
    assert 40 <= min(strengths) < 46 < 54 < max(strengths) <= 60


def test_crops_without_rain(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", 2)
    dry = [np.array_equal(*pair) for pair in crops_of(folder, 200, without_rain=0.3)]
    assert np.mean(dry) == pytest.approx(0.3, abs=0.1)


def test_values_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "x=1").mkdir()
    assert folder_and_share("a/b") == (Path("a/b"), 1)
    assert folder_and_share("a/b=0.25") == (Path("a/b"), 0.25)
    assert folder_and_share(f"{tmp_path}/x=1") == (tmp_path / "x=1", 1)
    assert parsed_stage("64:4:0.5") == (64, 4, 0.5)
    for text in ("a=0", "a=nan", "a=much", "64:4", "64:4:nan", "0:4:1", "6.5:4:1"):
        parse = folder_and_share if "=" in text else parsed_stage
        with pytest.raises(InputError, match=text):
            parse(text)
