"""index.html, the page that a test leaves beside its tables: every image with a before/after slider.

It is one file, with small JPEGs of the images in it, to be mailed or opened from a disk. Its template is page.html.
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

from derain.results import METRICS, cells
from utils import write_atomically

TEMPLATE = Path(__file__).with_name("page.html")
LONGEST_SIDE = 480  # pixels of an image on the page
MOST_IMAGES = 200  # on one page, about 20 MB; of larger sets every n-th image is shown
SCORES = {"psnr": "psnr_y", "input": "input_psnr_y", "ssim": "ssim_y"}  # name in page.html -> column; null: infinite
Thumbnails = dict[str, str]  # rainy, derained, rain, and clean if there is one -> data URI


def shown(count: int) -> set[int]:
    """Return which of `count` images the page shows: all, or MOST_IMAGES of them, evenly spread."""
    if count <= MOST_IMAGES:
        return set(range(count))
    return set(np.linspace(0, count - 1, MOST_IMAGES).astype(int).tolist())


def thumbnails(rainy: np.ndarray, derained: np.ndarray, clean: np.ndarray | None) -> Thumbnails:
    """Return small JPEGs of an image, (H, W, 3) uint8 or uint16 RGB each, and of |rainy - derained|."""
    rainy, derained = (
        image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8) for image in (rainy, derained)
    )
    versions = {"rainy": rainy, "derained": derained, "rain": cv2.absdiff(rainy, derained)}
    if clean is not None:
        versions["clean"] = clean
    return {name: _data_uri(image) for name, image in versions.items()}


def _data_uri(rgb: np.ndarray) -> str:
    scale = LONGEST_SIDE / max(rgb.shape[:2])
    if scale < 1:
        size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def histogram(gains: Sequence[float]) -> str:
    """Return a histogram of gains in decibels, as SVG."""
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
    small: Mapping[str, Thumbnails],
) -> None:
    """Write index.html, atomically. lines: as results.table takes them; small: by the rows' image names."""
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
        table += f"<h2>PSNR gained (Y), {len(finite)} images</h2>{histogram(finite)}"
    items = []
    for row in rows:
        if row["image"] in small:
            scores = {key: row[column] for key, column in SCORES.items() if column in row}
            known = {key: round(value, 4) if np.isfinite(value) else None for key, value in scores.items()}
            items.append({"name": row["image"], **known, **small[row["image"]]})
    left_out = len(rows) - len(items)
    if left_out:
        note += f" {len(items)} of {len(rows)} images are shown; results.csv has them all."
    if items:
        note += f" Shown at {LONGEST_SIDE} pixels at most; a name links to the whole derained image."
    # '<' is escaped so that no name can end the script
    data = json.dumps(items).replace("<", "\\u003c")
    fields = {"TITLE": html.escape(title), "NOTE": html.escape(note), "TABLE": table, "DATA": data}
    text = re.sub("@(TITLE|NOTE|TABLE|DATA)@", lambda match: fields[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    write_atomically(folder / "index.html", text)
