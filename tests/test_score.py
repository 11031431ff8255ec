"""derain.score: protocols, matching, methods that do not fit, tables and the figure."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command, one_error, scene, write, write_pairs
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_ssim import OPTIONS, vector

from derain.images import read_rgb
from derain.score import PROTOCOLS, score, table

# PSNR and SSIM of vector(384, 512) by piq 0.8.0 in double precision. "full_range": psnr with
# convert_to_greyscale, and ssim of its Y. "rgb": psnr and ssim. ssim with downsample=False.
RECORDED = {
    "full_range": (34.4204886956, 0.993063410861),
    "rgb": (34.4023203692, 0.901512939234),
}


def test_protocols_give_the_numbers_of_what_their_titles_name() -> None:
    for protocol, (psnr, ssim) in RECORDED.items():
        found = score(*vector(384, 512), protocol)
        assert found[0] == pytest.approx(psnr, abs=2e-4)  # piq adds 1e-8 to the error
        assert found[1] == pytest.approx(ssim, abs=1e-9)


def test_scikit_image_itself() -> None:
    """Compare RGB, and luma as MATLAB's rgb2ycbcr of uint8 images rounds it: halves up."""
    images = vector(384, 512)
    weights = np.array([65.481, 128.553, 24.966])
    rounded = [np.floor(image @ weights / 255 + 16.5 + 1e-9) for image in images]
    for protocol, compared, axis in (("rgb", images, 2), ("rounded", rounded, None)):
        options = {"data_range": 255, "channel_axis": axis, **OPTIONS}
        psnr = peak_signal_noise_ratio(*compared, data_range=255)
        expected = (psnr, structural_similarity(*compared, **options))
        assert score(*images, protocol) == pytest.approx(expected, abs=1e-9)


def test_piq_itself() -> None:
    piq = pytest.importorskip("piq")
    images = [torch.from_numpy(i).permute(2, 0, 1)[None].double() / 255 for i in vector(384, 512)]
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(1, 3, 1, 1)
    grey = [(image * weights).sum(dim=1, keepdim=True) for image in images]
    found = {
        "full_range": (piq.psnr(*images, convert_to_greyscale=True), grey),
        "rgb": (piq.psnr(*images), images),
    }
    for protocol, (psnr, compared) in found.items():
        numbers = (psnr.item(), piq.ssim(*compared, downsample=False).item())
        assert numbers == pytest.approx(RECORDED[protocol], abs=1e-9)


def outputs(folder: Path, pattern: str = "{0}.png", noise: int = 3) -> Path:
    """Write a method's results: the clean scenes of conftest.write_pairs, disturbed."""
    for number in (1, 2, 3):
        _, clean = scene(number)
        random = np.random.RandomState(number)
        disturbed = clean + random.randint(-noise, noise + 1, clean.shape)
        write(folder / pattern.format(number), np.clip(disturbed, 0, 255).astype(np.uint8))
    return folder


@pytest.fixture
def run(inline: Command, tmp_path: Path) -> Command:
    """Score results against three pairs."""
    write_pairs(tmp_path / "pairs")
    outputs(tmp_path / "good")
    return lambda *arguments: inline("derain.score", *arguments)


FAULTS = [
    (lambda out: shutil.copy(out / "2.png", out / "002.png"), "002.png"),
    (lambda out: outputs(outputs(out, "{0}_a.png"), "{0}_b.png"), "2 images for rain-001.png"),
    (lambda out: write(out / "2.png", scene(2)[1][:, :-9]), "63x64"),
    (lambda out: write(out / "2.png", np.pad(scene(2)[1], ((0, 1), (0, 0), (0, 0)))), "72x65"),
    (lambda out: shutil.copy(out / "3.png", out / "2.png"), "norain-002.png"),
    (lambda out: (out / "2.png").write_bytes(b"no image"), "2.png"),
    (lambda out: (out / "2.png").unlink(), "rain-002.png"),
    (lambda out: [path.unlink() for path in out.iterdir()], "out"),
]


