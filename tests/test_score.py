"""derain.score: outputs of any method matched to a set's images, four protocols, and tables."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import scene, write, write_pairs
from scipy.signal import convolve2d
from test_ssim import vector

from derain.images import read_rgb
from derain.score_tables import Column, Scored, Target, difference, means, ranks, tables, verdict
from derain.scores import PROTOCOLS, score
from derain.sets import RAIN12, RAIN100L

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_tables_need_no_folder_to_write_to(inline: Command, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", 2)
    (tmp_path / "results").touch()  # where figures and pages would go
    common = ("derain.score", "--clean_dir", "pairs", "a=pairs/rainy")
    assert inline(*common).returncode == 0
    result = inline(*common, "--page")
    assert result.returncode == 2
    assert "choose another --out" in result.stderr


# ---------------------------------------------------------------- protocols


def by_the_script(derained: np.ndarray, clean: np.ndarray) -> tuple[float, float]:
    """MPRNet's evaluate_PSNR_SSIM.m, line by line."""
    y = [np.round(image @ np.array([65.481, 128.553, 24.966]) / 255 + 16 + 1e-9) for image in (derained, clean)]
    x = np.arange(11) - 5
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
    window /= window.sum()
    a, b, aa, bb, ab = (convolve2d(m, window, "valid") for m in (*y, y[0] * y[0], y[1] * y[1], y[0] * y[1]))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * a * b + c1) * (2 * (ab - a * b) + c2)
    ssim = numerator / ((a**2 + b**2 + c1) * (aa - a**2 + bb - b**2 + c2))
    return 20 * np.log10(255 / np.sqrt(np.mean((y[0] - y[1]) ** 2))), ssim.mean()


def test_each_protocol_against_another_implementation() -> None:
    derained, clean = vector(321, 481)
    # PReNet's MATLAB scripts under GNU Octave
    assert score(derained, clean) == pytest.approx((35.7411921113, 0.993199292543), abs=1e-9)
    assert score(derained, clean, "rounded") == pytest.approx(by_the_script(derained, clean), abs=1e-9)
    # psnry and ssim of pyiqa 0.1.16, which rounds luma to single precision here and there
    assert score(derained, clean, "full_range") == pytest.approx((34.419270734, 0.993134093), abs=2e-6)
    # psnr and ssimc of pyiqa 0.1.16; psnr and ssim (kernel of 11, no down-sampling) of piq 0.8.0
    assert score(derained, clean, "rgb") == pytest.approx((34.401592920, 0.901427422514), abs=1e-9)


def test_tensors_are_scored_as_the_8_bit_images_that_they_become() -> None:
    derained, clean = vector(40, 50)
    batch = torch.from_numpy(np.stack([derained, clean])).permute(0, 3, 1, 2) / 255 + 1e-4
    target = torch.from_numpy(np.stack([clean, clean])).permute(0, 3, 1, 2) / 255
    assert score(batch[0], target[0]) == score(derained, clean)
    disturbed = score(batch, target.flip(3), "rgb")
    each = [score(a, clean[:, ::-1], "rgb") for a in (derained, clean)]
    assert disturbed == pytest.approx(tuple(np.mean(each, axis=0)))
    for wrong in (clean[:-1], clean[:8, :8], clean.astype(np.float64)):
        with pytest.raises(ValueError, match=r"size|smaller|uint8"):
            score(wrong, wrong if wrong.shape[0] == 8 else clean)


# ---------------------------------------------------------------- matching


def outputs(folder: Path, pattern: str, count: int = 3, noise: int = 3, first: int = 1) -> Path:
    """Images of a method: the clean scenes of conftest.write_pairs, disturbed, under names of their own."""
    for number in range(first, first + count):
        _, clean = scene(number)
        disturbed = clean + np.random.RandomState(number).randint(-noise, noise + 1, clean.shape)
        write(folder / pattern.format(number), np.clip(disturbed, 0, 255).astype(np.uint8))
    return folder


@pytest.mark.parametrize(
    ("pattern", "how"),
    [
        ("rain-{0:03d}.png", "by name"),
        ("norain-{0:03d}.png", "by name"),
        ("{0}.png", "by name"),
        ("{0}_x2.png", "by name"),
        ("{0:03d}_derained.png", "by the first number in the name"),
        ("images/x2_output_{0}.png", "by the last number in the name"),
    ],
)
def test_outputs_are_matched_by_name_and_number(inline: Command, tmp_path: Path, pattern: str, how: str) -> None:
    write_pairs(tmp_path / "pairs")
    outputs(tmp_path / "out", pattern)
    result = inline("derain.score", "--set", "pairs", "mine=out")
    assert result.returncode == 0, result.stderr
    assert f"mine: 3 images of out matched {how}, such as {Path(pattern.format(1)).name} to norain-001" in result.stderr
    expected = np.mean([score_of(tmp_path / "out" / pattern.format(n), n) for n in (1, 2, 3)], axis=0)
    assert f"| mine | {expected[0]:.3f} | {expected[1]:.4f} |" in result.stdout


