"""Print what folders of images hold: which set, which copy of it, whether pairs fit, and what leaks between folders.

    python -m derain.check datasets/test/Rain100L                              # one set
    python -m derain.check datasets/train/RainTrainL datasets/test/Rain12      # and shared backgrounds

Any layout of datasets/README.md is recognised; so is a folder of images without pairs, such as clean sides alone.
Sets are identified by fingerprints of their pixels (fingerprints.json); backgrounds are matched by what they show,
so that copies scaled in brightness, encoded again, mirrored or cropped to 480x320 are found as well.

exit status: 0 all is well; 1 something is wrong with the data: pairs that don't fit, images that differ from the rest
of their set, backgrounds shared between the folders; 2 an image or folder can't be read, or an image has no partner
"""

import dataclasses
import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from derain import identify
from derain.cli import run_script, setting
from derain.images import read_rgb
from derain.pairs import Pair, UnknownLayout, find_pairs, find_rainy, name_key, read_pair
from derain.synthesize import synthetic_label
from SSIM import WINDOW, ssim_y
from utils import InputError

SHOWN = 5  # names of faulty pairs in one line
PROGRESS = 100  # pairs between two lines of progress


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    folders: tuple[Path, ...] = setting((), "folders to look at, one or more", positional=True)


@dataclasses.dataclass(frozen=True)
class Folder:
    """What was found of a folder: its images, whether anything is wrong, how many files could not be used."""

    path: Path
    images: list[identify.Image]
    wrong: bool
    unusable: int


def check(settings: Settings) -> None:
    """Print what each folder holds and which backgrounds they share. Raises SystemExit(1) if something is wrong."""
    folders = [look_at(path) for path in settings.folders]
    wrong = any(folder.wrong for folder in folders)
    for first, second in itertools.combinations(folders, 2):
        wrong |= shared_backgrounds(first, second)
    unusable = sum(folder.unusable for folder in folders)
    if unusable:
        raise InputError(f"{unusable} pairs or images cannot be used: see the lines that begin with 'skipped'")
    if wrong:
        raise SystemExit(1)


def look_at(path: Path) -> Folder:
    """Read one folder and print what it holds. Raises InputError for a missing folder and unpaired images."""
    try:
        pairs, paired = find_pairs(path), True
    except UnknownLayout as unknown:
        try:
            pairs, paired = [Pair(name_key(image), image, image) for image in find_rainy(path)], False
        except InputError:
            raise unknown from None
    print(path)
    files = " and ".join(file.relative_to(path).as_posix() for file in (pairs[0].rainy, pairs[0].clean))
    say("layout", files if paired else "images without pairs: nothing to align or to measure")
    images, unusable = [], 0
    for i, pair in enumerate(pairs, 1):
        try:
            images.append(read(pair, paired))
        except InputError as error:
            unusable += 1
            print(f"skipped: {error}", file=sys.stderr, flush=True)
        if i % PROGRESS == 0 and i < len(pairs):
            print(f"  {i}/{len(pairs)}", file=sys.stderr, flush=True)
    if not images:
        raise InputError(f"{path}: none of its {len(pairs)} pairs or images can be used; see the lines above")

    sizes = Counter(image.size for image in images).most_common()
    sizes_text = ", ".join(f"{count} of {width}x{height}" for (width, height), count in sizes[:SHOWN])
    rest = f", {len(sizes) - SHOWN} other sizes" if len(sizes) > SHOWN else ""
    kind = "pairs" if paired else "images"
    backgrounds = identify.count_backgrounds(images)
    say("images", f"{len(images)} {kind}: {sizes_text}{rest}; {backgrounds} different backgrounds")
    identity = identify.identify(images)
    faulty = print_rain(images, identity) if paired else False
    if label := synthetic_label(path):
        say("label", f"{label}, made by derain.synthesize")
    say("set", f"{identity.label}; {identity.exact} of {len(images)} {kind} have the original's pixels")
    shared = identify.shared_with_tests(images, identity)
    for title, line in [*(("set", line) for line in identity.lines), *(("tests", line) for line in shared)]:
        say(title, line)
    return Folder(path, images, faulty or identity.wrong, unusable)


