"""derain.compare: the same images, one protocol, differences with their standard errors, published scores beside."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_pairs

from derain import compare
from derain.results import METRICS, write_results
from networks import DARGNet
from SSIM import PROTOCOL
from utils import InputError

Command = Callable[..., subprocess.CompletedProcess[str]]


def results(
    folder: Path,
    psnr: np.ndarray,
    data_set: str = "Rain100L",
    protocol: str | None = PROTOCOL,
    first: int = 1,
    pixels: str = "a",
    clean_pixels: str = "clean",
) -> Path:
    """A results folder as a test script leaves it; `pixels` stand for the hashes of all its images."""
    rows = []
    for i, value in enumerate(psnr):
        row = {"data_set": data_set, "image": f"rain-{first + i:03d}.png"}
        if protocol:
            row |= dict.fromkeys(METRICS, 0.9) | {"psnr_y": value} | {f"input_{m}": 0.5 for m in METRICS}
            row |= {"rainy_pixels": f"{pixels}{i}", "clean_pixels": clean_pixels} if pixels else {}
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
    compare.compare(compare.Settings(results=(str(results(tmp_path / "a", np.array([30.0, 31.0] * 50))),)))
    shown = capsys.readouterr().out
    assert "| rainy input | 0.500 | 0.5000 | 0.500 | 0.5000 |" in shown
    assert "| a | 30.500 | 0.9000 |" in shown
    known = [float(line.split("|")[2]) for line in shown.splitlines() if "(published" in line or "(measured" in line]
    assert len(known) == 10
    assert known == sorted(known)
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
        "other clean pixels": results(tmp_path / "clean", np.array([30.0, 31.0]), clean_pixels="b"),
        "other pixels": results(tmp_path / "pixels", np.array([30.0, 31.0]), pixels="b"),
        "other set, unchecked": results(tmp_path / "set", np.array([30.0, 31.0]), data_set="Rain12", pixels=""),
        "other protocol": results(tmp_path / "protocol", np.array([30.0, 31.0]), protocol="full-range Y"),
        "not measured": results(tmp_path / "real", np.array([30.0, 31.0]), protocol=None),
    }
    same = results(tmp_path / "same", np.array([30.0, 31.0]))
    for folder in others.values():
        with pytest.raises(InputError, match=rf"^{folder}: "):  # the one at fault, wherever it stands
            compare.compare(compare.Settings(results=(str(first), str(folder), str(same))))
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(InputError) as error:
        compare.read_run(tmp_path / "nowhere")
    assert "--save_path" not in str(error.value)  # following the message must not overwrite results
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def shown_by(capsys: pytest.CaptureFixture[str], *folders: Path) -> str:
    compare.compare(compare.Settings(results=tuple(map(str, folders))))
    return capsys.readouterr().out


def test_only_the_same_images_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images that only one run has are left out, each by name; published scores are of the whole set only."""
    scores = np.linspace(30, 40, 100)
    first = results(tmp_path / "first", scores)
    shorter = results(tmp_path / "shorter", scores[:92] + 1)
    shown = shown_by(capsys, first, shorter)
    names = ", ".join(f"rain-{i:03d}.png" for i in range(93, 101))
    assert f"first: left out, not the same image in all: {names}\n" in shown
    assert "shorter: left out" not in shown
    assert f"| first | {scores[:92].mean():.3f} |" in shown
    assert "| shorter | PSNR_Y | +1.000 |" in shown
    assert "PReNet (published" not in shown
    assert "PReNet (published" in shown_by(capsys, first, first)


@pytest.mark.parametrize("older_first", [True, False])
def test_results_without_hashes_are_compared_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], older_first: bool
) -> None:
    older = results(tmp_path / "older", np.array([30.0, 31.0]), pixels="")
    newer = results(tmp_path / "newer", np.array([30.0, 32.0]))
    shown = shown_by(capsys, *((older, newer) if older_first else (newer, older)))
    assert shown.startswith(f"{older}: has no pixel hashes")
    assert f"{newer}: has no pixel hashes" not in shown
    assert "left out" not in shown
    assert "| older | 30.500 |" in shown


def test_the_pixels_decide_and_not_the_names(inline: Command, tmp_path: Path) -> None:
    """The real commands: a set, the same set elsewhere with one other image and one more, a set of the same names."""
    torch.manual_seed(0)
    torch.save(DARGNet(channels=4, groups=1).state_dict(), tmp_path / "tiny.pth")
    write_pairs(tmp_path / "a", 3)
    write_pairs(tmp_path / "d", 4)
    write_pairs(tmp_path / "c", 3, height=40)
    shutil.copy(tmp_path / "c/norain-002.png", tmp_path / "d/norain-002.png")
    shutil.copy(tmp_path / "c/rainy/rain-002.png", tmp_path / "d/rainy/rain-002.png")
    for name in "acd":
        result = inline("test_Rain12.py", "--data_path", name, "--logdir", "tiny.pth", "--save_path", f"results/{name}")
        assert result.returncode == 0, result.stderr
    result = inline("derain.compare", "results/a", "results/d")
    assert result.returncode == 0, result.stderr
    assert "results/a: left out, not the same image in all: rain-002.png\n" in result.stdout
    assert "results/d: left out, not the same image in all: rain-002.png, rain-004.png\n" in result.stdout
    assert ", 2 images. " in result.stdout
    assert "| d | PSNR_Y | +0.000 | - | 0 of 2 | equal |" in result.stdout
    result = inline("derain.compare", "results/a", "results/c")
    assert result.returncode == 2
    assert result.stderr.startswith("error: results/c: has no image with the same name and pixels as results/a")
    assert result.stderr.count("\n") == 1


def test_infinite_psnr_is_counted_and_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = results(tmp_path / "first", np.array([30.0, 31.0, np.inf]))
    second = results(tmp_path / "second", np.array([31.0, 32.5, np.inf]))
    shown = shown_by(capsys, first, second)
    assert "| first | 30.500 |" in shown
    assert "first: 1 of 3 images are identical to the clean ones; PSNR is the mean over the others" in shown
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


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([np.inf, 31.0, 32.0], ["+1.500", "0.500", "3 of 3", "better"]),  # the mean of 1 and 2; infinity is won
        ([30.0, np.inf, np.inf], ["+0.000", "-", "2 of 3", "-"]),  # one finite difference has no standard error
        ([np.inf] * 3, ["-", "-", "3 of 3", "-"]),
        ([30.0] * 3, ["+0.000", "-", "0 of 3", "equal"]),
    ],
)
def test_infinite_differences_are_won_and_not_averaged(scores: list[float], expected: list[str]) -> None:
    assert compare.verdict(scores, [30.0] * 3, 3) == expected


def test_names_cannot_break_latex(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [results(tmp_path / n, np.array([30.0, 31.0]), pixels="") for n in ("a & b_50%", "c#1")]
    compare.compare(compare.Settings(results=tuple(map(str, folders)), format="latex"))
    lines = capsys.readouterr().out.splitlines()
    assert r"a \& b\_50\% & 30.500 & 0.9000 & 0.900 & 0.9000 \\" in lines
    assert r"c\#1 & 30.500 & 0.9000 & 0.900 & 0.9000 \\" in lines
    assert all(line[0] in "%\\" or line.endswith(r"\\") for line in lines if line)