@pytest.mark.parametrize(("change", "named"), FAULTS)
def test_misfits_are_named(run: Command, tmp_path: Path, change: Callable, named: str) -> None:
    change(outputs(tmp_path / "out"))
    one_error(run("--set", "pairs", "mine=good", "bad=out", "--common_size"), named)


def test_images_of_one_colour_in_folders_of_their_own(run: Command, tmp_path: Path) -> None:
    for n in (1, 2):
        for name, grey in ((f"gt/{n}.png", 0), (f"in/{n}_1.png", 50), (f"out/{n}_1_NET.png", 5)):
            write(tmp_path / name, np.full((40, 40, 3), 50 * n + grey, np.uint8))
    result = run("--clean_dir", "gt", "--rainy_dir", "in", "mine=out")
    assert "| mine | 35." in result.stdout  # each with its own


def test_parts_of_images(run: Command, tmp_path: Path) -> None:
    """Leave out a border, and score the part that all methods have."""
    for n in (1, 2, 3):
        write(tmp_path / f"small/{n}.png", read_rgb(tmp_path / f"good/{n}.png")[:-5, :-3])
    flags = ("--set", "pairs", "a=good", "b=small", "--crop_border", "4", "--common_size")
    part = np.s_[4:55, 4:65]
    for row in csv.DictReader(run(*flags, "--format", "csv").stdout.splitlines()):
        rainy, clean = scene(int(row["image"][5:8]))
        image = read_rgb(tmp_path / f"good/{int(row['image'][5:8])}.png")
        if row["method"] == "rainy":
            image = rainy
        expected = score(image[part], clean[part])
        found = float(row["psnr_prenet"]), float(row["ssim_prenet"])
        assert found == pytest.approx(expected, abs=1e-12)
    text = run(*flags).stdout
    assert "4 pixels" in text and "all methods have" in text


def test_all_formats_have_the_same_numbers(run: Command, tmp_path: Path) -> None:
    outputs(tmp_path / "b", noise=9)
    flags = ("--set", "pairs", "a|b=good", "b=b", "--protocol", "all", "--format")
    rows = list(csv.DictReader(run(*flags, "csv").stdout.splitlines()))
    assert len(rows) == 3 * 3  # a, b and the rainy input
    line = "| b |"
    for protocol in PROTOCOLS:
        for metric, digits in (("psnr", 3), ("ssim", 4)):
            values = [float(r[f"{metric}_{protocol}"]) for r in rows if r["method"] == "b"]
            line += f" {np.mean(values):.{digits}f} |"
    markdown = run(*flags, "markdown").stdout
    assert line in markdown.splitlines()
    assert r"| a\|b |" in markdown
    for protocol, title in PROTOCOLS.items():
        assert f"{protocol}: {title}" in markdown


def test_an_infinite_psnr_is_counted_and_not_averaged() -> None:
    """All means are over the images that no method restored perfectly, if there is one."""

    def table_of(**psnr: tuple[float, ...]) -> str:
        scores = {name: [[(value, 0.9)] for value in values] for name, values in psnr.items()}
        return table(scores, ["psnr", "ssim"], [])

    text = table_of(a=(np.inf, 30, 31), b=(60, 29, 31))
    assert "infinite for 1 images" in text
    assert "| a | 30.500 | 0.9000 |" in text and "| b | 30.000 |" in text
    text = table_of(a=(np.inf, np.inf), b=(30, 31))
    assert "| a | inf |" in text and "| b | 30.500 |" in text


def test_the_figure(run: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an extra requirement")
    outputs(tmp_path / "b", noise=9)
    result = run("--set", "pairs", "a=good", "b=b", "--out", "out", "--figure", "rain-002")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out/figure.pdf").read_bytes().startswith(b"%PDF")
    assert read_rgb(tmp_path / "out/figure.png").shape[1] > 4 * 280
    one = read_rgb(tmp_path / "out/figure.png").shape[0]
    one_error(run("--set", "pairs", "a=good", "--figure", "rain-002.png"), "rain-002.png")
    assert run("--set", "pairs", "a=good", "--out", "out", "--figure").returncode == 0
    assert read_rgb(tmp_path / "out/figure.png").shape[0] > 2.5 * one
