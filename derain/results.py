"""What a test leaves behind: results.csv, results.json, a table; and where its images go."""

import csv
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from derain.images import DecodedImage, read_image
from derain.pairs import Pair, rainy_file
from derain.sets import TestSet
from utils import InputError, write_atomically, write_json

METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")
Row = Mapping[str, Any]
Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class OutputPaths:
    """Where the results of one image go. name: the output's path within the results' folder, as tables show it."""

    name: str
    output: Path
    rain: Path | None = None


def means(rows: Sequence[Row], prefix: str = "") -> dict[str, float]:
    """Return the mean of each metric over per-image rows; prefix 'input_' takes those of the rainy images.

    An image equal to its clean one has infinite PSNR and is left out of PSNR's mean, unless all are.
    """
    found = {}
    for metric in METRICS:
        values = [row[prefix + metric] for row in rows]
        finite = [value for value in values if math.isfinite(value)]
        found[metric] = float(np.mean(finite or values))
    return found


def identical(rows: Sequence[Row]) -> int:
    """Return how many images are equal to their clean ones."""
    return sum(math.isinf(row["psnr_y"]) for row in rows)


def write_results(folder: Path, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
    """Write results.csv, a line per image, and results.json, the summary, each atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "results.csv", text.getvalue())
    write_json(folder / "results.json", summary)


def cells(scores: Scores) -> list[str]:
    """Return scores as text, in the order of METRICS; an unknown one is a dash."""
    texts = []
    for metric in METRICS:
        value, digits = scores.get(metric), 3 if metric.startswith("psnr") else 4
        texts.append("-" if value is None else f"{value:.{digits}f}")
    return texts


def table(title: str, lines: Sequence[tuple[str, Scores]]) -> str:
    """Return a table for the terminal: a title, then a line of scores per name."""
    width = max(len(name) for name, _ in lines)
    text = [title, " " * width + "".join(f"{metric.upper():>10}" for metric in METRICS)]
    for name, scores in lines:
        text.append(f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells(scores)))
    return "\n".join(text)


def summary_lines(
    test_set: TestSet, label: str, rows: Sequence[Row], numbers: Sequence[int | None]
) -> list[tuple[str, Scores]]:
    """Return the lines of the table: rainy input, this run, its images with unseen backgrounds, the authors' images.

    numbers: the image number of each row. Images that are not the test set's carry their label in every line,
    and are not compared with the set's scores.
    """
    suffix = "" if label == test_set.name else f" ({label})"
    lines: list[tuple[str, Scores]] = [
        (f"rainy input{suffix}", means(rows, "input_")),
        (f"this run{suffix}", means(rows)),
    ]
    if suffix:
        return lines
    unseen = [row for row, number in zip(rows, numbers, strict=True) if number in test_set.unseen]
    if unseen:
        lines.append((f"this run, {len(unseen)} images RainTrainL lacks", means(unseen)))
    if test_set.reference:
        lines.append(("authors' released images", dict(zip(METRICS, test_set.reference, strict=False))))
    return lines


class MadeWith:
    """made_with.json of a results folder: the weights, network and settings that its images were derained with.

    content: those. Of the network it has what inference.answer_of gives, so that images of one that was edited since
    are not kept.

    It is written before the first image, and only when it changes, so any newer output was made with these settings.
    Raises InputError if the folder has files but neither this one nor results.json: they are not ours.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        self.path = folder / "made_with.json"
        others = [p for p in folder.iterdir() if p.name[0] != "."] if folder.is_dir() else []
        if others and not (self.path.exists() or (folder / "results.json").exists()):
            held = f"holds files that are not results, such as {min(others).name}"
            raise InputError(f"{folder}: {held}; choose another --save_path")
        try:
            same = json.loads(self.path.read_text(encoding="utf-8")) == content
        except (OSError, ValueError):
            same = False
        if not same:
            write_json(self.path, content)

    def existing(self, output: Path, source: Path, image: DecodedImage) -> np.ndarray | None:
        """Return the derained image that an earlier run left, if this run would make the same of the image."""
        try:
            made = output.stat().st_mtime_ns
            times = (self.path.stat().st_mtime_ns, source.stat().st_mtime_ns, source.stat().st_ctime_ns)
            if made < max(times):
                return None
            rgb = read_image(output).rgb
        except (OSError, InputError):
            return None
        return rgb if rgb.shape == image.rgb.shape and rgb.dtype == image.rgb.dtype else None


# ---------------------------------------------------------------- where results go


def output_paths(
    save_path: Path, inputs: Sequence[Pair | Path], root: Path | None, show_rain: bool, ending: str
) -> list[OutputPaths]:
    """Return where each derained image goes: its input's name with `ending`, or NAME.jpg.png if only suffixes differ.

    root: the folder below which the inputs' subfolders are kept; None: all results lie in one folder.
    With show_rain the removed rain has the same name in rain/, or rain_/ if the inputs have a folder rain/.

    Raises InputError if an output would replace an input.
    """
    rainy = [rainy_file(item) for item in inputs]
    folders = [path.parent.relative_to(root) if root else Path() for path in rainy]
    stems = Counter((folder, path.stem.casefold()) for folder, path in zip(folders, rainy, strict=True))
    names = [
        folder / ((path.stem if stems[folder, path.stem.casefold()] == 1 else path.name) + ending)
        for folder, path in zip(folders, rainy, strict=True)
    ]
    refuse_same_names(rainy, names, "derain them in two calls")
    rain = "rain"
    while any(name.parts[0].casefold() == rain for name in names):
        rain += "_"
    removed = [save_path / rain / name if show_rain else None for name in names]
    clean = [item.clean for item in inputs if isinstance(item, Pair)]
    refuse_replacing([*(save_path / name for name in names), *filter(None, removed)], [*rainy, *clean])
    return [OutputPaths(name.as_posix(), save_path / name, r) for name, r in zip(names, removed, strict=True)]


def refuse_same_names(paths: Sequence[Path], names: Iterable[Path | str], fix: str) -> None:
    """Raise InputError if two paths would have one name, also where capitals make no difference."""
    first: dict[str, Path] = {}
    for path, name in zip(paths, names, strict=True):
        if (other := first.setdefault(str(name).casefold(), path)) is not path:
            raise InputError(f"{other} and {path}: would both become {name}; {fix}")


def refuse_replacing(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise InputError if an output would replace an input or another output."""
    taken = {_same_on_any_system(path) for path in inputs}
    for output in outputs:
        place = _same_on_any_system(output)
        if place in taken:
            raise InputError(f"{output}: would replace an input or another result; choose another --save_path")
        taken.add(place)


def _same_on_any_system(path: Path) -> str:
    """Return one text for all spellings of a path, also where capitals make no difference."""
    return os.path.realpath(path).casefold()  # Path.resolve fails on links that go in circles
