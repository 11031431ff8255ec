"""Finding pairs in every layout met in the wild, or rejecting them with the line that settles it; the strict rule."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import LAYOUT_PATTERNS, scene, write, write_pairs

from derain.pairs import (
    Pair,
    UnknownLayout,
    find_pairs,
    find_rainy,
    is_strict,
    read_pair,
    strict_raintrainh,
)
from utils import InputError

# Trees by name. R rainy, C clean, S streaks alone, B rainy and clean side by side, O others, - no image;
# {n} counts scenes (1 to 3), {r} rains on one scene (1 and 2).
PAIRED: dict[str, tuple[str, ...]] = {
    "BasicSR": ("R LQ/{n}.png", "C GT/{n}.png"),
    "capitals": ("R Rainy/RAIN-00{n}.PNG", "C NoRain-00{n}.png"),
    "JPEG and PNG": ("R input/{n}.png", "C GT/{n}.jpg"),
    "label": ("R input/{n}.png", "C label/{n}.png"),
    "macOS": (
        *("R rainy/rain-00{n}.png", "C norain-00{n}.png"),
        *("- rainy/._rain-00{n}.png", "- ._norain-00{n}.png", "- .DS_Store", "- rainy/Thumbs.db"),
    ),
    "nested": ("R Rain100L/test/rain/norain-{n}.png", "C Rain100L/test/norain/norain-{n}.png"),
    "Unicode forms": ("R rainy/Zu\u0308rich{n}.png", "C clean/Z\u00fcrich{n}.png"),
    "outdoor": ("R in/im_000{n}_s8{r}_a0{r}.png", "C gt/im_000{n}.png"),
    "outdoor, input": ("R input/im_000{n}_s8{r}_a0{r}.png", "C gt/im_000{n}.png"),
    "Rain100H, new": ("R rain_X2/norain-00{n}x2.png", "C norain/norain-00{n}.png"),
    "Rain100H x2": ("R rainy/rain-00{n}x2.png", "C norain-00{n}x2.png"),
    "Rain12600": ("R input/im_000{n}.png", "C gt/im_000{n}.png"),
    "Rain1400": ("R rainy_image/90{n}_{r}.jpg", "C ground_truth/90{n}.jpg"),
    "Rain1400 in DARGNet's layout": ("R rainy/90{n}_{r}.jpg", "C groundtruth/90{n}.jpg"),
    "Rain200H": ("R rain/{n}.png", "C norain/{n}.png"),
    "x2 in RCDNet's layout": ("R rain/norain-00{n}x2.png", "C norain/norain-00{n}.png"),
    "Raindrop": ("R data/{n}_rain.png", "C gt/{n}_clean.png"),
    "Raindrop in one folder": ("R {n}_rain.png", "C {n}_clean.png"),
    "Raindrop in DARGNet's layout": ("R rainy/{n}_rain.png", "C clean/{n}_clean.png"),
    "SPA": ("R rain/00{n}.png", "C gt/00{n}gt.png"),
    "Test2800, one target": ("R input/90{n}_{r}.jpg", "C target/90{n}.jpg"),
    "Windows copies": ("R rainy/rain ({n}).png", "C clean/norain ({n}).png"),
    "zeros": ("R rainy/{n}.png", "C clean/0000{n}.png"),
}
# ... and what is left out of them
PAIRED_IN_PART: dict[str, tuple[tuple[str, ...], str]] = {
    "RainTrainL": (
        ("R rain-{n}.png", "C norain-{n}.png", "S rainstreak-{n}.png", "S rainregion-{n}.png"),
        "3 pairs; left out: rainregion-*.png (3), rainstreak-*.png (3)",
    ),
    "rain/ holds streaks": (("R input/{n}.png", "C target/{n}.png", "S rain/{n}.png"), "3 pairs; left out: rain/"),
    "streaks, clean ones beside": (
        ("R input/rain-{n}.png", "C norain-{n}.png", "S rain/rain-{n}.png"),
        "3 pairs; left out: rain/",
    ),
    "streaks beside a training set": (
        ("R rain-{n}.png", "C norain-{n}.png", "S rain/rain-{n}.png"),
        "3 pairs; left out: rain/",
    ),
    "norain/ is not the clean side": (
        ("R rain/{n}.png", "O norain/{n}.png", "C gt/{n}.png"),
        "3 pairs; left out: norain/",
    ),
    "the rainy ones twice": (
        ("R rainy/rain-{n}.png", "C norain-{n}.png", "R rain-{n}.png"),
        "3 pairs; left out: rain-*.png (3)",
    ),
    "the clean ones twice": (("R rain/{n}.png", "C norain/{n}.png", "C gt/{n}.png"), "3 pairs; left out: norain/"),
    "a preview": (("R input/{n}.png", "C target/{n}.png", "B preview.png"), "3 pairs; left out: preview.png (1)"),
}
REJECTED: dict[str, tuple[tuple[str, ...], str]] = {
    "a second download": (
        ("R input/926_{n}.png", "C target/926_{n}.png", "R input/926_2(1).png"),
        r"926_2\(1\)\.png: looks like a second copy of 926_2\.png; remove it",
    ),
    "a copy among several rains": (
        ("R rainy/90{n}_{r}.png", "C clean/90{n}.png", "R rainy/902_1 - Copy.png"),
        r"902_1 - Copy\.png: looks like a second copy of 902_1\.png; remove it",
    ),
    "side by side": (
        ("B norain-00{n}.png",),
        r"put the rainy .* shows both side by side: python -m derain\.halves",
    ),
    "side by side, numbers": (
        ("B {n}.jpg",),
        r"put the rainy .* shows both side by side: python -m derain\.halves",
    ),
    "Rain1400 in one folder": (("R 90{n}_{r}.jpg", "C 90{n}.jpg"), r"put the rainy images into rainy/ and the clean"),
    "two sets": (
        ("R test/rain/{n}.png", "C test/norain/{n}.png", "R train/rain/{n}.png", "C train/norain/{n}.png"),
        r"holds 2 data sets \(test, train\); give the path of one",
    ),
    "a clean name that Raindrop would have": (
        ("R data/{n}_rain.png", "C gt/1_clean.png"),
        r"data/2_rain\.png: its clean image .*gt/2_clean\.png is missing; add it or remove 2_rain\.png",
    ),
    "two rains": (
        ("R input/{n}.png", "C target/{n}.png", "R2 rain/{n}.png"),
        r"rain/, input/, target/ could all be meant",
    ),
}


def plant(folder: Path, patterns: tuple[str, ...]) -> dict[Path, tuple[str, int]]:
    """Write a tree; returns what each of its images is: R, C, ..., and of which scene."""
    roles = {}
    for role, pattern in (p.split(" ", 1) for p in patterns):
        for n, r in ((n, r) for n in (1, 2, 3) for r in (1, 2)):
            path = folder / pattern.format(n=n, r=r)
            path.parent.mkdir(parents=True, exist_ok=True)
            if role == "-":
                path.write_bytes(b"no image")
                continue
            rainy, clean = scene(n, 32, 40)
            rainy = np.where(rainy > clean, np.minimum(255, rainy.astype(int) + 5 * r), rainy).astype(np.uint8)
            if "{r}" not in pattern:
                rainy = scene(n, 32, 40)[0]
            images = {"R": rainy, "C": clean, "S": rainy - clean, "B": np.hstack([rainy, clean])}
            images["O"] = scene(10 + n, 32, 40)[1]
            images["R2"] = np.minimum(255, clean.astype(int) + 9).astype(np.uint8)
            write(path, images[role])
            roles[path] = (role, n)
    return roles


@pytest.mark.parametrize("layout", LAYOUT_PATTERNS)
def test_every_layout(tmp_path: Path, layout: str) -> None:
    pairs = find_pairs(write_pairs(tmp_path / "set", 11, layout))
    assert [pair.number for pair in pairs] == list(range(1, 12))  # natural order: 10 after 9
    for pair in pairs:
        for found, expected in zip(read_pair(pair), scene(pair.number), strict=True):
            assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", [*PAIRED, *PAIRED_IN_PART])
def test_trees_that_pair(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every rainy image has the clean one of its scene, and a line names what was left out, if anything was."""
    patterns, left_out = (PAIRED[name], "") if name in PAIRED else PAIRED_IN_PART[name]
    roles = plant(tmp_path, patterns)
    pairs = find_pairs(tmp_path)
    assert [(roles[p.rainy][0], roles[p.clean][0]) for p in pairs] == [("R", "C")] * len(pairs)
    assert [roles[p.rainy][1] for p in pairs] == [roles[p.clean][1] for p in pairs]
    rains = 2 if any("{r}" in pattern for pattern in patterns) else 1
    assert [roles[p.rainy][1] for p in pairs] == sorted([1, 2, 3] * rains)
    assert len({p.rainy for p in pairs}) == len(pairs)
    assert capsys.readouterr().out == (f"{tmp_path}: {left_out}\n" if left_out else "")


