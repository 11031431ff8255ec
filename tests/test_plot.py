"""The picture of validation PSNR: which lines of a log count, and that it is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks.plot import Settings, draw, validation_curve
from utils import InputError


def write_log(folder: Path, *lines: dict) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_what_counts(tmp_path: Path) -> None:
    """Stopped after step 20 and gone on from step 10; then a second run from the first one's weights."""
    folder = write_log(
        tmp_path / "run",
        {"begin": 0, "settings": {"init": None}},
        {"step": 10, "psnr_y": 30.0},
        {"step": 15, "loss": 0.1},
        {"step": 20, "psnr_y": 31.0},
        {"begin": 10, "settings": {"init": None}},
        {"step": 20, "psnr_y": 31.0},
        {"begin": 0, "settings": {"init": "run/net_latest.pth"}},
        {"step": 5, "psnr_y": 32.0},
    )
    assert validation_curve(folder) == ([10, 20, 25], [30.0, 31.0, 32.0], [20])


def test_a_new_run_in_the_same_folder_replaces_the_old_one(tmp_path: Path) -> None:
    begin = {"begin": 0, "settings": {"init": None}}
    folder = write_log(tmp_path / "run", begin, {"step": 10, "psnr_y": 30.0}, begin, {"step": 4, "psnr_y": 20.0})
    assert validation_curve(folder) == ([4], [20.0], [])


def test_no_log_no_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="log"):
        validation_curve(tmp_path)
    with pytest.raises(InputError, match="no validation"):
        validation_curve(write_log(tmp_path / "run", {"step": 15, "loss": 0.1}))


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra requirement")
    draw(Settings(runs=(ROOT / "logs/Rain100L",), out=tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
