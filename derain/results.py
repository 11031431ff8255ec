"""What a test leaves behind: results.csv, results.json, a small table and, if asked for, a figure."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from derain import figure
from derain.settings import EvalSettings
from DerainDataset import Pair, rainy_file
from utils import InputError, read_rgb, write_atomically, write_json

METRICS = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")
FIGURE = "figure.png"
MOST_SHOWN = 50  # pictures of one figure: more would pass what PNG readers open


@dataclass(frozen=True)
class Place:
    """Where the results of one image go. name: the output's path within the results' folder, as tables have it."""

    name: str
    output: Path
    rain: Path | None = None


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


def places(
    save_path: Path, pairs: Sequence[Pair | Path], root: Path | None = None, show_rain: bool = False
) -> list[Place]:
    """Where each derained image goes: its input's name with .png, or NAME.jpg.png where two inputs differ in that only.

    root: the folder below which the inputs' subfolders are kept; None: all results lie in one folder.
    With show_rain the layers of rain have the same names in rain/, or rain_/ if inputs have a rain/.

    Raises InputError if an output would replace an input.
    """
    inputs = [rainy_file(pair) for pair in pairs]
    folders = [path.parent.relative_to(root) if root else Path() for path in inputs]
    stems = Counter((folder, path.stem.casefold()) for folder, path in zip(folders, inputs, strict=True))
    names = [
        folder / (path.stem + ".png" if stems[folder, path.stem.casefold()] == 1 else path.name + ".png")
        for folder, path in zip(folders, inputs, strict=True)
    ]
    rain = "rain"
    while any(name.parts[0].casefold() == rain for name in names):
        rain += "_"
    layers = [save_path / rain / name if show_rain else None for name in names]
    every = [p for pair in pairs for p in ((pair.rainy, pair.clean) if isinstance(pair, Pair) else (pair,))]
    refuse_replacing([save_path / name for name in names] + [layer for layer in layers if layer], every)
    return [Place(name.as_posix(), save_path / name, layer) for name, layer in zip(names, layers, strict=True)]


def refuse_replacing(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise InputError if an output would replace an input or another output."""
    taken = {_same_on_any_system(path) for path in inputs}
    for output in outputs:
        place = _same_on_any_system(output)
        if place in taken:
            raise InputError(f"{output}: would replace an input or another result; choose another --save_path")
        taken.add(place)


def _same_on_any_system(path: Path) -> str:
    """One text for all spellings of a path, also where capitals make no difference."""
    return os.path.realpath(path).casefold()  # Path.resolve fails on links that go in circles


def check_figure(
    settings: EvalSettings, save_path: Path, pairs: Sequence[Pair | Path], places: Sequence[Place]
) -> None:
    """Raise InputError for a figure that can't be drawn, before anything long begins."""
    if settings.crop is not None:
        if settings.figure is None:
            raise InputError("--crop: chooses the part of a figure that is enlarged; add --figure")
        if len(settings.crop) != 3 or min(settings.crop) < 0 or settings.crop[2] == 0:
            given = " ".join(map(str, settings.crop))
            raise InputError(
                f"--crop {given}: takes X Y SIZE: left and top from 0 up, and a width from 1 up, in pixels"
            )
    if settings.figure is None:
        return
    if len(settings.figure) > MOST_SHOWN:
        raise InputError(f"--figure: {len(settings.figure)} pictures; a figure takes {MOST_SHOWN} at most")
    for name in settings.figure:
        if not any(name in _names(pair, place) for pair, place in zip(pairs, places, strict=True)):
            raise InputError(
                f"--figure {name}: no such picture among the {len(pairs)}, such as {places[0].output.stem}"
            )
    drawn = _same_on_any_system(save_path / FIGURE)
    for pair, place in zip(pairs, places, strict=True):
        if settings.crop is not None and _names(pair, place) & set(settings.figure):
            _check_crop(settings.crop, rainy_file(pair))
        for path in (place.output, pair) if isinstance(pair, Path) else (place.output, pair.rainy, pair.clean):
            if _same_on_any_system(path) == drawn:
                raise InputError(f"{path}: has the name of --figure's own file; rename the picture")


def _check_crop(crop: tuple[int, ...], path: Path) -> None:
    """Raise InputError if a picture does not have these pixels; one that can't be read is refused in its turn."""
    try:
        image = read_rgb(path)
    except InputError:
        return
    try:
        figure.within(image, *crop)
    except ValueError as error:
        raise _outside(crop, error) from error


def _outside(crop: tuple[int, ...], error: ValueError) -> InputError:
    return InputError(f"--crop {' '.join(map(str, crop))}: {error}; choose a place within it")


def write_figure(
    settings: EvalSettings,
    save_path: Path,
    rows: Sequence[Mapping[str, Any]],
    pairs: Sequence[Pair | Path],
    places: Sequence[Place],
) -> bool:
    """Write figure.png to the results' folder, of the pictures that --figure names, or else of three.

    rows: the results so far, by `image`, the output's name in tables. The three are those of median, largest and
    smallest gain in psnr_y, or, without clean pictures, the first, the middle and the last. The derained images are
    read from the files: what is shown is what was saved. Returns whether there was something to draw.

    Raises InputError if --crop lies outside of a picture.
    """
    files = {place.name: (pair, place) for pair, place in zip(pairs, places, strict=True)}
    gains = {row["image"]: row["psnr_y"] - row["input_psnr_y"] for row in rows if "psnr_y" in row}
    done = [row["image"] for row in rows]
    roles: dict[str, str] = {}
    if settings.figure:
        named = [name for wanted in settings.figure for name in done if wanted in _names(*files[name])]
        done = list(dict.fromkeys(named))
    elif gains and len(done) > 2:
        ordered = sorted(done, key=lambda name: np.nan_to_num(gains[name]))  # nan: perfect before and after
        chosen = (ordered[(len(ordered) - 1) // 2], ordered[-1], ordered[0])
        roles = dict(zip(chosen, ("median gain: ", "largest gain: ", "smallest gain: "), strict=True))
        done = list(chosen)
    else:
        done = [done[i] for i in sorted({0, len(done) // 2, len(done) - 1})]
    shown = []
    for name in done:
        pair, place = files[name]
        gain = f", {gains[name]:+.2f} dB" if name in gains else ""
        rainy, clean = (pair, None) if isinstance(pair, Path) else (pair.rainy, pair.clean)
        title = roles.get(name, "") + name + gain
        shown.append(figure.Row(title, read_rgb(rainy), read_rgb(place.output), clean and read_rgb(clean)))
    if not shown:
        return False  # all that were wanted were refused, with a line each
    try:
        drawn = figure.montage(shown, settings.crop)
    except ValueError as error:
        raise _outside(settings.crop, error) from error
    figure.save(save_path / FIGURE, drawn)
    return True


def _names(pair: Pair | Path, place: Place) -> set[str]:
    """What --figure may call a picture: its file's name or that of the derained one, with or without its ending.

    Those in subfolders also have the name that the table has.
    """
    rainy = rainy_file(pair)
    return {rainy.name, rainy.stem, place.output.name, place.output.stem, place.name}
