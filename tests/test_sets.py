"""derain.check and .rebuild: sets identified by fingerprints, pairs that don't fit, leaks, restored clean sides.

The real sets are not needed: fingerprints of small images stand in for those of the photographs.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import make_fingerprints
import numpy as np
import pytest
from conftest import LAYOUT_PATTERNS, scene, write, write_pairs

from derain import check, fingerprints, identify, rebuild
from derain.images import read_rgb
from derain.pairs import (
    BSD300_PHOTOGRAPHS,
    RAIN100_BACKGROUNDS,
    RAINTRAINH_PAIRS,
    find_pairs,
    is_strict,
)
from utils import InputError


def photograph(seed: int) -> np.ndarray:
    """A clean image with content of its own, (64, 72, 3) uint8 RGB."""
    return scene(1000 + seed)[1]


def rainy(clean: np.ndarray, seed: int, strongest: int = 120) -> np.ndarray:
    """The image under a grey layer, clipped."""
    layer = np.random.RandomState(seed).randint(0, strongest, clean.shape[:2])
    return np.minimum(255, clean.astype(int) + layer[..., None]).astype(np.uint8)


@pytest.fixture(scope="module")
def bsds500(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 tiny images laid out and named as BSDS500, losslessly."""
    folder = tmp_path_factory.mktemp("BSDS500")
    for i in range(500):
        part = "train" if i < 200 else "val" if i < 300 else "test"
        write(folder / "data/images" / part / f"{100 + i}.png", photograph(i))
    return folder


