"""Find the rainy and clean images of a data set, and pair them.

pairs = find_pairs(Path("datasets/test/Rain100L"))
rainy, clean = read_pair(pairs[0])
"""

import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from derain.images import is_image, read_rgb
from utils import InputError

RAINY_FOLDERS = ("rainy", "rain", "input", "lq", "in", "data", "rainy_image", "rain_x2", "rainy_x2")
CLEAN_FOLDERS = ("clean", "groundtruth", "ground_truth", "gt", "norain", "target", "label")
RAINY_WORD = re.compile(r"(?<![a-z])rainy?(?![a-z])", re.I)  # in rain-1 and 1_rain, not rainbow-1
CLEAN_WORD = re.compile(r"(?<![a-z])(no-?rain|clean|gt)(?![a-z])", re.I)
NESTING = 3  # levels of folders that are searched for a set
FIX = "name the folders by --data_path RAINY --clean_dir CLEAN; datasets/README.md has the layouts"
# RainTrainH's image n shows photograph (n - 1) mod 300 of BSD300, sorted as strings.
RAINTRAINH_PAIRS, BSD300_PHOTOGRAPHS = 1800, 300
RAIN100_BACKGROUNDS = frozenset({0, 9, *range(99, 188)})  # Rain100H's and Rain100L's


@dataclass(frozen=True)
class Pair:
    """A rainy image file and the clean one of the same scene."""

    rainy: Path
    clean: Path

    @property
    def number(self) -> int | None:
        """The number in the rainy image's name, if there is just one."""
        numbers = re.findall("[0-9]+", self.rainy.stem)
        return int(numbers[0]) if len(numbers) == 1 else None


def rainy_file(item: Pair | Path) -> Path:
    """Return the rainy image's file, of a pair or of an image that has no clean one."""
    return item if isinstance(item, Path) else item.rainy


def list_images(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, without hidden ones; 10.png follows 9.png."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such file or folder; datasets/README.md lists the data sets"
        )
    images = [path for path in folder.iterdir() if path.name[0] != "." and is_image(path)]
    return sorted(images, key=lambda path: re.sub("[0-9]+", lambda n: n[0].zfill(30), path.name))


def find_rainy(path: Path) -> list[Path]:
    """Return a file, a folder's rainy images if it is a set and no more, or all its images."""
    if path.is_file():
        return [path]
    images, used = list_images(path), set[Path]()
    try:
        pairs = find_pairs(path, log=lambda line: None)
    except InputError:
        return images
    for pair in pairs:
        used |= {pair.rainy, pair.clean}
    return [pair.rainy for pair in pairs] if used.issuperset(images) else images


def find_pairs(
    folder: Path, log: Callable[[str], object] = print, clean_dir: Path | None = None
) -> list[Pair]:
    """Pair the rainy and clean images of the set in a folder or below it, in list_images' order.

    Several rainy images may share a clean one. clean_dir: the folder of the clean images; `folder`
    has the rainy ones then. log: gets a line if other images are left out.

    Raises InputError if there is no set, or several, or if an image has no partner.
    """
    rainy, clean = list_images(folder), list_images(clean_dir or folder)
    if clean_dir is None:
        rainy, clean = _find_set(folder, log)
    elif not rainy or not clean or rainy == clean:
        raise InputError(f"{folder}, --clean_dir {clean_dir}: must be two folders of images")
    partners = match_names(rainy, clean)
    example = "names have nothing in common"
    for path, partner in partners.items():
        example = f"as {path.name} has {partner.name}"
    matched = {*partners, *partners.values()}
    for path in (*rainy, *clean):
        if path not in matched:
            raise InputError(f"{path}: has no partner, {example}; add it, or remove {path.name}")
    return [Pair(path, partners[path]) for path in rainy]


def _find_set(folder: Path, log: Callable[[str], object]) -> tuple[list[Path], list[Path]]:
    """Return the rainy and clean files of the only set in a folder or below it."""
    found = list(_find_sets(folder, NESTING))
    if not found:
        raise InputError(f"{folder}: no rainy and clean images in a known layout; {FIX}")
    rainy, clean = found[0]
    if len(found) > 1:
        choices = f"{rainy[0]} with {clean[0]} or {found[1][0][0]} with {found[1][1][0]}"
        raise InputError(f"{folder}: could mean {choices}; remove copies, or {FIX}")
    others = set(list_images(rainy[0].parent) + list_images(folder)).difference(rainy, clean)
    if others:
        log(f"{folder}: {len(rainy)} pairs; left out {len(others)} images such as {min(others)}")
    return rainy, clean


