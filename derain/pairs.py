"""Find the rainy and clean images of a data set and pair them by name, in every layout of datasets/README.md."""

import dataclasses
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from derain.images import SUFFIXES, is_image, read_rgb
from utils import InputError

RAINY_FOLDERS = ("rainy", "rain", "input", "lq", "in", "data", "rainy_image", "rain_x2", "rainy_x2")
CLEAN_FOLDERS = ("clean", "groundtruth", "ground_truth", "gt", "norain", "target", "label")
FIX = (
    "put the rainy images into rainy/ and the clean ones into clean/, under the same names, or name the folder of the "
    "clean ones by --clean_dir (if each file shows both side by side: python -m derain.halves); "
    "datasets/README.md lists the known layouts"
)
NESTING = 3  # levels of folders to look through for the set
SAMPLE = 3  # images per folder that are compared where several folders could be meant
_PREFIX = re.compile(r"^(no-?)?rainy?([-_ ]|(?=[0-9])|$)", re.I)  # rain-1, norain-1, rain1, but not rainbow
_RAINY, _CLEAN = re.compile(r"^rainy?([-_ ]|[0-9]|$)|[0-9]_rain$", re.I), re.compile(r"^no-?rain|[0-9]_clean$", re.I)
_SUFFIX = re.compile(r"(?<=[0-9])(_rain|_clean|gt|_?x[0-9])$", re.I)  # 1_rain + 1_clean, 001 + 001gt, 001x2
_COPY = re.compile(r"( ?\([0-9]+\)| - copy| copy)+$", re.I)  # what browsers and file managers add to a second copy

# RainTrainH's image n shows BSD300 photograph (n - 1) mod 300, in string order. These 91 are also the backgrounds of
# Rain100H and Rain100L, so the strict set leaves their 546 images out.
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
    return _inside(folder, is_image)


def _inside(folder: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    """Return what is directly in a folder and is wanted, without hidden ones, in natural order."""
    try:
        return sorted((p for p in folder.iterdir() if p.name[0] != "." and wanted(p)), key=natural_order)
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror}); check its permissions") from error


def is_open_folder(path: Path) -> bool:
    """Whether a path is a folder that this user may read, unlike lost+found."""
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def find_pairs(folder: Path, log: Callable[[str], Any] = print, clean_dir: Path | None = None) -> list[Pair]:
    """Pair the rainy and clean images of a folder, in natural order of the rainy ones.

    Names are paired by number (rain-001 with norain-1) or, without one, by the rest of the name; a clean image may
    belong to several rainy ones (901_1, 901_2, ... with 901). If the folder holds no images of a set itself, its
    subfolders are searched. log: takes the line that says which images were left out. clean_dir: where the clean images
    are, if not in `folder`, which then has the rainy ones; both folders may have any name.

    Raises UnknownLayout if there is no set, or more than one, and InputError for a missing folder, an image without
    its partner (naming both), two images with one name, or several folders that could be meant.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; see datasets/README.md for where to get the data sets")
    if clean_dir is None:
        place, rainy, clean, left_out = _find_set(folder)
    else:
        if folder.resolve() == clean_dir.resolve():
            raise InputError(f"--clean_dir {clean_dir}: is the folder of the rainy images; name that of the clean ones")
        place, rainy, clean, left_out = folder, images_in(folder), images_in(clean_dir), []
    rainy_by_key, clean_by_key = by_key(rainy), by_key(clean)
    pairs = []
    for key, path in rainy_by_key.items():
        original = rainy_by_key.get(_key(_COPY.sub("", path.stem)), path)
        if original is not path and key not in clean_by_key:
            raise InputError(f"{path}: looks like a second copy of {original.name}; remove it")
        partner = _partner(key, clean_by_key)
        if partner is None:
            wanted = clean[0].with_name(_partner_name(path, clean))
            raise InputError(f"{path}: its clean image {wanted} is missing; add it or remove {path.name}")
        pairs.append(Pair(key, path, clean_by_key[partner]))
    paired = {pair.clean for pair in pairs}
    for path in clean:
        if path not in paired:
            wanted = rainy[0].with_name(_partner_name(path, rainy))
            raise InputError(f"{path}: its rainy image {wanted} is missing; add it or remove {path.name}")
    if left_out:
        log(f"{place}: {len(pairs)} pairs; left out: {', '.join(left_out)}")
    return pairs


def images_in(folder: Path) -> list[Path]:
    """Return a folder's images, or those of its only subfolder with images. Raises InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = list_images(folder)
    inside = [] if found else [p for p in folders_below(folder, folder) if p != folder and list_images(p)]
    if len(inside) > 1:
        raise InputError(f"{folder}: images are in {len(inside)} folders below it, such as {inside[0]}; name one")
    if not (found or inside):
        raise InputError(f"{folder}: holds no image")
    return found or list_images(inside[0])


def _find_set(folder: Path) -> tuple[Path, list[Path], list[Path], list[str]]:
    """Return the folder of the only set at or below a folder, its rainy and clean files, and what is left out."""
    inside = [folder]
    for _ in range(NESTING + 1):
        found = [(place, *sides) for place in inside if (sides := _sides(place))]
        if len(found) > 1:
            names = ", ".join(str(place.relative_to(folder)) for place, *_ in found)
            raise UnknownLayout(f"{folder}: holds {len(found)} data sets ({names}); give the path of one of them")
        if found:
            return found[0]
        inside = [child for place in inside for child in _inside(place, is_open_folder)]
    raise UnknownLayout(f"{folder}: no rainy and clean images in a known layout; {FIX}")


