"""Match files by their names: a data set's two sides, or a method's results and the set."""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from utils import InputError

Parts = tuple[str, ...]  # the words and numbers of a name, numbers without leading zeros


def match_names(paths: Sequence[Path], others: Sequence[Path]) -> dict[Path, Path]:
    """Match files by the part that their names share, whatever is added before or behind it.

    rain-001.png goes with norain-1.png, 901_2.jpg with 901.jpg, bridge_NET.png with bridge.png.
    Names are cut into words and numbers. From each of the paths' names, a fixed number of these is
    left out at either end, chosen so that most names match; from the others' names, either nothing
    or what all of them have in common there. Several paths may match one other. Returns the other
    of each path that matches one.

    Raises InputError if two names are equal, or if two choices are equally good.
    """
    names, whole = _cut(paths), _cut(others)
    ends = range(max(map(len, names), default=0))
    best, best_rank = [dict[Path, Path]()], (0, 0, 0)
    for wanted, head, tail in itertools.product((whole, _without_common_ends(whole)), ends, ends):
        found = {}
        for parts, path in names.items():
            kept = parts[head : -tail or None]
            if kept in wanted:
                found[path] = wanted[kept]
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


def _cut(paths: Iterable[Path]) -> dict[Parts, Path]:
    """Cut names into words and numbers: rain-001.png into ("rain", "1")."""
    found: dict[Parts, Path] = {}
    for path in paths:
        stem = re.sub(r"(?<![0-9])0+(?=[0-9])", "", unicodedata.normalize("NFC", path.stem))
        parts = re.findall(r"[0-9]+|[^0-9\s_.()-]+", stem) or [stem]
        other = found.setdefault(tuple(parts), path)
        if other != path:
            raise InputError(f"{other} and {path}: two images for one place of a set; remove one")
    return found


def _without_common_ends(names: dict[Parts, Path]) -> dict[Parts, Path]:
    """Leave out what all names begin or end with, except the numbers of a single name."""
    for end in (0, -1):
        while names:
            ends = {parts[end] for parts in names}
            is_only_number = len(names) == 1 and max(ends).isdecimal()
            if len(ends) > 1 or is_only_number or min(map(len, names)) == 1:
                break
            names = {parts[1 + end : len(parts) + end]: path for parts, path in names.items()}
    return names
