"""derain.data.check and .rebuild: sets identified by fingerprints, pairs that don't fit, leaks, restored clean sides.

The real sets are not needed: fingerprints of small images stand in for those of the photographs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import make_fingerprints
import numpy as np
import pytest
from conftest import LAYOUT_PATTERNS, scene, write, write_pairs

from derain.data import check, fingerprints, identify, rebuild
from derain.data.pairs import BSD300_PHOTOGRAPHS, RAIN100_BACKGROUNDS, RAINTRAINH_PAIRS, is_strict
from utils import InputError, read_rgb


def photograph(seed: int) -> np.ndarray:
    """A clean image with content of its own, (64, 72, 3) uint8 RGB."""
    return scene(1000 + seed)[1]


def rainy(clean: np.ndarray, seed: int) -> np.ndarray:
    """The image under a grey layer, clipped."""
    layer = np.random.RandomState(seed).randint(0, 120, clean.shape[:2])
    return np.minimum(255, clean.astype(int) + layer[..., None]).astype(np.uint8)


@pytest.fixture(scope="module")
def bsds500(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 tiny images laid out and named as BSDS500, losslessly."""
    folder = tmp_path_factory.mktemp("BSDS500")
    for i in range(500):
        part = "train" if i < 200 else "val" if i < 300 else "test"
        write(folder / "data/images" / part / f"{100 + i}.png", photograph(i))
    return folder


