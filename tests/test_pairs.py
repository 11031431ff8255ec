"""Finding pairs in the layouts of known sets, or rejecting them in one line; the strict rule."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import scene, write

from derain.pairs import Pair, find_pairs, match_names, read_pair, strict_raintrainh
from utils import InputError

# Trees by name: the patterns of the rainy and of the clean files, then those of others.
# {n} counts scenes (1 to 3), {r} rains on one scene (1 and 2).
PAIRED = {
    "PReNet": ("rainy/rain-00{n}.png", "norain-00{n}.png"),
    "DARGNet": ("rainy/rain-00{n}.png", "clean/norain-00{n}.png"),
    "DARGNet, numbers": ("rainy/{n}.png", "groundtruth/{n}.png"),
    "RCDNet": ("small/rain/norain-{n}.png", "small/norain/norain-{n}.png"),
    "MPRNet": ("input/{n}.png", "target/{n}.png", "preview.png"),
    "BasicSR": ("LQ/{n}.png", "GT/{n}.jpg"),
    "capitals": ("Rainy/RAIN-00{n}.PNG", "NoRain-00{n}.png"),
    "label": ("input/{n}.png", "label/{n}.png"),
    "Unicode forms": ("rainy/Zu\u0308rich{n}.png", "clean/Z\u00fcrich{n}.png"),
    "outdoor": ("in/im_000{n}_s8{r}_a0{r}.png", "gt/im_000{n}.png"),
    "Rain100H, new": ("rain_X2/norain-00{n}x2.png", "norain/norain-00{n}.png"),
    "Rain100H x2": ("rainy/rain-00{n}x2.png", "norain-00{n}x2.png"),
    "Rain1400": ("rainy_image/90{n}_{r}.jpg", "ground_truth/90{n}.jpg"),
    "Rain1400 from 1": ("rainy/{n}_{r}.jpg", "clean/{n}.jpg"),
    "Rain200H": ("rain/{n}.png", "norain/{n}.png", "rain_streak/{n}.png"),
    "Raindrop": ("data/{n}_rain.png", "gt/{n}_clean.png"),
    "Raindrop in one folder": ("{n}_rain.png", "{n}_clean.png"),
    "RainTrainL": ("rain-{n}.png", "norain-{n}.png", "rainstreak-{n}.png", "rainregion-{n}.png"),
    "RainDS in one folder": ("pie-rain-{n}.png", "pie-norain-{n}.png"),
    "SPA": ("rain/00{n}.png", "gt/00{n}gt.png"),
    "Windows copies": ("rainy/rain ({n}).png", "clean/norain ({n}).png"),
    "zeros": ("rainy/{n}.png", "clean/0000{n}.png"),
    "prefixes": ("rainy/rd-{n}.png", "clean/gt-{n}.png"),
    "suffixes in, gt": ("in/im_{n}_in.png", "gt/im_{n}_gt.png"),
    "no_rain": ("{word}_rain.png", "{word}_no_rain.png"),
    "suffixes of words": ("in/{word}-input.png", "gt/{word}-target.png"),
    "suffix GT": ("in/im_{n}.png", "gt/im_{n}_GT.png"),
    "suffixes DR, GT": ("in/{n}_DR.png", "gt/{n}_GT.png"),
}
REJECTED = {
    "a second download": ("input/92{n}_2.png", "target/92{n}_2.png", "input/922_2(1).png"),
    "a copy among rains": ("rainy/90{n}_{r}.png", "clean/90{n}.png", "rainy/902_1 - Copy.png"),
    "two numbers alike": ("rainy/rain-{n}.png", "clean/norain-{n}.png", "rainy/rain-01.png"),
    "a rainy image missing": ("input/1.png", "target/{n}.png"),
    "a clean image missing": ("data/{n}_rain.png", "gt/1_clean.png"),
    "one clean image": ("input/im_{n}.png", "target/im_7.png"),
    "nothing in common": ("rainy/{word}.png", "clean/x{n}.png"),
    "side by side": ("norain-00{n}.png",),
    "Rain1400 in one folder": ("90{n}_{r}.jpg", "90{n}.jpg"),
    "GT-Rain": ("a/a-R-00{n}.png", "a/a-C-000.png"),
    "RainDS": ("rainstreak/pie-rain-{n}.png", "gt/pie-norain-{n}.png"),
    "a folder per clip": ("rainy/a{r}/{n}.png", "clean/a{r}/{n}.png"),
    "two sets": ("a/rain/{n}.png", "a/norain/{n}.png", "b/rain/{n}.png", "b/norain/{n}.png"),
    "deep": ("Rain100L/test/rain/norain-{n}.png", "Rain100L/test/norain/norain-{n}.png"),
    "rain/ may hold streaks": ("input/{n}.png", "target/{n}.png", "rain/{n}.png"),
    "norain/ and gt/": ("rain/{n}.png", "norain/{n}.png", "gt/{n}.png"),
    "the rainy ones twice": ("rainy/rain-{n}.png", "norain-{n}.png", "rain-{n}.png"),
    "only rainy ones": ("rainy/{n}.png",),
    "layers, too": ("rain-{n}.png", "rainy-{n}.png", "clean-{n}.png"),
}


def plant(folder: Path, patterns: tuple[str, ...]) -> list[dict[Path, int]]:
    """Write tiny images; return, for each pattern, the scenes of its files."""
    planted = []
    for pattern in patterns:
        scenes = {}
        for n, word in enumerate(("bridge", "dog", "old_tower"), 1):
            for r in (1, 2):
                path = folder / pattern.format(n=n, r=r, word=word)
                scenes[path] = n
                write(path, np.full((4, 4, 3), n, np.uint8))
        planted.append(scenes)
    return planted


def rejected(call: Callable[[], object], *names: str | Path) -> None:
    """Check that a call raises InputError in one line that names files."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for name in names:
        assert str(name) in str(caught.value)


