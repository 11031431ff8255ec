"""Identify data sets by the pixels of their images, check them, and quote published scores.

    python -m derain.sets datasets/test/Rain100L                           # check a set
    python -m derain.sets datasets/train/RainTrainH datasets/test/Rain12   # and shared images
    python -m derain.sets                                                  # published scores

Your own test set gets its name in tables by an entry in TEST_SETS with the fingerprint that the
check prints, and by a script like test_Rain12.py.

exit status: 0 all is well; 1 pairs don't fit, a known set is changed, or two folders have clean
images in common; 2 an image can't be read or has no partner
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
from DerainDataset import has_grey_layer
from SSIM import psnr_y, ssim_y
from utils import InputError

STORE = Path(__file__).with_name("fingerprints.json")  # hashes of pairs, by known set
Score = tuple[float, float]  # PSNR (dB) and SSIM under the PReNet protocol: Y, mean over the set


@dataclass(frozen=True)
class TestSet:
    """A test set, and the scores of the images that DARGNet's authors released for it."""

    __test__ = False  # for pytest
    name: str
    rain: str  # heavy or light: the weights that test it, and the stand-in for a missing set
    pairs: int
    fingerprint: str  # of all its pixels, as the check prints it
    reference: tuple[float, float, float | None] | None = None  # psnr_y, ssim_y, psnr_rgb
    unseen: tuple[int, ...] = ()  # images whose photographs are not in RainTrainL, if others' are


RAIN100H = TestSet("Rain100H", "heavy", 100, "3245ea25183f", (29.8105, 0.90521, 28.384))
RAIN100L = TestSet("Rain100L", "light", 100, "0c8a838fe212", (37.7139, 0.98053, 36.284))
RAIN12 = TestSet("Rain12", "light", 12, "236b9de11742", (36.822, 0.9618, None), (9, 10, 11, 12))
TEST_SETS = {test_set.name: test_set for test_set in (RAIN100H, RAIN100L, RAIN12)}


@dataclass(frozen=True)
class Method:
    """A method trained on the strict 1,254 pairs of RainTrainH or the 200 of RainTrainL."""

    name: str
    rain100h: Score
    rain100l: Score
    rain12: Score
    parameters: int | None = None
    source: str = "published with PReNet, CVPR 2019"

    @property
    def scores(self) -> dict[str, Score]:
        """The scores by test set."""
        return {"Rain100H": self.rain100h, "Rain100L": self.rain100l, "Rain12": self.rain12}


BRN, BRN_TIP = "published with BRN, ICASSP 2020", "published with BRN, TIP 2020"
PUBLISHED = (
    Method("GMM", (15.05, 0.425), (28.66, 0.865), (32.02, 0.855)),
    Method("DDN", (21.92, 0.764), (32.16, 0.936), (31.78, 0.900)),
    Method("SIRR", (22.47, 0.716), (32.37, 0.926), (34.02, 0.935)),
    Method("JORDER", (26.54, 0.835), (36.61, 0.974), (33.92, 0.953)),
    Method("PRN", (28.07, 0.884), (36.99, 0.977), (36.62, 0.952)),
    Method("PReNet_r", (28.98, 0.892), (37.10, 0.977), (36.69, 0.962)),
    Method("PReNet", (29.46, 0.899), (37.48, 0.979), (36.66, 0.961), 168963),
    Method("BRN (ICASSP)", (29.58, 0.902), (37.82, 0.981), (36.70, 0.959), None, BRN),
    Method("BRN (TIP)", (30.47, 0.913), (38.16, 0.982), (36.74, 0.959), 412518, BRN_TIP),
)
DARGNET = Method(
    "DARGNet, released images",
    RAIN100H.reference[:2],
    RAIN100L.reference[:2],
    RAIN12.reference[:2],
    387495,
    "measured here from the images that the authors released",
)


def known_scores() -> list[str]:
    """Return a Markdown line of scores for each known method, lowest on Rain100H first."""
    lines = []
    for method in sorted((*PUBLISHED, DARGNET), key=lambda method: method.rain100h):
        line = f"| {method.name} | "
        if method.parameters:
            line += f"{method.parameters:,}"
        for psnr, ssim in method.scores.values():
            line += f" | {psnr:.2f} / {ssim:.3f}".replace("/ 0.", "/ .")
        lines.append(f"{line} |")
    return lines


