"""Score the images of any methods against a test set, and compare the methods image by image.

    python -m derain.score --set Rain100L PReNet=outputs/prenet ours=results/Rain100L
    python -m derain.score --set Rain100H,Rain100L,Rain12 PReNet=outputs/prenet ours=results --format latex
    python -m derain.score --clean_dir my/gt --rainy_dir my/in mine=my/out

Images are matched by the numbers in their names. With several sets, each method's folder has a subfolder named after
each. Differences are from the first method; read them together with their standard errors, because images differ so
much that 0.05 dB between two methods is mostly chance.
"""

import dataclasses
import itertools
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from derain import figure, page
from derain.cli import check_folder, run_script, setting
from derain.images import read_rgb
from derain.names import match_names
from derain.pairs import Pair, find_pairs, list_images
from derain.score_tables import FORMATS, INPUT, Row, Scored, Target, tables
from derain.scores import PROTOCOLS, score
from derain.sets import TEST_SETS, identify_pairs
from derain.synthesize import synthetic_label
from utils import InputError


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    methods: tuple[str, ...] = setting((), "folders of derained images, each as NAME=FOLDER", positional=True)
    set: str | None = setting(
        None, "Rain100H, Rain100L, Rain12 (in datasets/test), or several with commas; or a folder of pairs"
    )
    clean_dir: Path | None = setting(None, "instead of --set: the folder of clean images")
    rainy_dir: Path | None = setting(None, "with --clean_dir: the folder of rainy images, for the scores of the input")
    protocol: str = setting("prenet", "how papers score; see derain/scores.py", (*PROTOCOLS, "all"))
    partial: bool = setting(False, "score methods that lack some images too, on those that all methods have")
    figure: tuple[str, ...] | None = setting(
        None, "draw the methods side by side: images by name, or without names those where the methods differ most"
    )
    crop: tuple[int, ...] | None = setting(None, "X Y SIZE: left, top, width (pixels) of the enlarged crop")
    errors: bool = setting(False, "in the figure, show under each crop how it differs from the clean image")
    page: bool = setting(False, "write index.html, every image with a slider between any two methods")
    out: Path = setting(Path("results/methods"), "folder for figure and page; with several sets, one below it for each")
    format: str = setting("markdown", "of the tables; csv and json have every image", tuple(FORMATS))


def score_methods(settings: Settings) -> None:
    """Match, measure, and print the tables."""
    if settings.figure is not None and settings.clean_dir and not settings.rainy_dir:
        raise InputError("--figure: shows the rainy images too; add --rainy_dir")
    if settings.errors and settings.figure is None:
        raise InputError("--errors: is a part of the figure; add --figure")
    if settings.page or settings.figure is not None:
        check_folder(settings.out, "--out")
    targets = find_targets(settings)
    for target in targets:
        shown = [pair.rainy.name for pair in target.pairs]
        figure.check_figure(settings.figure, settings.crop, shown)
    methods = [named_folder(text) for text in settings.methods]
    names = [name for name, _ in methods]
    if taken := {INPUT, "rainy", "clean"} & set(names):
        raise InputError(f"{taken.pop()}: is the name of a column; give the method another one, as NAME=FOLDER")
    if len(set(names)) < len(names):
        raise InputError(f"{', '.join(names)}: two methods of one name; name them NAME=FOLDER")
    protocols = list(PROTOCOLS) if settings.protocol == "all" else [settings.protocol]
    results = []
    for target in targets:
        outputs: dict[str, dict[str, Path]] = {}
        for name, folder in methods:
            found, sentence = match(target, folder if len(targets) == 1 else subfolder(folder, target.folder))
            say(f"{name}: {sentence}")
            missing = [pair.rainy.name for pair in target.pairs if pair.rainy.name not in found]
            if missing and not settings.partial:
                say(f"{name}: left out of {target.label}: no image for {listed(missing)}; --partial scores the others")
            elif found:
                outputs[name] = found
        if not outputs:
            raise InputError(f"{target.label}: no method has all images; --partial scores those that are there")
        results.append((target, measure(target, outputs, protocols)))
    print(FORMATS[settings.format](results, protocols, names))
    for target, scored in results:
        folder = settings.out if len(results) == 1 else settings.out / target.folder
        if settings.figure is not None:
            rows = figure_rows(target, scored, protocols[0], settings.figure)
            for name in ("figure.png", "figure.pdf"):
                figure.write_figure(folder / name, rows, settings.crop, settings.errors)
                say(f"{folder / name}: drawn")
        if settings.page:
            write_page(folder, target, scored, protocols[0])
            say(f"{folder / 'index.html'}: written")


