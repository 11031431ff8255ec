"""index.html, the page that a test leaves beside its tables: every image with a slider between any two versions.

It is one file, with small JPEGs of the images in it, to be mailed or opened from a disk. Its template is page.html.
"""

import base64
import dataclasses
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from PIL import Image

from derain.images import to_srgb
from derain.results import METRICS, cells
from utils import write_atomically

TEMPLATE = Path(__file__).with_name("page.html")
LONGEST_SIDE = 480  # pixels of an image on the page
MOST_THUMBNAILS = 800  # on one page, about 20 MB; of larger sets every n-th image is shown
Thumbnails = dict[str, str]  # version of an image, such as rainy or derained -> data URI


@dataclasses.dataclass(frozen=True)
class Item:
    """An image of the page.

    scores: PSNR and SSIM by version, those that have them. files: links to whole images, by version.
    """

    name: str
    thumbnails: Thumbnails
    scores: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def shown(count: int, versions: int = 4) -> set[int]:
    """Return which of `count` images in so many versions the page shows: all, or some of them, evenly spread."""
    most = max(1, MOST_THUMBNAILS // versions)
    return set(np.linspace(0, count - 1, min(count, most)).astype(int).tolist())


def thumbnails(
    rainy: np.ndarray, derained: np.ndarray, clean: np.ndarray | None, profile: bytes | None = None
) -> Thumbnails:
    """Return small JPEGs of an image, (H, W, 3) uint8 or uint16 RGB each, and of |rainy - derained|.

    profile: the ICC profile of rainy and derained; the JPEGs are sRGB.
    """
    if rainy.dtype == np.uint16:
        rainy, derained = ((image >> 8).astype(np.uint8) for image in (rainy, derained))
    versions = {"rainy": rainy, "derained": derained, "rain": cv2.absdiff(rainy, derained)}
    if clean is not None:
        versions["clean"] = clean
    return {name: data_uri(image, None if name in ("rain", "clean") else profile) for name, image in versions.items()}


def data_uri(rgb: np.ndarray, profile: bytes | None = None) -> str:
    """Return a small JPEG of an image, (H, W, 3) uint8 RGB in a colour profile or sRGB, as a data URI."""
    scale = LONGEST_SIDE / max(rgb.shape[:2])
    if scale < 1:
        size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    rgb = np.asarray(to_srgb(Image.fromarray(rgb), profile))
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def histogram(gains: Sequence[float]) -> str:
    """Return a histogram of gains in decibels, as SVG."""
    counts, edges = np.histogram(np.round(gains, 6), bins=min(24, max(4, len(gains) // 3)))
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


def html_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already."""
    rows = "".join(f"<tr><th>{line[0]}</th>" + "".join(f"<td>{c}</td>" for c in line[1:]) + "</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{"".join(f"<th>{h}</th>" for h in head)}</tr>{rows}</table></div>'


def write_page(
    folder: Path, title: str, note: str, table: str, items: Sequence[Item], compared: Sequence[str], left_out: int = 0
) -> None:
    """Write index.html, atomically.

    table: HTML. compared: the two versions that the page shows at first, left and right. left_out: images without
    an item.
    """
    if left_out:
        note += f" {len(items)} of {len(items) + left_out} images are shown."
    if items:
        links = "; a name links to the whole image" if items[0].files else ""
        note += f" Shown at {LONGEST_SIDE} pixels at most{links}."
    data = [
        {
            "name": item.name,
            "images": item.thumbnails,
            "files": {version: quote(os.fsencode(file)) for version, file in item.files.items()},
            "scores": {k: [round(v, 4) if np.isfinite(v) else None for v in two] for k, two in item.scores.items()},
        }
        for item in items
    ]
    # '<' is escaped so that no name can end the script
    text = json.dumps({"compared": compared, "items": data}).replace("<", "\\u003c")
    fields = {"TITLE": html.escape(title), "NOTE": html.escape(note), "TABLE": table, "DATA": text}
    page = re.sub("@(TITLE|NOTE|TABLE|DATA)@", lambda match: fields[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    write_atomically(folder / "index.html", page)


def write_test_page(
    folder: Path,
    title: str,
    note: str,
    lines: Sequence[tuple[str, Mapping[str, float | None]]],
    rows: Sequence[Mapping[str, Any]],
    small: Mapping[str, Thumbnails],
) -> None:
    """Write the page of a test. lines: as results.table takes them; small: by the rows' image names."""
    table, items = "", []
    if lines:
        head = ["", *(metric.upper() for metric in METRICS)]
        table = html_table(head, [[html.escape(name), *cells(values)] for name, values in lines])
    gains = [row["psnr_y"] - row["input_psnr_y"] for row in rows if "psnr_y" in row]
    if finite := [gain for gain in gains if np.isfinite(gain)]:
        table += f"<h2>PSNR gained (Y), {len(finite)} images</h2>{histogram(finite)}"
    for row in rows:
        name, scores = row["image"], {}
        if "psnr_y" in row:
            scores = {"rainy": (row["input_psnr_y"], row["input_ssim_y"]), "derained": (row["psnr_y"], row["ssim_y"])}
        if name in small:
            items.append(Item(name, small[name], scores, {"derained": name}))
    write_page(folder, title, note, table, items, ("rainy", "derained"), len(rows) - len(items))
