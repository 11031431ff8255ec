"""Make derain/fingerprints.json from BSDS500 and the sets themselves, and print the margins of the matches.

python -m tests.make_fingerprints --bsds500 my/BSDS500        # a minute
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from derain.cli import run_script, setting
from derain.fingerprints import (
    ALIKE,
    FIX,
    STORE,
    agreement,
    content_signs,
    find_bsds500,
    pixel_hash,
)
from derain.images import read_rgb
from derain.pairs import find_pairs
from utils import InputError, write_json

ORIGINALS = {  # where the rainy images are looked for
    "Rain100H": ("test/Rain100H",),
    "Rain100L": ("test/Rain100L",),
    "Rain12": ("test/Rain12",),
    "RainTrainH": ("train/RainTrainH", "train/RainTrainH18"),
    "RainTrainL": ("train/RainTrainL",),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    bsds500: Path = setting(Path("BSDS500"), "folder of BSDS500's photographs")
    root: Path = setting(Path("datasets"), "folder with test/ and train/; fingerprints of sets that it lacks stay")
    out: Path = setting(STORE, "file to write")


def make(settings: Settings) -> None:
    """Take the fingerprints of BSDS500 and of the original sets, write them, and print their margins."""
    files = find_bsds500(settings.bsds500)
    if len(files) != 500:
        raise InputError(f"{settings.bsds500}: holds {len(files)} photographs, not 500; {FIX}")
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
    """Print, for copies changed in several ways, the least agreement with the original and the most with another."""
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
