"""compare.py: the same images, one protocol, differences with their standard errors, published figures beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from derain import compare
from derain.results import METRICS, write_results
from SSIM import PROTOCOL
from utils import InputError


def results(
    folder: Path, psnr: np.ndarray, data_set: str = "Rain100L", protocol: str | None = PROTOCOL, first: int = 1
) -> Path:
    """A results folder as a test script leaves it."""
    rows = []
    for i, value in enumerate(psnr):
        row = {"data_set": data_set, "image": f"rain-{first + i:03d}.png"}
        if protocol:
            row |= dict.fromkeys(METRICS, 0.9) | {"psnr_y": value} | {f"input_{m}": 0.5 for m in METRICS}
        rows.append(row)
    write_results(folder, rows, {"data_set": {"name": data_set}, "protocol": protocol})
    return folder


def test_what_is_chance_and_what_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A hundred images: 0.05 dB of mean difference with a spread of 0.55 dB is chance, a steady 0.05 dB is not."""
    random = np.random.RandomState(0)
    base = random.normal(37, 4, 100)
    noise = random.normal(0, 0.55, 100)
    noise += 0.05 - noise.mean()
    folders = [results(tmp_path / n, p) for n, p in (("a", base), ("b", base + noise), ("c", base + 0.05))]
    compare.compare(compare.Settings(results=tuple(map(str, folders))))
    lines = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "PSNR_Y |" in line}
    assert "| +0.050 | 0.0" in lines["b"]
    assert lines["b"].endswith("| chance |")
    assert "| 100 of 100 | better |" in lines["c"]


def test_published_figures_stand_beside_the_data_set_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.compare(compare.Settings(results=(str(results(tmp_path / "a", np.array([30.0, 31.0]))),)))
    shown = capsys.readouterr().out
    assert "| a | 30.500 | 0.9000 |" in shown
    assert "| PReNet (published) | 37.48 | 0.979 |" in shown
    assert PROTOCOL in shown
    other = results(tmp_path / "b", np.array([30.0]), data_set="synthetic light rain, not Rain100L")
    compare.compare(compare.Settings(results=(str(other),), format="latex"))
    shown = capsys.readouterr().out
    assert "PReNet (published)" not in shown
    assert r"PSNR\_Y" in shown
    assert shown.count(r"\\") == 3
    assert [line for line in shown.splitlines() if line and line[0] not in "\\%" and "&" not in line] == []


def test_runs_can_be_given_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (str(results(tmp_path / n, np.array([30.0, 31.0]))) for n in ("a", "b=c"))
    compare.compare(compare.Settings(results=(f"ours, seed 0={first}", second)))
    shown = capsys.readouterr().out
    assert "| ours, seed 0 | 30.500 |" in shown
    assert "| b=c | 30.500 |" in shown
    assert "Mean difference from ours, seed 0" in shown


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    first = results(tmp_path / "first", np.array([30.0, 31.0]))
    others = {
        "missing": tmp_path / "nowhere",
        "other images": results(tmp_path / "images", np.array([30.0, 31.0]), first=2),
        "other set": results(tmp_path / "set", np.array([30.0, 31.0]), data_set="Rain12"),
        "other protocol": results(tmp_path / "protocol", np.array([30.0, 31.0]), protocol="full-range Y"),
        "not measured": results(tmp_path / "real", np.array([30.0, 31.0]), protocol=None),
    }
    for folder in others.values():
        with pytest.raises(InputError, match=folder.name):
            compare.compare(compare.Settings(results=(str(first), str(folder))))
