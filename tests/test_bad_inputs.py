"""One table of bad inputs for all commands: one line names the culprit, and nothing is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Command, one_error, scene, write, write_pairs

COMMON = ("--logdir", "my_logs", "--save_path", "out")
TRAINING = ("--init", "my_logs", "--channels", "4", "--groups", "1", "--patch_size", "32")
COMMANDS = {
    "train": ("train_rain100L.py", "--data_path", "pairs", "--save_path", "out", *TRAINING),
    "test": ("test_Rain100L.py", "--data_path", "pairs", *COMMON),
    "own": ("test_real.py", "--data_path", "pairs/rainy", *COMMON),
    "score": ("derain.score", "--set", "pairs", "mine=pairs/rainy"),
    "check": ("derain.sets", "pairs"),
}
SCORED = ("train", "test", "score")
PAIRED = (*SCORED, "check")
WEIGHTS = ("train", "test", "own")
RAINY, CLEAN = Path("pairs/rainy/rain-002.png"), Path("pairs/norain-002.png")
NET = Path("my_logs/net_latest.pth")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1561442\n"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def write_text(name: str) -> None:
    Path(name).parent.mkdir()
    Path(name).write_text("words")


def resize(*sizes: tuple[int, int]) -> None:
    """Replace the second pair's images by others."""
    for path, (height, width) in zip((RAINY, CLEAN), sizes, strict=True):
        write(path, scene(2, height, width)[1])


def no_permission(path: Path) -> None:
    path.mkdir()
    path.chmod(0o500)
    if os.access(path, os.W_OK):
        pytest.skip("root may write anywhere")


# what is wrong, how it is brought about, which commands meet it, what their line names
TABLE: list[tuple[str, Callable[[], object], tuple[str, ...], object]] = [
    ("no folder", lambda: shutil.rmtree("pairs"), tuple(COMMANDS), "pairs"),
    ("no rainy image", lambda: shutil.rmtree("pairs/rainy"), (*PAIRED, "own"), "pairs"),
    ("no clean image", CLEAN.unlink, PAIRED, RAINY.name),
    ("no rainy partner", RAINY.unlink, PAIRED, CLEAN.name),
    ("text", lambda: RAINY.write_text("words"), (*PAIRED, "own"), RAINY),
    ("cut off", lambda: cut(RAINY), (*PAIRED, "own"), RAINY),
    ("clean text", lambda: CLEAN.write_text("words"), PAIRED, CLEAN),
    ("a link to nothing", lambda: (RAINY.unlink(), RAINY.symlink_to("x")), ("own",), RAINY),
    ("two sizes", lambda: resize((64, 72), (40, 40)), PAIRED, CLEAN),
    ("too small", lambda: resize((10, 40), (10, 40)), SCORED, RAINY.name),
    ("no weights", NET.unlink, WEIGHTS, "my_logs"),
    ("weights of text", lambda: NET.write_text("words"), WEIGHTS, NET),
    ("weights cut off", lambda: cut(NET), WEIGHTS, NET),
    ("foreign weights", lambda: torch.save({"x": torch.ones(2)}, NET), WEIGHTS, NET),
    ("LFS pointer", lambda: NET.write_text(POINTER), WEIGHTS, NET),
    ("web page", lambda: NET.write_text("<!DOCTYPE html><html></html>"), WEIGHTS, NET),
    ("a file for the results", lambda: Path("out").write_text("kept"), WEIGHTS, "out"),
    ("foreign files", lambda: write(Path("out/a.png"), scene(9)[0]), ("test", "own"), "out"),
    ("damaged state", lambda: write_text("out/state_latest.pth"), ("train",), "state_latest.pth"),
    ("damaged record", lambda: write_text("out/sources.json"), ("test", "own"), "sources.json"),
    ("no permission", lambda: no_permission(Path("out")), WEIGHTS, "out"),
]


def files() -> dict[str, bytes]:
    """What is on the disk."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def in_a_folder_with_pairs(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with weights."""
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("pairs"), 3)


CASES = [(row, name) for row in TABLE for name in row[2]]


@pytest.mark.parametrize(("row", "name"), CASES, ids=[f"{row[0]}: {name}" for row, name in CASES])
def test_bad_inputs(inline: Command, row: tuple, name: str) -> None:
    _, spoil, _, culprit = row
    spoil()
    before = files()
    result = inline(*COMMANDS[name])
    if f"skipped: {culprit}" in result.stderr:  # the other own images get their results
        one_error(result, "1 of 3")
        assert len(list(Path("out").glob("*.png"))) == 2
    else:
        one_error(result, culprit)
        assert not Path("out/results.csv").exists()
    assert before.items() <= files().items()


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        (("test_real.py", "--tile", "big"), "--tile big"),
        (("test_real.py", "--device", "cuda:77"), "--device cuda:77"),
        (("test_real.py", "--clean_dir", "pairs"), "--clean_dir"),
        (("test_real.py", "--out", "pairs/norain-001.png"), "norain-001.png"),
        (("test_real.py", "--out", "x.tif"), "x.tif"),
        (("test_real.py", "--out", "x.png", "--data_path", "pairs"), "--out"),
        (("test_Rain12.py", "--data_path", "pairs", "pairs"), "--data_path"),
        (("test_Rain12.py", "--data_path", "pairs", "--out", "x.png"), "--out"),
    ],
)
def test_bad_settings(inline: Command, flags: tuple[str, ...], culprit: str) -> None:
    """They are found before any work."""
    script, *others = flags
    arguments = ("--data_path", "pairs/norain-001.png", "--logdir", "my_logs", *others)
    one_error(inline(script, *arguments), culprit)
    assert not Path("results").exists()
