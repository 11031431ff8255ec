"""The report on a test: results.csv, results.json, the table and the page, index.html.

The page shows images with a before/after slider. It is one file with small JPEGs in it.
"""

import base64
import csv
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

from derain.images import read_image, to_8_bits
from derain.sets import TestSet
from SSIM import PROTOCOL
from utils import write_atomically, write_json

METRICS = {"psnr_y": 3, "ssim_y": 4, "psnr_rgb": 3, "ssim_rgb": 4}  # with the digits in the table
Means = dict[str, float | None]  # by metric
LONGEST_SIDE = 480  # pixels of an image on the page
MAX_IMAGES = 250  # on one page, about 20 MB
# The slider is a transparent range input over the images: mouse, touch and keys move it.
FIGURE = string.Template("""<figure>
<div class="pair">$rainy$derained<div class="edge"></div><b>rainy</b><b>derained</b>
<input type="range" aria-label="edge between rainy and derained" value="50"
oninput="this.parentNode.style.setProperty('--edge', this.value + '%')"></div>
$clean<figcaption><a href="$link">$name</a><br>$caption</figcaption>
</figure>""")


@dataclasses.dataclass
class Result:
    """A derained image.

    name: its file in the results folder. files: by version, which are rainy, derained and, if it
    is known, clean. milliseconds: the network's time. before, after: scores by metric of the rainy
    and of the derained image; empty without a clean one.
    """

    name: str
    files: dict[str, Path]
    milliseconds: float | None = None
    before: Mapping[str, float] = dataclasses.field(default_factory=dict)
    after: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def gain(self) -> float:
        """The PSNR (Y) gained in dB; 0 if it is unknown, or if both images equal the clean one."""
        gain = self.after.get("psnr_y", 0.0) - self.before.get("psnr_y", 0.0)
        return 0.0 if math.isnan(gain) else gain


def write_tables(
    folder: Path, label: str, test_set: TestSet | None, results: Sequence[Result], about: dict
) -> str:
    """Write results.csv and results.json; return the table of means, empty without a test set.

    label: what tables call the images. about: for results.json, besides the scores.
    """
    rows = []
    for result in results:
        row = {"data_set": label, "image": result.name, "milliseconds": result.milliseconds}
        before = {f"input_{metric}": value for metric, value in result.before.items()}
        rows.append(row | result.after | before)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "results.csv", text.getvalue())

    means, table = {}, ""
    if test_set:
        means = means_by_line(label, test_set, results)
        table = as_text(means)
        equal = sum(math.isinf(r.after["psnr_y"] + r.before["psnr_y"]) for r in results)
        if equal:
            table += f"\nPSNR is infinite for {equal} images; its means leave them out."
    about |= {"data_set": {"name": label, "images": len(rows)}, "protocol": PROTOCOL}
    write_json(folder / "results.json", about | {"means": means})
    return table


def means_by_line(label: str, test_set: TestSet, results: Sequence[Result]) -> dict[str, Means]:
    """Return mean scores: rainy input, this run, the authors' images.

    Only a whole test set is compared with the images that DARGNet's authors released.
    """
    rainy, derained = [r.before for r in results], [r.after for r in results]
    before, after = mean(rainy, derained), mean(derained, rainy)
    if label != test_set.name:
        return {f"rainy input ({label})": before, f"this run ({label})": after}
    lines = {"rainy input": before, "this run": after}
    if test_set.reference:
        lines["authors' released images"] = dict(zip(METRICS, test_set.reference, strict=False))
    return lines


def mean(scores: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]]) -> Means:
    """Return the mean of each metric over the images for which both scores are finite."""
    means: Means = {}
    for metric in METRICS:
        values = np.array([score[metric] for score in scores])
        finite = np.isfinite(values) & np.isfinite([score[metric] for score in others])
        means[metric] = float(values[finite].mean() if finite.any() else values.mean())
    return means


def as_text(lines: Mapping[str, Means]) -> str:
    """Return mean scores as a table for the terminal."""
    width = max(map(len, lines))
    text = " " * width + "".join(f"{metric.upper():>10}" for metric in METRICS)
    for name, means in lines.items():
        text += f"\n{name:<{width}}"
        for metric, digits in METRICS.items():
            value = means.get(metric)
            text += f"{'-':>10}" if value is None else f"{value:>10.{digits}f}"
    return text


def write_page(folder: Path, label: str, table: str, results: Sequence[Result]) -> None:
    """Write index.html, atomically: the images with the largest and smallest gains first."""
    shown = list(results)
    if results[0].after:
        ranking = sorted(results, key=lambda result: -result.gain)
        both_ends = zip(ranking, reversed(ranking), strict=True)
        shown = list(itertools.chain.from_iterable(both_ends))[: len(results)]
    shown = shown[:MAX_IMAGES]
    note = f"{len(shown)} of {len(results)} images."
    if table:
        note += f" Scores: {PROTOCOL}."
    template = string.Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=html.escape(label),
        note=html.escape(note),
        table=html.escape(table),
        figures="\n".join(map(html_figure, shown)),
    )
    write_atomically(folder / "index.html", page)


def html_figure(result: Result) -> str:
    """Return a result as HTML: the slider, the clean image below it, the scores."""
    images = {"clean": ""}
    for version, path in result.files.items():
        alt = html.escape(f"{result.name}, {version}")
        images[version] = f'<img class="{version}" src="{thumbnail(path)}" alt="{alt}">'
    caption = ""
    if result.after:
        for version, scores in (("rainy", result.before), ("derained", result.after)):
            caption += f"{version} {scores['psnr_y']:.2f} dB / {scores['ssim_y']:.4f}, "
        caption += f"gain {result.gain:+.2f} dB; below: clean"
    link = quote(os.fsencode(result.name))
    return FIGURE.substitute(images, link=link, name=html.escape(result.name), caption=caption)


def thumbnail(path: Path) -> str:
    """Return an image file as a small JPEG with its colour profile, a data URI."""
    image = read_image(path)
    rgb = to_8_bits(image.rgb)
    small = Image.fromarray(rgb[..., 0] if image.grey else rgb)
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=82, icc_profile=image.metadata.get("icc_profile"))
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
