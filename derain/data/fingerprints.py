"""Fingerprints of the data sets: what tells which images a folder holds, without the images themselves.

    python -m derain.data.fingerprints --bsds500 my/BSDS500       # writes datasets/fingerprints.json anew, 1 minute

Two of each photograph of BSDS500 (P. Arbelaez et al., IEEE TPAMI 33(5), 2011), which all the sets' clean images show:
`pixel_hash` is of the exact pixels; `content_signs` is of what is seen, and stays nearly the same when an image is
scaled in brightness, encoded anew, cropped by a few pixels or, with `first_match`, mirrored.
The command also prints how far true and false matches of `content_signs` lie apart.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from derain.cli import run_script, setting
from derain.data.pairs import BSD300_PHOTOGRAPHS, RAINTRAINH_PAIRS, find_pairs, list_images
from utils import InputError, read_rgb, write_json

STORE = Path(__file__).with_name("fingerprints.json")
GRID, FREQUENCIES = 32, 16  # side of the grey version; how many of its frequencies count, each way
ALIKE = 0.75  # of the signs agree: the same background. See datasets/README.md for the measured margins
BLOCK = 1000  # rows compared at once, so that memory stays small for large sets
BSDS500_LAYOUTS = ("", "images", "data/images", "BSDS500/data/images", "BSR/BSDS500/data/images")
BSDS500_PARTS = ("train", "val", "test")
ORIGINALS = {  # where the store's rainy images are looked for; of RainTrainH 12 pairs were at hand, of Rain100H none
    "Rain100H": ("test/Rain100H",),
    "Rain100L": ("test/Rain100L",),
    "Rain12": ("test/Rain12",),
    "RainTrainH": ("train/RainTrainH", "train/RainTrainH12"),
    "RainTrainL": ("train/RainTrainL",),
}
REMEDY = "get BSDS500, 500 photographs in train/, val/ and test/ (for example https://github.com/BIDS/BSDS500)"

# Rain100H and Rain100L were made from the first hundred of RainTrainH's numbers, sorted as strings: 1, 10, 100,
# 1000, 1001, ... Place k shows the photograph that RainTrainH shows under that number. Found on Rain100L.
RAIN100_NUMBERS = sorted(range(1, RAINTRAINH_PAIRS + 1), key=str)[:100]

# Mean PSNR (Y) of the rainy images in dB, which tells the two sets with equal clean sides apart. Published with PReNet.
INPUT_PSNR_Y = {"Rain100H": 13.55, "Rain100L": 26.90}


# ---------------------------------------------------------------- of one image


def pixel_hash(rgb: np.ndarray) -> str:
    """First 12 hexadecimal digits of the SHA-256 of (H, W, 3) uint8 RGB pixels, row by row."""
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
    """Share of equal signs of each of (N, 255) with each of (M, 255): (N, M) float32.

    Each of the first is compared as it is, mirrored left-right, upside down, and both; the best counts.
    """
    rows, columns = np.divmod(np.arange(1, FREQUENCIES**2), FREQUENCIES)
    best = np.full((len(first), len(second)), -np.inf, np.float32)
    for mirrored in (rows * 0, columns, rows, rows + columns):  # mirroring turns the sign of odd frequencies
        view = first * (1 - 2 * (mirrored % 2))
        np.maximum(best, view.astype(np.float32) @ second.T.astype(np.float32), out=best)
    return 0.5 + best / (2 * len(rows))


def first_match(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each of (N, 255) the first of (M, 255) that shows the same background: (N,) int, -1 where none does."""
    found = np.full(len(first), -1)
    for start in range(0, len(first) if len(second) else 0, BLOCK):
        same = agreement(first[start : start + BLOCK], second) >= ALIKE
        found[start : start + BLOCK] = np.where(same.any(axis=1), same.argmax(axis=1), -1)
    return found


# ---------------------------------------------------------------- of the known sets


@dataclasses.dataclass(frozen=True)
class Photographs:
    """The photographs of BSDS500: names without suffix, pixel hashes, and (500, 255) content signs.

    The first 300 are BSD300 (train and val), the others test; each part is sorted as strings.
    """

    names: list[str]
    hashes: list[str]
    signs: np.ndarray


@dataclasses.dataclass(frozen=True)
class KnownSet:
    """One data set by its image numbers: the photograph of each, pixel hashes of clean and (where known) rainy ones."""

    name: str
    photographs: dict[int, str]
    clean: dict[int, str]
    rainy: dict[int, str]
    input_psnr_y: float | None


@functools.cache
def photographs() -> Photographs:
    """The stored fingerprints of BSDS500's photographs."""
    stored = json.loads(STORE.read_text(encoding="utf-8"))["photographs"]
    values = {name: value.split() for part in ("BSD300", "test") for name, value in sorted(stored[part].items())}
    bits = np.array([np.frombuffer(bytes.fromhex(signs), np.uint8) for _, signs in values.values()])
    signs = 2 * np.unpackbits(bits, axis=1)[:, : FREQUENCIES**2 - 1].astype(np.int8) - 1
    return Photographs(list(values), [pixels for pixels, _ in values.values()], signs)


