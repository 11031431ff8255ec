"""Sets identified by their pixels, the check command, and the published scores."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import scene, write, write_pairs

from derain import sets
from derain.images import read_rgb
from derain.pairs import find_pairs, read_pair
from derain.synthesize import write_set


def hashes_of(folder: Path) -> list[str]:
    return [sets.pair_hash(*read_pair(pair)) for pair in find_pairs(folder)]


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 12 pairs, and their hashes in place of Rain12's."""
    folder = write_pairs(tmp_path / "set", 12)
    hashes = hashes_of(folder)
    (tmp_path / "store.json").write_text(json.dumps({"Other": ["0"], "Rain12": hashes}))
    monkeypatch.setattr(sets, "STORE", tmp_path / "store.json")
    rain12 = dataclasses.replace(sets.RAIN12, fingerprint=sets.fingerprint(hashes))
    monkeypatch.setitem(sets.TEST_SETS, "Rain12", rain12)
    return folder


def test_the_stored_hashes_are_complete() -> None:
    stored = json.loads(sets.STORE.read_text())
    counts = {"Rain100H": 100, "Rain100L": 100, "Rain12": 12, "RainTrainL": 200}
    assert {name: len(set(hashes)) for name, hashes in stored.items()} == counts
    for name, test_set in sets.TEST_SETS.items():
        assert test_set.fingerprint == sets.fingerprint(stored[name])
        assert test_set.pairs == len(stored[name])


def test_a_pair_hash_depends_on_every_pixel_and_on_the_sides() -> None:
    rainy, clean = scene(1)
    changed = clean.copy()
    changed[3, 4, 1] ^= 1
    found = {sets.pair_hash(*pair) for pair in ((rainy, clean), (clean, rainy), (rainy, changed))}
    assert len(found) == 3
    flat = np.zeros((4, 8, 3), np.uint8)
    assert sets.pair_hash(flat, flat) != sets.pair_hash(*[flat.swapaxes(0, 1)] * 2)
    assert sets.pair_hash(flat, flat) == "2cc28a1cbea7"  # or stored hashes fit no set any more


@pytest.mark.parametrize(
    ("change", "label", "exact"),
    [
        ("none", "Rain12", 12),
        ("other layout", "Rain12", 12),
        ("partial", "11 of the 12 pairs of Rain12", 11),
        ("other order", "12 of the 12 pairs of Rain12", 12),
        ("one pixel", "11 of 12 pairs have Rain12's pixels", 11),
        ("clean images swapped", "10 of 12 pairs have Rain12's pixels", 10),
        ("cropped", "12 pairs of no known set", 0),
    ],
)
def test_only_the_whole_set_has_its_name(known: Path, change: str, label: str, exact: int) -> None:
    rainy, clean = known / "rainy/rain-005.png", known / "norain-005.png"
    last = known / "rainy/rain-012.png", known / "norain-012.png"
    if change == "other layout":
        for pair in find_pairs(known):
            write(known.parent / f"input/{pair.number}.png", read_rgb(pair.rainy))
            write(known.parent / f"target/{pair.number}.png", read_rgb(pair.clean))
        shutil.rmtree(known)
        known = known.parent
    elif change == "partial":
        rainy.unlink()
        clean.unlink()
    elif change == "other order":
        for path in last:
            path.rename(path.with_name(path.name.replace("012", "000")))
    elif change == "one pixel":
        rgb = read_rgb(rainy).copy()
        rgb[7, 7, 2] ^= 1
        write(rainy, rgb)
    elif change == "clean images swapped":
        first, second = read_rgb(clean), read_rgb(last[1])
        write(clean, second)
        write(last[1], first)
    elif change == "cropped":
        for path in known.rglob("*.png"):
            write(path, read_rgb(path)[:-1])
    found = sets.identify_pairs(find_pairs(known))
    assert (found.label, found.exact) == (label, exact)
    assert found.name == ("Rain12" if exact else None)