def read(pair: Pair, paired: bool) -> identify.Image:
    """Return fingerprints and scores of a pair, or of one image. Raises InputError if it can't be read or measured."""
    if not paired:
        return identify.fingerprint(pair, read_rgb(pair.clean))
    rainy, clean = read_pair(pair)
    if min(clean.shape[:2]) < WINDOW:
        raise InputError(f"{pair.rainy}: smaller than the {WINDOW}x{WINDOW} window of SSIM; remove the pair")
    image = identify.fingerprint(pair, clean, rainy)
    return dataclasses.replace(image, ssim_y=ssim_y(rainy, clean), fault=misfit(rainy, clean))


def misfit(rainy: np.ndarray, clean: np.ndarray) -> str:
    """Return why a rainy image is not min(255, clean + a grey layer >= 0); '' if it is. Both (H, W, 3) uint8.

    The layer is the largest of the three channels' differences: a channel that is clipped differs by less.
    """
    added = rainy.astype(np.int16) - clean
    layer = added.max(axis=2, keepdims=True)
    bad = (added < 0).any(axis=2) | (rainy != np.minimum(255, clean + layer)).any(axis=2)
    darker = f", up to {-added.min()} levels darker than the clean image" if added.min() < 0 else ""
    return f"{bad.sum()} of {bad.size} pixels{darker}" if bad.any() else ""


def print_rain(images: Sequence[identify.Image], identity: identify.Identity) -> bool:
    """Print how pairs fit and how much rain there is. Returns whether pairs misfit, other than in a set's original."""
    faulty = [image for image in images if image.fault]
    wrong = bool(faulty) and identity.exact < len(images)
    if faulty:
        shown = "; ".join(f"{image.name} ({image.fault})" for image in faulty[:SHOWN])
        rest = f"; and {len(faulty) - SHOWN} more" if len(faulty) > SHOWN else ""
        count = f"{len(faulty)} of {len(images)} pairs"
        what = f"WRONG in {count}" if wrong else f"in {count}, as in the original"
        say("rain", f"{what}: not clean image + one grey layer: {shown}{rest}")
        if len(faulty) == len(images):
            say("rain", "all pairs: another model of rain, or images that were encoded again with losses")
    else:
        say("rain", f"all {len(images)} pairs fit: rainy = clean + one grey layer, clipped at 255")
    same = [image for image in images if image.rainy == image.clean]
    if same:
        say("rain", f"no rain at all in {len(same)} pairs: {identify.listed(same)}")
    wet = [image for image in images if image.rainy != image.clean]
    if wet:
        psnr, ssim = np.mean([image.psnr_y for image in wet]), np.mean([image.ssim_y for image in wet])
        say("input", f"rainy images: PSNR_Y {psnr:.3f} dB, SSIM_Y {ssim:.4f} (PReNet protocol, mean of {len(wet)})")
    return wrong


def shared_backgrounds(first: Folder, second: Folder) -> bool:
    """Print which images of two folders show the same backgrounds; returns whether any do."""
    in_first, in_second = identify.matching(first.images, second.images), identify.matching(second.images, first.images)
    if not in_first:
        print(f"{first.path} and {second.path}: no background in common")
        return False
    print(
        f"LEAK {first.path} and {second.path} show the same backgrounds: {len(in_first)} of {len(first.images)} "
        f"({identify.listed(in_first)}) and {len(in_second)} of {len(second.images)} ({identify.listed(in_second)})"
    )
    return True


def say(topic: str, text: str) -> None:
    """Print one line of the report."""
    print(f"  {topic:8}{text}", flush=True)


if __name__ == "__main__":
    run_script(check, Settings(), __doc__)
