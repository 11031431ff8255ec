"""Results of a test: results.csv, results.json, the table of means, the page and the figure."""

import csv
import io
import json
import math
import os
from collections.abc import Sequence
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

    milliseconds: an image's time in the network. scores: by metric, those of the rainy image by
    input_ and the metric; empty without a clean image.
    """

    name: str
    item: Pair | Path
    milliseconds: float | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        return rainy_file(self.item)


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Pair | Path]) -> None:
    """Raise InputError if an output would replace an input or another output."""
    files = [rainy_file(item) for item in inputs]
    files += [item.clean for item in inputs if isinstance(item, Pair)]
    taken = {os.path.realpath(file).casefold() for file in files}
    for output in outputs:
        place = os.path.realpath(output).casefold()  # some systems ignore capitals
        if place in taken:
            raise InputError(f"{output}: is an input or another result; choose another --save_path")
        taken.add(place)


def record_sources(folder: Path, results: Sequence[Result]) -> None:
    """Add to sources.json, in the results' folder, which input each result comes from."""
    record = folder / "sources.json"
    sources: dict[str, str] = {}
    if record.exists():
        sources = json.loads(record.read_text(encoding="utf-8"))
    elif any(folder.glob("[!.]*")):
        raise InputError(f"{folder}: holds other files than results; choose another --save_path")
    for result in results:
        source = os.path.realpath(result.source)
        other = sources.get(result.name, "another program")
        if other != source and (folder / result.name).exists():
            what = f"is the result of {other}, not of {source}"
            raise InputError(f"{folder / result.name}: {what}; choose another --save_path")
        sources[result.name] = source
    write_json(record, sources)


def write_tables(
    folder: Path,
    label: str,
    test_set: TestSet | None,
    results: Sequence[Result],
    about: dict[str, Any],
) -> str:
    """Write results.csv and results.json; return the table of means, empty without a test set.

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
        table = f"{label}, {len(rows)} pairs ({PROTOCOL})\n{as_text(means)}"
        equal = sum(math.isinf(result.scores["psnr_y"]) for result in results)
        if equal:
            table += f"\n{equal} images equal their clean ones; PSNR is the mean over the others"
    data_set = {"name": label, "images": len(rows)}
    content = {"data_set": data_set, "protocol": PROTOCOL, "means": means, **about}
    write_json(folder / "results.json", content)
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
        values = [result.scores[prefix + metric] for result in results]
        finite = [value for value in values if math.isfinite(value)]
        means[metric] = float(np.mean(finite or values))
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
    """Return the images for the page."""
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


def draw_figure(path: Path, names: Sequence[str], crop: Any, items: Sequence[page.Item]) -> None:
    """Draw the images that --figure names, or those of largest, median and smallest gain."""
    by_name = {item.name: item for item in items}
    gains = {item.name: item.gain("rainy", "derained") for item in items if item.scores}
    rows = []
    for name in figure.choose_images(list(by_name), names, gains):
        images = {version: read_rgb(file) for version, file in by_name[name].files.items()}
        clean = images.pop("clean", None)
        title = name
        if gains:
            title += f", {gains[name]:+.2f} dB"
        rows.append(figure.Row(title, images, clean))
    figure.write_figure(path, rows, crop)