def _sides(folder: Path) -> tuple[list[Path], list[Path], list[str]] | None:
    """Return a folder's rainy files, its clean files and what is left out; None if it holds no set itself."""
    children, here = {p.name.lower(): p for p in _inside(folder, Path.is_dir)}, list_images(folder)
    rainy, clean = (
        [files for name in names if name in children and (files := list_images(children[name]))]
        for names in (RAINY_FOLDERS, CLEAN_FOLDERS)
    )
    rainy_here, clean_here = ([p for p in here if pattern.search(p.stem)] for pattern in (_RAINY, _CLEAN))
    if rainy and not (clean or clean_here):
        clean_here = here  # clean images of any name beside the folder of rainy ones
    candidates = [[files for files in side if files] for side in ([*rainy, rainy_here], [*clean, clean_here])]
    if not all(candidates):
        return None
    chosen = _choose(folder, *candidates)
    folders = [f"{files[0].parent.name}/" for files in (*rainy, *clean) if files not in chosen]
    others = Counter(re.sub("[0-9]+", "*", p.name) for p in here if not any(p in files for files in chosen))
    return *chosen, folders + [f"{name} ({count})" for name, count in others.most_common(5)]


def _choose(folder: Path, rainy: list[list[Path]], clean: list[list[Path]]) -> tuple[list[Path], list[Path]]:
    """Choose one group of rainy and one of clean files; copies count once, and no rainy image is darker than its clean.

    Raises InputError, naming the folders, if that does not leave exactly one of each.
    """
    rainy, clean = _distinct(rainy), _distinct(clean)
    if len(rainy) == len(clean) == 1:
        return rainy[0], clean[0]
    fitting = [(r, c) for r in rainy for c in clean if _fit(r, c)]
    if len(fitting) != 1:
        names = ", ".join(f[0].name if f[0].parent == folder else f"{f[0].parent.name}/" for f in (*rainy, *clean))
        raise InputError(f"{folder}: {names} could all be meant; keep one folder of rainy and one of clean images")
    return fitting[0]


def _distinct(groups: list[list[Path]]) -> list[list[Path]]:
    """Return groups of files without those whose first images have the pixels of an earlier group's."""
    if len(groups) == 1:
        return groups
    by_pixels: dict[tuple, list[Path]] = {}
    for files in groups:
        images = [_read(path) for path in files[:SAMPLE]]
        pixels = tuple(path if x is None else (x.shape, x.tobytes()) for path, x in zip(files, images, strict=False))
        by_pixels.setdefault((len(files), *pixels), files)
    return list(by_pixels.values())


def _fit(rainy: list[Path], clean: list[Path]) -> bool:
    """Whether the first images of a group are those of another under rain: brighter somewhere, and nowhere darker."""
    by_key = {name_key(path): path for path in clean}
    partners = [(path, by_key[key]) for path in rainy[:SAMPLE] if (key := _partner(name_key(path), by_key)) is not None]
    images = [(_read(r), _read(c)) for r, c in partners]
    return bool(images) and all(
        r is not None and c is not None and r.shape == c.shape and (r >= c).mean() > 0.999 and (r > c).any()
        for r, c in images
    )


def _read(path: Path) -> np.ndarray | None:
    try:
        return read_rgb(path)
    except InputError:
        return None


def name_key(path: Path) -> str:
    """Return what the names of a pair share: the number without leading zeros, or the name without rain- or norain-."""
    return _key(path.stem)


def _key(stem: str) -> str:
    rest = _SUFFIX.sub("", _PREFIX.sub("", unicodedata.normalize("NFC", stem)))
    return str(int(rest)) if rest.isdigit() and rest.isascii() else rest


def _partner(key: str, clean_keys: Collection[str]) -> str | None:
    """Return the clean key that belongs to a rainy one: 901_2 if there is one, otherwise 901."""
    parts = key.split("_")
    names = ["_".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((k for name in names for k in (name, _key(name)) if k in clean_keys), None)


def by_key(paths: Sequence[Path]) -> dict[str, Path]:
    """Return files by what the names of a pair share. Raises InputError if two have the same."""
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(name_key(path), path)
        if other is not path:
            raise InputError(f"{other} and {path}: two images for one place of the set; remove one")
    return found


def _partner_name(path: Path, others: Sequence[Path]) -> str:
    """Return the name that a missing partner would have, judging by how its neighbours are named."""
    like = others[0].stem
    prefix, suffix = _PREFIX.match(like), _SUFFIX.search(like)
    middle = _SUFFIX.sub("", _PREFIX.sub("", path.stem))
    return (prefix.group() if prefix else "") + middle + (suffix.group() if suffix else "") + others[0].suffix


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
    images, lines = list_images(path), list[str]()
    try:
        pairs = find_pairs(path, lines.append)
        if set(images) <= {file for pair in pairs for file in (pair.rainy, pair.clean)}:
            print(*lines, sep="\n", end="\n" if lines else "")
            return [pair.rainy for pair in pairs]
    except InputError:
        pass  # no data set: nothing in it is left out because of its name
    if not images:
        raise InputError(f"{path}: holds no image ({', '.join(sorted(SUFFIXES))})")
    return images


def folders_below(folder: Path, leave_out: Path) -> list[Path]:
    """Return a folder and all its subfolders, without hidden or unreadable ones, in natural order.

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
        waiting += reversed(_inside(folder, is_open_folder))
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
