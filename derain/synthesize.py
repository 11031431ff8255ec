"""Put synthetic rain on photographs: a labelled stand-in where a data set is missing.

    python -m derain.synthesize --rain light --photos my_photos --out datasets/train/my_light

The rain is one grey layer, added and clipped, as in RainTrainH/L, Rain100H/L and Rain12, to which
its statistics were fitted. Scores on it are not theirs: synthetic.json marks every such folder.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
from tqdm import tqdm

from derain.cli import run_script, setting
from derain.images import DecodedImage, read_rgb, write_image
from derain.pairs import list_images
from utils import InputError, write_json

SYNTHETIC_MARKER = "synthetic.json"
MARGIN = 64  # pixels around the image where streaks that end in it may begin
KINDS = ("light", "heavy")
# A layer is a Poisson field of drops, each drawn out to a streak. The values of both kinds are
# fitted to 100 light and 49 heavy layers of the real sets; brightness is in grey levels of 255.
RAIN: dict[str, tuple[Any, Any]] = {
    "density": ((-2.656, 0.225), (-1.871, 0.341)),  # mean, std of log10(drops per pixel)
    "height": ((1.535, 0.209), (1.549, 0.099)),  # mean, std of log10(brightness of drops)
    "spread": (0.911, 1.134),  # std of ln(brightness) within an image
    "length": (30, 37.7),  # shortest streaks; an image's is up to 30 more
    "width": ((0.585, 0.3), (0.478, 0.6)),  # smallest sigma across streaks, and how much more
    "decay": (19.5, 19.6),  # smallest decay along streaks; an image's is up to twice that
    "threshold": (0, 1.06),  # is subtracted; what falls below 0 is no rain
    "cap": (185, 212),  # soft limit of a layer
    "directions": ((1.0,), (0.6, 0.3, 0.1)),  # probabilities of 1, 2, ... in one image
}
# Smallest and largest share of rainy pixels, and mean: one std around the real layers' means
TYPICAL = {"light": (0.27, 0.43, 3.1, 8.7), "heavy": (0.78, 1.02, 29, 71)}


def rain_layer(height: int, width: int, kind: str, random: np.random.RandomState) -> np.ndarray:
    """Draw a layer of light or heavy rain: (height, width) float64 grey levels to add, at least 0.

    A RandomState, because a seed then gives the same images with every version of NumPy.
    """
    rain = {name: values[KINDS.index(kind)] for name, values in RAIN.items()}
    if kind == "light":
        angles = [random.uniform(58, 122)]  # degrees; 90 is vertical
    else:
        angles = [np.clip(random.normal(90, 7), 72, 108)]
    count = 1 + random.choice(len(rain["directions"]), p=rain["directions"])
    while len(angles) < count:
        angles.append(angles[0] + random.choice([-1, 1]) * random.uniform(15, 25))
    density = 10 ** np.clip(random.normal(*rain["density"]), -4, -0.8) / count
    brightness = 10 ** np.clip(random.normal(*rain["height"]), 0.5, 2.4)
    length = random.uniform(rain["length"], rain["length"] + 30)
    sigma = random.uniform(rain["width"][0], sum(rain["width"]))
    decay = random.uniform(rain["decay"], 2 * rain["decay"])

    total = np.zeros((height + 2 * MARGIN, width + 2 * MARGIN))
    for angle in angles:
        drops = random.poisson(density, total.shape)
        drops = drops * np.exp(rain["spread"] * random.normal(size=total.shape)) * brightness
        kernel = streak(angle, length, sigma, decay)
        total += cv2.filter2D(drops, cv2.CV_64F, kernel, borderType=cv2.BORDER_CONSTANT)
    layer = np.maximum(total[MARGIN:-MARGIN, MARGIN:-MARGIN] - rain["threshold"], 0)
    return rain["cap"] * (1 - np.exp(-layer / rain["cap"]))


def streak(angle: float, length: float, sigma: float, decay: float) -> np.ndarray:
    """Return the streak of a drop of height 1, (N, N) float64: fading along, Gaussian across."""
    radius = int(np.ceil(length / 2)) + 1
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    cosine, sine = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = x * cosine - y * sine, x * sine + y * cosine
    profile = np.exp(-np.abs(along) / decay) * np.exp(-(across**2) / (2 * sigma**2))
    return np.where(np.abs(along) <= length / 2, profile, 0)


def add_rain(clean: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """Add a layer (H, W) of grey levels to a clean image (H, W, 3) uint8: rainy (H, W, 3) uint8."""
    return np.clip(np.round(clean + layer[..., None]), 0, 255).astype(np.uint8)


def is_typical(layer: np.ndarray, kind: str) -> bool:
    """Return whether a layer's share of rain and mean are near those of the real set."""
    least_share, most_share, least_mean, most_mean = TYPICAL[kind]
    share = (np.round(layer) > 0).mean()
    return least_share <= share <= most_share and least_mean <= layer.mean() <= most_mean


