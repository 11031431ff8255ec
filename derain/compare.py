"""Compare what test scripts left in their results folders, image by image, beside published scores.

    python -m derain.compare results/Rain100L results/authors_Rain100L
    python -m derain.compare ours=results/Rain100L authors=results/authors_Rain100L --format latex

The first folder is what the others are compared with. Read a mean difference together with its standard error:
images differ so much that 0.05 dB between two methods over a hundred of them is mostly chance.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from derain.cli import run_script, setting
from derain.results import METRICS, cells, identical, means
from derain.test_sets import DARGNET, PUBLISHED
from utils import InputError


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    results: tuple[str, ...] = setting(
        (),
        "folders that test scripts wrote, one or more, each optionally with its name in the tables: NAME=FOLDER",
        positional=True,
    )
    format: str = setting("markdown", "of the tables", ("markdown", "latex"))


@dataclasses.dataclass(frozen=True)
class Run:
    """One results folder: its name, its data set, its protocol, and for each image its scores and pixel hashes."""

    name: str
    data_set: str
    protocol: str
    rows: dict[str, dict[str, float]]
    pixels: dict[str, tuple[str, ...]]


def read_run(folder: Path) -> Run:
    """Read a results folder. Raises InputError for a folder without results, or with results that have no scores."""
    try:
        summary = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        with open(folder / "results.csv", encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        protocol = summary["protocol"]
        data_set = summary["data_set"]["name"]
        columns = [*METRICS, *(f"input_{metric}" for metric in METRICS)] if protocol else []
        rows = {line["image"]: {column: float(line[column]) for column in columns} for line in lines}
        pixels = {line["image"]: (line.get("rainy_pixels", ""), line.get("clean_pixels", "")) for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: no results of a test script ({error}); name a --save_path of one") from error
    if not protocol:
        raise InputError(f"{folder}: has no scores: its images have no clean ones to measure against; name another")
    return Run(folder.name, data_set, protocol, rows, pixels)


def named_folder(text: str) -> tuple[str | None, Path]:
    """Return name, if one is given, and folder of NAME=FOLDER; an existing folder may have = in its own name."""
    name, equals, folder = text.partition("=")
    return (name, Path(folder)) if equals and not Path(text).exists() else (None, Path(text))


def same_images(folders: Sequence[Path], runs: Sequence[Run]) -> list[str]:
    """Return the images that all runs measured, with the same pixels, and say in a line which were left out.

    Raises InputError if there are none, or if protocols differ.
    """
    first = runs[0]
    shared = list(first.rows)
    for folder, run in zip(folders, runs, strict=True):
        if run.protocol != first.protocol:
            raise InputError(f"{folder}: measured under another protocol than {folders[0]}; run the test again")
        if not any(map(any, run.pixels.values())):
            print(f"{folder}: has no pixel hashes (an older test): whether its images are the same is not checked")
        shared = [
            image
            for image in shared
            if image in run.rows and (run.pixels[image] == first.pixels[image] or not any(run.pixels[image]))
        ]
    left_out = sorted({image for run in runs for image in run.rows} - set(shared))
    if not shared:
        raise InputError(f"{folders[-1]}: no image has the pixels of {folders[0]}'s; only results on the same compare")
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        print(f"left out, not the same in all: {', '.join(left_out[:5])}{more}")
    return shared


def compare(settings: Settings) -> None:
    """Print the table of means and the table of differences."""
    named = [named_folder(text) for text in settings.results]
    folders = [folder for _, folder in named]
    runs = [read_run(folder) for folder in folders]
    images, first = same_images(folders, runs), runs[0]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):  # results/a/Rain100L and results/b/Rain100L
        names = [str(folder) for folder in folders]
    names = [given or name for (given, _), name in zip(named, names, strict=True)]

    whole = len(images) == len(first.rows) and len({run.data_set for run in runs}) == 1
    remark = "% " if settings.format == "latex" else ""
    print(f"{remark}{first.data_set}, {len(images)} images. {first.protocol}\n")
    rows = [[run.rows[image] for image in images] for run in runs]
    lines = [["rainy input", *cells(means(rows[0], "input_"))]]
    lines += [[name, *cells(means(run))] for name, run in zip(names, rows, strict=True)]
    lines += published(first.data_set) if whole else []
    print(table(["", "PSNR_Y", "SSIM_Y", "PSNR_RGB", "SSIM_RGB"], lines, settings.format))
    for name, run in zip(names, rows, strict=True):
        if count := identical(run):
            print(f"{remark}{name}: {count} images are identical to the clean ones; PSNR is the mean over the others")

    lines = []
    for name, run in zip(names[1:], rows[1:], strict=True):
        for metric, digits in (("psnr_y", 3), ("ssim_y", 5)):
            lines.append(
                [name, metric.upper(), *verdict([r[metric] for r in run], [r[metric] for r in rows[0]], digits)]
            )
    if lines:
        print(f"\n{remark}Mean difference from {names[0]}, image by image, and the standard error of that mean\n")
        print(table(["", "", "difference", "standard error", "images won", "verdict"], lines, settings.format))


def published(data_set: str) -> list[list[str]]:
    """Return the lines of the known scores for a data set, lowest PSNR first."""
    known = [method for method in (*PUBLISHED, DARGNET) if data_set in method.scores]
    lines = []
    for method in sorted(known, key=lambda method: method.scores[data_set]):
        psnr, ssim = method.scores[data_set]
        lines.append([f"{method.name} ({method.source})", f"{psnr:.2f}", f"{ssim:.3f}", "-", "-"])
    return lines


def verdict(scores: Sequence[float], others: Sequence[float], digits: int) -> list[str]:
    """Return mean difference, its standard error, how many images are better, and whether that is beyond two errors.

    Images whose difference is not finite (one of the two is identical to the clean image) count as won or lost only.
    """
    pairs = list(zip(scores, others, strict=True))
    won, lost = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    difference = np.array([a - b for a, b in pairs if math.isfinite(a) and math.isfinite(b)])
    count = len(difference)
    if not (won or lost):
        return [f"{0:+.{digits}f}", "-", f"0 of {len(pairs)}", "equal"]
    mean = float(np.mean(difference)) if count else math.inf * (1 if won >= lost else -1)
    error = float(np.std(difference, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    said = "chance" if abs(mean) <= 2 * error else "better" if mean > 0 else "worse"
    return [f"{mean:+.{digits}f}", "-" if math.isinf(error) else f"{error:.{digits}f}", f"{won} of {len(pairs)}", said]


def table(head: Sequence[str], lines: Sequence[Sequence[Any]], kind: str) -> str:
    """Return a Markdown or LaTeX (booktabs) table."""
    if kind == "markdown":
        cells_of = [list(head), ["---"] * len(head), *lines]
        return "\n".join("| " + " | ".join(row) + " |" for row in cells_of)
    rows: list[str] = [
        " & ".join(cell.replace("_", r"\_").replace("%", r"\%") for cell in row) + r" \\" for row in (head, *lines)
    ]
    columns = "l" + "r" * (len(head) - 1)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


if __name__ == "__main__":
    run_script(compare, Settings(), __doc__)
