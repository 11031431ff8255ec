"""Packing pairs into one file, cutting patches, grey layers, backgrounds."""

import os
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from conftest import scene, write, write_pairs
from torch.utils.data import DataLoader

from derain.synthesize import SYNTHETIC_MARKER
from DerainDataset import DerainDataset, has_grey_layer, prepare
from utils import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pairs in a folder of their own."""
    return write_pairs(tmp_path / "sets/set", 4)


def test_a_set_is_packed_once_and_each_image_stored_once(folder: Path) -> None:
    shutil.copy(folder / "norain-001.png", folder / "norain-005.png")  # another rain, same clean
    write(folder / "rainy/rain-005.png", scene(77)[0])
    path = prepare(folder)
    assert path == folder.with_name("set.h5")
    with h5py.File(path) as file:
        assert len(file["images"]) == 9
        assert list(file["grey_layer"]) == [True] * 4 + [False]
    before = path.stat()
    assert prepare(folder) == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["set", "set.h5"]


def test_changed_images_are_packed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The set may be the current folder. If an image is broken, the old file stays."""
    prepare(folder)
    write(folder / "rainy/rain-001.png", scene(99)[0])
    monkeypatch.chdir(folder)
    path = prepare(Path())
    assert path == folder.with_name("set.h5")
    assert np.array_equal(DerainDataset(path, 32, 32).whole_pair(0)[0], scene(99)[0])
    before = path.read_bytes()
    (folder / "norain-003.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(InputError, match=r"norain-003\.png"):
        prepare(folder)
    assert path.read_bytes() == before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["set", "set.h5"]


@pytest.mark.parametrize("kind", ["text", "hdf5"])
def test_a_foreign_file_is_kept(folder: Path, kind: str) -> None:
    path = prepare(folder)
    path.write_bytes(b"mine")
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["mine"] = 1
    before = path.read_bytes()
    for use in (lambda: prepare(folder), lambda: DerainDataset(path, 32, 32)):
        with pytest.raises(InputError, match=r"set\.h5"):
            use()
    assert path.read_bytes() == before


def test_the_strict_set_has_a_file_of_its_own(tmp_path: Path) -> None:
    """RainTrainH's 1,800 numbers: 1,254 pairs are strict. A synthetic set has no such rule."""
    folder = tmp_path / "set"
    for side, image in zip(("rain", "norain"), scene(1, 16, 16), strict=True):
        first = write(folder / f"{side}-1.png", image)
        for number in range(2, 1801):
            (folder / f"{side}-{number}.png").hardlink_to(first)
    strict, every = prepare(folder, strict=True), prepare(folder)
    assert (strict.name, every.name) == ("set.strict.h5", "set.h5")
    assert (len(DerainDataset(strict, 16, 16)), len(DerainDataset(every, 16, 16))) == (1254, 1800)
    (folder / SYNTHETIC_MARKER).write_text("{}")
    assert prepare(folder, strict=True) == every


def test_a_read_only_place_needs_a_link(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = folder.parent.parent / "link"
    link.symlink_to(folder)
    access = os.access  # permissions would not keep root out
    monkeypatch.setattr(os, "access", lambda p, mode: p != folder.parent and access(p, mode))
    with pytest.raises(InputError, match="sets: is read-only"):
        prepare(folder)
    assert prepare(link) == link.with_name("link.h5")
    assert len(DerainDataset(link.with_name("link.h5"), 32, 64).pairs) == 4


def test_the_published_grid(tmp_path: Path) -> None:
    """Images of 321x481 have 3 x 5 patches; test_training.py holds their order."""
    packed = prepare(write_pairs(tmp_path / "set", 2, height=321, width=481))
    data = DerainDataset(packed, patch_size=100, stride=80, flip=True)
    assert len(data) == 2 * 2 * 15
    batches = list(DataLoader(data.part([1]), batch_size=5))
    assert len(batches) == 2 * 3
    for patches, image in zip(batches[1], scene(2, 321, 481), strict=True):
        assert patches.dtype == torch.float32
        levels = (patches * 255).round().permute(0, 2, 3, 1).numpy()
        assert np.array_equal(levels[4], image[80:180, 320:420])


def test_a_grey_layer_is_told_from_other_rain() -> None:
    rainy, clean = scene(1)
    assert has_grey_layer(rainy, clean)
    assert has_grey_layer(clean, clean)
    speck = rainy.copy()
    speck[5, 5] = 255 - speck[5, 5]  # one pixel in 4,608 may differ
    assert has_grey_layer(speck, clean)
    _, jpeg = cv2.imencode(".jpg", rainy, [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert not has_grey_layer(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), clean)
    blended = np.round(0.8 * clean + 0.2 * 230).astype(np.uint8)
    assert not has_grey_layer(blended, clean)
    bright = np.maximum(clean, 9)
    assert not has_grey_layer(bright - np.uint8(9), bright)


def test_pairs_are_held_out_by_whole_backgrounds(tmp_path: Path) -> None:
    """Five backgrounds in six pairs each: training gets no other pair of those held out."""
    for number in range(30):
        clean = scene(number // 6)[1]
        if number >= 24:
            clean %= 9  # without a line that stands out
        write(tmp_path / f"set/norain-{number}.png", clean)
        write(tmp_path / f"set/rain-{number}.png", cv2.add(clean, number))
    data = DerainDataset(prepare(tmp_path / "set"), 32, 32)
    held_out = data.held_out(2, seed=3)
    assert len(held_out.pairs) == len(set(held_out.pairs)) == 2
    assert any(data.held_out(2, seed).pairs != held_out.pairs for seed in range(10))
    training = data.without_backgrounds([held_out])
    backgrounds = {pair // 6 for pair in held_out.pairs}
    assert training.pairs == [pair for pair in range(30) if pair // 6 not in backgrounds]
    assert data.without_backgrounds([data.part([24])]).pairs == list(range(24))
    with pytest.raises(InputError, match=r"set\.h5.*every pair"):
        data.without_backgrounds([data.held_out(30, seed=0)])


def test_a_background_is_found_in_another_set(folder: Path, tmp_path: Path) -> None:
    """Also where the rain differs and the image is a crop."""
    for number, clean in ((2, scene(2)[1][:, 3:]), (4, scene(4)[1][3:])):
        write(tmp_path / f"other/norain-{number}.png", clean)
        write(tmp_path / f"other/rain-{number}.png", cv2.add(clean, 30))
    data, other = (DerainDataset(prepare(path), 32, 16) for path in (folder, tmp_path / "other"))
    assert data.without_backgrounds([other]).pairs == [0, 2]
