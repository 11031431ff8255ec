"""index.html, the page of a test or a comparison: every image with a slider between two versions.

It is one file with small JPEGs in it, to be mailed or opened from a disk.
"""

import base64
import dataclasses
import html
import json
import math
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
from PIL import Image

from derain.images import read_image, to_srgb
from utils import write_atomically

LONGEST_SIDE = 480  # pixels of an image on the page
MOST_THUMBNAILS = 800  # on one page, about 20 MB


@dataclasses.dataclass(frozen=True)
class Item:
    """An image of the page.

    files: image files by version, such as rainy, derained or clean. scores: PSNR (dB) and SSIM of
    the versions that have them.
    """

    name: str
    files: Mapping[str, Path]
    scores: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def gain(self, left: str, right: str) -> float:
        """Return by how many dB `right` is closer to the clean image; 0 if that is unknown."""
        if not {left, right} <= self.scores.keys():
            return 0.0
        gain = self.scores[right][0] - self.scores[left][0]
        return 0.0 if math.isnan(gain) else gain  # both equal the clean image


def write_page(
    folder: Path, title: str, note: str, table: str, items: Sequence[Item], left: str, right: str
) -> None:
    """Write index.html, atomically: the images with the largest and smallest gains first.

    table: text. left, right: the versions that are shown first; gains are those of `right`.
    """
    gains = [item.gain(left, right) for item in items]
    ranking = sorted(range(len(items)), key=lambda i: -gains[i])
    most = max(1, MOST_THUMBNAILS // (1 + len(items[0].files)))
    shown = []
    for place in range(min(most, len(items))):
        i = ranking[place // 2] if place % 2 == 0 else ranking[-1 - place // 2]
        order = {"in order": i}
        if items[i].scores:
            order = {"best and worst first": place, "by gain": ranking.index(i), "in order": i}
        shown.append(card(folder, items[i], right, gains[i]) | {"order": order})
    if len(shown) < len(items):
        note += f" {len(shown)} of {len(items)} images are shown."
    data = json.dumps({"items": shown, "left": left, "right": right})
    data = data.replace("<", "\\u003c")  # so that no name can end the script
    template = string.Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=html.escape(title),
        note=html.escape(note),
        table=html.escape(table),
        data=data,
    )
    write_atomically(folder / "index.html", page)


def card(folder: Path, item: Item, right: str, gain: float) -> dict[str, Any]:
    """Return what the page shows of an image; its name links to a result inside `folder`."""
    texts = []
    for version, (psnr, ssim) in item.scores.items():
        texts.append(f"{version} {psnr:.2f} dB / {ssim:.4f}")
    if item.scores:
        texts.append(f"gain {gain:+.2f} dB")
    found = {"name": item.name, "caption": ", ".join(texts), "images": thumbnails(item.files)}
    if item.files[right].is_relative_to(folder):
        found["link"] = quote(os.fsencode(item.files[right].relative_to(folder)))
    return found


def thumbnails(files: Mapping[str, Path]) -> dict[str, str]:
    """Return small sRGB JPEGs of an image's versions, as data URIs; of a test the rain, too."""
    small = {}
    for version, path in files.items():
        image = read_image(path)
        rgb = image.rgb
        if rgb.dtype == np.uint16:
            rgb = (rgb >> 8).astype(np.uint8)
        scale = LONGEST_SIDE / max(rgb.shape[:2])
        if scale < 1:
            height, width = rgb.shape[:2]
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        profile = image.metadata.get("icc_profile")
        small[version] = np.asarray(to_srgb(Image.fromarray(rgb), profile))
    if {"rainy", "derained"} <= small.keys():
        small["rain"] = cv2.absdiff(small["rainy"], small["derained"])
    return {version: data_uri(rgb) for version, rgb in small.items()}


def data_uri(rgb: np.ndarray) -> str:
    """Return an image, (H, W, 3) uint8 RGB, as the data URI of a JPEG."""
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
