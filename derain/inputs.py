"""Which images a test takes, and what it may call them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from derain.data.identify import identify_pairs
from derain.data.pairs import Pair, find_rainy, folders_below, list_images, rainy_file
from derain.data.synthesize import stand_in, synthetic_label
from derain.test_sets import TestSet
from derain.video import VIDEO_SUFFIXES
from utils import IMAGE_SUFFIXES, InputError


def default_data(test_set: TestSet | None) -> Path:
    """Return the data set's usual folder, or a synthetic stand-in, with a line that says so, if it is missing."""
    name, rain = (test_set.name, test_set.rain) if test_set else ("real", "heavy")
    folder = Path("datasets/test") / name
    if folder.is_dir():
        return folder
    print(
        f"{folder} is missing (see datasets/README.md for where to get it): using a stand-in of synthetic {rain} rain, "
        f"whose scores are not those of {name}",
        flush=True,
    )
    return stand_in(rain)


def label_of(test_set: TestSet, data_path: Path, pairs: Sequence[Pair]) -> tuple[str, int]:
    """Return what tables call the pairs, and how many have exactly the test set's pixels.

    The label is the set's own name only if all its pairs are there, with its pixels, under its numbers.
    """
    synthetic = synthetic_label(rainy_file(pairs[0]).parent)
    if synthetic:
        return f"{synthetic}, not {test_set.name}", 0
    found = identify_pairs(pairs)
    if found.name == test_set.name:
        return found.label, found.exact
    return f"{data_path.resolve().name} ({found.label}), not {test_set.name}", 0


def find_images(data_path: Path, save_path: Path, recursive: bool) -> list[Path]:
    """Return the rainy images at a path: a file, those of a folder, with `recursive` also of its subfolders.

    What else is there is counted in a line. save_path: results, which are not taken for inputs.
    Raises InputError if there is no image.
    """
    if not data_path.is_dir():
        return find_rainy(data_path)
    folders = folders_below(data_path, leave_out=save_path) if recursive else [data_path]
    images = [image for folder in folders for image in list_images(folder)]
    found = images if recursive and images else None
    if found is None:
        try:
            found = find_rainy(data_path)
        except InputError as error:
            inside = [p for p in data_path.iterdir() if p.is_dir()]
            if images or not inside:
                raise
            raise InputError(f"{data_path}: holds no image, but {len(inside)} folders; add --recursive") from error
    if set(found) <= set(images):  # otherwise it is a data set, and its rainy images are in a subfolder
        others = [p for folder in folders for p in folder.iterdir() if p.name[0] != "." and p not in set(images)]
        kinds = Counter(_kind(p, recursive) for p in others if p.resolve() != save_path.resolve())
        kinds.pop("", None)
        if kinds:
            listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            print(f"{data_path}: left out: {listed}", flush=True)
    return found


def _kind(path: Path, recursive: bool) -> str:
    """Say why a path is left out; '' for a subfolder that is not."""
    if path.is_dir():
        return "" if recursive else "subfolders (--recursive takes them)"
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "videos (--data_path takes one at a time)"
    return "" if path.suffix.lower() in IMAGE_SUFFIXES else f"{path.suffix.lower() or 'other'} files"