@pytest.mark.parametrize("name", PAIRED)
def test_trees_that_pair(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every rainy image has the clean one of its scene; a line counts others that aren't hidden."""
    rainy, clean, *others = plant(tmp_path, PAIRED[name])
    for path in rainy:
        for hidden in (path.with_name(f"._{path.name}"), path.with_name("Thumbs.db")):
            hidden.write_bytes(b"not an image")
    pairs = find_pairs(tmp_path)
    assert {pair.rainy: clean[pair.clean] for pair in pairs} == rainy
    assert len(pairs) == len(rainy)
    line = capsys.readouterr().err
    left_out = {path for scenes in others for path in scenes if path.parent == tmp_path}
    shared = len({pair.clean for pair in pairs}) < len(pairs)
    assert line.count("\n") == bool(left_out) + shared
    assert not left_out or f"{len(left_out)} images" in line


@pytest.mark.parametrize("name", REJECTED)
def test_trees_that_are_rejected(tmp_path: Path, name: str) -> None:
    plant(tmp_path, REJECTED[name])
    rejected(lambda: find_pairs(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("name", "rainy", "clean"),
    [
        ("RainDS", "rainstreak", "gt"),
        ("deep", "Rain100L/test/rain", "Rain100L/test/norain"),
        ("rain/ may hold streaks", "input", "target"),
    ],
)
def test_naming_both_folders_settles_it(tmp_path: Path, name: str, rainy: str, clean: str) -> None:
    plant(tmp_path, REJECTED[name])
    pairs = find_pairs(tmp_path / rainy, clean_dir=tmp_path / clean)
    assert [pair.number for pair in pairs] == [1, 2, 3]


@pytest.mark.parametrize("clean", ["input", "empty", "missing"])
def test_both_folders_must_hold_images(tmp_path: Path, clean: str) -> None:
    plant(tmp_path, PAIRED["MPRNet"])
    (tmp_path / "empty").mkdir()
    rejected(lambda: find_pairs(tmp_path / "input", clean_dir=tmp_path / clean), tmp_path / clean)


def test_only_names_decide(tmp_path: Path) -> None:
    """Plain sorting would pair these files wrongly, and put 10 before 2."""
    for number in (1, 2, 10):
        rainy, clean = scene(number)
        write(tmp_path / f"rainy/rain-{number}.png", rainy)
        write(tmp_path / f"norain-{number:0{5 - number % 3}d}.png", clean)
    pairs = find_pairs(tmp_path)
    assert [pair.number for pair in pairs] == [1, 2, 10]
    for pair in pairs:
        assert np.array_equal(read_pair(pair), scene(pair.number))


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        ("bridge_NET dog_NET", "bridge dog", "bridge dog"),
        ("901_1_NET 901_2_NET 902_1_NET", "901_1 901_2 902_1 902_2", "901_1 901_2 902_1"),
        ("derained_901_1 derained_902_1", "901_1 902_1", "901_1 902_1"),
        ("rain-1 rain-2", "norain-002", "- norain-002"),
        ("901_1 901_2", "901", "901 901"),
        ("rain-1", "norain-2", "-"),
        ("im-1 im-2", "im-3", "- -"),
        ("2x_s1 2x_s2", "s1 s2", "s1 s2"),
        ("1_1 2_1 3_1", "1 2 3", "1 2 3"),
        ("1_2_x 2_1_x", "1_2_x 2_1_x", "1_2_x 2_1_x"),
        ("", "1 2", ""),
    ],
)
def test_names_match_by_the_part_that_they_share(names: str, others: str, expected: str) -> None:
    paths = [Path(f"a/{name}.png") for name in names.split()]
    found = match_names(paths, [Path(f"b/{name}.jpg") for name in others.split()])
    wanted = [None if name == "-" else Path(f"b/{name}.jpg") for name in expected.split()]
    assert [found.get(path) for path in paths] == wanted


