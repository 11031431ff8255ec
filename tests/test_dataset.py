"""Packing pairs into one file, cutting patches, grey layers, backgrounds."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, scene, write, write_pairs
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
    prepare(folder)
    write(folder / "rainy/rain-001.png", scene(99)[0])
    write(folder / "norain-001.png", scene(99)[1])
    monkeypatch.chdir(folder)
    path = prepare(Path())  # the set may be the current folder
    assert path == folder.with_name("set.h5")
    assert np.array_equal(DerainDataset(path, 32, 32).whole_pair(0)[0], scene(99)[0])


@pytest.mark.parametrize("kind", ["empty", "text", "hdf5", "cut off"])
def test_a_foreign_or_damaged_file_is_kept(folder: Path, kind: str) -> None:
    path = prepare(folder)
    whole = path.read_bytes()
    path.write_bytes({"cut off": whole[: len(whole) // 3], "text": b"mine"}.get(kind, b""))
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["mine"] = 1
    before = path.read_bytes()
    for use in (lambda: prepare(folder), lambda: DerainDataset(path, 32, 32)):
        with pytest.raises(InputError, match=r"set\.h5"):
            use()
    assert path.read_bytes() == before


def test_a_broken_image_leaves_the_old_file(folder: Path) -> None:
    path = prepare(folder)
    before = path.read_bytes()
    (folder / "norain-003.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(InputError, match=r"norain-003\.png"):
        prepare(folder)
    assert path.read_bytes() == before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["set", "set.h5"]


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


@pytest.mark.slow
def test_two_processes_that_pack_one_set(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=prepare, args=(folder,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(DerainDataset(folder.with_name("set.h5"), 32, 32).pairs) == 4
    assert sorted(p.name for p in folder.parent.iterdir()) == ["set", "set.h5"]


def test_a_read_only_place_is_packed_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders of one name in two such places get files of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = [write_pairs(tmp_path / f"{n}/pairs", 2, first=n) for n in (1, 5)]
    access = os.access  # permissions would not keep root out
    monkeypatch.setattr(os, "access", lambda p, mode: Path(p).name not in "15" and access(p, mode))
    for path, number in zip(list(map(prepare, folders)), (1, 5), strict=True):
        assert path.parent == tmp_path / "cache/dargnet"
        assert np.array_equal(DerainDataset(path, 16, 64).whole_pair(0)[0], scene(number)[0])


@pytest.mark.parametrize("kilobytes", [1, 20])
def test_a_full_disk_while_packing(folder: Path, kilobytes: int) -> None:
    code = "from pathlib import Path; from DerainDataset import prepare\n"
    code += "try: prepare(Path('set'))\nexcept OSError as error: print(error.filename)"
    limited = f'ulimit -f {kilobytes}; exec "$@"'
    result = subprocess.run(
        ["bash", "-c", limited, "bash", sys.executable, "-c", code],
        cwd=folder.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip().endswith("set.h5"), result.stderr
    assert [p.name for p in folder.parent.iterdir()] == ["set"]


def test_patches_lie_on_the_published_grid(tmp_path: Path) -> None:
    path = prepare(write_pairs(tmp_path / "set", 2, height=321, width=481))
    data = DerainDataset(path, patch_size=100, stride=80)
    places = [(n, top, left) for n in (1, 2) for top in (0, 80, 160) for left in range(0, 381, 80)]
    assert len(data) == len(places) == 30
    for i, (number, top, left) in enumerate(places):
        for patch, image in zip(data[i], scene(number, 321, 481), strict=True):
            assert patch.dtype == torch.float32
            levels = (patch * 255).round().permute(1, 2, 0).numpy()
            assert np.array_equal(levels, image[top : top + 100, left : left + 100])
    flipped = DerainDataset(path, patch_size=100, stride=80, flip=True)
    assert len(flipped) == 60
    for side in (0, 1):
        assert torch.equal(flipped[7][side], data[7][side])
        assert torch.equal(flipped[30 + 7][side], data[7][side].flip(-1))
    (rainy, clean), *_ = DataLoader(data.part([1]), batch_size=3)
    assert rainy.shape == clean.shape == (3, 3, 100, 100)
    assert torch.equal(rainy[2], data[15 + 2][0])


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
    """Five backgrounds in six pairs each; of one of them, every pair shows another crop."""
    tall = scene(500, 96, 72)[1]
    for number in range(1, 31):
        background = (number - 1) // 6
        clean = scene(background)[1] if background else tall[5 * number : 5 * number + 64]
        write(tmp_path / f"set/norain-{number}.png", clean)
        write(tmp_path / f"set/rain-{number}.png", cv2.add(clean, number))
    data = DerainDataset(prepare(tmp_path / "set"), 32, 32)
    held_out = data.held_out(8, seed=3)
    assert len(held_out.pairs) == 12  # at least 8, of whole backgrounds
    assert len({pair // 6 for pair in held_out.pairs}) == 2
    assert any(data.held_out(8, seed).pairs != held_out.pairs for seed in range(10))
    training = data.without_backgrounds_of([held_out])
    assert sorted(training.pairs + held_out.pairs) == list(range(30))
    with pytest.raises(InputError, match=r"set\.h5.*every pair"):
        data.without_backgrounds_of([data.held_out(30, seed=0)])


def test_a_background_is_found_in_another_set(folder: Path, tmp_path: Path) -> None:
    """Also where the rain differs and the image is a crop."""
    clean = scene(2)[1][:, 3:]
    write(tmp_path / "other/norain-1.png", clean)
    write(tmp_path / "other/rain-1.png", cv2.add(clean, 30))
    data, other = (DerainDataset(prepare(path), 32, 16) for path in (folder, tmp_path / "other"))
    assert data.without_backgrounds_of([other]).pairs == [0, 2, 3]
