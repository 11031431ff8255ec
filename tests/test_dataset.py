"""Packing pairs, and cutting patches in any kind of process."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, scene, write, write_pairs
from torch.utils.data import DataLoader

from derain.pairs import find_pairs, read_pair
from DerainDataset import DerainDataset, line_digests, packed_files, prepare, split_by_background
from utils import InputError


def quiet(*_: object) -> None:
    """Swallow prepare's progress lines."""


# ---------------------------------------------------------------- packing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "set", 4)


def test_prepare_packs_once_and_every_image_once(folder: Path) -> None:
    shutil.copy(folder / "norain-001.png", folder / "norain-005.png")  # a second rain on one background
    write(folder / "rainy/rain-005.png", scene(77)[0])
    path = prepare(folder, log=quiet)
    assert path == folder.with_name("set.h5")
    with h5py.File(path) as file:
        assert len(file["images"]) == 9
        assert all(image.dtype == np.uint8 for image in file["images"].values())
        assert list(file["backgrounds"]) == [0, 1, 2, 3, 0]
    before = path.stat()
    assert prepare(folder, log=quiet) == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["set", "set.h5"]  # no temporary file is left


def test_prepare_notices_changed_images(folder: Path) -> None:
    path = prepare(folder, log=quiet)
    rainy, clean = scene(99)
    write(folder / "rainy/rain-002.png", rainy)
    write(folder / "norain-002.png", clean)
    lines: list[str] = []
    prepare(folder, log=lines.append)
    assert "changed" in lines[0]
    assert np.array_equal(DerainDataset(path, 32, 32).whole_pair(1)[0], rainy)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_prepare_rebuilds_a_cut_off_file(folder: Path, share: float) -> None:
    path = prepare(folder, log=quiet)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    prepare(folder, log=quiet)
    assert np.array_equal(DerainDataset(path, 32, 32).whole_pair(3)[1], scene(4)[1])


@pytest.mark.parametrize("kind", ["text", "hdf5"])
def test_prepare_keeps_a_foreign_file(folder: Path, kind: str) -> None:
    path = folder.with_name("set.h5")
    if kind == "text":
        path.write_text("mine")
    else:
        with h5py.File(path, "w") as file:
            file["mine"] = 1
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"set\.h5: not a packed training set; rename it"):
        prepare(folder, log=quiet)
    assert path.read_bytes() == before


@pytest.mark.slow
def test_the_strict_set_has_a_file_of_its_own(tmp_path: Path) -> None:
    rainy, clean = (write(tmp_path / f"{name}.png", image) for name, image in zip("rc", scene(1, 16, 16), strict=True))
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(1, 1801):
        (folder / f"rain-{number}.png").hardlink_to(rainy)
        (folder / f"norain-{number}.png").hardlink_to(clean)
    strict, every = prepare(folder, strict=True, log=quiet), prepare(folder, log=quiet)
    assert (strict.name, every.name) == ("set.strict.h5", "set.h5")
    assert (len(DerainDataset(strict, 16, 16)), len(DerainDataset(every, 16, 16))) == (1254, 1800)
    (folder / "synthetic.json").write_text("{}")  # a synthetic set of as many has no such rule
    assert prepare(folder, strict=True, log=quiet) == every


def test_a_set_may_be_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert prepare(Path(), log=quiet) == folder.with_name("set.h5")


def test_a_set_that_is_packed_anew_keeps_serving_who_has_it(folder: Path) -> None:
    data = DerainDataset(prepare(folder, log=quiet), 32, 32)
    first = data[0][0].clone()
    for pair in find_pairs(folder):
        write(pair.rainy, scene(50 + pair.number)[0])
    prepare(folder, log=quiet)
    assert torch.equal(data[0][0], first)


