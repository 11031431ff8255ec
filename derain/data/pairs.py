"""Finding the rainy and clean images of a data set, and pairing them by name, in every common layout."""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils import IMAGE_SUFFIXES, InputError, read_rgb

RAINY_FOLDERS = ("rainy", "rain", "input", "lq", "in", "data", "rainy_image", "rain_x2", "rainy_x2")
CLEAN_FOLDERS = ("clean", "groundtruth", "ground_truth", "gt", "norain", "target", "label")
LAYOUTS = (
    "rainy/ with the clean images beside it or in clean/, groundtruth/ or norain/; rain/ + norain/; "
    "input/ + target/; or rain-1.png + norain-1.png in one folder"
)
NESTING = 3  # levels of folders that hold nothing but the set
_PREFIX = re.compile(r"^(no-?)?rainy?([-_ ]|(?=[0-9])|$)", re.I)  # rain-1, norain-1, rain1, but not rainbow
_RAINY, _CLEAN = re.compile(r"^rainy?([-_ ]|[0-9]|$)|[0-9]_rain$", re.I), re.compile(r"^no-?rain|[0-9]_clean$", re.I)
_SUFFIX = re.compile(r"(?<=[0-9])(_rain|_clean|gt|_?x[0-9])$", re.I)  # 1_rain + 1_clean, 001 + 001gt, 001x2

# RainTrainH's image n shows BSD300 photograph (n - 1) mod 300, in string order. These 91 are
# also the backgrounds of Rain100H and Rain100L, so the strict set leaves their 546 images out.
RAINTRAINH_PAIRS, BSD300_PHOTOGRAPHS = 1800, 300
RAIN100_BACKGROUNDS = frozenset({0, 9, *range(99, 188)})


class UnknownLayout(InputError):
    """A folder that is no set of pairs in any layout, as opposed to a set with something wrong in it."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A rainy image file and the clean image file of the same scene; `key` is what identifies the rainy one."""

    key: str
    rainy: Path
    clean: Path

    @property
    def number(self) -> int | None:
        return int(self.key) if self.key.isdigit() and self.key.isascii() else None


def rainy_file(item: Pair | Path) -> Path:
    """Return the rainy image's file, of a pair or of an image that has no clean one."""
    return item if isinstance(item, Path) else item.rainy


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key under which rain-2.png comes before rain-10.png, on every file system."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(0, int(p), "") if p.isdigit() and p.isascii() else (1, 0, p) for p in parts if p]


def list_images(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, without hidden ones, in natural order."""
    try:
        files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror}); check its permissions") from error
    return sorted(files, key=natural_order)


def find_pairs(folder: Path) -> list[Pair]:
    """Pair the rainy and clean images of a folder in any of the layouts in datasets/README.md.

    Names are paired by number (rain-001 with norain-1) or, without one, by the rest of the name; a clean image
    may belong to several rainy ones (901_1, 901_2, ... with 901). The order is natural. Folders that hold nothing
    but the set are looked through. Other images in the folder of a set are counted in a line.

    Raises InputError for a missing folder, an unknown layout (UnknownLayout), an image without its
    partner (both names are given), two images with one name, or two folders that could be meant.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; see datasets/README.md for how to get the data sets")
    found, inside = _sides(folder), [folder]
    for _ in range(NESTING):
        if found is None:
            inside = [p for outer in inside for p in sorted(outer.iterdir()) if p.is_dir() and p.name[0] != "."]
            holding = [sides for sides in map(_sides, inside) if sides]
            found = holding[0] if len(holding) == 1 else None
    if found is None:
        raise UnknownLayout(f"{folder}: no rainy and clean images in a known layout ({LAYOUTS})")
    rainy, clean, place = found
    rainy_by_key, clean_by_key = _by_key(rainy), _by_key(clean)
    pairs = []
    for key, path in rainy_by_key.items():
        partner = next((k for k in _shortened(key) if k in clean_by_key), None)
        if partner is None:
            raise InputError(f"{path}: its clean image {_partner_name(path, clean)} is not in {place}; add it")
        pairs.append(Pair(key, path, clean_by_key[partner]))
    paired = {pair.clean for pair in pairs}
    for path in clean:
        if path not in paired:
            wanted = rainy[0].with_name(_partner_name(path, rainy))
            raise InputError(f"{path}: its rainy image {wanted} is missing; add it or remove {path.name}")
    return pairs


def _sides(folder: Path) -> tuple[list[Path], list[Path], Path] | None:
    """Return a folder's rainy files, clean files, and the folder of the clean ones; None if the layout is unknown."""
    children = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}
    rainy, clean = (
        [children[name] for name in names if name in children and list_images(children[name])]
        for names in (RAINY_FOLDERS, CLEAN_FOLDERS)
    )
    here = list_images(folder)
    if rainy and clean:
        rainy_folder, clean_folder = _by_content(rainy, clean)
        return list_images(rainy_folder), list_images(clean_folder), clean_folder
    if rainy and here:  # the clean images beside the folder, perhaps among others
        return list_images(rainy[0]), [p for p in here if _CLEAN.search(p.stem)] or here, folder
    clean_files = [p for p in here if _CLEAN.search(p.stem)]
    rainy_files = [p for p in here if _RAINY.search(p.stem)]
    others = sorted(set(here) - {*clean_files, *rainy_files})
    if not (rainy_files and clean_files):
        return None
    if others:
        print(f"{folder}: {len(others)} other images left out, such as {others[0].name}")
    return rainy_files, clean_files, folder


