"""index.html: all that it shows is in it, nothing in a name can break it, and in a browser it sorts and slides."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from conftest import scene
from PIL import Image

from derain import page
from derain.results import METRICS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = "</script><script>document.title='broken'</script>'\"&.png"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A page of four measured images, one with a name that would end the script."""
    rows, pictures = [], {}
    for i, name in enumerate(["rain-001.png", "rain-002.png", NASTY, "雨.png"]):
        rainy, clean = scene(i, 40, 60)
        gain = [3.0, -1.0, 9.0, 5.0][i]
        row = {"image": name} | dict.fromkeys(METRICS, 0.9) | {f"input_{m}": 0.5 for m in METRICS}
        rows.append(row | {"psnr_y": 20 + gain, "input_psnr_y": 20.0})
        pictures[name] = page.thumbnails(rainy, clean, clean)
    lines = [("rainy input", dict.fromkeys(METRICS, 0.5)), ("this run", {"psnr_y": 24.0})]
    page.write_page(tmp_path, "A <set>", "Note & more.", lines, rows, pictures)
    return tmp_path / "index.html"


def data_of(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S).group(1))


def test_the_page_needs_nothing_else(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="', text)
    assert "http" not in text.replace("http-equiv", "")
    assert "<title>A &lt;set&gt;</title>" in text
    assert "<h1>A &lt;set&gt;</h1>" in text
    assert "Note &amp; more." in text
    assert text.count("<rect") >= 4
    assert text.count("<script") == text.count("</script>") == 2

    class Strict(HTMLParser):
        depth = 0

    Strict().feed(text)
    items = data_of(written)
    assert [item["name"] for item in items][2] == NASTY
    assert items[1]["gain"] == -1
    for kind in ("rainy", "derained", "clean", "rain"):
        head, encoded = items[0][kind].split(",")
        assert head == "data:image/jpeg;base64"
        assert cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR).shape == (40, 60, 3)


def test_thumbnails_are_small_and_the_rain_is_what_was_taken() -> None:
    rainy = np.full((1000, 2000, 3), 60_000, np.uint16)
    derained = np.full((1000, 2000, 3), 20_000, np.uint16)
    found = page.thumbnails(rainy, derained, None)
    assert set(found) == {"rainy", "derained", "rain"}
    data = base64.b64decode(found["rain"].split(",")[1])
    rain = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert rain.shape == (240, 480, 3)
    assert abs(float(rain.mean()) - (60_000 - 20_000) / 256) < 2


def test_the_histogram_tells_how_many_images_each_bar_stands_for() -> None:
    """The numbers over the bars add up to the images, and each bar is as high as its number says."""
    drawn = page.histogram([1.0, 1.1, 1.2, 4.0, 9.0, 9.5])
    numbers = [int(n) for n in re.findall(r'text-anchor="middle">([0-9]+)<', drawn)]
    heights = [float(h) for h in re.findall(r'height="([0-9.]+)"><title>', drawn)]
    assert numbers == [3, 1, 2]
    assert [h for h in heights if h] == pytest.approx([110 * n / 3 for n in numbers], abs=0.1)
    assert "1.0 dB" in drawn
    assert "9.5 dB" in drawn


def test_large_sets_show_some_of_their_images() -> None:
    assert page.shown(3) == {0, 1, 2}
    assert len(page.shown(10_000)) == page.MOST_IMAGES
    assert {0, 9_999} <= page.shown(10_000)


PROBE = """
<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
console.error = (...said) => errors.push(said.join(" "));
addEventListener("load", () => setTimeout(() => {
  const names = () => [...document.querySelectorAll("figcaption")].map(c => c.textContent.split(":")[0]);
  const choose = (id, value) => {
    const control = document.getElementById(id);
    control.value = value;
    control.dispatchEvent(new Event("change"));
  };
  const result = { errors, title: document.title, before: names() };
  choose("order", "largest gain first");
  result.sorted = names();
  choose("right", "clean");
  result.right = document.querySelector("img.over").alt;
  const slider = document.querySelector("input[type=range]");
  slider.value = 80;
  slider.dispatchEvent(new Event("input"));
  result.at = slider.previousSibling.style.getPropertyValue("--at");
  const image = slider.previousSibling, box = image.getBoundingClientRect();
  image.scrollIntoView();
  const drag = buttons => image.dispatchEvent(new PointerEvent("pointermove", {
    buttons, clientX: image.getBoundingClientRect().left + 0.25 * box.width }));
  drag(0);
  result.passed_over = image.style.getPropertyValue("--at");
  drag(1);
  result.dragged = image.style.getPropertyValue("--at");
  result.links = [...document.querySelectorAll("figcaption a")].map(a => a.getAttribute("href"));
  result.clip = getComputedStyle(document.querySelector("img.over")).clipPath;
  result.loaded = [...document.images].every(i => !i.complete || i.naturalWidth === 60);
  result.narrow = document.documentElement.scrollWidth <= innerWidth;
  document.body.replaceChildren("RESULT" + JSON.stringify(result) + "END");
}, 300));
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; what the page holds is tested above")
def test_in_a_browser_it_sorts_and_slides(written: Path, tmp_path: Path) -> None:
    probed = tmp_path / "probed.html"
    text = written.read_text(encoding="utf-8")
    assert text.count('<html lang="en">') == 1
    probed.write_text(text.replace('<html lang="en">', '<html lang="en">' + PROBE), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *flags, "--window-size=400,800", "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()]
    home = os.environ | {"HOME": str(tmp_path)}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, env=home, check=True).stdout
    result = json.loads(html.unescape(re.search("<body[^>]*>RESULT(.*?)END", shown)[1]))
    assert result["errors"] == []
    assert result["title"] == "A <set>"
    assert result["before"][:2] == ["rain-001.png", "rain-002.png"]
    assert result["sorted"] == [NASTY, "雨.png", "rain-001.png", "rain-002.png"]
    assert result["right"].endswith(", clean")
    assert result["at"] == "80%"
    assert result["passed_over"] == "80%"  # only with a button down, or a finger
    assert result["dragged"] == "25%"
    assert "25%" in result["clip"]
    assert result["links"] == [quote(name, safe="/!'()*~") for name in result["sorted"]]
    assert result["loaded"]
    assert result["narrow"]


def test_small_versions_keep_their_colours_and_their_places() -> None:
    """Red stays red (a swap of RGB and BGR would make it blue), and rainy is not shown as derained."""
    colours = {"rainy": (220, 30, 30), "derained": (30, 200, 30), "clean": (30, 30, 220)}
    images = {name: np.full((24, 32, 3), colour, np.uint8) for name, colour in colours.items()}
    small = page.thumbnails(images["rainy"], images["derained"], images["clean"])
    for name, colour in colours.items():
        data = base64.b64decode(small[name].split(",")[1])
        with Image.open(io.BytesIO(data)) as image:
            found = np.asarray(image.convert("RGB"))[12, 16].astype(int)
        assert np.abs(found - colour).max() < 12, name
