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
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from PIL import Image

from derain import page
from derain.results import METRICS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = "</script><script>document.title='broken'</script>'\"&.png"


COLOURS = {"rainy": (220, 30, 30), "derained": (30, 200, 30), "clean": (30, 30, 220)}
RAINY, DERAINED, CLEAN = (np.full((40, 60, 3), colour, np.uint8) for colour in COLOURS.values())


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A page of six measured images: one with a name that would end the script, two without any error."""
    rows, small = [], {}
    names = ["rain-001.png", "rain-002.png", NASTY, "雨.png", "same.png", "dry.png"]
    psnr = [(23.0, 20.0), (19.0, 20.0), (29.0, 20.0), (25.0, 20.0), (np.inf, 20.0), (np.inf, np.inf)]
    for name, (output, rainy) in zip(names, psnr, strict=True):
        row = {"image": name} | dict.fromkeys(METRICS, 0.9) | {f"input_{m}": 0.5 for m in METRICS}
        rows.append(row | {"psnr_y": output, "input_psnr_y": rainy})
        small[name] = page.thumbnails(RAINY, DERAINED, CLEAN)
    lines = [("rainy input", dict.fromkeys(METRICS, 0.5)), ("this <run>", {"psnr_y": 24.0})]
    page.write_test_page(tmp_path, "A <set>", "Note & more.", lines, rows, small)
    return tmp_path / "index.html"


class Balanced(HTMLParser):
    """Fail unless every element is closed, the innermost one first."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()


def data_of(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S).group(1))[
        "items"
    ]


def test_the_page_needs_nothing_else(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="', text)
    assert "http" not in text.replace("http-equiv", "")
    assert "<title>A &lt;set&gt;</title>" in text
    assert "<h1>A &lt;set&gt;</h1>" in text
    assert "Note &amp; more." in text
    assert text.count("<rect") >= 4
    assert text.count("<script") == text.count("</script>") == 2
    assert "<tr><th>this &lt;run&gt;</th><td>24.000</td><td>-</td><td>-</td><td>-</td></tr>" in text
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    items = data_of(written)
    assert [item["name"] for item in items][2] == NASTY
    scores = [[item["scores"][kind][0] for kind in ("derained", "rainy")] for item in items[1:2] + items[4:]]
    assert scores == [[19, 20], [None, 20], [None, None]]
    assert "4 images" in text  # the histogram holds the finite gains
    for kind in ("rainy", "derained", "clean", "rain"):
        head, encoded = items[0]["images"][kind].split(",")
        assert head == "data:image/jpeg;base64"
        assert cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR).shape == (40, 60, 3)


def test_thumbnails_are_small_and_the_rain_is_what_was_taken() -> None:
    rainy = np.full((1000, 2000, 3), 60_000, np.uint16)
    derained = np.full((1000, 2000, 3), 20_000, np.uint16)
    found = page.thumbnails(rainy, derained, None)
    assert list(found) == ["rainy", "derained", "rain"]
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
    assert len(page.shown(10_000)) == 2 * len(page.shown(10_000, versions=8)) == 200
    assert {0, 9_999} <= page.shown(10_000)


PROBE = """
<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
console.error = (...said) => errors.push(said.join(" "));
addEventListener("load", () => setTimeout(() => {
  const names = () => [...document.querySelectorAll("figcaption")].map(c => c.textContent.split(":")[0]);
  const captions = () => [...document.querySelectorAll("figcaption")].map(c => c.textContent);
  const sides = () => [...document.querySelector(".pair").querySelectorAll("span")].map(span => span.textContent);
  const choose = (id, value) => {
    const control = document.getElementById(id);
    control.value = value;
    control.dispatchEvent(new Event("change"));
  };
  const colour = image => {
    const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return [...context.getImageData(30, 20, 1, 1).data].slice(0, 3);
  };
  const result = { errors, title: document.title, before: names() };
  @STEPS
  document.body.replaceChildren("RESULT" + JSON.stringify(result) + "END");
}, 300));
</script>
"""
SLIDING = """
  const first = document.querySelector(".pair");
  result.colours = [...first.querySelectorAll("img")].map(colour);
  result.labels = [...first.querySelectorAll("span")].map(span => [span.className, span.textContent]);
  result.captions = [...document.querySelectorAll("figcaption")].map(c => c.textContent);
  choose("order", "largest gain first");
  result.sorted = names();
  choose("order", "lowest PSNR first");
  result.lowest = names();
  choose("order", "largest gain first");
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
"""
COMPARING = """
  result.first = [sides(), captions()[0], document.getElementById("of").parentElement.hidden];
  choose("order", "smallest gain first");
  result.sorted = names();
  choose("of", "rainy");
  choose("order", "largest gain first");
  result.other = [names(), captions()[0]];
  choose("left", "clean");
  choose("right", "a");
  result.sides = sides();
  result.sources = [...document.querySelector(".pair").querySelectorAll("img")].map(image => image.src);
"""


