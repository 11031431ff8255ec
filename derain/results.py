"""Results of a test: whose they are, results.csv, results.json, the table, the page, the figure."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from derain import figure, page
from derain.images import read_rgb
from derain.pairs import Pair, rainy_file
from derain.sets import TestSet
from SSIM import PROTOCOL
from utils import InputError, write_atomically, write_json

METRICS = {"psnr_y": 3, "ssim_y": 4, "psnr_rgb": 3, "ssim_rgb": 4}  # with the digits in the table
Means = dict[str, float | None]  # by metric


@dataclass
class Result:
    """A derained image or film. name: its file in the results' folder. item: its input.

    milliseconds: an image's time in the network. scores: by metric, those of the rainy image with
    the prefix input_; empty without a clean image.
    """

    name: str
    item: Pair | Path
    milliseconds: float | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        return rainy_file(self.item)


def record_sources(folder: Path, outputs: Iterable[tuple[str, Path]]) -> None:
    """Add to sources.json in the results' folder which input each file there comes from.

    outputs: names of files and their inputs. Raises InputError if one would replace a file that
    comes from another input, or that is no result.
    """
    record = folder / "sources.json"
    sources: dict[str, str] = {}
    if record.exists():
        sources = json.loads(record.read_text(encoding="utf-8"))
    elif any(folder.glob("[!.]*")):
        raise InputError(f"{folder}: holds other files than results; choose another --save_path")
    added: dict[str, str] = {}
    for name, path in outputs:
        source = os.path.realpath(path)
        other = added.get(name) or sources.get(name, "another program")
        if other != source and (name in added or (folder / name).exists()):
            what = f"would be the result of {other} and of {source}"
            raise InputError(f"{folder / name}: {what}; choose another --save_path")
        added[name] = source
    write_json(record, sources | added)


def write_results(
    folder: Path,
    label: str,
    test_set: TestSet | None,
    results: Sequence[Result],
    about: dict[str, Any],
    with_page: bool,
) -> str:
    """Write results.csv, results.json and the page; return the table, empty for own images.

    label: what tables call the images. about: for results.json, besides the scores.
    """
    rows = []
    for result in results:
        row = {"data_set": label, "image": result.name, "milliseconds": result.milliseconds}
        rows.append(row | result.scores)
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "results.csv", text.getvalue())

    means, table = {}, ""
    if test_set:
        means = means_by_line(label, test_set, results)
        table = as_text(means)
        equal = sum(math.isinf(result.scores["psnr_y"]) for result in results)
        if equal:
            table += f"\n{equal} images equal their clean ones; PSNR is the mean over the others"
    about |= {"data_set": {"name": label, "images": len(rows)}, "protocol": PROTOCOL}
    write_json(folder / "results.json", about | {"means": means})
    if with_page:
        items = page_items(folder, results)
        note = f"{len(rows)} images. Protocol of scores: {PROTOCOL}."
        page.write_page(folder, label, note, table, items, "rainy", "derained")
    return table


def means_by_line(label: str, test_set: TestSet, results: Sequence[Result]) -> dict[str, Means]:
    """Return mean scores: rainy input, this run, its unseen images, the authors' images.

    Only the whole test set is compared with its authors' images.
    """
    if label != test_set.name:
        before, after = mean(results, "input_"), mean(results)
        return {f"rainy input ({label})": before, f"this run ({label})": after}
    lines = {"rainy input": mean(results, "input_"), "this run": mean(results)}
    unseen = [result for result in results if result.item.number in test_set.unseen]
    if unseen:
        lines[f"this run, {len(unseen)} images RainTrainL lacks"] = mean(unseen)
    if test_set.reference:
        lines["authors' released images"] = dict(zip(METRICS, test_set.reference, strict=False))
    return lines


def mean(results: Sequence[Result], prefix: str = "") -> Means:
    """Return the mean of each metric; infinite PSNR, of images equal to clean ones, is left out."""
    means: Means = {}
    for metric in METRICS:
        values = np.array([result.scores[prefix + metric] for result in results])
        finite = np.isfinite(values)
        means[metric] = float(values[finite].mean() if finite.any() else values.mean())
    return means


def as_text(lines: dict[str, Means]) -> str:
    """Return mean scores as a table for the terminal."""
    width = max(map(len, lines))
    text = " " * width + "".join(f"{metric.upper():>10}" for metric in METRICS)
    for name, means in lines.items():
        text += f"\n{name:<{width}}"
        for metric, digits in METRICS.items():
            value = means.get(metric)
            text += f"{'-':>10}" if value is None else f"{value:>10.{digits}f}"
    return text


def page_items(folder: Path, results: Sequence[Result]) -> list[page.Item]:
    """Return the images for the page and the figure."""
    items = []
    for result in results:
        files = {"rainy": result.source, "derained": folder / result.name}
        scores = {}
        if isinstance(result.item, Pair):
            files["clean"] = result.item.clean
            scores["rainy"] = (result.scores["input_psnr_y"], result.scores["input_ssim_y"])
            scores["derained"] = (result.scores["psnr_y"], result.scores["ssim_y"])
        items.append(page.Item(result.name, files, scores))
    return items


def draw_figure(folder: Path, results: Sequence[Result], names: Sequence[str]) -> None:
    """Draw figure.png of the images named, or of those of largest, median and smallest gain."""
    items = {item.name: item for item in page_items(folder, results)}
    gains = {name: item.gain("rainy", "derained") for name, item in items.items()}
    scenes = {}
    for name in figure.choose_images(gains, names):
        item = items[name]
        title = f"{name}, {gains[name]:+.2f} dB" if item.scores else name
        scenes[title] = {version: read_rgb(file) for version, file in item.files.items()}
    figure.write_figure(folder / "figure.png", scenes)
