"""Synthetic rain: repeatable, labelled, one grey layer, near the real sets in its statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Command, scene, write

from derain import synthesize
from derain.pairs import find_pairs, read_pair
from utils import InputError

# Of the real sets' layers: share of pixels with rain, mean, 90th and 99th percentile.
REAL = {"light": (0.35, 5.9, 20, 69), "heavy": (0.90, 50, 104, 151)}


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_statistics_are_near_the_real_sets(kind: str) -> None:
    random = np.random.RandomState(0)
    layers = [np.round(synthesize.rain_layer(160, 240, kind, random)) for _ in range(60)]
    found = np.mean(
        [((x > 0).mean(), x.mean(), *np.percentile(x, [90, 99])) for x in layers], axis=0
    )
    assert found == pytest.approx(REAL[kind], rel=0.35)
    assert all(x.min() >= 0 and x.max() <= 212 for x in layers)


def test_a_layer_is_the_same_everywhere() -> None:
    """A seed names a set for good: other values would give published sets other images."""
    layer = synthesize.rain_layer(64, 64, "heavy", np.random.RandomState(0))
    assert (layer.sum(), layer[10, 20], layer[40, 50]) == pytest.approx(
        (93387.292271, 41.409101, 6.231825), rel=1e-6
    )


def test_rain_is_one_grey_layer_that_only_brightens(tmp_path: Path) -> None:
    clean = scene(3)[1] // 2
    synthesize.write_set(tmp_path / "set", [clean], "light", 2, 0)
    rainy = []
    for pair in find_pairs(tmp_path / "set"):
        rainy.append(read_pair(pair)[0])
        assert np.array_equal(read_pair(pair)[1], clean)
        added = rainy[-1].astype(int) - clean
        assert added.min() >= 0 and added.max() > 10
        unclipped = rainy[-1].max(axis=2) < 255
        assert (np.ptp(added, axis=2)[unclipped] == 0).all()
    assert not np.array_equal(*rainy)
    for folder in (tmp_path / "set", tmp_path / "set/rainy"):
        assert synthesize.synthetic_label(folder) == "synthetic light rain"
    assert synthesize.synthetic_label(tmp_path) is None


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_the_stand_in_is_typical_of_the_real_set(tmp_path: Path, kind: str) -> None:
    """It is made once, and again if it is not complete."""
    least_share, most_share, least_mean, most_mean = synthesize.TYPICAL[kind]
    pairs = find_pairs(synthesize.stand_in(kind, tmp_path))
    assert len(pairs) == 12
    for pair in pairs:
        rainy, clean = read_pair(pair)
        added = (rainy.astype(int) - clean).max(axis=2)[rainy.min(axis=2) < 255]  # unclipped
        assert least_share - 0.02 < (added > 0).mean() < most_share + 0.02
        assert least_mean * 0.8 < added.mean() < most_mean
    first, last = pairs[0].clean, pairs[-1].clean
    made = first.stat().st_mtime_ns
    synthesize.stand_in(kind, tmp_path)
    assert first.stat().st_mtime_ns == made
    last.unlink()  # as after an interrupt
    synthesize.stand_in(kind, tmp_path)
    assert last.exists()


def test_files_of_somebody_else_stay(tmp_path: Path) -> None:
    write(tmp_path / "mine/norain-001.png", scene(1)[1])
    with pytest.raises(InputError, match="mine: exists"):
        synthesize.write_set(tmp_path / "mine", [scene(1)[1]], "light", 1, 0)
    assert (tmp_path / "mine/norain-001.png").exists()
    for layers in (2, 1):  # its own earlier set is replaced
        synthesize.write_set(tmp_path / "set", [scene(1)[1]], "light", layers, 0)
        (tmp_path / "set/notes.txt").write_text("mine")
    assert len(find_pairs(tmp_path / "set")) == 1
    assert (tmp_path / "set/notes.txt").exists()


def test_the_command(tmp_path: Path, inline: Command) -> None:
    write(tmp_path / "photos/a.png", scene(1)[1])
    result = inline("derain.synthesize", "--rain", "light", "--photos", "photos", "--out", "new")
    assert (result.returncode, result.stdout) == (0, "new: 6 pairs of synthetic light rain\n")
    (tmp_path / "empty").mkdir()
    for photos in ("empty", "missing"):
        result = inline("derain.synthesize", "--photos", photos, "--out", "other")
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert photos in result.stderr
        assert not (tmp_path / "other").exists()
    before = sorted((tmp_path / "new").rglob("*"))  # an earlier set is kept
    (tmp_path / "photos/b.png").write_text("damaged")
    for photos, layers in (("photos", "1"), ("new", "1"), ("new/rainy", "1"), ("empty", "0")):
        flags = ("--photos", photos, "--layers", layers, "--out", "new")
        assert inline("derain.synthesize", *flags).returncode == 2
    assert sorted((tmp_path / "new").rglob("*")) == before
