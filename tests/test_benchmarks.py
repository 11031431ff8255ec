"""The benchmarks check what they compare and print their tables; the plot reads logs of runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks.common import print_table
from benchmarks.plot import Settings, draw, validation_curve
from utils import InputError

Command = Callable[..., subprocess.CompletedProcess[str]]
TINY = {
    "inference": ("--logdir", ROOT / "logs/Rain100L", "--height", "40", "--width", "48"),
    "training": ("--batch_size", "1", "--patch_size", "32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", TINY)
def test_a_benchmark_prints_its_table(command: Command, script: str) -> None:
    result = command(f"benchmarks.{script}", *TINY[script], "--rounds", "2", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if " s | " in line]
    assert len(rows) >= 4
    assert rows[0].startswith("| plain")
    assert " | 1.00 | " in rows[0]
    for row in rows:
        median, spread = row.split(" | ")[1:3]
        low, high = spread.removesuffix(" s").split(" to ")
        assert 0 < float(low) <= float(median.removesuffix(" s")) <= float(high)


def test_ratios_are_medians_of_the_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"plain": [2.0, 4.0, 6.0], "ours": [1.0, 4.0, 1.0]}, {"plain": "-", "ours": "note"})
    assert "| ours | 1.000 s | 1.000 to 2.500 s | 2.00 | note |" in capsys.readouterr().out


def write_log(folder: Path, *lines: dict) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def validation(minutes: float, psnr: float) -> dict:
    scores = {"psnr_y": psnr, "ssim_y": 0.9}
    return {"step": 1, "minutes": minutes, "validation": {"RainTrainL": scores, "mean": scores}}


def test_the_plot_shows_the_last_run_with_all_its_parts(tmp_path: Path) -> None:
    """An earlier run is skipped; the last one was interrupted and resumed."""
    earlier = [{"begin": 0}, validation(1, 20)]
    first = [{"begin": 0}, validation(1, 30), {"step": 1, "train": {"loss": 0.1}}]
    run = write_log(tmp_path / "run", *earlier, *first, {"begin": 10}, validation(3, 32))
    assert validation_curve(run) == ([1, 3], [30, 32])
    pytest.importorskip("matplotlib", reason="an extra requirement")
    draw(Settings(runs=(run, ROOT / "logs/recipes/best"), out=tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_log_there_is_no_plot(tmp_path: Path) -> None:
    for folder in (tmp_path, write_log(tmp_path / "run", {"step": 15, "train": {"loss": 0.1}})):
        with pytest.raises(InputError, match=r"log\.jsonl"):
            validation_curve(folder)
