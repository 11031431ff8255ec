"""The plot of validation PSNR: which lines of a log count, and that it is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.plot import Settings, draw, validation_curve
from utils import InputError


def write_log(folder: Path, *lines: dict) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def at(minutes: float, psnr: float) -> dict:
    return {"validation": 20, "step": 1, "minutes": minutes, "psnr_y": psnr}


def test_what_counts(tmp_path: Path) -> None:
    """An earlier run in the folder, then one that was interrupted after two minutes and resumed."""
    lines = [{"begin": 0}, at(1, 20.0), {"begin": 0}, at(1, 30.0), {"loss": 0.1}, at(2, 31.0), {"begin": 10}, at(3, 32)]
    assert validation_curve(write_log(tmp_path / "run", *lines)) == ([1, 2, 5], [30.0, 31.0, 32])


def test_no_log_no_plot(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="log"):
        validation_curve(tmp_path)
    with pytest.raises(InputError, match="no validation"):
        validation_curve(write_log(tmp_path / "run", {"step": 15, "loss": 0.1}))


def test_the_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra requirement")
    draw(Settings(runs=(write_log(tmp_path / "run", {"begin": 0}, at(1, 30), at(2, 31)),), out=tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
