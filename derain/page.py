"""index.html, the page of a test or a comparison: every image with a slider between two versions.

It is one file with small JPEGs in it, to be mailed or opened from a disk.
"""

import base64
import dataclasses
import html
import io
import itertools
import math
import os
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from derain.images import read_image
from utils import write_atomically

LONGEST_SIDE = 480  # pixels of an image on the page
MOST_THUMBNAILS = 800  # on one page, about 20 MB
# The slider is a transparent range input over the images: mouse, touch and keys need no script.
FIGURE = string.Template("""<figure>
<div class="pair">$pair<div class="edge"></div><b>$left</b><b>$right</b>
<input type="range" aria-label="edge between $left and $right" value="50"
oninput="this.parentNode.style.setProperty('--edge', this.value + '%')"></div>
<div class="others">$others</div>
<figcaption>$name<br>$caption</figcaption>
</figure>""")


@dataclasses.dataclass(frozen=True)
class Item:
    """An image of the page.

    files: image files by version, such as rainy, derained or clean. scores: PSNR (dB), SSIM and
    perhaps others of the versions that have them.
    """

    name: str
    files: Mapping[str, Path]
    scores: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)

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

    table: text. left, right: the versions that the slider compares; gains are those of `right`.
    """
    shown = list(items)
    if items[0].scores:
        ranking = sorted(items, key=lambda item: -item.gain(left, right))
        both_ends = zip(ranking, reversed(ranking), strict=True)
        shown = list(itertools.chain.from_iterable(both_ends))[: len(items)]
    most = max(1, MOST_THUMBNAILS // len(items[0].files))
    if most < len(items):
        note += f" {most} of {len(items)} images are shown."
    template = string.Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=html.escape(title),
        note=html.escape(note),
        table=html.escape(table),
        figures="\n".join(figure(folder, item, left, right) for item in shown[:most]),
    )
    write_atomically(folder / "index.html", page)


def figure(folder: Path, item: Item, left: str, right: str) -> str:
    """Return an image as HTML: the slider, the other versions below it, the scores."""
    images = {}
    for version, path in item.files.items():
        alt = html.escape(f"{item.name}, {version}")
        kind = "right" if version == right else ""
        images[version] = f'<img class="{kind}" src="{thumbnail(path)}" alt="{alt}">'
    pair = images.pop(left) + images.pop(right)
    texts = []
    for version, (psnr, ssim, *_) in item.scores.items():
        texts.append(f"{version} {psnr:.2f} dB / {ssim:.4f}")
    if item.scores:
        texts.append(f"gain {item.gain(left, right):+.2f} dB")
    if images:
        texts.append(f"below: {', '.join(images)}")
    name = html.escape(item.name)
    if item.files[right].is_relative_to(folder):
        link = quote(os.fsencode(item.files[right].relative_to(folder)))
        name = f'<a href="{link}">{name}</a>'
    return FIGURE.substitute(
        pair=pair,
        left=html.escape(left),
        right=html.escape(right),
        others="".join(images.values()),
        name=name,
        caption=html.escape(", ".join(texts)),
    )


def thumbnail(path: Path) -> str:
    """Return an image file as a small JPEG with its colour profile, a data URI."""
    image = read_image(path)
    rgb = image.rgb
    if rgb.dtype == np.uint16:
        rgb = (rgb >> 8).astype(np.uint8)
    small = Image.fromarray(rgb)
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=82, icc_profile=image.metadata.get("icc_profile"))
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