def test_a_new_set_of_any_photographs_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: Callable
) -> None:
    """An entry with the printed fingerprint is all that identification needs."""
    folder = tmp_path / "mine"
    for name in ("bridge", "dog"):
        rainy, clean = scene(len(name))
        write(folder / f"in/{name}.png", rainy)
        write(folder / f"gt/{name}.png", clean)
    result = inline("derain.sets", "mine")
    assert result.returncode == 0
    assert "2 pairs of no known set" in result.stdout
    (line,) = (line for line in result.stdout.splitlines() if "fingerprint" in line)
    mine = sets.TestSet("Mine", "light", 2, line.split()[1])
    monkeypatch.setitem(sets.TEST_SETS, mine.name, mine)
    assert sets.identify_pairs(find_pairs(folder)).label == "Mine"


def test_a_set_is_reported(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets.main(sets.Settings((known,)))
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert lines["layout"] == f"{known}/rainy/rain-001.png with {known}/norain-001.png"
    assert lines["pairs"] == "12: 12 of 72x64; 12 different clean images"
    assert lines["rain"].startswith("12 of 12 pairs")
    assert lines["set"] == "Rain12"
    assert "mean of 12 images" in lines["input"]


def test_pairs_that_do_not_fit(tmp_path: Path, inline: Callable) -> None:
    folder = write_pairs(tmp_path / "set", 3)
    rainy, clean = scene(2)
    for changed in (
        np.maximum(rainy, 9),
        np.where(rainy > 250, 250, rainy),
        rainy // 2,
        clean[::-1],
    ):
        write(folder / "rainy/rain-002.png", changed)
        result = inline("derain.sets", "set")
        assert (result.returncode, result.stderr) == (1, "")
        assert "2 of 3 pairs" in result.stdout
        assert "rain-002.png" in result.stdout
    write(folder / "rainy/rain-002.png", clean)  # no rain: an infinite PSNR, not averaged
    result = inline("derain.sets", "set")
    assert result.returncode == 0
    assert "mean of 2 images" in result.stdout


def test_a_fault_of_the_original_is_no_fault(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair of Rain100H does not fit; the set as it was published is right all the same."""
    monkeypatch.setattr(sets, "is_rain", lambda rainy, clean: False)
    sets.main(sets.Settings((known,)))
    write(known / "rainy/rain-003.png", scene(99)[0])
    with pytest.raises(SystemExit) as stop:
        sets.main(sets.Settings((known,)))
    assert stop.value.code == 1


def test_shared_photographs_are_a_leak(tmp_path: Path, inline: Callable) -> None:
    write_pairs(tmp_path / "train", 4)
    write_pairs(tmp_path / "test", 3, "input/{}.png", "target/{}.png", first=3)
    write_pairs(tmp_path / "other", 2, first=20)
    result = inline("derain.sets", "train", "test", "other")
    assert result.returncode == 1
    assert [line for line in result.stdout.splitlines() if line.startswith("LEAK")] == [
        "LEAK 2 pairs of train have clean images of test"
    ]
    assert inline("derain.sets", "train", "other").returncode == 0


def test_unusable_images_end_the_check(tmp_path: Path, inline: Callable) -> None:
    folder = write_pairs(tmp_path / "set", 3)
    cases = {"rainy/rain-002.png": b"no image", "norain-003.png": None}
    for name, content in cases.items():
        before = (folder / name).read_bytes()
        (folder / name).unlink()
        if content:
            (folder / name).write_bytes(content)
        result = inline("derain.sets", "set")
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert Path(name).name[-7:] in result.stderr
        (folder / name).write_bytes(before)
    for name in ("rainy/rain-002.png", "norain-002.png"):
        write(folder / name, scene(2, 8, 8)[0])
    assert "rain-002.png" in inline("derain.sets", "set").stderr  # smaller than SSIM's window
    assert "missing: no such" in inline("derain.sets", "missing").stderr


def test_synthetic_sets_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "mine", [scene(1)[1]], "light", 1, 0)
    capsys.readouterr()
    sets.main(sets.Settings((tmp_path / "mine",)))
    assert "set          synthetic light rain\n" in capsys.readouterr().out


def test_published_scores_are_a_table(inline: Callable) -> None:
    lines = inline("derain.sets").stdout.splitlines()
    assert "| PReNet | 168,963 | 29.46 / .899 | 37.48 / .979 | 36.66 / .961 |" in lines
    assert (
        "| DARGNet, released images | 387,495 | 29.81 / .905 | 37.71 / .981 | 36.82 / .962 |"
        in lines
    )
    assert len(lines) == 10
