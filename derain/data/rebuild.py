"""Restore the clean sides of Rain100H, Rain100L, RainTrainH and RainTrainL from the photographs of BSDS500.

    python -m derain.data.rebuild --bsds500 my/BSDS500 --out datasets            # 2,200 images
    python -m derain.data.rebuild --bsds500 my/BSDS500 --sets Rain100H           # one set

For those who have the rainy images but clean ones that are missing or doubtful. Names and folders are PReNet's:
test/Rain100H/norain-001.png, train/RainTrainH/norain-1.png. Each image is checked against its known fingerprint.
Nothing is overwritten: images that are there and right are kept, and one that differs stops the command before
anything is written. train/RainTrainH/strict.txt lists the 1,254 numbers without test backgrounds.

exit status: 0 all is there; 2 something was in the way, said in one line
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from derain.cli import run_script, setting
from derain.data.fingerprints import (
    ALIKE,
    FIX,
    agreement,
    content_signs,
    find_bsds500,
    known_sets,
    photographs,
    pixel_hash,
)
from derain.data.pairs import CLEAN_FOLDERS, RAINTRAINH_PAIRS, is_strict, list_images, name_key
from utils import DecodedImage, InputError, read_rgb, write_atomically, write_image

# PReNet's names of the clean images.
PLACES = {
    "Rain100H": "test/Rain100H/norain-{0:03d}.png",
    "Rain100L": "test/Rain100L/norain-{0:03d}.png",
    "RainTrainH": "train/RainTrainH/norain-{0}.png",
    "RainTrainL": "train/RainTrainL/norain-{0}.png",
}
STRICT_LIST = "train/RainTrainH/strict.txt"
PROGRESS = 100  # photographs between two lines of progress


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    bsds500: Path | None = setting(None, "folder of BSDS500, in any of its usual layouts; needed")
    out: Path = setting(Path("datasets"), "folder that holds test/ and train/")
    sets: tuple[str, ...] = setting(tuple(PLACES), "sets to restore")
    other_pixels: bool = setting(False, "continue where photographs have other pixels than the sets' (another decoder)")


@dataclasses.dataclass(frozen=True)
class Target:
    """A clean image to restore: its set, where it goes, and the image that is in that place already, if any."""

    data_set: str
    path: Path
    there: Path | None


def rebuild(settings: Settings) -> None:
    """Check everything first, then write what is missing."""
    if settings.bsds500 is None:
        raise InputError(f"--bsds500 FOLDER is needed: {FIX}")
    strange = [name for name in settings.sets if name not in PLACES]
    if strange or not settings.sets:
        raise InputError(f"--sets {' '.join(strange)}: takes one or more of {', '.join(PLACES)}")
    targets = plan(settings.out, settings.sets)
    files = find_bsds500(settings.bsds500)
    missing = sorted(targets.keys() - files.keys())
    if missing:
        raise InputError(f"{settings.bsds500}: lacks {len(missing)} photographs, {missing[0]}.jpg first; {FIX}")
    strict_list = settings.out / STRICT_LIST if "RainTrainH" in settings.sets else None
    numbers = "".join(f"{number}\n" for number in range(1, RAINTRAINH_PAIRS + 1) if is_strict(number))
    if strict_list and strict_list.exists() and strict_list.read_text(encoding="utf-8", errors="replace") != numbers:
        raise InputError(f"{strict_list}: is there and is not the list of the strict numbers; move it away")

    check_photographs(settings, targets, files)
    written: Counter[str] = Counter()
    for name, rgb in with_progress(targets, files, "writing"):
        for target in targets[name]:
            if target.there is None:
                write_image(target.path, DecodedImage(rgb))
                written[target.data_set] += 1
    for data_set in dict.fromkeys(settings.sets):
        count = len(known_sets()[data_set].photographs)
        folder = (settings.out / PLACES[data_set]).parent
        print(f"{folder}: {written[data_set]} clean images written, {count - written[data_set]} were there and right")
    if strict_list:
        if not strict_list.exists():
            write_atomically(strict_list, numbers)
        print(f"{strict_list}: the {numbers.count(chr(10))} numbers without a background of Rain100H and Rain100L")


def plan(out: Path, sets: tuple[str, ...]) -> dict[str, list[Target]]:
    """Return the images to restore, by the photograph they show.

    Raises InputError where a set has clean images in a folder of their own: the scripts would
    read those and not the restored ones.
    """
    targets: dict[str, list[Target]] = defaultdict(list)
    for data_set in dict.fromkeys(sets):
        folder = (out / PLACES[data_set]).parent
        there: dict[str, Path] = {}
        if folder.exists():
            own = [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name.lower() in CLEAN_FOLDERS]
            if own:
                raise InputError(
                    f"{own[0]}: holds clean images that would be read in place of restored ones; move it away"
                )
            there = {name_key(p): p for p in list_images(folder) if re.match(r"no-?rain", p.name, re.I)}
        for number, photograph in known_sets()[data_set].photographs.items():
            path = out / PLACES[data_set].format(number)
            targets[photograph].append(Target(data_set, path, there.get(str(number))))
    return targets


def check_photographs(settings: Settings, targets: dict[str, list[Target]], files: dict[str, Path]) -> None:
    """Raise InputError if a photograph is not the one of its name, has other pixels, or differs from what is there."""
    known = photographs()
    other, differing = [], []
    for name, rgb in with_progress(targets, files, "checking"):
        place = known.names.index(name)
        if pixel_hash(rgb) != known.hashes[place]:
            if agreement(content_signs(rgb)[None], known.signs[place : place + 1]).item() < ALIKE:
                raise InputError(f"{files[name]}: shows another photograph than BSDS500's {name}; {FIX}")
            other.append(files[name])
        differing += [t.there for t in targets[name] if t.there and not np.array_equal(read_rgb(t.there), rgb)]
    said = f"{len(other)} of {len(targets)} photographs ({other[0]} first) have other pixels" if other else ""
    if other and not settings.other_pixels:
        raise InputError(
            f"{said} than the sets': use the original JPEGs and opencv-python, or continue with --other_pixels "
            "(other JPEG decoders differ by a level or two)"
        )
    if differing:
        more = f" and {len(differing) - 1} more differ" if len(differing) > 1 else " differs"
        raise InputError(
            f"{differing[0]}{more} from the original and would have to be replaced; move away what differs"
        )
    print(f"{said}; taken as they are" if other else f"BSDS500: {len(targets)} photographs, all with the sets' pixels")


def with_progress(
    targets: dict[str, list[Target]], files: dict[str, Path], doing: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each needed photograph's name and pixels, (H, W, 3) uint8 RGB, with lines of progress on stderr."""
    for i, name in enumerate(targets, 1):
        yield name, read_rgb(files[name])
        if i % PROGRESS == 0 or i == len(targets):
            print(f"  {doing} {i}/{len(targets)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_script(rebuild, Settings(), __doc__)
