"""derain.compare: the same images, one protocol, differences with their standard errors, published scores beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from derain import compare
from derain.results import METRICS, write_results
from SSIM import PROTOCOL
from utils import InputError


def results(
    folder: Path,
    psnr: np.ndarray,
    data_set: str = "Rain100L",
    protocol: str | None = PROTOCOL,
    first: int = 1,
    pixels: str = "a",
) -> Path:
    """A results folder as a test script leaves it; `pixels` stand for the hashes of all its images."""
    rows = []
    for i, value in enumerate(psnr):
        row = {"data_set": data_set, "image": f"rain-{first + i:03d}.png"}
        if protocol:
            row |= dict.fromkeys(METRICS, 0.9) | {"psnr_y": value} | {f"input_{m}": 0.5 for m in METRICS}
            row |= {"rainy_pixels": f"{pixels}{i}", "clean_pixels": pixels} if pixels else {}
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


def test_published_scores_stand_beside_the_data_set_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.compare(compare.Settings(results=(str(results(tmp_path / "a", np.array([30.0, 31.0]))),)))
    shown = capsys.readouterr().out
    assert "| a | 30.500 | 0.9000 |" in shown
    assert "| PReNet (published with PReNet (CVPR 2019)) | 37.48 | 0.979 |" in shown
    assert "| DARGNet, released images (measured here from the images that the authors released) | 37.71 |" in shown
    assert PROTOCOL in shown
    other = results(tmp_path / "b", np.array([30.0]), data_set="synthetic light rain, not Rain100L")
    compare.compare(compare.Settings(results=(str(other),), format="latex"))
    shown = capsys.readouterr().out
    assert "PReNet" not in shown.splitlines()[-1] and "CVPR" not in shown
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
        "other pixels": results(tmp_path / "pixels", np.array([30.0, 31.0]), pixels="b"),
        "other protocol": results(tmp_path / "protocol", np.array([30.0, 31.0]), protocol="full-range Y"),
        "not measured": results(tmp_path / "real", np.array([30.0, 31.0]), protocol=None),
    }
    for folder in others.values():
        with pytest.raises(InputError, match=folder.name):
            compare.compare(compare.Settings(results=(str(first), str(folder))))


def shown_by(capsys: pytest.CaptureFixture[str], *folders: Path) -> str:
    compare.compare(compare.Settings(results=tuple(map(str, folders))))
    return capsys.readouterr().out


def test_only_the_same_images_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One image more, and an older result without hashes; published scores are of the whole set only."""
    first = results(tmp_path / "first", np.array([30.0, 31.0, 35.0]))
    shorter = results(tmp_path / "shorter", np.array([30.0, 33.0]))
    shown = shown_by(capsys, first, shorter)
    assert "left out, not the same in all: rain-003.png" in shown
    assert "| first | 30.500 |" in shown
    assert "| shorter | PSNR_Y | +1.000 |" in shown
    assert "PReNet (" not in shown.replace(PROTOCOL, "")
    older = results(tmp_path / "older", np.array([30.0, 31.0, 35.0]), pixels="")
    shown = shown_by(capsys, first, older)
    assert "older: has no pixel hashes" in shown
    assert "left out" not in shown


def test_infinite_psnr_is_counted_and_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = results(tmp_path / "first", np.array([30.0, 31.0, np.inf]))
    second = results(tmp_path / "second", np.array([31.0, 32.5, np.inf]))
    shown = shown_by(capsys, first, second)
    assert "| first | 30.500 |" in shown
    assert "first: 1 images are identical to the clean ones" in shown
    assert "| second | PSNR_Y | +1.250 | 0.250 | 2 of 3 | better |" in shown


def test_equal_runs_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (results(tmp_path / n, np.array([30.0, 31.0, np.inf])) for n in ("first", "second"))
    shown = shown_by(capsys, first, second)
    assert "| second | PSNR_Y | +0.000 | - | 0 of 3 | equal |" in shown
    assert "worse" not in shown


@pytest.mark.parametrize(("mean", "said"), [(1.9, "chance"), (2.1, "better"), (-1.9, "chance"), (-2.1, "worse")])
def test_a_difference_counts_beyond_two_standard_errors(mean: float, said: str) -> None:
    spread = np.array([-1.0, 1.0] * 50)
    error = np.std(spread, ddof=1) / 10
    assert compare.verdict((spread + mean * error).tolist(), [0.0] * 100, 3)[-1] == said