def say(line: str) -> None:
    """Print what is not part of the tables."""
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- what is scored


def named_folder(text: str) -> tuple[str, Path]:
    """Return name and folder of NAME=FOLDER or of FOLDER; an existing folder may have = in its own name."""
    name, equals, folder = text.partition("=")
    path = Path(folder) if equals and not Path(text).exists() else Path(text)
    if equals and path != Path(text) and not (name.strip() and folder.strip()):
        raise InputError(f"{text!r}: name each method's images as NAME=FOLDER")
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; name each method's images as NAME=FOLDER")
    return (name, path) if path != Path(text) else (path.resolve().name, path)


def subfolder(folder: Path, name: str) -> Path:
    """Return a method's folder for one of several sets."""
    if not (folder / name).is_dir():
        raise InputError(f"{folder}: has no folder {name}; with several sets each has a folder of its name there")
    return folder / name


def find_targets(settings: Settings) -> list[Target]:
    """Return the sets to score against. Raises InputError if the settings name none, or one that is not there."""
    if (settings.set is None) == (settings.clean_dir is None):
        raise InputError("give either --set or --clean_dir: the images to score against")
    if settings.rainy_dir and not settings.clean_dir:
        raise InputError(f"--rainy_dir {settings.rainy_dir}: goes with --clean_dir, not with --set")
    if settings.clean_dir:
        if settings.rainy_dir:
            pairs = find_pairs(settings.rainy_dir, say, settings.clean_dir)
        else:
            pairs = [Pair(path, path) for path in list_images(settings.clean_dir)]
        return [Target(settings.clean_dir.resolve().name, "", pairs)]
    targets: list[Target] = []
    for name in str(settings.set).split(","):
        folder = Path("datasets/test") / name if name in TEST_SETS else Path(name)
        pairs = find_pairs(folder, say)
        label = synthetic_label(pairs[0].rainy.parent) or identify_pairs(pairs).label
        if label.endswith("of no known set"):
            label = folder.resolve().name
        if any(target.folder == folder.resolve().name for target in targets):
            raise InputError(f"{folder}: two sets in folders of one name; score them in two calls")
        targets.append(Target(label, folder.resolve().name, pairs, TEST_SETS.get(label)))
    return targets


def match(target: Target, folder: Path) -> tuple[dict[str, Path], str]:
    """Return a method's image of each rainy image's name, and a sentence that says how they were matched.

    Raises InputError if two images fit one place.
    """
    images = list_images(folder)
    found: dict[str, Path] = {}
    for path, rainy in match_names(images, [pair.rainy for pair in target.pairs]).items():
        other = found.setdefault(rainy.name, path)
        if other is not path:
            raise InputError(f"{other} and {path}: two images for one place of {target.label}; remove one")
    if not found:
        example = target.pairs[0].rainy.name
        return {}, f"no image of {folder} has a name like those of {target.label}, such as {example}"
    name, path = next(iter(found.items()))
    others = f"; {len(images) - len(found)} others left out" if len(images) > len(found) else ""
    return found, f"{len(found)} images of {folder} matched, such as {path.name} to {name}{others}"


# ---------------------------------------------------------------- measuring


