"""benchmarks.plot: the lines of a log that count, and the plot."""

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


def validation(minutes: float, psnr: float) -> dict:
    return {"validation": 20, "step": 1, "minutes": minutes, "psnr_y": psnr}


def test_the_last_run_counts_with_all_its_parts(tmp_path: Path) -> None:
    """Skip an earlier run; the last one was interrupted after two minutes and resumed."""
    earlier = [{"begin": 0}, validation(1, 20)]
    first = [{"begin": 0}, validation(1, 30), {"loss": 0.1}, validation(2, 31)]
    run = write_log(tmp_path / "run", *earlier, *first, {"begin": 10}, validation(3, 32))
    assert validation_curve(run) == ([1, 2, 5], [30, 31, 32])
    pytest.importorskip("matplotlib", reason="an extra requirement")
    draw(Settings(runs=(run,), out=tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_log_there_is_no_plot(tmp_path: Path) -> None:
    for folder in (tmp_path, write_log(tmp_path / "run", {"step": 15, "loss": 0.1})):
        with pytest.raises(InputError, match=r"log\.jsonl"):
            validation_curve(folder)