@dataclass(frozen=True)
class Identity:
    """The known set that pairs are from, or None; their label; how many have the set's pixels.

    The label is the set's name only if all its pairs are there, in the set's order.
    """

    name: str | None
    label: str
    exact: int


def pair_hash(rainy: np.ndarray, clean: np.ndarray) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of a pair's pixels, each (H, W, 3) uint8 RGB."""
    content = str(clean.shape).encode() + rainy.tobytes() + clean.tobytes()
    return hashlib.sha256(content).hexdigest()[:12]


def fingerprint(hashes: Sequence[str]) -> str:
    """Return the fingerprint of a set from its pairs' hashes, in list_images' order."""
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()[:12]


def identify_pairs(pairs: Sequence[Pair]) -> Identity:
    """Read pairs, in about two seconds for 100, and identify them. Raises as read_pair does."""
    return identify([pair_hash(*read_pair(pair)) for pair in pairs])


def identify(hashes: Sequence[str]) -> Identity:
    """Identify pairs, given by their hashes."""
    count, digest = len(hashes), fingerprint(hashes)
    for test_set in TEST_SETS.values():
        if test_set.fingerprint == digest:
            return Identity(test_set.name, test_set.name, count)
    best = Identity(None, f"{count} pairs of no known set", 0)
    for name, known in json.loads(STORE.read_text()).items():
        exact = len(set(known).intersection(hashes))
        if exact > best.exact:
            label = f"{exact} of {count} pairs have {name}'s pixels"
            if exact == count:
                label = f"{count} of the {len(known)} pairs of {name}"
            best = Identity(name, label, exact)
    return best


@dataclass(frozen=True)
class Settings:
    """The command line."""

    folders: tuple[Path, ...] = setting((), "folders of pairs to check", positional=True)


def main(settings: Settings) -> None:
    """Check folders and whether they share clean images; without folders, print scores."""
    if not settings.folders:
        print("\n".join(known_scores()))
    checked, faults = dict[Path, list[str]](), 0
    for folder in settings.folders:
        checked[folder], all_is_well = check_set(folder)
        faults += not all_is_well
    for (first, images), (second, others) in itertools.combinations(checked.items(), 2):
        shared = [image for image in images if image in others]
        if shared:
            print(f"LEAK {len(shared)} pairs of {first} have clean images of {second}")
            faults += 1
    if faults:
        raise SystemExit(1)


def check_set(folder: Path) -> tuple[list[str], bool]:
    """Report on a folder of pairs. Return the hash of each clean image and whether all is well."""
    pairs = find_pairs(folder)
    sizes, hashes, clean_hashes, scores, misfits = Counter[str](), [], [], [], []
    for pair in tqdm(pairs, unit="pair", leave=False, disable=None):
        rainy, clean = read_pair(pair)
        sizes[f"{clean.shape[1]}x{clean.shape[0]}"] += 1
        hashes.append(pair_hash(rainy, clean))
        clean_hashes.append(pair_hash(clean, clean))
        if not is_rain(rainy, clean):
            misfits.append(pair.rainy.name)
        try:
            score = (psnr_y(rainy, clean), ssim_y(rainy, clean))
        except ValueError as error:  # smaller than SSIM's window
            raise InputError(f"{pair.rainy}: {error}; remove the pair") from error
        if np.isfinite(score).all():
            scores.append(score)

    count, identity = len(pairs), identify(hashes)
    by_size = ", ".join(f"{number} of {size}" for size, number in sizes.most_common(5))
    rain = f"{count - len(misfits)} of {count} pairs are clean + one grey layer, clipped at 255"
    if misfits:
        rain += f"; not {', '.join(misfits[:3])}"
    psnr, ssim = np.mean(scores or [(np.inf, 1)], axis=0)
    print(folder)
    print(f"  layout       {pairs[0].rainy} with {pairs[0].clean}")
    print(f"  pairs        {count}: {by_size}; {len(set(clean_hashes))} different clean images")
    print(f"  rain         {rain}")
    print(f"  input        PSNR_Y {psnr:.3f}, SSIM_Y {ssim:.4f}, mean of {len(scores)} images")
    print(f"  set          {synthetic_label(folder) or identity.label}")
    print(f"  fingerprint  {fingerprint(hashes)}")
    is_original = identity.exact == count
    return clean_hashes, is_original or (identity.exact == 0 and not misfits)


def is_rain(rainy: np.ndarray, clean: np.ndarray) -> bool:
    """Return whether a pair's rain is one grey layer in every pixel."""
    return has_grey_layer(rainy, clean, share=1.0)


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
