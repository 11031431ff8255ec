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
    if not torch.cuda.is_available():
        assert "CUDA: skipped" in result.stdout


def test_ratios_are_medians_of_the_rounds() -> None:
    rows = summarise({"plain": [2.0, 4.0, 6.0], "ours": [1.0, 4.0, 1.0]})
    assert [row["times_faster"] for row in rows] == [1.0, 2.0]
    assert (rows[1]["low"], rows[1]["seconds"], rows[1]["high"]) == (1.0, 1.0, 2.5)
