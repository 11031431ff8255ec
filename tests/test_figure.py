"""Figures: which pixels, crops and scores they show, and the one in the README."""

import base64
import io
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, Command, scene
from PIL import Image

from derain.figure import crop_place, write_figure
from derain.images import read_rgb
from derain.synthesize import stand_in
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
    x, y, w, h = crop_place(rainy, clean)
    for image in (rainy, derained, clean):
        for pixels in (image, image[y : y + h, x : x + w]):
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
    assert place["rainy"] < place["mine"] < place["clean"]


@pytest.mark.parametrize("size", [(11, 12), (11, 300), (3000, 11), (300, 240)])
def test_any_size_and_any_name(tmp_path: Path, size: tuple[int, int]) -> None:
    rainy = scene(1, *size)[0]
    columns = {"rainy": rainy, "$_": rainy[::-1], "clean": rainy}
    write_figure(tmp_path / "f.png", {"雨\udcd3" * 99: columns})
    height, width, _ = read_rgb(tmp_path / "f.png").shape
    assert max(height, width) < 3000


def test_the_crop_is_where_most_rain_lies_over_most_detail() -> None:
    clean = np.full((240, 480, 3), 90, np.uint8)
    clean[::4, 300:] = clean[1::4, 300:] = 130  # detail on the right
    rainy = clean.copy()
    rainy[:120] += 60  # rain in the upper half
    rainy[200:, 100:140] += 100  # and much rain over no detail
    x, y, w, h = crop_place(rainy, clean)
    assert (w, h) == (120, 60) and x + w // 2 > 300 and y + h // 2 < 120


@pytest.mark.slow
def test_the_readme_shows_what_its_command_draws(inline: Command, tmp_path: Path) -> None:
    command = r"(derain\.score) --set \S*(synthetic_heavy) ours=\S+ --figure ([\w-]+)"
    module, _, image = re.search(command, (ROOT / "examples/README.md").read_text()).groups()
    whole, part = stand_in("heavy", tmp_path), tmp_path / "part"
    for file in (f"rainy/{image}.png", f"{image.replace('rain', 'norain')}.png"):
        (part / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / file, part / file)
    for line in (
        ("test_Rain100H.py", "--data_path", part, "--save_path", "ours", "--no-page"),
        (module, "--set", part, "ours=ours", "--figure", image),
    ):
        result = inline(*line)
        assert result.returncode == 0, result.stderr
    committed = read_rgb(ROOT / "examples/derained.png")
    drawn = read_rgb(tmp_path / "results/methods/figure.png")
    drawn = cv2.resize(drawn, committed.shape[1::-1])  # other versions of matplotlib, other margins
    assert cv2.absdiff(committed, drawn).mean() < 4  # of which the 256 colours make 2