def _find_sets(folder: Path, nesting: int) -> Iterator[tuple[list[Path], list[Path]]]:
    """Yield each way to see rainy and clean files in a folder; if there is none, in those below."""
    images, children = list_images(folder), sorted(filter(Path.is_dir, folder.iterdir()))
    readable = [child for child in children if os.access(child, os.R_OK)]
    rainy = [list_images(child) for child in readable if child.name.lower() in RAINY_FOLDERS]
    clean = [list_images(child) for child in readable if child.name.lower() in CLEAN_FOLDERS]
    clean_here = [image for image in images if CLEAN_WORD.search(image.stem)]
    others = set(images).difference(clean_here)
    rainy_here = [image for image in images if image in others and RAINY_WORD.search(image.stem)]
    if any(rainy) and not any(clean) and not clean_here:
        clean_here = images  # clean images of any name beside the folder of rainy ones
    ways = list(filter(all, itertools.product([*rainy, rainy_here], [*clean, clean_here])))
    yield from ways
    if nesting and not ways:
        for child in readable:
            yield from _find_sets(child, nesting - 1)


def match_names(paths: Sequence[Path], others: Sequence[Path]) -> dict[Path, Path]:
    """Match files by the part that their names share, whatever is added before or behind it.

    rain-001.png goes with norain-1.png, 901_2.jpg with 901.jpg, bridge_NET.png with bridge.png:
    from all names of `paths`, the same number of words and numbers is left out at the beginning,
    and at the end, so that most names match; from the others' names, nothing or what all of them
    share. Several paths may match one other. Paths that match none are left out.

    Raises InputError if two names are equal, or if there are two ways.
    """
    names, whole = _split_names(paths), _split_names(others)
    ends = range(max(map(len, names), default=0))
    best, best_rank = [dict[Path, Path]()], (0, 0, 0)
    for wanted, head, tail in itertools.product((whole, _without_shared_ends(whole)), ends, ends):
        found = {}
        for parts, path in names.items():
            other = wanted.get(parts[head : -tail or None])
            if other:
                found[path] = other
        rank = (len(set(found.values())), len(found), -head - tail)
        if rank > best_rank:
            best, best_rank = [found], rank
        elif rank == best_rank:
            best.append(found)
    for path, found in itertools.product(best[0], best):
        first, second = best[0][path], found.get(path)
        if first != second:
            raise InputError(f"{path}: matches {first} and {second}; rename the images of one side")
    return best[0]


def _split_names(paths: Sequence[Path]) -> dict[tuple[str, ...], Path]:
    """Split names into words and numbers: rain-001.png into ("rain", "1")."""
    found: dict[tuple[str, ...], Path] = {}
    for path in paths:
        stem = re.sub(r"(?<![0-9])0+(?=[0-9])", "", unicodedata.normalize("NFC", path.stem))
        parts = re.findall(r"[0-9]+|[^0-9\s_.()-]+", stem) or [stem]
        other = found.setdefault(tuple(parts), path)
        if other != path:
            raise InputError(f"{other} and {path}: two images for one place of a set; remove one")
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
    """Read a pair's images, (H, W, 3) uint8 RGB. Raises InputError if their sizes differ."""
    rainy, clean = read_rgb(pair.rainy), read_rgb(pair.clean)
    if rainy.shape != clean.shape:
        sizes = f"{rainy.shape[1]}x{rainy.shape[0]} and {clean.shape[1]}x{clean.shape[0]}"
        raise InputError(f"{pair.rainy} and {pair.clean} differ in size ({sizes}); remove the pair")
    return rainy, clean


def strict_raintrainh(pairs: Sequence[Pair]) -> tuple[list[Pair], str]:
    """Leave out RainTrainH's pairs with backgrounds of Rain100H and Rain100L: 1,254 of 1,800 stay.

    RainTrainH is identified by its numbers; any other set is returned whole. Also returns a
    sentence that says what was done.
    """
    numbers, every = {pair.number for pair in pairs}, set(range(1, RAINTRAINH_PAIRS + 1))
    if numbers not in (every, set(filter(is_strict, every))):
        return list(pairs), f"strict rule not applied: {len(pairs)} pairs, not RainTrainH's 1,800"
    kept = [pair for pair in pairs if is_strict(pair.number)]
    shows = "none with a background of Rain100H or Rain100L"
    return kept, f"strict RainTrainH: {len(kept)} of {len(pairs)} pairs, {shows}"


def is_strict(number: int) -> bool:
    """Return whether RainTrainH's image `number` shows no background of Rain100H and Rain100L."""
    return (number - 1) % BSD300_PHOTOGRAPHS not in RAIN100_BACKGROUNDS