def _by_content(rainy: Sequence[Path], clean: Sequence[Path]) -> tuple[Path, Path]:
    """Choose among several folders by their first images: a rainy image is nowhere darker than its clean one.

    Raises InputError, naming the folders, if that does not leave exactly one of each.
    """
    if len(rainy) == len(clean) == 1:
        return rainy[0], clean[0]
    fitting = []
    for r in rainy:
        for c in clean:
            try:
                first, second = (read_rgb(list_images(folder)[0]) for folder in (r, c))
            except InputError:
                continue
            if first.shape == second.shape and (first >= second).mean() > 0.999 and (first > second).any():
                fitting.append((r, c))
    if len(fitting) != 1:
        names = ", ".join(f"{p.name}/" for p in (*rainy, *clean))
        raise InputError(
            f"{rainy[0].parent}: {names} could all be meant; keep one folder of rainy and one of clean images"
        )
    return fitting[0]


def name_key(path: Path) -> str:
    """Return what the names of a pair share: the number without leading zeros, or the name without rain- or norain-."""
    rest = _SUFFIX.sub("", _PREFIX.sub("", unicodedata.normalize("NFC", path.stem)))
    return str(int(rest)) if rest.isdigit() and rest.isascii() else rest


def _shortened(key: str) -> list[str]:
    """Return a rainy image's key and what it may be called among the clean ones: 901_2 -> 901_2, 901."""
    parts = key.split("_")
    names = ["_".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return names + [str(int(n)) for n in names if n.isdigit() and n.isascii()]


def _by_key(paths: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(name_key(path), path)
        if other is not path:
            raise InputError(f"{other} and {path}: two images for one place of the set; remove one")
    return found


def _partner_name(path: Path, others: Sequence[Path]) -> str:
    """Return the name that a missing partner would have, judging by how its neighbours are named."""
    match = _PREFIX.match(others[0].stem) if others else None
    return (match.group() if match else "") + _PREFIX.sub("", path.stem) + path.suffix


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Read a pair's images, (H, W, 3) uint8 RGB.

    Raises InputError naming both files if one can't be read or their sizes differ.
    """
    images = []
    for path, partner in ((pair.rainy, pair.clean), (pair.clean, pair.rainy)):
        try:
            images.append(read_rgb(path))
        except InputError as error:
            raise InputError(f"{error} (its partner is {partner})") from error
    rainy, clean = images
    if rainy.shape != clean.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (rainy, clean))
        raise InputError(f"{pair.rainy} and {pair.clean} differ in size ({sizes}); a pair must show the same pixels")
    return rainy, clean


def find_rainy(path: Path) -> list[Path]:
    """Find rainy images whose clean ones are not needed: one file, all images of a folder, or a data set's rainy ones.

    Raises InputError if there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such image, video or folder; check its spelling")
    images = list_images(path)
    try:
        pairs = find_pairs(path)
        if set(images) <= {file for pair in pairs for file in (pair.rainy, pair.clean)}:
            return [pair.rainy for pair in pairs]
    except InputError:
        pass  # no data set: nothing in it is left out because of its name
    if not images:
        raise InputError(f"{path}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def folders_below(folder: Path, leave_out: Path) -> list[Path]:
    """Return a folder and all its subfolders, without hidden ones, in natural order.

    Links are followed, but no folder is taken twice, wherever links lead. leave_out: a subfolder
    to skip, because results are there.
    """
    folders: list[Path] = []
    taken, waiting = {os.path.realpath(leave_out)} - {os.path.realpath(folder)}, [folder]
    while waiting:
        folder = waiting.pop()
        place = os.path.realpath(folder)
        if place in taken:
            continue
        taken.add(place)
        folders.append(folder)
        try:
            inner = [p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."]
        except OSError as error:
            raise InputError(f"{folder}: the folder cannot be read ({error.strerror})") from error
        waiting += sorted(inner, key=natural_order, reverse=True)
    return folders


# ---------------------------------------------------------------- the strict rule


def strict_raintrainh(pairs: Sequence[Pair]) -> tuple[list[Pair], str]:
    """Leave out the RainTrainH images with backgrounds of Rain100H and Rain100L: 1,254 of 1,800 stay.

    Returns the pairs to train on and a sentence that says what was done. RainTrainH is identified by
    its numbers, 1 to 1,800 or the strict ones among them; any other set is returned whole.
    """
    numbers = {pair.number for pair in pairs}
    every = set(range(1, RAINTRAINH_PAIRS + 1))
    if numbers not in (every, set(filter(is_strict, every))):
        return list(pairs), f"strict rule not applied: {len(pairs)} pairs that are not numbered as RainTrainH's 1,800"
    kept = [pair for pair in pairs if is_strict(pair.number)]
    return kept, f"strict RainTrainH: {len(kept)} of {len(pairs)} pairs, none with a background of Rain100H or Rain100L"


def is_strict(number: int) -> bool:
    """Whether RainTrainH's image `number` (1 to 1800) shows no background of Rain100H or Rain100L."""
    return (number - 1) % BSD300_PHOTOGRAPHS not in RAIN100_BACKGROUNDS