@pytest.mark.parametrize("names", [("90{n}_{r}", "90{n}_3"), ("90{n}", "90{n}_{r}"), ("a{n}", "a{n} ({r})")])
def test_each_rainy_image_may_have_its_own_clean_one(tmp_path: Path, names: tuple[str, str]) -> None:
    """As in MPRNet's Test2800: 901_1 is not paired with 901 then, and 'a1 (1)' is no second copy of a1."""
    plant(tmp_path, tuple(f"{side}/{name}.png" for side in ("R input", "C target") for name in names))
    pairs = find_pairs(tmp_path)
    assert len(pairs) == 9
    assert all(pair.rainy.name == pair.clean.name for pair in pairs)


@pytest.mark.parametrize("name", REJECTED)
def test_trees_that_are_rejected(tmp_path: Path, name: str) -> None:
    patterns, message = REJECTED[name]
    plant(tmp_path, patterns)
    with pytest.raises(InputError, match=message) as caught:
        find_pairs(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("clean", ["left", "right"])
def test_images_with_two_halves_are_cut(tmp_path: Path, clean: str, inline: Callable) -> None:
    """Rain brightens, which tells the halves apart; where it does not, the flag does."""
    for n in (1, 2, 3):
        rainy, dry = scene(n, 32, 40)
        write(tmp_path / f"both/{n}.png", np.hstack([dry, rainy] if clean == "left" else [rainy, dry]))
    command = ("derain.halves", "both", "--out")
    assert inline(*command, "cut").stdout == f"cut: 3 pairs, clean images from the {clean} half\n"
    pairs = find_pairs(tmp_path / "cut")
    for n, pair in enumerate(pairs, 1):
        assert all(np.array_equal(*both) for both in zip(read_pair(pair), scene(n, 32, 40), strict=True))
    write(tmp_path / "both/4.png", np.hstack(scene(4, 32, 40)[:: -1 if clean == "right" else 1]))
    assert "neither half is always darker" in inline(*command, "again").stderr
    assert inline(*command, "again", "--clean", "right").returncode == 0
    assert "not empty" in inline(*command, "again", "--clean", "right").stderr
    write(tmp_path / "both/4.jpg", scene(4, 32, 40)[0])
    assert "4.jpg and both/4.png: would both become 4.png" in inline(*command, "same").stderr
    (tmp_path / "both/4.jpg").unlink()
    write(tmp_path / "both/5.png", scene(1, 32, 41)[0])
    assert "5.png: 41 pixels wide" in inline(*command, "odd", "--clean", "left").stderr
    assert not (tmp_path / "odd").exists()


def test_images_are_left_out_only_where_the_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """find_rainy takes all images of a folder that holds more than a set, and then must not call any left out."""
    plant(tmp_path / "archive", PAIRED_IN_PART["RainTrainL"][0])
    assert len(find_rainy(tmp_path / "archive")) == 12
    assert capsys.readouterr().out == ""
    plant(tmp_path / "streaks", PAIRED_IN_PART["rain/ holds streaks"][0])
    assert {path.parent.name for path in find_rainy(tmp_path / "streaks")} == {"input"}
    assert capsys.readouterr().out == f"{tmp_path / 'streaks'}: 3 pairs; left out: rain/\n"


def test_folders_that_are_no_set_are_of_an_unknown_layout(tmp_path: Path) -> None:
    """derain.check looks at those as images without pairs; a set with a fault is an error there."""
    plant(tmp_path / "none", ("C {n}.png",))
    with pytest.raises(UnknownLayout):
        find_pairs(tmp_path / "none")
    plant(tmp_path / "fault", ("R rainy/{n}.png", "C clean/1.png"))
    with pytest.raises(InputError) as caught:
        find_pairs(tmp_path / "fault")
    assert not isinstance(caught.value, UnknownLayout)


def test_pairs_do_not_depend_on_the_order_of_files(tmp_path: Path) -> None:
    """The clean files are named so that plain sorting would pair them wrongly."""
    for number in (1, 2, 10):
        rainy, clean = scene(number)
        write(tmp_path / f"rainy/rain-{number}.png", rainy)
        write(tmp_path / f"norain-{number:0{5 - number % 3}d}.png", clean)
    for pair in find_pairs(tmp_path):
        assert np.array_equal(read_pair(pair)[1], scene(pair.number)[1])


def test_named_images_pair_by_name_over_formats(tmp_path: Path) -> None:
    for name in ("street", "10 trees", "été", "rainbow"):
        rainy, clean = scene(len(name))
        write(tmp_path / f"input/{name}.png", rainy)
        write(tmp_path / f"target/{name}.bmp", clean)
    assert [pair.key for pair in find_pairs(tmp_path)] == ["10 trees", "rainbow", "street", "été"]


@pytest.mark.parametrize("layout", ["PReNet test", "PReNet train", "MPRNet", "RCDNet"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_missing_partner_is_an_error_that_names_both(tmp_path: Path, layout: str, side: int) -> None:
    write_pairs(tmp_path, 3, layout)
    gone, left = (LAYOUT_PATTERNS[layout][i].format(2) for i in (side, 1 - side))
    (tmp_path / gone).unlink()
    with pytest.raises(InputError) as caught:
        find_pairs(tmp_path)
    assert str(tmp_path / left) in str(caught.value)
    assert Path(gone).name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_images_for_one_place(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    shutil.copy(tmp_path / "rainy/rain-001.png", tmp_path / "rainy/rain-1.png")
    with pytest.raises(InputError, match=r"rain-(001|1)\.png and .*rain-(001|1)\.png"):
        find_pairs(tmp_path)


def test_sizes_that_differ(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    write(tmp_path / "norain-002.png", scene(2, 64, 80)[1])
    with pytest.raises(InputError, match=r"rain-002\.png and .*norain-002\.png differ in size \(72x64 and 80x64\)"):
        read_pair(find_pairs(tmp_path)[1])


@pytest.mark.parametrize("content", ["missing", "empty", "clean only", "rainy only", "a file"])
def test_folders_that_hold_no_pairs(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "set"
    if content == "a file":
        folder.write_text("no folder")
    elif content != "missing":
        write_pairs(folder, 2, "PReNet train")
        for file in folder.iterdir():
            if content == "empty" or file.name.startswith("rain") == (content == "clean only"):
                file.unlink()
    with pytest.raises(InputError) as caught:
        find_pairs(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hidden_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    write_pairs(tmp_path, 2)
    for name in ("rainy/._rain-001.png", "rainy/Thumbs.db", "notes.txt", ".DS_Store"):
        (tmp_path / name).write_bytes(b"not an image")
    assert len(find_pairs(tmp_path)) == 2


def test_unpaired_images(tmp_path: Path) -> None:
    for name in ("b10.png", "b9.png", "a.jpg"):
        write(tmp_path / name, scene(1)[0])
    assert [path.name for path in find_rainy(tmp_path)] == ["a.jpg", "b9.png", "b10.png"]
    assert find_rainy(tmp_path / "b9.png") == [tmp_path / "b9.png"]
    for name in ("rainy_day.png", "no-rain.png"):  # photographs with such names are no data set
        write(tmp_path / "odd" / name, scene(1)[0])
        write(tmp_path / "odd/rain/other.png", scene(1)[0])
    write(tmp_path / "odd/street.png", scene(1)[0])
    assert [path.name for path in find_rainy(tmp_path / "odd")] == ["no-rain.png", "rainy_day.png", "street.png"]
    paired = write_pairs(tmp_path / "paired", 2)
    assert [path.name for path in find_rainy(paired)] == ["rain-001.png", "rain-002.png"]
    for bad in (tmp_path / "none", tmp_path / "paired" / "empty"):
        (tmp_path / "paired" / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=str(bad)):
            find_rainy(bad)


# ---------------------------------------------------------------- the strict rule


def numbered(numbers: range) -> list[Pair]:
    return [Pair(str(n), Path(f"rain-{n}.png"), Path(f"norain-{n}.png")) for n in numbers]


def test_the_strict_rule_keeps_1254_and_shares_no_background_with_rain100() -> None:
    kept, sentence = strict_raintrainh(numbered(range(1, 1801)))
    assert len(kept) == 1254
    assert "1254 of 1800" in sentence
    assert "none with a background" in sentence
    # Read off the sets themselves: Rain100 shows BSD300's photographs 1, 10 and 100 to 188.
    shown = {1, 10, *range(100, 189)}
    assert [n for n in range(1, 301) if not is_strict(n)] == sorted(shown)
    for n in (301, 310, 400, 488, 1501, 1600):
        assert not is_strict(n)
    for n in (2, 9, 11, 99, 189, 300, 302, 399, 1800):
        assert is_strict(n)
    assert strict_raintrainh(kept)[0] == kept  # a folder that holds the strict set already


def test_the_strict_rule_leaves_other_sets_alone() -> None:
    for count in (4, 200, 1254, 1500, 1799):
        kept, sentence = strict_raintrainh(numbered(range(1, count + 1)))
        assert len(kept) == count
        assert "not applied" in sentence
