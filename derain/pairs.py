"""Find the rainy and clean images of a data set, and pair them.

    pairs = find_pairs(Path("datasets/test/Rain100L"))
    rainy, clean = read_pair(pairs[0])

datasets/README.md shows the layouts that are recognised.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from derain.images import SUFFIXES, is_image, read_rgb
from derain.names import match_names
from utils import InputError

RAINY_FOLDERS = ("rainy", "rain", "input", "lq", "in", "data", "rainy_image", "rain_x2", "rainy_x2")
CLEAN_FOLDERS = ("clean", "groundtruth", "ground_truth", "gt", "norain", "target", "label")
RAINY_WORD = re.compile(r"(?<![a-z])rainy?(?![a-z])", re.I)  # in rain-1 and 1_rain, not rainbow-1
CLEAN_WORD = re.compile(r"(?<![a-z])(no-?rain|clean|gt)(?![a-z])", re.I)
NESTING = 3  # levels of folders that are searched for a set
FIX = "name the folders by --data_path RAINY --clean_dir CLEAN; datasets/README.md has the layouts"
RAINTRAINH_PAIRS, BSD300_PHOTOGRAPHS = 1800, 300
RAIN100_BACKGROUNDS = frozenset({0, 9, *range(99, 188)})  # Rain100H's and Rain100L's, of BSD300


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
    """Return the image files directly in a folder, without hidden ones; 10.png follows 9.png.

    Raises InputError for a missing folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; datasets/README.md says where to get the sets")
    images = [path for path in folder.iterdir() if path.name[0] != "." and is_image(path)]
    return sorted(images, key=lambda path: re.sub("[0-9]+", lambda n: n[0].zfill(30), path.name))


def find_rainy(path: Path) -> list[Path]:
    """Return a file, the rainy images of a folder that is exactly a set, or all images of another.

    Raises InputError if there is none.
    """
    if path.is_file():
        return [path]
    images, used = list_images(path), set[Path]()
    try:
        pairs = find_pairs(path, log=lambda line: None)
    except InputError:
        pairs = []
    for pair in pairs:
        used |= {pair.rainy, pair.clean}
    if pairs and used.issuperset(images):
        return [pair.rainy for pair in pairs]
    if not images:
        raise InputError(f"{path}: holds no image ({', '.join(sorted(SUFFIXES))})")
    return images


def find_pairs(
    folder: Path, log: Callable[[str], object] = print, clean_dir: Path | None = None
) -> list[Pair]:
    """Pair the rainy and clean images of the set in a folder or below it, in list_images' order.

    match_names pairs them; several rainy images may share a clean one. clean_dir: the folder of the
    clean images, and `folder` has the rainy ones. log: gets a line if other images are left out.

    Raises InputError if there is no set, or several, or if an image has no partner.
    """
    if clean_dir is None:
        rainy, clean = _find_set(folder, log)
    else:
        rainy, clean = list_images(folder), list_images(clean_dir)
        if not rainy or not clean or rainy == clean:
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
    if len(found) > 1:
        choices = " or ".join(f"{rainy[0]} with {clean[0]}" for rainy, clean in found[:2])
        raise InputError(f"{folder}: could mean {choices}; remove copies, or {FIX}")
    rainy, clean = found[0]
    others = set(list_images(rainy[0].parent) + list_images(folder)).difference(rainy, clean)
    if others:
        log(f"{folder}: {len(rainy)} pairs; left out {len(others)} images such as {min(others)}")
    return rainy, clean


def _find_sets(folder: Path, nesting: int) -> Iterator[tuple[list[Path], list[Path]]]:
    """Yield each way to see rainy and clean files in a folder; if there is none, in those below."""
    images, rainy, clean = list_images(folder), [], []
    rainy_here, clean_here, children = [], [], []
    for child in sorted(folder.iterdir()):
        if child.is_dir() and os.access(child, os.R_OK):
            children.append(child)
            if child.name.lower() in RAINY_FOLDERS:
                rainy.append(list_images(child))
            if child.name.lower() in CLEAN_FOLDERS:
                clean.append(list_images(child))
    for image in images:
        if CLEAN_WORD.search(image.stem):
            clean_here.append(image)
        elif RAINY_WORD.search(image.stem):
            rainy_here.append(image)
    if any(rainy) and not any(clean) and not clean_here:
        clean_here = images  # clean images of any name beside the folder of rainy ones
    product = itertools.product([*rainy, rainy_here], [*clean, clean_here])
    sides = list(filter(all, product))
    yield from sides
    for child in children:
        if nesting and not sides:
            yield from _find_sets(child, nesting - 1)


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Read a pair's images, (H, W, 3) uint8 RGB. Raises InputError if their sizes differ."""
    rainy, clean = read_rgb(pair.rainy), read_rgb(pair.clean)
    if rainy.shape != clean.shape:
        sizes = f"{rainy.shape[1]}x{rainy.shape[0]} and {clean.shape[1]}x{clean.shape[0]}"
        raise InputError(f"{pair.rainy} and {pair.clean} differ in size ({sizes}); remove the pair")
    return rainy, clean


def strict_raintrainh(pairs: Sequence[Pair]) -> tuple[list[Pair], str]:
    """Leave out RainTrainH's pairs with backgrounds of Rain100H and Rain100L: 1,254 of 1,800 stay.

    Returns the pairs and a sentence that says what was done. RainTrainH is identified by its
    numbers, 1 to 1,800 or the strict ones among them; any other set is returned whole.
    """
    numbers, every = {pair.number for pair in pairs}, set(range(1, RAINTRAINH_PAIRS + 1))
    if numbers not in (every, set(filter(is_strict, every))):
        return list(pairs), f"strict rule not applied: {len(pairs)} pairs, not RainTrainH's 1,800"
    kept = [pair for pair in pairs if is_strict(pair.number)]
    shows = "none with a background of Rain100H or Rain100L"
    return kept, f"strict RainTrainH: {len(kept)} of {len(pairs)} pairs, {shows}"


def is_strict(number: int) -> bool:
    """Return whether RainTrainH's image `number` shows no background of Rain100H and Rain100L.

    Image n shows photograph (n - 1) mod 300 of BSD300, sorted as strings.
    """
    return (number - 1) % BSD300_PHOTOGRAPHS not in RAIN100_BACKGROUNDS