@pytest.fixture(scope="module")
def originals(bsds500: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets made of those images, and the fingerprints of all of them."""
    root = tmp_path_factory.mktemp("originals")
    for name, place, patterns, numbers in (
        ("RainTrainL", "train/RainTrainL", LAYOUT_PATTERNS["PReNet train"], range(1, 13)),
        ("Rain100H", "test/Rain100H", LAYOUT_PATTERNS["PReNet test"], range(1, 13)),
        ("Rain100L", "test/Rain100L", LAYOUT_PATTERNS["PReNet test"], range(1, 13)),
        ("Rain12", "test/Rain12", LAYOUT_PATTERNS["PReNet test"], range(1, 13)),
        ("RainTrainH", "train/RainTrainH18", LAYOUT_PATTERNS["PReNet train"], range(2, 6)),
    ):
        for n in numbers:
            place_of = {"RainTrainL": 299 + n, "Rain12": 300 + 7 * n, "RainTrainH": n - 1}
            clean = photograph(place_of.get(name, (fingerprints.RAIN100_NUMBERS[n - 1] - 1) % BSD300_PHOTOGRAPHS))
            if name == "Rain12":
                clean = np.round(0.8 * clean).astype(np.uint8)
            write(root / place / patterns[0].format(n), rainy(clean, n, 30 if name == "Rain100L" else 120))
            write(root / place / patterns[1].format(n), clean)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_fingerprints, "print_margins", lambda images: None)
        make_fingerprints.make(make_fingerprints.Settings(bsds500=bsds500, root=root, out=root / "fingerprints.json"))
    return root


@pytest.fixture
def known(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of those sets, and their fingerprints in place of the real ones."""
    root = shutil.copytree(originals, tmp_path / "sets")
    (root / "fingerprints.json").rename(tmp_path / "fingerprints.json")
    monkeypatch.setattr(fingerprints, "STORE", tmp_path / "fingerprints.json")
    monkeypatch.setattr(identify, "SIZE", (72, 64))
    fingerprints.photographs.cache_clear()
    fingerprints.known_sets.cache_clear()
    yield root
    fingerprints.photographs.cache_clear()
    fingerprints.known_sets.cache_clear()


def run(*folders: Path) -> int:
    """The exit status of a check."""
    try:
        check.check(check.Settings(folders=folders))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


# ---------------------------------------------------------------- fingerprints


def test_the_stored_fingerprints_have_the_known_facts() -> None:
    sets = fingerprints.known_sets()
    assert {name: len(known.clean) for name, known in sets.items()} == {
        **{"Rain100H": 100, "Rain100L": 100, "Rain12": 12, "RainTrainH": 1800, "RainTrainL": 200}
    }
    assert {name: len(known.rainy) for name, known in sets.items()} == {
        **{"Rain100H": 100, "Rain100L": 100, "Rain12": 12, "RainTrainH": 18, "RainTrainL": 200}
    }
    assert len(set(fingerprints.photographs().hashes.values())) == 500
    assert {(n - 1) % BSD300_PHOTOGRAPHS for n in fingerprints.RAIN100_NUMBERS} == RAIN100_BACKGROUNDS
    test, light = set(sets["Rain100L"].photographs.values()), set(sets["RainTrainL"].photographs.values())
    assert len(test) == 91
    assert not test & light
    assert [n for n, name in sets["Rain12"].photographs.items() if name in light] == [1, 2, 3, 4, 5, 6, 7, 8]
    strict = {n for n, name in sets["RainTrainH"].photographs.items() if name not in test}
    assert strict == {n for n in range(1, RAINTRAINH_PAIRS + 1) if is_strict(n)}
    assert len(strict) == 1254


def test_copies_keep_their_content_signs_and_other_images_differ() -> None:
    images = [cv2.resize(photograph(i), (481, 321), interpolation=cv2.INTER_CUBIC) for i in range(40)]
    originals = np.array([fingerprints.content_signs(image) for image in images])
    changes = {
        "darker": lambda p: np.round(0.8 * p).astype(np.uint8),
        "cropped": lambda p: p[:320, :480],
        "mirrored": lambda p: p[:, ::-1],
        "upside down": lambda p: p[::-1],
        "JPEG": lambda p: cv2.imdecode(cv2.imencode(".jpg", p)[1], cv2.IMREAD_COLOR),
    }
    for name, change in changes.items():
        copies = np.array([fingerprints.content_signs(change(image)) for image in images])
        assert fingerprints.first_match(copies, originals).tolist() == list(range(40)), name
    others = np.array([fingerprints.content_signs(photograph(100 + i)) for i in range(40)])
    assert (fingerprints.first_match(others, originals) == -1).all()
    flat = fingerprints.content_signs(np.full((40, 40, 3), 7, np.uint8))[None]
    assert fingerprints.first_match(flat, flat).tolist() == [-1]


def test_sets_that_are_not_at_hand_stay_in_the_store(known: Path, bsds500: Path, tmp_path: Path) -> None:
    before = fingerprints.STORE.read_bytes()
    make_fingerprints.make(make_fingerprints.Settings(bsds500=bsds500, root=tmp_path / "empty", out=fingerprints.STORE))
    assert fingerprints.STORE.read_bytes() == before
    assert b"Rain12" in before


# ---------------------------------------------------------------- check


def change(folder: Path, numbers: Sequence[int], sides: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change images of a set: of the numbers, those of the sides that are named."""
    for n in numbers:
        for side, path in (("rainy", f"rainy/rain-{n:03d}.png"), ("clean", f"norain-{n:03d}.png")):
            if side in sides:
                write(folder / path, how(read_rgb(folder / path)))


def as_jpeg(rgb: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1], 1)[..., ::-1]


@pytest.mark.parametrize(
    ("numbers", "sides", "how", "label"),
    [
        ([], "", None, "12 of the 100 pairs of Rain100L"),
        ([5], "rainy", lambda x: np.maximum(x, 9), "Rain100L with changes, 11 of 12 pairs exact"),
        ([5], "clean", lambda x: np.maximum(x, 9), "Rain100L with changes, 11 of 12 pairs exact"),
        (range(1, 13), "rainy, clean", lambda x: x[:63], "Rain100L cropped or scaled to 72x63, 12 pairs (of 100)"),
        (range(1, 13), "rainy, clean", as_jpeg, "Rain100L re-encoded, 12 pairs (of 100)"),
        (range(1, 13), "rainy", lambda x: x // 2 + 99, "backgrounds of Rain100H and Rain100L with other rainy images"),
    ],
    ids=["partial", "one rainy", "one clean", "cropped", "re-encoded", "other rain"],
)
def test_each_kind_of_copy_has_its_own_label(
    known: Path, numbers: Sequence[int], sides: str, how: Callable, label: str
) -> None:
    folder = known / "test/Rain100L"
    change(folder, numbers, sides, how)
    found = identify.identify_pairs(find_pairs(folder))
    assert (found.label, found.exact) == (label, 0 if len(numbers) == 12 and how else 12 - len(numbers))
    assert (found.name, found.total) == ((None, 0) if "backgrounds" in label else ("Rain100L", 100))


def test_a_changed_copy_under_other_rain_is_not_said_to_be_the_set(known: Path) -> None:
    """These twelve are all of Rain12 by their backgrounds, but far from the 30.14 dB of its rain."""
    change(known / "test/Rain12", range(1, 13), "rainy, clean", as_jpeg)
    found = identify.identify_pairs(find_pairs(known / "test/Rain12"))
    assert (found.name, found.label) == (None, "backgrounds of Rain12 with other rainy images")


def test_heavy_rain_is_not_taken_for_light_rain(known: Path) -> None:
    """Copies of Rain100H and Rain100L have the same backgrounds: the strength of the rain tells them apart."""
    for name in ("Rain100H", "Rain100L"):
        change(known / "test" / name, range(1, 13), "rainy, clean", as_jpeg)
        assert identify.identify_pairs(find_pairs(known / "test" / name)).name == name


def test_a_whole_set_has_the_sets_name_and_under_other_numbers_says_so(known: Path) -> None:
    folder = known / "test/Rain12"
    assert identify.identify_pairs(find_pairs(folder)).label == "Rain12"
    for path in sorted(folder.rglob("*.png")):
        path.rename(path.with_name(path.name.replace("-0", "-1")))
    found = identify.identify_pairs(find_pairs(folder))
    assert (found.name, found.exact, found.total, found.label) == ("Rain12", 12, 12, "Rain12 under other numbers")
    shutil.copy(folder / "norain-104.png", folder / "norain-101.png")  # the right rain on another background
    found = identify.identify_pairs(find_pairs(folder))
    assert (found.exact, found.label) == (11, "Rain12 with changes, 11 of 12 pairs exact")
    (folder / "norain-101.png").write_bytes(b"damaged")
    found = identify.identify_pairs(find_pairs(folder))
    assert (found.exact, found.label) == (11, "11 of the 12 pairs of Rain12 under other numbers")


def test_raintrainh_is_not_said_to_be_exact_where_its_rain_is_unknown(known: Path) -> None:
    folder = known / "train/RainTrainH18"
    write(folder / "norain-6.png", photograph(5))
    write(folder / "rain-6.png", rainy(photograph(5), 1))
    found = identify.identify_pairs(find_pairs(folder))
    assert (found.name, found.exact) == ("RainTrainH", 4)
    assert found.label == "clean images of RainTrainH (5 of 1800), rainy ones partly unknown"
    assert "rainy images: 1 of 5 have no known fingerprint" in found.lines
    found = identify.identify_pairs([pair for pair in find_pairs(folder) if pair.number == 6])
    assert (found.name, found.exact) == ("RainTrainH", 0)


def test_own_images_are_no_known_set(tmp_path: Path) -> None:
    found = identify.identify_pairs(find_pairs(write_pairs(tmp_path / "set", 12)))
    assert (found.name, found.exact, found.total, found.label) == (None, 0, 0, "12 images of no known set")
    assert identify.identify_pairs([]).name is None


def test_a_known_set_is_reported(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(known / "test/Rain100L") == 0
    shown = capsys.readouterr().out
    assert "set     12 of the 100 pairs of Rain100L; 12 of 12 pairs have the original's pixels" in shown
    assert "missing: 13-100" in shown
    assert "layout  rainy/rain-001.png and norain-001.png" in shown
    assert "12 of 72x64; 11 different backgrounds" in shown  # numbers 3 and 4 show the same
    assert run(known / "train/RainTrainH18") == 0
    shown = capsys.readouterr().out
    assert "set     4 of the 1800 pairs of RainTrainH; 4 of 4" in shown
    assert "missing: 1, 6-1800" in shown
    assert "strict rule: 0 show backgrounds of Rain100H and Rain100L" in shown


def test_what_differs_from_a_known_set_is_told(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = known / "train/RainTrainL"
    for number in (3, 7):
        (folder / f"rain-{number}.png").unlink()
        (folder / f"norain-{number}.png").unlink()
    assert run(folder) == 0
    assert "missing: 3, 7, 13-200" in capsys.readouterr().out
    image = read_rgb(folder / "rain-5.png")
    image[:8, :8] = 255
    write(folder / "rain-5.png", image)
    assert run(folder) == 1
    shown = capsys.readouterr().out
    assert "RainTrainL with changes, 9 of 10 pairs exact; 9 of 10 pairs have" in shown
    assert "WRONG rainy images: 1 of 10 differ from the original's: 5" in shown
    assert "WRONG clean" not in shown
    assert "WRONG in" not in shown  # it still is clean + one grey layer
    write(folder / "norain-6.png", read_rgb(folder / "norain-6.png") - (read_rgb(folder / "norain-6.png") > 99))
    assert run(folder) == 1
    assert "WRONG clean images: 1 of 10 differ from the original's: 6" in capsys.readouterr().out


def test_a_misfit_of_the_original_is_nobodys_fault(
    known: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rain100H's image 42 has one pixel that is not clean + grey: who has the original has done nothing wrong."""
    folder = known / "test/Rain100H"
    image = read_rgb(folder / "rainy/rain-002.png")
    image[0, 0] = 255 - image[0, 0]
    write(folder / "rainy/rain-002.png", image)
    assert run(folder) == 1
    assert "WRONG in 1 of 12 pairs: not clean image + one grey layer: rain-002.png (1 of" in capsys.readouterr().out
    known_set = fingerprints.known_sets()["Rain100H"]
    original = dataclasses.replace(known_set, rainy=known_set.rainy | {2: fingerprints.pixel_hash(image)})
    monkeypatch.setitem(fingerprints.known_sets(), "Rain100H", original)
    assert run(folder) == 0
    assert "in 1 of 12 pairs, as in the original: not clean image" in capsys.readouterr().out


def test_test_backgrounds_in_a_training_set_and_between_folders(
    known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rain12's 1 is RainTrainL's 8, darker; the copies of Rain100L's are cropped, mirrored and numbered otherwise."""
    light, rain12, rain100 = known / "train/RainTrainL", known / "test/Rain12", known / "test/Rain100L"
    assert run(light, rain12) == 1
    shown = capsys.readouterr().out
    assert "Rain12: 1 of 12 backgrounds are here: 1" in shown
    assert "show the same backgrounds: 1 of 12 (8) and 1 of 12 (1)" in shown
    assert run(light, rain100) == 0
    assert "no background in common" in capsys.readouterr().out
    for n in (2, 5):
        clean = cv2.resize(read_rgb(rain100 / f"norain-{n:03d}.png"), (481, 321))[:320, 479::-1]
        write(tmp_path / f"own/input/{60 + n}.png", clean)
        write(tmp_path / f"own/target/{60 + n}.png", clean)
    assert run(tmp_path / "own", rain100) == 1
    shown = capsys.readouterr().out
    assert "set     2 images of no known set; 0 of 2 pairs have the original's pixels" in shown
    assert "no rain at all in 2 pairs: 62, 65" in shown
    assert "2 of 2 (62, 65) and 2 of 12 (2, 5)" in shown


def test_images_of_one_colour_are_alike_only_if_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, level in (("a", 40), ("b", 40), ("c", 41)):
        write(tmp_path / name / "1.png", np.full((16, 16, 3), level, np.uint8))
    assert run(tmp_path / "a", tmp_path / "b") == 1
    assert run(tmp_path / "a", tmp_path / "c") == 0
    assert "no background in common" in capsys.readouterr().out


@pytest.mark.parametrize("layout", LAYOUT_PATTERNS)
def test_layouts_are_named(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write_pairs(tmp_path / "set", 2, layout, height=16, width=16)) == 0
    shown = capsys.readouterr().out
    assert "layout  {} and {}\n".format(*(pattern.format(1) for pattern in LAYOUT_PATTERNS[layout])) in shown
    assert "all 2 pairs fit" in shown


def test_pairs_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pairs(tmp_path / "set", 4)
    pairs = {n: (folder / f"rainy/rain-{n:03d}.png", folder / f"norain-{n:03d}.png") for n in range(1, 5)}
    write(pairs[2][0], np.roll(read_rgb(pairs[2][0]), 1, axis=1))  # moved by a pixel
    coloured = read_rgb(pairs[3][1]).copy()
    coloured[:10, :10, 0] = np.minimum(255, coloured[:10, :10, 0].astype(int) + 9)  # rain in one channel
    write(pairs[3][0], coloured)
    assert run(folder) == 1
    shown = capsys.readouterr().out
    assert "WRONG in 2 of 4 pairs" in shown
    assert "rain-002.png" in shown
    assert "levels darker" in shown
    assert "rain-003.png (100 of 4608 pixels)" in shown
    assert "rain-004.png" not in shown.split("WRONG")[1]


def test_misfit_by_hand() -> None:
    clean = np.array([[[100, 200, 250]]], np.uint8)
    for rainy_pixel, fits in (
        ([100, 200, 250], True),  # no rain
        ([110, 210, 255], True),  # one channel clipped
        ([200, 255, 255], True),
        ([110, 210, 254], False),
        ([110, 211, 255], False),
        ([99, 199, 249], False),  # grey, but darker
    ):
        assert (check.misfit(np.array([[rainy_pixel]], np.uint8), clean) == "") is fits, rainy_pixel


def test_images_without_pairs(known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(known / "test/Rain100L/rainy")
    assert run(known / "test/Rain100L") == 0
    shown = capsys.readouterr().out
    assert "images without pairs" in shown
    assert "12 of the 100 images of the clean side of Rain100H and Rain100L; 12 of 12 images" in shown
    assert run(known / "test/Rain100H/rainy") == 0
    assert "12 of the 100 images of the rainy side of Rain100H; 12 of 12 images" in capsys.readouterr().out


def test_bad_input_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pairs(tmp_path / "set", 3)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no rainy and clean images in a known layout"):
        run(tmp_path / "empty")
    good = (folder / "norain-002.png").read_bytes()
    (folder / "norain-002.png").write_bytes(good[:60])
    with pytest.raises(InputError, match="1 pairs or images cannot be used"):
        run(folder)
    said = capsys.readouterr()
    assert "norain-002.png: the image is cut off" in said.err
    assert "all 2 pairs fit" in said.out  # the others are checked
    (folder / "norain-002.png").unlink()
    with pytest.raises(InputError, match=r"rain-002.png: its clean image .*norain-002.png is missing; add it"):
        run(folder)


def test_numbers_in_words() -> None:
    assert identify.ranges([1, 2, 3, 8, 10, 11]) == "1-3, 8, 10-11"
    assert identify.ranges([77, 3]) == "3, 77"
    assert identify.ranges([5]) == "5"
    assert identify.ranges(range(1, 100, 2)).endswith("23, ...")


# ---------------------------------------------------------------- rebuild


def settings(bsds500: Path, out: Path, *sets: str) -> rebuild.Settings:
    return rebuild.Settings(bsds500=bsds500, out=out, sets=sets or ("RainTrainL", "Rain100L"))


def test_restored_sides_are_the_sets(
    known: Path, bsds500: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is there and right is kept as it is, rainy images are not touched, and the rest appears."""
    kept = {p: p.stat().st_mtime_ns for p in sorted(known.rglob("*.png"))}
    (known / "test/Rain100L/norain-004.png").rename(known / "test/Rain100L/norain-4.png")
    del kept[known / "test/Rain100L/norain-004.png"]
    rebuild.rebuild(settings(bsds500, known))
    shown = capsys.readouterr().out
    assert "Rain100L: 88 clean images written, 12 were there and right" in shown
    assert "RainTrainL: 188 clean images written, 12 were there and right" in shown
    assert kept == {p: p.stat().st_mtime_ns for p in kept}
    assert len(list((known / "test/Rain100L").glob("norain-*.png"))) == 100
    assert np.array_equal(read_rgb(known / "train/RainTrainL/norain-200.png"), photograph(499))
    shutil.rmtree(known / "test/Rain100L/rainy")
    assert run(known / "test/Rain100L") == 0
    assert "set     the clean side of Rain100H and Rain100L; 100 of 100 images" in capsys.readouterr().out


def test_nothing_is_overwritten(known: Path, bsds500: Path) -> None:
    mine = write(known / "train/RainTrainL/norain-9.png", photograph(7))
    content = mine.read_bytes()
    with pytest.raises(InputError, match=r"norain-9.png: differs from the original; move it away"):
        rebuild.rebuild(settings(bsds500, known))
    assert mine.read_bytes() == content


def test_photographs_are_checked(known: Path, bsds500: Path, tmp_path: Path) -> None:
    """Another photograph, or another decoder's pixels, never become a clean image."""
    folder = tmp_path / "images"  # another of the usual layouts
    shutil.copytree(bsds500 / "data/images/test", folder / "test")
    write(folder / "test/477.png", np.clip(photograph(377).astype(int) + 1, 0, 255).astype(np.uint8))
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"477\.png: differs from the sets' photograph 477; use the original JPEGs"):
        rebuild.rebuild(settings(tmp_path, out, "RainTrainL"))
    assert not (out / "train/RainTrainL/norain-78.png").exists()
    assert (out / "train/RainTrainL/norain-77.png").exists()  # those before it are right
    (folder / "test/478.png").unlink()
    with pytest.raises(InputError, match=r"lacks 1 photographs, 478.jpg first"):
        rebuild.rebuild(settings(tmp_path, out, "RainTrainL"))
    with pytest.raises(InputError, match=r"lacks 91 photographs"):
        rebuild.rebuild(settings(tmp_path, out, "Rain100L"))
    with pytest.raises(InputError, match="--sets Rain13K: choose"):
        rebuild.rebuild(settings(tmp_path, out, "Rain13K"))
    with pytest.raises(InputError, match="--bsds500 FOLDER is required"):
        rebuild.rebuild(rebuild.Settings())
    with pytest.raises(InputError, match="no images in train/, val/ and test/"):
        rebuild.rebuild(settings(out, out, "RainTrainL"))


def test_the_real_commands(inline: Callable, tmp_path: Path) -> None:
    """Exit statuses as a shell sees them; --help says what they mean."""
    folder = write_pairs(tmp_path / "set", 2, height=16, width=16)
    assert inline("derain.check", "set").returncode == 0
    write(folder / "norain-001.png", np.full((16, 16, 3), 255, np.uint8))
    ended = inline("derain.check", "set")
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "WRONG in 1 of 2 pairs" in ended.stdout
    ended = inline("derain.rebuild", "--bsds500", "nowhere")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: nowhere: no such folder")
    ended = inline("derain.check", "--help")
    assert "exit status: 0 all is well; 1 something is wrong with the data" in ended.stdout