def free_photographs(height: int, width: int) -> dict[str, np.ndarray]:
    """Return scikit-image's photographs by name, cut to that size: (H, W, 3) uint8 RGB."""
    photographs = {}
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = getattr(skimage.data, name)()
        top, left = max(0, image.shape[0] - height) // 2, max(0, image.shape[1] - width) // 2
        photographs[name] = np.ascontiguousarray(image[top : top + height, left : left + width])
    return photographs


def write_set(
    out: Path, photographs: Iterable, kind: str, layers: int, seed: int, typical: bool = False
) -> int:
    """Write out/rainy/rain-001.png, out/norain-001.png, ... and the marker; return the number.

    photographs: each (H, W, 3) uint8 RGB. layers: for each. typical: take typical layers only. An
    earlier synthetic set is replaced. Raises InputError if the folder is anything else.
    """
    if out.exists() and not (out / SYNTHETIC_MARKER).exists():
        raise InputError(f"{out}: exists and is not a synthetic set; choose another folder")
    for path in (*out.glob("norain-*.png"), *out.glob("rainy/rain-*.png")):
        path.unlink()
    # The marker comes first, so that a set that was not completed can be replaced.
    write_json(out / SYNTHETIC_MARKER, {"kind": kind, "seed": seed})
    random, number = np.random.RandomState(seed % 2**32), 0
    for clean in tqdm(photographs, desc=f"{kind} rain", unit="photograph", disable=None):
        height, width, _ = clean.shape
        for _ in range(layers):
            layer = rain_layer(height, width, kind, random)
            while typical and not is_typical(layer, kind):
                layer = rain_layer(height, width, kind, random)
            number += 1
            write_image(out / f"rainy/rain-{number:03d}.png", DecodedImage(add_rain(clean, layer)))
            write_image(out / f"norain-{number:03d}.png", DecodedImage(clean))
    return number


def synthetic_label(folder: Path) -> str | None:
    """Return 'synthetic heavy rain' or the like of a synthetic set, or of a folder in it."""
    for place in (folder, folder.resolve().parent):
        marker = place / SYNTHETIC_MARKER
        if marker.is_file():
            text = marker.read_text(errors="replace")
            kind = next((kind for kind in KINDS if f'"{kind}"' in text), "unknown")
            return f"synthetic {kind} rain"
    return None


def stand_in(kind: str, root: Path = Path("datasets/test")) -> Path:
    """Return the stand-in test set of a kind of rain, 12 pairs; make it if it is not complete."""
    out = root / f"synthetic_{kind}"
    if not (out / "norain-012.png").exists():
        write_set(out, free_photographs(321, 481).values(), kind, layers=3, seed=0, typical=True)
    return out


@dataclasses.dataclass(frozen=True)
class Settings:
    out: Path = setting(Path("datasets/train/synthetic"), "folder to write")
    rain: str = setting("heavy", "kind of rain", KINDS)
    photos: Path = setting(Path("my_photos"), "folder of clean photographs")
    layers: int = setting(6, "rainy images per photograph")
    seed: int = setting(0, "seed of the rain")


def main(settings: Settings) -> None:
    """Write a synthetic set."""
    files = list_images(settings.photos)
    is_inside = settings.photos.resolve().is_relative_to(settings.out.resolve())
    if not files or is_inside or settings.layers < 1:
        problem = "holds no image, or is in --out, or --layers is below 1"
        raise InputError(f"{settings.photos}: {problem}; name a folder of photographs")
    for file in files:
        read_rgb(file)  # a damaged one is found before an earlier set is replaced
    photographs = map(read_rgb, files)
    pairs = write_set(settings.out, photographs, settings.rain, settings.layers, settings.seed)
    print(f"{settings.out}: {pairs} pairs of synthetic {settings.rain} rain")


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
