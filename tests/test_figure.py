"""figure.png: every pixel in it is one of the images', the crop is where the frame says, the words are asked for."""

from __future__ import annotations

import csv
import io
import re
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, scene, write, write_pairs
from PIL import Image, ImageColor

from derain import figure
from derain.figure import Row, crop_place, sheet_of
from derain.images import read_rgb
from networks import DARGNet
from SSIM import ssim_y
from utils import InputError

Command = Callable[..., subprocess.CompletedProcess[str]]
RED = ImageColor.getrgb(figure.RED)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a tiny DARGNet."""
    torch.manual_seed(0)
    torch.save(DARGNet(channels=4, groups=1).state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def montage(rows: list[Row], crop: tuple[int, ...] | None = None) -> np.ndarray:
    """The figure of these rows, as PNG shows it."""
    return sheet_of(rows, crop).drawn()


def row(seed: int, height: int = 250, width: int = 300, clean: bool = True) -> Row:
    """An image for the figure; what stands for the derained one is another scene, so that none looks like another."""
    rainy, background = scene(seed, height, width)
    return Row(f"scene {seed}", rainy, scene(seed + 100, height, width)[0], background if clean else None)


def find(canvas: np.ndarray, piece: np.ndarray) -> tuple[int, int]:
    """The (top, left) of the one place where a figure has exactly these pixels."""
    h, w = piece.shape[:2]
    starts = np.argwhere((canvas[: len(canvas) - h + 1, : canvas.shape[1] - w + 1] == piece[0, 0]).all(axis=2))
    places = [(int(y), int(x)) for y, x in starts if np.array_equal(canvas[y, x : x + w], piece[0])]
    places = [(y, x) for y, x in places if np.array_equal(canvas[y : y + h, x : x + w], piece)]
    assert len(places) == 1, f"found {len(places)} times"
    return places[0]


def repeated(image: np.ndarray, times: int) -> np.ndarray:
    """Nearest neighbour, written otherwise than in figure.py."""
    return np.kron(image, np.ones((times, times, 1), np.uint8))


# ---------------------------------------------------------------- pixels


def test_whole_pictures_crops_and_frames_are_exact() -> None:
    shown = row(1)
    drawn = montage([shown], crop=(40, 100, 60))
    removed = np.clip(2 * np.abs(shown.rainy.astype(int) - shown.derained), 0, 255).astype(np.uint8)
    lefts = []
    for picture in (shown.rainy, shown.derained, shown.clean, removed):
        top, left = find(drawn, picture[:97])  # above the frame
        lefts.append(left)
        tile = drawn[top : top + 250, left : left + 300]
        outside = np.ones((250, 300), bool)
        outside[97:133, 37:103] = False
        assert np.array_equal(tile[outside], picture[outside])
        assert np.array_equal(tile[100:130, 40:100], picture[100:130, 40:100])
        outside[100:130, 40:100] = True
        assert (tile[~outside] == RED).all()
        below, beside = find(drawn, repeated(picture[100:130, 40:100], 5))  # 5 x 60 pixels are the column's 300
        assert below >= top + 250
        assert beside == left
        assert (drawn[below - 3 : below, beside - 3 : beside + 303] == RED).all()
    assert lefts == sorted(lefts)
    assert len(set(np.diff(lefts))) == 1


def test_without_clean_pictures_there_are_three_columns_and_no_figures() -> None:
    with_clean, without = montage([row(1)], (0, 0, 60)), montage([row(1, clean=False)], (0, 0, 60))
    assert without.shape[1] < with_clean.shape[1] * 0.8
    assert without.shape[0] < with_clean.shape[0]
    shown = row(1, clean=False)
    _, left = find(without, shown.derained[40:])
    _, right = find(
        without, np.clip(2 * np.abs(shown.rainy.astype(int) - shown.derained), 0, 255).astype(np.uint8)[40:]
    )
    assert right > left


def averaged(image: np.ndarray, times: int) -> np.ndarray:
    """Means of squares, rounded, written otherwise than in figure.py."""
    h, w = image.shape[0] // times, image.shape[1] // times
    means = image[: h * times, : w * times].reshape(h, times, w, times, 3).astype(float).mean(axis=(1, 3))
    return np.floor(means + 0.5).astype(np.uint8)


def test_small_pictures_are_enlarged_and_large_ones_averaged_by_whole_numbers() -> None:
    small = row(1, 20, 40)
    find(montage([small], (0, 0, 2)), repeated(small.derained[2:], 6))  # 40 pixels to 240
    large = row(2, 91, 2399)
    drawn = montage([large], (0, 30, 60))  # of 3 pixels 1 is left, in 800 columns; the last one repeats the border
    expected = averaged(np.pad(large.derained, ((0, 2), (0, 1), (0, 0)), mode="edge"), 3)
    (top, left), below = find(drawn, expected[:7]), find(drawn, expected[24:])  # above and below the frame
    assert below == (top + 24, left)
    assert find(drawn, repeated(large.derained[30:60, :60], 13))[0] > top + 30


def test_a_crop_wider_than_its_column_is_averaged_too() -> None:
    large = row(2, 700, 2400)
    find(montage([large], (0, 100, 1200)), averaged(large.derained[100:700, :1200], 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3000, 1), (11, 12), (30, 2411), (240, 241)])
@pytest.mark.parametrize("clean", [True, False])
def test_any_size(size: tuple[int, int], clean: bool) -> None:
    drawn = montage([row(3, *size, clean)])
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] < 4 * 900
    x, y, w, h = crop_place(row(3, *size, clean))
    assert 0 <= x < x + w <= size[1]
    assert 0 <= y < y + h <= size[0]


def test_pictures_of_several_sizes_share_the_columns() -> None:
    shown = [row(1, 250, 300), row(2, 300, 250), row(3, 1, 1)]
    places = [find(montage(shown[:2], (0, 0, 60)), r.clean[40:]) for r in shown[:2]]
    assert places[1][1] - places[0][1] == (300 - 250) // 2  # in the middle of the column
    assert montage(shown).shape[0] > places[1][0]
    with pytest.raises(InputError, match="60x30 pixels at 0, 0 lie outside of an image of 1x1"):
        montage(shown, crop=(0, 0, 60))


def test_the_crop_is_where_most_rain_lies_over_most_detail() -> None:
    clean = np.full((240, 480, 3), 90, np.uint8)
    clean[::2, 300:] = 130  # detail on the right
    rainy = clean.copy()
    rainy[:120, :, :] += 60  # rain in the upper half
    rainy[200:, 100:140] += 100  # and much rain over no detail
    x, y, w, h = crop_place(Row("", rainy, rainy, clean))
    assert (w, h) == (120, 60)
    assert x + w // 2 > 300
    assert y + h // 2 < 120
    assert crop_place(Row("", rainy, clean, clean)) == (x, y, w, h)  # whatever the method made of it
    assert crop_place(Row("", rainy, clean)) == (x, y, w, h)  # derained stands for a missing clean image


def test_every_score_stands_under_the_image_that_has_it() -> None:
    """Under the middle of which image, in which words."""
    shown = row(1)
    drawn = montage([shown], crop=(0, 0, 60))
    written = [(text.x, text.text) for text in sheet_of([shown], crop=(0, 0, 60)).texts]
    middles = [find(drawn, version[40:])[1] + 150 for version in (shown.rainy, shown.derained, shown.clean)]
    for middle, name in zip(middles, ("rainy", "derained", "clean"), strict=True):
        assert (middle, name) in written
    for middle, version in zip(middles, (shown.rainy, shown.derained), strict=False):
        mse = np.mean(((version.astype(float) - shown.clean) @ [65.481, 128.553, 24.966] / 255) ** 2)
        text = f"{10 * np.log10(255**2 / mse):.2f} dB / {ssim_y(version, shown.clean):.4f}"
        assert [w for w in written if w[1].startswith(text[:5])] == [(middle, text)]
    assert (middles[2], "PSNR / SSIM (Y)") in written


def test_text_is_dark_on_white_as_high_as_asked_and_no_wider_than_its_column() -> None:
    for text, wide in (("HELLO", None), ("H" * 40, 480)):
        sheet = figure.Sheet(480, 1)  # whose capitals are 20 pixels high
        sheet.labels([text])
        ink = np.argwhere(sheet.drawn().min(axis=2) < 128)
        (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0)
        assert abs((left + right) / 2 - sheet.width / 2) <= 2
        assert abs((right - left + 1) - (wide or right - left + 1)) <= 6
        assert bottom in (29, 30)
        assert (bottom - top + 1 in (20, 21)) == (wide is None)


def test_names_of_all_sorts_are_written() -> None:
    plain = montage([row(1)])
    for title in ("雨 été.png", "x" * 300, "\udcd3\udcea1.png"):
        drawn = montage([Row(title, *(getattr(row(1), name) for name in ("rainy", "derained", "clean")))])
        assert drawn.shape == plain.shape
        changed = np.flatnonzero((drawn != plain).any(axis=(1, 2)))
        assert 0 < len(changed) < 30  # nothing but the title's line


# ---------------------------------------------------------------- the options


def rows_of(path: Path, folder: Path, names: list[str]) -> list[str]:
    """Those of the derained images that a figure shows, from top to bottom."""
    drawn, tops = read_rgb(path), {}
    for name in names:
        try:
            tops[name] = find(drawn, repeated(read_rgb(folder / f"{name}.png"), 3)[-100:])
        except AssertionError:
            continue
    return sorted(tops, key=tops.get)


def test_by_itself_it_shows_median_largest_and_smallest_gain(
    inline: Command, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheets = []

    def kept(*arguments: Any) -> figure.Sheet:
        sheets.append(sheet_of(*arguments))
        return sheets[-1]

    monkeypatch.setattr(figure, "sheet_of", kept)
    write_pairs(tmp_path / "pairs", 5)
    common = ("--data_path", "pairs", "--logdir", weights, "--save_path", "out", "--no-page", "--crop", "0", "0", "30")
    result = inline("test_Rain12.py", *common, "--figure")
    assert result.returncode == 0, result.stderr
    assert "results.json, figure.png in out" in result.stdout
    with (tmp_path / "out/results.csv").open() as file:
        found = list(csv.DictReader(file))
    ordered = sorted(found, key=lambda line: float(line["psnr_y"]) - float(line["input_psnr_y"]))
    names = [line["image"].removesuffix(".png") for line in found]
    expected = [ordered[i]["image"].removesuffix(".png") for i in (2, -1, 0)]
    assert rows_of(tmp_path / "out/figure.png", tmp_path / "out", names) == expected
    titles = [text.text for text in sheets[0].texts if "(image" in text.text]
    for title, role, line in zip(
        titles, ("median", "largest", "smallest"), (ordered[i] for i in (2, -1, 0)), strict=True
    ):
        gain = float(line["psnr_y"]) - float(line["input_psnr_y"])
        assert title.startswith(f"{role} gain: {line['image']}, {gain:+.2f} dB (image ")

    (tmp_path / "out/figure.png").unlink()
    asked = ("rain-004", "rain-002.png")
    assert inline("test_Rain12.py", *common, "--skip_existing", "--figure", *asked).returncode == 0
    assert rows_of(tmp_path / "out/figure.png", tmp_path / "out", names) == ["rain-004", "rain-002"]


def test_of_your_own_pictures_it_shows_first_middle_and_last(inline: Command, tmp_path: Path, weights: Path) -> None:
    for i in range(4):
        write(tmp_path / f"photos/{i}.png", scene(i)[0])
    write(tmp_path / "photos/4.png", scene(4)[0].astype(np.uint16) * 257)
    common = ("--data_path", "photos", "--logdir", weights, "--save_path", "out", "--no-page")
    result = inline("test_real.py", *common, "--figure", "--crop", "0", "0", "30")
    assert result.returncode == 0, result.stderr
    assert rows_of(tmp_path / "out/figure.png", tmp_path / "out", [*"01234"]) == [*"024"]
    (tmp_path / "photos/1.png").write_bytes(b"words")
    result = inline("test_real.py", *common, "--figure", "1")
    assert result.returncode == 2
    assert "figure.png" not in result.stdout  # what it was to show was refused


def test_without_the_flag_there_is_none(inline: Command, tmp_path: Path, weights: Path) -> None:
    write_pairs(tmp_path / "pairs", 1)
    inline("test_Rain12.py", "--data_path", "pairs", "--logdir", weights, "--save_path", "out", "--no-page")
    assert (tmp_path / "out/results.csv").exists()
    assert not (tmp_path / "out/figure.png").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--figure", "rain-7"), "--figure rain-7: no such image among the 2, such as rain-001"),
        (("--crop", "0", "0", "8"), "--crop: chooses the part of a figure that is enlarged; add --figure"),
        (("--figure", "--crop", "0", "8"), "--crop 0 8: takes X Y SIZE"),
        (("--figure", "--crop", "0", "-1", "8"), "--crop 0 -1 8: takes X Y SIZE"),
        (("--figure", "--crop", "0", "1", "0"), "--crop 0 1 0: takes X Y SIZE"),
        (("--figure", *["rain-001"] * 51), "--figure: 51 images; a figure takes 50 at most"),
    ],
)
def test_bad_values_get_one_line_before_any_work(
    inline: Command, tmp_path: Path, weights: Path, flags: tuple[str, ...], text: str
) -> None:
    write_pairs(tmp_path / "pairs", 2)
    result = inline("test_Rain12.py", "--data_path", "pairs", "--logdir", weights, "--save_path", "out", *flags)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {text}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_crop_outside_of_a_picture_costs_nothing_but_the_figure(
    inline: Command, tmp_path: Path, weights: Path
) -> None:
    write_pairs(tmp_path / "pairs", 2)
    common = ("--data_path", "pairs", "--logdir", weights, "--save_path", "out", "--figure")
    result = inline("test_Rain12.py", *common, "--crop", "60", "0", "20")
    assert result.returncode == 2
    assert result.stderr == (
        "error: --crop 60 0 20: 20x10 pixels at 60, 0 lie outside of an image of 72x64; choose a place within it\n"
    )
    assert len(list((tmp_path / "out").glob("rain-*.png"))) == 2
    assert (tmp_path / "out/results.csv").exists()
    assert not (tmp_path / "out/figure.png").exists()


@pytest.mark.parametrize("name", ["figure.png", "Figure.jpg"])
def test_pictures_that_are_called_so_are_not_lost(inline: Command, tmp_path: Path, weights: Path, name: str) -> None:
    before = write(tmp_path / "photos" / name, scene(1)[0]).read_bytes()
    result = inline("test_real.py", "--data_path", "photos", "--logdir", weights, "--save_path", "out", "--figure")
    assert result.returncode == 2
    assert "would replace an input or another result" in result.stderr
    assert (tmp_path / "photos" / name).read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_errors_stand_under_the_crops() -> None:
    """|image - clean| times four, black under the clean image; none under the removed rain."""
    shown = row(1)
    drawn = sheet_of([shown], (0, 0, 60), errors=True).drawn()
    lefts = []
    for version in (shown.rainy, shown.derained, shown.clean):
        error = np.clip(4 * np.abs(version.astype(int) - shown.clean), 0, 255).astype(np.uint8)[:30, :60]
        top, left = find(drawn, repeated(version[:30, :60], 5))
        assert np.array_equal(drawn[top + 156 : top + 306, left : left + 300], repeated(error, 5))
        lefts.append(left)
    assert len(set(np.diff(lefts))) == 1


def test_a_pdf_has_each_image_at_its_pixels_and_text_as_text(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = row(1)
    sheet_of([shown], crop=(0, 0, 60)).save_pdf(tmp_path / "f.pdf")
    content = (tmp_path / "f.pdf").read_bytes()
    found = []
    for image in re.finditer(rb"/Width (\d+) /Height (\d+)\s(.*?)stream\n(.*?)\nendstream", content, re.S):
        width, height = int(image[1]), int(image[2])
        assert b"/DeviceRGB" in image[3] and b"/Predictor 10" in image[3]  # PNG's compression: lossless
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", image[4]), (b"IEND", b""))
        png = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
        found.append(np.asarray(Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + png))))
    removed = np.clip(2 * np.abs(shown.rainy.astype(int) - shown.derained), 0, 255).astype(np.uint8)
    versions = (shown.rainy, shown.derained, shown.clean, removed)
    for got, expected in zip(found, [*versions, *(version[:30, :60] for version in versions)], strict=True):
        assert np.array_equal(got[::-1], expected)  # stored from bottom to top, as PDF counts
    assert content.count(b"/FontFile2") == 1  # an embedded TrueType font: text is text


# ---------------------------------------------------------------- the walk-through


@pytest.mark.slow
def test_the_walk_through(inline: Command, tmp_path: Path) -> None:
    result = inline("examples.walk_through", "--size", "48", "--rain", "heavy", "--photo", "rocket", "--out", "x.png")
    assert result.returncode == 0, result.stderr
    assert [line[:2] for line in result.stdout.splitlines()] == ["1.", "2.", "3.", "4.", *["5."] * 4, "6."]
    assert read_rgb(tmp_path / "x.png").shape[1] > 4 * 48
    result = inline("examples.walk_through", "--size", "16")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --size 16: must be at least 17")


@pytest.mark.slow
def test_the_readme_shows_what_its_command_draws(inline: Command, tmp_path: Path) -> None:
    """In the figure of the repository the network is that of the weights in logs/, wherever it is drawn."""
    readme = (ROOT / "README.md").read_text()
    command, out = re.search(r"python -m (examples\.walk_through) --out ([\w/.]+)", readme).groups()
    assert f"]({out})" in readme
    assert (ROOT / out).stat().st_size < 600_000
    assert inline(command, "--out", "drawn.png").returncode == 0
    committed, drawn = read_rgb(ROOT / out).astype(int), read_rgb(tmp_path / "drawn.png").astype(int)
    assert committed.shape == drawn.shape
    pictures = (drawn == RED).all(axis=2).any(axis=1)  # the rows with frames; letters may differ
    assert pictures.sum() > 200
    assert np.abs(committed - drawn)[pictures].max() <= 4  # a level or two of rounding, twice that in removed rain


def test_the_attention_example_draws_every_attention(inline: Command, tmp_path: Path, weights: Path) -> None:
    """A row for the images and one for each of two attentions; the first image is the rainy one."""
    rainy = scene(1)[0]
    write(tmp_path / "photo.png", rainy)
    result = inline("examples.attention", "--image", "photo.png", "--logdir", weights, "--out", "out.png")
    assert result.returncode == 0, result.stderr
    assert "2 dual attentions" in result.stdout
    drawn = read_rgb(tmp_path / "out.png")
    height, width = rainy.shape[:2]
    assert drawn.shape == (3 * (height + 4) + 4, 2 * (width + 4) + 4, 3)
    assert np.array_equal(drawn[4 : 4 + height, 4 : 4 + width], rainy)
    gates = drawn[4 + height + 4 :, width + 8 : -4]
    assert gates.min() == 0
    assert gates[gates < 255].max() > 200