def test_other_scenes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_pair(Pair(*(write(tmp_path / f"{n}.png", scene(n)[n - 1]) for n in (1, 2))))
    assert f"{tmp_path / '1.png'}: does not seem to show" in capsys.readouterr().err


def test_names_that_match_in_two_ways_are_ambiguous() -> None:
    names = [Path(f"{name}.png") for name in ("1_1", "1_2", "2_1", "2_2")]
    others = [Path("gt/1.png"), Path("gt/2.png")]
    rejected(lambda: match_names(names, others), names[1], *others)
    rejected(lambda: match_names([Path("1.png"), Path("01.png")], others), "1.png", "01.png")


def numbered(count: int) -> list[Pair]:
    return [Pair(Path(f"rain-{n}.png"), Path(f"norain-{n}.png")) for n in range(1, count + 1)]


def test_the_strict_rule_keeps_1254_and_shares_no_background_with_rain100() -> None:
    kept, sentence = strict_raintrainh(numbered(1800))
    assert "1254 of 1800" in sentence and "--no-strict" in sentence
    # Read off the sets themselves: Rain100 shows BSD300's photographs 1, 10 and 100 to 188.
    shown = {1, 10, *range(100, 189)}
    strict = {pair.number for pair in kept}
    assert set(range(1, 301)) - strict == shown
    assert strict.isdisjoint({301, 310, 400, 488, 1501, 1600})
    assert strict.issuperset({302, 399, 1800})
    assert strict_raintrainh(kept)[0] == kept  # a folder that holds the strict set already
    assert len(strict_raintrainh(numbered(1799))[0]) == 1253  # one is missing


@pytest.mark.parametrize("count", [4, 200, 1254])
def test_the_strict_rule_leaves_other_sets_alone(count: int) -> None:
    kept, sentence = strict_raintrainh(numbered(count))
    assert len(kept) == count
    assert "not applied" in sentence