def score_of(path: Path, number: int) -> tuple[float, float]:
    return score(read_rgb(path), scene(number)[1])


def test_two_folders_of_any_names(inline: Command, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs")
    (tmp_path / "pairs/rainy").rename(tmp_path / "wet")
    (tmp_path / "pairs").rename(tmp_path / "dry")
    outputs(tmp_path / "out", "{0}.png")
    alone = inline("derain.score", "--clean_dir", "dry", "mine=out")
    both = inline("derain.score", "--clean_dir", "dry", "--rainy_dir", "wet", "mine=out")
    line = next(line for line in alone.stdout.splitlines() if line.startswith("| mine"))
    assert "| rainy input" not in alone.stdout and "| rainy input" in both.stdout and line in both.stdout


def test_a_method_that_misses_images_is_left_out_by_name(inline: Command, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", 4)
    outputs(tmp_path / "whole", "{0}.png", 4)
    outputs(tmp_path / "part", "{0}.png", 2)
    result = inline("derain.score", "--set", "pairs", "whole", "part")
    assert (
        "part: left out of pairs: no image for rain-003.png, rain-004.png; --partial scores the others" in result.stderr
    )
    assert "| whole |" in result.stdout and "part" not in result.stdout
    result = inline("derain.score", "--set", "pairs", "whole", "part", "--partial")
    assert "| part |" in result.stdout and "2 of pairs PSNR" in result.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: shutil.copy(out / "2.png", out / "rain-002.png"), "two images for one place"),
        (lambda out: write(out / "2.png", scene(2)[1][:, :-1]), "differ in size (71x64 and 72x64)"),
        (lambda out: shutil.copy(out / "3.png", out / "2.png"), "norain-003.png, not"),
        (lambda out: (out / "2.png").write_bytes(b"no image"), "2.png"),
        (lambda out: [p.unlink() for p in out.iterdir()], "holds no image"),
        (lambda out: [p.rename(out / f"{chr(97 + i)}.png") for i, p in enumerate(out.iterdir())], "no method has all"),
    ],
)
def test_what_cannot_be_scored(inline: Command, tmp_path: Path, change: Callable, message: str) -> None:
    write_pairs(tmp_path / "pairs")
    change(outputs(tmp_path / "out", "{0}.png"))
    result = inline("derain.score", "--set", "pairs", "mine=out")
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("error: ")


