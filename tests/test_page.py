"""index.html: all that it shows is in it, no name can break it, and in a browser it slides."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from conftest import write

from derain import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
NASTY = "</script><script>document.title='broken'</script>'\"&"
COLOURS = {"rainy": (220, 30, 30), "derained": (30, 200, 30), "clean": (30, 30, 220)}
PSNR = {  # of rainy and derained
    "one": (20.0, 23.0),
    "worse": (20.0, 19.0),
    NASTY: (20.0, 29.0),
    "same": (20.0, np.inf),
    "dry": (np.inf, np.inf),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A page of five images."""
    files = {}
    for version, colour in COLOURS.items():
        files[version] = write(tmp_path / f"{version}.png", np.full((40, 60, 3), colour, np.uint8))
    items = []
    for name, (rainy, derained) in PSNR.items():
        scores = {"rainy": (rainy, 0.5), "derained": (derained, 0.9)}
        items.append(page.Item(name, files, scores))
    page.write_page(tmp_path, "A <set>", "N & more.", "a <b>", items, "rainy", "derained")
    return tmp_path / "index.html"


def items_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(data[1])["items"]


def colour_of(uri: str) -> np.ndarray:
    """The mean colour of a data URI's JPEG."""
    data = np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].mean((0, 1))


def test_the_page_holds_all_that_it_shows(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="|https?:', text)
    for escaped in ("<title>A &lt;set&gt;</title>", "N &amp; more.", "a &lt;b&gt;"):
        assert escaped in text
    assert text.count("<script") == text.count("</script>") == 2
    images = items_of(written)[0]["images"]
    for version, colour in COLOURS.items():
        assert np.abs(colour_of(images[version]) - colour).max() < 12
    assert np.abs(colour_of(images["rain"]) - [190, 170, 0]).max() < 12


def test_largest_and_smallest_gains_come_first(written: Path) -> None:
    items = items_of(written)
    assert [item["name"] for item in items] == ["same", "worse", NASTY, "dry", "one"]
    captions = {item["name"]: item["caption"] for item in items}
    assert captions["worse"] == "rainy 20.00 dB / 0.5000, derained 19.00 dB / 0.9000, gain -1.00 dB"
    assert captions["dry"].endswith("gain +0.00 dB")
    assert items[0]["link"] == "derained.png"


def test_large_sets_show_both_ends(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_THUMBNAILS", 8)
    files = {"rainy": written.parent / "rainy.png", "derained": written.parent / "derained.png"}
    items = []
    for gain in range(9):
        scores = {"rainy": (20.0, 0.5), "derained": (20.0 + gain, 0.5)}
        items.append(page.Item(str(gain), files, scores))
    page.write_page(written.parent, "", "", "", items, "rainy", "derained")
    assert [item["name"] for item in items_of(written)] == ["8", "0"]
    assert "2 of 9 images are shown" in written.read_text()


def test_large_images_become_small(tmp_path: Path) -> None:
    rgb = np.full((1000, 2000, 3), 60_000, np.uint16)
    file = write(tmp_path / "large.png", rgb)
    found = page.thumbnails({"rainy": file})
    data = np.frombuffer(base64.b64decode(found["rainy"].split(",")[1]), np.uint8)
    assert cv2.imdecode(data, cv2.IMREAD_COLOR).shape == (240, 480, 3)
    assert np.abs(colour_of(found["rainy"]) - 60_000 // 256).max() < 2


PROBE = """<html lang="en"><script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("load", () => setTimeout(() => {
  const choose = (id, value) => {
    const control = document.getElementById(id);
    control.value = value;
    control.dispatchEvent(new Event("change"));
  };
  const names = () => page.items.map(item => item.name);
  const first = () => document.querySelector(".pair");
  const edge = () => first().style.getPropertyValue("--at");
  const result = { errors, title: document.title, before: names() };
  result.sides = [...first().querySelectorAll("span")].map(span => span.textContent);
  choose("order", "by gain");
  result.gain = names();
  choose("order", "in order");
  result.order = names();
  choose("right", "clean");
  result.right = document.querySelector("img.over").alt;
  const slider = document.querySelector("input[type=range]");
  slider.value = 80;
  slider.dispatchEvent(new Event("input"));
  result.slid = edge();
  first().scrollIntoView();
  const box = first().getBoundingClientRect();
  for (const buttons of [0, 1]) {
    const clientX = box.left + 0.25 * box.width;
    first().dispatchEvent(new PointerEvent("pointermove", { buttons, clientX }));
    result["dragged" + buttons] = edge();
  }
  result.clip = getComputedStyle(document.querySelector("img.over")).clipPath;
  result.link = document.querySelector("figcaption a").getAttribute("href");
  result.narrow = document.documentElement.scrollWidth <= innerWidth;
  document.body.replaceChildren("RESULT" + JSON.stringify(result) + "END");
}, 300));
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser_it_sorts_and_slides(written: Path) -> None:
    folder = written.parent
    text = written.read_text(encoding="utf-8")
    probed = folder / "probed.html"
    probed.write_text(text.replace('<html lang="en">', PROBE), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    flags += ["--window-size=400,800", "--virtual-time-budget=5000", "--dump-dom"]
    how = {"timeout": 120, "env": os.environ | {"HOME": str(folder)}, "check": True}
    command = [CHROMIUM, *flags, probed.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, **how).stdout
    result = json.loads(html.unescape(re.search("<body[^>]*>RESULT(.*?)END", shown)[1]))
    assert result["errors"] == []
    assert result["title"] == "A <set>"
    assert result["before"][:2] == ["same", "worse"]
    assert result["sides"] == ["rainy", "derained"]
    assert result["gain"] == ["same", NASTY, "one", "dry", "worse"]
    assert result["order"] == [*PSNR]
    assert result["right"] == "one, clean"
    assert [result[key] for key in ("slid", "dragged0", "dragged1")] == ["80%", "80%", "25%"]
    assert result["clip"] == "inset(0px 0px 0px 25%)"  # the right image is cut off at the edge
    assert result["link"] == quote("derained.png")
    assert result["narrow"]
