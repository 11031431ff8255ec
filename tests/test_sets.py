"""Sets identified by their pixels, and the check command."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Command, scene, write, write_pairs

from derain import sets
from derain.pairs import find_pairs, read_pair
from derain.synthesize import write_set


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of 12 pairs, and their hashes in place of Rain12's."""
    folder = write_pairs(tmp_path / "set", 12)
    hashes = [sets.pair_hash(*read_pair(pair)) for pair in find_pairs(folder)]
    (tmp_path / "store.json").write_text(json.dumps({"Other": ["0"], "Rain12": hashes}))
    monkeypatch.setattr(sets, "STORE", tmp_path / "store.json")
    rain12 = dataclasses.replace(sets.RAIN12, fingerprint=sets.fingerprint(hashes))
    monkeypatch.setitem(sets.TEST_SETS, "Rain12", rain12)
    return folder


def test_the_stored_hashes_are_complete() -> None:
    stored = json.loads(sets.STORE.read_text())
    counts = {"Rain100H": 100, "Rain100L": 100, "Rain12": 12, "RainTrainL": 200}
    assert {name: len(set(hashes)) for name, hashes in stored.items()} == counts
    for test_set in (sets.RAIN100H, sets.RAIN100L, sets.RAIN12):
        assert test_set.fingerprint == sets.fingerprint(stored[test_set.name])


def test_pair_hashes_are_what_they_were() -> None:
    """Otherwise stored hashes and published fingerprints fit no set any more."""
    rainy = np.arange(96, dtype=np.uint8).reshape(4, 8, 3)
    assert sets.pair_hash(rainy, rainy // 2) == "7e7408af9cb8"
    assert sets.fingerprint(["2cc28a1cbea7", "0123456789ab"]) == "d894d2388fac"


def test_only_the_whole_set_in_its_order_has_its_name(known: Path) -> None:
    hashes = [sets.pair_hash(*read_pair(pair)) for pair in find_pairs(known)]
    assert sets.identify(hashes, Path()) == ("Rain12", 12)
    assert sets.identify(hashes[1:], Path()) == ("11 of the 12 pairs of Rain12", 11)
    assert sets.identify(hashes[::-1], Path()) == ("12 of the 12 pairs of Rain12", 12)
    hashes[4] = "0123456789ab"
    assert sets.identify(hashes, Path()) == ("11 of 12 pairs have Rain12's pixels", 11)


def test_a_new_set_of_any_photographs_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: Command
) -> None:
    """An entry with the printed fingerprint is all that identification needs."""
    folder = write_pairs(tmp_path / "mine", 2, "in/photo{}.png", "gt/photo{}.png")
    result = inline("derain.sets", "mine")
    assert result.returncode == 0
    assert "2 pairs of no known set" in result.stdout
    mine = sets.TestSet("Mine", "light", result.stdout.split()[-1])
    monkeypatch.setitem(sets.TEST_SETS, mine.name, mine)
    assert sets.identify_pairs(find_pairs(folder)) == "Mine"


def test_a_set_is_reported(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets.main(sets.Settings((known,)))
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert lines["layout"] == f"{known}/rainy/rain-001.png with {known}/norain-001.png"
    assert lines["pairs"] == "12: 12 of 72x64; 12 different clean images"
    assert lines["set"] == "Rain12"
    write(known / "rainy/rain-003.png", scene(99)[0])
    with pytest.raises(SystemExit) as stop:
        sets.main(sets.Settings((known,)))
    assert stop.value.code == 1


def test_shared_photographs_are_a_leak(tmp_path: Path, inline: Command) -> None:
    write_pairs(tmp_path / "train", 4)
    write_pairs(tmp_path / "test", 3, "input/{}.png", "target/{}.png", first=3)
    write_pairs(tmp_path / "other", 2, first=20)
    result = inline("derain.sets", "train", "test", "other")
    assert result.returncode == 1
    assert "2 pairs of train have clean images of test" in result.stdout
    assert inline("derain.sets", "train", "other").returncode == 0


def test_synthetic_sets_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path / "mine", [scene(1)[1]], "light", 1, 0)
    capsys.readouterr()
    sets.main(sets.Settings((tmp_path / "mine",)))
    assert "set          synthetic light rain\n" in capsys.readouterr().out