def test_what_is_scored_has_to_be_said(inline: Command, tmp_path: Path) -> None:
    outputs(tmp_path / "out", "{0}.png")
    for arguments in (["mine=out"], ["--set", "a", "--clean_dir", "b", "mine=out"], ["--set", "a", "mine=nowhere"]):
        result = inline("derain.score", *arguments)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--set", "pairs", "clean=out"), "clean: is the name of a column"),
        (("--set", "pairs", "rainy input=out"), "rainy input: is the name of a column"),
        (("--set", "pairs", "=out"), "name each method's images as NAME=FOLDER"),
        (("--set", "pairs", "mine="), "name each method's images as NAME=FOLDER"),
        (("--set", "pairs", "--rainy_dir", "pairs/rainy", "out"), "--rainy_dir pairs/rainy: goes with --clean_dir"),
        (("--clean_dir", "dry", "out", "--figure"), "add --rainy_dir"),
        (("--set", "pairs", "out", "--errors"), "add --figure"),
        (("--set", "pairs,more/pairs", "out"), "two sets in folders of one name"),
        (("--clean_dir", "twice", "out"), "two images for one place"),
        (("--clean_dir", "dry", "--rainy_dir", "dry", "out"), "is the folder of the rainy images"),
    ],
)
def test_words_that_would_be_misunderstood(
    inline: Command, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    write_pairs(tmp_path / "pairs")
    write_pairs(tmp_path / "more/pairs")
    outputs(tmp_path / "out", "{0}.png")
    outputs(tmp_path / "dry", "{0}.png", noise=0)
    outputs(tmp_path / "dry/.hidden", "{0}.png", noise=0)
    outputs(tmp_path / "twice", "rain-{0}.png")
    outputs(tmp_path / "twice", "norain-{0}.png")
    result = inline("derain.score", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert text in result.stderr.splitlines()[-1]


def test_names_that_are_markup(inline: Command, tmp_path: Path) -> None:
    """In LaTeX, Markdown, HTML and matplotlib's formulas."""
    write_pairs(tmp_path / "pairs")
    outputs(tmp_path / "a", "{0}.png")
    outputs(tmp_path / "b", "{0}.png", noise=0)
    common = ("derain.score", "--set", "pairs", "a|$_$^~{}\\=a", "b")
    result = inline(*common, "--figure", "--page", "--out", "out")
    assert result.returncode == 0, result.stderr
    assert r"| a\|$_$^~{}\ |" in result.stdout
    latex = inline(*common, "--format", "latex").stdout
    assert r"a|\$\_\$\textasciicircum{}\textasciitilde{}\{\}\textbackslash{} & " in latex
    assert r"\textbf{inf}" in latex


def test_part_of_a_set_without_its_unseen_images() -> None:
    rows = {str(n): dict.fromkeys(PROTOCOLS, (30.0, 0.9)) for n in range(1, 9)}
    shown = tables([(Target("Rain12", "Rain12", [None] * 12, RAIN12), [Scored("a", rows)])], ["prenet"], ["a"], "latex")
    assert "8 of Rain12 PSNR" in shown and "unseen" not in shown


def test_means_are_over_the_same_images() -> None:
    """A method that restores an image perfectly is not worse for it; two perfect ones are equal."""
    both = column(a=np.array([np.inf, 30, 31]), b=np.array([60, 29.5, 30.5]))
    assert (means(both, "a")[0], means(both, "b")[0]) == (30.5, 30.0)
    perfect = column(a=np.full(3, np.inf), b=np.full(3, np.inf))
    assert ranks(perfect, 0) == {"a": 1, "b": 1}


def test_several_sets_and_all_formats(inline: Command, tmp_path: Path) -> None:
    for name, count in (("one", 3), ("two", 2)):
        write_pairs(tmp_path / name, count)
        for method, noise in (("a", 3), ("b", 9)):
            outputs(tmp_path / method / name, "{0}.png", count, noise)
    shown = {kind: inline("derain.score", "--set", "one,two", "a", "b", "--format", kind).stdout for kind in FORMATS}
    assert "|  | one PSNR | one SSIM | two PSNR | two SSIM |" in shown["markdown"]
    assert re.search(r"\| a \| \*\*[\d.]+\*\* \|", shown["markdown"])
    assert re.search(r"\| b - a \| one PSNR \| -[\d.]+ \|.*\| 0 of 3 \| worse \|", shown["markdown"])
    rows = list(csv.DictReader(shown["csv"].splitlines()))
    content = json.loads(shown["json"])
    assert len(rows) == 5 * 3  # a, b and the rainy input
    one = [float(row["psnr"]) for row in rows if (row["set"], row["method"]) == ("one", "b")]
    assert content[0]["methods"]["b"]["psnr"] == pytest.approx(np.mean(one))
    assert f"{np.mean(one):.3f}" in shown["markdown"] and f"{np.mean(one):.3f}" in shown["latex"]
    assert all(line.lstrip()[0] in "%\\" or line.endswith(r"\\") for line in shown["latex"].splitlines() if line)


def test_a_figure_of_several_methods(inline: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra requirement")
    write_pairs(tmp_path / "pairs", 4)
    outputs(tmp_path / "a", "{0}.png", 4)
    outputs(tmp_path / "b", "{0}.png", 4, noise=5)
    common = ("derain.score", "--set", "pairs", "a", "b", "--out", "f", "--figure")
    assert inline(*common, "rain-002", "--crop", "0", "0", "72").returncode == 0
    assert (tmp_path / "f/figure.pdf").read_bytes().startswith(b"%PDF")
    assert read_rgb(tmp_path / "f/figure.png").shape[1] > 4 * 280
    for wrong in (["rain-009"], ["--crop", "60", "0", "72"]):
        result = inline(*common, *wrong)
        assert (result.returncode, result.stderr.count("error: --")) == (2, 1)


def test_a_page_of_several_methods(inline: Command, tmp_path: Path) -> None:
    """Every version of every image is on it, with the scores that the table has; names are shown as they are."""
    write_pairs(tmp_path / "pairs")
    outputs(tmp_path / "a", "{0}.png")
    outputs(tmp_path / "b", "{0}.png", noise=9)
    result = inline("derain.score", "--set", "pairs", "a", "<i>B=b", "--page", "--out", "p", "--format", "csv")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "p/index.html").read_text()
    data = json.loads(re.search('type="application/json">(.*?)</script>', text, re.S)[1])["items"]
    assert sorted(item["name"] for item in data) == [f"rain-00{n}.png" for n in (1, 2, 3)]
    assert all([*item["images"]] == ["rainy", "a", "<i>B", "clean"] for item in data)
    assert len({uri for item in data for uri in item["images"].values()}) == 12
    captions = {item["name"]: item["caption"] for item in data}
    for row in csv.DictReader(result.stdout.splitlines()):
        name = row["method"].replace("rainy input", "rainy")
        scores = f"{name} {float(row['psnr']):.2f} dB / {float(row['ssim']):.4f}"
        assert scores in captions[row["image"]]
    assert "<i>" not in text


FORMATS = ("markdown", "latex", "csv", "json")


# ---------------------------------------------------------------- tables


def column(**scores: np.ndarray) -> Column:
    return Column("set", {name: np.stack([psnr, psnr / 100], axis=1) for name, psnr in scores.items()}, {})


def test_what_is_chance_and_what_is_not() -> None:
    """A hundred images: 0.05 dB of mean difference with a spread of 0.55 dB is chance, a steady 0.05 dB is not."""
    random = np.random.RandomState(0)
    base, noise = random.normal(37, 4, 100), random.normal(0, 0.55, 100)
    noise += 0.05 - noise.mean()
    chance, steady = difference(base + noise, base), difference(base + 0.05 + noise / 100, base)
    assert (verdict(chance), verdict(steady)) == ("chance", "better")
    assert chance["p"] > 0.3 and steady["p"] < 1e-9 and steady["won"] == 100
    assert ranks(column(a=base, b=base + noise, c=base - 1), 0) == {"a": 1, "b": 1, "c": 2}
    assert ranks(column(a=base), 0) == {}


def test_a_difference_by_hand() -> None:
    found = difference(np.array([31.0, 32.0, 33.0]), np.full(3, 30.0))
    assert found["mean"] == 2
    assert found["error"] == pytest.approx(1 / 3**0.5)  # a standard deviation of 1, of a sample of 3
    assert found["p"] == pytest.approx(0.0741799, abs=1e-6)  # t = 2 sqrt(3) with 2 degrees of freedom


@pytest.mark.parametrize(("mean", "said"), [(1.9, "chance"), (2.1, "better"), (-1.9, "chance"), (-2.1, "worse")])
def test_a_difference_counts_beyond_two_standard_errors(mean: float, said: str) -> None:
    spread = np.array([-1.0, 1.0] * 50)
    assert verdict(difference(spread + mean * np.std(spread, ddof=1) / 10, np.zeros(100))) == said


@pytest.mark.parametrize(
    ("scores", "mean", "won", "said"),
    [
        ([np.inf, 31.0, 32.0], 1.5, 3, "better"),  # the mean of 1 and 2; infinity is won
        ([30.0, np.inf, np.inf], 0.0, 2, "equal"),
        ([np.inf] * 3, np.nan, 3, "-"),
        ([30.0] * 3, 0.0, 0, "equal"),
    ],
)
def test_infinite_psnr_is_won_and_not_averaged(scores: list[float], mean: float, won: int, said: str) -> None:
    found = difference(np.array(scores), np.full(3, 30.0))
    assert found["mean"] == pytest.approx(mean, nan_ok=True)
    assert (found["won"], verdict(found)) == (won, said)
    both = column(a=np.array(scores), b=np.full(3, 30.0))
    kept = [s for s in scores if s < 99]
    assert means(both, "a")[0] == np.mean(kept or scores)
    assert means(both, "b")[0] == 30


def known(name: str, count: int, psnr: float = 30.0, protocol: str = "prenet") -> str:
    test_set = {"Rain100L": RAIN100L, "Rain12": RAIN12}[name]
    rows = {str(n): dict.fromkeys(PROTOCOLS, (psnr + n / 100, 0.9)) for n in range(1, count + 1)}
    target = Target(name, name, [None] * count, test_set)
    return tables([(target, [Scored("mine & b_50%", rows)])], [protocol], ["mine & b_50%"], "latex")


def test_published_scores_stand_beside_the_whole_set_only() -> None:
    shown = known("Rain100L", 100)
    assert r"PReNet (published with PReNet (CVPR 2019)) & 37.48 & 0.979 \\" in shown
    assert "measured here from the images that the authors released" in shown
    assert r"mine \& b\_50\% & 30.505 & 0.9000 \\" in shown
    assert "PReNet (published" not in known("Rain100L", 99) + known("Rain100L", 100, protocol="rounded")
    assert "Rain12, 4 unseen PSNR" in known("Rain12", 12) and "& 30.065 & 0.9000 & 30.105 & 0.9000" in known(
        "Rain12", 12
    )
