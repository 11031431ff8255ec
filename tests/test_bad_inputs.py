"""Bad inputs of all commands in one table, and damaged files: one line each, nothing is lost."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Command, one_error, scene, write, write_pairs
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from derain.images import read_image
from DerainDataset import DerainDataset, prepare
from networks import DARGNet, load_network
from utils import InputError

# The same damages everywhere; FUZZ=20 in the environment makes 20 times as many, others each time.
FUZZ = int(os.environ.get("FUZZ", "1"))

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
def pairs(inline: Command, weights: Path) -> None:
    """Begin in a folder with pairs and weights."""
    write_pairs(Path("pairs"), 3)


CASES = [(row, name) for row in TABLE for name in row[2]]


@pytest.mark.parametrize(("row", "name"), CASES, ids=[f"{row[0]}: {name}" for row, name in CASES])
def test_bad_inputs(inline: Command, row: tuple, name: str) -> None:
    _, spoil, _, culprit = row
    spoil()
    before = files()
    result = inline(*COMMANDS[name])
    if f"skipped: {culprit}" in result.stderr:  # the other images get their results
        one_error(result, "1 of 3")
        assert len(list(Path("out").glob("*.png"))) == 2
    else:
        one_error(result, culprit)
        assert not Path("out/results.csv").exists()
    assert before.items() <= files().items()


IMAGE = "pairs/norain-001.png"
VIDEO = ROOT / "tests/data/cover_first.mp4"
OWN = ("test_real.py", "--logdir", "my_logs", "--data_path", IMAGE)
SET = ("test_Rain12.py", "--logdir", "my_logs", "--data_path", "pairs")
SCORE = ("derain.score", "--set", "pairs")


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ((*OWN, "--tile", "-16"), "--tile -16"),
        ((*OWN, "--device", "cuda:77"), "--device cuda:77"),
        ((*OWN, "--clean_dir", "pairs"), "--clean_dir"),
        ((*OWN, "--out", IMAGE), IMAGE),
        ((*OWN, "--out", "x.tif"), "x.tif"),
        (("test_real.py", "--data_path", VIDEO, "--out", "x.avi"), "x.avi"),
        (("test_real.py", "--data_path", VIDEO, "--start", "-1"), "--start"),
        (("test_real.py", "--data_path", VIDEO, "--duration", "0"), "--duration"),
        ((*OWN, "pairs", "--out", "x.png"), "--out"),
        ((*SET, "pairs"), "--data_path"),
        ((*SET, "--out", "x.png"), "--out"),
        ((*OWN, "--data_path", IMAGE, "--out", "x.png"), "--out"),
        (("derain.score", "a=pairs/rainy"), "--set"),
        ((*SCORE,), "NAME=FOLDER"),
        ((*SCORE, "pairs"), "pairs"),
        ((*SCORE, "a="), "a="),
        ((*SCORE, "rainy=pairs/rainy"), "rainy=pairs/rainy"),
        ((*SCORE, "a=pairs/rainy", "a=pairs/rainy"), "a=pairs/rainy"),
        ((*SCORE, "a=pairs/rainy", "--crop_border", "27"), "--crop_border 27"),
        ((*SCORE, "a=pairs/rainy", "--crop_border", "-1"), "--crop_border -1"),
        ((*SCORE, "a=pairs/rainy", "--figure", "rain-009"), "rain-009"),
        ((*SCORE, "a=pairs/rainy", "--figure", "--out", f"{IMAGE}/below"), "--out"),
    ],
)
def test_bad_settings(inline: Command, flags: tuple[str, ...], culprit: str) -> None:
    """Nothing is written."""
    before = files()
    result = inline(*flags)
    one_error(result, culprit)
    assert result.stdout == ""
    assert files() == before


# ---------------------------------------------------------------- damaged bytes


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp", ".pth", ".h5"])
def test_damaged_files(suffix: str) -> None:
    """Change some bytes, at places given as fractions; often cut off the end.

    Each file is read rightly or rejected in one line that names it.
    """
    path = Path(f"damaged{suffix}")
    if suffix == ".pth":
        whole = NET.read_bytes()
    elif suffix == ".h5":
        whole = prepare(Path("pairs")).read_bytes()
    else:
        whole = write(path, scene(3, 12, 17)[0]).read_bytes()

    def read() -> None:
        if suffix == ".pth":
            assert isinstance(load_network(path), DARGNet)
        elif suffix == ".h5":
            for patches in DerainDataset(path, patch_size=16, stride=64):
                assert [np.shape(patch) for patch in patches] == [(3, 16, 16)] * 2
        else:
            assert read_image(path).rgb.ndim == 3

    @given(
        st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
        st.one_of(st.just(1.0), st.floats(0, 1)),
    )
    @settings(max_examples=50 * FUZZ, derandomize=FUZZ == 1, deadline=None, phases=[Phase.generate])
    def damage_and_read(changes: list[tuple[float, int]], length: float) -> None:
        data = bytearray(whole)
        for place, value in changes:
            data[int(place * (len(data) - 1))] = value
        path.write_bytes(data[: int(length * len(data))])
        try:
            read()
        except (InputError, ValueError) as error:
            assert str(path) in str(error)

    damage_and_read()
