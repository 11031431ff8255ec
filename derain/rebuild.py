"""Restore the clean sides of Rain100H, Rain100L, RainTrainH and RainTrainL from the photographs of BSDS500.

    python -m derain.rebuild --bsds500 my/BSDS500 --out datasets            # 2,200 images
    python -m derain.rebuild --bsds500 my/BSDS500 --sets Rain100H           # one set

Use it if you have the rainy images, but clean ones that are missing or doubtful. Names and folders are PReNet's:
test/Rain100H/norain-001.png, train/RainTrainH/norain-1.png. Every photograph is checked against its fingerprint before
it is used. No file is overwritten: an image that is there and right is kept, and one that differs is an error.

exit status: 0 everything is there; 2 an error, printed in one line
"""

import dataclasses
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from derain.cli import run_script, setting
from derain.fingerprints import FIX, find_bsds500, known_sets, photographs, pixel_hash
from derain.images import DecodedImage, read_rgb, write_image
from derain.pairs import list_images, name_key
from utils import InputError

# PReNet's names of the clean images.
PLACES = {
    "Rain100H": "test/Rain100H/norain-{0:03d}.png",
    "Rain100L": "test/Rain100L/norain-{0:03d}.png",
    "RainTrainH": "train/RainTrainH/norain-{0}.png",
    "RainTrainL": "train/RainTrainL/norain-{0}.png",
}
PROGRESS = 100  # photographs between two lines of progress


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    bsds500: Path | None = setting(None, "folder of BSDS500, in any of its usual layouts; required")
    out: Path = setting(Path("datasets"), "folder that holds test/ and train/")
    sets: tuple[str, ...] = setting(tuple(PLACES), "sets to restore")


def rebuild(settings: Settings) -> None:
    """Write the clean images that are missing, photograph by photograph."""
    if settings.bsds500 is None:
        raise InputError(f"--bsds500 FOLDER is required: {FIX}")
    unknown = [name for name in settings.sets if name not in PLACES]
    if unknown or not settings.sets:
        raise InputError(f"--sets {' '.join(unknown)}: choose one or more of {', '.join(PLACES)}")
    files, targets = find_bsds500(settings.bsds500), plan(settings.out, settings.sets)
    missing = sorted(targets.keys() - files.keys())
    if missing:
        raise InputError(f"{settings.bsds500}: lacks {len(missing)} photographs, {missing[0]}.jpg first; {FIX}")
    written = Counter[str]()
    for i, (name, places) in enumerate(targets.items(), 1):
        rgb = read_rgb(files[name])
        if pixel_hash(rgb) != photographs().hashes[name]:
            raise InputError(
                f"{files[name]}: differs from the sets' photograph {name}; use the original JPEGs of BSDS500, "
                "and opencv-python to read them (other decoders differ by a level or two)"
            )
        for data_set, path in places:
            if not path.exists():
                write_image(path, DecodedImage(rgb))
                written[data_set] += 1
            elif not np.array_equal(read_rgb(path), rgb):
                raise InputError(f"{path}: differs from the original; move it away to have it restored")
        if i % PROGRESS == 0 or i == len(targets):
            print(f"  {i}/{len(targets)} photographs", file=sys.stderr, flush=True)
    for data_set in dict.fromkeys(settings.sets):
        folder, count = (settings.out / PLACES[data_set]).parent, len(known_sets()[data_set].photographs)
        print(f"{folder}: {written[data_set]} clean images written, {count - written[data_set]} were there and right")


def plan(out: Path, sets: tuple[str, ...]) -> dict[str, list[tuple[str, Path]]]:
    """Return the sets and files that show each photograph that is needed; existing files keep their names."""
    targets: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for data_set in dict.fromkeys(sets):
        folder = (out / PLACES[data_set]).parent
        clean = [p for p in list_images(folder) if re.match("no-?rain", p.name, re.I)] if folder.is_dir() else []
        there = {name_key(p): p for p in clean}
        for number, photograph in known_sets()[data_set].photographs.items():
            path = out / PLACES[data_set].format(number)
            targets[photograph].append((data_set, there.get(str(number), path)))
    return targets


if __name__ == "__main__":
    run_script(rebuild, Settings(), __doc__)
