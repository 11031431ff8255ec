"""Fingerprints of the data sets, which identify the images of a folder without the images themselves.

Two of each photograph of BSDS500 (P. Arbelaez et al., IEEE TPAMI 33(5), 2011), which the clean images of all sets show:
`pixel_hash` is of the exact pixels; `content_signs` is of what the image shows, and stays nearly the same when it is
scaled in brightness, encoded again, cropped by a few pixels or, with `first_match`, mirrored.
tests/make_fingerprints.py makes the file, and prints how far true and false matches of `content_signs` are apart.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np

from derain.pairs import BSD300_PHOTOGRAPHS, RAINTRAINH_PAIRS, list_images
from derain.sets import TEST_SETS
from utils import InputError

STORE = Path(__file__).with_name("fingerprints.json")
SIZE = (481, 321)  # of all images of the known sets, the long side first
GRID, FREQUENCIES = 32, 16  # side of the grey version; how many of its frequencies count, each way
ALIKE = 0.75  # of the signs agree: the same background. See datasets/README.md for the measured margins
BLOCK = 1000  # rows compared at once, so that memory stays small for large sets
BSDS500_LAYOUTS = ("", "images", "data/images", "BSDS500/data/images", "BSR/BSDS500/data/images")
BSDS500_PARTS = ("train", "val", "test")
FIX = "get BSDS500, 500 photographs in train/, val/ and test/ (for example https://github.com/BIDS/BSDS500)"

# Rain100H and Rain100L were made from the first hundred of RainTrainH's numbers, sorted as strings: 1, 10, 100,
# 1000, 1001, ... Place k shows the photograph that RainTrainH shows under that number. Found on both sets.
RAIN100_NUMBERS = sorted(range(1, RAINTRAINH_PAIRS + 1), key=str)[:100]


# ---------------------------------------------------------------- of one image


def pixel_hash(rgb: np.ndarray) -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of (H, W, 3) uint8 RGB pixels, row by row."""
    return hashlib.sha256(np.ascontiguousarray(rgb).tobytes()).hexdigest()[:12]


def content_signs(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (255,) int8, each +1 or -1: the signs of the image's low frequencies, brightness left out.

    They are those of the cosine transform of a grey 32x32 version. All are 0 for an image of one
    colour, which is like no other.
    """
    small = cv2.resize(rgb.astype(np.float32).mean(axis=2), (GRID, GRID), interpolation=cv2.INTER_AREA)
    if small.std() < 0.5:
        return np.zeros(FREQUENCIES**2 - 1, np.int8)
    low = cv2.dct(small)[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return np.where(low > 0, 1, -1).astype(np.int8)


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the share of equal signs of each of (N, 255) with each of (M, 255): (N, M) float32.

    Each of the first is compared as it is, mirrored left-right, upside down, and both; the best counts.
    """
    rows, columns = np.divmod(np.arange(1, FREQUENCIES**2), FREQUENCIES)
    best = np.full((len(first), len(second)), -np.inf, np.float32)
    for mirrored in (rows * 0, columns, rows, rows + columns):  # mirroring turns the sign of odd frequencies
        view = first * (1 - 2 * (mirrored % 2))
        np.maximum(best, view.astype(np.float32) @ second.T.astype(np.float32), out=best)
    return 0.5 + best / (2 * len(rows))


def first_match(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return for each of (N, 255) the first of (M, 255) with the same background: (N,) int, -1 for none."""
    found = np.full(len(first), -1)
    for start in range(0, len(first) if len(second) else 0, BLOCK):
        same = agreement(first[start : start + BLOCK], second) >= ALIKE
        found[start : start + BLOCK] = np.where(same.any(axis=1), same.argmax(axis=1), -1)
    return found


# ---------------------------------------------------------------- of the known sets


@dataclasses.dataclass(frozen=True)
class Photographs:
    """The photographs of BSDS500: pixel hashes by names without suffix, and (500, 255) content signs.

    The first 300 are BSD300 (train and val), the others test; each part is sorted as strings.
    """

    hashes: dict[str, str]
    signs: np.ndarray


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """One data set by its image numbers: the photograph of each, pixel hashes of clean and (where known) rainy ones.

    input_psnr_y: mean PSNR (Y) of the rainy images in dB, which tells copies of Rain100H and Rain100L apart.
    """

    name: str
    photographs: dict[int, str]
    clean: dict[int, str]
    rainy: dict[int, str]
    input_psnr_y: float | None

    @functools.cached_property
    def originals(self) -> dict[str, int]:
        """The number of each known rainy image, by its pixel hash."""
        return {pixels: number for number, pixels in self.rainy.items()}


@functools.cache
def photographs() -> Photographs:
    """Return the stored fingerprints of BSDS500's photographs."""
    stored = json.loads(STORE.read_text(encoding="utf-8"))["photographs"]
    values = {name: value.split() for part in ("BSD300", "test") for name, value in sorted(stored[part].items())}
    bits = np.array([np.frombuffer(bytes.fromhex(signs), np.uint8) for _, signs in values.values()])
    signs = 2 * np.unpackbits(bits, axis=1)[:, : FREQUENCIES**2 - 1].astype(np.int8) - 1
    return Photographs({name: pixels for name, (pixels, _) in values.items()}, signs)


@functools.cache
def known_sets() -> dict[str, KnownSet]:
    """Return the five sets by name."""
    stored = json.loads(STORE.read_text(encoding="utf-8"))
    hashes, names = photographs().hashes, list(photographs().hashes)
    bsd300, test = names[:BSD300_PHOTOGRAPHS], names[BSD300_PHOTOGRAPHS:]
    shown = {number: bsd300[(number - 1) % BSD300_PHOTOGRAPHS] for number in range(1, RAINTRAINH_PAIRS + 1)}
    rain100 = {place: shown[number] for place, number in enumerate(RAIN100_NUMBERS, 1)}
    rain12 = {int(number): value.split() for number, value in stored["Rain12"].items()}
    sides = {
        "Rain100H": rain100,
        "Rain100L": rain100,
        "Rain12": {number: name for number, (name, _) in rain12.items()},
        "RainTrainH": shown,
        "RainTrainL": dict(enumerate(test, 1)),
    }
    found = {}
    for name, side in sides.items():
        clean = {number: hashes[photograph] for number, photograph in side.items()}
        if name == "Rain12":  # darker copies of the photographs, with pixels of their own
            clean = {number: pixels for number, (_, pixels) in rain12.items()}
        rainy = {int(number): pixels for number, pixels in stored["rainy"].get(name, {}).items()}
        found[name] = KnownSet(name, side, clean, rainy, TEST_SETS[name].input_psnr_y if name in TEST_SETS else None)
    return found


# ---------------------------------------------------------------- BSDS500


def find_bsds500(folder: Path) -> dict[str, Path]:
    """Return the image files of a BSDS500 folder by name without suffix, in any of its usual layouts.

    Raises InputError where there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {FIX}")
    for layout in BSDS500_LAYOUTS:
        parts = [folder / layout / part for part in BSDS500_PARTS if (folder / layout / part).is_dir()]
        files = {path.stem: path for part in parts for path in list_images(part)}
        if files:
            return files
    raise InputError(f"{folder}: no images in train/, val/ and test/, here or in images/ or data/images/; {FIX}")
