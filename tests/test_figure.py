"""Figures: which pixels, crops and scores they show, and the example that draws one."""

import base64
import io
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, Command, scene
from PIL import Image

from derain.figure import crop_place, write_figure
from derain.images import read_rgb
from SSIM import psnr_y, ssim_y

matplotlib = pytest.importorskip("matplotlib", reason="an extra requirement")


def images() -> dict[str, np.ndarray]:
    """Return a scene whose derained image is another scene, so that no two images are alike."""
    rainy, clean = scene(1, 90, 120)
    return {"rainy": rainy, "mine": scene(101, 90, 120)[0], "clean": clean}


@pytest.fixture
def svg(tmp_path: Path) -> str:
    """Draw a scene, and return the figure as SVG, whose texts and images can be read."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        write_figure(tmp_path / "f.svg", {"scene": images()})
    return (tmp_path / "f.svg").read_text()


def test_whole_images_and_parts_have_every_pixel(svg: str) -> None:
    found = []
    for data in re.findall(r"data:image/png;base64,\s*([^\"]+)\"", svg):
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            found.append(np.asarray(image.convert("RGB")))
    rainy, derained, clean = images().values()
    removed = np.clip(3 * np.abs(rainy.astype(int) - derained), 0, 255)
    x, y, w = crop_place(rainy, clean)
    for image in (rainy, derained, clean, removed):
        for pixels in (image, image[y : y + w // 2, x : x + w]):
            assert sum(np.array_equal(image, pixels) for image in found) == 1


def test_every_score_is_below_the_image_that_has_it(svg: str) -> None:
    place = {}
    for x, text in re.findall(r'<text[^>]* x="([\d.]+)"[^>]*>([^<]+)</text>', svg):
        place[text] = float(x)
    clean = images()["clean"]
    for name in ("rainy", "mine"):
        image = images()[name]
        score = f"{psnr_y(image, clean):.2f} dB / {ssim_y(image, clean):.4f}"
        assert place[score] == pytest.approx(place[name], abs=3)
    assert place["PSNR / SSIM (Y)"] == pytest.approx(place["clean"], abs=3)
    assert place["rainy"] < place["mine"] < place["clean"] < place["removed rain (x3)"]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3000, 1), (11, 12), (300, 240)])
def test_any_size_and_any_name(tmp_path: Path, size: tuple[int, int]) -> None:
    rainy = scene(1, *size)[0]
    write_figure(tmp_path / "f.png", {"雨\udcd3" * 99: {"rainy": rainy, "$_": rainy[::-1]}})
    height, width, _ = read_rgb(tmp_path / "f.png").shape
    assert max(height, width) < 3000


def test_the_crop_is_where_most_rain_lies_over_most_detail() -> None:
    clean = np.full((240, 480, 3), 90, np.uint8)
    clean[::4, 300:] = clean[1::4, 300:] = 130  # detail on the right
    rainy = clean.copy()
    rainy[:120] += 60  # rain in the upper half
    rainy[200:, 100:140] += 100  # and much rain over no detail
    x, y, w = crop_place(rainy, clean)
    assert w == 120 and x + w // 2 > 300 and y + w // 4 < 120


# ---------------------------------------------------------------- the example


@pytest.mark.slow
def test_the_readme_shows_what_its_command_draws(inline: Command, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    command, out = re.search(r"python -m (examples\.walk_through) --out ([\w/.]+)", readme).groups()
    assert f"]({out})" in readme
    assert (ROOT / out).stat().st_size < 500_000
    result = inline(command, "--out", "drawn.png")
    assert result.returncode == 0, result.stderr
    assert [line[:2] for line in result.stdout.splitlines()] == [f"{n}." for n in "123455556"]
    committed, drawn = read_rgb(ROOT / out), read_rgb(tmp_path / "drawn.png")
    drawn = cv2.resize(drawn, committed.shape[1::-1])  # other versions of matplotlib, other margins
    assert cv2.absdiff(committed, drawn).mean() < 3
