"""index.html: all that it shows is in it, no name can break it, and in a browser it slides."""

import base64
import html
import io
import re
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from conftest import Browser, write
from PIL import Image, ImageCms

from derain import report
from derain.images import DecodedImage, write_image

NASTY = "</figure><script>document.title='broken'</script>$left'\"&"
COLOURS = {"rainy": (220, 30, 30), "derained": (30, 200, 30), "clean": (30, 30, 220)}
PSNR = {  # of rainy and derained
    "one": (20.0, 23.0),
    "worse": (20.0, 19.0),
    NASTY: (20.0, 29.0),
    "same": (20.0, np.inf),
    "dry": (np.inf, np.inf),
}


@pytest.fixture
def results(tmp_path: Path) -> list[report.Result]:
    """Five images."""
    files = {}
    for version, colour in COLOURS.items():
        files[version] = write(tmp_path / f"{version}.png", np.full((40, 60, 3), colour, np.uint8))
    found = []
    for name, (before, after) in PSNR.items():
        scores = ({"psnr_y": before, "ssim_y": 0.5}, {"psnr_y": after, "ssim_y": 0.9})
        found.append(report.Result(name, files, None, *scores))
    return found


def written(folder: Path, results: list[report.Result]) -> str:
    """The page of images."""
    report.write_page(folder, "A <set>", "a <b>", results)
    return (folder / "index.html").read_text(encoding="utf-8")


def names_of(text: str) -> list[str]:
    alts = re.findall('class="derained".* alt="(.*?), derained"', text)
    return [html.unescape(alt) for alt in alts]


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_the_page_holds_all_that_it_shows(tmp_path: Path, results: list[report.Result]) -> None:
    text = written(tmp_path, results)
    assert not re.search(r'src="(?!data:)|https?:|<script', text)
    assert "<title>A &lt;set&gt;</title>" in text and "a &lt;b&gt;" in text
    shown = re.findall('src="(.*?)"', text)[:3]
    for uri, colour in zip(shown, COLOURS.values(), strict=True):
        assert np.abs(np.asarray(decoded(uri)) - colour).max() < 12
    for score in ("rainy 20.00 dB / 0.5000, derained 19.00 dB / 0.9000, gain -1.00", "gain +0.00"):
        assert score in text
    assert text.count(f'<a href="{quote(NASTY)}">') == 1


def test_order(tmp_path: Path, results: list[report.Result]) -> None:
    """Largest and smallest gains come first; without scores the order stays."""
    assert names_of(written(tmp_path, results)) == ["same", "worse", NASTY, "dry", "one"]
    many = [report.Result(str(i), results[0].files) for i in range(300)]
    text = written(tmp_path, many)
    assert names_of(text) == [str(i) for i in range(250)]
    assert "250 of 300 images" in text


def test_large_images_become_small_and_keep_their_colours(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rgb = np.full((1000, 2000, 3), 60_000, np.uint16)
    write_image(tmp_path / "a.png", DecodedImage(rgb, metadata={"icc_profile": profile}))
    small = decoded(report.thumbnail(tmp_path / "a.png"))
    assert small.size == (480, 240)
    assert small.info["icc_profile"] == profile
    assert np.abs(np.asarray(small) - 60_000 / 256).max() < 2


@pytest.mark.slow
def test_in_a_browser_it_slides(
    tmp_path: Path, results: list[report.Result], browser: Browser
) -> None:
    """Also in a narrow window; no name is taken for HTML."""
    written(tmp_path, results)
    browser("/window/rect", width=400, height=800)
    browser("/url", url=(tmp_path / "index.html").as_uri())
    assert browser.wait("document.title") == "A <set>"
    assert browser.wait("document.querySelectorAll('figure').length") == 5
    browser.drag(".pair input", "document.querySelector('.derained')")
    assert browser.wait("document.documentElement.scrollWidth <= innerWidth")