@pytest.fixture
def known(bsds500: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Fingerprints of those images and of three sets made of them, in place of the real ones; the sets' folder."""
    root = tmp_path / "sets"
    for name, place, patterns, numbers in (
        ("RainTrainL", "train/RainTrainL", LAYOUT_PATTERNS["PReNet train"], range(1, 13)),
        ("Rain100L", "test/Rain100L", LAYOUT_PATTERNS["PReNet test"], range(1, 13)),
        ("Rain12", "test/Rain12", LAYOUT_PATTERNS["PReNet test"], range(1, 13)),
        ("RainTrainH", "train/RainTrainH12", LAYOUT_PATTERNS["PReNet train"], range(2, 6)),
    ):
        for n in numbers:
            place_of = {"RainTrainL": 299 + n, "Rain12": 300 + 7 * n, "RainTrainH": n - 1}
            i = place_of.get(name, (fingerprints.RAIN100_NUMBERS[n - 1] - 1) % BSD300_PHOTOGRAPHS)
            clean = photograph(i)
            if name == "Rain12":
                clean = np.round(0.8 * clean).astype(np.uint8)
            write(root / place / patterns[0].format(n), rainy(clean, n))
            write(root / place / patterns[1].format(n), clean)
    monkeypatch.setattr(make_fingerprints, "print_margins", lambda images: None)
    make_fingerprints.make(make_fingerprints.Settings(bsds500=bsds500, root=root, out=tmp_path / "fingerprints.json"))
    monkeypatch.setattr(fingerprints, "STORE", tmp_path / "fingerprints.json")
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
    assert len(set(fingerprints.photographs().hashes)) == 500
    assert {(n - 1) % BSD300_PHOTOGRAPHS for n in fingerprints.RAIN100_NUMBERS} == RAIN100_BACKGROUNDS
    test, light = set(sets["Rain100L"].photographs.values()), set(sets["RainTrainL"].photographs.values())
    assert len(test) == 91
    assert not test & light
    assert [n for n, name in sets["Rain12"].photographs.items() if name in light] == [1, 2, 3, 4, 5, 6, 7, 8]
    strict = {n for n, name in sets["RainTrainH"].photographs.items() if name not in test}
    assert strict == {n for n in range(1, RAINTRAINH_PAIRS + 1) if is_strict(n)}
    assert len(strict) == 1254


def test_content_survives_what_happens_to_copies_and_pictures_differ() -> None:
    pictures = [cv2.resize(photograph(i), (481, 321), interpolation=cv2.INTER_CUBIC) for i in range(40)]
    originals = np.array([fingerprints.content_signs(picture) for picture in pictures])
    changes = {
        "darker": lambda p: np.round(0.8 * p).astype(np.uint8),
        "cropped": lambda p: p[:320, :480],
        "mirrored": lambda p: p[:, ::-1],
        "upside down": lambda p: p[::-1],
        "JPEG": lambda p: cv2.imdecode(cv2.imencode(".jpg", p)[1], cv2.IMREAD_COLOR),
    }
    for name, change in changes.items():
        copies = np.array([fingerprints.content_signs(change(picture)) for picture in pictures])
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


def test_sets_are_named_by_their_pixels(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(known / "test/Rain100L") == 0
    shown = capsys.readouterr().out
    assert "Rain100L: 12 of 100 pairs, missing 13-100" in shown
    assert "clean images: all 12 have the original's pixels" in shown
    assert "rainy images: all 12 have the original's pixels" in shown
    assert "PReNet's for test sets (rainy/rain-001.png and norain-001.png)" in shown
    assert "12 of 72x64; 11 different backgrounds" in shown  # numbers 3 and 4 show the same
    assert run(known / "train/RainTrainH12") == 0
    shown = capsys.readouterr().out
    assert "RainTrainH: 4 of 1800 pairs, missing 1 and 6-1800" in shown
    assert "strict rule: 4 show no background of Rain100H and Rain100L" in shown


def test_what_differs_from_a_known_set_is_told(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = known / "train/RainTrainL"
    for number in (3, 7):
        (folder / f"rain-{number}.png").unlink()
        (folder / f"norain-{number}.png").unlink()
    assert run(folder) == 0
    assert "RainTrainL: 10 of 200 pairs, missing 3, 7 and 13-200" in capsys.readouterr().out
    image = read_rgb(folder / "rain-5.png")
    image[:8, :8] = 255
    write(folder / "rain-5.png", image)
    assert run(folder) == 1
    shown = capsys.readouterr().out
    assert "like RainTrainL: 10 of 200" in shown
    assert "WRONG rainy images: 1 of 10 differ from the original's: 5" in shown
    assert "WRONG clean" not in shown
    assert "WRONG in" not in shown  # it still is clean + one grey layer
    write(folder / "norain-6.png", read_rgb(folder / "norain-6.png") - (read_rgb(folder / "norain-6.png") > 99))
    assert run(folder) == 1
    assert "WRONG clean images: 1 of 10 differ from the original's: 6" in capsys.readouterr().out


def test_other_rain_on_the_same_backgrounds_is_not_rain100l(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Heavy rain on Rain100's clean side is taken for Rain100H, of which no rainy image is known."""
    folder = known / "test/Rain100L"
    for n in range(1, 13):
        clean = read_rgb(folder / f"norain-{n:03d}.png")
        write(folder / f"rainy/rain-{n:03d}.png", np.minimum(255, clean.astype(int) + 60).astype(np.uint8))
    assert run(folder) == 0
    shown = capsys.readouterr().out
    assert "set     Rain100H: 12 of 100 pairs" in shown
    assert "of 12 rainy images of Rain100H no fingerprint is known" in shown


def test_test_backgrounds_in_a_training_set_and_between_folders(
    known: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rain12's 1 is RainTrainL's 8, darker; the copies of Rain100L's are cropped, mirrored and numbered otherwise."""
    light, rain12, rain100 = known / "train/RainTrainL", known / "test/Rain12", known / "test/Rain100L"
    assert run(light, rain12) == 1
    shown = capsys.readouterr().out
    assert "Rain12: 1 of its 12 backgrounds are here: 1" in shown
    assert "show the same backgrounds: 1 of 12 (8) and 1 of 12 (1)" in shown
    assert run(light, rain100) == 0
    assert "no background in common" in capsys.readouterr().out
    for n in (2, 5):
        clean = cv2.resize(read_rgb(rain100 / f"norain-{n:03d}.png"), (481, 321))[:320, 479::-1]
        write(tmp_path / f"own/input/{60 + n}.png", clean)
        write(tmp_path / f"own/target/{60 + n}.png", clean)
    assert run(tmp_path / "own", rain100) == 1
    shown = capsys.readouterr().out
    assert "none of the known sets under these numbers" in shown
    assert "no rain at all in 2 pairs: 62 and 65" in shown
    assert "2 of 2 (62 and 65) and 2 of 12 (2 and 5)" in shown
    write(tmp_path / "square/rainy/7.png", read_rgb(light / "norain-7.png")[:, :40])  # whole columns of it
    write(tmp_path / "square/clean/7.png", read_rgb(light / "norain-7.png")[:, :40])
    assert run(tmp_path / "square", rain100) == 0
    assert run(tmp_path / "square", light) == 1
    assert "1 of 1 (7) and 1 of 12 (7)" in capsys.readouterr().out


def test_pictures_of_one_colour_are_alike_only_if_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, level in (("a", 40), ("b", 40), ("c", 41)):
        write(tmp_path / name / "1.png", np.full((16, 16, 3), level, np.uint8))
    assert run(tmp_path / "a", tmp_path / "b") == 1
    assert run(tmp_path / "a", tmp_path / "c") == 0
    assert "no background in common" in capsys.readouterr().out


@pytest.mark.parametrize("layout", LAYOUT_PATTERNS)
def test_layouts_are_named(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write_pairs(tmp_path / "set", 2, layout, height=16, width=16)) == 0
    shown = capsys.readouterr().out
    owner = "PReNet's for train" if layout == "PReNet train" else layout.split()[0].replace("Rain12", "DARG")
    assert f"layout  {owner}" in shown
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
    assert "rain-003.png (2." in shown
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
    assert "clean side of Rain100H and Rain100L: 12 of 100 images" in shown


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
    assert identify.ranges([1, 2, 3, 8, 10, 11]) == "1-3, 8 and 10-11"
    assert identify.ranges([77, 3]) == "3 and 77"
    assert identify.ranges([5]) == "5"
    assert identify.ranges(range(1, 100, 2)).endswith("23, ...")


# ---------------------------------------------------------------- rebuild


def settings(bsds500: Path, out: Path, *sets: str, **more: bool) -> rebuild.Settings:
    return rebuild.Settings(bsds500=bsds500, out=out, sets=sets or ("RainTrainL", "Rain100L"), **more)


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
    assert "clean side of Rain100H and Rain100L: all 100 images" in capsys.readouterr().out


def test_the_strict_list(known: Path, bsds500: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild, "write_image", lambda path, picture: None)  # 1,800 of them
    rebuild.rebuild(settings(bsds500, tmp_path / "out", "RainTrainH"))
    numbers = [int(line) for line in (tmp_path / "out" / rebuild.STRICT_LIST).read_text().splitlines()]
    assert numbers == [n for n in range(1, 1801) if is_strict(n)]
    (tmp_path / "out" / rebuild.STRICT_LIST).write_text("1\n")
    with pytest.raises(InputError, match=r"strict.txt: is there and is not the list"):
        rebuild.rebuild(settings(bsds500, tmp_path / "out", "RainTrainH"))
    assert (tmp_path / "out" / rebuild.STRICT_LIST).read_text() == "1\n"


def test_nothing_is_overwritten(known: Path, bsds500: Path) -> None:
    mine = write(known / "train/RainTrainL/norain-9.png", photograph(7))
    before = sorted(known.rglob("*"))
    content = mine.read_bytes()
    with pytest.raises(InputError, match=r"norain-9.png differs from the original"):
        rebuild.rebuild(settings(bsds500, known))
    assert mine.read_bytes() == content
    assert sorted(known.rglob("*")) == before
    write(known / "train/RainTrainL/groundtruth/norain-1.png", photograph(1))
    with pytest.raises(InputError, match=r"groundtruth: holds clean images"):
        rebuild.rebuild(settings(bsds500, known))


def test_photographs_are_checked(
    known: Path, bsds500: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A decoder that is a level off is named and can be accepted; another photograph never is."""
    folder = tmp_path / "images"  # another of the usual layouts
    shutil.copytree(bsds500 / "data/images/test", folder / "test")
    write(folder / "test/477.png", np.clip(photograph(377).astype(int) + 1, 0, 255).astype(np.uint8))
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"1 of 200 photographs .*477.png first.* have other pixels .* --other_pixels"):
        rebuild.rebuild(settings(tmp_path, out, "RainTrainL"))
    assert not out.exists()
    rebuild.rebuild(settings(tmp_path, out, "RainTrainL", other_pixels=True))
    assert "1 of 200 photographs" in capsys.readouterr().out
    write(folder / "test/478.png", photograph(3))
    with pytest.raises(InputError, match=r"478.png: shows another photograph"):
        rebuild.rebuild(settings(tmp_path, out, "RainTrainL", other_pixels=True))
    (folder / "test/478.png").unlink()
    with pytest.raises(InputError, match=r"lacks 1 photographs, 478.jpg first"):
        rebuild.rebuild(settings(tmp_path, out, "RainTrainL"))
    with pytest.raises(InputError, match=r"lacks 91 photographs"):
        rebuild.rebuild(settings(tmp_path, out, "Rain100L"))
    with pytest.raises(InputError, match="--sets Rain13K: takes"):
        rebuild.rebuild(settings(tmp_path, out, "Rain13K"))
    with pytest.raises(InputError, match="--bsds500 FOLDER is needed"):
        rebuild.rebuild(rebuild.Settings())
    with pytest.raises(InputError, match="no images in train/, val/ and test/"):
        rebuild.rebuild(settings(out, out, "RainTrainL"))


def test_the_real_commands(inline: Callable, tmp_path: Path) -> None:
    """Exit statuses as a shell sees them; --help says what they mean."""
    folder = write_pairs(tmp_path / "set", 2, height=16, width=16)
    assert inline("derain.data.check", "set").returncode == 0
    write(folder / "norain-001.png", np.full((16, 16, 3), 255, np.uint8))
    ended = inline("derain.data.check", "set")
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "WRONG in 1 of 2 pairs" in ended.stdout
    ended = inline("derain.data.rebuild", "--bsds500", "nowhere")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: nowhere: no such folder")
    ended = inline("derain.data.check", "--help")
    assert "exit status: 0 all is well; 1 something is wrong with the data" in ended.stdout
