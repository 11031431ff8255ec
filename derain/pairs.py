"""Find the rainy and clean images of a data set, and pair them.

pairs = find_pairs(Path("datasets/test/Rain100L"))
rainy, clean = read_pair(pairs[0])
"""

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from derain.images import SUFFIXES, read_rgb
from utils import InputError, note

RAINY_FOLDERS = ("rainy", "rain", "input", "lq", "in", "data", "rainy_image", "rain_x2", "rainy_x2")
CLEAN_FOLDERS = ("clean", "groundtruth", "ground_truth", "gt", "norain", "target", "label")
RAINY_WORD = re.compile(r"(?<![a-z])rainy?(?![a-z])", re.I)  # in rain-1 and 1_rain, not rainbow-1
CLEAN_WORD = re.compile(r"(?<![a-z])(no[-_ ]?rain|clean|gt)(?![a-z])", re.I)
FIX = "rename folders as in datasets/README.md, Layouts, or name the clean one by --clean_dir"
RAIN100_BACKGROUNDS = {0, 9, *range(99, 188)}  # of Rain100H and Rain100L, among BSD300's images


@dataclass(frozen=True)
class Pair:
    """A rainy image file and the clean one of the same scene, if there is one."""

    rainy: Path
    clean: Path | None = None

    @property
    def number(self) -> int | None:
        """The number in the rainy image's name, if there is just one."""
        numbers = re.findall("[0-9]+", self.rainy.stem)
        return int(numbers[0]) if len(numbers) == 1 else None


