"""Put synthetic rain on photographs: a labelled stand-in where a real data set is missing.

    python -m derain.synthesize --rain heavy --out datasets/test/my_heavy
    python -m derain.synthesize --rain light --photos my_photos --layers 6 --out datasets/train/my_light

Without --photos it takes colour photographs that scikit-image ships (no download). The rain is one grey layer, added to
the photograph and clipped, as in RainTrainH/L, Rain100H/L and Rain12; density, brightness, length and direction of the
streaks were fitted to those sets. Scores on such images tell whether a model works; they are not scores on Rain100H,
Rain100L or Rain12. Every folder made here is marked by its synthetic.json.
"""

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data

from derain.cli import run_script, setting
from derain.images import DecodedImage, read_rgb, write_image
from derain.pairs import list_images
from utils import InputError, write_json

SYNTHETIC_MARKER = "synthetic.json"  # in every folder that was made here
VERSION = 1  # of the generator: raise it when the same seed gives other images
MARGIN = 64  # pixels around the image where streaks that reach into it may begin
OWN_FILES = re.compile(r"rainy|norain-[0-9]+\.png|synthetic\.json")  # in a synthetic set
STAND_IN_LAYERS, STAND_IN_SEED = 3, 0
STAND_IN_SIZE = (321, 481)  # largest height and width, those of the sets it stands in for
Draw = tuple[float, float, float, float]  # low, high, mean, deviation; uniform if the deviation is 0


@dataclasses.dataclass(frozen=True)
class Rain:
    """How one kind of rain is drawn. Brightness is in grey levels of 255, lengths in pixels, angles in degrees.

    A layer is a Poisson field of impulses, each drawn out along one direction (90 is vertical). Its density per pixel
    is 10^N(density), an impulse's height 10^N(height) * exp(spread * N(0, 1)) grey levels.
    """

    density: Draw  # of the exponent, per image
    height: Draw  # of the exponent, per image
    spread: float  # of heights within an image
    length: float  # smallest length; an image's is up to 30 more
    width: tuple[float, float]  # smallest width (sigma across), and how much more it may be
    decay: float  # smallest decay along the streak; an image's is up to twice that
    threshold: float  # grey levels to subtract; what falls below 0 is no rain
    cap: float  # soft limit of a layer's brightness
    direction: Draw
    directions: tuple[float, ...]  # probabilities of 1, 2, ... directions in one image


# Fitted to 100 light and 49 heavy layers of the real sets.
KINDS = {
    "light": Rain(
        density=(-4.0, -1.0, -2.656, 0.225),
        height=(0.5, 2.4, 1.535, 0.209),
        spread=0.911,
        length=30.0,
        width=(0.585, 0.3),
        decay=19.5,
        threshold=0.0,
        cap=185.0,
        direction=(58.0, 122.0, 0.0, 0.0),
        directions=(1.0,),
    ),
    "heavy": Rain(
        density=(-4.0, -0.8, -1.871, 0.341),
        height=(0.5, 2.4, 1.549, 0.099),
        spread=1.134,
        length=37.7,
        width=(0.478, 0.6),
        decay=19.6,
        threshold=1.06,
        cap=212.0,
        direction=(72.0, 108.0, 90.0, 7.0),
        directions=(0.6, 0.3, 0.1),
    ),
}


def rain_layer(height: int, width: int, kind: str, random: np.random.RandomState) -> np.ndarray:
    """Draw a layer of rain: (height, width) float64, grey levels to add, at least 0.

    kind: 'light' or 'heavy'. random: a RandomState, because its numbers are the same in every version of NumPy, so that
    a seed gives the same images everywhere.
    """
    rain = KINDS[kind]

    def draw(low: float, high: float, mean: float, deviation: float) -> float:
        return np.clip(random.normal(mean, deviation), low, high) if deviation else random.uniform(low, high)

    angle = draw(*rain.direction)
    count = 1 + random.choice(len(rain.directions), p=rain.directions)
    angles = [angle, *(angle + random.choice([-1, 1]) * random.uniform(15, 25) for _ in range(count - 1))]
    density, brightness = 10 ** draw(*rain.density) / count, 10 ** draw(*rain.height)
    length = random.uniform(rain.length, rain.length + 30)
    sigma = random.uniform(rain.width[0], rain.width[0] + rain.width[1])
    decay = random.uniform(rain.decay, 2 * rain.decay)

    canvas = (height + 2 * MARGIN, width + 2 * MARGIN)
    total = np.zeros(canvas)
    for direction in angles:
        drops = random.poisson(density, canvas) * np.exp(rain.spread * random.normal(size=canvas)) * brightness
        total += cv2.filter2D(
            drops, cv2.CV_64F, streak(direction, length, sigma, decay), borderType=cv2.BORDER_CONSTANT
        )
    visible = np.maximum(total[MARGIN:-MARGIN, MARGIN:-MARGIN] - rain.threshold, 0)
    return rain.cap * (1 - np.exp(-visible / rain.cap))