def in_a_browser(written: Path, steps: str) -> dict[str, Any]:
    """What a page's `result` holds after steps in JavaScript in headless Chromium."""
    folder, text = written.parent, written.read_text(encoding="utf-8")
    probed = folder / "probed.html"
    assert text.count('<html lang="en">') == 1
    probe = '<html lang="en">' + PROBE.replace("@STEPS", steps)
    probed.write_text(text.replace('<html lang="en">', probe), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *flags, "--window-size=400,800", "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()]
    home = os.environ | {"HOME": str(folder)}
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, env=home, check=True).stdout
    return json.loads(html.unescape(re.search("<body[^>]*>RESULT(.*?)END", shown)[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; what the page holds is tested above")
def test_in_a_browser_it_sorts_and_slides(written: Path) -> None:
    result = in_a_browser(written, SLIDING)
    assert result["errors"] == []
    assert result["title"] == "A <set>"
    assert result["before"][:2] == ["rain-001.png", "rain-002.png"]
    assert np.abs(np.array(result["colours"]) - [COLOURS["rainy"], COLOURS["derained"]]).max() < 12
    assert result["labels"] == [["l", "rainy"], ["r", "derained"]]
    assert result["captions"][0] == "rain-001.png: 23.00 dB (+3.00 dB), SSIM 0.9000"
    assert result["captions"][1] == "rain-002.png: 19.00 dB (-1.00 dB), SSIM 0.9000"
    assert result["captions"][4:] == [f"{name}: identical to the clean image" for name in ("same.png", "dry.png")]
    assert result["sorted"] == ["same.png", NASTY, "雨.png", "rain-001.png", "dry.png", "rain-002.png"]
    assert result["lowest"] == ["rain-002.png", "rain-001.png", "雨.png", NASTY, "same.png", "dry.png"]
    assert result["right"].endswith(", clean")
    assert result["at"] == "80%"
    assert result["passed_over"] == "80%"  # only with a button down, or a finger
    assert result["dragged"] == "25%"
    assert result["clip"] == "inset(0px 0px 0px 25%)"  # the right-hand image is cut off left of the edge
    assert result["links"] == [quote(name) for name in result["sorted"]]
    assert result["loaded"]
    assert result["narrow"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; what the page holds is tested above")
def test_in_a_browser_any_two_methods_are_compared(tmp_path: Path) -> None:
    """By itself the second method's gain over the first; then rainy's over a's, which orders the images otherwise."""
    small = {kind: page.data_uri(np.full((40, 60, 3), colour, np.uint8)) for kind, colour in COLOURS.items()}
    small = {"rainy": small["rainy"], "a": small["derained"], "b": small["derained"], "clean": small["clean"]}
    psnr = {"1": (20, 30, 33), "2": (20, 29, 28), "3": (25, np.inf, 31)}
    items = [
        page.Item(name, small, {kind: (value, 0.9) for kind, value in zip(("rainy", "a", "b"), values, strict=True)})
        for name, values in psnr.items()
    ]
    page.write_page(tmp_path, "Methods", "", "", items, ("a", "b"))
    result = in_a_browser(tmp_path / "index.html", COMPARING)
    assert result["errors"] == []
    assert result["first"] == [["a", "b"], "1: b 33.00 dB (+3.00 dB), SSIM 0.9000", False]
    assert result["sorted"] == ["3", "2", "1"]
    assert result["other"] == [["2", "1", "3"], "2: rainy 20.00 dB (-9.00 dB), SSIM 0.9000"]
    assert result["sides"] == ["clean", "a"]
    assert result["sources"] == [small["clean"], small["a"]]


def test_small_versions_keep_their_colours_and_their_places() -> None:
    """Red stays red (a swap of RGB and BGR would make it blue), and rainy is not shown as derained."""
    small = page.thumbnails(RAINY, DERAINED, CLEAN)
    for name, colour in COLOURS.items():
        data = base64.b64decode(small[name].split(",")[1])
        with Image.open(io.BytesIO(data)) as image:
            found = np.asarray(image.convert("RGB"))[20, 30].astype(int)
        assert np.abs(found - colour).max() < 12, name