@functools.cache
def known_sets() -> dict[str, KnownSet]:
    """The five sets by name."""
    stored = json.loads(STORE.read_text(encoding="utf-8"))
    names, hashes = photographs().names, dict(zip(photographs().names, photographs().hashes, strict=True))
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
        found[name] = KnownSet(name, side, clean, rainy, INPUT_PSNR_Y.get(name))
    return found


# ---------------------------------------------------------------- BSDS500, and making the store


def find_bsds500(folder: Path) -> dict[str, Path]:
    """The image files of a BSDS500 folder by name without suffix, in any of its usual layouts.

    Raises InputError where there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {REMEDY}")
    for layout in BSDS500_LAYOUTS:
        parts = [folder / layout / part for part in BSDS500_PARTS if (folder / layout / part).is_dir()]
        files = {path.stem: path for part in parts for path in list_images(part)}
        if files:
            return files
    raise InputError(f"{folder}: no images in train/, val/ and test/, here or in images/ or data/images/; {REMEDY}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line of this file."""

    bsds500: Path = setting(Path("BSDS500"), "folder of BSDS500's photographs")
    root: Path = setting(Path("datasets"), "folder with test/ and train/; fingerprints of sets that it lacks stay")
    out: Path = setting(STORE, "file to write")


def make(settings: Settings) -> None:
    """Take the fingerprints of BSDS500 and of the original sets, write them, and print their margins."""
    files = find_bsds500(settings.bsds500)
    if len(files) != 500:
        raise InputError(f"{settings.bsds500}: holds {len(files)} photographs, not 500; {REMEDY}")
    groups: dict[str, list[str]] = {"BSD300": [], "test": []}
    for name in sorted(files):
        groups["test" if files[name].parent.name == "test" else "BSD300"].append(name)
    images = {name: read_rgb(files[name]) for part in groups.values() for name in part}
    signs = {name: content_signs(image) for name, image in images.items()}
    packed = {name: np.packbits(sign > 0).tobytes().hex() for name, sign in signs.items()}
    lines = {name: f"{pixel_hash(image)} {packed[name]}" for name, image in images.items()}
    stored: dict[str, dict] = {"Rain12": {}, "rainy": {}}
    if settings.out.exists():
        stored = json.loads(settings.out.read_text(encoding="utf-8"))
    stored["photographs"] = {part: {name: lines[name] for name in names} for part, names in groups.items()}
    for name, places in ORIGINALS.items():
        folder = next((settings.root / place for place in places if (settings.root / place).is_dir()), None)
        if folder is None:
            continue
        pairs = find_pairs(folder)
        stored["rainy"][name] = {pair.key: pixel_hash(read_rgb(pair.rainy)) for pair in pairs}
        if name == "Rain12":
            for pair in pairs:
                clean = read_rgb(pair.clean)
                nearest = int(agreement(content_signs(clean)[None], np.array(list(signs.values()))).argmax())
                stored["Rain12"][pair.key] = f"{list(signs)[nearest]} {pixel_hash(clean)}"
    write_json(settings.out, stored)
    print(f"{settings.out}: {len(images)} photographs, {sum(map(len, stored['rainy'].values()))} rainy images")
    print_margins(images)


def print_margins(images: dict[str, np.ndarray]) -> None:
    """For copies of the images changed in several ways: least agreement with the original, most with another."""
    originals = np.array([content_signs(image) for image in images.values()])
    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "unchanged": lambda image: image,
        "brightness x 0.8": lambda image: np.round(0.8 * image).astype(np.uint8),
        "JPEG, quality 30": lambda image: _as_jpeg(image, 30),
        "cropped to 480x320": _cropped,
        "all of these, mirrored": lambda image: _as_jpeg(np.round(0.8 * _cropped(image)[:, ::-1]).astype(np.uint8), 30),
        "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "2.5 % cut off each side": lambda image: _without_border(image, 0.025),
        "5 % cut off each side": lambda image: _without_border(image, 0.05),
    }
    print(f"{'copies':25}  agree with their own  with another, at most  alike (from {ALIKE:.2f})")
    for name, change in changes.items():
        agree = agreement(np.array([content_signs(change(image)) for image in images.values()]), originals)
        own = np.diag(agree).copy()
        np.fill_diagonal(agree, 0)
        print(f"{name:25}  {own.min():20.3f}  {agree.max():21.3f}  {(own >= ALIKE).sum()} of {len(own)}")


def _cropped(image: np.ndarray) -> np.ndarray:
    return image[: image.shape[0] // 32 * 32, : image.shape[1] // 32 * 32]


def _without_border(image: np.ndarray, share: float) -> np.ndarray:
    height, width = (round(share * side) for side in image.shape[:2])
    return image[height:-height, width:-width]


def _as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


if __name__ == "__main__":
    run_script(make, Settings(), __doc__)
