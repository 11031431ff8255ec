"""The benchmarks check what they compare and print their tables; the plot reads logs of runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, Command

from benchmarks.common import print_table
from benchmarks.plot import Settings, draw, validation_curve
from utils import InputError

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
    assert len(rows) >= 4 and rows[0].startswith("| plain") and " | 1.00 | " in rows[0]


def test_ratios_are_medians_of_the_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"plain": [2.0, 4.0, 6.0], "ours": [1.0, 4.0, 1.0]}, {"plain": "-", "ours": "note"})
    assert "| ours | 1.000 s | 1.000 to 2.500 s | 2.00 | note |" in capsys.readouterr().out


def test_the_plot_shows_the_last_run_with_all_its_parts(tmp_path: Path) -> None:
    """An earlier run is skipped; the last one was interrupted and resumed."""
    log = tmp_path / "log.jsonl"
    with pytest.raises(InputError, match=r"log\.jsonl"):
        validation_curve(tmp_path)
    lines: list[dict] = []
    for begin, minutes, psnr in ((0, 1, 20.0), (0, 1, 30.0), (10, 3, 32.0)):
        scores = {"psnr_y": psnr, "ssim_y": 0.9}
        validation = {"RainTrainL": scores, "mean": scores}
        lines += [{"begin": begin}, {"step": 1, "minutes": minutes, "validation": validation}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert validation_curve(tmp_path) == ([1, 3], [30, 32])
    log.write_text('{"begin": 0}\n')
    with pytest.raises(InputError, match="no validation"):
        validation_curve(tmp_path)


def test_the_plot_of_the_committed_logs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra requirement")
    draw(Settings(runs=(ROOT / "logs/recipes/best",), out=tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