def test_a_failed_prepare_leaves_the_old_file(folder: Path) -> None:
    path = prepare(folder, log=quiet)
    content = path.read_bytes()
    (folder / "norain-003.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(InputError, match=r"norain-003\.png"):
        prepare(folder, log=quiet)
    assert path.read_bytes() == content
    assert sorted(p.name for p in folder.parent.iterdir()) == ["set", "set.h5"]


@pytest.mark.slow
def test_two_prepares_at_once(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=prepare, args=(folder, False, quiet)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(DerainDataset(folder.with_name("set.h5"), 32, 32).pairs) == 4
    assert sorted(p.name for p in folder.parent.iterdir()) == ["set", "set.h5"]


# ---------------------------------------------------------------- reading


def test_patches_lie_on_the_published_grid(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set", 1, height=321, width=481)
    path = prepare(tmp_path / "set", log=quiet)
    data = DerainDataset(path, patch_size=100, stride=80)
    assert len(data) == 15
    rainy, clean = scene(1, 321, 481)
    for i, (top, left) in enumerate((top, left) for top in (0, 80, 160) for left in (0, 80, 160, 240, 320)):
        for patch, image in zip(data[i], (rainy, clean), strict=True):
            assert patch.shape == (3, 100, 100)
            assert patch.dtype == torch.float32
            expected = image[top : top + 100, left : left + 100]
            assert np.array_equal(np.round(patch.numpy() * 255).astype(np.uint8).transpose(1, 2, 0), expected)
    flipped = DerainDataset(path, patch_size=100, stride=80, flip=True)
    assert len(flipped) == 30
    for side in (0, 1):
        assert torch.equal(flipped[15 + 7][side], data[7][side].flip(-1))


def test_portrait_images_and_chosen_pairs(tmp_path: Path) -> None:
    write_pairs(tmp_path / "set", 3, height=80, width=40)
    data = DerainDataset(prepare(tmp_path / "set", log=quiet), 32, 16, pairs=[2, 0])
    assert len(data) == 2 * 4 * 1
    assert np.array_equal(np.round(data[0][1].numpy() * 255), scene(3, 80, 40)[1][:32, :32].transpose(2, 0, 1))


def test_an_image_smaller_than_a_patch(folder: Path) -> None:
    path = prepare(folder, log=quiet)
    with pytest.raises(InputError, match="72x64, smaller than a patch of 100"):
        DerainDataset(path, 100, 80)


@pytest.mark.parametrize("content", [b"", b"no HDF5", None])
def test_a_file_that_is_no_packed_set(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "set.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"set\.h5"):
        DerainDataset(path, 32, 32)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one processor
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_two_workers_read_what_one_process_reads(folder: Path, method: str) -> None:
    data = DerainDataset(prepare(folder, log=quiet), 32, 16)
    expected = [data[i] for i in range(len(data))]  # the file is open here before the workers start
    loader = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=method)
    rainy, clean = (torch.cat(side) for side in zip(*loader, strict=True))
    assert torch.equal(rainy, torch.stack([pair[0] for pair in expected]))
    assert torch.equal(clean, torch.stack([pair[1] for pair in expected]))


def sum_of_patches(data: DerainDataset, results: multiprocessing.Queue) -> None:
    results.put((os.getpid(), float(sum(rainy.double().sum() for rainy, _ in (data[i] for i in range(len(data)))))))


@pytest.mark.slow
def test_several_processes_at_once(folder: Path) -> None:
    data = DerainDataset(prepare(folder, log=quiet), 32, 16)
    data[0]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=sum_of_patches, args=(data, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join(100)
    assert len({pid for pid, _ in found}) == 3
    assert len({total for _, total in found}) == 1


# ---------------------------------------------------------------- the validation split


def test_the_split_is_by_background(tmp_path: Path) -> None:
    """Six rains on each of five backgrounds, one of them seen only in overlapping crops."""
    folder = tmp_path / "set"
    tall = scene(500, 96, 72)[1]
    for number in range(1, 31):
        background = (number - 1) // 6
        clean = scene(background, 64, 72)[1] if background else tall[5 * number : 5 * number + 64]
        write(folder / f"norain-{number}.png", clean)
        write(folder / f"rain-{number}.png", np.minimum(255, clean.astype(int) + number).astype(np.uint8))
    backgrounds = DerainDataset(prepare(folder, log=quiet), 32, 32).backgrounds
    assert [len(set(backgrounds[i : i + 6])) for i in range(0, 30, 6)] == [1] * 5
    assert len(set(backgrounds)) == 5
    training, validation = split_by_background(backgrounds, 8, seed=3)
    assert len(validation) == 12  # whole backgrounds, at least 8 pairs
    assert sorted(training + validation) == list(range(30))
    assert set(backgrounds[training]).isdisjoint(backgrounds[validation])
    assert split_by_background(backgrounds, 8, seed=3) == (training, validation)
    assert any(split_by_background(backgrounds, 8, seed=s)[1] != validation for s in range(10))
    with pytest.raises(InputError, match="leaves no background"):
        split_by_background(backgrounds, 30, seed=0)


@pytest.mark.slow
def test_real_sets_share_no_background_where_they_should_not() -> None:
    """For whoever has the real sets: RainTrainL and Rain100L have no photograph in common."""
    root = Path(__file__).resolve().parent.parent / "datasets"
    sets = (root / "train/RainTrainL", root / "test/Rain100L")
    if not all(folder.is_dir() for folder in sets):
        pytest.skip("the real sets are not here")
    rows = [{row for pair in find_pairs(folder) for row in line_digests(read_pair(pair)[1])} for folder in sets]
    assert all(rows)
    assert not rows[0] & rows[1]


def test_a_read_only_place_is_packed_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a mounted data set; a second folder of the same name elsewhere gets a file of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = [write_pairs(tmp_path / place / "pairs", 2, first=first) for place, first in (("a", 1), ("b", 5))]
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name not in "ab" and access(path, mode))
    lines: list[str] = []
    files = [prepare(folder, log=lines.append) for folder in folders]
    assert len({*files}) == 2
    assert all(file.parent == tmp_path / "cache/dargnet" for file in files)
    assert lines[0] == f"packing 2 pairs of {folders[0]} into {files[0]}"
    for file, number in zip(files, (1, 5), strict=True):
        rainy, _ = DerainDataset(file, 16, 64)[0]
        assert np.array_equal(np.round(rainy.permute(1, 2, 0).numpy() * 255), scene(number)[0][:16, :16])
    lines.clear()
    assert prepare(folders[0], log=lines.append) == files[0]
    assert lines == []  # packed once
    assert prepare(folders[0], log=quiet, cache=tmp_path / "c/d").parent == tmp_path / "c/d"
    (tmp_path / "a/pairs.h5").write_bytes(files[1].read_bytes())  # one that came with the data, of other images
    assert prepare(folders[0], log=lines.append) == files[0]
    assert lines == [f"{tmp_path / 'a/pairs.h5'}: the images changed since; packing again"]


def test_each_image_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set on a slow network share is read while it is packed, and never again."""
    folder, read, paths = write_pairs(tmp_path / "pairs", 3), Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: paths.append(path) or read(path))
    cache = tmp_path / "cache"
    assert len(DerainDataset(prepare(folder, log=quiet, cache=cache), 16, 64)) == 3
    assert sorted(paths) == sorted(folder.rglob("*.png"))
    prepare(folder, log=quiet, cache=cache)
    assert len(paths) == 6


def test_without_a_home_the_cache_is_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where the user has no entry
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert packed_files(tmp_path / "pairs", ".h5")[1].parent == Path(tempfile.gettempdir()) / "dargnet"


def test_a_packed_file_that_may_not_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as another user's, beside shared data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, access = write_pairs(tmp_path / "a/pairs", 2), os.access
    theirs = prepare(folder, log=quiet)
    monkeypatch.setattr(os, "access", lambda path, mode: path not in (theirs, theirs.parent) and access(path, mode))
    assert prepare(folder, log=quiet).parent == tmp_path / "cache/dargnet"


def test_a_cache_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is not a folder; choose another --cache"):
        prepare(write_pairs(tmp_path / "pairs", 1), log=quiet, cache=tmp_path / "file/cache")


def test_packed_files_need_no_locks(tmp_path: Path) -> None:
    """Some network file systems have none; here another process has the only one."""
    fcntl = pytest.importorskip("fcntl")
    folder = write_pairs(tmp_path / "pairs", 2)
    path = prepare(folder, log=quiet)
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert len(DerainDataset(path, 16, 64)) == 2
        lines: list[str] = []
        assert prepare(folder, log=lines.append) == path
        assert lines == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
@pytest.mark.parametrize("most", [500, 20_000])
def test_a_quota_while_packing(tmp_path: Path, most: int) -> None:
    """One line and nothing left: HDF5 has its own words for it, at whichever moment it comes."""
    write_pairs(tmp_path / "pairs", 2)
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from DerainDataset import prepare
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))
try:
    prepare(Path("pairs"))
except OSError as error:
    assert error.errno == 27, error
    print("refused")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.endswith("refused\n"), result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["pairs"]
