"""Identify data sets by the pixels of their images, and check them.

    python -m derain.sets datasets/test/Rain100L                           # check a set
    python -m derain.sets datasets/train/RainTrainH datasets/test/Rain100L   # and find shared ones

Your own test set gets its name in tables by an entry in TEST_SETS with the fingerprint that the
check prints, and by a script like test_Rain12.py.

Exit status: 0 all is well; 1 a known set is changed, or folders share clean images; 2 an image is
unreadable or has no partner.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from derain.cli import run_script, setting
from derain.pairs import Pair, find_pairs, read_pair
from derain.synthesize import synthetic_label
from utils import InputError

STORE = Path(__file__).with_name("fingerprints.json")  # hashes of pairs, by known set


@dataclass(frozen=True)
class TestSet:
    """A test set, and the scores of the images that DARGNet's authors released for it."""

    __test__ = False  # for pytest
    name: str
    rain: str  # heavy or light, of the synthetic set that replaces it where it is missing
    fingerprint: str  # of all its pixels, as the check prints it
    reference: tuple[float, float, float | None] | None = None  # psnr_y, ssim_y, psnr_rgb


RAIN100H = TestSet("Rain100H", "heavy", "3245ea25183f", (29.8105, 0.90521, 28.384))
RAIN100L = TestSet("Rain100L", "light", "0c8a838fe212", (37.7139, 0.98053, 36.284))
RAIN12 = TestSet("Rain12", "light", "236b9de11742", (36.822, 0.9618, None))
TEST_SETS = {test_set.name: test_set for test_set in (RAIN100H, RAIN100L, RAIN12)}


def pair_hash(rainy: np.ndarray, clean: np.ndarray) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of a pair's pixels, each (H, W, 3) uint8 RGB."""
    content = str(clean.shape).encode() + rainy.tobytes() + clean.tobytes()
    return hashlib.sha256(content).hexdigest()[:12]


def fingerprint(hashes: Sequence[str]) -> str:
    """Return the fingerprint of a set from its pairs' hashes, in list_images' order."""
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:12]


def identify_pairs(pairs: Sequence[Pair]) -> str:
    """Read pairs (100 in about two seconds) and return their label. Raises as read_pair does."""
    hashes = [pair_hash(*read_pair(pair)) for pair in pairs]
    return identify(hashes, pairs[0].rainy.parent)[0]


def identify(hashes: Sequence[str], folder: Path) -> tuple[str, int]:
    """Return a label for pairs of a folder, and how many have a known set's pixels.

    The label is a set's name only if all its pairs are there, in the set's order.
    """
    count, digest = len(hashes), fingerprint(hashes)
    for test_set in TEST_SETS.values():
        if test_set.fingerprint == digest:
            return test_set.name, count
    synthetic = synthetic_label(folder)
    if synthetic:
        return synthetic, 0
    label, most = f"{count} pairs of no known set", 0
    for name, known in json.loads(STORE.read_text()).items():
        exact = len(set(known).intersection(hashes))
        if exact > most:
            label, most = f"{exact} of {count} pairs have {name}'s pixels", exact
            if exact == count:
                label = f"{count} of the {len(known)} pairs of {name}"
    return label, most


@dataclass(frozen=True)
class Settings:
    folders: tuple[Path, ...] = setting((), "folders of pairs to check", names=["folders"])


def main(settings: Settings) -> None:
    """Check folders, and whether they share clean images."""
    if not settings.folders:
        raise InputError("name a folder of pairs to check, or several")
    clean_images, all_is_well = {}, True
    for folder in settings.folders:
        clean_images[folder], is_well = check_set(folder)
        all_is_well &= is_well
    for (first, images), (second, others) in itertools.combinations(clean_images.items(), 2):
        shared = sum(image in others for image in images)
        print(f"{shared} pairs of {first} have clean images of {second}, pixel for pixel")
        all_is_well &= not shared
    if not all_is_well:
        raise SystemExit(1)


def check_set(folder: Path) -> tuple[list[str], bool]:
    """Report on a folder of pairs. Return the hash of each clean image and whether all is well."""
    pairs = find_pairs(folder)
    sizes, hashes, clean_hashes = Counter[str](), [], []
    for pair in tqdm(pairs, unit="pair", leave=False, disable=None):
        rainy, clean = read_pair(pair)
        sizes[f"{clean.shape[1]}x{clean.shape[0]}"] += 1
        hashes.append(pair_hash(rainy, clean))
        clean_hashes.append(pair_hash(clean, clean))  # the clean image alone

    count = len(pairs)
    label, exact = identify(hashes, folder)
    by_size = ", ".join(f"{number} of {size}" for size, number in sizes.most_common(5))
    print(folder)
    print(f"  layout       {pairs[0].rainy} with {pairs[0].clean}")
    print(f"  pairs        {count}: {by_size}; {len(set(clean_hashes))} different clean images")
    print(f"  set          {label}")
    print(f"  fingerprint  {fingerprint(hashes)}")
    return clean_hashes, exact in (0, count)


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
