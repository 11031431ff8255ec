"""index.html, the page that a test leaves beside its tables: every image with a before/after slider.

One file without outside parts: pictures are in it as small JPEGs, so it can be mailed, or opened from a disk.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from derain.cli import number_of
from derain.results import METRICS, cells
from utils import write_atomically

LONGEST_SIDE = 480  # pixels of the page's pictures
MOST_PICTURES = 200  # on one page, about 20 MB; of larger sets every n-th image is shown
Thumbnails = dict[str, str]  # rainy, derained, rain, and clean if there is one -> data URI


def shown(count: int) -> set[int]:
    """Which of `count` images the page shows: all, or MOST_PICTURES of them, evenly spread."""
    if count <= MOST_PICTURES:
        return set(range(count))
    return set(np.linspace(0, count - 1, MOST_PICTURES).astype(int).tolist())


def thumbnails(rainy: np.ndarray, derained: np.ndarray, clean: np.ndarray | None) -> Thumbnails:
    """Small pictures of an image, (H, W, 3) uint8 or uint16 RGB each, and of what was taken away from it, on black."""
    rainy, derained = (
        image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8) for image in (rainy, derained)
    )
    pictures = {"rainy": rainy, "derained": derained, "rain": cv2.absdiff(rainy, derained)}
    if clean is not None:
        pictures["clean"] = clean
    return {name: _data_uri(picture) for name, picture in pictures.items()}


def _data_uri(rgb: np.ndarray) -> str:
    scale = LONGEST_SIDE / max(rgb.shape[:2])
    if scale < 1:
        size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def histogram(gains: Sequence[float]) -> str:
    """How many images gained how many decibels, as SVG."""
    counts, edges = np.histogram(gains, bins=min(24, max(4, len(gains) // 3)))
    width, top, bottom, bar = 600, 20, 130, 600 / len(counts)
    bars = ""
    for i, (n, first, last) in enumerate(zip(counts, edges, edges[1:], strict=False)):
        height = (bottom - top) * n / counts.max()
        bars += (
            f'<rect x="{i * bar + 1:.1f}" y="{bottom - height:.1f}" width="{bar - 2:.1f}" height="{height:.1f}">'
            f"<title>{n} images: {first:.2f} to {last:.2f} dB</title></rect>"
        )
        if n:
            bars += f'<text x="{(i + 0.5) * bar:.1f}" y="{bottom - height - 5:.1f}" text-anchor="middle">{n}</text>'
    labels = f'<text x="0" y="{bottom + 20}">{edges[0]:.1f} dB</text>'
    labels += f'<text x="{width}" y="{bottom + 20}" text-anchor="end">{edges[-1]:.1f} dB</text>'
    described = f"PSNR gains of {len(gains)} images, {edges[0]:.1f} to {edges[-1]:.1f} dB"
    return f'<svg viewBox="0 0 {width} {bottom + 26}" role="img" aria-label="{described}">{bars}{labels}</svg>'


def write_page(
    folder: Path,
    title: str,
    note: str,
    lines: Sequence[tuple[str, Mapping[str, float | None]]],
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Thumbnails],
) -> None:
    """Write index.html, atomically. lines: as report.table takes them; pictures: by the rows' image names."""
    gains = [row["psnr_y"] - row["input_psnr_y"] for row in rows if "psnr_y" in row]
    finite = [gain for gain in gains if np.isfinite(gain)]
    table = ""
    if lines:
        head = "".join(f"<th>{metric.upper()}</th>" for metric in METRICS)
        body = ""
        for name, values in lines:
            body += f"<tr><th>{html.escape(name)}</th>" + "".join(f"<td>{c}</td>" for c in cells(values)) + "</tr>"
        table = f'<div class="wide"><table><tr><th></th>{head}</tr>{body}</table></div>'
    if finite:
        table += f"<h2>PSNR gained (Y), {number_of(len(finite), 'image')}</h2>{histogram(finite)}"
    items = []
    for row in rows:
        if row["image"] in pictures:
            psnr = row.get("psnr_y")
            gain = None if psnr is None else psnr - row["input_psnr_y"]
            figures = {"psnr": psnr, "ssim": row.get("ssim_y"), "gain": gain}
            rounded = {k: None if v is None or not np.isfinite(v) else round(v, 4) for k, v in figures.items()}
            items.append({"name": row["image"], **rounded, **pictures[row["image"]]})
    left_out = len(rows) - len(items)
    if left_out:
        note += f" {len(items)} of {len(rows)} images are shown; results.csv has them all."
    if items:
        note += f" Pictures here are {LONGEST_SIDE} pixels wide at most; their names lead to the whole derained images."
    # '<' spelled out, so that no name can end the script
    data = json.dumps(items).replace("<", "\\u003c")
    fields = {"TITLE": html.escape(title), "NOTE": html.escape(note), "TABLE": table, "DATA": data}
    text = re.sub("@(TITLE|NOTE|TABLE|DATA)@", lambda match: fields[match[1]], TEMPLATE)
    write_atomically(folder / "index.html", text)


TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
:root { color-scheme: light dark; --line: #8884; --bar: #3a7bd5; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.1rem; margin: 1.5rem 0 0.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child { text-align: left; font-weight: normal; }
svg { width: 100%; max-width: 40rem; } svg rect { fill: var(--bar); } svg text { fill: currentColor; font-size: 14px; }
.controls { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; margin: 1.5rem 0 1rem; }
select { font: inherit; padding: 0.3rem; }
#images { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; } figcaption { font-size: 0.9rem; overflow-wrap: anywhere; }
.pair { cursor: ew-resize; touch-action: pan-y; user-select: none;
  position: relative; line-height: 0; background: #000; border-radius: 6px; overflow: hidden; }
a { color: inherit; }
.pair img { width: 100%; display: block; }
.pair .over { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at, 50%)); }
.pair .edge { position: absolute; top: 0; bottom: 0; left: var(--at, 50%); width: 2px; background: #fff; opacity: 0.8; }
.pair span { position: absolute; bottom: 0.4rem; font-size: 0.75rem; line-height: 1.4; padding: 0 0.4rem; }
.pair span { color: #fff; background: #000a; border-radius: 4px; }
.pair .l { left: 0.4rem; } .pair .r { right: 0.4rem; }
input[type=range] { width: 100%; margin: 0.4rem 0; }
</style>
<h1>@TITLE@</h1>
<p>@NOTE@</p>
@TABLE@
<div class="controls">
<label>Order <select id="order"></select></label>
<label>Left <select id="left"></select></label>
<label>Right <select id="right"></select></label>
</div>
<div id="images"></div>
<script id="data" type="application/json">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const element = (name, options, ...children) => {
  const made = Object.assign(document.createElement(name), options);
  made.append(...children);
  return made;
};
const order = document.getElementById("order");
const sides = [document.getElementById("left"), document.getElementById("right")];
const measured = data.some(item => item.psnr !== null);
const orders = { "as they came": null };
if (measured) Object.assign(orders, {
  "smallest gain first": (a, b) => a.gain - b.gain, "largest gain first": (a, b) => b.gain - a.gain,
  "lowest PSNR first": (a, b) => a.psnr - b.psnr, "highest PSNR first": (a, b) => b.psnr - a.psnr });
order.parentElement.hidden = !measured;
for (const name of Object.keys(orders)) order.append(element("option", { textContent: name }));
const kinds = ["rainy", "derained", "clean", "rain"].filter(kind => data.some(item => item[kind]));
sides.forEach((side, i) => {
  for (const kind of kinds) side.append(element("option", { textContent: kind, value: kind }));
  side.value = kinds[i];
});
function card(item) {
  const images = sides.map((side, i) => element("img", {
    loading: "lazy", decoding: "async", draggable: false, src: item[side.value], alt: item.name + ", " + side.value,
    className: i ? "over" : "" }));
  const pair = element("div", { className: "pair" }, ...images, element("div", { className: "edge" }),
    element("span", { className: "l", textContent: sides[0].value }),
    element("span", { className: "r", textContent: sides[1].value }));
  const slider = element("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel:
    "how much of " + item.name + " is " + sides[0].value });
  slider.addEventListener("input", () => pair.style.setProperty("--at", slider.value + "%"));
  const follow = event => {  // the picture itself is a slider, too
    if (!event.buttons) return;
    const box = pair.getBoundingClientRect();
    slider.value = 100 * (event.clientX - box.left) / box.width;
    slider.dispatchEvent(new Event("input"));
  };
  for (const kind of ["pointerdown", "pointermove"]) pair.addEventListener(kind, follow);
  let text = "";
  if (item.psnr !== null) text += ": " + item.psnr.toFixed(2) + " dB";
  if (item.gain !== null) text += " (" + (item.gain < 0 ? "" : "+") + item.gain.toFixed(2) + " dB)";
  if (item.ssim !== null) text += ", SSIM " + item.ssim.toFixed(4);
  const link = element("a", { textContent: item.name, title: "the whole derained image",
    href: item.name.split("/").map(encodeURIComponent).join("/") });
  return element("figure", {}, pair, slider, element("figcaption", {}, link, text));
}
function draw() {
  const items = orders[order.value] ? [...data].sort(orders[order.value]) : data;
  document.getElementById("images").replaceChildren(...items.map(card));
}
for (const control of [order, ...sides]) control.addEventListener("change", draw);
draw();
</script>
</html>
"""