def measure(target: Target, outputs: dict[str, dict[str, Path]], protocols: Sequence[str]) -> list[Scored]:
    """Score the images that all methods have; the rainy input comes first, if it is known.

    Raises InputError if an output differs in size from its clean image.
    """
    pairs = [pair for pair in target.pairs if all(pair.rainy.name in found for found in outputs.values())]
    if not pairs:
        raise InputError(f"{target.label}: no image that all methods have")
    if pairs[0].rainy != pairs[0].clean:
        outputs = {INPUT: {pair.rainy.name: pair.rainy for pair in pairs}, **outputs}
    scored = {name: Scored(name, {}, found) for name, found in outputs.items()}

    def scores_of(pair: Pair) -> dict[str, Row]:
        clean = read_rgb(pair.clean)
        rows = {}
        for name, found in outputs.items():
            image = read_rgb(found[pair.rainy.name])
            if image.shape != clean.shape:
                sizes = " and ".join(f"{i.shape[1]}x{i.shape[0]}" for i in (image, clean))
                raise InputError(
                    f"{found[pair.rainy.name]} and {pair.clean} differ in size ({sizes}); score outputs of cropped copies "
                    "against the copies' clean images (--clean_dir)"
                )
            try:
                rows[name] = {protocol: score(image, clean, protocol) for protocol in protocols}
            except ValueError as error:
                raise InputError(f"{found[pair.rainy.name]}: {error}") from error
        return rows

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, (pair, rows) in enumerate(zip(pairs, pool.map(scores_of, pairs), strict=True), 1):
            for name, row in rows.items():
                scored[name].rows[pair.rainy.name] = row
            if i % 50 == 0 or i == len(pairs):
                say(f"{target.label}: {i}/{len(pairs)}")
    return list(scored.values())


def listed(names: Sequence[str]) -> str:
    """Return up to eight names, and how many there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} others" if len(names) > 8 else "")


# ---------------------------------------------------------------- figure and page


def figure_rows(
    target: Target, scored: list[Scored], protocol: str, names: Sequence[str]
) -> list[figure.Row]:
    """Return the rows of a figure: the images in `names`, or those of largest, median and smallest gain.

    The gain is that of the last method over the first, or over the rainy input.
    """
    methods = [method for method in scored if method.name != INPUT]
    first, last = scored[min(1, len(methods) - 1)], methods[-1]
    pairs = {pair.rainy.name: pair for pair in target.pairs if pair.rainy.name in last.rows}
    gains = {
        name: last.rows[pair.rainy.name][protocol][0] - first.rows[pair.rainy.name][protocol][0]
        for name, pair in pairs.items()
    }
    rows = []
    for name in figure.choose_images(list(pairs), names, gains):
        pair = pairs[name]
        images = {method.name: read_rgb(method.files[pair.rainy.name]) for method in methods}
        title = f"{name}, {gains[name]:+.2f} dB"
        rows.append(figure.Row(title, {"rainy": read_rgb(pair.rainy), **images}, read_rgb(pair.clean)))
    return rows


def write_page(folder: Path, target: Target, scored: list[Scored], protocol: str) -> None:
    """Write index.html: scores under one protocol, and every image in the versions of all methods."""
    methods = [method for method in scored if method.name != INPUT]
    pairs = [pair for pair in target.pairs if pair.rainy.name in scored[0].rows]
    rainy = scored[0].name == INPUT
    items = []
    for pair in pairs:
        name = pair.rainy.name
        files = {"rainy": pair.rainy} if rainy else {}
        files |= {method.name: method.files[name] for method in methods}
        rows = {"rainy" if m.name == INPUT else m.name: m.rows[name][protocol] for m in scored}
        items.append(page.Item(name, files | {"clean": pair.clean}, rows))
    table = tables([(target, scored)], [protocol], [method.name for method in methods], "markdown")
    compared = ["rainy" if rainy else "clean", *(method.name for method in methods)][:3][-2:]
    page.write_page(folder, target.label, f"{len(pairs)} images.", table, items, *compared)


if __name__ == "__main__":
    run_script(score_methods, Settings(), __doc__)