def list_images(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, without hidden ones; 10.png follows 9.png."""
    if not folder.is_dir():
        problem = "is a file; name its folder" if folder.exists() else "no such file or folder"
        raise InputError(f"{folder}: {problem}; see datasets/README.md")
    files = [path for path in folder.iterdir() if path.name[0] != "."]
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    return sorted(images, key=lambda path: re.sub("[0-9]+", lambda n: n[0].zfill(30), path.name))


def find_pairs(folder: Path, clean_dir: Path | None = None) -> list[Pair]:
    """Pair the rainy and clean images of the set in a folder, or in one of its subfolders.

    Several rainy images may share a clean one. clean_dir: the folder of the clean images; `folder`
    then has the rainy ones. Prints a line if images are left out or shared.

    Raises InputError if there is no set, or several, or if an image has no partner.
    """
    found = [(list_images(folder), list_images(clean_dir))] if clean_dir else _find_sets(folder)
    if not found:
        for child in sorted(filter(Path.is_dir, folder.iterdir())):
            found += _find_sets(child)
    if not found:
        raise InputError(f"{folder}: no rainy and clean images in a known layout; {FIX}")
    (rainy, clean), *more = found
    if not rainy or not clean or rainy[0].absolute() == clean[0].absolute():
        raise InputError(f"{folder}, --clean_dir {clean_dir}: must be two folders of images")
    for other_rainy, other_clean in more:
        choices = f"{rainy[0]} with {clean[0]} or {other_rainy[0]} with {other_clean[0]}"
        raise InputError(f"{folder}: could mean {choices}; remove copies, or {FIX}")

    partners = match_names(rainy, clean)
    paired = {*partners, *partners.values()}
    for path in (*rainy, *clean):
        if path not in paired:
            count = f"{len(partners)} of {len(rainy)} rainy images have one"
            raise InputError(f"{path}: has no partner ({count}); add it, or remove {path.name}")
    others = set(list_images(rainy[0].parent) + list_images(folder)) - paired
    if others:
        note(f"{folder}: {len(rainy)} pairs; left out {len(others)} images such as {min(others)}")
    shown = len(set(partners.values()))
    if shown < len(rainy):
        note(f"{folder}: {len(rainy)} rainy images show {shown} clean ones")
    return [Pair(path, partners[path]) for path in rainy]


def _find_sets(folder: Path) -> list[tuple[list[Path], list[Path]]]:
    """Return each possible split of a folder into rainy and clean files, by folders or by words."""
    rainy_here, clean_here = defaultdict(list), defaultdict(list)  # by the word
    for image in list_images(folder):
        if word := CLEAN_WORD.search(image.stem):
            clean_here[word[0].lower()].append(image)
        elif word := RAINY_WORD.search(image.stem):
            rainy_here[word[0].lower()].append(image)
    rainy, clean = [*rainy_here.values()], [*clean_here.values()]
    for child in sorted(filter(Path.is_dir, folder.iterdir())):
        if child.name.lower() in RAINY_FOLDERS:
            rainy.append(list_images(child))
        if child.name.lower() in CLEAN_FOLDERS:
            clean.append(list_images(child))
    return list(itertools.product(filter(None, rainy), filter(None, clean)))


def match_names(paths: Sequence[Path], others: Sequence[Path]) -> dict[Path, Path]:
    """Match files by the part that their names share, whatever precedes or follows it.

    rain-001.png goes with norain-1.png, 901_2.jpg with 901.jpg, bridge_NET.png with bridge.png.
    What all names of `others` begin or end with is left out; of `paths`, as many words and numbers
    at the beginning, and at the end, as make most names match. Several paths may match one other.
    Paths that match none are left out.

    Raises InputError if two names are equal, or if there are two ways.
    """
    names, wanted = _split_names(paths), _without_shared_ends(_split_names(others))
    ends = range(max(map(len, names), default=1))
    ways = []
    for head, tail in itertools.product(ends, ends):
        found = {}
        for parts, path in names.items():
            if other := wanted.get(parts[head : -tail or None]):
                found[path] = other
        ways.append(((len(set(found.values())), len(found), -head - tail), found))
    best_rank, best = max(ways, key=lambda way: way[0])
    for rank, found in ways:
        for path, other in best.items():
            if rank[0] == best_rank[0] and found.get(path, other) != other:
                choices = f"{other} or {found.get(path, 'none')}"
                raise InputError(f"{path}: could match {choices}; rename the images of one side")
    return best


def _split_names(paths: Sequence[Path]) -> dict[tuple[str, ...], Path]:
    """Split names into words and numbers: rain-001.png into ("rain", "1")."""
    found: dict[tuple[str, ...], Path] = {}
    for path in paths:
        stem = re.sub(r"(?<![0-9])0+(?=[0-9])", "", unicodedata.normalize("NFC", path.stem))
        parts = re.findall(r"[0-9]+|[^0-9\s_.()-]+", stem) or [stem]
        other = found.setdefault(tuple(parts), path)
        if other != path:
            raise InputError(f"{other} and {path}: have the same name; remove one")
    return found


def _without_shared_ends(names: dict[tuple[str, ...], Path]) -> dict[tuple[str, ...], Path]:
    """Leave out what all names begin or end with; of a single name, the words around a number."""
    for end in (0, -1):
        while names and min(map(len, names)) > 1:
            ends = {parts[end] for parts in names}
            if len(ends) > 1 or (len(names) == 1 and max(ends).isdecimal()):
                break
            names = {parts[1 + end : len(parts) + end]: path for parts, path in names.items()}
    return names


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Read a pair's images, (H, W, 3) uint8 RGB. Raises InputError if their sizes differ.

    Prints a line if they seem to show different scenes.
    """
    rainy, clean = read_rgb(pair.rainy), read_rgb(pair.clean)
    if rainy.shape != clean.shape:
        sizes = f"{rainy.shape[1]}x{rainy.shape[0]} and {clean.shape[1]}x{clean.shape[0]}"
        raise InputError(f"{pair.rainy} and {pair.clean} differ in size ({sizes}); remove the pair")
    if not shows(rainy, clean):
        note(f"{pair.rainy}: does not seem to show {pair.clean}; check their names")
    return rainy, clean


def shows(image: np.ndarray, clean: np.ndarray) -> bool:
    """Return whether an image seems to show a clean one's scene, both (H, W, 3) uint8 RGB."""
    small = [cv2.resize(i, (16, 16), interpolation=cv2.INTER_AREA) for i in (image, clean)]
    with np.errstate(invalid="ignore"):  # images of one colour
        correlation = np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1]
    return not correlation < 0.5  # even Rain100H's rainy images have 0.7


def strict_raintrainh(pairs: Sequence[Pair]) -> tuple[list[Pair], str]:
    """Leave out RainTrainH's pairs with backgrounds of Rain100H and Rain100L: 1,254 of 1,800 stay.

    RainTrainH is identified by its numbers; any other set is returned whole. Also returns a
    sentence that says what was done.
    """
    # Image n shows photograph (n - 1) mod 300 of BSD300, sorted as strings.
    every = set(range(1, 1801))
    strict = {number for number in every if (number - 1) % 300 not in RAIN100_BACKGROUNDS}
    numbers = {pair.number for pair in pairs}  # some may be missing
    if numbers != strict and not (len(numbers) > len(strict) and numbers <= every):
        risk = "if they are part of RainTrainH, some show test backgrounds"
        return list(pairs), f"strict rule not applied to {len(pairs)} pairs: {risk}"
    kept = [pair for pair in pairs if pair.number in strict]
    count = f"{len(kept)} of {len(pairs)} pairs, without test backgrounds"
    return kept, f"numbered as RainTrainH: {count}; for another set add --no-strict"
