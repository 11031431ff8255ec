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
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from derain.cli import run_script, setting
from derain.results import METRICS, cells, identical, means
from derain.test_sets import DARGNET, PUBLISHED, TEST_SETS
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
        raise InputError(
            f"{folder}: holds no results of a test script ({error}); name a folder that one wrote to"
        ) from error
    if not protocol:
        raise InputError(f"{folder}: has no scores: its images have no clean ones to measure against; name another")
    return Run(folder.name, data_set, protocol, rows, pixels)


def named_folder(text: str) -> tuple[str | None, Path]:
    """Return name, if one is given, and folder of NAME=FOLDER; an existing folder may have = in its own name."""
    name, equals, folder = text.partition("=")
    return (name, Path(folder)) if equals and not Path(text).exists() else (None, Path(text))


def same_images(folders: Sequence[Path], runs: Sequence[Run], remark: str = "") -> list[str]:
    """Return the names of the images that all runs measured with the same pixels; print the names of the others.

    remark: what begins a printed line, so that LaTeX skips it.

    Raises InputError, naming the folder, if protocols differ, or if a run shares no image with the runs before it.
    Without pixel hashes, names stand for images within one data set, and a line says that they are not checked.
    """
    first, shared = runs[0], list(runs[0].rows)
    hashed = [any(map(any, run.pixels.values())) for run in runs]
    for folder, run, known in zip(folders, runs, hashed, strict=True):
        if run.protocol != first.protocol:
            raise InputError(f"{folder}: measured under another protocol than {folders[0]}; compare it with its like")
        checked = known and hashed[0]
        if not checked and run.data_set != first.data_set:
            raise InputError(
                f"{folder}: has {run.data_set}, but {folders[0]} {first.data_set}; compare the same images"
            )
        if not known:
            print(
                f"{remark}{folder}: has no pixel hashes (an older test), so nothing shows that its images are the same"
            )
        shared = [i for i in shared if i in run.rows and (not checked or run.pixels[i] == first.pixels[i])]
        if not shared:
            raise InputError(
                f"{folder}: has no image with the same name and pixels as {folders[0]}; nothing to compare"
            )
    for folder, run in zip(folders, runs, strict=True):
        if left_out := sorted(set(run.rows) - set(shared)):
            print(f"{remark}{folder}: left out, not the same image in all: {', '.join(left_out)}")
    return shared


def compare(settings: Settings) -> None:
    """Print the table of means and the table of differences."""
    named = [named_folder(text) for text in settings.results]
    folders = [folder for _, folder in named]
    runs = [read_run(folder) for folder in folders]
    remark = "% " if settings.format == "latex" else ""
    images, first = same_images(folders, runs, remark), runs[0]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):  # results/a/Rain100L and results/b/Rain100L
        names = [str(folder) for folder in folders]
    names = [given or name for (given, _), name in zip(named, names, strict=True)]

    print(f"{remark}{first.data_set}, {len(images)} images. {first.protocol}\n")
    rows = [[run.rows[image] for image in images] for run in runs]
    lines = [["rainy input", *cells(means(rows[0], "input_"))]]
    lines += [[name, *cells(means(run))] for name, run in zip(names, rows, strict=True)]
    if first.data_set in TEST_SETS and len(images) == TEST_SETS[first.data_set].pairs:  # the whole set
        lines += published(first.data_set)
    print(table(["", "PSNR_Y", "SSIM_Y", "PSNR_RGB", "SSIM_RGB"], lines, settings.format))
    for name, run in zip(names, rows, strict=True):
        if count := identical(run):
            rest = "; PSNR is the mean over the others" if count < len(run) else ""
            print(f"{remark}{name}: {count} of {len(run)} images are identical to the clean ones{rest}")

    lines = []
    for name, run in zip(names[1:], rows[1:], strict=True):
        for metric, digits in (("psnr_y", 3), ("ssim_y", 5)):
            scores, others = ([row[metric] for row in of] for of in (run, rows[0]))
            lines.append([name, metric.upper(), *verdict(scores, others, digits)])
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
    """Return the mean difference, its standard error, how many images are better, and what that amounts to.

    'better' and 'worse' are beyond two standard errors, 'chance' is within, '-' has no standard error. Images of
    which one output is identical to the clean image differ infinitely: they count as won or lost, not in the mean.
    """
    pairs = list(zip(scores, others, strict=True))
    won = f"{sum(a > b for a, b in pairs)} of {len(pairs)}"
    if all(a == b for a, b in pairs):
        return [f"{0:+.{digits}f}", "-", won, "equal"]
    difference = np.array([a - b for a, b in pairs if math.isfinite(a) and math.isfinite(b)])
    if len(difference) < 2:
        return [f"{difference[0]:+.{digits}f}" if len(difference) else "-", "-", won, "-"]
    mean, error = float(difference.mean()), float(difference.std(ddof=1)) / math.sqrt(len(difference))
    said = "chance" if abs(mean) <= 2 * error else "better" if mean > 0 else "worse"
    return [f"{mean:+.{digits}f}", f"{error:.{digits}f}", won, said]


def table(head: Sequence[str], lines: Sequence[Sequence[str]], kind: str) -> str:
    """Return a Markdown or LaTeX (booktabs) table."""
    if kind == "markdown":
        return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))
    first, *rest = (
        " & ".join(re.sub(r"([_%&#$])", r"\\\1", cell) for cell in line) + r" \\" for line in (head, *lines)
    )
    columns = "l" + "r" * (len(head) - 1)
    begin, end = rf"\begin{{tabular}}{{{columns}}}", r"\end{tabular}"
    return "\n".join([begin, r"\toprule", first, r"\midrule", *rest, r"\bottomrule", end])


if __name__ == "__main__":
    run_script(compare, Settings(), __doc__)
