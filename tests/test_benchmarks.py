"""The benchmarks run, check what they compare, and print and keep the tables that benchmarks/README.md shows."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from benchmarks.common import summarise

Command = Callable[..., subprocess.CompletedProcess[str]]
TINY = {
    "inference": ("--logdir", ROOT / "logs/Rain100L", "--height", "40", "--width", "48", "--rounds", "2"),
    "training": ("--batch_size", "1", "--patch_size", "32", "--rounds", "2"),
    "loading": ("--patch_size", "32", "--stride", "300", "--patches", "40", "--rounds", "2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", TINY)
def test_a_benchmark_prints_and_keeps_its_table(command: Command, tmp_path: Path, script: str) -> None:
    result = command(f"benchmarks.{script}", *TINY[script], "--json_path", "kept.json")
    assert result.returncode == 0, result.stderr
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert kept["environment"]["torch"] == torch.__version__
    rows = kept["rows"]
    assert len(rows) >= 2
    assert rows[0]["name"].startswith("plain")
    assert rows[0]["times_faster"] == 1
    for row in rows:
        assert 0 < row["low"] <= row["seconds"] <= row["high"]
        assert f"| {row['name']} | " in result.stdout
    if script != "loading" and not torch.cuda.is_available():
        assert "CUDA: skipped" in result.stdout


@pytest.mark.slow
def test_sizes_and_their_plot(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra requirement")
    arguments = ("--largest", "0.11", "--plot", "sizes.png", "--json_path", "kept.json")
    result = command("benchmarks.sizes", "--logdir", ROOT / "logs/Rain100L", *arguments)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "sizes.png").read_bytes()[:4] == b"\x89PNG"
    rows = json.loads((tmp_path / "kept.json").read_text())["rows"]
    assert [(row["size"], row["precision"]) for row in rows] == [("432x240", "fp32"), ("432x240", "bf16")]
    assert all(row["seconds"] > 0 and 2**27 < row["peak"] < 2**32 for row in rows)


def test_ratios_are_medians_of_the_rounds() -> None:
    rows = summarise({"plain": [2.0, 4.0, 6.0], "ours": [1.0, 4.0, 1.0]})
    assert [row["times_faster"] for row in rows] == [1.0, 2.0]
    assert (rows[1]["low"], rows[1]["seconds"], rows[1]["high"]) == (1.0, 1.0, 2.5)
