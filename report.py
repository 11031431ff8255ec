"""What a test leaves behind: results.csv, results.json and a small table."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from DerainDataset import Pair
from settings import EvalSettings
from utils import InputError, write_atomically, write_json

METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")


def means(rows: Sequence[Mapping[str, Any]], prefix: str = "") -> dict[str, float]:
    """The mean of each metric over per-image rows; prefix 'input_' takes the rainy images' own figures."""
    return {metric: float(np.mean([row[prefix + metric] for row in rows])) for metric in METRICS}


def write_results(folder: Path, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    """Write results.csv, a line per image, and results.json, the summary, each atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "results.csv", text.getvalue())
    write_json(folder / "results.json", summary)


def cells(figures: Mapping[str, float | None]) -> list[str]:
    """A line's figures as text, in the order of METRICS; an unknown one is a dash."""
    texts = []
    for metric in METRICS:
        value, digits = figures.get(metric), 3 if metric.startswith("psnr") else 4
        texts.append("-" if value is None else f"{value:.{digits}f}")
    return texts


def table(title: str, lines: Sequence[tuple[str, Mapping[str, float | None]]]) -> str:
    """A table for the terminal: a title, then a line of figures per name; an unknown figure is a dash."""
    width = max(len(name) for name, _ in lines)
    text = [title, " " * width + "".join(f"{metric.upper():>10}" for metric in METRICS)]
    for name, figures in lines:
        text.append(f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells(figures)))
    return "\n".join(text)


def summary_lines(
    settings: EvalSettings, label: str, rows: Sequence[Mapping[str, Any]], pairs: Sequence[Pair]
) -> list[tuple[str, dict[str, float | None]]]:
    """The lines of the table: rainy input, this run, its unseen images, the authors.

    Pictures that are not the data set's carry their label in every line and have no reference.
    """
    suffix = "" if label == settings.name else f" ({label})"
    lines: list[tuple[str, dict[str, float | None]]] = [
        (f"rainy input{suffix}", means(rows, "input_")),
        (f"this run{suffix}", means(rows)),
    ]
    if suffix:
        return lines
    unseen = [row for row, pair in zip(rows, pairs, strict=True) if pair.number in settings.unseen]
    if unseen:
        lines.append((f"this run, {len(unseen)} images RainTrainL lacks", means(unseen)))
    if settings.reference:
        lines.append(("authors' released outputs", dict(zip(METRICS, settings.reference, strict=False))))
    return lines


def output_paths(save_path: Path, pairs: Sequence[Pair | Path]) -> list[Path]:
    """Where each derained image goes: its input's name with .png, or NAME.jpg.png where two inputs differ in that only.

    Raises InputError if an output would replace an input.
    """
    inputs = [pair.rainy if isinstance(pair, Pair) else pair for pair in pairs]
    stems = Counter(path.stem.casefold() for path in inputs)
    names = [path.stem + ".png" if stems[path.stem.casefold()] == 1 else path.name + ".png" for path in inputs]
    outputs = [save_path / name for name in names]
    every = [p for pair in pairs for p in ((pair.rainy, pair.clean) if isinstance(pair, Pair) else (pair,))]
    taken = {_same_on_any_system(path) for path in every}
    for output in outputs:
        place = _same_on_any_system(output)
        if place in taken:
            raise InputError(f"{output}: would replace an input or another result; choose another --save_path")
        taken.add(place)
    return outputs


def _same_on_any_system(path: Path) -> str:
    """One text for all spellings of a path, also where capitals make no difference."""
    return os.path.realpath(path).casefold()  # Path.resolve fails on links that go in circles
