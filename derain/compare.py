"""Compare what test scripts left in their results folders, image by image, beside published figures.

    python -m derain.compare results/Rain100L results/authors_Rain100L
    python -m derain.compare ours=results/Rain100L authors=results/authors_Rain100L --format latex

The first folder is what the others are compared with. A mean difference is worth as much as its
standard error lets it be: images differ so much that 0.05 dB between two methods over a hundred of
them is mostly chance.
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
from derain.results import METRICS, cells, means
from utils import InputError

# Y channel, PReNet protocol, trained on the strict 1,254 of RainTrainH or the 200 of RainTrainL. Published with PReNet
# (CVPR 2019) and BRN (ICASSP, TIP); DARGNet measured from the images that its authors released.
PUBLISHED = {
    "Rain100H": {
        "GMM": (15.05, 0.425),
        "DDN": (21.92, 0.764),
        "SIRR": (22.47, 0.716),
        "JORDER": (26.54, 0.835),
        "PRN": (28.07, 0.884),
        "PReNet_r": (28.98, 0.892),
        "PReNet": (29.46, 0.899),
        "BRN (ICASSP)": (29.58, 0.902),
        "DARGNet, released images": (29.811, 0.9052),
        "BRN (TIP)": (30.47, 0.913),
    },
    "Rain100L": {
        "GMM": (28.66, 0.865),
        "DDN": (32.16, 0.936),
        "SIRR": (32.37, 0.926),
        "JORDER": (36.61, 0.974),
        "PRN": (36.99, 0.977),
        "PReNet_r": (37.10, 0.977),
        "PReNet": (37.48, 0.979),
        "DARGNet, released images": (37.714, 0.9805),
        "BRN (ICASSP)": (37.82, 0.981),
        "BRN (TIP)": (38.16, 0.982),
    },
    "Rain12": {
        "SIRR": (34.02, 0.935),
        "DDN": (31.78, 0.900),
        "GMM": (32.02, 0.855),
        "JORDER": (33.92, 0.953),
        "PRN": (36.62, 0.952),
        "PReNet": (36.66, 0.961),
        "PReNet_r": (36.69, 0.962),
        "BRN (ICASSP)": (36.70, 0.959),
        "BRN (TIP)": (36.74, 0.959),
        "DARGNet, released images": (36.822, 0.9618),
    },
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    results: tuple[str, ...] = setting(
        (),
        "folders that test scripts wrote, one or more, each perhaps with its name in the tables: NAME=FOLDER",
        positional=True,
    )
    format: str = setting("markdown", "of the tables", ("markdown", "latex"))


@dataclasses.dataclass(frozen=True)
class Run:
    """One results folder: its name, its data set, its protocol, and a row of figures for each image."""

    name: str
    data_set: str
    protocol: str
    rows: dict[str, dict[str, float]]


def read_run(folder: Path) -> Run:
    """Raises InputError for a folder without results, or with results that were not measured."""
    try:
        summary = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        with open(folder / "results.csv", encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        protocol = summary["protocol"]
        data_set = summary["data_set"]["name"]
        columns = [*METRICS, *(f"input_{metric}" for metric in METRICS)] if protocol else []
        rows = {line["image"]: {column: float(line[column]) for column in columns} for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: no results of a test script ({error}); run one with --save_path {folder}"
        ) from error
    if not protocol:
        raise InputError(f"{folder}: has no figures: its pictures have no clean images to measure against")
    return Run(folder.name, data_set, protocol, rows)


def named_folder(text: str) -> tuple[str | None, Path]:
    """The name, if one is given, and the folder of NAME=FOLDER; a folder that is there may have = in its own name."""
    name, equals, folder = text.partition("=")
    return (name, Path(folder)) if equals and not Path(text).exists() else (None, Path(text))


def compare(settings: Settings) -> None:
    """Print the table of means and the table of differences."""
    named = [named_folder(text) for text in settings.results]
    folders = [folder for _, folder in named]
    runs = [read_run(folder) for folder in folders]
    first = runs[0]
    for folder, run in zip(folders, runs, strict=True):
        if run.protocol != first.protocol:
            raise InputError(f"{folder}: measured under another protocol than {folders[0]}; test it anew")
        if run.data_set != first.data_set or run.rows.keys() != first.rows.keys():
            raise InputError(
                f"{folder}: {len(run.rows)} images of {run.data_set}, but {folders[0]} has {len(first.rows)} "
                f"of {first.data_set}; only results on the same images compare"
            )
    names = [run.name for run in runs]
    if len(set(names)) < len(names):  # results/a/Rain100L and results/b/Rain100L
        names = [str(folder) for folder in folders]
    names = [given or name for (given, _), name in zip(named, names, strict=True)]

    lines = [["rainy input", *cells(means(list(first.rows.values()), "input_"))]]
    lines += [[name, *cells(means(list(run.rows.values())))] for name, run in zip(names, runs, strict=True)]
    for name, (psnr, ssim) in PUBLISHED.get(first.data_set, {}).items():
        lines.append([f"{name} (published)", f"{psnr:.2f}", f"{ssim:.3f}", "-", "-"])
    remark = "% " if settings.format == "latex" else ""
    print(f"{remark}{first.data_set}, {len(first.rows)} images. {first.protocol}\n")
    print(table(["", "PSNR_Y", "SSIM_Y", "PSNR_RGB", "SSIM_RGB"], lines, settings.format))

    lines = []
    for name, run in zip(names[1:], runs[1:], strict=True):
        for metric, digits in (("psnr_y", 3), ("ssim_y", 5)):
            difference = np.array([run.rows[image][metric] - first.rows[image][metric] for image in first.rows])
            lines.append([name, metric.upper(), *verdict(difference, digits)])
    if lines:
        print(f"\n{remark}Mean difference from {names[0]}, image by image, and the standard error of that mean\n")
        print(table(["", "", "difference", "standard error", "images won", "verdict"], lines, settings.format))


def verdict(difference: np.ndarray, digits: int) -> list[str]:
    """Mean, its standard error, how many images are better, and whether that is more than chance: two errors."""
    mean, count = float(np.mean(difference)), len(difference)
    error = float(np.std(difference, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    said = "chance" if abs(mean) <= 2 * error else "better" if mean > 0 else "worse"
    won = f"{int((difference > 0).sum())} of {count}"
    return [f"{mean:+.{digits}f}", "-" if math.isinf(error) else f"{error:.{digits}f}", won, said]


def table(head: Sequence[str], lines: Sequence[Sequence[Any]], kind: str) -> str:
    """A Markdown or LaTeX (booktabs) table."""
    if kind == "markdown":
        rows = [list(head), ["---"] * len(head), *lines]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)
    rows = [" & ".join(cell.replace("_", r"\_").replace("%", r"\%") for cell in row) + r" \\" for row in (head, *lines)]
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
    run_script(compare, Settings, __doc__)