def streak(angle: float, length: float, sigma: float, decay: float) -> np.ndarray:
    """Return the streak of one drop of height 1, fading along its direction, Gaussian across: odd square, float64."""
    reach = int(np.ceil(length / 2)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = x * cosine - y * sine, x * sine + y * cosine
    profile = np.exp(-np.abs(along) / decay) * np.exp(-(across**2) / (2 * sigma**2))
    return np.where(np.abs(along) <= length / 2, profile, 0)


def add_rain(clean: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Add a layer (H, W) of grey levels to a clean image (H, W, 3) uint8: rainy (H, W, 3) uint8, clipped at 255."""
    return np.clip(np.round(clean + layer[..., None]), 0, 255).astype(np.uint8)


def free_photographs(use: str) -> dict[str, np.ndarray]:
    """Return scikit-image's own colour photographs, (H, W, 3) uint8 RGB; 'train' and 'test' have none in common."""
    if use == "test":
        names = ("astronaut", "chelsea", "coffee", "rocket")
        return {name: getattr(skimage.data, name)() for name in names}
    return {"motorcycle": skimage.data.stereo_motorcycle()[0], "hubble_deep_field": skimage.data.hubble_deep_field()}


def write_set(out: Path, photographs: Iterable[tuple[str, np.ndarray]], kind: str, layers: int, seed: int) -> int:
    """Write out/rainy/rain-001.png, out/norain-001.png, ... and the marker. Returns the number of pairs.

    The folder appears only when it is complete, in place of an earlier synthetic set. Raises InputError if it exists
    and is no synthetic set.
    """
    foreign = [p.name for p in out.iterdir() if not OWN_FILES.fullmatch(p.name)] if out.is_dir() else [out.name]
    if out.exists() and (foreign or not (out / SYNTHETIC_MARKER).is_file()):
        raise InputError(f"{out}: exists and is no synthetic set, or holds other files too; choose another folder")
    out = out.resolve() if out.is_symlink() else out
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        random, number, names = np.random.RandomState(seed % 2**32), 0, []
        for name, clean in photographs:
            names.append(name)
            for _ in range(layers):
                number += 1
                rainy = add_rain(clean, rain_layer(clean.shape[0], clean.shape[1], kind, random))
                write_image(temporary / "rainy" / f"rain-{number:03d}.png", DecodedImage(rainy))
                write_image(temporary / f"norain-{number:03d}.png", DecodedImage(clean))
                print(f"  {out / 'rainy' / f'rain-{number:03d}.png'} ({kind} rain on {name})", flush=True)
        if not number:
            raise InputError("no photograph to put rain on")
        content = {"kind": kind, "seed": seed, "layers": layers, "photographs": names, "pairs": number}
        write_json(temporary / SYNTHETIC_MARKER, {"synthetic": True, "generator": VERSION, **content})
        temporary.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return number


def synthetic_label(folder: Path) -> str | None:
    """Return 'synthetic heavy rain' or the like if a folder, or one of the two above it, was made here."""
    kinds = (_marker(place).get("kind") for place in (folder, *folder.resolve().parents[:2]))
    return next((f"synthetic {kind} rain" for kind in kinds if kind), None)


def _marker(folder: Path) -> dict[str, Any]:
    """Return what a synthetic set's marker says; nothing for any other folder."""
    try:
        return dict(json.loads((folder / SYNTHETIC_MARKER).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def stand_in(kind: str, root: Path = Path("datasets/test")) -> Path:
    """Return the stand-in test set of a kind of rain, 12 pairs; make it, in about 5 s, if it is not there."""
    out = root / f"synthetic_{kind}"
    wanted = {"generator": VERSION, "seed": STAND_IN_SEED, "layers": STAND_IN_LAYERS, "kind": kind}
    if not wanted.items() <= _marker(out).items():
        photographs = [(name, centre(image, *STAND_IN_SIZE)) for name, image in free_photographs("test").items()]
        write_set(out, photographs, kind, STAND_IN_LAYERS, STAND_IN_SEED)
    return out


def centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the middle of an image (H, W, C), of at most that size."""
    top, left = max(0, image.shape[0] - height) // 2, max(0, image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line of this file."""

    rain: str = setting("heavy", "kind of rain", tuple(KINDS))
    out: Path = setting(Path("datasets/train/synthetic"), "folder to write")
    photos: Path | None = setting(None, "folder of clean photographs (default: those that scikit-image ships)")
    use: str = setting("train", "which of scikit-image's photographs to take", ("train", "test"))
    layers: int = setting(6, "rainy images per photograph")
    seed: int = setting(0, "seed of the rain")


def main(settings: Settings) -> None:
    """Write a synthetic set as the command line asks."""
    if settings.layers < 1:
        raise InputError(f"--layers {settings.layers}: must be at least 1")
    if settings.photos is None:
        photographs: Iterable[tuple[str, np.ndarray]] = free_photographs(settings.use).items()
    else:
        photographs = ((path.name, read_rgb(path)) for path in list_images(settings.photos))
    pairs = write_set(settings.out, photographs, settings.rain, settings.layers, settings.seed)
    print(f"{settings.out}: {pairs} pairs of synthetic {settings.rain} rain")


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
